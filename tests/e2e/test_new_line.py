"""A line that is added to a running plant: its DAGs appear, and its loop turns up to a model and its edge package.

It reads what has landed for the first line, learns a small network, which has an edge package, and serves no callers.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml
from tests.running_plant import RunningPlant, tasks_of

from aifactory.edge import edge_prefix, load_edge
from aifactory.edge_device import open_edge
from aifactory.ledger import EventKind
from aifactory.line import Edge, LineSpec, find_line
from aifactory.signing import load_released

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.thorough, pytest.mark.timeout(2400)]

LINE = "pocket_delay"
NUM_DAYS = 35
STAGES = ("ingest", "score", "feedback", "train", "deploy")
# Wide where a busy machine or five weeks of data would decide: that is not what is tested here
EASY = {"floor": 0.5, "max_calibration_error": 0.5, "max_latency_ms": 1000}
LIMITS = Edge(max_score_difference=0.1, max_latency_ms=1000)


@pytest.fixture(scope="module")
def line(running: RunningPlant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LineSpec]:
    """The new line, known to Airflow."""
    lines = running.settings.lines_dir
    folder = Path(shutil.copytree(lines / "flight_delay", tmp_path_factory.mktemp("new") / LINE))
    path = folder / "line.yaml"
    said = yaml.safe_load(path.read_text())
    said |= {"line": LINE, "title": "Delay in the pocket", "edge": LIMITS.model_dump()}
    said["dataset"]["min_train_days"] = 21
    said["evaluation"] |= EASY
    said["deployment"] |= {"online": False}
    said["model"]["recipe"] = "tabular_mlp"
    said["model"]["recipes"]["tabular_mlp"]["parameters"] = {"epochs": 6, "batch_rows": 256}
    path.write_text(yaml.safe_dump(said))
    folder.rename(lines / LINE)  # whole: the plant looks at any time
    try:
        api = running.api
        for stage in STAGES:
            api.wait_dag(f"{LINE}.{stage}", timeout_s=300)
        assert api.import_errors() == {}
        yield find_line(lines, LINE)
        running.come_to_rest(LINE)
    finally:
        shutil.rmtree(lines / LINE, ignore_errors=True)


def test_a_new_line_makes_a_model_whose_edge_package_is_signed_and_keeps_its_limits(
    running: RunningPlant, line: LineSpec, tmp_path: Path
) -> None:
    f, api, last = running.factory, running.api, date.fromisoformat(running.report["history"]["last_day"])
    running.ingest(LINE, (last - timedelta(days=NUM_DAYS - 1)).isoformat(), last.isoformat())
    running.come_to_rest(LINE, timeout_s=1200)
    trainings = api.runs(f"{LINE}.train")
    assert trainings, f"no model was called for; the runs are {[(r.dag_id, r.state) for r in api.runs(prefix=LINE)]}"
    for run in trainings:
        tasks = tasks_of(api, run.dag_id, run.run_id)
        assert set(tasks.values()) == {"success"}, f"{tasks}: {api.run_url(run.dag_id, run.run_id)}"
        made = api.xcom(run.dag_id, run.run_id, "edge")
        assert made["passed"], f"{made['reasons']}: {made['measured']}"

    released = {e.unit for e in f.ledger.events(line=LINE, kind=EventKind.PROMOTED)}
    champion = f.registry(line).champion()
    assert champion is not None
    assert champion.version in released
    for version in released:
        model, full = load_edge(f, LINE, version), load_released(f, f.registry(line).package_prefix(version))
        verdict = model.manifest["edge"]
        assert (verdict["passed"], verdict["reasons"], verdict["limits"]) == (True, [], LIMITS.model_dump())
        assert (verdict["model"], verdict["source_digest"]) == (f"{LINE}/{version}", full.manifest["digest"])
        measured = verdict["measured"]
        assert measured["num_rows"] > 1000
        assert measured["metric_drop"] <= LIMITS.max_metric_drop
        assert measured["max_score_difference"] <= LIMITS.max_score_difference
        assert measured["size"] <= LIMITS.max_size_ratio * measured["full_size"]

        folder = tmp_path / version  # on a device: the files and the plant's public key are all that it has
        folder.mkdir()
        for each in f.store.list(f"{edge_prefix(LINE, version)}/"):
            (folder / Path(each.key).name).write_bytes(f.store.get(each.key))
        device = open_edge(folder, base64.b64decode(f.settings.verifying_key), f"{LINE}/{version}")
        golden = device.manifest["golden"]
        assert np.allclose(device.predict(golden["inputs"]), golden["outputs"], atol=1e-5)
