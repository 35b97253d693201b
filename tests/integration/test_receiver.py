"""Evidence on KServe whole: the receiver's program, a real S3, the API server played over HTTP; agents that send."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pyarrow as pa
import pytest
from tests.serving.played_agent import Agent, answer_body, identity_of, request_body, seen
from tests.serving.played_kserve import PLACE, KServeWorld, MemoryObjects, a_line
from tests.serving.rollout_conformance import ask, put, reach, with_champion
from tests.unit.test_cluster_objects import kubeconfig, look_at

from aifactory.factory import Factory
from aifactory.line import CanaryStep, Deployment
from aifactory.reasons import ReasonCode
from aifactory.serving import kserve
from aifactory.serving.evidence import evidence
from aifactory.serving.kserveadapter import INFERENCE_SERVICES
from aifactory.serving.routing import read_counted
from aifactory.serving.shipper import read_status
from aifactory.serving.traffic import Action, Decision, Evidence, Stage, Traffic, next_state
from aifactory.settings import REPOSITORY
from aifactory.stages.probation import watch
from plant.ports import free_ports

pytestmark = pytest.mark.integration

SPEC = a_line()
LIMITS = Deployment(
    shadow_minutes=1,
    shadow_min_requests=100,
    canary=[CanaryStep(percent=40, bake_minutes=1)],
    min_requests=100,
    max_error_excess=0.5,
    max_latency_ratio=5,
    latency_floor_ms=50,
    max_score_shift=0.6,
)


@pytest.fixture
def api(memory: MemoryObjects) -> Iterator[ThreadingHTTPServer]:
    """What the receiver and feedback ask the Kubernetes API, answered over HTTP."""
    path = f"/apis/serving.kserve.io/v1beta1/namespaces/{PLACE.namespace}/inferenceservices"

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path == path:
                assert url.query == "labelSelector=ai-factory%2Fline"
                body = json.dumps({"items": memory.labelled(INFERENCE_SERVICES, kserve.LINE_LABEL)}).encode()
            else:
                body = json.dumps(memory.get(INFERENCE_SERVICES, url.path.removeprefix(f"{path}/"))).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def memory() -> MemoryObjects:
    return MemoryObjects()


@dataclass
class Program:
    """The receiver as a process of its own."""

    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=lambda: free_ports()[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "aifactory.serving.receiver", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "receiver.log").open("ab") as output:
            self.process = subprocess.Popen(command, env=self.environment, stdout=output, stderr=output)
        deadline = time.monotonic() + 60
        while not self.ready():
            assert self.process.poll() is None, (self.folder / "receiver.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the receiver is not ready after 60 s"
            time.sleep(0.05)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def program(factory: Factory, api: ThreadingHTTPServer, tmp_path: Path) -> Iterator[Program]:
    settings = factory.settings
    names = ("s3_region", "s3_access_key", "s3_secret_key", "factory_bucket", "lines_dir")
    environment = os.environ | settings.variables(names)
    environment |= {
        "PYTHONPATH": str(REPOSITORY / "include"),
        "AIF_HOME": str(tmp_path / "home"),
        "AIF_S3_ENDPOINT": settings.s3_url,
        "AIF_KSERVE_NAMESPACE": PLACE.namespace,
        "KUBECONFIG": str(kubeconfig(tmp_path, api.server_port)),
    }
    made = Program(tmp_path, environment)
    yield made
    if made.process and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def world(factory: Factory, memory: MemoryObjects) -> KServeWorld:
    for version in ("1", "2"):
        key = f"{kserve.repository_prefix(SPEC.line, version)}/{SPEC.line}/{version}/identity.json"
        factory.store.put(key, identity_of(SPEC.line, version))
    made = KServeWorld(memory, SPEC)
    with_champion(made)
    return made


def wait_for_counts(f: Factory, document: Traffic, champion: int, challenger: int) -> None:
    """Until so many requests are counted of a document, and their scores have come to S3."""
    deadline = time.monotonic() + 60
    while True:
        told = read_counted(f.store, SPEC.line)
        known = evidence(f, SPEC, document, None).counts
        if told and told.generation == document.generation and known:
            seen_now = (told.champion.requests, told.challenger.requests)
            scores = (known.champion.scores.total, known.challenger.scores.total)
            errors = (told.champion.errors, told.challenger.errors)
            if seen_now >= (champion, challenger) and all(
                s + e >= n for s, e, n in zip(scores, errors, seen_now, strict=True)
            ):
                return
        assert time.monotonic() < deadline, f"only {told} of {champion} and {challenger} after 60 s"
        time.sleep(0.2)


def counting(f: Factory, document: Traffic) -> None:
    """Until a document's requests are counted."""
    wait_for_counts(f, document, 0, 0)


def decide(f: Factory, world: KServeWorld, document: Traffic) -> tuple[Traffic, Decision, Evidence]:
    """What a deploy task decides, long after the stage began."""
    known = evidence(f, SPEC, document, world.adapter.observe())
    later = max(datetime.now(UTC), document.since) + timedelta(minutes=5)
    return *next_state(document, known, LIMITS, later), known


def shadowed(world: KServeWorld) -> Traffic:
    ask(world, "2")
    return reach(world, Stage.SHADOW)


def test_a_good_challenger_is_promoted_on_what_kserves_agents_say(
    factory: Factory, world: KServeWorld, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.start()
    shadow = shadowed(world)
    counting(factory, shadow)
    _, decision, _ = decide(factory, world, shadow)
    assert decision.action is not Action.ADVANCE, "nothing is proved yet"
    champion, challenger = Agent(program.url, "1"), Agent(program.url, "2")
    for n in range(400):
        champion.serve(0.2 + n % 7 / 10, request_id=f"r{n}")
        challenger.serve(0.21 + n % 7 / 10, request_id=f"r{n}")
    wait_for_counts(factory, shadow, 400, 400)
    canary, decision, known = decide(factory, world, shadow)
    assert known.counts is not None
    assert known.counts.paired is not None
    assert known.counts.paired.total == 400, "a copy is known by the id of its request"
    assert (decision.action, canary.stage) == (Action.ADVANCE, Stage.CANARY), decision.explanation

    put(world, canary)
    counting(factory, canary)
    for n in range(400):
        champion.serve(0.2 + n % 7 / 10)
        challenger.serve(0.2 + n % 7 / 10)
    wait_for_counts(factory, canary, 400, 400)
    promoted, decision, _ = decide(factory, world, canary)
    assert (decision.action, promoted.champion) == (Action.PROMOTE, "2"), decision.explanation

    put(world, promoted)
    look_at(monkeypatch, program.folder / "kubeconfig")
    on_cluster = Factory(factory.settings.model_copy(update={"serving_target": "kserve"}))
    assert "version 2 is not released for batches" in watch(on_cluster, SPEC)["explanation"], "it is on probation"

    assert program.end() == 0
    tables = [factory.store.get_table(o.key) for o in factory.store.list(f"live/{SPEC.line}/") if "parquet" in o.key]
    rows = pa.concat_tables(tables, promote_options="permissive").to_pylist()
    assert len(rows) == 1600
    assert sum(row["shadow"] for row in rows) == 400
    assert {row["model_version"] for row in rows if row["shadow"]} == {"2"}
    counts = read_status(factory, SPEC.line).slots
    assert {sum(each.dropped.values()) + each.lost for each in counts.values()} == {0}


@pytest.mark.parametrize(
    ("score", "took_ms", "reason"),
    [
        (0.99, 4.0, ReasonCode.SHADOW_MISMATCH),
        (0.2, 4000.0, ReasonCode.CANARY_SLOW),
        (None, 4.0, ReasonCode.CANARY_ERRORS),
    ],
)
def test_a_bad_challenger_is_taken_back_by_what_it_does_badly(
    factory: Factory, world: KServeWorld, program: Program, score: float | None, took_ms: float, reason: ReasonCode
) -> None:
    program.start()
    shadow = shadowed(world)
    counting(factory, shadow)
    champion, challenger = Agent(program.url, "1"), Agent(program.url, "2")
    for n in range(200):
        champion.serve(0.2, request_id=f"r{n}")
        challenger.serve(score, request_id=f"r{n}", took_ms=took_ms)
    wait_for_counts(factory, shadow, 200, 200)
    back, decision, _ = decide(factory, world, shadow)
    assert (back.stage, back.reason) == (Stage.ROLLED_BACK, reason), decision.explanation


def test_a_kill_costs_what_waited_and_the_last_moments_and_makes_no_errors(
    factory: Factory, world: KServeWorld, program: Program
) -> None:
    program.start()
    shadow = shadowed(world)
    counting(factory, shadow)
    champion, challenger = Agent(program.url, "1"), Agent(program.url, "2")
    for n in range(100):
        champion.serve(0.2, request_id=f"r{n}")
        challenger.serve(0.2, request_id=f"r{n}")
    wait_for_counts(factory, shadow, 100, 100)
    waiting = [challenger.events(request_body(), answer_body("2", [0.2])) for _ in range(10)]
    for asked, _ in waiting:
        assert challenger.send(asked) == 200
    at_once = [challenger.events(request_body(), answer_body("2", [0.3])) for _ in range(20)]
    for pair in at_once:
        assert [challenger.send(each) for each in pair] == [200, 200]
    assert program.end(signal.SIGKILL) == -signal.SIGKILL
    before = read_counted(factory.store, SPEC.line)
    assert before is not None
    assert 100 <= before.challenger.requests <= 120

    program.start()
    for _, answered in waiting:
        assert challenger.send(answered) == 200, "its request is gone with the one before"
    for _ in range(5):
        challenger.serve(0.2)
    wait_for_counts(factory, shadow, 100, before.challenger.requests + 5)
    time.sleep(2)
    told = read_counted(factory.store, SPEC.line)
    assert told is not None
    assert told.since == before.since, "it goes on"
    assert (told.champion.requests, told.challenger.requests) == (100, before.challenger.requests + 5)
    assert (told.champion.errors, told.challenger.errors) == (0, 0)
    assert seen(program.url)["answers"] == 15
    assert program.end() == 0
    slot = read_status(factory, SPEC.line).slots[shadow.challenger_slot]
    assert slot.recorded == slot.shipped + slot.lost
    assert 105 <= slot.shipped <= 125
    assert slot.lost <= 20
