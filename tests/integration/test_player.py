"""The traffic player, as a program of its own, against the real gateway before two of the factory's own servers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.model_rows import small_line
from tests.served import commit_days, rows_of
from tests.serving.fallback import FallbackServer, fallback_server
from tests.serving.playing import Playing, wait, write_day
from tests.serving.small_model import small_graph, write_version

from aifactory.errors import DatasetDefect
from aifactory.factory import Factory
from aifactory.serving.gateway import Gateway, Limits, LineRoute, Ports, Slots, write_files
from aifactory.serving.requestfile import write_requests
from outside.arrivals import read_rows
from outside.traffic import Player, Service, plan
from plant import gateway
from plant.stores import temporary_settings

pytestmark = pytest.mark.integration

LINE = "small"
NUM_ROWS = 600
KEY = "a-key-that-nobody-guesses"


@dataclass
class Rig:
    """Two servers, version 1 in slot a and 2 in slot b, behind the gateway."""

    home: Path
    servers: dict[str, FallbackServer] = field(default_factory=dict)
    generation: int = 0

    def start(self, stack: ExitStack) -> None:
        for slot, version in (("a", "1"), ("b", "2")):
            repository = self.home / slot / "models"
            repository.mkdir(parents=True)
            write_version(repository, LINE, version, small_graph(0.3))
            self.servers[slot] = stack.enter_context(fallback_server(repository, "--load-model", LINE))
        self.settings = temporary_settings(self.home)
        self.slots = Slots(*(Ports(_port(s.rest_url), _port(s.grpc_target)) for s in self.servers.values()))
        self.admin = gateway.admin(self.settings)
        with (self.home / "gateway.log").open("wb") as log:
            command = gateway.prepare(self.settings, Gateway(self.settings.serving_port, self.slots)).command
            envoy = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(lambda: (envoy.kill(), envoy.wait()))
        wait(self.admin.ready)

    def apply(self, route: LineRoute, keys: dict[str, str] | None = None) -> None:
        self.generation += 1
        asked = Gateway(self.settings.serving_port, self.slots, (route,), Limits(), keys or {})
        write_files(gateway.folder(self.settings), asked, self.generation)
        wait(lambda: self.admin.live(self.generation))
        for slot in "ab":
            wait(lambda slot=slot: self.admin.read()[LINE, slot].healthy)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.settings.serving_port}"


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("player"))
    with ExitStack() as stack:
        made.start(stack)
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A day of requests, one a minute and a half."""
    return write_day(tmp_path / "f.parquet", NUM_ROWS)


def test_the_factory_hands_out_requests_of_its_newest_dataset(factory: Factory, tmp_path: Path) -> None:
    line, path = small_line(), tmp_path / "requests.parquet"
    with pytest.raises(DatasetDefect, match="has no dataset yet; ingest 2013-02-02"):
        write_requests(factory, line, ["2013-02-02"], path)
    commit_days(factory, line, "2013-02-01", "2013-02-03")
    count = write_requests(factory, line, ["2013-02-02", "2013-02-03"], path)
    units = pa.concat_tables([rows_of("2013-02-02"), rows_of("2013-02-03")])
    rows = read_rows(path)
    assert len(rows.times) == count == units.num_rows
    asked = sorted(zip(*rows.units.values(), strict=True))
    keys = [[v.isoformat() if name == "prediction_time" else v for v in units[name].to_pylist()] for name in rows.units]
    assert asked == sorted(zip(*keys, strict=True))
    with pytest.raises(DatasetDefect, match="2013-02-04"):
        write_requests(factory, line, ["2013-02-04"], path)
    assert read_rows(path).entities == rows.entities, "a file that is there stays whole"


def test_a_day_is_answered_whole(rig: Rig, file: Path) -> None:
    rig.apply(LineRoute(LINE, "a", 50))
    before = rig.admin.read()
    found = Playing(rig.url, file, "--lasts", "10", "--batch-share", "0.2").end()
    assert (found["failed"], found["shed"], found["rows"]) == (0, 0, NUM_ROWS), found["failures"]
    assert found["answered"] < NUM_ROWS, "some asked for several rows at once"
    assert min(found["by_protocol"][name]["answered"] for name in ("rest", "grpc")) > found["answered"] / 3
    assert set(found["by_version"]) == {"1", "2"}
    assert 6 < found["duration_s"] < 10, "the requests end after 15 of 24 hours"
    of_slots = {slot: rig.admin.read()[LINE, slot].since(before[LINE, slot]).answered for slot in "ab"}
    assert of_slots == {slot: found["by_version"][version]["answered"] for slot, version in (("a", "1"), ("b", "2"))}
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]


def test_it_goes_round_until_told_to_stop(rig: Rig, file: Path) -> None:
    rig.apply(LineRoute(LINE, "a"))
    playing = Playing(rig.url, file, "--lasts", "3", "--loop", "--batch-share", "0")
    playing.reach("answered", NUM_ROWS + 100)
    found = playing.stop()
    assert found["failed"] == 0, found["failures"]
    assert list(found["by_version"]) == ["1"]


def test_a_key(rig: Rig, file: Path) -> None:
    rig.apply(LineRoute(LINE, "a"), {"planner": KEY})
    for share, protocol in (("0", "rest"), ("1", "grpc")):
        found = Playing(rig.url, file, "--lasts", "3", "--grpc-share", share, AIF_TRAFFIC_KEY=KEY).end()
        assert (list(found["by_protocol"]), found["failed"]) == ([protocol], 0)
    found = Playing(rig.url, file, "--lasts", "3").end()
    assert found["answered"] == 0
    assert set(found["failures"]) == {"grpc UNAUTHENTICATED", "rest 401"}
    assert "a valid API key is needed" in found["failures"]["rest 401"]["first"][0]


def test_refusals_are_failures_with_the_servers_words(rig: Rig, file: Path) -> None:
    rig.apply(LineRoute(LINE, "a"))
    table = pq.read_table(file)
    said = json.loads(table.schema.metadata[b"requests"]) | {"floats": ["distance"]}
    pq.write_table(table.replace_schema_metadata({"requests": json.dumps(said)}), file)
    found = Playing(rig.url, file, "--lasts", "3").end()
    assert found["failed"] == found["sent"] > 0
    assert set(found["failures"]) == {"grpc INVALID_ARGUMENT", "rest 400"}
    assert "dep_hour" in found["failures"]["rest 400"]["first"][0]


def test_slow_answers_do_not_slow_the_sending(rig: Rig, file: Path) -> None:
    """A server that stands still: what is due is shed, not waited with, and what was sent is failed in the end."""
    rig.apply(LineRoute(LINE, "a"))
    os.kill(rig.servers["a"].process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        found = Playing(
            rig.url,
            file,
            "--lasts",
            "3",
            "--batch-share",
            "0",
            "--outstanding",
            "50",
            "--timeout",
            "60",
            "--drain",
            "1",
        ).end()
        took_s = time.monotonic() - began
    finally:
        os.kill(rig.servers["a"].process.pid, signal.SIGCONT)
    assert (found["due"], found["answered"]) == (NUM_ROWS, 0)
    assert found["shed"] >= NUM_ROWS - 50 * 3, "a try has a few seconds, so hardly one made way for another"
    assert sum(found["failures"].get(f"{name} unanswered", {"count": 0})["count"] for name in ("rest", "grpc")) > 0
    assert took_s < 20


def test_no_gateway_no_answers(file: Path) -> None:
    settings = temporary_settings(file.parent)
    player = Player(
        Service(f"127.0.0.1:{settings.serving_port}", LINE),
        plan(read_rows(file), random.Random(0), speed=1.0, lasts_s=1.0),
        loop=False,
        grpc_share=0.5,
        report=None,
        every_s=60,
        drain_s=30,
        chance=random.Random(0),
        facts={},
    )
    found = asyncio.run(player.play(asyncio.Event()))
    assert found["failed"] == found["sent"] > 0
    assert set(found["failures"]) == {"grpc UNAVAILABLE", "rest ClientConnectorError"}


def test_a_killed_challenger_fails_nothing_and_a_killed_champion_does(tmp_path: Path, file: Path) -> None:
    """The player hides nothing: what the gateway saves is answered, what nobody can answer is failed."""
    own = Rig(tmp_path)
    with ExitStack() as stack:
        own.start(stack)
        own.apply(LineRoute(LINE, "a", 50))
        playing = Playing(own.url, file, "--lasts", "5", "--loop")
        playing.reach("answered", 200)
        own.servers["b"].kill()
        playing.reach("answered", playing.reach("answered", 200) + 300)
        assert playing.reach("failed", 0) == 0, json.loads(playing.file.read_text())["failures"]
        own.servers["a"].kill()
        playing.reach("failed", 100)
        found = playing.stop()
    assert found["answered"] >= 500
    assert found["failed"] >= 100
    assert {"grpc UNAVAILABLE", "rest 503"} <= set(found["failures"])
    assert "no server can answer" in found["failures"]["rest 503"]["first"][-1]
