"""What custom objects do, in memory and on a real API server: subclass and give `cluster`, empty, and `place`."""

from __future__ import annotations

import pytest
from tests.serving.played_kserve import ObjectsWithStatus, a_line
from tests.serving.rollout_conformance import now

from aifactory.reasons import ReasonCode
from aifactory.serving import kserve
from aifactory.serving.kserve import Object, Place
from aifactory.serving.kserveadapter import HTTP_ROUTES, INFERENCE_SERVICES, Resource
from aifactory.serving.traffic import Stage, Traffic, abort, begin
from aifactory.store import Conflict


def documents() -> list[Traffic]:
    """A document before any version, and one of each kind of manifest after it."""
    empty = Traffic(line=a_line().line, generation=1, since=now())
    first = begin(empty, "1", run="r", now=now())[0]
    champion = Traffic(line=empty.line, generation=9, since=now(), slots={"a": "1", "b": None}, stage=Stage.PROMOTED)
    loading = begin(champion, "2", run="s", now=now())[0]
    shadow = loading.model_copy(update={"stage": Stage.SHADOW})
    canary = loading.model_copy(update={"stage": Stage.CANARY, "percent": 20})
    return [empty, first, champion, loading, shadow, canary, abort(canary, ReasonCode.OPERATOR, "no", now())[0]]


class CustomObjectsConformance:
    """The suite; see the module."""

    @pytest.fixture
    def cluster(self) -> ObjectsWithStatus:
        raise NotImplementedError

    @pytest.fixture
    def place(self) -> Place:
        raise NotImplementedError

    @pytest.fixture
    def body(self, place: Place) -> Object:
        return kserve.inference_service(a_line(), documents()[1], place)

    def there(self, cluster: ObjectsWithStatus, body: Object) -> Object:
        found = cluster.get(INFERENCE_SERVICES, body["metadata"]["name"])
        assert found is not None
        return found

    def test_what_is_not_there_is_none(self, cluster: ObjectsWithStatus) -> None:
        assert cluster.get(INFERENCE_SERVICES, "nothing") is None

    def test_what_has_a_label_is_listed_and_nothing_else(self, cluster: ObjectsWithStatus, body: Object) -> None:
        assert cluster.labelled(INFERENCE_SERVICES, kserve.LINE_LABEL) == []
        cluster.create(INFERENCE_SERVICES, body)
        other = {**body, "metadata": {**body["metadata"], "name": "another", "labels": {"team": "theirs"}}}
        cluster.create(INFERENCE_SERVICES, other)
        (found,) = cluster.labelled(INFERENCE_SERVICES, kserve.LINE_LABEL)
        assert found["metadata"]["name"] == body["metadata"]["name"]
        assert kserve.document(found) == kserve.document(body)

    def test_a_name_is_made_once(self, cluster: ObjectsWithStatus, body: Object) -> None:
        cluster.create(INFERENCE_SERVICES, body)
        with pytest.raises(Conflict):
            cluster.create(INFERENCE_SERVICES, body)

    def test_of_two_who_read_the_same_one_writes(self, cluster: ObjectsWithStatus, body: Object) -> None:
        cluster.create(INFERENCE_SERVICES, body)
        one, other = self.there(cluster, body), self.there(cluster, body)
        one["spec"]["predictor"]["minReplicas"] = 7
        other["spec"]["predictor"]["minReplicas"] = 8
        cluster.replace(INFERENCE_SERVICES, one)
        with pytest.raises(Conflict):
            cluster.replace(INFERENCE_SERVICES, other)
        assert self.there(cluster, body)["spec"]["predictor"]["minReplicas"] == 7

    def test_a_status_is_a_write_that_a_reader_from_before_loses_to(
        self, cluster: ObjectsWithStatus, body: Object
    ) -> None:
        cluster.create(INFERENCE_SERVICES, body)
        before = self.there(cluster, body)
        cluster.put_status(INFERENCE_SERVICES, {**before, "status": {"deploymentMode": "Standard"}})
        with pytest.raises(Conflict):
            cluster.replace(INFERENCE_SERVICES, {**before, "spec": {"predictor": {"minReplicas": 1}}})
        seen = self.there(cluster, body)
        assert (seen["status"], seen["spec"]) == ({"deploymentMode": "Standard"}, before["spec"])

    def test_a_write_leaves_the_status_and_the_generation_counts_specs(
        self, cluster: ObjectsWithStatus, body: Object
    ) -> None:
        cluster.create(INFERENCE_SERVICES, {**body, "status": {"deploymentMode": "Lost"}})
        first = self.there(cluster, body)
        assert "status" not in first
        cluster.put_status(INFERENCE_SERVICES, {**first, "status": {"deploymentMode": "Standard"}})
        seen = self.there(cluster, body)
        seen["metadata"]["annotations"]["ai-factory/note"] = "x"
        cluster.replace(INFERENCE_SERVICES, {**seen, "status": {"deploymentMode": "Lost"}})
        noted = self.there(cluster, body)
        assert noted["status"] == {"deploymentMode": "Standard"}
        assert noted["metadata"]["generation"] == first["metadata"]["generation"]
        noted["spec"]["predictor"]["minReplicas"] = 9
        cluster.replace(INFERENCE_SERVICES, noted)
        assert self.there(cluster, body)["metadata"]["generation"] == first["metadata"]["generation"] + 1

    def test_to_replace_what_is_gone_is_a_conflict(self, cluster: ObjectsWithStatus, body: Object) -> None:
        body["metadata"]["resourceVersion"] = "1"
        with pytest.raises(Conflict):
            cluster.replace(INFERENCE_SERVICES, body)

    def test_unknown_fields_are_lost_without_a_word(self, cluster: ObjectsWithStatus, body: Object) -> None:
        body["spec"]["predictor"]["canaryTraffic"] = 20
        cluster.create(INFERENCE_SERVICES, body)
        assert "canaryTraffic" not in self.there(cluster, body)["spec"]["predictor"]

    @pytest.mark.parametrize("number", range(7))
    def test_no_field_of_a_manifest_is_lost(self, cluster: ObjectsWithStatus, place: Place, number: int) -> None:
        traffic = documents()[number]
        bodies: list[tuple[Resource, Object]] = [
            (INFERENCE_SERVICES, kserve.inference_service(a_line(), traffic, place)),
            (HTTP_ROUTES, kserve.trial_route(a_line().line, traffic, place)),
        ]
        for resource, body in bodies:
            cluster.create(resource, body)
            kept = cluster.get(resource, body["metadata"]["name"])
            assert kept is not None
            assert kept["spec"] == body["spec"]
            assert kept["metadata"]["annotations"] == body["metadata"]["annotations"]
