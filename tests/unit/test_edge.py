"""The edge package: an int8 graph beside the full one, its gates, and what a device takes and refuses."""

from __future__ import annotations

import base64
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.memory_store import MemoryStore
from tests.model_rows import CATEGORICAL, NUMERIC, TARGET, days_of

from aifactory import edge_device
from aifactory.edge import Measured, quantised, refusals
from aifactory.edge_device import EdgeModel, Refused, open_edge
from aifactory.line import Edge
from aifactory.packaging import MANIFEST_FILE, MODEL_FILE, feeds, golden, open_session, read_package, write_package
from aifactory.reasons import ReasonCode
from aifactory.recipes import check_parameters, load_recipe
from aifactory.recipes.base import TrainingFrame
from aifactory.signing import SIGNATURE_FILE, new_keys, sign

PRIVATE, PUBLIC = new_keys()
PEM = base64.b64decode(PUBLIC)
ROWS = days_of("2013-01-21", "2013-01-24")
FEATURES = {"features": {"categorical": CATEGORICAL, "numeric": NUMERIC}}
FILES = (MODEL_FILE, MANIFEST_FILE, SIGNATURE_FILE)


@cache
def full_graph(recipe: str) -> bytes:
    parameters = {
        "tabular_mlp": {"epochs": 3, "hidden": [64, 32], "batch_rows": 128},
        "gradient_boosting": {"num_trees": 5},
    }[recipe]
    frame = TrainingFrame.of(days_of("2013-01-01", "2013-01-20"), CATEGORICAL, NUMERIC, TARGET)
    return load_recipe(recipe).fit(frame, check_parameters(recipe, parameters), seed=1, threads=1).to_onnx()


@cache
def small_graph() -> bytes:
    made = quantised(full_graph("tabular_mlp"))
    assert made is not None
    return made


@cache
def model_of(small: bool) -> EdgeModel:
    return EdgeModel(FEATURES, open_session(small_graph() if small else full_graph("tabular_mlp"), 1))


def package(limit: float = 0.05, model: str = "small_line/3", shift: float = 0.0) -> dict[str, bytes]:
    """Files of a signed edge package; `shift` is put upon the full model's golden outputs."""
    store, rows = MemoryStore(), golden(ROWS.slice(0, 12), CATEGORICAL, NUMERIC)
    store.head = lambda key: None  # type: ignore[attr-defined]
    manifest = FEATURES | {
        "edge": {"model": model, "limits": {"max_score_difference": limit}},
        "golden": {
            "inputs": rows,
            "outputs": model_of(True).predict(rows).tolist(),
            "full_outputs": (model_of(False).predict(rows) + shift).tolist(),
        },
    }
    write_package(store, "edge", manifest, small_graph(), None)  # type: ignore[arg-type]
    _, bodies = read_package(store, "edge")  # type: ignore[arg-type]
    return bodies | {SIGNATURE_FILE: sign(bodies, PRIVATE)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return laid_out(tmp_path_factory.mktemp("edge") / "whole", package())


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def laid_out(folder: Path, bodies: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, body in bodies.items():
        (folder / name).write_bytes(body)
    return folder


def size(dimension: Any) -> int | None:
    """None for the number of rows, which quantising may have given a name."""
    return dimension if isinstance(dimension, int) else None


def test_the_int8_graph_takes_the_same_and_agrees() -> None:
    full, small = (open_session(graph, 1) for graph in (full_graph("tabular_mlp"), small_graph()))
    for side in ("get_inputs", "get_outputs"):
        described = [[(x.name, x.type, *map(size, x.shape)) for x in getattr(s, side)()] for s in (full, small)]
        assert described[0] == described[1]
    inputs = feeds(ROWS, CATEGORICAL, NUMERIC)
    distance = np.abs(model_of(True).score(inputs) - full.run(None, inputs)[0])
    assert 0 < distance.max() < 0.02
    assert len(small_graph()) < 0.7 * len(full_graph("tabular_mlp"))


def test_quantising_again_gives_the_same_bytes() -> None:
    assert quantised(full_graph("tabular_mlp")) == small_graph()


def test_a_tree_ensemble_has_nothing_to_quantise() -> None:
    assert quantised(full_graph("gradient_boosting")) is None


def test_weights_leave_a_bit_free_for_processors_that_overflow() -> None:
    import onnx

    weights = [
        onnx.numpy_helper.to_array(c)
        for c in onnx.load_model_from_string(small_graph()).graph.initializer
        if c.data_type == onnx.TensorProto.INT8 and len(c.dims) == 2
    ]
    assert len(weights) == 3
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) <= 64


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, ROWS.num_rows - 1), min_size=1, max_size=8))
def test_a_score_does_not_hang_on_the_rows_beside_it(which: list[int]) -> None:
    together = model_of(True).predict(ROWS.take(which).to_pydict())
    alone = [model_of(True).predict(ROWS.slice(i, 1).to_pydict())[0] for i in which]
    assert together.tolist() == alone


def test_in_a_batch_it_would() -> None:
    inputs = feeds(ROWS, CATEGORICAL, NUMERIC)
    batch = model_of(True).session.run(None, inputs)[0]
    assert np.abs(batch - model_of(True).score(inputs)).max() > 1e-4


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_row_gets_a_probability(data: st.DataObject) -> None:
    row: dict[str, list[Any]] = {c: [data.draw(st.none() | st.text(max_size=5))] for c in CATEGORICAL}
    row |= {c: [data.draw(st.none() | st.floats(width=32))] for c in NUMERIC}
    [score] = model_of(True).predict(row)
    assert 0 <= score <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("hour"), r"lack \['hour'\]"),
        (lambda c: c.update(hour=[1.0]), "number of values"),
        (lambda c: c.update(hour=["noon", "noon"]), "noon"),
    ],
)
def test_rows_that_cannot_be_are_named(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    columns = ROWS.slice(0, 2).to_pydict()
    change(columns)
    with pytest.raises(ValueError, match=words):
        model_of(True).predict(columns)


GOOD = Measured(
    num_rows=100, metric=0.7, full_metric=0.7, metric_drop=0.0, calibration_error=0.1, full_calibration_error=0.1,
    calibration_rise=0.0, max_score_difference=0.01, mean_score_difference=0.001, size=4, full_size=10, size_ratio=0.4,
    latency_ms=0.2, full_latency_ms=0.2,
)  # fmt: skip
GATES = {
    "metric_drop": (ReasonCode.EDGE_ACCURACY, "max_metric_drop"),
    "calibration_rise": (ReasonCode.EDGE_CALIBRATION, "max_calibration_rise"),
    "max_score_difference": (ReasonCode.EDGE_SCORES, "max_score_difference"),
    "size_ratio": (ReasonCode.EDGE_SIZE, "max_size_ratio"),
    "latency_ms": (ReasonCode.EDGE_LATENCY, "max_latency_ms"),
}


@given(st.sampled_from(sorted(GATES)), st.floats(-1, 10) | st.just(math.nan))
def test_each_limit_refuses_what_is_beyond_it_and_nothing_else(name: str, value: float) -> None:
    limits = Edge()
    code, limit_name = GATES[name]
    limit = getattr(limits, limit_name)
    found = refusals(limits, replace(GOOD, **{name: value}), "tabular_mlp")
    if value <= limit:
        assert found == []
    else:
        [(said, message)] = found
        assert said is code
        assert message.endswith(f"more than edge.{limit_name} {limit}")
        assert (f"{value:.3f}" in message) or (f"{value:.5f}" in message)


def test_all_that_is_broken_is_told_the_gravest_first() -> None:
    bad = replace(GOOD, **dict.fromkeys(GATES, 99.0))
    assert [code for code, _ in refusals(Edge(), bad, "tabular_mlp")] == [code for code, _ in GATES.values()]
    [(code, message)] = refusals(Edge(), None, "gradient_boosting")
    assert code is ReasonCode.EDGE_NOT_QUANTISABLE
    assert "'gradient_boosting' has 0 weights" in message


@pytest.mark.parametrize("name", list(Edge.model_fields))
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "much", None])
def test_limits_that_cannot_be_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        Edge(**{name: value})


def test_a_device_opens_what_was_signed(whole: Path) -> None:
    model = open_edge(whole, PEM, "small_line/3")
    rows = ROWS.slice(0, 5).to_pydict()
    assert np.array_equal(model.predict(rows), model_of(True).predict(rows))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([MODEL_FILE, MANIFEST_FILE]), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_is_refused(whole: Path, name: str, place: float, flip: int) -> None:
    body = (whole / name).read_bytes()
    at = int(place * len(body))
    try:
        (whole / name).write_bytes(body[:at] + bytes([body[at] ^ flip]) + body[at + 1 :])
        with pytest.raises(Refused, match="not what the plant signed"):
            open_edge(whole, PEM, "small_line/3")
    finally:
        (whole / name).write_bytes(body)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_cut_short_is_refused(copy: Path, name: str) -> None:
    body = (copy / name).read_bytes()
    (copy / name).write_bytes(body[: len(body) // 2])
    with pytest.raises(Refused):
        open_edge(copy, PEM, "small_line/3")
    (copy / name).unlink()
    with pytest.raises(Refused):
        open_edge(copy, PEM, "small_line/3")


def test_a_forged_signature_is_refused(copy: Path) -> None:
    bodies = {name: (copy / name).read_bytes() for name in (MODEL_FILE, MANIFEST_FILE)}
    bundle = json.loads((copy / SIGNATURE_FILE).read_bytes())
    signed = bundle["dsseEnvelope"]["signatures"][0]
    bits = bytearray(base64.b64decode(signed["sig"]))
    bits[-1] ^= 1
    signed["sig"] = base64.b64encode(bytes(bits)).decode()
    stranger, _ = new_keys()
    for forged in (json.dumps(bundle).encode(), sign(bodies, stranger), b"{}"):
        (copy / SIGNATURE_FILE).write_bytes(forged)
        with pytest.raises(Refused, match="not what the plant signed"):
            open_edge(copy, PEM, "small_line/3")


def test_an_added_file_or_folder_is_refused(copy: Path) -> None:
    (copy / "more").write_bytes(b"")
    with pytest.raises(Refused, match="not what the plant signed"):
        open_edge(copy, PEM, "small_line/3")
    (copy / "more").unlink()
    (copy / "folder").mkdir()
    with pytest.raises(Refused, match="no package"):
        open_edge(copy, PEM, "small_line/3")


def test_another_package_is_refused_with_its_signature_and_whole(copy: Path, tmp_path: Path) -> None:
    other = package(model="small_line/2")
    (copy / SIGNATURE_FILE).write_bytes(other[SIGNATURE_FILE])
    with pytest.raises(Refused, match="not what the plant signed"):
        open_edge(copy, PEM, "small_line/3")
    folder = laid_out(tmp_path / "other", other)
    with pytest.raises(Refused, match=r"'small_line/2', and 'small_line/3' is wanted"):
        open_edge(folder, PEM, "small_line/3")
    bodies = {name: body for name, body in other.items() if name != SIGNATURE_FILE}
    no_edge = json.loads(bodies[MANIFEST_FILE])
    del no_edge["edge"]
    bodies[MANIFEST_FILE] = json.dumps(no_edge).encode()
    folder = laid_out(tmp_path / "server", bodies | {SIGNATURE_FILE: sign(bodies, PRIVATE)})
    with pytest.raises(Refused, match="None, and 'small_line/3' is wanted"):
        open_edge(folder, PEM, "small_line/3")


def test_a_machine_that_computes_otherwise_is_refused(tmp_path: Path) -> None:
    folder = laid_out(tmp_path / "off", package(limit=0.05, shift=0.1))
    with pytest.raises(Refused, match=r"golden rows on this machine, more than edge\.max_score_difference 0\.05"):
        open_edge(folder, PEM, "small_line/3")


def device(folder: Path, *more: str, key: bytes = PEM, rows: Any = None) -> subprocess.CompletedProcess[str]:
    """The loader as a device has it: its one file, nothing of the factory."""
    place = folder.parent / "device"
    place.mkdir(exist_ok=True)
    shutil.copy(edge_device.__file__, place / "edge_device.py")
    (place / "key.pem").write_bytes(key)
    code = (
        "import sys, edge_device; status = edge_device.main(sys.argv[1:]);"
        "heavy = {'aifactory', 'onnx', 'pyarrow', 'torch', 'mlflow', 'airflow'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else status)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), "--key", str(place / "key.pem"), "--package", "small_line/3", *more],
        cwd=place, env={}, input=json.dumps(rows), capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_loader_stands_alone(copy: Path) -> None:
    rows = ROWS.slice(0, 3).select([*CATEGORICAL, *NUMERIC]).to_pydict()
    done = device(copy, rows=rows)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["package"] == "small_line/3"
    assert np.array_equal(np.float32(answer["probability"]), model_of(True).predict(rows))
    for refused in (
        device(copy, rows={"hour": [1]}),
        device(copy, "--package", "small_line/4", rows=rows),
        device(copy, key=b"no key", rows=rows),
    ):
        assert refused.returncode == 1
        assert refused.stderr.startswith("refused: ")
        assert refused.stdout == ""
