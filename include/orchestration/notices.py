"""Telling people what of the production record they must know, by Airflow's notifiers.

Nothing is sent from where something happens: stages write to the ledger, and one task tells what is new there. So no
channel, however slow or broken, is in the way of production.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier

from aifactory.errors import FactoryError, InfrastructureFault
from aifactory.notices import Notice, NoticeKind, Outbox, Routes
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    from apprise import Apprise

    from aifactory.factory import Factory
    from aifactory.line import LineSpec

log = logging.getLogger(__name__)

_MOST_TRIES_A_RUN = 200
_TIMEOUT_S = 20


class ApprovalWaits(BaseNotifier):
    """Puts on the production record that a release waits for a person; called by the task that waits."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line

    def notify(self, context: Any) -> None:
        """Record it, once a run."""
        from aifactory.factory import open_factory
        from aifactory.stages.deploy import approval_asked

        version = context["ti"].xcom_pull(task_ids="propose")["version"]
        approval_asked(open_factory(), self.line, version, context["run_id"])


class ToChannel(BaseNotifier):
    """Sends a notice to the service whose URL is in an Airflow connection of type Apprise.

    The provider's notifier renders the text as a template, which the words of a stage must never be, and hides whether
    it arrived; so the provider is taken for the connection alone.

    Args:
        channel: id of the connection.
        notice: what is sent.
        airflow_url: Airflow as people reach it.
    """

    def __init__(self, channel: str, notice: Notice, airflow_url: str) -> None:
        super().__init__()
        self.channel = channel
        self.notice = notice
        self.airflow_url = airflow_url

    def notify(self, context: Any) -> None:
        """Send it.

        Raises:
            InfrastructureFault: CHANNEL_FAILED; the service did not take it, or the connection is of no use.
        """
        from apprise import NotifyFormat, NotifyType

        waits = self.notice.kind is NoticeKind.APPROVAL_WAITING
        result = self._service().notify(
            title=self.notice.title,
            body=self.notice.body(self.airflow_url),
            notify_type=NotifyType.WARNING if waits else NotifyType.FAILURE,
            body_format=NotifyFormat.TEXT,
            timeout=_TIMEOUT_S,
        )
        if not result:
            raise self._fault("; ".join(entry.message for entry in result.logs()) or result.status.name.lower())

    def _service(self) -> Apprise:
        from airflow.providers.apprise.hooks.apprise import AppriseHook
        from airflow.sdk.exceptions import AirflowNotFoundException
        from airflow.sdk.log import mask_secret
        from apprise import Apprise

        hook, services = AppriseHook(self.channel), Apprise()
        try:
            config = hook.get_config_from_conn(hook.get_connection(self.channel))
            for each in config if isinstance(config, list) else [config]:
                mask_secret(each["path"].partition("://")[2])  # Apprise logs a URL that it cannot read
                services.add(each["path"])
        except AirflowNotFoundException as error:
            raise self._fault("there is no such connection; make it, of type Apprise") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._fault('its `config` is not {"path": "<Apprise URL>"}') from error
        if len(services) != 1:
            # What one of several has not taken could not be sent again without doubling it for the others
            raise self._fault(f"it holds {len(services)} valid Apprise URLs, and must hold one")
        return services

    def _fault(self, why: str) -> InfrastructureFault:
        return InfrastructureFault(ReasonCode.CHANNEL_FAILED, f"connection {self.channel!r}: {why}")


def tell(f: Factory, routes: Routes, lines: Mapping[str, LineSpec], now: datetime | None = None) -> dict[str, int]:
    """Make the notices of what is new in the ledger, tell them in the log, and send what is due.

    A channel that fails is left alone for the rest of the call. Its failures are told and counted, and end nothing.

    Args:
        f: the open factory.
        routes: who is told of what.
        lines: the specs of the lines by name.
        now: the time, UTC, all along; default the clock's.

    Returns:
        {"made", "sent", "failed", "given_up"}: numbers of notices and of tries.

    Raises:
        InfrastructureFault: the ledger does not answer; nothing is lost.
    """

    def moment() -> datetime:
        return now or datetime.now(UTC)

    outbox = Outbox(f.settings.ledger_dsn.get_secret_value())
    made = outbox.collect(
        lambda kind, line: routes.channels(kind, line, lines.get(line)), timedelta(hours=routes.repeat_hours), moment()
    )
    for notice in made:
        log.warning("notice %d: %s", notice.id, notice.title)
    counts, down = {"made": len(made), "sent": 0, "failed": 0, "given_up": 0}, set[str]()
    while sum(counts[n] for n in ("sent", "failed")) < _MOST_TRIES_A_RUN and (due := outbox.claim(moment(), down)):
        try:
            ToChannel(due.channel, due.notice, f.settings.airflow_url).notify({})
        except FactoryError as error:
            over = outbox.settle(due, moment(), str(error))
            log.error("notice %d, try %d%s: %s", due.notice.id, due.num_tries, ", given up" if over else "", error)  # noqa: TRY400 - the cause is told
            down.add(due.channel)
            counts["failed"] += 1
            counts["given_up"] += over
        else:
            outbox.settle(due, moment())
            counts["sent"] += 1
    return counts
