"""The same suites over a real API server with the CRDs' fields, KServe's controllers played.

Takes any cluster that KUBECONFIG names and that has no KServe of its own: the two kinds are made for the tests and
taken away after them.
"""

from __future__ import annotations

import copy
import os
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from tests.serving.custom_objects_conformance import CustomObjectsConformance
from tests.serving.played_kserve import PLACE, KServeWorld, ObjectsWithStatus, a_line, schema_of
from tests.serving.rollout_conformance import RolloutConformance, World

from aifactory.serving.kserve import Object, Place
from aifactory.serving.kserveadapter import HTTP_ROUTES, INFERENCE_SERVICES, ClusterObjects, Resource
from aifactory.store import Conflict

pytestmark = [
    pytest.mark.kubernetes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not os.environ.get("KUBECONFIG"), reason="needs a cluster: KUBECONFIG not set"),
]

KINDS = {INFERENCE_SERVICES: "InferenceService", HTTP_ROUTES: "HTTPRoute"}
_CONFLICT, _NOT_FOUND = 409, 404


class RealObjects(ClusterObjects):
    """With what a controller writes."""

    def put_status(self, resource: Resource, body: Object) -> None:
        from kubernetes.client.exceptions import ApiException

        try:
            self._api.replace_namespaced_custom_object_status(
                **self._where(resource), name=body["metadata"]["name"], body=body
            )
        except ApiException as error:
            if error.status != _CONFLICT:
                raise
            raise Conflict(str(error)) from error


def definition(resource: Resource) -> dict[str, Any]:
    schema = copy.deepcopy(schema_of(resource))
    schema["properties"]["metadata"] = {"type": "object"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{resource.plural}.{resource.group}",
            "labels": {"ai-factory/test": "true"},
            "annotations": {"api-approved.kubernetes.io": "unapproved, made by a test and taken away after it"},
        },
        "spec": {
            "group": resource.group,
            "scope": "Namespaced",
            "names": {
                "kind": KINDS[resource],
                "listKind": f"{KINDS[resource]}List",
                "plural": resource.plural,
                "singular": KINDS[resource].lower(),
            },
            "versions": [
                {
                    "name": resource.version,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


@pytest.fixture(scope="module")
def kinds() -> Iterator[None]:
    """Both kinds, served by the API server."""
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException

    api = client.ApiextensionsV1Api(config.new_client_from_config())
    made: list[str] = []
    try:
        for resource in KINDS:
            body = definition(resource)
            name = body["metadata"]["name"]
            try:
                api.create_custom_resource_definition(body)
            except ApiException as error:
                if error.status != _CONFLICT:
                    raise
                pytest.skip(f"the cluster has {name} of its own")
            made.append(name)
            for _ in range(100):
                told = api.read_custom_resource_definition(name).status
                if any(c.type == "Established" and c.status == "True" for c in (told and told.conditions) or []):
                    break
                time.sleep(0.1)
        yield
    finally:
        for name in made:
            api.delete_custom_resource_definition(name)


@pytest.fixture
def namespace(kinds: None) -> Iterator[str]:
    from kubernetes import client, config

    core = client.CoreV1Api(config.new_client_from_config())
    name = f"serving-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


@pytest.fixture
def there(namespace: str) -> Place:
    return Place(**{**vars(PLACE), "namespace": namespace})


class TestApiServer(CustomObjectsConformance):
    @pytest.fixture
    def place(self, there: Place) -> Place:
        return there

    @pytest.fixture
    def cluster(self, namespace: str) -> ObjectsWithStatus:
        return RealObjects(namespace)


class TestKServeOnApiServer(RolloutConformance):
    @pytest.fixture
    def world(self, there: Place) -> World:
        return KServeWorld(RealObjects(there.namespace), a_line(), there)
