"""The edge package with the real stores: made of a released version once, refused when anything of it is altered."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.model_rows import days_of, small_line
from tests.training_lines import REQUEST, shipped

from aifactory.edge import edge_prefix, load_edge
from aifactory.edge_device import open_edge
from aifactory.errors import PackageDefect, ReleaseDefect, SpecError
from aifactory.factory import Factory
from aifactory.ledger import EventKind, ProductionEvent
from aifactory.line import Edge, LineSpec
from aifactory.packaging import MANIFEST_FILE, MODEL_FILE, WEIGHTS_FILE, load_package
from aifactory.reasons import ReasonCode
from aifactory.signing import SIGNATURE_FILE
from aifactory.stages import train

pytestmark = pytest.mark.integration

FILES = (MODEL_FILE, MANIFEST_FILE, SIGNATURE_FILE)
ROOMY = Edge(max_latency_ms=1000)


def registered(f: Factory, tmp_path: Path, recipe: str) -> tuple[LineSpec, str, str]:
    """A line with edge packages, and an order of it with its version."""
    recipes = {
        "gradient_boosting": {"parameters": {"num_trees": 20}},
        "tabular_mlp": {"parameters": {"epochs": 6, "hidden": [128, 64], "batch_rows": 128}},
    }
    line = small_line(model={"recipe": recipe, "recipes": recipes})
    spec = shipped(f, tmp_path, line.model_copy(update={"edge": ROOMY}))
    order_id = train.resolve_order(f, spec, REQUEST)["order_id"]
    train.train(f, spec, order_id, "challenger")
    assert train.evaluate(f, spec, order_id)["passed"]
    train.train(f, spec, order_id, "refit")
    with pytest.raises(ReleaseDefect, match="is no version"):
        train.edge(f, spec, order_id)
    return spec, order_id, train.register(f, spec, order_id)["version"]


def ends(f: Factory, spec: LineSpec, order_id: str) -> list[ProductionEvent]:
    events = f.ledger.events(line=spec.line, station="train", unit=f"{order_id}/edge")
    assert {e.unit_kind for e in events} == {"edge"}
    return [e for e in events if e.event is not EventKind.STARTED]


@contextmanager
def altered(f: Factory, key: str, body: bytes | None) -> Iterator[None]:
    kept = f.store.get(key)
    f.store.delete(key) if body is None else f.store.put(key, body)
    yield
    f.store.put(key, kept)


def refused(f: Factory, spec: LineSpec, version: str, code: ReasonCode, rerun_of: str = "") -> None:
    """Neither opened nor, where an order is given, taken by a rerun of its task."""
    with pytest.raises(PackageDefect) as caught:
        load_edge(f, spec.line, version)
    assert caught.value.reason is code
    if rerun_of:
        with pytest.raises(PackageDefect):
            train.edge(f, spec, rerun_of)


def test_from_a_version_to_a_device(factory_mlflow: Factory, tmp_path: Path) -> None:
    f = factory_mlflow
    spec, order_id, version = registered(f, tmp_path, "tabular_mlp")
    prefix = edge_prefix(spec.line, version)

    # refused by a limit: told, on the record once, and nothing is written
    strict = spec.model_copy(update={"edge": Edge(max_score_difference=1e-9, max_size_ratio=0.01)})
    for _ in range(2):
        verdict = train.edge(f, strict, order_id)
        assert [r["code"] for r in verdict["reasons"]] == ["EDGE_SCORES", "EDGE_SIZE"]
        assert verdict["passed"] is False
    [event] = ends(f, spec, order_id)
    assert (event.event, event.reason, event.num_bad) == (EventKind.SCRAPPED, ReasonCode.EDGE_SCORES, 1)
    assert event.detail["reasons"] == verdict["reasons"]
    assert f.store.list(f"{prefix}/") == []

    # made once
    made = train.edge(f, spec, order_id)
    assert (made["passed"], made["reasons"], made["model"]) == (True, [], f"{spec.line}/{version}"), made["measured"]
    files = {o.key: o.etag for o in f.store.list("") if not o.key.startswith("mlflow/")}
    assert train.edge(f, spec, order_id) == made
    assert {o.key: o.etag for o in f.store.list("") if not o.key.startswith("mlflow/")} == files
    assert {o.key for o in f.store.list(f"{prefix}/")} == {f"{prefix}/{name}" for name in FILES}
    assert [e.event for e in ends(f, spec, order_id)] == [EventKind.SCRAPPED, EventKind.PASSED]
    measured = made["measured"]
    assert abs(measured["metric_drop"]) <= spec.edge.max_metric_drop  # type: ignore[union-attr]
    assert measured["full_metric"] > 0.55
    assert 0 < measured["mean_score_difference"] < measured["max_score_difference"] < 0.05
    assert 0.1 < measured["size_ratio"] < 0.7
    assert measured["num_rows"] > 500

    # opened here and on a device
    model, source = load_edge(f, spec.line, version), load_package(f, made["source"])
    assert model.manifest["edge"]["source_digest"] == source.manifest["digest"]
    assert model.manifest["trained_until"] == source.trained_until
    golden = model.manifest["golden"]
    assert np.allclose(golden["full_outputs"], source.manifest["golden"]["outputs"], atol=1e-5)
    assert golden["outputs"] != golden["full_outputs"]
    folder = tmp_path / "device"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(f.store.get(f"{prefix}/{name}"))
    rows = days_of("2013-02-20", "2013-02-20")
    device = open_edge(folder, base64.b64decode(f.settings.verifying_key), f"{spec.line}/{version}")
    scores = device.predict(rows.to_pydict())
    assert np.array_equal(scores, model.predict(rows.to_pydict()))
    assert np.abs(scores - source.predict(rows)).max() < 0.05

    # altered: refused, here and by a rerun of the task
    for name in (MODEL_FILE, MANIFEST_FILE):
        body = f.store.get(f"{prefix}/{name}")
        for place in (0, len(body) // 2, len(body) - 2):
            with altered(f, f"{prefix}/{name}", body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]):
                refused(f, spec, version, ReasonCode.PACKAGE_INVALID, order_id)
    with altered(f, f"{prefix}/{SIGNATURE_FILE}", f.store.get(f"{made['source']}/{SIGNATURE_FILE}")):
        refused(f, spec, version, ReasonCode.PACKAGE_UNSIGNED, order_id)
    with altered(f, f"{prefix}/{SIGNATURE_FILE}", None):
        refused(f, spec, version, ReasonCode.PACKAGE_UNSIGNED)
    load_edge(f, spec.line, version)

    # whole packages, well signed, that are not the one that is wanted
    for name in FILES:
        f.store.put(f"{edge_prefix(spec.line, '99')}/{name}", f.store.get(f"{prefix}/{name}"))
    refused(f, spec, "99", ReasonCode.PACKAGE_INVALID)
    for name in (*FILES, WEIGHTS_FILE):
        f.store.put(f"{edge_prefix(spec.line, '98')}/{name}", f.store.get(f"{made['source']}/{name}"))
    refused(f, spec, "98", ReasonCode.PACKAGE_INVALID)

    # a try that was cut off before it signed: nothing of what it left is trusted
    left = f.store.get(f"{prefix}/{MANIFEST_FILE}")
    f.store.delete(f"{prefix}/{SIGNATURE_FILE}")
    f.store.put(f"{prefix}/{MODEL_FILE}", b"half")
    assert train.edge(f, spec, order_id) == made
    assert f.store.get(f"{prefix}/{MANIFEST_FILE}") == left
    load_edge(f, spec.line, version)

    # the released package itself, altered before an edge package is made of it
    for name in FILES:
        f.store.delete(f"{prefix}/{name}")
    body = f.store.get(f"{made['source']}/{MODEL_FILE}")
    with altered(f, f"{made['source']}/{MODEL_FILE}", body[:-1] + b"\0"), pytest.raises(PackageDefect):
        train.edge(f, spec, order_id)
    assert f.store.list(f"{prefix}/") == []


def test_trees_have_no_edge_package_and_say_so(factory_mlflow: Factory, tmp_path: Path) -> None:
    f = factory_mlflow
    spec, order_id, version = registered(f, tmp_path, "gradient_boosting")
    verdicts: list[dict[str, Any]] = [train.edge(f, spec, order_id) for _ in range(2)]
    assert verdicts[0] == verdicts[1]
    assert (verdicts[0]["passed"], verdicts[0]["measured"]) == (False, None)
    assert [r["code"] for r in verdicts[0]["reasons"]] == ["EDGE_NOT_QUANTISABLE"]
    [event] = ends(f, spec, order_id)
    assert (event.event, event.reason) == (EventKind.DECIDED, ReasonCode.EDGE_NOT_QUANTISABLE)
    assert f.store.list(f"{edge_prefix(spec.line, version)}/") == []
    with pytest.raises(SpecError, match="has no section `edge`"):
        train.edge(f, spec.model_copy(update={"edge": None}), order_id)
