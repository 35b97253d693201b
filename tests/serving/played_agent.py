"""KServe's agent, played: the events that `pkg/logger` of KServe sends of a request, as the Go SDK writes them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from aifactory.serving.receiver.events import REQUEST, RESPONSE

FEATURES: dict[str, list[str]] = {"categorical": ["carrier", "origin", "dest"], "numeric": ["hour", "distance"]}
Sent = tuple[dict[str, str], bytes]
"""Headers and body of an event."""


def identity_of(line: str, version: str) -> bytes:
    """`identity.json` of a version that takes `FEATURES`."""
    said = {"line": line, "version": version, "dataset_revision": "abc", "features": FEATURES, "sha256": "0"}
    return json.dumps(said).encode()


def request_body(request_id: str = "", rows: int = 1, units: str | None = None, **wrong: Any) -> bytes:
    """An inference request for some rows."""
    texts = [
        {"name": n, "datatype": "BYTES", "shape": [rows, 1], "data": ["x"] * rows} for n in FEATURES["categorical"]
    ]
    numbers = [{"name": n, "datatype": "FP32", "shape": [rows, 1], "data": [1.5] * rows} for n in FEATURES["numeric"]]
    said: dict[str, Any] = {"inputs": [*texts, *numbers]}
    if request_id:
        said["id"] = request_id
    if units is not None:
        said["parameters"] = {"units": units}
    return json.dumps(said | wrong).encode()


def answer_body(version: str, scores: Sequence[Any]) -> bytes:
    """Triton's answer."""
    output = {"name": "probability", "datatype": "FP32", "shape": [len(scores)], "data": list(scores)}
    return json.dumps({"model_name": "flight_delay", "model_version": version, "outputs": [output]}).encode()


def event(
    kind: str, name: str, body: bytes, at: datetime, headers: Mapping[str, str] | None = None, **other: str
) -> Sent:
    """An event in binary mode; `other` are headers with _ for -, empty ones are left out."""
    metadata = json.dumps({key: [value] for key, value in (headers or {}).items()}, separators=(",", ":"))
    said = {
        "Ce-Specversion": "1.0",
        "Ce-Id": name,
        "Ce-Type": kind,
        "Ce-Source": "http://localhost:9081/",
        "Ce-Time": at.isoformat().replace("+00:00", "123Z"),  # nanoseconds
        "Ce-Inferenceservicename": "flight-delay",
        "Ce-Namespace": "ai-factory",
        "Ce-Component": "predictor",
        "Ce-Endpoint": "",
        "Ce-Metadata": metadata,
        "Content-Type": "application/json",
    }
    said |= {key.replace("_", "-").title(): value for key, value in other.items()}
    return {key: value for key, value in said.items() if value or key == "Ce-Endpoint"}, body


@dataclass
class Agent:
    """The agent of a version's pod."""

    url: str
    version: str
    line: str = "flight_delay"
    client: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False, timeout=10))

    def events(
        self,
        request: bytes,
        answer: bytes | None,
        *,
        name: str = "",
        took_ms: float = 4.0,
        request_id: str = "",
    ) -> list[Sent]:
        """The events of a request: two, or one where it was not answered with 200."""
        name, at = name or str(uuid.uuid4()), datetime.now(UTC)
        asked = event(REQUEST, name, request, at, {"X-Request-Id": request_id or str(uuid.uuid4())})
        if answer is None:
            return [asked]
        return [asked, event(RESPONSE, name, answer, at + timedelta(milliseconds=took_ms))]

    def send(self, sent: Sent) -> int:
        """Send an event; the status of the answer."""
        headers, body = sent
        return self.client.post(f"{self.url}/{self.line}/{self.version}", headers=headers, content=body).status_code

    def serve(self, score: float | None, **other: Any) -> list[int]:
        """Play a request whose answer is a score; None: it fails."""
        answer = None if score is None else answer_body(self.version, [score])
        return [self.send(each) for each in self.events(request_body(), answer, **other)]


def seen(url: str) -> dict[str, int]:
    """The receiver's metrics."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    told = (line.split('"', 2) for line in text.splitlines() if not line.startswith("#"))
    return {what: int(number.strip("} ")) for _, what, number in told}
