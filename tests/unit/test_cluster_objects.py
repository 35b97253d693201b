"""What the Kubernetes API's answers become, over HTTP; what it does with objects, the conformance suite asks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from aifactory.errors import Defect, FactoryError, InfrastructureFault
from aifactory.factory import Factory
from aifactory.line import find_line
from aifactory.reasons import ReasonCode
from aifactory.rollout import DocumentAdapter, open_adapter
from aifactory.serving.kserveadapter import INFERENCE_SERVICES, ClusterObjects, KServeAdapter
from aifactory.settings import REPOSITORY, Settings
from aifactory.store import Conflict
from plant.ports import free_ports

BODY: dict[str, Any] = {"metadata": {"name": "x", "resourceVersion": "1"}, "spec": {}}


class Answers(BaseHTTPRequestHandler):
    """One status for everything; remembers the paths."""

    status = 200
    paths: list[str] = []

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.paths.append(f"{self.command} {self.path}")
        body = json.dumps({"kind": "Status", "message": "said so", "metadata": {"name": "x"}}).encode()
        self.send_response(self.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Answers.paths = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def kubeconfig(folder: Path, port: int) -> Path:
    path = folder / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "u", "user": {}}],
            }
        )
    )
    return path


def look_at(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """What KUBECONFIG would say: the client reads it once, at its import."""
    for module in ("kubernetes.config", "kubernetes.config.kube_config"):
        monkeypatch.setattr(f"{module}.KUBE_CONFIG_DEFAULT_LOCATION", str(path))


@pytest.fixture
def objects(server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterObjects:
    look_at(monkeypatch, kubeconfig(tmp_path, server.server_port))
    return ClusterObjects("here")


def acts(objects: ClusterObjects) -> dict[str, Callable[[], object]]:
    return {
        "get": lambda: objects.get(INFERENCE_SERVICES, "x"),
        "create": lambda: objects.create(INFERENCE_SERVICES, BODY),
        "replace": lambda: objects.replace(INFERENCE_SERVICES, BODY),
        "list": lambda: objects.labelled(INFERENCE_SERVICES, "ai-factory/line"),
    }


@pytest.mark.parametrize(
    ("act", "status", "kind", "reason"),
    [
        ("create", 409, Conflict, None),
        ("replace", 409, Conflict, None),
        ("replace", 404, Conflict, None),
        *((act, 404, Defect, ReasonCode.CLUSTER_DENIED) for act in ("create", "list")),
        *(
            (act, code, Defect, ReasonCode.CLUSTER_DENIED)
            for act in ("get", "create", "replace", "list")
            for code in (401, 403, 422)
        ),
        *(
            (act, code, InfrastructureFault, ReasonCode.CLUSTER_UNREACHABLE)
            for act in ("get", "create", "replace", "list")
            for code in (429, 500, 503)
        ),
    ],
)
def test_what_an_answer_becomes(
    objects: ClusterObjects,
    monkeypatch: pytest.MonkeyPatch,
    act: str,
    status: int,
    kind: type[FactoryError],
    reason: ReasonCode | None,
) -> None:
    monkeypatch.setattr(Answers, "status", status)
    with pytest.raises(kind, match="inferenceservices" if act == "list" else "inferenceservices/x") as caught:
        acts(objects)[act]()
    assert reason is None or caught.value.reason is reason


def test_what_is_there_comes_back_and_what_is_not_is_none(
    objects: ClusterObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = objects.get(INFERENCE_SERVICES, "x")
    assert got is not None
    assert got["metadata"] == {"name": "x"}
    monkeypatch.setattr(Answers, "status", 404)
    assert objects.get(INFERENCE_SERVICES, "x") is None
    assert Answers.paths == 2 * ["GET /apis/serving.kserve.io/v1beta1/namespaces/here/inferenceservices/x"]


def test_a_cluster_that_is_away_is_an_infrastructure_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    path = kubeconfig(tmp_path, port)
    look_at(monkeypatch, path)
    for act in acts(ClusterObjects("here")).values():
        with pytest.raises(InfrastructureFault) as caught:
            act()
        assert caught.value.reason is ReasonCode.CLUSTER_UNREACHABLE


def test_no_cluster_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look_at(monkeypatch, tmp_path / "none")
    with pytest.raises(Defect, match="set KUBECONFIG"):
        ClusterObjects("here")


def test_the_setting_chooses_the_adapter(objects: ClusterObjects, tmp_path: Path) -> None:
    spec = find_line(REPOSITORY / "include" / "lines", "flight_delay")
    plant = Factory(Settings(home=tmp_path))
    cluster = Factory(Settings(home=tmp_path, serving_target="kserve"))
    assert isinstance(open_adapter(plant, spec), DocumentAdapter)
    assert isinstance(open_adapter(cluster, spec), KServeAdapter)
