"""The plant's KPIs for Prometheus, `/floor/metrics`: the same figures as the page, of the same days.

Whoever has the token of the settings reads all of them; who is logged in to Airflow, those of the lines whose DAGs that
person may read. Without a token in the settings nobody else does.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any

from airflow.api_fastapi.core_api.security import get_user
from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from aifactory.factory import Factory, open_factory
from aifactory.floor.history import events_between, lives_of_releases
from aifactory.floor.overview import last_events
from aifactory.floor.plan import plan_of
from aifactory.kpi.cost import Prices, prices_of
from aifactory.kpi.leadtime import lead_times
from aifactory.line import PLANT, LineSpec, lines_under
from aifactory.notices import Outbox
from aifactory.settings import load_settings
from orchestration import floorviews
from orchestration.floorairflow import AirflowSide
from orchestration.floormodels import Kpis

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from sqlalchemy import Connection

DAYS = 30
"""Figures are of so many days, as the page shows them first."""
PREFIX = "aifactory_"
MAX_AGE = timedelta(minutes=10)
MOST_OLD = 20
"""So many lines on which nothing happened are reckoned anew at a time; each takes about 20 ms."""
_JOULES_PER_KWH = 3.6e6

Samples = Iterable[tuple[tuple[str, ...], float | None]]


@dataclass(frozen=True)
class Figure:
    """One metric of every line.

    Args:
        name: without the prefix; the suffix is its unit.
        help: what it is.
        samples: values of its labels, and its value; one that is not known is not exported.
        labels: names of its labels, beside `line`.
    """

    name: str
    help: str
    samples: Callable[[Kpis], Samples]
    labels: tuple[str, ...] = ()


def _plain(field: str) -> Callable[[Kpis], Samples]:
    return lambda kpis: [((), attrgetter(field)(kpis))]


def _stations(field: str) -> Callable[[Kpis], Samples]:
    return lambda kpis: [((each.station,), attrgetter(field)(each)) for each in kpis.stations]


def _money(field: str) -> Callable[[Kpis], Samples]:
    return lambda kpis: [((kpis.cost.currency,), attrgetter(field)(kpis))]


def _spans(span: str, field: str) -> Callable[[Kpis], Samples]:
    return lambda kpis: [((of,), attrgetter(f"{of}_{span}.{field}")(kpis)) for of in ("line", "model")]


def _bottleneck(kpis: Kpis) -> Samples:
    return [((kpis.bottleneck.station,), 1.0)] if kpis.bottleneck else []


def _lead_times(field: str) -> Callable[[Kpis], Samples]:
    parts = ("total", "queue", "touch", "approval", "bake")
    return lambda kpis: [((part,), attrgetter(f"{part}.{field}")(kpis.lead_time)) for part in parts]


_STATION, _PART, _OF, _CURRENCY = ("station",), ("part",), ("of",), ("currency",)
FIGURES = (
    Figure(
        "station_availability_ratio", "Work time / (work time + downtime).", _stations("oee.availability"), _STATION
    ),
    Figure(
        "station_performance_ratio",
        "Ideal cycle x units / work time; above 1 the ideal is wrong.",
        _stations("oee.performance"),
        _STATION,
    ),
    Figure("station_quality_ratio", "Good units / units.", _stations("oee.quality"), _STATION),
    Figure("station_oee_ratio", "Overall equipment effectiveness, ISO 22400-2.", _stations("oee.oee"), _STATION),
    Figure("station_first_pass_yield_ratio", "Units good at once / units.", _stations("first_pass_yield"), _STATION),
    Figure("station_row_yield_ratio", "Good rows / rows in.", _stations("row_yield"), _STATION),
    Figure("station_load_ratio", "Effective cycle / takt; above 1 it cannot keep up.", _stations("load"), _STATION),
    Figure("station_cycle_seconds", "(Work + downtime) / good units.", _stations("cycle_s"), _STATION),
    Figure("station_takt_seconds", "Time in which the plan asks for a good unit.", _stations("takt_s"), _STATION),
    Figure("station_work_seconds", "Work that was not lost to infrastructure.", _stations("work_s"), _STATION),
    Figure("station_down_seconds", "Lost to infrastructure.", _stations("down_s"), _STATION),
    Figure("station_units", "Units that ended, each once.", _stations("num_units"), _STATION),
    Figure("station_good_units", "Units whose last word is good.", _stations("num_good"), _STATION),
    Figure("station_scrapped_units", "Units whose last word is bad.", _stations("num_scrap"), _STATION),
    Figure("station_reworked_units", "Units that were good later.", _stations("num_rework"), _STATION),
    Figure("station_units_in_progress", "Units that were started and have not ended.", _stations("wip"), _STATION),
    Figure("rolled_yield_ratio", "Product of the stations' first-pass yields.", _plain("rolled_yield")),
    Figure("units_in_progress", "Work in progress of the line.", _plain("wip")),
    Figure("good_models", "Models that took all traffic.", _plain("throughput.num_good_models")),
    Figure("datasets", "Dataset versions.", _plain("throughput.num_datasets")),
    Figure("predictions", "Good predictions of batches.", _plain("throughput.num_predictions")),
    Figure("releases_per_week", "Deployment frequency (DORA).", _plain("dora.releases_per_week")),
    Figure("change_failure_ratio", "Releases rolled back later / releases (DORA).", _plain("dora.change_failure_rate")),
    Figure(
        "time_to_restore_seconds",
        "From a breach of a live limit to healthy traffic (DORA).",
        _plain("dora.time_to_restore.value_s"),
    ),
    Figure("work_seconds", "Wall time of work.", _plain("cost.work_s")),
    Figure("gpu_seconds", "Time of GPUs.", _plain("cost.gpu_s")),
    Figure("money_estimated_ratio", "Share of the cost that was estimated.", _plain("cost.estimated_share")),
    Figure("bottleneck", "1 for the station with the highest load.", _bottleneck, _STATION),
    Figure("lead_time_median_seconds", "Landed data to all traffic, and its parts.", _lead_times("p50_s"), _PART),
    Figure("lead_time_p95_seconds", "Landed data to all traffic, and its parts.", _lead_times("p95_s"), _PART),
    Figure(
        "mtbf_seconds",
        "Mean time between failures; more than that where failures are 0.",
        _spans("mtbf", "value_s"),
        _OF,
    ),
    Figure("mttr_seconds", "Mean time to repair; more than that where repairs are 0.", _spans("mttr", "value_s"), _OF),
    Figure("failures", "What the mean time between failures rests on.", _spans("mtbf", "num"), _OF),
    Figure("repairs", "What the mean time to repair rests on.", _spans("mttr", "num"), _OF),
    Figure("energy_joules", "Energy.", lambda kpis: [((), kpis.cost.energy_kwh * _JOULES_PER_KWH)]),
    Figure("money", "Cost.", _money("cost.money"), _CURRENCY),
    Figure("good_model_money", "Cost of a good model.", _money("money_per_good_model"), _CURRENCY),
    Figure("thousand_predictions_money", "Cost of that many.", _money("money_per_thousand_predictions"), _CURRENCY),
)
"""The KPIs of a line, see `Kpis`."""


# --- who may
async def reader(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> Any:
    """The person who asks, by Airflow's own login; None for who has the token of the settings.

    Raises:
        HTTPException: 401 or 403, neither.
    """
    token = load_settings().metrics_token.get_secret_value().encode()
    if token and bearer and hmac.compare_digest(bearer.credentials.encode(), token):
        return None
    return await get_user(request, None, bearer)


router = APIRouter()


@router.get("/metrics", response_class=Response, include_in_schema=False)
def metrics(request: Request, user: Annotated[Any, Depends(reader)]) -> Response:
    """All figures as text, in the format of Prometheus that the request prefers."""
    f = open_factory()
    lines = {spec.line: spec for spec in lines_under(f.settings.lines_dir)[0]}
    if user is not None:
        lines = {name: lines[name] for name in AirflowSide().may_read(user, lines)}
    outbox = Outbox(f.settings.ledger_dsn.get_secret_value())
    notices = {of: number for of, number in outbox.notice_counts().items() if of[0] in {PLANT, *lines}}
    found = families(lines, _kept.read(f, lines, datetime.now(UTC)), notices, outbox.delivery_counts())
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(Found(found)), headers={"content-type": content_type, "cache-control": "no-store"})


# --- what
class KeptKpis:
    """KPIs of lines, reckoned anew where something has happened on the line, and, some at a time, every `MAX_AGE`."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[datetime | None, Kpis]] = {}
        self._lock = threading.Lock()

    def read(self, f: Factory, lines: Mapping[str, LineSpec], now: datetime) -> dict[str, Kpis]:
        """The KPIs of these lines over the last `DAYS`.

        Raises:
            InfrastructureFault: the ledger does not answer.
        """
        prices = prices_of(f.settings)
        with self._lock, f.ledger.reading() as connection:
            last = last_events(connection, list(lines))
            known = {name: self._kept[name][1].end for name in lines if name in self._kept}
            new = [name for name in lines if name not in known or self._kept[name][0] != last.get(name)]
            old = sorted((end, name) for name, end in known.items() if now - end > MAX_AGE and name not in new)
            for name in [*new, *(name for _, name in old[:MOST_OLD])]:
                self._kept[name] = last.get(name), kpis_of(connection, lines[name], prices, now)
            return {name: self._kept[name][1] for name in lines}


_kept = KeptKpis()


def kpis_of(connection: Connection, spec: LineSpec, prices: Prices, now: datetime) -> Kpis:
    """The KPIs of a line over the last `DAYS`, as the page reckons them."""
    span = now - timedelta(days=DAYS), now
    events = events_between(connection, spec.line, *span)
    lives = lead_times(lives_of_releases(connection, spec.line, *span))
    return floorviews.kpis(spec, plan_of(spec), prices, events, lives, {}, span)


class Found(Collector):
    """Metrics as the encoders of Prometheus want them."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        return self._found


def families(
    lines: Mapping[str, LineSpec],
    kpis: Mapping[str, Kpis],
    notices: Mapping[tuple[str, str], int],
    deliveries: Mapping[tuple[str, str], int],
) -> Iterator[Metric]:
    """All metrics.

    Args:
        lines: specs by name.
        kpis: of each line.
        notices: see `Outbox.notice_counts`; of these lines and the plant.
        deliveries: see `Outbox.delivery_counts`.
    """
    info = GaugeMetricFamily(f"{PREFIX}line_info", "1 for each line.", labels=("line", "title", "team", "tier"))
    for name, spec in lines.items():
        info.add_metric((name, spec.title, spec.owner.team, spec.deployment.tier), 1)
    yield info
    for figure in FIGURES:
        help_ = f"{figure.help} Last {DAYS} days."
        family = GaugeMetricFamily(PREFIX + figure.name, help_, labels=("line", *figure.labels))
        for line, each in kpis.items():
            for labels, value in figure.samples(each):
                if value is not None:
                    family.add_metric((line, *labels), value)
        yield family
    made = CounterMetricFamily(f"{PREFIX}notices", "Notices that were made.", labels=("line", "kind"))
    for labels, number in notices.items():
        made.add_metric(labels, number)
    yield made
    sent = CounterMetricFamily(f"{PREFIX}notices_sent", "Notices that a channel took.", labels=("channel",))
    given_up = CounterMetricFamily(f"{PREFIX}notices_given_up", "Notices it never took.", labels=("channel",))
    waiting = GaugeMetricFamily(f"{PREFIX}notices_waiting", "Notices it has yet to take.", labels=("channel",))
    for channel in sorted({channel for channel, _ in deliveries}):
        sent.add_metric((channel,), deliveries.get((channel, "sent"), 0))
        given_up.add_metric((channel,), deliveries.get((channel, "given_up"), 0))
        waiting.add_metric((channel,), deliveries.get((channel, "waiting"), 0))
    yield from (sent, given_up, waiting)
