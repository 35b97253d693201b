"""Is there any use in making this pod? What can never work is refused before the pod is made, with the reason.

Looks at the secret, the nodes and the quota, and has the API server check the pod without making it (dry run). Of pods
that work together, as many must fit at once as the work cannot do without.
What the plant's account may not look at is not checked: then the pod itself will tell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from aifactory.errors import Defect
from aifactory.reasons import ReasonCode
from orchestration import podfaults
from orchestration.pods import CONTAINER

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api, V1Node

log = logging.getLogger(__name__)

_DENIED = 403
_MISSING = 404
_TIMEOUT_S = 15
_QUOTA_NAMES = {"cpu": ("requests.cpu", "cpu", "limits.cpu"), "memory": ("requests.memory", "memory", "limits.memory")}


def check(
    api: CoreV1Api, namespace: str, pod: Mapping[str, Any], what: str, *, cluster_grows: bool, count: int = 1
) -> None:
    """Refuse a pod that this cluster can never run.

    Args:
        api: the cluster.
        namespace: where the pod is to be made.
        pod: its manifest.
        what: the work, for the message.
        cluster_grows: whether nodes are added on demand; then the present ones say nothing.
        count: how many such pods must run at once.

    Raises:
        Defect: SECRET_MISSING, NO_SUCH_NODE, REQUEST_TOO_LARGE, POD_INVALID or CLUSTER_DENIED.
        InfrastructureFault: QUOTA_EXCEEDED, CLUSTER_UNREACHABLE.
    """
    requests = _container(pod)["resources"]["requests"]
    _secrets(api, namespace, pod, what)
    if not cluster_grows:
        _nodes(api, pod["spec"].get("nodeSelector") or {}, requests, what, count)
    _quota(api, namespace, requests, what, count)
    _dry_run(api, namespace, pod, what)


def rights(api: CoreV1Api, namespace: str, needed: Mapping[tuple[str, str], tuple[str, ...]], what: str) -> None:
    """Refuse what the plant's account may not do.

    Args:
        api: the cluster.
        namespace: where.
        needed: API group and resource -> verbs.
        what: the work, for the message.

    Raises:
        Defect: CLUSTER_DENIED; it names the rights that are missing.
    """
    from kubernetes.client import AuthorizationV1Api

    reviews = AuthorizationV1Api(api.api_client)

    def may(group: str, resource: str, verb: str) -> bool:
        asked = {"namespace": namespace, "group": group, "resource": resource, "verb": verb}
        body = {"spec": {"resourceAttributes": asked}}
        try:
            review = _looked(lambda: reviews.create_self_subject_access_review(body, _request_timeout=_TIMEOUT_S))
        except _NotAllowed:
            return True
        return bool(review.status.allowed)

    missing = {
        f"{resource}{'.' if group else ''}{group}": [verb for verb in verbs if not may(group, resource, verb)]
        for (group, resource), verbs in needed.items()
    }
    told = "; ".join(f"{resource} ({', '.join(verbs)})" for resource, verbs in missing.items() if verbs)
    if told:
        raise Defect(
            ReasonCode.CLUSTER_DENIED,
            f"{what}: work on several machines needs more rights in namespace {namespace!r} than the plant's account "
            f"has: {told}; grant them (docs/kubernetes.md), or set compute.nodes to 1",
        )


def _secrets(api: CoreV1Api, namespace: str, pod: Mapping[str, Any], what: str) -> None:
    for source in _container(pod).get("envFrom") or []:
        name = source["secretRef"]["name"]
        try:
            _looked(partial(api.read_namespaced_secret, name, namespace, _request_timeout=_TIMEOUT_S))
        except _NotThere as missing:
            raise Defect(
                ReasonCode.SECRET_MISSING,
                f"{what}: there is no secret {name!r} in namespace {namespace!r}; make it with `make cluster-connect`",
            ) from missing
        except _NotAllowed:
            return


def _nodes(api: CoreV1Api, labels: Mapping[str, str], requests: Mapping[str, str], what: str, count: int) -> None:
    try:
        nodes = _looked(lambda: api.list_node(_request_timeout=_TIMEOUT_S)).items
    except _NotAllowed:
        return
    fitting = [n for n in nodes if all((n.metadata.labels or {}).get(k) == v for k, v in labels.items())]
    if not fitting:
        wanted = ", ".join(f"{k}={v}" for k, v in labels.items())
        raise Defect(
            ReasonCode.NO_SUCH_NODE,
            f"{what}: none of {len(nodes)} nodes has the labels {wanted or '(none asked for)'}; change "
            f"compute.node_labels or compute.gpu_class, or set AIF_CLUSTER_GROWS=true if nodes come on demand",
        )
    if not any(_holds(node, requests) for node in fitting):
        largest = {name: max((_given(n, name) for n in fitting), default=Decimal(0)) for name in requests}
        over = [f"{n} {requests[n]} of at most {largest[n]:f}" for n in requests if _quantity(requests[n]) > largest[n]]
        raise Defect(
            ReasonCode.REQUEST_TOO_LARGE,
            f"{what}: no node is that large: {', '.join(over) or 'not all of it on one'}; lower the line's compute, "
            f"or set AIF_CLUSTER_GROWS=true if nodes come on demand",
        )
    held = sum(_holds(node, requests) for node in fitting)
    if held < count:
        raise Defect(
            ReasonCode.REQUEST_TOO_LARGE,
            f"{what}: {count} pods must run at once and the {len(fitting)} fitting nodes hold {held} even when empty; "
            f"lower compute.nodes or what a pod asks for, or set AIF_CLUSTER_GROWS=true if nodes come on demand",
        )


def _holds(node: V1Node, requests: Mapping[str, str]) -> int:
    """How many pods an empty node holds."""
    asked = {name: _quantity(text) for name, text in requests.items()}
    return min(int(_given(node, name) // amount) for name, amount in asked.items() if amount)


def _given(node: V1Node, name: str) -> Decimal:
    return _quantity((node.status.allocatable or {}).get(name, "0"))


def _quota(api: CoreV1Api, namespace: str, requests: Mapping[str, str], what: str, count: int) -> None:
    """A request beyond the whole quota can never be; one beyond what is left of it may be, later."""
    try:
        quotas = _looked(lambda: api.list_namespaced_resource_quota(namespace, _request_timeout=_TIMEOUT_S)).items
    except _NotAllowed:
        return
    together = f" for each of {count} pods" if count > 1 else ""
    for quota in quotas:
        for name, asked in requests.items():
            for entry in _QUOTA_NAMES.get(name, (f"requests.{name}",)):
                hard = (quota.spec.hard or {}).get(entry)
                if hard is not None and count * _quantity(asked) > _quantity(hard):
                    raise Defect(
                        ReasonCode.REQUEST_TOO_LARGE,
                        f"{what}: {name} {asked}{together} is more than the whole quota {quota.metadata.name!r} of "
                        f"namespace {namespace!r} ({entry} {hard}); lower the line's compute, or ask for more quota",
                    )


def _dry_run(api: CoreV1Api, namespace: str, pod: Mapping[str, Any], what: str) -> None:
    """The API server's own check: schema, admission, priority class, quota."""
    body = {**pod, "metadata": {**pod["metadata"], "generateName": "check-"}}
    try:
        _looked(lambda: api.create_namespaced_pod(namespace, body, dry_run="All", _request_timeout=_TIMEOUT_S))
    except _NotThere as missing:
        raise Defect(
            ReasonCode.CLUSTER_DENIED, f"{what}: there is no namespace {namespace!r}; `make cluster-connect` makes it"
        ) from missing
    except _NotAllowed as refused:
        raise podfaults.api_fault(what, refused.error) from refused.error


class _NotAllowed(Exception):
    def __init__(self, error: Any) -> None:
        self.error = error
        super().__init__()


class _NotThere(Exception):
    """The API knows no such thing."""


def _looked(ask: Callable[[], Any]) -> Any:
    """Ask the API. A refusal is `_NotAllowed` or `_NotThere`; anything else is the factory's own error."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return ask()
    except ApiException as error:
        if error.status == _MISSING:
            raise _NotThere from error
        if error.status == _DENIED:
            raise _NotAllowed(error) from error
        raise podfaults.api_fault("looking at the cluster", error) from error
    except HTTPError as error:
        raise podfaults.unreachable("looking at the cluster", error) from error


def _container(pod: Mapping[str, Any]) -> dict[str, Any]:
    return next(c for c in pod["spec"]["containers"] if c["name"] == CONTAINER)


def _quantity(text: str) -> Decimal:
    from kubernetes.utils.quantity import parse_quantity

    return Decimal(parse_quantity(text))
