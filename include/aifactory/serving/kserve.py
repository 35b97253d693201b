"""What KServe is to run for a line, and what it says that it runs. Pure; `kserveadapter` speaks to the cluster.

A line is one InferenceService in Standard mode (`spec.canary`, since KServe 0.20), and one HTTPRoute for trials:

* every version is a predictor of its own name, `v<version>`: the champion is `spec.predictor`, the challenger
  `spec.canary[0]` with its percentage. A slot's name would not do, for KServe calls a canary ready as soon as any pod
  of its Deployment is, and that may still be a pod of the version before;
* a promotion names another predictor as the champion. No pod starts or ends by it;
* a line without a champion keeps its first candidate off the gateway, and one without any version is stopped;
* while a challenger is tried, the HTTPRoute takes the line's inference requests off KServe's own route (an exact path
  goes before a prefix) and gives them to the logging port of both: in shadow all to the champion and a copy to the
  challenger, in canary each its share. Else it hangs on no gateway. KServe's own route would lead past the log: the
  Service of a canary points at its model server, and only that of `spec.predictor` at the agent that logs;
* every version logs to an address of its own, for events say neither of which version they are nor, of one that failed,
  that it did (`aifactory.serving.receiver` reads them).

The document itself (`traffic.Traffic`) is an annotation of the InferenceService, so it and the spec that follows from
it change by one conditional write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, ValidationError

from aifactory.errors import ReleaseDefect
from aifactory.reasons import ReasonCode
from aifactory.serving.traffic import Observed, ObservedSlot, Refusal, SlotName, Stage, Traffic
from aifactory.specfile import Spec

if TYPE_CHECKING:
    from aifactory.line import LineSpec, ServingPods
    from aifactory.settings import Settings

Object = dict[str, Any]
"""A Kubernetes object as JSON."""

TRAFFIC_ANNOTATION = "ai-factory/traffic"
GENERATION_ANNOTATION = "ai-factory/generation"
REFUSED_ANNOTATION = "ai-factory/refused"
IN_FORCE_ANNOTATION = "ai-factory/in-force"
LINE_LABEL = "ai-factory/line"

_OWN = "ai-factory/"
_STOP = "serving.kserve.io/stop"
_MODE = "serving.kserve.io/deploymentMode"
_VISIBILITY = "networking.kserve.io/visibility"
_STOPPED = "Stopped"
_NOT_LOADED = ("InvalidSpec", "BlockedByFailedLoad")
_MODEL_PORT, _AGENT_PORT = 8080, 9081
_TRITON_USER = 1000
LOG_NAME = "ai-factory-log"
"""Name of the receiver of what is logged: its Service and all that belongs to it."""

LOGGED_HEADERS = ("X-Request-Id", "Inference-Header-Content-Length")
"""Headers of a request that its events carry, spelled as KServe's agent compares them."""
_WRITABLE = {"scratch": "/tmp", "shared-memory": "/dev/shm"}  # noqa: S108 - where volumes are mounted


@dataclass(frozen=True)
class Place:
    """Where on a cluster, and from which bucket; see the settings of the same names."""

    bucket: str
    namespace: str
    gateway: str
    domain: str
    runtime: str
    service_account: str
    log_url: str

    @classmethod
    def of(cls, settings: Settings) -> Place:
        """As the settings say."""
        return cls(
            bucket=settings.factory_bucket,
            namespace=settings.kserve_namespace,
            gateway=settings.kserve_gateway,
            domain=settings.kserve_domain,
            runtime=settings.kserve_runtime,
            service_account=settings.kserve_service_account,
            log_url=settings.kserve_logger_url.rstrip("/") or f"http://{LOG_NAME}.{settings.kserve_namespace}",
        )


class InForce(Spec):
    """Which document KServe was last seen to follow, since when, and who was its `spec.predictor`."""

    generation: int
    since: AwareDatetime
    predictor: str


def service_name(line: str) -> str:
    """Name of a line's InferenceService: underscores are no letters of a host's name."""
    return line.replace("_", "-")


def route_name(line: str) -> str:
    """Name of a line's HTTPRoute; its dot keeps it apart from the routes that KServe makes of any line."""
    return f"{service_name(line)}.trial"


def repository_prefix(line: str, version: str) -> str:
    """Prefix in S3 of the model repository that holds one version of a line alone."""
    return f"serving/{line}/repositories/{version}"


# --- rendering
def inference_service(spec: LineSpec, traffic: Traffic, place: Place, refused: Refusal | None = None) -> Object:
    """The InferenceService that a document asks for.

    Args:
        spec: of the line.
        traffic: the document.
        place: where.
        refused: the challenger, where its package was not accepted: it is left out, and the reason annotated.
    """
    challenger = None if refused and refused.version == traffic.challenger else traffic.challenger
    served = [v for v in (traffic.champion, challenger) if v is not None]
    stopped = not served
    canary = [v for v in served[1:] if v != served[0]]
    canary_replicas = 1 if traffic.at_rest else spec.deployment.pods.min_replicas
    predictor = {
        **_predictor(spec, place, served[0] if served else None),
        **_replicas(spec.deployment.pods, canary_replicas if canary else 0),
    }
    annotations = {
        _MODE: "Standard",
        _STOP: json.dumps(stopped),
        TRAFFIC_ANNOTATION: json.dumps(traffic.model_dump(mode="json"), sort_keys=True),
        GENERATION_ANNOTATION: str(traffic.generation),
        REFUSED_ANNOTATION: refused.model_dump_json() if refused else "",
    }
    hidden = traffic.champion is None
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": service_name(spec.line),
            "namespace": place.namespace,
            "labels": {LINE_LABEL: spec.line, **({_VISIBILITY: "cluster-local"} if hidden else {})},
            "annotations": annotations,
        },
        "spec": {
            "predictor": predictor,
            "canary": [
                {
                    "trafficPercent": traffic.percent,
                    "predictor": {**_predictor(spec, place, version), "minReplicas": canary_replicas},
                }
                for version in canary
            ],
        },
    }


def trial_route(line: str, traffic: Traffic, place: Place) -> Object:
    """The HTTPRoute that a document asks for: it mirrors in shadow, splits in canary, and else hangs on no gateway."""
    route: Object = {"parentRefs": []}
    if traffic.stage in (Stage.SHADOW, Stage.CANARY) and traffic.champion and traffic.challenger:
        namespace, _, gateway = place.gateway.rpartition("/")
        route = {
            "parentRefs": [{"name": gateway, **({"namespace": namespace} if namespace else {})}],
            "hostnames": [f"{service_name(line)}-{place.namespace}.{place.domain}"],
            "rules": [
                {
                    "matches": [{"method": "POST", "path": {"type": "Exact", "value": f"/v2/models/{line}/infer"}}],
                    **_backends(line, traffic, traffic.champion, traffic.challenger),
                }
            ],
        }
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {
            "name": route_name(line),
            "namespace": place.namespace,
            "labels": {LINE_LABEL: line},
            "annotations": {GENERATION_ANNOTATION: str(traffic.generation)},
        },
        "spec": route,
    }


def laid_over(there: Object, wanted: Object) -> Object:
    """What to write in the place of an object: all of its spec, and what others wrote into its metadata.

    Its `resourceVersion` stays, which makes the write conditional, and so does the record of what is in force.
    """
    metadata = dict(there["metadata"])
    for field in ("labels", "annotations"):
        others = {k: v for k, v in metadata.get(field, {}).items() if k == IN_FORCE_ANNOTATION or not _ours(k)}
        metadata[field] = {**others, **wanted["metadata"].get(field, {})}
    return {**there, "metadata": metadata, "spec": wanted["spec"]}


def with_record(service: Object, record: InForce) -> Object:
    """The InferenceService with what was seen in force."""
    annotations = {**service["metadata"].get("annotations", {}), IN_FORCE_ANNOTATION: record.model_dump_json()}
    return {**service, "metadata": {**service["metadata"], "annotations": annotations}}


def _ours(key: str) -> bool:
    return key.startswith(_OWN) or key in (_STOP, _MODE, _VISIBILITY)


def _predictor(spec: LineSpec, place: Place, version: str | None) -> Object:
    """A predictor, whole: KServe would lay a canary's fields over the champion's."""
    pods = spec.deployment.pods
    quantities = {"cpu": f"{max(1, round(pods.cpus * 1000))}m", "memory": f"{max(1, round(pods.memory_gb * 1000))}M"}
    model: Object = {
        "modelFormat": {"name": "triton"},
        "protocolVersion": "v2",
        "runtime": place.runtime,
        "resources": {"requests": quantities, "limits": quantities},
        # The first is Triton's. A Service has both, and its second leads to the agent in the same pod, canary or not
        "ports": [
            {"name": "http", "containerPort": _MODEL_PORT, "protocol": "TCP"},
            {"name": "http-logged", "containerPort": _AGENT_PORT, "protocol": "TCP"},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in _WRITABLE.items()],
    }
    named: Object = {}
    if version is not None:
        model["storageUri"] = f"s3://{place.bucket}/{repository_prefix(spec.line, version)}"
        named = {"name": predictor_name(version)}
    return {
        **named,
        "model": model,
        "logger": _logger(spec.line, version, place),
        "serviceAccountName": place.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _TRITON_USER,
            "runAsGroup": _TRITON_USER,
            "fsGroup": _TRITON_USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _replicas(pods: ServingPods, canary_replicas: int) -> Object:
    """KServe takes the pods of a ready canary off the champion's fewest; so they are added first."""
    fewest = pods.min_replicas + canary_replicas
    return {"minReplicas": fewest, "maxReplicas": max(pods.max_replicas, fewest)}


def predictor_name(version: str) -> str:
    """Name of a version's predictor within its InferenceService."""
    return f"v{version}"


def _backends(line: str, traffic: Traffic, champion: str, challenger: str) -> Object:
    if traffic.stage is Stage.CANARY:
        shares = {champion: 100 - traffic.percent, challenger: traffic.percent}
        return {"backendRefs": [{**_backend(line, version), "weight": share} for version, share in shares.items()]}
    mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": _backend(line, challenger)}}
    return {"filters": [mirror], "backendRefs": [_backend(line, champion)]}


def _backend(line: str, version: str) -> Object:
    return {"name": f"{service_name(line)}-{predictor_name(version)}-predictor", "port": _AGENT_PORT}


def _logger(line: str, version: str | None, place: Place) -> Object:
    """Requests and answers to the receiver; its address never changes for a version, so no pod starts anew by it."""
    where = f"/{line}/{version}" if version else ""
    return {"mode": "all", "url": f"{place.log_url}{where}", "metadataHeaders": list(LOGGED_HEADERS)}


# --- reading
def document(service: Object) -> Traffic:
    """The document that an InferenceService carries.

    Raises:
        ReleaseDefect: TRAFFIC_INVALID.
    """
    metadata = service["metadata"]
    try:
        return Traffic.model_validate_json(_annotation(service, TRAFFIC_ANNOTATION))
    except ValidationError as error:
        raise ReleaseDefect(
            ReasonCode.TRAFFIC_INVALID,
            f"InferenceService {metadata.get('namespace')}/{metadata.get('name')}, annotation {TRAFFIC_ANNOTATION}: "
            f"{' '.join(str(error).split())}; what is in force stays in force, repair the annotation",
        ) from None


def generation(thing: Object) -> int:
    """Generation of the document that an object was made of; -1 for one that was made of none."""
    told = _annotation(thing, GENERATION_ANNOTATION)
    return int(told) if told.isdecimal() else -1


def attached(route: Object) -> bool:
    """Whether an HTTPRoute hangs on a gateway, or is to."""
    return bool(route.get("spec", {}).get("parentRefs"))


def recorded(service: Object) -> InForce | None:
    """What was last seen in force; None before anything was."""
    told = _annotation(service, IN_FORCE_ANNOTATION)
    try:
        return InForce.model_validate_json(told) if told else None
    except ValidationError:
        return None


def in_force(service: Object, route: Object | None, now: datetime) -> InForce:
    """The record of what is in force: a new one once KServe and the gateway follow the document, else the old one.

    KServe's `observedGeneration` is that of a child (issue 6081) and proves nothing: that the status names the very
    canaries and percentages of the spec does.
    """
    before = recorded(service) or InForce(generation=0, since=now, predictor="")
    wanted = document(service)
    follows = _follows(service) and route is not None and generation(route) == wanted.generation
    if not follows or (route is not None and attached(route) and not _accepted(route)):
        return before
    if before.generation == wanted.generation:
        return before
    return InForce(generation=wanted.generation, since=now, predictor=_stable(service))


def observed(service: Object, record: InForce) -> Observed:
    """What serves.

    Args:
        service: the InferenceService, its status included.
        record: what `in_force` said of it.

    Raises:
        ReleaseDefect: TRAFFIC_INVALID.
    """
    wanted = document(service)
    challenger = _canaries(service).get(predictor_name(wanted.challenger or ""), {})
    return Observed(
        line=wanted.line,
        generation=record.generation,
        since=record.since,
        slots={slot: _slot(service, record, version) for slot, version in _slots(wanted).items()},
        percent=challenger.get("trafficPercent", 0),
    )


def _slots(wanted: Traffic) -> dict[SlotName, str | None]:
    return {"a": wanted.slots["a"], "b": wanted.slots["b"]}


def _slot(service: Object, record: InForce, version: str | None) -> ObservedSlot:
    if version is None:
        return ObservedSlot()
    told = _annotation(service, REFUSED_ANNOTATION)
    refused = Refusal.model_validate_json(told) if told else None
    if refused and refused.version == version:
        return ObservedSlot(refused=refused)
    name = predictor_name(version)
    canary = _canaries(service).get(name)
    if canary is not None:
        ready, model = bool(canary.get("ready")), canary.get("modelStatus", {})
    else:
        known = _stable(service) == name and (_follows(service) or record.predictor == name)
        ready = known and _condition(service, "PredictorReady").get("status") == "True"
        model = service.get("status", {}).get("modelStatus", {}) if known else {}
    if ready:
        return ObservedSlot(version=version)
    failure = model.get("lastFailureInfo")
    if model.get("transitionStatus") not in _NOT_LOADED or not failure:
        return ObservedSlot()
    said = f"KServe could not load it: {failure.get('reason', '')} {failure.get('message', '')}".strip()
    return ObservedSlot(refused=Refusal(version=version, reason=ReasonCode.PACKAGE_INVALID, message=said))


def _follows(service: Object) -> bool:
    """Whether the status was written of this spec."""
    predictor = _condition(service, "PredictorReady")
    if _annotation(service, _STOP) == "true":
        return bool(predictor.get("reason") == _STOPPED)
    wanted = {c["predictor"]["name"]: c["trafficPercent"] for c in service["spec"].get("canary", [])}
    seen = {name: told.get("trafficPercent") for name, told in _canaries(service).items()}
    return bool(predictor) and predictor.get("reason") != _STOPPED and wanted == seen


def _accepted(route: Object) -> bool:
    """Whether every gateway has taken the route as it is now, mirror and all."""
    parents: Sequence[Object] = route.get("status", {}).get("parents", [])
    return bool(parents) and all(
        _true(parent, route, kind) for parent in parents for kind in ("Accepted", "ResolvedRefs")
    )


def _true(parent: Object, route: Object, kind: str) -> bool:
    return any(
        c["type"] == kind and c["status"] == "True" and c.get("observedGeneration") == route["metadata"]["generation"]
        for c in parent["conditions"]
    )


def _canaries(service: Object) -> Mapping[str, Object]:
    return {told["name"]: told for told in service.get("status", {}).get("canaryStatuses", [])}


def _condition(service: Object, kind: str) -> Object:
    conditions: Sequence[Object] = service.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


def _stable(service: Object) -> str:
    return str(service["spec"]["predictor"].get("name", ""))


def _annotation(thing: Object, name: str) -> str:
    return str(thing["metadata"].get("annotations", {}).get(name, ""))
