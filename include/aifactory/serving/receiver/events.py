"""What an agent says of a request: CloudEvents 1.0 in HTTP's binary mode, with the request's or the answer's body."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import numpy as np

from aifactory.serving.backend.scorer import OUTPUT
from aifactory.serving.server.oip import BYTES, Array, InferRequest, Refusal, Signature, TensorSpec, parse_json

REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"

_MOST_ROWS = 2**31 - 1  # the model server's limit is not known here


@dataclass(frozen=True)
class Event:
    """One event, without its body.

    Args:
        id: the same for a request and its answer. A caller may choose it (header Ce-Id), so it need not be unique.
        answer: whether it is the answer.
        sent_s: when the agent sent it, seconds since 1970; None where it does not say.
        headers: of the request, those that are logged, in lower case.
    """

    id: str
    answer: bool
    sent_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def read_event(headers: Mapping[str, str]) -> Event:
    """The event that an HTTP request's headers, in lower case, tell of.

    Raises:
        Refusal: 400 or 415, it is none that an agent sends.
    """
    if headers.get("content-type", "").startswith("application/cloudevents"):
        raise Refusal(415, "events in structured or batched mode are not taken; send them in binary mode")
    missing = [name for name in ("ce-specversion", "ce-id", "ce-type") if not headers.get(name)]
    if missing:
        raise Refusal(400, f"headers {missing} are missing: it is no CloudEvent in binary mode")
    if not headers["ce-specversion"].startswith("1."):
        raise Refusal(400, f"ce-specversion is {headers['ce-specversion'][:20]!r}, but must be 1.0")
    if headers["ce-type"] not in (REQUEST, RESPONSE):
        raise Refusal(400, f"ce-type {headers['ce-type'][:80]!r} is neither {REQUEST} nor {RESPONSE}")
    metadata = _metadata(headers.get("ce-metadata", ""))
    return Event(headers["ce-id"], headers["ce-type"] == RESPONSE, _seconds(headers.get("ce-time", "")), metadata)


def signature_of(identity: Mapping[str, Any]) -> Signature:
    """What a version takes and gives, by its `identity.json`."""
    kinds = {"categorical": BYTES, "numeric": "FP32"}
    inputs = {
        name: TensorSpec(name, datatype, (-1, 1))
        for kind, datatype in kinds.items()
        for name in identity["features"][kind]
    }
    return Signature(inputs, {OUTPUT: TensorSpec(OUTPUT, "FP32", (-1,))}, _MOST_ROWS)


def request_of(event: Event, body: bytes, signature: Signature) -> InferRequest:
    """The request of an event.

    Raises:
        Refusal: a model of this signature cannot answer it: its caller's fault, or it asked for no scores.
    """
    return parse_json(body, event.headers.get("inference-header-content-length"), signature)


def scores_of(body: bytes) -> Array:
    """The scores of an answer, float32 [n].

    Its JSON may be followed by bytes of outputs; how long it is, no event says.

    Raises:
        ValueError: it has none, or other than probabilities.
    """
    text = body.decode("latin-1")  # a character a byte, so that the end of one is the end of the other
    try:
        document, end = json.JSONDecoder().raw_decode(text)
        scores = _output(document["outputs"], body[end:])
        if scores.ndim != 1 or not (np.isfinite(scores) & (scores >= 0) & (scores <= 1)).all():
            raise ValueError(f"{OUTPUT} has other values than probabilities")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"the answer has no scores: {error}") from error
    return scores


def _output(outputs: list[dict[str, Any]], blob: bytes) -> Array:
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size")
        if output["name"] == OUTPUT:
            if size is None:
                return np.array(output["data"], dtype=np.float32)
            return np.frombuffer(blob[:size], dtype="<f4").astype(np.float32)
        blob = blob[size or 0 :]
    raise ValueError(f"it has no output {OUTPUT}")


def _metadata(text: str) -> dict[str, str]:
    """Logged headers: JSON, percent-encoded where the sender follows the protocol binding to the letter."""
    for each in (text, unquote(text)):
        try:
            said = json.loads(each)
            return {name.lower(): str(values[0]) for name, values in said.items() if values}
        except (ValueError, AttributeError, TypeError, LookupError):
            continue
    return {}


def _seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
