"""What every DAG of the factory must have; what a person would otherwise have to remember in review."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from aifactory.line import find_line
from aifactory.reasons import ReasonCode
from aifactory.settings import REPOSITORY

STAGES = {"ingest", "train", "deploy", "rollback", "score", "feedback", "sweep"}
PLANT_DAGS = {"plant.capacity", "plant.notices"}
"""Of the plant, not of a line."""
DAG_FILES = sorted((REPOSITORY / "dags").glob("*.py"))
SNAPSHOT = Path(__file__).with_name("graph.json")
HEAVY = {
    "torch", "pandas", "numpy", "sklearn", "mlflow", "great_expectations", "dvc", "dvc_data", "duckdb", "pyarrow",
    "scipy", "onnx", "onnxruntime", "boto3", "botocore", "matplotlib", "fastapi", "psycopg2", "airflow.providers.cncf",
    "airflow.providers.amazon", "airflow.models.dagrun", "sqlalchemy.orm",
}  # fmt: skip


@pytest.fixture(scope="module")
def dags(dagbag: Any) -> dict[str, Any]:
    return dict(dagbag.dags)


def all_tasks(dags: dict[str, Any]) -> list[Any]:
    return [task for dag in dags.values() for task in dag.tasks]


def test_every_file_loads(dagbag: Any) -> None:
    assert dagbag.import_errors == {}


def test_every_line_has_every_stage(dags: dict[str, Any]) -> None:
    lines = [p.parent.name for p in (REPOSITORY / "include" / "lines").glob("*/line.yaml")]
    assert set(dags) == {f"{line}.{stage}" for line in lines for stage in STAGES} | PLANT_DAGS


def test_ids_follow_the_rule(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        assert re.fullmatch(r"[a-z][a-z0-9_]+\.[a-z]+", dag.dag_id)
    for task in all_tasks(dags):
        assert re.fullmatch(r"[a-z][a-z_]{2,30}", task.task_id)


def test_what_is_loaded_survives_serialization(dags: dict[str, Any]) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    for dag in dags.values():
        once = DagSerialization.to_dict(dag)
        DagSerialization.validate_schema(once)
        restored = DagSerialization.from_dict(json.loads(json.dumps(once)))
        assert sorted(restored.task_ids) == sorted(dag.task_ids)
        assert restored.timetable.summary == DagSerialization.from_dict(once).timetable.summary


def test_somebody_owns_it_and_it_can_be_found(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        line, stage = dag.dag_id.split(".")
        if dag.dag_id in PLANT_DAGS:
            assert ({task.owner for task in dag.tasks}, set(dag.tags)) == ({"plant"}, {"plant", stage})
            continue
        spec = find_line(REPOSITORY / "include" / "lines", line)
        assert {task.owner for task in dag.tasks} == {spec.owner.team}
        assert {spec.line, stage, *spec.tags} == set(dag.tags)


def test_docs_say_why_who_and_what_a_failure_means(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        for part in ("# ", "**Why**", "**Owner**", "failure usually means"):
            assert part in dag.doc_md, f"{dag.dag_id} lacks {part}"
        assert dag.description
    for task in all_tasks(dags):
        assert task.doc_md


def test_docs_name_only_reason_codes_that_exist(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        named = set(re.findall(r"`([A-Z][A-Z_]{3,})`", dag.doc_md))
        assert named, dag.dag_id
        assert named <= {code.value for code in ReasonCode}, f"{dag.dag_id}: {named - set(ReasonCode)}"


def test_every_task_has_the_two_budgets_and_a_limit(dags: dict[str, Any]) -> None:
    from orchestration.retries import FIRST_DELAY, NUM_RETRIES, TwoBudgets

    for task in all_tasks(dags):
        assert isinstance(task.retry_policy, TwoBudgets)
        assert task.retries == NUM_RETRIES >= 3
        assert task.retry_delay == FIRST_DELAY
        assert task.retry_exponential_backoff == 2
        assert timedelta(0) < task.execution_timeout <= timedelta(hours=6)


def test_every_dag_has_a_deadline_that_can_be_called(dags: dict[str, Any]) -> None:
    from airflow.sdk.module_loading import import_string

    for dag in dags.values():
        [deadline] = dag.deadline
        assert deadline.interval > timedelta(0)
        assert callable(import_string(deadline.callback.path))
        assert deadline.callback.kwargs["stage"] == dag.dag_id.split(".")[1]


def test_one_run_at_a_time_and_no_unbounded_catchup(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        assert dag.max_active_runs == 1
        assert dag.catchup is False


def test_forms_offer_what_an_operator_needs(dags: dict[str, Any]) -> None:
    wanted = {
        "ingest": {"partition", "partition_to"},
        "train": {"recipe", "drop_features", "force", "why"},
        "deploy": {"version"},
        "rollback": {"version", "why"},
        "score": {"partition"},
        "feedback": {"partition"},
        "sweep": set(),
        "capacity": set(),
        "notices": set(),
    }
    for dag in dags.values():
        assert set(dag.params) == wanted[dag.dag_id.split(".")[1]]
        for name in dag.params:
            param = dag.params.get_param(name)
            assert param.schema["title"]
            assert param.description
            assert "type" in param.schema


@pytest.mark.parametrize(
    ("stage", "name", "bad"),
    [
        ("ingest", "partition", "2026-1-1"),
        ("ingest", "partition_to", "yesterday"),
        ("train", "recipe", "no_such_recipe"),
        ("train", "drop_features", ["no_such_feature"]),
        ("rollback", "version", "v3"),
        ("rollback", "why", ""),
    ],
)
def test_forms_refuse_what_is_wrong(dags: dict[str, Any], stage: str, name: str, bad: Any) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        dags[f"flight_delay.{stage}"].params.get_param(name).resolve(bad)


def test_the_why_of_a_rollback_is_required(dags: dict[str, Any]) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        dags["flight_delay.rollback"].params.get_param("why").resolve()


def edges(dags: dict[str, Any]) -> dict[str, set[str]]:
    """DAG → DAGs that run when an asset of it is new, or that read one."""
    makes = {d.dag_id: {a.name for t in d.tasks for a in t.outlets} for d in dags.values()}
    takes = {
        d.dag_id: {d.timetable.asset_condition.name} if d.timetable.asset_condition else set() for d in dags.values()
    }
    for d in dags.values():
        takes[d.dag_id] |= {a.name for t in d.tasks for a in t.inlets}
    return {one: {other for other, taken in takes.items() if taken & made} for one, made in makes.items()}


def test_the_assets_close_the_loop(dags: dict[str, Any]) -> None:
    follow = edges(dags)
    for line in {dag_id.split(".")[0] for dag_id in dags.keys() - PLANT_DAGS}:
        walk = ["ingest", "score", "feedback", "train", "deploy", "score"]
        for one, other in pairwise(walk):
            assert f"{line}.{other}" in follow[f"{line}.{one}"], f"{one} does not lead to {other}"
        assert f"{line}.score" in follow[f"{line}.rollback"]


def test_assets_need_no_provider(dags: dict[str, Any]) -> None:
    for task in all_tasks(dags):
        for asset in task.outlets:
            assert asset.uri.startswith("x-")


def graph(dags: dict[str, Any]) -> dict[str, Any]:
    return {
        dag.dag_id: {
            "schedule": [type(dag.timetable).__name__, getattr(dag.timetable.asset_condition, "name", None)],
            "tasks": {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks},
            "makes": {task.task_id: [a.name for a in task.outlets] for task in dag.tasks if task.outlets},
        }
        for dag in sorted(dags.values(), key=lambda d: d.dag_id)
        if dag.dag_id.startswith("flight_delay.") or dag.dag_id in PLANT_DAGS
    }


def test_the_graph_is_the_one_that_was_agreed(dags: dict[str, Any]) -> None:
    """After a wanted change: `UPDATE_GRAPH=1 pytest tests/policy`, and look at the difference."""
    now = graph(dags)
    if os.environ.get("UPDATE_GRAPH"):
        SNAPSHOT.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    assert now == json.loads(SNAPSHOT.read_text())


@pytest.fixture(scope="module")
def bare_modules() -> set[str]:
    """What `import airflow.sdk` alone loads."""
    done = subprocess.run(
        [sys.executable, "-c", "import airflow.sdk, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("file", DAG_FILES, ids=lambda f: f.stem)
def test_parsing_a_file_loads_nothing_heavy(file: Path, bare_modules: set[str], capacity_file: Path) -> None:
    code = (
        "import runpy, sys; before = set(sys.modules); import airflow.sdk;"
        f"runpy.run_path({str(file)!r}); print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": "include", "AIF_CAPACITY_FILE": str(capacity_file)},
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split()) - bare_modules
    assert not {m for m in loaded if any(m == h or m.startswith(h + ".") for h in HEAVY)}


@pytest.mark.parametrize("file", DAG_FILES, ids=lambda f: f.stem)
def test_a_dag_file_is_a_page_of_flow(file: Path) -> None:
    code = file.read_text().split('"""', 2)[2]
    assert len(code.splitlines()) <= 80
    assert not re.search(r"^\s*(for|while|import numpy|import pandas)\b.*:$", code, re.MULTILINE)


def import_errors_of(
    lines: Path, tmp_path: Path, capacity_file: str = "", notices_file: str = ""
) -> tuple[dict[str, str], list[str]]:
    code = (
        "import json, sys; from airflow.dag_processing.dagbag import DagBag; b = DagBag(sys.argv[1]);"
        "sys.stdout.write('RESULT' + json.dumps([b.import_errors, sorted(b.dags)]))"
    )
    environment = {
        **os.environ, "PYTHONPATH": "include", "AIF_LINES_DIR": str(lines), "AIRFLOW_HOME": str(tmp_path),
        "AIF_CAPACITY_FILE": capacity_file, "AIF_NOTICES_FILE": notices_file,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(REPOSITORY / "dags")],
        env=environment,
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
    )
    assert "RESULT" in done.stdout, done.stderr
    errors, dag_ids = json.loads(done.stdout.split("RESULT")[1])
    return errors, dag_ids


def test_a_bad_spec_is_an_import_error_that_names_the_field_and_stops_no_other_line(tmp_path: Path) -> None:
    text = (REPOSITORY / "include" / "lines" / "flight_delay" / "line.yaml").read_text()
    for name, content in {
        "good_line": text.replace("line: flight_delay", "line: good_line"),
        "bad_line": text.replace("line: flight_delay", "line: bad_line").replace("floor: 0.60", "floor: 1.6"),
        "worse_line": text.replace("line: flight_delay", "line: worse_line") + "\nnonsense: 1\n",
        "worst_line": text.replace("line: flight_delay", "line: worst_line") + "\nsince: 2026-13-45\n",
        "far_line": text.replace("line: flight_delay", "line: far_line").replace("timezone: ", "timezone: Mars/"),
    }.items():
        (tmp_path / "lines" / name).mkdir(parents=True)
        (tmp_path / "lines" / name / "line.yaml").write_text(content)
    errors, dag_ids = import_errors_of(tmp_path / "lines", tmp_path)
    [(file, message)] = errors.items()
    assert Path(file).name == "specs.py"
    assert "bad_line/line.yaml: evaluation.floor: " in message
    assert "(got 1.6)" in message
    assert "worse_line/line.yaml: nonsense: " in message
    assert "worst_line/line.yaml: is not YAML: month must be in 1..12" in message
    assert "far_line/line.yaml: schedule.timezone: " in message
    assert "Traceback" not in message
    assert dag_ids == sorted([*(f"good_line.{stage}" for stage in STAGES), "plant.notices"])


def tasks_of(dag_file: str, lines: dict[str, dict[str, str]], tmp_path: Path) -> dict[str, dict[str, list[str]]]:
    """Upstream tasks by task and DAG, of lines like the shipped one but for texts that stand for others."""
    text = (REPOSITORY / "include" / "lines" / "flight_delay" / "line.yaml").read_text()
    for name, others in lines.items():
        changed = text
        for old, new in ({"line: flight_delay": f"line: {name}"} | others).items():
            assert old in changed
            changed = changed.replace(old, new, 1)
        (tmp_path / name).mkdir()
        (tmp_path / name / "line.yaml").write_text(changed)
    code = (
        "import json, sys; from airflow.dag_processing.dagbag import DagBag; b = DagBag(sys.argv[1]);"
        "tasks = {i: {t.task_id: sorted(t.upstream_task_ids) for t in d.tasks} for i, d in b.dags.items()};"
        "sys.stdout.write('RESULT' + json.dumps([b.import_errors, tasks]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(REPOSITORY / "dags" / dag_file)],
        env={**os.environ, "PYTHONPATH": "include", "AIF_LINES_DIR": str(tmp_path), "AIRFLOW_HOME": str(tmp_path)},
        cwd=REPOSITORY, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert "RESULT" in done.stdout, done.stderr
    errors, tasks = json.loads(done.stdout.split("RESULT")[1])
    assert errors == {}
    found: dict[str, dict[str, list[str]]] = tasks
    return found


def test_only_a_line_with_the_section_makes_edge_packages(tmp_path: Path) -> None:
    section = {"\nresidency:": "\nedge: {max_size_ratio: 0.5}\n\nresidency:"}
    tasks = tasks_of("train.py", {"with_edge": section, "without_edge": {}}, tmp_path)
    assert tasks["with_edge.train"].pop("edge") == ["register", "resolve"]
    assert tasks["with_edge.train"] == tasks["without_edge.train"]


def test_a_release_waits_for_a_person_where_the_tier_is_high_and_for_traffic_where_there_is_some(
    tmp_path: Path,
) -> None:
    lines = {
        "risky": {"tier: low": "tier: high", "no_traffic: promote_after_offline_checks": "no_traffic: hold"},
        "batch_only": {"tier: low": "tier: low\n  online: false"},
    }
    tasks = tasks_of("deploy.py", lines, tmp_path)
    assert list(tasks["risky.deploy"]) == ["propose", "approve", "approved", "load", "shadow", "canary", "promote"]
    assert tasks["risky.deploy"]["approve"] == ["propose"], "what is asked about is known first"
    assert tasks["risky.deploy"]["approved"] == ["approve", "propose"]
    assert tasks["risky.deploy"]["load"] == ["approved", "propose"]
    assert tasks["batch_only.deploy"] == {"propose": [], "promote": ["propose"]}


def test_the_stock_is_looked_at_only_where_there_is_an_inventory(tmp_path: Path, capacity_file: Path) -> None:
    (tmp_path / "lines").mkdir()
    assert import_errors_of(tmp_path / "lines", tmp_path) == ({}, ["plant.notices"])
    assert import_errors_of(tmp_path / "lines", tmp_path, str(capacity_file)) == ({}, sorted(PLANT_DAGS))


def test_a_bad_inventory_is_an_import_error_that_names_the_field(tmp_path: Path, capacity_file: Path) -> None:
    bad = tmp_path / "capacity.yaml"
    bad.write_text(capacity_file.read_text().replace("units: 8", "units: -8"))
    (tmp_path / "lines").mkdir()
    errors, dag_ids = import_errors_of(tmp_path / "lines", tmp_path, str(bad))
    [(file, message)] = errors.items()
    assert Path(file).name == "specs.py"
    assert "capacity.yaml: clusters.near.offers.own.units: " in message
    assert "Traceback" not in message
    assert dag_ids == ["plant.notices"]


def test_bad_routes_of_notices_are_an_import_error_and_nothing_is_told_by_them(tmp_path: Path) -> None:
    lines, file = REPOSITORY / "include" / "lines", tmp_path / "notices.yaml"
    file.write_text("routes: [{match: {lines: [flight_delays]}, to: [desk]}]")
    errors, dag_ids = import_errors_of(lines, tmp_path, notices_file=str(file))
    [(where, message)] = errors.items()
    assert Path(where).name == "specs.py"
    assert "notices.yaml: routes.0.match.lines: ['flight_delays'] are none of ['flight_delay']" in message
    assert "plant.notices" not in dag_ids
    file.write_text("routes: [{match: {lines: [flight_delay]}, to: [desk]}]")
    assert import_errors_of(lines, tmp_path, notices_file=str(file))[1] == sorted([*dag_ids, "plant.notices"])
