"""Every bad input that a source can deliver, through the real stage code and real stores."""

from __future__ import annotations

import datetime as dt
import io
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from aifactory import features, quarantine
from aifactory.errors import Defect, GateRefused, InfrastructureFault, LandingDefect, NotFound
from aifactory.factory import Factory
from aifactory.floor import genealogy, quarantined, waiting
from aifactory.kpi import stations
from aifactory.ledger import EventKind, Ledger, ProductionEvent
from aifactory.line import LineSpec, find_line
from aifactory.notices import NoticeKind, kind_of
from aifactory.reasons import ReasonCode as R
from aifactory.settings import Settings
from aifactory.stages import ingest
from outside.flights import World
from plant import objectstore

pytestmark = pytest.mark.integration

Mutation = Callable[[pa.Table], pa.Table | bytes | None]


class Line:
    """The flight delay line with good days in its dataset, and one about to land: a Wednesday for each test."""

    def __init__(self, factory: Factory) -> None:
        self.f = factory
        self.spec: LineSpec = find_line(factory.settings.lines_dir, "flight_delay")
        self.world = World(factory.settings, "2013-06-10", today=dt.date(2026, 9, 1))
        self._wednesdays = iter(self.world.days("2013-01-02")[::7])
        first = next(self._wednesdays)
        self.world.land([first])
        self.ingest(first)

    def next_week(self) -> Line:
        self.day = next(self._wednesdays)
        self.after = (dt.date.fromisoformat(self.day) + dt.timedelta(days=1)).isoformat()
        self.revision = self.f.datasets(self.spec).latest().revision
        return self

    def ingest(self, *days: str) -> dict:
        gated = ingest.gate_raw(self.f, self.spec, list(days), "test")
        built = ingest.build_features(self.f, self.spec, gated["days"], "test")
        return gated | built | ingest.commit_dataset(self.f, self.spec, built["staged"], "test")

    def deliver(self, name: str = "flights", mutate: Mutation = lambda t: t, day: str | None = None) -> None:
        """What the world lands for a day, with one table changed; None leaves its file away."""
        day = day or self.day
        for table in ("weather", "flights"):
            body = self.world.table(table, day)
            if table == name:
                body = mutate(body)
            if body is not None:
                self.world._store.put(f"flight_delay/{table}/{day}.parquet", as_bytes(body))

    def said(self, day: str | None = None) -> dict:
        return self.f.store.get_json(ingest.verdict_key(self.spec, day or self.day))

    def landed_at(self) -> str:
        """When the last file of the day was written, as S3 itself has it."""
        s3, bucket = self.f.landing.client, self.f.landing.bucket
        keys = [f"flight_delay/{table}/{self.day}.parquet" for table in ("flights", "weather")]
        newest = max(s3.head_object(Bucket=bucket, Key=key)["LastModified"] for key in keys)
        return newest.astimezone(dt.UTC).isoformat()

    def quarantined(self, table: str) -> list[dict]:
        held = quarantine.read(self.f, self.spec, table, self.day)
        return held.to_pylist() if held else []

    def events(self, kind: EventKind) -> list:
        return self.f.ledger.events(line="flight_delay", station="ingest", kind=kind, unit=self.day)


def as_bytes(body: pa.Table | bytes) -> bytes:
    if isinstance(body, bytes):
        return body
    buffer = io.BytesIO()
    pq.write_table(body, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shared_line(plant_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Line:
    own = plant_settings.model_copy(
        update={
            "landing_bucket": "landing-bad-input",
            "factory_bucket": "factory-bad-input",
            "dataset_git_root": str(tmp_path_factory.mktemp("git")),
        }
    )
    objectstore.ensure_buckets(own)
    return Line(Factory(own))


@pytest.fixture
def line(shared_line: Line) -> Line:
    return shared_line.next_week()


def set_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def with_value(name: str, row: int, value: object) -> Mutation:
    def mutate(table: pa.Table) -> pa.Table:
        values = table.column(name).to_pylist()
        values[row] = value
        return set_column(table, name, pa.array(values, table.schema.field(name).type))

    return mutate


def all_null(name: str) -> Mutation:
    return lambda t: set_column(t, name, pa.nulls(len(t), t.schema.field(name).type))


def shifted(table: pa.Table) -> pa.Table:
    """A file of the right rows with instants a month off."""
    for name in table.column_names:
        if pa.types.is_timestamp(table.schema.field(name).type):
            table = set_column(table, name, pc.add(table.column(name), pa.scalar(dt.timedelta(days=30))))
    return table


HELD: dict[str, tuple[str, Mutation, R]] = {
    "missing": ("flights", lambda _: None, R.LANDING_MISSING),
    "weather missing": ("weather", lambda _: None, R.LANDING_MISSING),
    "no rows": ("flights", lambda t: t.slice(0, 0), R.LANDING_EMPTY),
    "no bytes": ("flights", lambda _: b"", R.LANDING_EMPTY),
    "truncated": ("flights", lambda t: as_bytes(t)[:-2000], R.LANDING_UNREADABLE),
    "not parquet": ("flights", lambda _: b"carrier,flight\nUA,1\n" * 100, R.LANDING_UNREADABLE),
    "garbled": ("flights", lambda t: garbled(as_bytes(t)), R.LANDING_UNREADABLE),
    "column missing": ("flights", lambda t: t.drop_columns(["carrier"]), R.COLUMN_MISSING),
    "column renamed": ("flights", lambda t: t.rename_columns({"carrier": "airline"}), R.COLUMN_MISSING),
    "other type": ("flights", lambda t: set_column(t, "distance", t["distance"].cast(pa.string())), R.COLUMN_TYPE),
    "instants without zone": (
        "weather",
        lambda t: set_column(t, "time_hour", t["time_hour"].cast(pa.timestamp("us"))),
        R.COLUMN_TYPE,
    ),
    "all null": ("flights", all_null("carrier"), R.COLUMN_ALL_NULL),
    "whole day twice": ("flights", lambda t: pa.concat_tables([t, t]), R.QUARANTINE_SHARE),
    "a tenth of the rows": ("flights", lambda t: t.take(list(range(0, len(t), 10))), R.VOLUME_ABNORMAL),
    "half of the day": ("flights", lambda t: t.slice(0, int(len(t) * 0.55)), R.FRESHNESS),
    "other day's rows": ("flights", shifted, R.QUARANTINE_SHARE),
    "many out of range": (
        "flights",
        lambda t: set_column(t, "distance", pc.multiply(t["distance"], -1.0)),
        R.QUARANTINE_SHARE,
    ),
}


def garbled(body: bytes) -> bytes:
    """A file whose middle was overwritten on the way."""
    middle = len(body) // 3
    return body[:middle] + bytes(4000) + body[middle + 4000 :]


@pytest.mark.parametrize("case", HELD)
def test_bad_batch_is_held_and_the_corrected_one_runs(line: Line, case: str, caplog: pytest.LogCaptureFixture) -> None:
    name, mutate, reason = HELD[case]
    line.deliver(name, mutate)

    with caplog.at_level(logging.ERROR), pytest.raises(Defect) as refused:
        line.ingest(line.day)

    landing = reason.value.startswith(("LANDING", "COLUMN"))
    assert isinstance(refused.value, LandingDefect if landing else GateRefused)
    assert refused.value.reason is reason, refused.value
    assert reason.value in caplog.text
    assert line.day in str(refused.value)
    said = line.said()
    assert (said["verdict"], said["reasons"][0], said["num_accepted"]) == ("refused", reason.value, 0)
    assert said["num_in"] == said["num_quarantined"]
    assert line.f.datasets(line.spec).latest().revision == line.revision, "the previous version stays"
    in_quarantine = sum(len(line.quarantined(t)) for t in line.spec.source.tables)
    assert in_quarantine == said["num_in"], "nothing is lost"
    [held] = line.events(EventKind.HELD)
    assert held.reason is reason
    assert held.detail["landed_at"] == (None if reason is R.LANDING_MISSING else line.landed_at())

    line.deliver()
    done = line.ingest(line.day)

    assert done["revision"] != line.revision
    assert line.day in line.f.datasets(line.spec).days(done["revision"])
    assert line.said()["verdict"] == "passed"
    assert not line.quarantined("flights")


ROWS: dict[str, tuple[str, Mutation, R, str]] = {
    "the real wind of 1,048 mph": (
        "weather", with_value("wind_speed", 3, 1048.36058), R.VALUE_OUT_OF_RANGE, "wind_speed",
    ),
    "not a number": ("weather", with_value("temp", 4, float("nan")), R.VALUE_OUT_OF_RANGE, "temp"),
    "null in a required column": ("flights", with_value("dest", 5, None), R.VALUE_NULL, "dest"),
    "unknown airport": ("flights", with_value("origin", 6, "XXX"), R.VALUE_NOT_IN_SET, "origin"),
    "malformed carrier": ("flights", with_value("carrier", 7, "ua!"), R.VALUE_FORMAT, "carrier"),
    "event outside the partition": (
        "flights",
        with_value("scheduled_departure", 8, dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
        R.EVENT_TIME_OUTSIDE,
        "scheduled_departure",
    ),
    "cancelled yet departed": ("flights", with_value("cancelled", 9, True), R.CROSS_COLUMN, "cancelled"),
    "delay that the instants deny": ("flights", with_value("dep_delay", 10, 500.0), R.CROSS_COLUMN, "dep_delay"),
    "one row twice": (
        "flights", lambda t: pa.concat_tables([t, t.slice(11, 1)]), R.KEY_DUPLICATE, "unique",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_bad_row_is_quarantined_with_reason_source_and_position(line: Line, case: str) -> None:
    name, mutate, reason, word = ROWS[case]
    line.deliver(name, mutate)

    done = line.ingest(line.day)

    assert (done["num_quarantined"], done["num_in"]) == (1, done["num_accepted"] + 1)
    [row] = line.quarantined(name)
    assert row["reason"] == reason.value
    assert word in row["expectation"]
    assert row["source_uri"].endswith(f"flight_delay/{name}/{line.day}.parquet")
    assert row["source_etag"] == line.f.landing.head(f"flight_delay/{name}/{line.day}.parquet").etag
    original = pq.ParquetFile(io.BytesIO(line.f.landing.get(f"flight_delay/{name}/{line.day}.parquet"))).read()
    key = line.spec.source.tables[name].key
    landed = original.slice(row["row_number"], 1).to_pylist()[0]
    assert all(str(landed[c]) in row["row"] or landed[c] is None for c in key)
    accepted = line.f.store.get_table(features.accepted_key(line.spec, name, line.day))
    assert len(accepted) == len(original) - 1
    assert line.said()["docs"] == done["per_day"][line.day]["docs"]


def test_released_row_comes_in_and_dropped_row_stays_out(line: Line) -> None:
    line.deliver("weather", lambda t: with_value("wind_speed", 3, 160.0)(with_value("temp", 9, 190.0)(t)))
    assert line.ingest(line.day)["num_quarantined"] == 2

    assert quarantine.release(line.f, line.spec, "weather", line.day, [3], by="ann") == 1
    assert quarantine.drop(line.f, line.spec, "weather", line.day, [9], by="ann") == 1
    again = line.ingest(line.day)

    assert (again["num_quarantined"], again["num_in"]) == (1, again["num_accepted"] + 1)
    [left] = line.quarantined("weather")
    assert (left["row_number"], left["decision"]) == (9, "dropped")
    accepted = line.f.store.get_table(features.accepted_key(line.spec, "weather", line.day))
    assert 160.0 in accepted.column("wind_speed").to_pylist()
    overridden = line.events(EventKind.OVERRIDDEN)
    assert {e.detail["decision"] for e in overridden} >= {"released", "dropped"}
    with pytest.raises(ValueError, match="not in quarantine"):
        quarantine.release(line.f, line.spec, "weather", line.day, [3], by="ann")


def test_decision_is_bound_to_the_content_it_was_made_on(line: Line) -> None:
    line.deliver("weather", with_value("wind_speed", 3, 160.0))
    line.ingest(line.day)
    quarantine.release(line.f, line.spec, "weather", line.day, [3], by="ann")

    line.deliver("weather", with_value("wind_speed", 3, 900.0))

    assert line.ingest(line.day)["num_quarantined"] == 1


def test_late_day_is_simply_run_and_rebuilds_what_looks_back_on_it(line: Line) -> None:
    line.deliver(day=line.after)
    line.ingest(line.after)
    revision = line.f.datasets(line.spec).latest().revision
    alone = line.f.datasets(line.spec).read(revision, days=[line.after])

    line.deliver()
    done = line.ingest(line.day)

    assert sorted(done["staged"]) == [line.day, line.after]
    rebuilt = line.f.datasets(line.spec).read(done["revision"], days=[line.after])
    assert alone.column("network_late_yesterday").null_count == len(alone)
    assert rebuilt.column("network_late_yesterday").null_count == 0


def test_corrected_day_replaces_its_partition_and_is_recorded_as_reworked(line: Line) -> None:
    line.deliver()
    before = line.ingest(line.day)

    line.deliver("flights", lambda t: t.slice(0, len(t) - 3))
    after = line.ingest(line.day)

    assert after["revision"] != before["revision"]
    assert after["num_rows"] == before["num_rows"] - 3
    [reworked] = line.events(EventKind.REWORKED)
    assert reworked.detail["landed_at"] == line.landed_at()


def test_bad_correction_leaves_the_good_partition(line: Line) -> None:
    line.deliver()
    before = line.ingest(line.day)

    line.deliver("flights", lambda t: t.drop_columns(["dest"]))
    with pytest.raises(LandingDefect):
        line.ingest(line.day)

    repository = line.f.datasets(line.spec)
    assert repository.latest().revision == before["revision"]
    assert line.day in repository.days(before["revision"])


def test_history_load_holds_bad_days_and_goes_on(factory: Factory) -> None:
    spec = find_line(factory.settings.lines_dir, "flight_delay")
    world = World(factory.settings, "2013-06-10", today=dt.date(2026, 9, 1))
    days = world.days("2013-06-03", "2013-06-08")
    world.land([d for d in days if d != days[2]])
    world._store.put(f"flight_delay/flights/{days[4]}.parquet", b"nothing of the kind")

    gated = ingest.gate_raw(factory, spec, days, "history")

    assert gated["days"] == [days[0], days[1], days[3], days[5]]
    assert [(h["day"], h["reason"]) for h in gated["held"]] == [
        (days[2], "LANDING_MISSING"), (days[4], "LANDING_UNREADABLE"),
    ]  # fmt: skip
    assert gated["num_in"] == gated["num_accepted"] + gated["num_quarantined"]
    with pytest.raises(LandingDefect):
        ingest.gate_raw(factory, spec, [days[2], days[4]], "history")


def test_running_twice_leaves_what_running_once_left(line: Line) -> None:
    line.deliver("weather", with_value("wind_speed", 3, 1048.0))
    once = line.ingest(line.day)
    objects = {o.key: o.etag for o in line.f.store.list("") if "/ingest/" not in o.key}
    events = len(line.f.ledger.events(line="flight_delay", limit=10_000))

    twice = line.ingest(line.day)

    assert twice["revision"] == once["revision"]
    assert {o.key: o.etag for o in line.f.store.list("") if "/ingest/" not in o.key} == objects
    assert len(line.f.ledger.events(line="flight_delay", limit=10_000)) == events


def test_a_commit_that_ended_before_or_after_its_record_ends_well_when_tried_again(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.deliver()
    gated = ingest.gate_raw(line.f, line.spec, [line.day], "this run")
    staged = ingest.build_features(line.f, line.spec, gated["days"], "this run")["staged"]

    def away(*_: object) -> None:
        raise InfrastructureFault(R.STORE_UNREACHABLE, "Postgres is away")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "record", away)
        with pytest.raises(InfrastructureFault):
            ingest.commit_dataset(line.f, line.spec, staged, "this run")
    made = ingest.commit_dataset(line.f, line.spec, staged, "this run")
    assert [line.f.store.head(key) for key in staged.values()] == [None] * len(staged)
    assert ingest.commit_dataset(line.f, line.spec, staged, "this run") == made, "killed once all was done"
    assert line.f.datasets(line.spec).latest().revision == made["revision"]
    recorded = line.f.ledger.events(line=line.spec.line, unit=made["revision"])
    assert [e.event for e in recorded] == [EventKind.PASSED]
    with pytest.raises(NotFound):
        ingest.commit_dataset(line.f, line.spec, staged, "another run")


def test_broken_gate_is_a_failed_gate(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    from aifactory import gates

    line.deliver()
    suites = gates.load_suites(line.f.settings, line.spec)
    raw = suites.raw

    def broken(spec: LineSpec, table: str):
        from aifactory.expectations import never, suite

        return suite("broken", [*raw(spec, table).expectations, never("no_such_column > 1", "nonsense")])

    monkeypatch.setattr(suites, "raw", broken)
    with pytest.raises(GateRefused) as refused:
        line.ingest(line.day)

    assert refused.value.reason is R.GATE_BROKEN
    assert line.f.datasets(line.spec).latest().revision == line.revision
    [held] = line.events(EventKind.HELD)
    assert (held.reason, held.num_good, held.num_bad) == (R.GATE_BROKEN, 0, held.num_in)
    assert "could not judge" in held.detail["message"]
    assert sum(len(line.quarantined(t)) for t in line.spec.source.tables) == held.num_in, "nothing is lost"

    monkeypatch.setattr(suites, "raw", raw)
    assert line.ingest(line.day)["num_quarantined"] == 0
    assert [e.event for e in history_of(line, line.day)][-1] is EventKind.PASSED


# --- the feature gate
@pytest.fixture
def broken_sql(line: Line, tmp_path: Path) -> Factory:
    """The same stores, and a `features.sql` by which more than all flights were late."""
    folder = tmp_path / "lines" / "flight_delay"
    shutil.copytree(line.f.settings.lines_dir / "flight_delay", folder)
    sql = features.text(line.f.settings, line.spec)
    (folder / "features.sql").write_text(f"SELECT * REPLACE (1.5 AS network_late_1h) FROM ({sql})")
    return Factory(line.f.settings.model_copy(update={"lines_dir": folder.parent}))


def refused_features(line: Line, f: Factory, *days: str) -> GateRefused:
    gated = ingest.gate_raw(f, line.spec, list(days), "refused")
    with pytest.raises(GateRefused) as refused:
        ingest.build_features(f, line.spec, gated["days"], "refused")
    return refused.value


def history_of(line: Line, day: str) -> list[ProductionEvent]:
    return [e for e in line.f.ledger.unit_history("flight_delay", day) if e.unit_kind == "batch"]


def waits_for_a_person(line: Line, day: str) -> list[R | None]:
    with line.f.ledger.reading() as connection:
        found = waiting.waiting(connection, ["flight_delay"], dt.datetime.now(dt.UTC))
    return [w.event.reason for w in found if w.event.unit == day]


def units_of(line: Line) -> dict[genealogy.Ref, genealogy.Unit]:
    with line.f.ledger.reading() as connection:
        return genealogy.units_of(connection, line.spec)


def figures_of(line: Line, day: str) -> stations.StationFigures:
    return stations.figures(history_of(line, day), "ingest", dt.datetime.now(dt.UTC))


def test_refused_features_hold_each_batch_of_the_run_once(line: Line, broken_sql: Factory) -> None:
    line.deliver("weather", with_value("wind_speed", 3, 1048.0))
    line.deliver(day=line.after)

    refusal = refused_features(line, broken_sql, line.day, line.after)

    assert refusal.reason is R.FEATURE_GATE
    assert "network_late_1h" in str(refusal)
    assert line.f.datasets(line.spec).latest().revision == line.revision
    for day in (line.day, line.after):
        started, passed, held = history_of(line, day)
        assert [e.event for e in (started, passed, held)] == [EventKind.STARTED, EventKind.PASSED, EventKind.HELD]
        assert (held.reason, held.partition, held.run_id) == (R.FEATURE_GATE, day, "refused")
        assert (held.num_in, held.num_good, held.num_bad) == (passed.num_in, 0, passed.num_in)
        assert held.duration_s > 0
        assert held.detail["etags"] == passed.detail["etags"]
        assert line.f.store.head(held.detail["docs"])
        assert held.detail["docs"].endswith("/features/index.html")
        assert held.detail["message"] == refusal.message
        assert kind_of(held.event, held.reason) is NoticeKind.GATE_FAILURE
        assert waits_for_a_person(line, day) == [R.FEATURE_GATE]
        figures = figures_of(line, day)
        assert (figures.num_units, figures.num_good, figures.first_pass_yield, figures.row_yield) == (1, 0, 0.0, 0.0)

    refused_features(line, broken_sql, line.day, line.after)
    assert [len(history_of(line, day)) for day in (line.day, line.after)] == [3, 3], "a retry adds nothing"


def test_quarantine_and_genealogy_do_not_take_refused_features_for_the_raw_gates_word(
    line: Line, broken_sql: Factory
) -> None:
    line.deliver("weather", with_value("wind_speed", 3, 1048.0))
    refused_features(line, broken_sql, line.day)

    with line.f.ledger.reading() as connection:
        days = quarantined.days(connection, "flight_delay", before=None, limit=1000)
    [row] = [row for row in days if row["unit"] == line.day]
    assert (row["event"], row["num_bad"]) == ("passed", 1), "its other rows are not in quarantine"
    batch = units_of(line)["batch", line.day]
    assert (batch.state, batch.good, batch.first_good) == ("held", False, None)
    assert ("landing", line.spec.source.key("flights", line.day)) in units_of(line)


def test_features_that_pass_after_all_take_the_hold_back_once_and_count_as_rework(
    line: Line, broken_sql: Factory
) -> None:
    line.deliver("weather", with_value("wind_speed", 3, 1048.0))
    refused_features(line, broken_sql, line.day)

    done = line.ingest(line.day)

    _, passed, _, again = history_of(line, line.day)
    assert (again.event, again.reason, again.run_id) == (EventKind.PASSED, None, "test")
    assert (again.num_in, again.num_good, again.num_bad) == (passed.num_in, passed.num_in - 1, 1)
    assert again.detail["quarantined"] == passed.detail["quarantined"]
    assert waits_for_a_person(line, line.day) == []
    figures = figures_of(line, line.day)
    assert (figures.num_units, figures.num_good, figures.num_rework, figures.first_pass_yield) == (1, 1, 1, 0.0)
    units = units_of(line)
    assert units["batch", line.day].first_good < units["dataset", done["revision"]].id
    line.ingest(line.day)
    assert len(history_of(line, line.day)) == 4

    refused_features(line, broken_sql, line.day)
    assert history_of(line, line.day)[-1].event is EventKind.HELD, "the mending was taken out again"
    assert units_of(line)["batch", line.day].first_good == units["batch", line.day].first_good, "it is in the dataset"


def test_a_batch_that_was_corrected_and_refused_again_has_never_been_good(line: Line, broken_sql: Factory) -> None:
    line.deliver()
    refused_features(line, broken_sql, line.day)
    line.deliver("flights", lambda t: t.slice(0, len(t) - 3))
    refused_features(line, broken_sql, line.day)

    assert [e.event.value for e in history_of(line, line.day)][2:] == ["held", "started", "passed", "reworked", "held"]
    assert units_of(line)["batch", line.day].first_good is None
    assert waits_for_a_person(line, line.day) == [R.FEATURE_GATE]


def test_a_feature_gate_that_cannot_run_holds_the_batch(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    from aifactory import gates
    from aifactory.expectations import never, suite

    line.deliver()
    broken = suite("broken", [never("no_such_column > 1", "nonsense", level="batch")])
    monkeypatch.setattr(gates.load_suites(line.f.settings, line.spec), "features", lambda _: broken)
    with pytest.raises(GateRefused):
        line.ingest(line.day)

    [held] = line.events(EventKind.HELD)
    assert (held.reason, held.detail["docs"]) == (R.GATE_BROKEN, None)
