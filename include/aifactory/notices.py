"""Notices: what of the production record somebody must be told, to whom it goes, and what became of telling it.

The ledger is the one source. Every event that is worth a notice is looked at once, in the transaction that makes the
notice and names its channels, so a crash neither loses nor doubles one. A notice is sent at least once: only who dies
between the receiver's answer and the note of it sends it again, and it carries its number. What says the same of the
same unit within `Routes.repeat_hours` is not sent but counted, and the next notice tells the count.
Units of one run that are refused for the same reason and found in one look share the notice of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from aifactory.errors import SpecError
from aifactory.ledger import EventKind, Ledger
from aifactory.line import PLANT, LineSpec
from aifactory.reasons import ReasonCode
from aifactory.specfile import Spec, read_spec

FIRST_PAUSE = timedelta(minutes=2)
LONGEST_PAUSE = timedelta(hours=4)
MAX_TRIES = 10
"""Pauses of 2, 4, 8 ... 240 minutes between tries: a channel that is away for half a day gets its notices."""

_LOCK = 0x4E4F5449  # any number that is nobody else's in this database
_MOST_AT_ONCE = 1000


class NoticeKind(StrEnum):
    """What somebody is told."""

    GATE_FAILURE = "gate_failure"
    QUARANTINE_ABOVE_LIMIT = "quarantine_above_limit"
    ROLLBACK = "rollback"
    DEADLINE_MISSED = "deadline_missed"
    APPROVAL_WAITING = "approval_waiting"


def kind_of(event: EventKind, reason: ReasonCode) -> NoticeKind | None:
    """What an event is told as; None where nobody need be told."""
    if reason is ReasonCode.APPROVAL_WAITING:
        return NoticeKind.APPROVAL_WAITING
    if event is EventKind.ROLLED_BACK:
        return NoticeKind.ROLLBACK
    if event not in (EventKind.HELD, EventKind.SCRAPPED) or reason is ReasonCode.APPROVAL_REJECTED:
        return None
    special = {
        ReasonCode.DEADLINE_MISSED: NoticeKind.DEADLINE_MISSED,
        ReasonCode.QUARANTINE_SHARE: NoticeKind.QUARANTINE_ABOVE_LIMIT,
    }
    return special.get(reason, NoticeKind.GATE_FAILURE)


# --- to whom
def _connection_name(value: str) -> str:
    if not value or not set(value) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."):
        # Not shown: it may be somebody's secret
        raise ValueError("must be names of Airflow connections; URLs and secrets do not belong into this file")
    return value


class Match(Spec):
    """Which notices a route is for; an empty list is any."""

    lines: list[str] = Field(default_factory=list, description="Lines; `plant` for what concerns all of them.")
    owners: list[str] = Field(default_factory=list, description="Teams that own the line; `plant` for the plant.")
    tiers: list[Literal["low", "medium", "high"]] = Field(
        default_factory=list, description="Risk tiers of the line; what is of the plant has none."
    )
    kinds: list[NoticeKind] = Field(default_factory=list, description="Kinds of notices.")


class Route(Spec):
    """Notices, and where they go."""

    match: Match = Field(default_factory=Match, description="Every list that is given must hold; default: all notices.")
    to: list[Annotated[str, AfterValidator(_connection_name)]] = Field(
        min_length=1, description="Airflow connections of type Apprise, each with one URL."
    )


class Routes(Spec):
    """All routes. A notice takes every one that matches, and each channel once."""

    repeat_hours: float = Field(
        default=24, gt=0, le=24 * 365, description="The same of the same unit is sent again after so long, hours."
    )
    routes: list[Route] = Field(default_factory=list)

    def channels(self, kind: NoticeKind, line: str, spec: LineSpec | None) -> list[str]:
        """Where a notice goes; of a line whose spec is not known (any more) no route matches an owner or a tier."""
        owner = PLANT if line == PLANT else spec.owner.team if spec else None
        facts = {"lines": line, "owners": owner, "tiers": spec.deployment.tier if spec else None, "kinds": kind}

        def takes(route: Route) -> bool:
            wanted = {name: getattr(route.match, name) for name in facts}
            return all(facts[name] in values for name, values in wanted.items() if values)

        return list(dict.fromkeys(channel for route in self.routes if takes(route) for channel in route.to))


def load_routes(path: Path, specs: Collection[LineSpec] = ()) -> Routes:
    """Read the routes.

    Args:
        path: see `Settings.notices_file`.
        specs: all lines; where there are some, a route may name no other, and no team that owns none of them.

    Raises:
        SpecError: names the file, and each wrong field.
    """
    routes = read_spec(path, Routes, "write it (docs/notices.md), or take AIF_NOTICES_FILE away")
    there = {"lines": {spec.line for spec in specs}, "owners": {spec.owner.team for spec in specs}}
    for number, route in enumerate(routes.routes if specs else []):
        for field, known in there.items():
            unknown = sorted(set(getattr(route.match, field)) - known - {PLANT})
            if unknown:
                raise SpecError(f"{path}: routes.{number}.match.{field}: {unknown} are none of {sorted(known)}")
    return routes


# --- what is told
@dataclass(frozen=True)
class Notice:
    """Something that happened, as somebody is told it.

    Args:
        id: number of the notice.
        kind: what it is.
        line: the line, or `plant`.
        station: where it happened.
        unit_kind: see `ledger.ProductionEvent`, also for the following.
        unit: the production unit.
        reason: why.
        at: when, UTC.
        partition: the day it belongs to, YYYY-MM-DD.
        detail: of the event.
        num_untold: how often the same has happened since the last notice of it, without one of its own.
        num_others: units more of the same run, of which it tells too.
    """

    id: int
    kind: NoticeKind
    line: str
    station: str
    unit_kind: str
    unit: str
    reason: ReasonCode
    at: datetime
    partition: str | None
    detail: Mapping[str, Any]
    num_untold: int
    num_others: int

    @property
    def title(self) -> str:
        """In one line."""
        what = {
            NoticeKind.GATE_FAILURE: f"{self.unit_kind} {self.unit} did not pass at {self.station}",
            NoticeKind.QUARANTINE_ABOVE_LIMIT: f"{self.unit_kind} {self.unit} is held, too many rows are quarantined",
            NoticeKind.ROLLBACK: f"{self.unit_kind} {self.unit} was taken back",
            NoticeKind.DEADLINE_MISSED: f"{self.detail.get('stage', self.station)} is late, run {self.unit}",
            NoticeKind.APPROVAL_WAITING: f"the release of {self.unit_kind} {self.unit} waits for a person",
        }[self.kind]
        others = f", and {self.num_others} more of its run" if self.num_others else ""
        return f"{self.line}: {what}{others} ({self.reason.value})"

    def body(self, airflow_url: str) -> str:
        """Plain text: why, what the stage said, how often, where to look."""
        said = next((str(self.detail[n]) for n in ("message", "explanation", "why") if self.detail.get(n)), "")
        docs = self.detail.get("docs") or self.detail.get("report")
        lines = [
            self.reason.sentence,
            said[:1000],
            f"It has happened {self.num_untold} more times since the last notice." if self.num_untold else "",
            f"{self.at:%Y-%m-%d %H:%M} UTC" + (f", partition {self.partition}" if self.partition else ""),
            f"{airflow_url}/dags/{self.line}.{self.station}",
            f"{airflow_url}/{docs}" if docs else "",
            f"Notice {self.id}",
        ]
        return "\n".join(filter(None, lines))


@dataclass(frozen=True)
class Delivery:
    """A notice on its way to a channel; `num_tries` counts this one."""

    notice: Notice
    channel: str
    num_tries: int


def pause_after(num_tries: int) -> timedelta:
    """How long a channel is left alone after a try, the first being 1."""
    doublings: int = 2 ** min(num_tries - 1, MAX_TRIES)
    return min(FIRST_PAUSE * doublings, LONGEST_PAUSE)


class Outbox(Ledger):
    """The ledger, with its notices.

    Raises (every method):
        InfrastructureFault: Postgres does not answer, or refuses.
    """

    def collect(
        self, channels: Callable[[NoticeKind, str], Sequence[str]], window: timedelta, now: datetime
    ) -> list[Notice]:
        """Make the notices of all events that nobody has looked at; the same of the same unit once a window.

        Each is made and kept; of those of one run that say the same, the first alone has channels.

        Args:
            channels: gives the channels of a kind and a line.
            window: see `Routes.repeat_hours`.
            now: the time of the notices, UTC.

        Returns:
            those that are new, oldest first.
        """
        from sqlalchemy import text

        made: list[dict[str, Any]] = []
        first: dict[tuple[Any, ...], dict[str, Any]] = {}  # of a run and reason
        with self._connection() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            for row in connection.execute(text(_UNSEEN), {"most": _MOST_AT_ONCE}).mappings().all():
                kind = kind_of(EventKind(row["event"]), ReasonCode[row["reason"]])
                told = {**row, "kind": kind, "now": now, "since": now - window, "notice_id": None, "num_others": 0}
                if kind is not None:
                    last = connection.execute(text(_LAST), told).one_or_none()
                    told["notice_id"] = last.id if last and last.recent else None
                    if told["notice_id"] is None:
                        told["num_untold"] = last.num_events - 1 if last else 0
                        told["notice_id"] = connection.execute(text(_MAKE), told).scalar_one()
                        made.append(told)
                        same = tuple(told[n] for n in ("kind", "line", "station", "unit_kind", "reason", "run_id"))
                        head = first.setdefault(same, told) if row["run_id"] else told
                        head["num_others"] += head is not told
                        for channel in channels(kind, row["line"]) if head is told else ():
                            connection.execute(text(_ADDRESS), told | {"channel": channel})
                connection.execute(text(_SEEN), told)
            for head in first.values():
                connection.execute(text(_OTHERS), head)
        return [_notice(told) for told in made]

    def claim(self, now: datetime, without: Collection[str] = ()) -> Delivery | None:
        """Take a delivery that is due and count the try; nobody else gets it before its next one is due.

        Args:
            now: the time, UTC.
            without: channels to leave alone.
        """
        from sqlalchemy import text

        with self._connection() as connection:
            due = connection.execute(text(_DUE), {"now": now, "without": list(without)}).one_or_none()
            if due is None:
                return None
            tries = due.num_tries + 1
            named = {"id": due.notice_id, "channel": due.channel}
            connection.execute(text(_TRY), {**named, "tries": tries, "due": now + pause_after(tries)})
            row = connection.execute(text(_NOTICE), named).mappings().one()
        return Delivery(_notice(dict(row)), due.channel, tries)

    def settle(self, delivery: Delivery, now: datetime, error: str = "") -> bool:
        """Note that a try succeeded, or how it failed; True where no other will follow."""
        from sqlalchemy import text

        over = not error or delivery.num_tries >= MAX_TRIES
        values = {"id": delivery.notice.id, "channel": delivery.channel, "error": error[:500], "over": over, "now": now}
        with self._connection() as connection:
            connection.execute(text(_SETTLE), values)
        return over

    def notice_counts(self) -> dict[tuple[str, str], int]:
        """How many notices of each line and kind there were."""
        from sqlalchemy import text

        with self._connection() as connection:
            rows = connection.execute(text("SELECT line, kind, count(*) FROM notice GROUP BY line, kind"))
            return {(line, kind): int(n) for line, kind, n in rows}

    def delivery_counts(self) -> dict[tuple[str, str], int]:
        """How many notices each channel and state has: sent, waiting or given_up."""
        from sqlalchemy import text

        with self._connection() as connection:
            return {(channel, state): int(n) for channel, state, n in connection.execute(text(_STATES))}


_UNSEEN = """
SELECT e.* FROM production_event e
WHERE (e.event IN ('held', 'scrapped', 'rolled_back') OR e.reason = 'APPROVAL_WAITING')
  AND NOT EXISTS (SELECT FROM notice_event n WHERE n.event_id = e.id)
ORDER BY e.id LIMIT :most
"""
"""By what was not looked at, not by a highest id: transactions commit out of order, and one may be slow."""
_LAST = """
SELECT n.id, n.made_at > :since AS recent, (SELECT count(*) FROM notice_event e WHERE e.notice_id = n.id) AS num_events
FROM notice n
WHERE n.kind = :kind AND n.line = :line AND n.station = :station AND n.unit = :unit AND n.reason = :reason
ORDER BY n.id DESC LIMIT 1
"""
_MAKE = """
INSERT INTO notice (kind, line, station, unit, reason, event_id, made_at, num_untold)
VALUES (:kind, :line, :station, :unit, :reason, :id, :now, :num_untold) RETURNING id
"""
_OTHERS = "UPDATE notice SET num_others = :num_others WHERE id = :notice_id AND :num_others > 0"
_SEEN = "INSERT INTO notice_event (event_id, notice_id) VALUES (:id, :notice_id)"
_ADDRESS = "INSERT INTO notice_delivery (notice_id, channel, due_at) VALUES (:notice_id, :channel, :now)"
_DUE = """
SELECT notice_id, channel, num_tries FROM notice_delivery WHERE due_at <= :now AND channel <> ALL(:without)
ORDER BY due_at, notice_id LIMIT 1 FOR UPDATE SKIP LOCKED
"""
_TRY = "UPDATE notice_delivery SET num_tries = :tries, due_at = :due WHERE notice_id = :id AND channel = :channel"
_NOTICE = """
SELECT n.id AS notice_id, n.kind, n.num_untold, n.num_others, e.*
FROM notice n JOIN production_event e ON e.id = n.event_id
WHERE n.id = :id
"""
_SETTLE = """
UPDATE notice_delivery SET error = :error, due_at = CASE WHEN :over THEN NULL ELSE due_at END,
    sent_at = CASE WHEN :error = '' THEN CAST(:now AS timestamptz) END
WHERE notice_id = :id AND channel = :channel
"""
_STATES = """
SELECT channel, CASE WHEN sent_at IS NOT NULL THEN 'sent' WHEN due_at IS NOT NULL THEN 'waiting' ELSE 'given_up' END,
    count(*)
FROM notice_delivery GROUP BY 1, 2
"""


def _notice(row: Mapping[str, Any]) -> Notice:
    taken = ("line", "station", "unit_kind", "unit", "at", "partition", "detail", "num_untold", "num_others")
    return Notice(
        id=row["notice_id"],
        kind=NoticeKind(row["kind"]),
        reason=ReasonCode[row["reason"]],
        **{name: row[name] for name in taken},
    )
