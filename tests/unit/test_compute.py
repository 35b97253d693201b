"""Which budget a pod's end goes to: another pod at once, the next try, or none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from aifactory.errors import Defect, FactoryError, InfrastructureFault, TrainingDefect
from aifactory.line import Compute, find_line
from aifactory.reasons import ReasonCode
from aifactory.settings import REPOSITORY, Settings
from orchestration import clusterwork, compute, placing, podgroup
from orchestration.clusterwork import PodEnd
from orchestration.placing import Place

RESULT = {"num_rows": 7, "attempt": "pod"}
DELETED = InfrastructureFault(ReasonCode.POD_DELETED, "deleted")


class Pods:
    """What a task sees of a cluster whose pods end as a test says, each after some steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ends: list[tuple[int, FactoryError | None]] = []
        self.step = 0
        self.results: dict[str, Any] = {}
        self.stops: list[str] = []
        self.cancelled = threading.Event()
        self.before_end: Callable[[], None] = lambda: None
        self.store_is_away = False
        state: dict[str, Any] = {}
        spec = find_line(REPOSITORY / "include" / "lines", "flight_delay")
        store = SimpleNamespace(head=self.results.get, get_json=lambda _: dict(RESULT), uri=str)
        self.state = SimpleNamespace(get=state.get, set=state.__setitem__)
        ti = SimpleNamespace(dag_id="l.train", run_id="r", task_id="t")
        here: Any = SimpleNamespace(
            spec=spec,
            factory=SimpleNamespace(store=store, settings=Settings(_env_file=None)),  # type: ignore[call-arg]
            context={"ti": ti, "task_state_store": self.state},
            cancelled=self.cancelled,
        )
        self.pods = compute._Pods(here, "train")
        monkeypatch.setattr(clusterwork, "run_in_pod", self._run)
        monkeypatch.setattr("aifactory.training.checkpoints.newest", self._newest)
        monkeypatch.setattr("aifactory.stages.train.stopped", lambda *told: self.stops.append(told[-1]))

    def _run(self, *args: Any) -> PodEnd:
        steps, error = self.ends.pop(0)
        self.step += steps
        self.before_end()
        if error:
            raise error
        return PodEnd("pod", {"work_s": 1.0})

    def _newest(self, store: Any, prefix: str) -> str:
        if self.store_is_away:
            raise InfrastructureFault(ReasonCode.STORE_UNREACHABLE, "away")
        return f"{self.step:010d}.json" if self.step > 0 else ""

    def train(self) -> dict[str, Any]:
        return self.pods.train("order", "challenger")

    def fails(self, reason: ReasonCode, kind: type[FactoryError] = InfrastructureFault) -> None:
        with pytest.raises(kind) as caught:
            self.train()
        assert type(caught.value) is kind
        assert caught.value.reason is reason


@pytest.fixture
def pods(monkeypatch: pytest.MonkeyPatch) -> Pods:
    return Pods(monkeypatch)


def test_a_training_that_had_come_further_goes_on_at_once(pods: Pods):
    pods.ends = [(100, DELETED), (50, DELETED), (10, None)]
    assert pods.train() == RESULT | {"work_s": 1.0, "pod": "pod"}
    assert pods.stops == ["0000000100.json", "0000000150.json"]


def test_as_many_pods_are_made_as_were_placed(pods: Pods, monkeypatch: pytest.MonkeyPatch):
    groups: list[Compute] = []
    spec = pods.pods._here.spec
    pods.pods._here.spec = spec.model_copy(update={"compute": Compute(nodes=4, min_nodes=1)})
    monkeypatch.setattr(podgroup, "run_in_group", lambda *_, compute: groups.append(compute) or PodEnd("group", {}))
    pods.ends = [(0, None)]
    work = compute._Work("what", "unit", "program", [], "result", "failure", ("order", "refit"))
    made = [pods.pods._run(work, Place(clusterwork.Cluster("c"), nodes=nodes)).name for nodes in (None, 3, 1)]
    assert made == ["group", "group", "pod"]
    assert [(each.fewest_nodes, each.nodes) for each in groups] == [(1, 4), (1, 3)]


def test_the_refit_has_to_be_done_before_the_deadline_too(pods: Pods, monkeypatch: pytest.MonkeyPatch):
    follows: list[timedelta] = []
    monkeypatch.setattr(placing, "carried_out", lambda *asked: follows.append(asked[-1]) or PodEnd("pod", {}))
    spec = pods.pods._here.spec
    pods.pods._here.spec = spec.model_copy(update={"compute": Compute(expected_minutes=20)})
    for phase in ("challenger", "refit"):
        pods.pods.train("order", phase)
    pods.pods.job("score-1")
    assert follows == [timedelta(minutes=20), timedelta(0), timedelta(0)]


def test_one_that_had_not_goes_to_the_next_try(pods: Pods):
    pods.ends = [(100, DELETED), (0, DELETED)]
    pods.fails(ReasonCode.POD_DELETED)
    assert len(pods.stops) == 1


def test_one_whose_newest_checkpoint_was_no_good_goes_to_the_next_try(pods: Pods):
    pods.ends = [(100, DELETED), (-20, DELETED)]
    pods.fails(ReasonCode.POD_DELETED)


def test_it_goes_on_a_few_times_and_no_more(pods: Pods):
    pods.ends = [(100, DELETED)] * 10
    pods.fails(ReasonCode.POD_DELETED)
    assert len(pods.stops) == compute.NUM_REPLACEMENTS
    assert len(pods.ends) == 10 - 1 - compute.NUM_REPLACEMENTS


def test_it_does_not_go_on_where_a_pod_could_outlive_the_task(pods: Pods, monkeypatch: pytest.MonkeyPatch):
    compute_spec = pods.pods._here.spec.compute
    task_s = compute.limits(pods.pods._here.spec, "train")["execution_timeout"].total_seconds()
    pod_s = 60 * (compute_spec.timeout_minutes + compute_spec.queue_minutes + compute_spec.start_minutes)
    moments = iter([0.0, task_s - 2 * pod_s, task_s - pod_s])
    for module in (placing, compute):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(moments)))  # of these alone
    pods.ends = [(100, DELETED), (100, DELETED), (100, None)]
    pods.fails(ReasonCode.POD_DELETED)
    assert len(pods.stops) == 1


def test_a_cancelled_task_makes_no_other_pod(pods: Pods):
    pods.ends = [(100, DELETED), (100, None)]
    pods.before_end = pods.cancelled.set
    pods.fails(ReasonCode.POD_DELETED)
    assert len(pods.ends) == 1


def test_a_store_that_is_away_does_not_hide_the_reason(pods: Pods):
    pods.ends = [(100, DELETED)]
    pods.before_end = lambda: setattr(pods, "store_is_away", True)
    pods.fails(ReasonCode.POD_DELETED)


@pytest.mark.parametrize("reason", [ReasonCode.START_TIMEOUT, ReasonCode.QUOTA_EXCEEDED, ReasonCode.DEADLINE_MISSED])
def test_a_cluster_without_room_and_a_deadline_go_to_the_next_try(pods: Pods, reason: ReasonCode):
    pods.ends = [(100, InfrastructureFault(reason, "why")), (100, None)]
    pods.fails(reason)
    assert len(pods.ends) == 1


def test_out_of_memory_gets_the_larger_shape_once(pods: Pods):
    short = InfrastructureFault(ReasonCode.OUT_OF_MEMORY, "short")
    pods.ends = [(0, short), (0, short)]
    pods.fails(ReasonCode.OUT_OF_MEMORY)
    pods.fails(ReasonCode.OUT_OF_MEMORY, TrainingDefect)


def test_a_job_is_made_anew_by_the_next_try_and_its_bug_is_not_called_a_training_s(pods: Pods):
    pods.ends = [(100, DELETED), (0, TrainingDefect(ReasonCode.TRAINING_FAILED, "a bug"))]
    with pytest.raises(InfrastructureFault):
        pods.pods.job("score-1")
    with pytest.raises(Defect) as caught:
        pods.pods.job("score-1")
    assert caught.value.reason is ReasonCode.INTERNAL
    assert pods.stops == []
