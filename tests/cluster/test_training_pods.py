"""Training in pods of a real cluster, by the real scheduler. The tests share one plant, in the order of the file."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest
from tests.cluster.conftest import CHECKPOINT_EVERY, LINE, NAMESPACE, REPORT_EVERY, Lab

from aifactory.ledger import EventKind
from aifactory.reasons import ReasonCode
from orchestration.podgroup import INDEX_LABEL
from orchestration.pods import LINE_LABEL, PLANT_LABEL, TASK_ANNOTATIONS

EVICTION = "policy/v1beta1"  # the body's version; clusters from 1.22 on take it as policy/v1

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.timeout(900)]


def test_a_first_model_is_made_in_pods(lab: Lab):
    lab.hold_releases(True)
    lab.take_in_the_history()
    [run] = lab.api.runs(f"{LINE}.train")
    made: dict[str, Any] = lab.api.xcom(f"{LINE}.train", run.run_id, "train_challenger")
    assert made["pod"].startswith("flight-delay-train-challenger")
    assert made["schedule_s"] >= 0
    assert made["work_s"] > 0
    [log] = lab.tries(run.run_id, "train_challenger")
    assert "step 120/120" in log, "the pod's own progress is in the task's log"
    verdict = lab.api.xcom(f"{LINE}.train", run.run_id, "evaluate")
    assert verdict["passed"]
    assert "judges the challenger" in lab.api.logs(f"{LINE}.train", run.run_id, "evaluate", 1), "in a pod too"
    assert "AIF_" not in log
    assert lab.pods() == []


def test_the_connection_does_not_show_its_credentials(lab: Lab):
    shown = lab.api.request("GET", f"/connections/{lab.settings.kubernetes_conn_id}")
    assert json.loads(shown["extra"]) == {"kube_config": "***", "namespace": NAMESPACE}


def trained(lab: Lab, run: str) -> dict[int, float]:
    """The loss curve of a run whose challenger is done; the rest of the run would say nothing new."""
    lab.wait("the challenger", lambda: lab.task(run, "train_challenger")["state"] == "success", 300)
    curve = lab.curve(run)
    lab.cancel(run)
    lab.wait("no pod", lambda: lab.pods() == [], 60)
    return curve


@pytest.fixture(scope="module")
def undisturbed(lab: Lab) -> dict[int, float]:
    """The loss curve of the long training, when nothing happens to it."""
    curve = trained(lab, lab.train("undisturbed"))
    assert len(curve) > 20
    return curve


def lost_steps(lab: Lab, run: str) -> int:
    """Steps that were done twice, by the pods' own words."""
    log = "".join(lab.tries(run, "train_challenger"))
    resumed = re.search(r"going on (?:from|after) step (\d+)", log)
    assert resumed, log[-3000:]
    return max(int(n) for n in re.findall(r"step (\d+)/", log[: resumed.start()])) - int(resumed[1])


def reasons_of(lab: Lab, order_id: str) -> set[str]:
    return {str(e.reason) for e in lab.factory.ledger.events(line=LINE) if order_id in e.unit and e.reason}


@pytest.mark.thorough
def test_a_killed_pod_is_made_anew_and_goes_on_from_its_checkpoint(lab: Lab, undisturbed: dict[int, float]):
    run = lab.train("killed")
    pod, _ = lab.in_the_middle()
    lab.core.delete_namespaced_pod(pod.metadata.name, NAMESPACE, grace_period_seconds=0)
    assert trained(lab, run) == undisturbed
    assert lost_steps(lab, run) <= CHECKPOINT_EVERY + REPORT_EVERY
    assert "POD_DELETED" in reasons_of(lab, lab.order_of(run))
    assert lab.task(run, "train_challenger")["try_number"] == 1, "it had come further, so another pod was made at once"


@pytest.mark.thorough
def test_a_drained_node_costs_nothing_but_time(lab: Lab, undisturbed: dict[int, float]):
    run = lab.train("drained")
    pod, _ = lab.in_the_middle()
    name, node = pod.metadata.name, pod.spec.node_name
    lab.core.patch_node(node, {"spec": {"unschedulable": True}})
    try:
        body = {"apiVersion": EVICTION, "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}}
        lab.core.create_namespaced_pod_eviction(name, NAMESPACE, body)
        lab.wait("the pod to go", lambda: name not in [p.metadata.name for p in lab.pods()])
    finally:
        lab.core.patch_node(node, {"spec": {"unschedulable": None}})
    assert lab.ended(run) == "success"
    assert lab.curve(run) == undisturbed
    assert lost_steps(lab, run) <= REPORT_EVERY, "SIGTERM saves at once"
    assert lab.task(run, "train_challenger")["try_number"] == 1


def test_a_killed_task_finds_its_pod_again(lab: Lab):
    with lab.edited("epochs: 10", "epochs: 40"):  # the next try comes half a minute later
        run = lab.train("task killed")
        pod, _ = lab.in_the_middle()
    title = f"airflow worker -- {lab.task(run, 'train_challenger')['id']}"  # its own; its supervisor has another
    [process] = [p for p in psutil.process_iter(["cmdline"]) if " ".join(p.info["cmdline"] or []).strip() == title]
    process.kill()
    lab.wait("the training", lambda: lab.task(run, "train_challenger")["state"] == "success", 300)
    assert lab.api.xcom(f"{LINE}.train", run, "train_challenger")["pod"] == pod.metadata.name
    first, second = lab.tries(run, "train_challenger")
    assert "it is followed, no other is made" in second
    assert "going on" not in first + second
    lab.cancel(run)
    lab.wait("no pod", lambda: lab.pods() == [], 60)


@pytest.mark.thorough
def test_an_api_server_that_is_away_for_two_minutes(lab: Lab, undisturbed: dict[int, float]):
    run = lab.train("API away")
    lab.in_the_middle()
    lab.gate.close()
    time.sleep(120)
    lab.gate.open()
    assert lab.ended(run, 600) == "success"
    assert lab.curve(run) == undisturbed
    lab.wait_for_old_pods()
    lab.sweep()  # of a pod whose work was done while nobody could remove it
    lab.wait("no pod", lambda: lab.pods() == [], 60)


@pytest.mark.thorough
def test_a_cancelled_run_leaves_no_pod(lab: Lab):
    run = lab.train("cancelled")
    pod, _ = lab.in_the_middle()
    lab.cancel(run)
    lab.wait("no pod", lambda: pod.metadata.name not in [p.metadata.name for p in lab.pods()], 60)
    lab.core.read_namespace(NAMESPACE)
    assert lab.api.run(f"{LINE}.train", run).state == "failed"


@pytest.mark.thorough
def test_out_of_memory_is_tried_once_with_the_larger_shape(lab: Lab):
    with lab.compute("{cpus: 1, memory_gb: 0.2, retry_memory_gb: 1.5, shared_memory_gb: 0.1, scratch_gb: 1}"):
        run = lab.train("small", recipe="gradient_boosting")
        lab.wait("the training", lambda: len(lab.tries(run, "train_challenger")) == 2, 200)
        assert lab.ended(run) == "success"
    first, second = lab.tries(run, "train_challenger")
    assert "the next try gets 1.5 GB instead of 0.2 GB" in first
    assert "step 120/120" in second
    assert "OUT_OF_MEMORY" in reasons_of(lab, lab.order_of(run))


@pytest.mark.thorough
def test_out_of_memory_with_the_larger_shape_too_fails_and_says_so(lab: Lab):
    with lab.compute("{cpus: 1, memory_gb: 0.2, retry_memory_gb: 0.25, shared_memory_gb: 0.1, scratch_gb: 1}"):
        run = lab.train("much too small", recipe="gradient_boosting")
        assert lab.ended(run) == "failed"
    assert len(lab.tries(run, "train_challenger")) == 2
    why = lab.api.xcom(f"{LINE}.train", run, "train_challenger", "reason")
    assert why.startswith("OUT_OF_MEMORY")
    assert "0.25 GB were not enough" in why
    assert lab.pods() == []


@pytest.mark.thorough
def test_an_orphan_is_found_removed_and_reported(lab: Lab):
    [over] = lab.api.runs(f"{LINE}.train")[:1]
    owner = {"dag_id": f"{LINE}.train", "run_id": over.run_id, "task_id": "train_challenger"}
    for name, labels, task in (("orphan", lab.settings.plant_id, owner), ("somebody-elses", "another-plant", owner)):
        pod = {
            "metadata": {
                "name": name,
                "labels": {PLANT_LABEL: labels, LINE_LABEL: LINE},
                "annotations": {TASK_ANNOTATIONS[k]: v for k, v in task.items()},
            },
            "spec": {
                "containers": [{"name": "base", "image": lab.settings.trainer_image, "command": ["sleep", "600"]}]
            },
        }
        lab.core.create_namespaced_pod(NAMESPACE, pod)
    lab.wait_for_old_pods()
    assert lab.sweep() == ["orphan"]
    lab.wait("the orphan's end", lambda: [p.metadata.name for p in lab.pods()] == ["somebody-elses"], 60)
    [event] = [e for e in lab.factory.ledger.events(line=LINE) if e.unit == "orphan"]
    assert event.reason is ReasonCode.ORPHAN_REMOVED
    lab.core.delete_namespaced_pod("somebody-elses", NAMESPACE, grace_period_seconds=0)


def test_a_training_that_has_no_place_yet_holds_no_worker_and_spends_no_try(lab: Lab):
    until = datetime.now(UTC) + timedelta(hours=1)
    note = {"until": until.isoformat(), "reason": "CLUSTER_UNREACHABLE", "message": "by hand"}
    lab.factory.store.put_json("capacity/cooling/near.json", note)
    try:
        run = lab.train("waits")
        lab.wait("it to wait", lambda: lab.task(run, "train_challenger")["state"] == "up_for_reschedule")
        assert [p.metadata.name for p in lab.pods() if p.metadata.annotations[TASK_ANNOTATIONS["run_id"]] == run] == []
    finally:
        lab.factory.store.delete("capacity/cooling/near.json")
    assert lab.ended(run) == "success"
    challenger = lab.task(run, "train_challenger")
    assert (challenger["state"], challenger["try_number"]) == ("success", 1)
    decided = [e for e in lab.factory.ledger.events(line=LINE) if e.event is EventKind.DECIDED and e.run_id == run]
    assert {e.detail["placed"] for e in decided} == {"near.cpu"}
    assert lab.factory.store.list("capacity/promises/") == []


# --- several machines
TWO = (
    "{in_pods: [train], nodes: 2, cpus: 0.7, memory_gb: 1.5, scratch_gb: 1, timeout_minutes: 20, queue_minutes: 2, "
    "start_minutes: 2}"
)
ELASTIC = TWO.replace("nodes: 2", "nodes: 2, min_nodes: 1")


@pytest.fixture(scope="module")
def alone(lab: Lab) -> Iterator[dict[int, float]]:
    """The loss curve of the training in one pod, without dropout: processes draw masks of their own."""
    several = lab.edited("recipe: gradient_boosting", "recipe: tabular_mlp")  # the other trains in one process
    with several, lab.edited("epochs: 10", "dropout: 0, epochs: 3"):
        run = lab.train("alone")
        assert lab.ended(run) == "success"
        curve = lab.curve(run)
        assert len(curve) > 20
        yield curve


def member(lab: Lab, index: int) -> Any:
    """The running pod of an index."""

    def found() -> Any:
        pods = [p for p in lab.pods() if p.metadata.labels.get(INDEX_LABEL) == str(index)]
        return next((p for p in pods if p.status.phase == "Running"), None)

    return lab.wait(f"pod {index} of the group", found)


def same(curve: dict[int, float], other: dict[int, float]) -> bool:
    """Equal but for the order in which floats are added; what that makes grows with the steps."""
    early = {step: loss for step, loss in other.items() if step <= 100}
    return (
        curve.keys() == other.keys()
        and {step: curve[step] for step in early} == pytest.approx(early, rel=1e-4)
        and curve == pytest.approx(other, rel=2e-2)
    )


def test_two_machines_learn_what_one_learns(lab: Lab, alone: dict[int, float]):
    with lab.compute(TWO):
        run = lab.train("two machines")
        lab.in_the_middle()
        assert "step" not in lab.log_of(member(lab, 1).metadata.name), "rank 0 alone tells"
        assert same(trained(lab, run), alone)
    assert "-0-" in lab.api.xcom(f"{LINE}.train", run, "train_challenger")["pod"]
    [log] = lab.tries(run, "train_challenger")
    assert "step" in log, "the leader's progress is in the task's log"


@pytest.mark.thorough
def test_a_machine_that_is_lost_costs_time_and_nothing_else(lab: Lab, alone: dict[int, float]):
    with lab.compute(ELASTIC):
        run = lab.train("lost")
        lab.in_the_middle()
        lab.core.delete_namespaced_pod(member(lab, 1).metadata.name, NAMESPACE, grace_period_seconds=0)
        assert same(trained(lab, run), alone)
    assert lab.task(run, "train_challenger")["try_number"] == 1


# --- last: the days that a champion has learned cannot be trained on again
def test_the_model_goes_into_service_and_a_night_is_scored_with_it(lab: Lab):
    lab.hold_releases(False)
    registry = lab.factory.registry(lab.spec)
    held = registry.versions()[-1].version  # its candidate was announced while nobody listened
    assert lab.api.wait_run(f"{LINE}.deploy", lab.api.trigger_dag(f"{LINE}.deploy", {"version": held})) == "success"
    champion = registry.champion()
    assert champion is not None
    assert champion.version == held
    lab.demo.began_at = time.time()  # what was made to fail before is no failure of this night
    lab.demo._come_to_rest()
    day = lab.demo.world.nights(8)[0]
    lab.demo.play(day)
    scored = [e for e in lab.factory.ledger.events(line=LINE, station="score") if e.partition == day]
    assert scored
    for stage, task, words in (("ingest", "build_features", "rows of 1 days"), ("score", "score_pending", "day 1/1")):
        newest = lab.api.runs(f"{LINE}.{stage}")[-1]
        assert words in lab.api.logs(f"{LINE}.{stage}", newest.run_id, task, 1), "in a pod"
    assert lab.pods() == []
