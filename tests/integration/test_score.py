"""score with the real stores: honest, gated, byte-identical."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tests.model_rows import days_of, small_line
from tests.served import commit, commit_days, contents, rows_of, serve

from aifactory.dayindex import DayIndex
from aifactory.errors import GateRefused, InfrastructureFault, PackageDefect
from aifactory.factory import Factory
from aifactory.ledger import EventKind, Ledger, ProductionEvent
from aifactory.line import LineSpec
from aifactory.packaging import load_package
from aifactory.reasons import ReasonCode
from aifactory.scoring import predictions_key, scored_days
from aifactory.stages.score import score

pytestmark = pytest.mark.integration


@pytest.fixture
def line() -> LineSpec:
    return small_line()


def predictions(f: Factory, spec: LineSpec, day: str) -> pa.Table:
    return f.store.get_table(predictions_key(spec.line, day))


def test_without_a_champion_nothing_is_scored_and_that_is_no_failure(factory: Factory, line: LineSpec) -> None:
    assert score(factory, line, "2013-02-01", "run")["reason"] == "NO_CHAMPION"
    commit_days(factory, line, "2013-02-01", "2013-02-01")
    scored = score(factory, line, "2013-02-01", "run")
    assert (scored["days"], scored["num_rows"], scored["reason"]) == ([], 0, "NO_CHAMPION")
    assert contents(factory, "predictions/") == {}


def test_every_row_says_who_scored_it_from_what_and_a_rerun_changes_nothing(factory: Factory, line: LineSpec) -> None:
    f = factory
    version = commit_days(f, line, "2013-01-30", "2013-02-03")
    serve(f, line, ("1", "2013-01-31"))
    scored = score(f, line, "2013-02-03", "run")
    assert scored["days"] == ["2013-02-01", "2013-02-02", "2013-02-03"], "what the model has learned is history"
    assert scored["model_version"] == "1"

    units, made = rows_of("2013-02-02"), predictions(f, line, "2013-02-02")
    assert made.num_rows == units.num_rows
    keys = ["carrier", "flight", "origin", "prediction_time"]
    assert made.select(keys).to_pylist() == units.select(keys).to_pylist()
    expected = load_package(f, "models/flight_delay/1").predict(units)
    np.testing.assert_array_equal(made["score"].to_numpy(), expected)
    assert set(made["model_version"].to_pylist()) == {"1"}
    assert set(made["dataset_revision"].to_pylist()) == {version.revision}

    before = contents(f, "predictions/", "reports/")
    events = f.ledger.events(line=line.line, station="score")
    assert score(f, line, "2013-02-03", "again")["days"] == []
    f.store.delete(f"predictions/{line.line}/index.json")  # a crash before the index was written
    assert score(f, line, "2013-02-03", "crashed")["days"] == scored["days"]
    assert contents(f, "predictions/") == {k: e for k, e in before.items() if k.startswith("predictions/")}
    mine = {e.key for e in f.ledger.events(line=line.line, station="score") if e.partition in set(scored["days"])}
    assert mine == {e.key for e in events if e.partition in set(scored["days"])}


@pytest.mark.parametrize("refused", [False, True])
def test_a_day_whose_end_the_ledger_missed_is_scored_again_until_it_is_on_the_record(
    factory: Factory, line: LineSpec, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    f, day, record = factory, "2013-02-12" if refused else "2013-02-11", Ledger.record
    rows = rows_of(day).slice(3)  # content that no other test has on the record
    commit(f, line, {day: twice(rows) if refused else rows})
    serve(f, line, ("1", "2013-01-31"))

    def away(self: Ledger, event: ProductionEvent) -> None:
        if event.event is not EventKind.STARTED:
            raise InfrastructureFault(ReasonCode.STORE_UNREACHABLE, "Postgres is away")
        record(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "record", away)
        with pytest.raises(InfrastructureFault):
            score(f, line, day, "missed")
    with pytest.raises(GateRefused) if refused else nullcontext():
        score(f, line, None, "missed again")
    of_day = f.ledger.events(line=line.line, station="score", partition=day)
    assert [e.event for e in of_day if "missed" in e.run_id] == [
        EventKind.STARTED,
        EventKind.HELD if refused else EventKind.PASSED,
    ]
    assert score(f, line, None, "and again")["days"] == []


def test_a_late_day_is_scored_by_the_model_that_did_not_know_it(factory: Factory, line: LineSpec) -> None:
    f = factory
    commit_days(f, line, "2013-02-12", "2013-02-12")
    serve(f, line, ("1", "2013-01-31"), ("2", "2013-02-10"))
    assert score(f, line, None, "run")["model_version"] == "2"
    commit_days(f, line, "2013-02-05", "2013-02-05")
    assert score(f, line, None, "run")["days"] == ["2013-02-05"]
    assert set(predictions(f, line, "2013-02-05")["model_version"].to_pylist()) == {"1"}


def test_a_corrected_day_is_scored_again_and_a_new_model_rewrites_nothing(factory: Factory, line: LineSpec) -> None:
    f = factory
    commit_days(f, line, "2013-02-11", "2013-02-12")
    serve(f, line, ("1", "2013-01-31"))
    score(f, line, None, "run")
    serve(f, line, ("1", "2013-01-31"), ("2", "2013-02-10"))
    assert score(f, line, None, "run")["days"] == []
    rows = rows_of("2013-02-11")
    version = commit(f, line, {"2013-02-11": rows.slice(5)})
    assert score(f, line, None, "run")["days"] == ["2013-02-11"]
    made = predictions(f, line, "2013-02-11")
    assert made.num_rows == rows.num_rows - 5
    assert set(made["model_version"].to_pylist()) == {"1"}
    assert set(made["dataset_revision"].to_pylist()) == {version.revision}
    assert EventKind.REWORKED in [e.event for e in f.ledger.events(station="score", unit="2013-02-11", line=line.line)]


def twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table])


@pytest.mark.parametrize(
    ("worn", "section", "named"),
    [
        (twice, {}, "unique"),
        (lambda t: t.slice(0, 20), {}, "number of predictions"),
        (lambda t: t, {"max_mean_shift": 0.0001}, "mean score moved"),
    ],
)
def test_refused_predictions_are_not_written_and_hold_up_no_other_day(factory: Factory, worn, section, named) -> None:
    f, line = factory, small_line()
    commit_days(f, line, "2013-02-01", "2013-02-03")
    serve(f, line, ("1", "2013-01-31"))
    score(f, line, None, "before")
    line = small_line(scoring=section)
    last = rows_of("2013-02-04")
    commit(f, line, {"2013-02-04": worn(last)})
    with pytest.raises(GateRefused, match=named) as refusal:
        score(f, line, "2013-02-04", "run")
    assert refusal.value.reason is ReasonCode.PREDICTIONS_GATE
    assert f.store.head(predictions_key(line.line, "2013-02-04")) is None
    held = f.ledger.events(line=line.line, station="score", unit="2013-02-04", kind=EventKind.HELD)
    [event] = held[-1:]
    assert event.reason is ReasonCode.PREDICTIONS_GATE
    assert f.store.head(f"reports/{line.line}/score/2013-02-04/index.html")

    line = small_line()
    commit_days(f, line, "2013-02-05", "2013-02-05")
    assert score(f, line, "2013-02-05", "next")["days"] == ["2013-02-05"]
    commit(f, line, {"2013-02-04": last.slice(0, last.num_rows - 1)})
    assert score(f, line, None, "corrected")["days"] == ["2013-02-04"]


def test_an_altered_package_scores_nothing(factory: Factory, line: LineSpec) -> None:
    f = factory
    commit_days(f, line, "2013-02-01", "2013-02-01")
    serve(f, line, ("1", "2013-01-31"))
    graph = f.store.get("models/flight_delay/1/model.onnx")
    f.store.put("models/flight_delay/1/model.onnx", graph[:-1] + bytes([graph[-1] ^ 1]))
    with pytest.raises(PackageDefect, match="does not match the hash"):
        score(f, line, None, "run")
    assert contents(f, "predictions/") == {}
    [event] = f.ledger.events(line=line.line, unit="2013-02-01", kind=EventKind.FAILED)[-1:]
    assert event.reason is ReasonCode.PACKAGE_INVALID


def test_two_runs_at_once_leave_what_one_leaves(factory: Factory, line: LineSpec) -> None:
    f = factory
    commit_days(f, line, "2013-02-01", "2013-02-04")
    serve(f, line, ("1", "2013-01-31"))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda run: score(Factory(f.settings), line, None, run), ("a", "b")))
    done = scored_days(f, line).read()
    assert list(done) == ["2013-02-01", "2013-02-02", "2013-02-03", "2013-02-04"]
    assert all(predictions(f, line, day).num_rows == done[day]["num_rows"] for day in done)


def test_an_index_loses_nothing_to_writers_at_once(factory: Factory) -> None:
    def write(n: int) -> None:
        DayIndex(Factory(factory.settings).store, "index.json").merge({f"2013-01-{n:02d}": {"n": n}})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(1, 13)))
    index = DayIndex(factory.store, "index.json")
    assert [entry["n"] for entry in index.read().values()] == list(range(1, 13))
    index.merge({"2013-01-03": {"n": 30}})
    assert index.read()["2013-01-03"] == {"n": 30}


def test_units_keep_their_outcomes_out_of_scoring(factory: Factory, line: LineSpec) -> None:
    """Scores do not depend on the outcome column: it is not even read."""
    f = factory
    rows = rows_of("2013-02-01")
    at = rows.column_names.index("delayed")
    hidden = rows.set_column(at, "delayed", pa.nulls(rows.num_rows, rows["delayed"].type))
    serve(f, line, ("1", "2013-01-31"))
    commit(f, line, {"2013-02-01": hidden})
    score(f, line, None, "run")
    expected = load_package(f, "models/flight_delay/1").predict(rows)
    np.testing.assert_array_equal(predictions(f, line, "2013-02-01")["score"].to_numpy(), expected)
    assert pc.sum(pc.is_valid(days_of("2013-02-01", "2013-02-01")["delayed"])).as_py() > 0
