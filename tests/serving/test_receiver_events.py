"""What an agent's events say, and which answer belongs to which request."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serving.played_agent import FEATURES, answer_body, event, request_body

from aifactory.serving.receiver.events import (
    REQUEST,
    RESPONSE,
    Event,
    read_event,
    request_of,
    scores_of,
    signature_of,
)
from aifactory.serving.receiver.exchanges import Exchange, Exchanges, Key, Role, Said
from aifactory.serving.server.oip import Refusal, answer_json

AT = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
SIGNATURE = signature_of({"features": FEATURES})
ROLE = Role(7, shadow=False)


def headers_of(kind: str = REQUEST, headers: dict[str, str] | None = None, **other: str) -> dict[str, str]:
    return {name.lower(): value for name, value in event(kind, "n1", b"", AT, headers, **other)[0].items()}


def test_an_event_says_which_request_when_and_the_headers_that_are_logged() -> None:
    told = read_event(headers_of(headers={"X-Request-Id": "r 1", "Inference-Header-Content-Length": "12"}))
    assert (told.id, told.answer) == ("n1", False)
    assert told.sent_s == pytest.approx(AT.timestamp(), abs=1e-6)
    assert told.headers == {"x-request-id": "r 1", "inference-header-content-length": "12"}
    assert read_event(headers_of(RESPONSE)).answer


def test_metadata_may_be_percent_encoded_as_the_binding_asks() -> None:
    metadata = quote('{"X-Request-Id":["größe"]}')
    assert read_event(headers_of(ce_metadata=metadata)).headers == {"x-request-id": "größe"}


@pytest.mark.parametrize("metadata", ["", "{", "[]", "7", '{"X-Request-Id":[]}', '{"X-Request-Id":7}', "%7B%"])
def test_metadata_that_say_nothing_are_none(metadata: str) -> None:
    assert read_event(headers_of(ce_metadata=metadata)).headers == {}


@pytest.mark.parametrize("time", ["", "yesterday", "2026-13-01T00:00:00Z"])
def test_an_event_may_not_say_when(time: str) -> None:
    assert read_event(headers_of(ce_time=time)).sent_s is None


@pytest.mark.parametrize(
    ("wrong", "status", "said"),
    [
        ({"ce_id": ""}, 400, "ce-id"),
        ({"ce_type": ""}, 400, "ce-type"),
        ({"ce_specversion": ""}, 400, "ce-specversion"),
        ({"ce_specversion": "0.3"}, 400, "0.3"),
        ({"ce_type": "org.example.other"}, 400, "org.example.other"),
        ({"content_type": "application/cloudevents+json"}, 415, "binary mode"),
    ],
)
def test_what_no_agent_sends_is_refused_with_the_reason(wrong: dict[str, str], status: int, said: str) -> None:
    with pytest.raises(Refusal, match=said) as caught:
        read_event(headers_of(**wrong))
    assert caught.value.status == status


def test_a_request_is_read_with_the_tensors_behind_its_json() -> None:
    document = json.loads(request_body("r1", rows=2, units="{}"))
    (hour,) = [tensor for tensor in document["inputs"] if tensor["name"] == "hour"]
    del hour["data"]
    hour["parameters"] = {"binary_data_size": 8}
    head = json.dumps(document).encode()
    told = Event("n", answer=False, headers={"inference-header-content-length": str(len(head))})
    request = request_of(told, head + struct.pack("<2f", 3.5, float("nan")), SIGNATURE)
    assert (request.id, request.parameters["units"], request.inputs["hour"][0, 0]) == ("r1", "{}", 3.5)
    with pytest.raises(Refusal):
        request_of(Event("n", answer=False), head + bytes(8), SIGNATURE)


def test_scores_are_read_as_json_and_as_bytes_behind_it() -> None:
    assert scores_of(answer_body("2", [0.25, 1])).tolist() == [0.25, 1.0]
    outputs: list[dict[str, Any]] = [
        {"name": "größe", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
        {"name": "probability", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
    ]
    head = json.dumps({"model_name": "größe", "outputs": outputs}, ensure_ascii=False).encode()
    assert scores_of(head + struct.pack("<3f", 9, 0.5, 0.75)).tolist() == [0.5, 0.75]


@pytest.mark.parametrize("binary", [False, True])
def test_the_answers_of_the_factorys_own_server_are_read(binary: bool) -> None:
    asked = request_of(Event("n", answer=False), request_body("größe", rows=3), SIGNATURE)
    asked = replace(asked, binary=frozenset({"probability"} if binary else ()))
    scores = np.array([0.1, 0.5, 0.9], np.float32)
    body, _ = answer_json("flight_delay", "2", asked, {"probability": scores}, SIGNATURE)
    assert scores_of(body).tolist() == scores.tolist()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"[" * 100_000,
        b'{"outputs": [7]}',
        b'{"outputs": [{"name": "other", "data": [0.5]}]}',
        b'{"outputs": [{"name": "probability"}]}',
        b'{"outputs": [{"name": "probability", "parameters": {"binary_data_size": 3}}]}abc',
        answer_body("2", [1.5]),
        answer_body("2", [-0.1]),
        answer_body("2", [float("nan")]),
        answer_body("2", [None]),
        answer_body("2", ["a"]),
        answer_body("2", [[0.5]]),
        b"\xff\xfe",
    ],
)
def test_an_answer_without_probabilities_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="has no scores"):
        scores_of(body)


# --- which belongs to which
def key_of(name: str) -> Key:
    return "flight_delay", "2", name


def asked(name: str, body: bytes | None = b"asked") -> Said:
    return Said(Event(name, answer=False), body)


def answered(name: str, body: bytes | None = b"answered") -> Said:
    return Said(Event(name, answer=True), body)


def test_a_request_meets_its_answer_in_either_order() -> None:
    exchanges = Exchanges()
    assert exchanges.take(key_of("a"), asked("a"), ROLE, 0) is None
    assert exchanges.take(key_of("b"), answered("b"), ROLE, 0) is None
    assert exchanges.take(key_of("a"), answered("a"), Role(8, shadow=True), 1) == Exchange(
        key_of("a"), ROLE, asked("a"), answered("a")
    ), "it counts where its request came"
    whole = exchanges.take(key_of("b"), asked("b"), ROLE, 1)
    assert whole == Exchange(key_of("b"), ROLE, asked("b"), answered("b"))
    assert exchanges.held_bytes == 0
    assert exchanges.overdue(100) == ([], 0)


def test_a_request_without_an_answer_fails_and_an_answer_without_a_request_is_only_counted() -> None:
    exchanges = Exchanges(wait_s=20)
    exchanges.take(key_of("a"), asked("a"), ROLE, 0)
    exchanges.take(key_of("b"), answered("b"), ROLE, 5)
    assert exchanges.overdue(19) == ([], 0)
    assert exchanges.overdue(20) == ([Exchange(key_of("a"), ROLE, asked("a"), None)], 0)
    assert exchanges.overdue(25) == ([], 1)
    assert exchanges.held_bytes == 0
    for late in (answered("a"), asked("b")):
        with pytest.raises(Refusal, match="taken before"):
            exchanges.take(key_of(late.event.id), late, ROLE, 26)


def test_what_is_too_much_is_refused_but_never_the_answer_to_what_waits() -> None:
    exchanges = Exchanges(max_bytes=2500)
    exchanges.take(key_of("a"), asked("a"), ROLE, 0)
    exchanges.take(key_of("b"), asked("b"), ROLE, 0)
    for more in (asked("c"), answered("d")):
        with pytest.raises(Refusal) as caught:
            exchanges.take(key_of(more.event.id), more, ROLE, 0)
        assert caught.value.status == 503
    assert exchanges.take(key_of("a"), answered("a", bytes(10_000)), ROLE, 0) is not None
    assert exchanges.take(key_of("c"), asked("c"), ROLE, 0) is None


def test_the_ids_that_are_known_again_are_bounded() -> None:
    exchanges = Exchanges(max_known=10)
    for n in range(100):
        exchanges.take(key_of(str(n)), asked(str(n)), ROLE, 0)
        exchanges.take(key_of(str(n)), answered(str(n)), ROLE, 0)
    with pytest.raises(Refusal):
        exchanges.take(key_of("99"), asked("99"), ROLE, 0)
    assert exchanges.take(key_of("5"), asked("5"), ROLE, 0) is None


@given(st.permutations([(name, kind) for name in "abcd" for kind in ("ask", "ask", "answer", "answer")]), st.data())
def test_in_any_order_and_twice_every_request_counts_once(order: list[tuple[str, str]], data: st.DataObject) -> None:
    failed = set(data.draw(st.sets(st.sampled_from("abcd"))))
    exchanges, ended = Exchanges(), []
    for name, kind in order:
        if kind == "answer" and name in failed:
            continue
        said = asked(name) if kind == "ask" else answered(name)
        try:
            whole = exchanges.take(key_of(name), said, ROLE, 0)
        except Refusal:
            continue
        ended += [whole] if whole else []
    late, num_orphans = exchanges.overdue(20)
    assert {e.key[2] for e in ended} == set("abcd") - failed
    assert {e.key[2] for e in late} == failed
    assert (len(ended) + len(late), num_orphans, exchanges.held_bytes) == (4, 0, 0)
