"""The rollout adapter of KServe: documents become objects of a cluster, and what KServe says becomes what is observed.

*The truth* is the annotation `ai-factory/traffic` of the line's InferenceService, and not a document in S3 beside it:
here no controller of ours follows documents, so a writer that died between S3 and the cluster would leave a document
that nothing follows. So document and spec are one object, changed by one write that the API server refuses where the
object has changed since it was read (`resourceVersion`); and KServe follows the spec without us.

*The trial's route* is a second object, and the champion must not have less than the document says between two writes:
a route that is attached is taken off its gateway before a document without a trial is written, and attached, or given
another share, after one with. Every document writes the route, so the slower of two writers meets a conflict and looks
at the document again. Where a writer dies between the two, the generation annotated on the route is another one, the
document is not in force, and the next `observe` or `apply` of anybody finishes the work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aifactory.errors import Defect, InfrastructureFault, PackageDefect
from aifactory.packaging import MODEL_FILE, open_package
from aifactory.reasons import ReasonCode
from aifactory.serving import kserve
from aifactory.serving.kserve import Object, Place
from aifactory.serving.repository import CONFIG_FILE, ModelRepository
from aifactory.serving.traffic import Observed, Refusal, Traffic
from aifactory.signing import read_released
from aifactory.store import Conflict

if TYPE_CHECKING:
    from aifactory.line import LineSpec
    from aifactory.settings import Settings
    from aifactory.store import Store

_TIMEOUT_S = 15
_MOST_TRIES = 10
_NOT_FOUND, _CONFLICT, _TOO_MANY, _UNWELL = 404, 409, 429, 500


@dataclass(frozen=True)
class Resource:
    """A kind of custom objects."""

    group: str
    version: str
    plural: str


INFERENCE_SERVICES = Resource("serving.kserve.io", "v1beta1", "inferenceservices")
HTTP_ROUTES = Resource("gateway.networking.k8s.io", "v1", "httproutes")


class CustomObjects(Protocol):
    """The three verbs that the adapter needs of the Kubernetes API, in one namespace.

    What has it passes `tests/serving/custom_objects_conformance.py`.
    """

    def get(self, resource: Resource, name: str) -> Object | None:
        """An object as it is now; None where there is none."""

    def create(self, resource: Resource, body: Object) -> None:
        """Make an object.

        Raises:
            Conflict: there is one of that name.
        """

    def replace(self, resource: Resource, body: Object) -> None:
        """Write an object that was read before; its status stays as it is.

        Raises:
            Conflict: it has changed since (`metadata.resourceVersion`), or is gone.
        """


class ClusterObjects:
    """Custom objects of the cluster that KUBECONFIG, or the pod's own service account, leads to.

    Raises:
        Conflict: as of `CustomObjects`.
        Defect: CLUSTER_DENIED: there is no such cluster, it lacks the kind, or does not allow or accept this.
        InfrastructureFault: CLUSTER_UNREACHABLE.
    """

    def __init__(self, namespace: str) -> None:
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException

        self._namespace = namespace
        configuration = client.Configuration()
        try:
            config.load_config(client_configuration=configuration)
        except (ConfigException, OSError) as error:
            raise Defect(ReasonCode.CLUSTER_DENIED, f"no cluster to serve on: {error}; set KUBECONFIG") from error
        self._api = client.CustomObjectsApi(client.ApiClient(configuration))

    def get(self, resource: Resource, name: str) -> Object | None:
        """See `CustomObjects`."""
        with _errors(f"get {resource.plural}/{name}") as answer:
            answer.body = self._api.get_namespaced_custom_object(**self._where(resource), name=name)
        return answer.body

    def create(self, resource: Resource, body: Object) -> None:
        """See `CustomObjects`."""
        what = f"create {resource.plural}/{body['metadata']['name']}"
        with _errors(what) as answer:
            self._api.create_namespaced_custom_object(**self._where(resource), body=body)
            return
        raise Defect(ReasonCode.CLUSTER_DENIED, f"{what}: {answer.said}; see that namespace and CRD are installed")

    def labelled(self, resource: Resource, label: str) -> list[Object]:
        """All objects that have a label, whatever its value; none where there are none."""
        what = f"list {resource.plural}"
        with _errors(what) as answer:
            found = self._api.list_namespaced_custom_object(**self._where(resource), label_selector=label)
            return list(found["items"])
        raise Defect(ReasonCode.CLUSTER_DENIED, f"{what}: {answer.said}; see that namespace and CRD are installed")

    def replace(self, resource: Resource, body: Object) -> None:
        """See `CustomObjects`."""
        name = body["metadata"]["name"]
        with _errors(f"replace {resource.plural}/{name}"):
            self._api.replace_namespaced_custom_object(**self._where(resource), name=name, body=body)
            return
        raise Conflict(f"{resource.plural}/{name} is gone; read it again")

    def _where(self, resource: Resource) -> dict[str, Any]:
        return {**vars(resource), "namespace": self._namespace, "_request_timeout": _TIMEOUT_S}


@dataclass
class _Answer:
    """What the API server gave, or said where it found nothing."""

    body: Object | None = None
    said: str = ""


@contextmanager
def _errors(what: str) -> Iterator[_Answer]:
    """Turn the client's errors into the factory's; what was not found leaves the block early, with what was said."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    answer = _Answer()
    try:
        yield answer
    except ApiException as error:
        status, answer.said = error.status or 0, f"{error.status} {error.reason} {error.body or ''}"[:500]
        if status == _CONFLICT:
            raise Conflict(f"{what}: it has changed meanwhile, read it again: {answer.said}") from error
        if status in (0, _TOO_MANY) or status >= _UNWELL:
            raise InfrastructureFault(ReasonCode.CLUSTER_UNREACHABLE, f"{what}: {answer.said}") from error
        if status != _NOT_FOUND:
            raise Defect(ReasonCode.CLUSTER_DENIED, f"{what}: {answer.said}") from error
    except (HTTPError, OSError) as error:
        raise InfrastructureFault(ReasonCode.CLUSTER_UNREACHABLE, f"{what}: {error}") from error


Publish = Callable[[str], object]
"""Puts the model repository of a version where KServe fetches it; raises PackageDefect where it is not to be served."""


class KServeAdapter:
    """A line served by KServe; see the module.

    Args:
        cluster: the custom objects of `place.namespace`.
        spec: of the line.
        place: where.
        publish: see `Publish`; called before the document that names the version for the first time is written.
        now: the time.
    """

    def __init__(
        self,
        cluster: CustomObjects,
        spec: LineSpec,
        place: Place,
        publish: Publish,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._spec = spec
        self._place = place
        self._publish = publish
        self._now = now

    def wanted(self) -> Traffic:
        """The document in the InferenceService's annotation."""
        service = self._service()
        return kserve.document(service) if service else Traffic(line=self._spec.line, since=self._now())

    def apply(self, traffic: Traffic) -> None:
        """One conditional write of document and spec, with the trial's route before or after it.

        Raises:
            PackageDefect: the champion's package is not to be served; nothing is changed. A challenger's is annotated.
        """
        before = self.wanted()
        if before != traffic:
            if traffic.generation != before.generation + 1:
                raise self._overtaken(before, traffic)
            refused = self._published(traffic, before)
            self._write(traffic, before, kserve.inference_service(self._spec, traffic, self._place, refused))
        self._settle_route()

    def observe(self) -> Observed | None:
        """What KServe says. It finishes what a writer left half done, and notes since when a document is in force.

        Raises:
            ReleaseDefect: TRAFFIC_INVALID.
        """
        for _ in range(_MOST_TRIES):
            service = self._service()
            if service is None:
                return None
            route = self._settle_route()
            record = kserve.in_force(service, route, self._now())
            if record == kserve.recorded(service) or record.generation != kserve.document(service).generation:
                return kserve.observed(service, record)
            try:
                self._cluster.replace(INFERENCE_SERVICES, kserve.with_record(service, record))
            except Conflict:
                continue
            return kserve.observed(service, record)
        raise self._busy()

    def _write(self, traffic: Traffic, before: Traffic, body: Object) -> None:
        """Write a document, if the last one is still the one before it; a status that changes does no harm."""
        trial = kserve.trial_route(self._spec.line, traffic, self._place)
        for _ in range(_MOST_TRIES):
            route, service = self._route(), self._service()
            now = kserve.document(service) if service else None
            if now is not None and now.generation != before.generation:
                raise self._overtaken(now, traffic)
            try:
                if route and kserve.attached(route) and not kserve.attached(trial):
                    self._cluster.replace(HTTP_ROUTES, {**route, "spec": trial["spec"]})
                if service:
                    self._cluster.replace(INFERENCE_SERVICES, kserve.laid_over(service, body))
                else:
                    self._cluster.create(INFERENCE_SERVICES, body)
            except Conflict:
                continue
            return
        raise self._busy()

    def _published(self, traffic: Traffic, before: Traffic) -> Refusal | None:
        """Publish the versions that are new in a document; the challenger's refusal."""
        for version in {traffic.champion, traffic.challenger} - {*before.slots.values(), None}:
            try:
                self._publish(str(version))
            except PackageDefect as defect:
                if version == traffic.champion:
                    raise
                return Refusal(version=str(version), reason=defect.reason, message=defect.message)
        return None

    def _settle_route(self) -> Object | None:
        """Make the trial's route as the document says that is the last one after it was written."""
        for _ in range(_MOST_TRIES):
            route, service = self._route(), self._service()  # in this order: a route read first cannot be the newer one
            if service is None:
                return route
            wanted = kserve.trial_route(self._spec.line, kserve.document(service), self._place)
            try:
                if route is None:
                    self._cluster.create(HTTP_ROUTES, wanted)
                elif kserve.generation(route) != kserve.generation(wanted) or not _same(route, wanted):
                    self._cluster.replace(HTTP_ROUTES, kserve.laid_over(route, wanted))
                else:
                    return route
            except Conflict:
                continue
        raise self._busy()

    def _service(self) -> Object | None:
        return self._cluster.get(INFERENCE_SERVICES, kserve.service_name(self._spec.line))

    def _route(self) -> Object | None:
        return self._cluster.get(HTTP_ROUTES, kserve.route_name(self._spec.line))

    def _overtaken(self, there: Traffic, traffic: Traffic) -> Conflict:
        return Conflict(
            f"InferenceService {kserve.service_name(self._spec.line)} carries generation {there.generation}, and "
            f"{traffic.generation} cannot follow it; read it again"
        )

    def _busy(self) -> Conflict:
        return Conflict(
            f"the objects of {self._spec.line} changed {_MOST_TRIES} times while they were looked at; again"
        )


def _same(route: Object, wanted: Object) -> bool:
    """Whether a route is as wanted; the API server fills in defaults, so only what is wanted is compared."""
    return _covers(route.get("spec", {}), wanted["spec"])


def _covers(there: object, wanted: object) -> bool:
    if isinstance(wanted, dict):
        return isinstance(there, dict) and all(_covers(there.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, list):
        there = there or []  # the API server may leave an empty list out
        return isinstance(there, list) and len(there) == len(wanted) and all(map(_covers, there, wanted))
    return there == wanted


def publish_repository(settings: Settings, store: Store, line: str, version: str) -> str:
    """Put the model repository of a released version into S3, for KServe's storage initializer; its URI.

    The package is the released one: its signature and hashes are verified, and its graph gives the golden outputs.
    Again writes the same bytes again. KServe verifies nothing when it fetches: only the plant may write there.

    Raises:
        PackageDefect: it is not signed by this plant, not whole, or does not give the trained model's outputs.
        InfrastructureFault: the store did not answer.
    """
    manifest, bodies = read_released(settings, store, f"models/{line}/{version}")
    open_package(manifest, bodies, settings.threads, f"models/{line}/{version}")
    prefix = kserve.repository_prefix(line, version)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "repository"
        ModelRepository(root).write(line, version, manifest, bodies[MODEL_FILE])
        files = sorted((p for p in root.rglob("*") if p.is_file()), key=lambda p: p.name == CONFIG_FILE)
        for path in files:
            store.put(f"{prefix}/{path.relative_to(root).as_posix()}", path.read_bytes())
    return store.uri(prefix)
