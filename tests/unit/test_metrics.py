"""The figures for Prometheus, and the dashboard that shows them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

import pytest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from aifactory.line import find_line
from aifactory.settings import REPOSITORY
from orchestration import metrics
from orchestration.floormodels import (
    Bottleneck,
    Dora,
    Kpis,
    LeadTimeSummary,
    Money,
    Oee,
    Quantiles,
    Span,
    StationKpis,
    Throughput,
)

SPEC = find_line(REPOSITORY / "include" / "lines", "flight_delay")
END = datetime(2026, 3, 31, tzinfo=UTC)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def quantiles(first: float | None) -> Quantiles:
    return Quantiles(num=1, p50_s=first, p95_s=None if first is None else first + 0.5)


def station(name: Any, known: float | None) -> StationKpis:
    """A station all of whose figures differ, or are not known."""

    def some(n: int) -> float | None:
        return None if known is None else n / 100

    return StationKpis(
        station=name, dag_id=f"flight_delay.{name}", state="idle", href="/x", last_run_href=None, last_at=None,
        unit_kind="model", num_units=20, num_good=18, num_first_pass=17, num_rework=3, num_scrap=2, num_rows_in=0,
        num_rows_good=0, num_rows_bad=0, wip=4, first_pass_yield=some(85), row_yield=some(99), work_s=3000.0,
        down_s=120.0, cycle_s=known, takt_s=known, load=some(50), oee=Oee(
            availability=some(87), performance=some(95), quality=some(90), oee=some(75), ideal_is_wrong=False,
            ideal_cycle_s=known, ideal_source=None if known is None else "declared",
        ),
    )  # fmt: skip


def kpis(known: float | None = 60.0) -> Kpis:
    """A line whose figures differ, or are not known."""

    def span(n: int) -> Span:
        return Span(value_s=None if known is None else known * n, more_than=False, num=n)

    share = None if known is None else 0.25
    return Kpis(
        begin=END - timedelta(days=30), end=END, stations=[station("train", known), station("deploy", known)],
        bottleneck=None if known is None else Bottleneck(station="train", load=0.5),
        throughput=Throughput(num_good_models=6, num_datasets=30, num_predictions=27_000, num_tokens=None), wip=5,
        rolled_yield=None if known is None else 0.5586, line_mtbf=span(1), line_mttr=span(2), model_mtbf=span(3),
        lead_time=LeadTimeSummary(**{
            part: quantiles(None if known is None else n)
            for n, part in enumerate(("total", "queue", "touch", "approval", "bake"))
        }),
        dora=Dora(releases_per_week=1.4, lead_time=quantiles(0), change_failure_rate=share, time_to_restore=span(5)),
        cost=Money(currency="EUR", money=12.5, gpu_s=7.0, work_s=9000.0, energy_kwh=0.5, estimated_share=share),
        model_mttr=span(4), money_per_good_model=known, gpu_s_per_good_model=known, energy_kwh_per_good_model=known,
        money_per_thousand_predictions=known,
    )  # fmt: skip


def exported(each: Kpis, accept: str = OPENMETRICS) -> str:
    notices = {("flight_delay", "rollback"): 3, ("plant", "deadline_missed"): 1}
    deliveries = {("desk", "sent"): 7, ("desk", "waiting"): 2, ("pager", "given_up"): 1}
    found = metrics.families({SPEC.line: SPEC}, {SPEC.line: each}, notices, deliveries)
    encode, _ = choose_encoder(accept)
    return encode(metrics.Found(found)).decode()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_openmetrics(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name, tuple(sorted(labels.items()))]


# --- the figures
@pytest.mark.parametrize("accept", [OPENMETRICS, "text/plain; version=0.0.4", ""])
def test_both_formats_of_prometheus_can_be_read(accept: str) -> None:
    parse = parse_openmetrics if accept == OPENMETRICS else parse_text
    found = {sample.name for family in parse(exported(kpis(), accept)) for sample in family.samples}
    assert {"aifactory_rolled_yield_ratio", "aifactory_notices_total", "aifactory_line_info"} <= found


def test_figures_are_those_of_the_page_with_units_as_prometheus_has_them() -> None:
    text = exported(kpis())
    of = {"line": "flight_delay"}
    assert value(text, "aifactory_station_availability_ratio", **of, station="train") == 0.87
    assert value(text, "aifactory_station_oee_ratio", **of, station="deploy") == 0.75
    assert value(text, "aifactory_rolled_yield_ratio", **of) == 0.5586
    assert value(text, "aifactory_lead_time_p95_seconds", **of, part="approval") == 3.5
    assert value(text, "aifactory_mtbf_seconds", **of, of="model") == 180
    assert value(text, "aifactory_mttr_seconds", **of, of="line") == 120
    assert value(text, "aifactory_repairs", **of, of="model") == 4
    assert value(text, "aifactory_energy_joules", **of) == 1.8e6
    assert value(text, "aifactory_money", **of, currency="EUR") == 12.5
    assert value(text, "aifactory_bottleneck", **of, station="train") == 1
    assert value(text, "aifactory_notices_total", **of, kind="rollback") == 3
    assert value(text, "aifactory_notices_sent_total", channel="desk") == 7
    assert value(text, "aifactory_notices_given_up_total", channel="desk") == 0
    assert value(text, "aifactory_notices_given_up_total", channel="pager") == 1
    assert value(text, "aifactory_line_info", **of, title="Flight delay", team="flight_operations", tier="low") == 1


def test_what_is_not_known_is_not_exported_and_what_is_known_to_be_none_is() -> None:
    known, unknown = samples(exported(kpis())), samples(exported(kpis(None)))
    assert set(unknown) < set(known)
    gone = {name for name, _ in known} - {name for name, _ in unknown}
    assert {"aifactory_rolled_yield_ratio", "aifactory_station_oee_ratio", "aifactory_mtbf_seconds"} <= gone
    assert {"aifactory_units_in_progress", "aifactory_station_work_seconds", "aifactory_failures"}.isdisjoint(gone)


def test_every_figure_is_exported_once() -> None:
    text = exported(kpis())
    names = {name for name, _ in samples(text)}
    assert {f"aifactory_{figure.name}" for figure in metrics.FIGURES} <= names
    assert len(metrics.FIGURES) == len({figure.name for figure in metrics.FIGURES})


# --- the dashboard
DASHBOARD = json.loads((REPOSITORY / "docs" / "grafana" / "ai-factory.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


@pytest.mark.parametrize("panel", PANELS, ids=lambda p: p["title"])
def test_a_panel_asks_for_metrics_and_labels_that_there_are(panel: dict[str, Any]) -> None:
    labels: dict[str, set[str]] = {}
    for name, found in samples(exported(kpis())):
        labels.setdefault(name, set()).update(label for label, _ in found)
    for target in panel["targets"]:
        asked = re.findall(r"(aifactory_\w+)(?:\{([^}]*)\})?", target["expr"])
        assert asked
        for name, matchers in asked:
            assert name in labels
            assert {m for m, _ in re.findall(r'(\w+)(=~|=|!=)"', matchers)} <= labels[name]
        kept = re.findall(r"by \(([^)]*)\)", target["expr"])
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown <= (set(kept[0].split(", ")) if kept else labels[asked[0][0]])


def test_the_dashboard_is_whole() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
    asked = {v["name"]: v["definition"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"}
    names = {name for name, _ in samples(exported(kpis()))}
    assert {re.match(r"label_values\((\w+),", definition)[1] for definition in asked.values()} <= names  # type: ignore[index]
    used = set(re.findall(r'"\$(\w+)"', " ".join(e for p in PANELS for e in expressions(p))))
    assert used == set(asked)


def test_no_panel_lies_on_another() -> None:
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"])
