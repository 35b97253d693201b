"""An API of custom objects in memory, and KServe's part and the gateway's, played over it or over a real API server.

What is played is what was read of KServe 0.21: a Deployment for every predictor by name, made and taken away as the
spec says; readiness by name in `canaryStatuses`, or in the condition PredictorReady; an `observedGeneration` that is
another object's; a status that is emptied where a service is stopped.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from aifactory.errors import PackageDefect
from aifactory.line import Deployment, LineSpec, find_line
from aifactory.reasons import ReasonCode
from aifactory.rollout import RolloutAdapter
from aifactory.serving import kserve
from aifactory.serving.kserve import Object, Place
from aifactory.serving.kserveadapter import HTTP_ROUTES, INFERENCE_SERVICES, CustomObjects, KServeAdapter, Resource
from aifactory.settings import REPOSITORY
from aifactory.store import Conflict

PLACE = Place(
    bucket="factory",
    namespace="ai-factory",
    gateway="kserve/kserve-ingress-gateway",
    domain="example.com",
    runtime="kserve-tritonserver",
    service_account="ai-factory-serving",
    log_url="http://ai-factory-log.ai-factory",
)
FILES = {INFERENCE_SERVICES: "inferenceservice.json", HTTP_ROUTES: "httproute.json"}


def a_line() -> LineSpec:
    line = find_line(REPOSITORY / "include" / "lines", "flight_delay")
    steps = [{"percent": 20, "bake_minutes": 1}, {"percent": 50, "bake_minutes": 1}]
    return line.model_copy(update={"deployment": Deployment.model_validate({**dict(line.deployment), "canary": steps})})


@cache
def schema_of(resource: Resource) -> dict[str, Any]:
    """What is known of a kind; schemas/README.md says from where."""
    schema: dict[str, Any] = json.loads((Path(__file__).parent / "schemas" / FILES[resource]).read_text())
    return schema


def strict(schema: Any) -> Any:
    """The schema with every field forbidden that it does not name."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    named = {key: strict(each) for key, each in schema.items()}
    return {**named, "additionalProperties": False} if isinstance(schema.get("properties"), dict) else named


def pruned(value: Any, schema: dict[str, Any]) -> Any:
    """What an API server keeps of a value."""
    if isinstance(value, list):
        return [pruned(each, schema.get("items", {})) for each in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    return {key: pruned(each, schema["properties"][key]) for key, each in value.items() if key in schema["properties"]}


class ObjectsWithStatus(CustomObjects, Protocol):
    """What a controller and the receiver need besides."""

    def labelled(self, resource: Resource, label: str) -> list[Object]:
        """All objects that have a label."""

    def put_status(self, resource: Resource, body: Object) -> None:
        """Write the status of an object that was read before."""


class MemoryObjects:
    """Custom objects with the API server's manners; `after_write` is called, under the lock, after every write."""

    def __init__(self) -> None:
        self._objects: dict[tuple[Resource, str], Object] = {}
        self._version = 0
        self._lock = threading.RLock()
        self.after_write: Callable[[], None] = lambda: None

    def get(self, resource: Resource, name: str) -> Object | None:
        with self._lock:
            return copy.deepcopy(self._objects.get((resource, name)))

    def create(self, resource: Resource, body: Object) -> None:
        with self._lock:
            name = body["metadata"]["name"]
            if (resource, name) in self._objects:
                raise Conflict(f"{name} exists")
            kept = pruned(copy.deepcopy(body), schema_of(resource))
            kept.pop("status", None)
            self._keep(resource, {**kept, "metadata": {**kept["metadata"], "generation": 1}})

    def labelled(self, resource: Resource, label: str) -> list[Object]:
        with self._lock:
            found = [
                o for (kind, _), o in sorted(self._objects.items(), key=lambda each: each[0][1]) if kind == resource
            ]
            return [copy.deepcopy(o) for o in found if label in o["metadata"].get("labels", {})]

    def replace(self, resource: Resource, body: Object) -> None:
        with self._lock:
            there = self._seen(resource, body)
            new = pruned(copy.deepcopy(body), schema_of(resource))
            changed = new["spec"] != there["spec"]
            new["metadata"]["generation"] = there["metadata"]["generation"] + changed
            self._keep(resource, {**new, "status": there["status"]} if "status" in there else _without_status(new))

    def put_status(self, resource: Resource, body: Object) -> None:
        with self._lock:
            there = self._seen(resource, body)
            self._keep(resource, {**there, "status": pruned(body, schema_of(resource))["status"]})

    def _seen(self, resource: Resource, body: Object) -> Object:
        there = self._objects.get((resource, body["metadata"]["name"]))
        if there is None or there["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise Conflict(f"{body['metadata']['name']} has changed; read it again")
        return copy.deepcopy(there)

    def _keep(self, resource: Resource, body: Object) -> None:
        name = body["metadata"]["name"]
        if _without_version(body) == _without_version(self._objects.get((resource, name), {})):
            return
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self._objects[resource, name] = body
        self.after_write()


class KServeWorld:
    """The adapter and the played KServe behind it: `tests/serving/rollout_conformance.py`'s world."""

    def __init__(self, cluster: ObjectsWithStatus, spec: LineSpec, place: Place = PLACE) -> None:
        self.cluster = cluster
        self.spec = spec
        self.adapter: RolloutAdapter = KServeAdapter(cluster, spec, place, self._publish)
        self.published: list[str] = []
        self._spoilt: dict[str, PackageDefect] = {}
        self._down: set[str] = set()

    def settle(self) -> None:
        self._down.clear()
        self.follow()
        self.adapter.observe()
        self.follow()
        self.adapter.observe()

    def spoil(self, version: str, reason: ReasonCode, message: str) -> None:
        self._spoilt[version] = PackageDefect(reason, message)

    def crash(self, slot: str) -> None:
        self._down.add(kserve.predictor_name(str(self.adapter.wanted().slots["b" if slot == "b" else "a"])))
        self.follow()

    def follow(self) -> None:
        """One turn of KServe and of the gateway."""
        self._told(INFERENCE_SERVICES, kserve.service_name(self.spec.line), self._kserve)
        self._told(HTTP_ROUTES, kserve.route_name(self.spec.line), _gateway)

    def _publish(self, version: str) -> None:
        if version in self._spoilt:
            raise self._spoilt[version]
        self.published.append(version)

    def _told(self, resource: Resource, name: str, status: Callable[[Object], Object]) -> None:
        while there := self.cluster.get(resource, name):
            try:
                self.cluster.put_status(resource, {**there, "status": status(there)})
            except Conflict:
                continue
            return

    def _kserve(self, service: Object) -> Object:
        if service["metadata"]["annotations"].get("serving.kserve.io/stop") == "true":
            return {"conditions": [{"type": "PredictorReady", "status": "False", "reason": "Stopped"}]}
        ready = "False" if service["spec"]["predictor"]["name"] in self._down else "True"
        return {
            "observedGeneration": 1,
            "conditions": [{"type": "PredictorReady", "status": ready}],
            "canaryStatuses": [
                {
                    "name": canary["predictor"]["name"],
                    "trafficPercent": canary["trafficPercent"],
                    "ready": canary["predictor"]["name"] not in self._down,
                }
                for canary in service["spec"].get("canary", [])
            ],
        }


def _gateway(route: Object) -> Object:
    condition = {
        "status": "True",
        "observedGeneration": route["metadata"]["generation"],
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "reason": "Played",
        "message": "",
    }
    return {
        "parents": [
            {
                "parentRef": parent,
                "controllerName": "example.com/played",
                "conditions": [{**condition, "type": kind} for kind in ("Accepted", "ResolvedRefs")],
            }
            for parent in route["spec"].get("parentRefs", [])
        ]
    }


def _without_status(body: Object) -> Object:
    return {key: each for key, each in body.items() if key != "status"}


def _without_version(body: Object) -> Object:
    return {**body, "metadata": {k: v for k, v in body.get("metadata", {}).items() if k != "resourceVersion"}}
