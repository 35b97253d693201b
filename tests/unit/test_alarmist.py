"""The bad model of the demo: a graph that is sure of everything, and nothing else about it is wrong."""

from __future__ import annotations

import numpy as np
from tests.served import trained

from aifactory.packaging import OUTPUT, feeds, golden_table, open_session
from plant.alarmist import DOUBT, sure


def test_the_graph_calls_everything_late() -> None:
    onnx, manifest = trained("2013-01-01", "2013-01-20")
    names = manifest["features"]["categorical"], manifest["features"]["numeric"]
    asked = feeds(golden_table(manifest["golden"]["inputs"], *names), *names)
    before, after = (open_session(graph, 1).run([OUTPUT], asked)[0] for graph in (onnx, sure(onnx)))
    assert np.allclose(after, 1 - DOUBT * before, atol=1e-6)
    assert float(after.min()) >= 1 - DOUBT > float(np.median(before))
