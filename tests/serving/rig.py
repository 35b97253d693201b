"""Serving as the plant runs it, before stores that stand: servers, gateway, controller, shipper, real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import timeit
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper
from tests.deploying import deploy
from tests.model_rows import small_line
from tests.serving.playing import Playing, wait, write_day
from tests.serving.small_model import FLOATS, STRINGS, expected, small_graph

from aifactory.factory import Factory
from aifactory.ledger import EventKind, ProductionEvent
from aifactory.line import LineSpec
from aifactory.packaging import write_package
from aifactory.serving import traffic
from aifactory.serving.live import day_prefix, live_days, read_day
from aifactory.serving.traffic import Observed, Traffic
from aifactory.settings import REPOSITORY, Settings
from aifactory.training.tracking import mlflow_client
from plant import objectstore, processes, serving, slots, temporary_settings
from plant.supervision import Supervisor

LIMITS: dict[str, Any] = {
    "online": True,
    "tier": "low",
    "load_minutes": 2,
    "shadow_minutes": 0.03,
    "shadow_min_requests": 40,
    "canary": [{"percent": 50, "bake_minutes": 0.03}],
    "min_requests": 40,
    "max_error_excess": 0.2,
    "latency_quantile": 0.75,
    "max_latency_ratio": 5,
    "latency_floor_ms": 500,
    "max_score_shift": 0.7,
    "confidence": 0.9,
    "patience_minutes": 2,
    "no_traffic": "hold",
}
"""Limits of seconds, on a machine that others use too: only what is plainly worse can be told from it so soon."""


# --- graphs
def graph(bias: float = 0.3, flaw: Literal["slow", "failing"] | None = None) -> bytes:
    """The small graph; slow takes about a tenth of a second on any machine, failing fails at carrier UA."""
    made = onnx.load_from_string(small_graph(bias))
    if flaw is not None:
        nodes, constants = _slow() if flaw == "slow" else _failing()
        at = next(n for n, node in enumerate(made.graph.node) if node.op_type == "Sum")
        made.graph.node[at].input.append("flaw")
        kept = list(made.graph.node)
        del made.graph.node[:]
        made.graph.node.extend([*kept[:at], *nodes, *kept[at:]])
        made.graph.initializer.extend(constants)
    body: bytes = made.SerializeToString()
    return body


@cache
def _slow_size() -> int:
    """Of a square matrix whose square takes NumPy 0.15 s here; a model server takes two thirds of that."""
    probe = np.ones((1500, 1500), np.float32)
    took_s = min(timeit.repeat(lambda: probe @ probe, number=1, repeat=5))
    return round(len(probe) * (0.15 / took_s) ** (1 / 3))


def _slow() -> tuple[list[Any], list[Any]]:
    size = _slow_size()
    nodes = [
        helper.make_node("ReduceSum", ["distance_known"], ["flaw_seed"], keepdims=0),
        helper.make_node("Expand", ["flaw_seed", "flaw_shape"], ["flaw_matrix"]),
        helper.make_node("MatMul", ["flaw_matrix", "flaw_matrix"], ["flaw_product"]),
        helper.make_node("ReduceMax", ["flaw_product"], ["flaw_largest"], keepdims=0),
        helper.make_node("Mul", ["flaw_largest", "zero"], ["flaw"]),
    ]
    return nodes, [helper.make_tensor("flaw_shape", TensorProto.INT64, [2], [size, size])]


def _failing() -> tuple[list[Any], list[Any]]:
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["carrier"],
            ["flaw_index"],
            domain="ai.onnx.ml",
            keys_strings=["UA"],
            values_int64s=[7],
            default_int64=0,
        ),
        helper.make_node("Gather", ["flaw_table", "flaw_index"], ["flaw"]),
    ]
    return nodes, [helper.make_tensor("flaw_table", TensorProto.FLOAT, [1], [0.0])]


GOLDEN: dict[str, Any] = {
    "carrier": ["AA", "B6", ""],
    "origin": ["JFK", "LGA", "EWR"],
    "distance": [100.0, 475.0, 1.5],
    "dep_hour": [9.0, 23.0, 0.0],
}


# --- the plant
class Rig:
    """Serving with a home, ports and a bucket of its own.

    Args:
        stores: S3, ledger and MLflow that run.
        home: empty folder.
        runtime: which model servers.
    """

    def __init__(self, stores: Settings, home: Path, runtime: Literal["own", "triton"]) -> None:
        self.stores = stores
        plain = temporary_settings(home)
        self.settings = stores.model_copy(
            update={
                "home": plain.home,
                "lines_dir": plain.home / "lines",
                "serving_port": plain.serving_port,
                "internal_port": plain.internal_port,
                "serving_runtime": runtime,
                "factory_bucket": f"factory-{uuid.uuid4().hex[:8]}",
                "threads": 1,
            }
        )
        self.settings.lines_dir.mkdir(parents=True)
        self.f = Factory(self.settings)
        self.supervisor = Supervisor(self.settings.home)
        self.requests = write_day(home / "requests.parquet", 576, 150)

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to work in this factory."""
        names = self.settings.model_fields_set - {"home"}
        return self.settings.variables(names) | {"AIF_HOME": str(self.settings.home)}

    def start(self) -> None:
        """All of it; returns when it does its work."""
        objectstore.ensure_buckets(self.stores.model_copy(update={"factory_bucket": self.settings.factory_bucket}))
        mlflow_client(self.settings).search_registered_models()  # its first call imports, which threads cannot at once
        serving.install(self.settings)
        self.supervisor.start(serving.prepare(self.settings), self.environment, bound=True)
        for part in serving.PARTS:
            self.supervisor.start_program(part)
        for part in serving.PARTS:
            self.supervisor.wait_healthy(part, lambda part=part: serving.answers(self.settings, part), 90)  # type: ignore[misc]

    def stop(self) -> None:
        """All of it."""
        if self.supervisor.running():
            self.supervisor.shutdown()
        processes.end_all(self.settings.home)

    def kill(self, part: str) -> None:
        """SIGKILL to a part's own process alone; the supervisor starts it again."""
        os.kill(int(self.supervisor.state(part)["pid"]), 9)

    def log(self, part: str) -> str:
        """What a part said."""
        return (self.supervisor.log_folder / f"{part}.log").read_text(errors="replace")

    @contextmanager
    def line(self, feedback: dict[str, Any] | None = None, **limits: Any) -> Iterator[Line]:
        """A new line; nobody has asked for it yet. Its sections `feedback` and `deployment` are updated as given."""
        name = f"l{uuid.uuid4().hex[:8]}"
        model = {
            "categorical": list(STRINGS),
            "numeric": list(FLOATS),
            "entity_key": ["carrier", "origin", "flight"],
            "prediction_time": "prediction_time",
        }
        spec = small_line(deployment=LIMITS | limits, model=model, feedback=feedback or {})
        spec = spec.model_copy(update={"line": name})
        folder = self.settings.lines_dir / name
        folder.mkdir()
        (folder / "line.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
        made = Line(self, spec)
        try:
            yield made
        finally:
            made.stop_players()


@dataclass
class Line:
    """One line of the rig."""

    rig: Rig
    spec: LineSpec
    num_candidates: int = 0
    players: list[Playing] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.f = Factory(self.rig.settings)  # one for each, for they are used by threads of their own

    @property
    def name(self) -> str:
        """Of the line."""
        return self.spec.line

    def candidate(self, graph_bytes: bytes | None = None, bias: float = 0.3) -> str:
        """Register a candidate with a graph of that bias; its version."""
        self.num_candidates += 1
        order = {"order_id": f"{self.name}-{self.num_candidates}", "recipe": "gradient_boosting", "revision": "r"}
        manifest = {
            "order_id": order["order_id"],
            "trained_until": f"2026-03-{self.num_candidates:02}",
            "dataset_revision": "abc",
            "features": {"categorical": list(STRINGS), "numeric": list(FLOATS)},
            "golden": {"inputs": GOLDEN, "outputs": expected(bias, GOLDEN)},
            "training_profile": {"baseline": {"roc_auc": 0.9}},
        }
        prefix = f"candidates/{self.name}/{self.num_candidates}"
        write_package(self.f.store, prefix, manifest, graph_bytes or graph(bias), None)
        return self.f.registry(self.spec).register(order | {"dir_md5": "d"}, prefix, {}, None).version

    def deploy(self, version: str, run: str | None = None, **options: Any) -> dict[str, Any]:
        """The DAG's tasks, here and now."""
        return deploy(self.f, self.spec, version, run or f"deploy-{version}", **options)

    def deploying(self, version: str, run: str, pulse_s: float) -> subprocess.Popen[bytes]:
        """The DAG's tasks in a process that may be killed; they begin when something is written to it."""
        command = [sys.executable, "-m", "tests.deploying", self.name, version, run, str(pulse_s)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AIF_")} | self.rig.environment
        environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY / "include"), str(REPOSITORY)])
        with (self.rig.settings.home / f"deploying-{self.name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=REPOSITORY
            )

    def serve(self, bias: float = 0.3) -> str:
        """Have a first champion; its version."""
        version = self.candidate(bias=bias)
        assert self.deploy(version)["version"] == version
        return version

    def play(self, lasts_s: float = 20) -> Playing:
        """Traffic: a day's 576 rows in so many seconds, over and over, until `stop`."""
        folder = self.rig.settings.home / "players" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / self.rig.requests.name
        file.write_bytes(self.rig.requests.read_bytes())
        url = f"127.0.0.1:{self.rig.settings.serving_port}"
        playing = Playing(url, file, "--lasts", str(lasts_s), "--loop", line=self.name)
        self.players.append(playing)
        playing.reach("answered", 1)
        return playing

    def stop_players(self) -> None:
        """Those that are left."""
        for playing in self.players:
            if playing.process.poll() is None:
                playing.process.kill()
                playing.process.wait()

    @property
    def wanted(self) -> Traffic:
        """The document."""
        return traffic.read(self.f.store, self.name, datetime.now(UTC))

    @property
    def seen(self) -> Observed:
        """What is observed."""
        seen = traffic.read_observed(self.f.store, self.name)
        assert seen is not None
        return seen

    def reach(self, stage: traffic.Stage, timeout_s: float = 60) -> Traffic:
        """Wait for a stage."""
        wait(lambda: self.wanted.stage is stage, timeout_s)
        return self.wanted

    def settle(self) -> None:
        """Wait until the document is in force."""
        wait(lambda: self.seen.generation == self.wanted.generation)

    def happened(self, *kinds: EventKind) -> list[ProductionEvent]:
        """What the ledger has of deploy."""
        return [e for e in self.f.ledger.events(line=self.name, station="deploy") if e.event in kinds]

    def stages(self, run: str) -> list[str]:
        """The stages that a run decided for."""
        return [str(e.detail["stage"]) for e in self.happened(EventKind.DECIDED) if e.run_id == run]

    def logged(self) -> dict[tuple[str, bool], int]:
        """Rows of the prediction log so far by version and whether it is a copy; golden rows left out."""
        found: dict[tuple[str, bool], int] = {}
        for day in live_days(self.f.store, self.name).read():
            columns = ["model_version", "shadow", "request_id"]
            for table in read_day(self.f.store, day_prefix(self.name, day), columns)[1]:
                for row in table.to_pylist():
                    if not str(row["request_id"]).startswith("golden-"):
                        key = (row["model_version"], row["shadow"])
                        found[key] = found.get(key, 0) + 1
        return found


class Task:
    """A function at work in a thread; its result or its error when asked for."""

    def __init__(self, work: Any, *arguments: Any, **options: Any) -> None:
        self._result: Any = None
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._result = work(*arguments, **options)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def join(self, timeout_s: float = 120) -> None:
        """Wait for its end, whatever that is."""
        self._thread.join(timeout_s)

    def result(self, timeout_s: float = 120) -> Any:
        """What it gave; raises what it raised."""
        self.join(timeout_s)
        assert not self._thread.is_alive(), f"not done within {timeout_s:g} s"
        if self._error is not None:
            raise self._error
        return self._result


def slot_part(slot: str) -> str:
    """Name of a slot's program."""
    return slots.name(slot)
