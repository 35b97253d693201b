"""A model that is sure of everything: for demonstrations and tests of what finds bad models out."""

from __future__ import annotations

from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.packaging import MODEL_FILE, OUTPUT, read_package, write_package
from aifactory.registry import ModelVersion

DOUBT = 0.05


def alarmist(f: Factory, spec: LineSpec, original: ModelVersion) -> str:
    """Register a version that says 1 - `DOUBT` · p where another says p, and return its number.

    It is whole, signed, and gives its golden outputs; only no gate has judged it.
    """
    manifest, bodies = read_package(f.store, original.package)
    order_id = f"alarmist-{original.order_id}"
    prefix = f"candidates/{spec.line}/{order_id}/refit"
    golden = manifest["golden"] | {"outputs": [1 - DOUBT * p for p in manifest["golden"]["outputs"]]}
    content = {k: v for k, v in manifest.items() if k not in ("files", "digest")}
    write_package(f.store, prefix, content | {"order_id": order_id, "golden": golden}, sure(bodies[MODEL_FILE]), None)
    order = {"order_id": order_id, "recipe": manifest["recipe"], "revision": original.dataset_revision}
    return f.registry(spec).register(order | {"dir_md5": manifest["dir_md5"]}, prefix, {}, None).version


def sure(onnx: bytes) -> bytes:
    """The graph with 1 - `DOUBT` · p where it gave p."""
    import onnx as library
    from onnx import TensorProto, helper

    model = library.load_from_string(onnx)
    inner = f"{OUTPUT}_before"
    for node in model.graph.node:
        node.output[:] = [inner if name == OUTPUT else name for name in node.output]
    for name, value in (("alarmist_one", 1.0), ("alarmist_doubt", DOUBT)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
    model.graph.node.append(helper.make_node("Mul", ["alarmist_doubt", inner], ["alarmist_doubted"]))
    model.graph.node.append(helper.make_node("Sub", ["alarmist_one", "alarmist_doubted"], [OUTPUT]))
    found: bytes = model.SerializeToString()
    return found
