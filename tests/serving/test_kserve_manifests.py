"""Manifests of any line and any document, held against the schemas of KServe 0.21 and the Gateway API."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.serving.custom_objects_conformance import documents
from tests.serving.played_kserve import PLACE, a_line, pruned, schema_of, strict
from tests.serving.rollout_conformance import now

from aifactory.line import LineSpec, ServingPods
from aifactory.reasons import ReasonCode
from aifactory.serving import kserve
from aifactory.serving.kserve import Object, Place
from aifactory.serving.kserveadapter import HTTP_ROUTES, INFERENCE_SERVICES, Resource
from aifactory.serving.traffic import Refusal, Rollout, Stage, Traffic

_NAMES = st.from_regex(r"[a-z][a-z0-9]{1,8}(_[a-z0-9]{1,8}){0,3}", fullmatch=True)
_VERSIONS = st.integers(1, 999).map(str)


@st.composite
def pods(draw: st.DrawFn) -> ServingPods:
    fewest = draw(st.integers(1, 50))
    return ServingPods(
        min_replicas=fewest,
        max_replicas=fewest + draw(st.integers(0, 50)),
        cpus=draw(st.floats(0.0001, 128)),
        memory_gb=draw(st.floats(0.0001, 2000)),
    )


@st.composite
def specs(draw: st.DrawFn) -> LineSpec:
    spec = a_line()
    deployment = spec.deployment.model_copy(update={"pods": draw(pods())})
    return spec.model_copy(update={"line": draw(_NAMES), "deployment": deployment})


@st.composite
def documents_of_any_kind(draw: st.DrawFn, line: str) -> Traffic:
    """Every document that the model of documents lets pass, whether or not a rollout would ever write it."""
    stage = draw(st.sampled_from(Stage))
    slots = {slot: draw(st.none() | _VERSIONS) for slot in ("a", "b")}
    champion_slot = draw(st.sampled_from(["a", "b"]))
    if stage in (Stage.SHADOW, Stage.CANARY, Stage.PROMOTED):
        slots[champion_slot] = slots[champion_slot] or "1"
    challenger_slot = "b" if champion_slot == "a" else "a"
    if stage in (Stage.LOADING, Stage.SELF_TESTED, Stage.SHADOW, Stage.CANARY):
        slots[challenger_slot] = slots[challenger_slot] or "2"
    candidate = slots[challenger_slot] or "3"
    return Traffic(
        line=line,
        generation=draw(st.integers(0, 10_000)),
        slots=slots,
        champion_slot=champion_slot,
        stage=stage,
        percent=draw(st.integers(1, 99)) if stage is Stage.CANARY else 0,
        since=now(),
        rollout=Rollout(version=candidate, run=draw(st.text(max_size=20)), began=now()),
        reason=ReasonCode.OPERATOR if stage is Stage.ROLLED_BACK else None,
        explanation=draw(st.text(max_size=200)),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[LineSpec, Traffic, Place, Refusal | None]:
    spec = draw(specs())
    traffic = draw(documents_of_any_kind(spec.line))
    place = Place(
        bucket="factory",
        namespace=draw(st.from_regex(r"[a-z][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True)),
        gateway=draw(st.sampled_from(["kserve/kserve-ingress-gateway", "gateway"])),
        domain="models.example.com",
        runtime="kserve-tritonserver",
        service_account="ai-factory-serving",
        log_url=draw(st.sampled_from(["http://ai-factory-log.ai-factory", "http://log.example.com:8080/kserve"])),
    )
    refused = (
        Refusal(version=traffic.challenger, reason=ReasonCode.PACKAGE_INVALID, message=draw(st.text()))
        if (traffic.challenger and traffic.challenger != traffic.champion and draw(st.booleans()))
        else None
    )
    return spec, traffic, place, refused


@cache
def validator(resource: Resource) -> Any:
    return jsonschema.Draft202012Validator(strict(schema_of(resource)))


def names_of(service: Object) -> list[str]:
    predictors = [service["spec"]["predictor"], *(c["predictor"] for c in service["spec"]["canary"])]
    return [p["name"] for p in predictors if "name" in p]


@given(cases())
def test_every_manifest_fits_the_schema_and_no_field_would_be_pruned(
    case: tuple[LineSpec, Traffic, Place, Refusal | None],
) -> None:
    spec, traffic, place, refused = case
    service = kserve.inference_service(spec, traffic, place, refused)
    route = kserve.trial_route(spec.line, traffic, place)
    for resource, body in ((INFERENCE_SERVICES, service), (HTTP_ROUTES, route)):
        validator(resource).validate(body)
        assert pruned(body, schema_of(resource)) == body
        assert json.loads(json.dumps(body)) == body


@given(cases())
def test_a_manifest_says_what_its_document_says(case: tuple[LineSpec, Traffic, Place, Refusal | None]) -> None:
    spec, traffic, place, refused = case
    service = kserve.inference_service(spec, traffic, place, refused)
    assert kserve.document(service) == traffic
    assert kserve.generation(service) == traffic.generation
    wanted = [v for v in (traffic.champion, None if refused else traffic.challenger) if v]
    assert names_of(service) == [f"v{v}" for v in dict.fromkeys(wanted)]
    assert (service["metadata"]["annotations"]["serving.kserve.io/stop"] == "true") is (not wanted)
    assert ("networking.kserve.io/visibility" in service["metadata"]["labels"]) is (traffic.champion is None)
    pods = spec.deployment.pods
    canaries = service["spec"]["canary"]
    assert (
        service["spec"]["predictor"]["minReplicas"] - sum(c["predictor"]["minReplicas"] for c in canaries)
        == pods.min_replicas
    ), "what KServe takes off for ready canaries leaves the champion's fewest"
    assert service["spec"]["predictor"]["maxReplicas"] >= service["spec"]["predictor"]["minReplicas"]
    for canary in canaries:
        assert canary["trafficPercent"] == traffic.percent
        assert not {"maxReplicas", "scaleTarget", "scaleMetric"} & set(canary["predictor"]), "KServe refuses these"


@given(cases())
def test_every_pod_is_confined(case: tuple[LineSpec, Traffic, Place, Refusal | None]) -> None:
    spec, traffic, place, refused = case
    service = kserve.inference_service(spec, traffic, place, refused)
    for predictor in (service["spec"]["predictor"], *(c["predictor"] for c in service["spec"]["canary"])):
        assert predictor["automountServiceAccountToken"] is False
        assert predictor["securityContext"]["runAsNonRoot"] is True
        assert predictor["securityContext"]["runAsUser"] > 0
        assert predictor["model"]["securityContext"]["readOnlyRootFilesystem"] is True
        assert predictor["model"]["securityContext"]["allowPrivilegeEscalation"] is False
        assert predictor["model"]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        (model, agent) = [port["containerPort"] for port in predictor["model"]["ports"]]
        assert (model, agent) == (8080, 9081), "KServe's agent asks the first one, and listens at the second"
        resources = predictor["model"]["resources"]
        assert resources["requests"] == resources["limits"]
        assert not {"0m", "0M"} & set(resources["limits"].values())


@given(cases())
def test_only_a_trial_hangs_on_a_gateway_and_leads_to_the_agents_of_both(
    case: tuple[LineSpec, Traffic, Place, Refusal | None],
) -> None:
    spec, traffic, place, _ = case
    route = kserve.trial_route(spec.line, traffic, place)
    assert kserve.attached(route) is (traffic.stage in (Stage.SHADOW, Stage.CANARY))
    if traffic.stage not in (Stage.SHADOW, Stage.CANARY):
        return
    (rule,) = route["spec"]["rules"]
    champion, challenger = (
        {"name": f"{kserve.service_name(spec.line)}-v{version}-predictor", "port": 9081}
        for version in (traffic.champion, traffic.challenger)
    )
    if traffic.stage is Stage.SHADOW:
        assert rule["backendRefs"] == [champion]
        assert rule["filters"] == [{"type": "RequestMirror", "requestMirror": {"backendRef": challenger}}]
    elif traffic.champion != traffic.challenger:
        shares = [{**champion, "weight": 100 - traffic.percent}, {**challenger, "weight": traffic.percent}]
        assert rule["backendRefs"] == shares
        assert "filters" not in rule
    assert rule["matches"] == [{"method": "POST", "path": {"type": "Exact", "value": f"/v2/models/{spec.line}/infer"}}]


@given(cases())
def test_a_version_logs_to_its_own_address_whatever_its_part_is(
    case: tuple[LineSpec, Traffic, Place, Refusal | None],
) -> None:
    spec, traffic, place, refused = case
    service = kserve.inference_service(spec, traffic, place, refused)
    for predictor in (service["spec"]["predictor"], *(c["predictor"] for c in service["spec"]["canary"])):
        where = f"/{spec.line}/{predictor['name'].removeprefix('v')}" if "name" in predictor else ""
        headers = ["X-Request-Id", "Inference-Header-Content-Length"]
        assert predictor["logger"] == {"mode": "all", "url": f"{place.log_url}{where}", "metadataHeaders": headers}


@given(_NAMES, _NAMES)
def test_no_two_lines_share_a_name(one: str, other: str) -> None:
    names = [{kserve.service_name(line), kserve.route_name(line)} for line in (one, other)]
    assert (one == other) or not names[0] & names[1]


@pytest.mark.parametrize(
    ("resource", "where", "wrong"),
    [
        (INFERENCE_SERVICES, ("spec", "predictor"), {"canaryTraffic": 1}),
        (INFERENCE_SERVICES, ("spec",), {"shadow": []}),
        (INFERENCE_SERVICES, ("spec", "predictor", "model"), {"storageURI": "s3://x"}),
        (INFERENCE_SERVICES, ("spec", "predictor", "securityContext"), {"readOnlyRootFilesystem": True}),
        (INFERENCE_SERVICES, ("spec", "predictor"), {"minReplicas": "2"}),
        (INFERENCE_SERVICES, ("spec", "canary", 0), {"trafficPercent": "20"}),
        (INFERENCE_SERVICES, ("spec", "canary", 0), {"name": "v2"}),
        (HTTP_ROUTES, ("spec", "rules", 0, "filters", 0), {"mirror": {}}),
        (HTTP_ROUTES, ("spec",), {"rules": []}),
        (HTTP_ROUTES, ("spec",), {"hostnames": ["Flight_Delay.example.com"]}),
        (HTTP_ROUTES, ("spec", "rules", 0, "matches", 0, "path"), {"type": "Regex"}),
        (HTTP_ROUTES, ("spec", "rules", 0, "backendRefs", 0), {"weights": 1}),
    ],
)
def test_the_strict_schema_sees_what_an_api_server_would_lose_or_refuse(
    resource: Resource, where: tuple[str | int, ...], wrong: Object
) -> None:
    shadow = documents()[4]
    body = (
        kserve.inference_service(a_line(), shadow, PLACE)
        if resource is INFERENCE_SERVICES
        else kserve.trial_route(a_line().line, shadow, PLACE)
    )
    validator(resource).validate(body)
    place: Any = body
    for step in where:
        place = place[step]
    place.update(wrong)
    with pytest.raises(jsonschema.ValidationError):
        validator(resource).validate(body)


def test_fewer_than_the_fewest_pods_are_no_spec() -> None:
    with pytest.raises(ValidationError, match="min_replicas 3 exceeds max_replicas 2"):
        ServingPods(min_replicas=3, max_replicas=2, cpus=1, memory_gb=1)
