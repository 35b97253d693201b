"""Connecting a Kubernetes cluster to the plant: from then on, training runs in pods.

What it takes is a namespace, a secret in it with the pods' own S3 key, and an Airflow connection. Where that
connection exists, work goes to pods; without it, to this machine.
"""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aifactory.settings import Settings
from plant.api import AirflowApi, airflow_api
from plant.errors import PlantError
from plant.secrets import read_secrets

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

log = logging.getLogger(__name__)

NAMESPACE = "ai-factory"
_TIMEOUT_S = 15


def connect(
    settings: Settings,
    kubeconfig: Path,
    context: str | None = None,
    namespace: str = NAMESPACE,
    server: str | None = None,
) -> str:
    """Make the namespace and the secret, and the Airflow connection; safe to repeat.

    Args:
        settings: of a plant that runs.
        kubeconfig: how to reach the cluster; what it says is kept in the connection, encrypted by Airflow.
        context: of the kubeconfig; default its current one.
        namespace: where pods are made.
        server: URL of the API as Airflow reaches it, where that is not the kubeconfig's: to a plant in containers,
            loopback is a container.

    Returns:
        What was connected, in words.

    Raises:
        PlantError: the kubeconfig is of no use, the cluster or Airflow does not answer or refuses.
    """
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    whole = self_contained(kubeconfig, context)
    api = _api(kubeconfig, whole)
    try:
        _ensure_namespace(api, namespace)
        _write_secret(api, namespace, settings)
        nodes = len(api.list_node(_request_timeout=_TIMEOUT_S).items)
    except ApiException as error:
        raise PlantError(
            f"the cluster of {kubeconfig} answered {error.status} {error.reason}; its account needs the rights of "
            f"docs/kubernetes.md"
        ) from error
    except HTTPError as error:
        raise PlantError(f"the cluster of {kubeconfig} does not answer: {error}") from error
    if server:
        whole = reached_by(whole, server)
    _ensure_connection(settings, {"kube_config": json.dumps(whole), "namespace": namespace})
    outside = sorted({"exec", "auth-provider", "tokenFile"} & set(whole["users"][0]["user"]))
    if outside:
        log.warning(
            "the kubeconfig's user has %s: Airflow's scheduler must find it under the same path, which the plant in "
            "containers does not; a service account's token needs nothing (docs/kubernetes.md)",
            " and ".join(outside),
        )
    return (
        f"namespace {namespace} of a cluster of {nodes} nodes, as the Airflow connection {settings.kubernetes_conn_id}"
    )


def disconnect(settings: Settings) -> bool:
    """Remove the Airflow connection, so that work runs on this machine again; whether there was one."""
    api = airflow_api(settings)
    known = _known(api, settings)
    if known:
        api.request("DELETE", f"/connections/{settings.kubernetes_conn_id}")
    return known


def self_contained(kubeconfig: Path, context: str | None = None) -> dict[str, Any]:
    """A kubeconfig of one context, with the content of the certificates that it names: other machines read it too.

    A `tokenFile` stays a path, absolute, because such tokens change, and a program (`exec`) stays a program.

    Raises:
        PlantError: it cannot be read, or has no such context.
    """
    import yaml

    try:
        config = yaml.safe_load(kubeconfig.read_text())
        wanted = context or config["current-context"]
        [chosen] = [c for c in config["contexts"] if c["name"] == wanted]
        [cluster] = [c for c in config["clusters"] if c["name"] == chosen["context"]["cluster"]]
        [user] = [u for u in config["users"] if u["name"] == chosen["context"]["user"]]
        for part in (cluster["cluster"], user["user"]):
            for name in [n for n in ("certificate-authority", "client-certificate", "client-key") if n in part]:
                content = (kubeconfig.parent / part.pop(name)).read_bytes()
                part[f"{name}-data"] = base64.b64encode(content).decode()
        if "tokenFile" in user["user"]:
            user["user"]["tokenFile"] = str((kubeconfig.parent / user["user"]["tokenFile"]).resolve())
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        named = f"{kubeconfig} and context {context!r}" if context else str(kubeconfig)
        raise PlantError(f"{named}: no kubeconfig that can be used: {type(error).__name__}: {error}") from error
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": wanted,
        "contexts": [chosen], "clusters": [cluster], "users": [user],
    }  # fmt: skip


def reached_by(whole: dict[str, Any], server: str) -> dict[str, Any]:
    """A kubeconfig of one context whose API is reached by another URL; its certificate stays that of the first."""
    [named] = whole["clusters"]
    known = named["cluster"]
    name = known.get("tls-server-name") or urlsplit(known["server"]).hostname
    return whole | {"clusters": [named | {"cluster": known | {"server": server, "tls-server-name": name}}]}


def _api(kubeconfig: Path, whole: dict[str, Any]) -> CoreV1Api:
    from kubernetes import config
    from kubernetes.client import CoreV1Api
    from kubernetes.config.config_exception import ConfigException

    try:
        return CoreV1Api(config.new_client_from_config_dict(whole))
    except (OSError, ConfigException, ValueError) as error:
        raise PlantError(f"{kubeconfig} is no kubeconfig that can be used: {error}") from error


def _ensure_namespace(api: CoreV1Api, namespace: str) -> None:
    from kubernetes.client.exceptions import ApiException

    try:
        api.create_namespace({"metadata": {"name": namespace}}, _request_timeout=_TIMEOUT_S)
    except ApiException as error:
        if error.status not in {403, 409}:  # it is there, or somebody else makes namespaces here
            raise


def _write_secret(api: CoreV1Api, namespace: str, settings: Settings) -> None:
    """The pods' own S3 key, which reads the factory's bucket and writes candidates and jobs alone."""
    from kubernetes.client.exceptions import ApiException

    known = read_secrets(settings.secrets_file)
    values = {
        "AIF_S3_ACCESS_KEY": known["PLANT_TRAINER_ACCESS_KEY"],
        "AIF_S3_SECRET_KEY": known["PLANT_TRAINER_SECRET_KEY"],
    }
    secret = {
        "metadata": {"name": settings.pod_secret, "labels": {"ai-factory/plant": settings.plant_id}},
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in values.items()},
    }
    try:
        api.create_namespaced_secret(namespace, secret, _request_timeout=_TIMEOUT_S)
    except ApiException as error:
        if error.status != 409:
            raise
        api.patch_namespaced_secret(settings.pod_secret, namespace, secret, _request_timeout=_TIMEOUT_S)


def _ensure_connection(settings: Settings, extra: dict[str, Any]) -> None:
    connection = {
        "connection_id": settings.kubernetes_conn_id,
        "conn_type": "kubernetes",
        "description": "Where training runs in pods. Without this connection it runs on this machine.",
        "extra": json.dumps(extra),
    }
    api = airflow_api(settings)
    if _known(api, settings):
        api.request("PATCH", f"/connections/{settings.kubernetes_conn_id}", json=connection)
    else:
        api.request("POST", "/connections", json=connection)


def _known(api: AirflowApi, settings: Settings) -> bool:
    found = api.request("GET", "/connections", params={"connection_id_pattern": settings.kubernetes_conn_id})
    return any(c["connection_id"] == settings.kubernetes_conn_id for c in found["connections"])
