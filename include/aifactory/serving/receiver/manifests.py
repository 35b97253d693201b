"""`python -m aifactory.serving.receiver.manifests | kubectl apply -f -`: the receiver in KServe's namespace.

One List of JSON: a Deployment of one pod (two would each see half of the events), a Service, an account that may read
the InferenceServices of its namespace and nothing else, and a NetworkPolicy that lets KServe's pods alone reach it: who
could send events could forge what a rollout is judged on.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from aifactory.serving.kserve import LOG_NAME
from aifactory.settings import Settings, load_settings

_PORT = 8080
_USER = 10001
_HOME = "/factory/serving"
_SPARE_MB = 256
_PLACED_ON = "serving.kserve.io/inferenceservice"
"""Label that KServe gives to the pods of an InferenceService."""


def manifests(settings: Settings) -> list[dict[str, Any]]:
    """All that is to be there."""
    subject = {"kind": "ServiceAccount", "name": LOG_NAME, "namespace": settings.kserve_namespace}
    rule = {"apiGroups": ["serving.kserve.io"], "resources": ["inferenceservices"], "verbs": ["get", "list"]}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": LOG_NAME}
    here = {"app": LOG_NAME}
    made: list[tuple[str, str, dict[str, Any]]] = [
        ("v1", "ServiceAccount", {"automountServiceAccountToken": False}),
        ("rbac.authorization.k8s.io/v1", "Role", {"rules": [rule]}),
        ("rbac.authorization.k8s.io/v1", "RoleBinding", {"roleRef": role, "subjects": [subject]}),
        ("v1", "Service", {"spec": {"selector": here, "ports": [{"name": "http", "port": 80, "targetPort": _PORT}]}}),
        ("networking.k8s.io/v1", "NetworkPolicy", {"spec": _policy(here)}),
        ("apps/v1", "Deployment", {"spec": _deployment(settings, here)}),
    ]
    metadata = {"name": LOG_NAME, "namespace": settings.kserve_namespace, "labels": here}
    return [{"apiVersion": version, "kind": kind, "metadata": metadata, **rest} for version, kind, rest in made]


def _policy(here: dict[str, str]) -> dict[str, Any]:
    sender = {"podSelector": {"matchExpressions": [{"key": _PLACED_ON, "operator": "Exists"}]}}
    ports = [{"protocol": "TCP", "port": _PORT}]
    return {
        "podSelector": {"matchLabels": here},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [sender], "ports": ports}],
    }


def _deployment(settings: Settings, here: dict[str, str]) -> dict[str, Any]:
    """One pod; the old one ends before the new one begins, so that request and answer meet."""
    return {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": here},
        "template": {"metadata": {"labels": here}, "spec": _pod(settings)},
    }


def _pod(settings: Settings) -> dict[str, Any]:
    resources = {"cpu": "1", "memory": "1Gi", "ephemeral-storage": f"{settings.live_spool_mb + 2 * _SPARE_MB}M"}
    secret = settings.pod_pull_secret
    return {
        "serviceAccountName": LOG_NAME,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"imagePullSecrets": [{"name": secret}]} if secret else {}),
        "containers": [
            {
                "name": "receiver",
                "image": settings.serving_image,
                "command": ["python", "-m", "aifactory.serving.receiver"],
                "args": ["--port", str(_PORT)],
                "env": [{"name": name, "value": value} for name, value in _environment(settings).items()],
                "envFrom": [{"secretRef": {"name": settings.kserve_log_secret}}],
                "ports": [{"name": "http", "containerPort": _PORT, "protocol": "TCP"}],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": _PORT}, "periodSeconds": 2},
                "livenessProbe": {"httpGet": {"path": "/live", "port": _PORT}, "timeoutSeconds": 5},
                "resources": {"requests": resources, "limits": resources},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    {"name": "home", "mountPath": _HOME},
                    {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 - where a volume is mounted
                ],
            }
        ],
        # Outlives the program, not its pod: what a pod takes with it are segments of the last seconds
        "volumes": [
            {"name": "home", "emptyDir": {"sizeLimit": f"{settings.live_spool_mb + _SPARE_MB}M"}},
            {"name": "scratch", "emptyDir": {"sizeLimit": f"{_SPARE_MB}M"}},
        ],
    }


def _environment(settings: Settings) -> dict[str, str]:
    """What the program reads; its S3 key comes from the secret."""
    same = ("kserve_namespace", "s3_region", "factory_bucket", "live_spool_mb", "serving_max_request_mb")
    return settings.variables(same) | {"AIF_HOME": _HOME, "AIF_S3_ENDPOINT": settings.pod_s3_url}


def main() -> int:
    """Print them."""
    listed = {"apiVersion": "v1", "kind": "List", "items": manifests(load_settings())}
    sys.stdout.write(json.dumps(listed, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
