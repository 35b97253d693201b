"""The whole way of a request: Envoy in front of either model server, asked by the Open Inference Protocol.

What a bare Triton answers otherwise than the protocol asks, the gateway makes good: every check passes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving.conformance import CHECKS, Check, Endpoint
from tests.serving.fallback import COLUMNS, ROWS
from tests.serving.small_model import FLOATS, STRINGS, expected, small_graph

import plant
from aifactory.packaging import sealed_files
from aifactory.serving.gateway import LineRoute
from aifactory.serving.repository import ModelRepository
from aifactory.serving.routing import Routing
from aifactory.serving.slot import Slot
from plant import gateway, processes, serving, slots
from plant.supervision import Supervisor

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

LINE, BIAS = "small", -0.5


@pytest.fixture(scope="module", params=["triton", "own"])
def endpoint(request: pytest.FixtureRequest, environments: None) -> Iterator[Endpoint]:
    """The public port of a plant that has nothing but its serving, with one version in slot a."""
    with tempfile.TemporaryDirectory(prefix="aif-", ignore_cleanup_errors=True) as folder:
        settings = plant.temporary_settings(Path(folder) / "home")
        settings = settings.model_copy(update={"serving_runtime": request.param})
        serving.install(settings)
        supervisor = Supervisor(settings.home)
        try:
            supervisor.start(serving.prepare(settings), {}, bound=True)
            for name in (slots.name("a"), slots.name("b"), gateway.NAME):
                supervisor.start_program(name)
                supervisor.wait_healthy(name, lambda name=name: serving.answers(settings, name), 60)
            onnx = small_graph(BIAS)
            manifest = {
                "features": {"categorical": list(STRINGS), "numeric": list(FLOATS)},
                "dataset_revision": "none",
                "files": sealed_files({"model.onnx": onnx}),
            }
            ModelRepository(slots.repository_folder(settings, "a")).write(LINE, "1", manifest, onnx)
            with Slot("a", slots.grpc_address(settings, "a")) as slot:
                slot.load(LINE)
            routing = Routing(serving.gateway_of(settings), gateway.folder(settings), gateway.admin(settings))
            assert routing.ensure((LineRoute(LINE, "a"),))
            scores = tuple(expected(BIAS, ROWS))
            limit = serving.gateway_of(settings).limits.max_request_bytes
            yield Endpoint(settings.serving_url, settings.serving_address, LINE, "1", COLUMNS, scores, max_bytes=limit)
        finally:
            if supervisor.running():
                supervisor.shutdown()
            processes.end_all(settings.home)


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_conforms(endpoint: Endpoint, check: Check) -> None:
    check.run(endpoint)
