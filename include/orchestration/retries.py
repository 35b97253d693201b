"""Two kinds of failure, two budgets.

A defect (bad data, bad model, bad code) would give the same again: it fails at once. An infrastructure fault
(store unreachable, process killed) may be gone in a minute: it is retried with exponential backoff. What nobody
foresaw counts as a defect, so that a bug shows at once and not after a quarter of an hour.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryDecision, RetryRule

from aifactory.errors import Defect, InfrastructureFault

if TYPE_CHECKING:
    from airflow.sdk import Context

NUM_RETRIES = 6
"""Retries of infrastructure faults; also those of a worker that died, which Airflow itself counts."""
FIRST_DELAY = timedelta(seconds=10)
MAX_DELAY = timedelta(minutes=5)
"""10, 20, 40, 80, 160, 300 s: an outage of ten minutes is bridged."""
_REASON_LENGTH = 500


class TwoBudgets(ExceptionRetryPolicy):
    """Fails defects at once and retries infrastructure faults; the decision names the reason code."""

    def __init__(self) -> None:
        super().__init__(
            rules=[
                RetryRule(exception=Defect, action=RetryAction.FAIL),
                RetryRule(exception=[InfrastructureFault, ConnectionError, TimeoutError], action=RetryAction.RETRY),
            ],
            default=RetryAction.FAIL,
        )

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """The rule's action, with the delay of this try and the error's own words."""
        decision = super().evaluate(exception, try_number, max_tries, context)
        retries = decision.action is RetryAction.RETRY or _airflow_is_away(exception)
        return RetryDecision(
            action=RetryAction.RETRY if retries else decision.action,
            retry_delay=delay_of(try_number) if retries else None,
            reason=f"{'infrastructure fault' if retries else 'defect'}: {_words(exception)}"[:_REASON_LENGTH],
        )


def delay_of(try_number: int) -> timedelta:
    """How long to wait after a try, the first being 1."""
    doublings: int = 2 ** max(try_number - 1, 0)
    return min(FIRST_DELAY * doublings, MAX_DELAY)


def _airflow_is_away(exception: BaseException) -> bool:
    """Whether the task could not reach Airflow's own API server: killed, restarting, or without its database."""
    import httpx
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType

    if not isinstance(exception, AirflowRuntimeError) or exception.error.error is not ErrorType.API_SERVER_ERROR:
        return False
    told = exception.error.detail or {}
    if told.get("status_code") is not None:
        return bool(told["status_code"] >= httpx.codes.INTERNAL_SERVER_ERROR)
    kind = getattr(httpx, str(told.get("exception_type")), None)
    return isinstance(kind, type) and issubclass(kind, httpx.TransportError)


def _words(exception: BaseException) -> str:
    text = str(exception)
    return text if hasattr(exception, "reason") else f"{type(exception).__name__}: {text}"
