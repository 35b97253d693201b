"""The receiver over real HTTP, fed by a played agent: what it counts, logs, refuses, and goes on with."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import uvicorn
from tests.memory_store import MemoryStore
from tests.serving.played_agent import Agent, answer_body, event, identity_of, request_body, seen
from tests.serving.played_kserve import KServeWorld, MemoryObjects, a_line
from tests.serving.rollout_conformance import ask, put, reach, with_champion

from aifactory.reasons import ReasonCode
from aifactory.serving import kserve
from aifactory.serving.kserve import LOG_NAME
from aifactory.serving.kserveadapter import INFERENCE_SERVICES
from aifactory.serving.predictionlog import Request, read_counts, read_segment
from aifactory.serving.receiver.__main__ import Way, turns
from aifactory.serving.receiver.events import REQUEST
from aifactory.serving.receiver.exchanges import Exchanges
from aifactory.serving.receiver.manifests import manifests
from aifactory.serving.receiver.receiving import Receiver
from aifactory.serving.routing import Counted, read_counted
from aifactory.serving.traffic import Stage, Traffic, abort
from aifactory.settings import Settings
from plant.ports import free_ports

LINE = a_line().line
WAIT_S = 0.3
MAX_BYTES = 20_000


@dataclass
class Rig:
    """A line on a played KServe, and the receiver of what its agents log."""

    folder: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    memory: MemoryObjects = field(default_factory=MemoryObjects)
    exchanges: Exchanges = field(default_factory=lambda: Exchanges(wait_s=WAIT_S))

    def __post_init__(self) -> None:
        self.world = KServeWorld(self.memory, a_line())
        for version in ("1", "2", "3"):
            key = f"{kserve.repository_prefix(LINE, version)}/{LINE}/{version}/identity.json"
            self.store.put(key, identity_of(LINE, version))
        self.receiver = Receiver(self.store, self.folder / "spool", self.exchanges)  # type: ignore[arg-type]
        self.way = Way(self.receiver, MAX_BYTES, max_reading=3 * MAX_BYTES)
        (self.port,) = free_ports()
        self.url = f"http://127.0.0.1:{self.port}"

    def turn(self) -> None:
        self.receiver.turn(self.memory.labelled(INFERENCE_SERVICES, kserve.LINE_LABEL))

    def agent(self, version: str) -> Agent:
        return Agent(self.url, version)

    def counted(self) -> Counted:
        self.turn()
        found = read_counted(self.store, LINE)  # type: ignore[arg-type]
        assert found is not None
        return found

    def logged(self) -> dict[str, list[Request]]:
        """Logged requests by slot; the log is closed by it."""
        self.receiver.close()
        paths = sorted((self.folder / "spool").glob("*/*.segment"))
        found: dict[str, list[Request]] = {}
        for path in paths:
            found.setdefault(path.parent.name, []).extend(read_segment(path).requests)
        return found

    def to(self, stage: Stage, percent: int = 0) -> Traffic:
        """Version 1 is the champion, and 2 is tried."""
        with_champion(self.world)
        ask(self.world, "2")
        document = reach(self.world, stage, percent=percent)
        self.turn()
        return document


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    server = uvicorn.Server(uvicorn.Config(made.way, port=made.port, lifespan="off", ws="none", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield made
    made.receiver.close()
    server.should_exit = True
    thread.join()


def test_in_canary_both_versions_are_counted_and_logged_as_answered_to_callers(rig: Rig) -> None:
    document = rig.to(Stage.CANARY, 20)
    for n in range(8):
        assert rig.agent("1").serve(0.25, took_ms=3, request_id=f"live-{n}") == [200, 200]
    assert rig.agent("2").serve(0.75, took_ms=40) == [200, 200]
    told = rig.counted()
    assert (told.generation, told.since <= datetime.now(UTC)) == (document.generation, True)
    assert (told.champion.requests, told.champion.errors, told.champion.latency_ms.total) == (8, 0, 8)
    assert (told.challenger.requests, told.challenger.errors) == (1, 0)
    n = told.challenger.latency_ms.counts.index(1)
    edges = told.challenger.latency_ms.edges
    assert edges[n - 1] < 40 <= edges[n] * 1.0001
    logged = rig.logged()
    champion, challenger = logged[document.champion_slot], logged[document.challenger_slot]
    assert [r.request_id for r in champion] == [f"live-{n}" for n in range(8)]
    assert {r.shadow for r in champion + challenger} == {False}
    assert memoryview(challenger[0].scores).cast("f").tolist() == [0.75]


def test_in_shadow_the_copies_are_logged_as_such_under_the_id_of_the_request(rig: Rig) -> None:
    document = rig.to(Stage.SHADOW)
    for n in range(3):
        rig.agent("1").serve(0.25, request_id=f"r{n}")
        rig.agent("2").serve(0.5, request_id=f"r{n}")
    told = rig.counted()
    assert (told.champion.requests, told.challenger.requests) == (3, 3)
    logged = rig.logged()
    for slot, shadow in ((document.champion_slot, False), (document.challenger_slot, True)):
        assert [(r.request_id, r.shadow) for r in logged[slot]] == [(f"r{n}", shadow) for n in range(3)]


def test_copies_stay_copies_until_the_canary_is_in_force(rig: Rig) -> None:
    shadow = rig.to(Stage.SHADOW)
    canary = Traffic.model_validate(
        {**shadow.model_dump(), "stage": "canary", "percent": 20, "generation": shadow.generation + 1}
    )
    rig.world.adapter.apply(canary)
    rig.turn()
    rig.agent("2").serve(0.5, request_id="between")
    rig.world.settle()
    rig.turn()
    rig.agent("2").serve(0.5, request_id="after")
    assert rig.counted().challenger.requests == 1, "what came before it was in force proves nothing"
    copies = {r.request_id: r.shadow for r in rig.logged()[shadow.challenger_slot]}
    assert copies == {"between": True, "after": False}


def test_a_request_without_an_answer_is_an_error_once_it_has_waited(rig: Rig) -> None:
    rig.to(Stage.CANARY, 20)
    rig.agent("2").serve(None)
    rig.agent("2").serve(0.5)
    told = rig.counted().challenger
    assert (told.requests, told.errors) == (1, 0)
    time.sleep(WAIT_S)
    told = rig.counted().challenger
    assert (told.requests, told.errors, told.latency_ms.total) == (2, 1, 1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        b"[]",
        request_body(inputs=[]),
        json.dumps({"inputs": [{"name": "hour", "datatype": "INT8", "shape": [1, 1], "data": [1]}]}).encode(),
    ],
)
def test_a_request_that_no_model_could_answer_is_its_callers_fault(rig: Rig, body: bytes) -> None:
    rig.to(Stage.CANARY, 20)
    agent = rig.agent("2")
    assert [agent.send(each) for each in agent.events(body, None)] == [200]
    time.sleep(WAIT_S)
    told = rig.counted().challenger
    assert (told.requests, told.errors, seen(rig.url)["unfit"]) == (0, 0, 1)


@pytest.mark.parametrize(
    "answer",
    [b"", b"<html>", answer_body("2", []), answer_body("2", [0.1, 0.2]), answer_body("2", [7]), b'{"error": "no"}'],
)
def test_an_answer_without_a_score_for_every_row_is_an_error(rig: Rig, answer: bytes) -> None:
    document = rig.to(Stage.CANARY, 20)
    agent = rig.agent("2")
    assert [agent.send(each) for each in agent.events(request_body(), answer)] == [200, 200]
    told = rig.counted().challenger
    assert (told.requests, told.errors) == (1, 1)
    assert document.challenger_slot not in rig.logged()


def test_what_asks_for_no_scores_is_not_counted(rig: Rig) -> None:
    rig.to(Stage.CANARY, 20)
    agent = rig.agent("2")
    metadata = json.dumps({"name": LINE, "versions": ["2"], "platform": "onnxruntime_onnx"}).encode()
    assert [agent.send(each) for each in agent.events(b"", metadata)] == [200, 200]
    assert (rig.counted().challenger.requests, seen(rig.url)["no_inference"]) == (0, 1)


def test_events_in_any_order_and_twice_count_once(rig: Rig) -> None:
    rig.to(Stage.CANARY, 20)
    agent = rig.agent("2")
    asked, answered = agent.events(request_body(), answer_body("2", [0.5]))
    assert [agent.send(each) for each in (answered, answered, asked, asked, answered)] == [200, 409, 200, 409, 409]
    told = rig.counted().challenger
    assert (told.requests, told.errors, told.latency_ms.total) == (1, 0, 1)
    assert seen(rig.url)["repeated"] == 3
    lone = agent.events(request_body(), answer_body("2", [0.5]))[1]
    assert agent.send(lone) == 200
    time.sleep(WAIT_S)
    assert rig.counted().challenger.requests == 1
    assert seen(rig.url)["answers_alone"] == 1


@pytest.mark.parametrize(
    ("path", "wrong", "status"),
    [
        (f"/{LINE}/2", {"ce_id": ""}, 400),
        (f"/{LINE}/2", {"ce_type": "other"}, 400),
        (f"/{LINE}/2", {"content_type": "application/cloudevents+json"}, 415),
        (f"/{LINE}/9", {}, 404),
        ("/another/2", {}, 404),
        ("/", {}, 404),
        (f"/{LINE}/2/more", {}, 404),
    ],
)
def test_what_is_no_event_of_a_known_version_is_refused_and_counted(
    rig: Rig, path: str, wrong: dict[str, str], status: int
) -> None:
    rig.to(Stage.CANARY, 20)
    headers, body = event(REQUEST, "n", request_body(), datetime.now(UTC), **wrong)
    answer = httpx.post(f"{rig.url}{path}", headers=headers, content=body, trust_env=False)
    assert answer.status_code == status
    told = seen(rig.url)
    assert told.get("malformed", 0) + told.get("unknown_version", 0) == 1
    assert rig.counted().challenger.requests == 0


@pytest.mark.parametrize("chunked", [False, True])
def test_of_what_is_too_large_is_known_that_it_was_answered_and_no_more(rig: Rig, chunked: bool) -> None:
    rig.to(Stage.CANARY, 20)
    agent = rig.agent("2")
    large = request_body(rows=1000)
    assert len(large) > MAX_BYTES
    for answer in (answer_body("2", [0.5] * 1000), None):
        statuses = []
        for headers, body in agent.events(large, answer):
            content: Any = iter([body[:100], body[100:]]) if chunked else body
            try:
                told = httpx.post(f"{rig.url}/{LINE}/2", headers=headers, content=content, trust_env=False)
                statuses.append(told.status_code)
            except httpx.WriteError:  # the answer came, and the connection went, before the body was sent
                statuses.append(413)
        assert statuses == ([413, 200] if answer else [413])
    time.sleep(WAIT_S)
    counted = rig.counted().challenger
    assert (counted.requests, counted.errors) == (1, 0), "whose fault the second one was is not known"
    assert seen(rig.url)["unread"] == 2


def test_a_full_memory_refuses_requests_and_never_makes_an_error_of_an_answer(rig: Rig) -> None:
    rig.to(Stage.CANARY, 20)
    rig.exchanges.max_bytes = 5000
    agent = rig.agent("2")
    sent = [agent.events(request_body(), answer_body("2", [0.5])) for _ in range(10)]
    asked = [agent.send(request) for request, _ in sent]
    assert {200, 503} == set(asked)
    for (_, answer), status in zip(sent, asked, strict=True):
        if status == 200:
            assert agent.send(answer) == 200
    told = rig.counted().challenger
    assert (told.requests, told.errors) == (asked.count(200), 0)
    assert seen(rig.url)["overloaded"] == asked.count(503)


def test_an_answer_counts_for_the_generation_that_its_request_came_in(rig: Rig) -> None:
    rig.to(Stage.CANARY, 20)
    agent = rig.agent("2")
    asked, answered = agent.events(request_body(), answer_body("2", [0.5]))
    assert agent.send(asked) == 200
    reach(rig.world, Stage.CANARY, percent=50)
    rig.turn()
    assert agent.send(answered) == 200
    assert rig.counted().challenger.requests == 0
    assert seen(rig.url)["answered"] == 1


def test_of_what_is_too_much_at_once_only_the_headers_are_taken_until_it_is_less(rig: Rig) -> None:
    rig.to(Stage.CANARY, 20)
    agent = rig.agent("2")
    for _ in range(8):
        assert agent.send(event(REQUEST, str(time.monotonic_ns()), bytes(MAX_BYTES), datetime.now(UTC))) == 200
    head = f"POST /{LINE}/2 HTTP/1.1\r\nhost: x\r\n"
    headers, _ = event(REQUEST, "slow", b"", datetime.now(UTC))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", rig.port)))
            connection.sendall(f"{head}{lines}content-length: {MAX_BYTES}\r\n\r\n".encode() + bytes(MAX_BYTES - 1))
        time.sleep(0.3)
        assert agent.serve(0.5) == [503, 503]
    time.sleep(0.3)
    assert agent.serve(0.5) == [200, 200]
    told = rig.counted().challenger
    assert (told.requests, told.errors) == (2, 0)


def test_who_was_scored_is_logged_as_the_caller_said_it(rig: Rig) -> None:
    document = rig.to(Stage.CANARY, 20)
    agent = rig.agent("1")
    for each in agent.events(request_body("own", rows=2, units='{"a": 1}'), answer_body("1", [0.1, 0.2])):
        agent.send(each)
    (logged,) = rig.logged()[document.champion_slot]
    assert (logged.request_id, logged.units, logged.rows) == ("own", '{"a": 1}', 2)
    assert logged.texts[0] == [b"x", b"x"]


def test_a_generation_begins_its_counts_anew_and_a_restart_goes_on_with_them(rig: Rig) -> None:
    rig.to(Stage.CANARY, 20)
    rig.agent("1").serve(0.5)
    before = rig.counted()
    again = Rig(rig.folder, rig.store, rig.memory)
    assert again.counted() == before
    for each in (rig, again):
        each.receiver.close()
    put(rig.world, reach(rig.world, Stage.CANARY, percent=50))
    later = Rig(rig.folder, rig.store, rig.memory)
    told = later.counted()
    assert (told.generation > before.generation, told.champion.requests) == (True, 0)
    later.receiver.close()


def test_a_cluster_that_is_away_or_a_document_that_cannot_be_read_stops_no_counting(rig: Rig) -> None:
    rig.to(Stage.CANARY, 20)
    rig.agent("2").serve(0.5)
    rig.receiver.turn(None)
    there = rig.memory.labelled(INFERENCE_SERVICES, kserve.LINE_LABEL)
    there[0]["metadata"]["annotations"][kserve.TRAFFIC_ANNOTATION] = "{"
    rig.receiver.turn(there)
    assert rig.agent("2").serve(0.5) == [200, 200]
    assert rig.counted().challenger.requests == 2


def test_a_version_that_left_its_slot_is_no_longer_taken_and_its_log_is_closed(rig: Rig) -> None:
    document = rig.to(Stage.CANARY, 20)
    rig.agent("2").serve(0.5)
    put(rig.world, abort(document, ReasonCode.OPERATOR, "no", datetime.now(UTC))[0])
    rig.turn()
    assert rig.agent("2").serve(0.5) == [404, 404]
    assert rig.agent("1").serve(0.5) == [200, 200]
    (counts,) = (rig.folder / "spool" / document.challenger_slot).glob("*.counts")
    assert read_counts(counts).ended


def test_a_version_is_taken_once_its_identity_can_be_read(rig: Rig) -> None:
    rig.store.away = True
    rig.to(Stage.CANARY, 20)
    assert rig.agent("2").serve(0.5) == [404, 404]
    rig.store.away = False
    rig.turn()
    assert rig.agent("2").serve(0.5) == [200, 200]


def test_it_is_ready_once_the_documents_are_known(rig: Rig) -> None:
    with_champion(rig.world)
    assert httpx.get(f"{rig.url}/ready", trust_env=False).status_code == 503
    assert httpx.get(f"{rig.url}/live", trust_env=False).status_code == 200
    stop = threading.Event()
    turning = threading.Thread(target=turns, args=(rig.receiver, rig.memory, rig.way, stop))
    turning.start()
    while httpx.get(f"{rig.url}/ready", trust_env=False).status_code != 200:
        time.sleep(0.01)
    stop.set()
    turning.join()


# --- manifests
@pytest.mark.parametrize("version", ["1.29", "1.33"])
@pytest.mark.parametrize("pull_secret", ["", "registry"])
def test_the_receivers_manifests_are_known_to_kubernetes(version: str, pull_secret: str) -> None:
    made = manifests(Settings(kserve_namespace="models", pod_pull_secret=pull_secret))
    for manifest in made:
        kubernetes_validate.validate(manifest, version, strict=True)
    assert {m["metadata"]["name"] for m in made} == {LOG_NAME}
    assert {m["metadata"]["namespace"] for m in made} == {"models"}


def test_the_receiver_is_where_the_loggers_send_to_and_reaches_no_more_than_it_needs() -> None:
    settings = Settings(kserve_namespace="models")
    made = {m["kind"]: m for m in manifests(settings)}
    place = kserve.Place.of(settings)
    assert place.log_url == f"http://{made['Service']['metadata']['name']}.models"
    assert made["Service"]["spec"]["ports"][0]["port"] == 80
    assert made["Role"]["rules"] == [
        {"apiGroups": ["serving.kserve.io"], "resources": ["inferenceservices"], "verbs": ["get", "list"]}
    ]
    pod = made["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert made["Deployment"]["spec"]["replicas"] == 1
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    variables = {each["name"] for each in container["env"]}
    assert not {name for name in variables if "SECRET" in name or "DSN" in name}
    assert kserve.Place.of(Settings(kserve_logger_url="https://log.example.com/")).log_url == "https://log.example.com"
