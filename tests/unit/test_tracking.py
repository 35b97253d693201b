"""Metrics are sent beside the step loop, all of them, and what cannot be sent is told."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from aifactory.errors import InfrastructureFault
from aifactory.settings import Settings
from aifactory.training import tracking
from aifactory.training.tracking import Tracker


class Server:
    """Answers a batch of metrics when it is let go; refuses from then on where it is told to."""

    def __init__(self) -> None:
        self.lets_go = threading.Event()
        self.asked = threading.Event()
        self.refuses = False
        self.steps: list[int] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1")

    def search_runs(self, *args: Any, **kwargs: Any) -> list[Any]:
        return [SimpleNamespace(info=SimpleNamespace(run_id="a"))]

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.asked.set()
        assert self.lets_go.wait(30)
        if self.refuses:
            raise MlflowException("full")
        self.steps += [metric.step for metric in metrics]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(tracking, "mlflow_client", lambda settings: server)
    monkeypatch.setattr(tracking, "FLUSH_S", 0)
    return server


@pytest.fixture
def tracker(server: Server) -> Tracker:
    return Tracker(Settings(_env_file=None), "line", "order", "challenger")


def test_the_loop_goes_on_while_the_server_thinks(server: Server, tracker: Tracker):
    for step in range(1, 4):
        tracker.progress(step, {"loss": 1.0})
    assert server.asked.wait(30)
    assert server.steps == []
    server.lets_go.set()
    tracker.flush()
    assert server.steps == [1, 2, 3]


def test_what_was_not_taken_is_told_at_the_next_step(server: Server, tracker: Tracker):
    server.refuses = True
    tracker.progress(1, {"loss": 1.0})
    server.lets_go.set()
    assert tracker._sending is not None
    assert tracker._sending.exception(30) is not None
    with pytest.raises(InfrastructureFault, match="full"):
        tracker.progress(2, {"loss": 1.0})


def test_what_was_not_taken_is_told_at_the_end(server: Server, tracker: Tracker):
    server.refuses = True
    tracker.progress(1, {"loss": 1.0})
    server.lets_go.set()
    with pytest.raises(InfrastructureFault, match="full"):
        tracker.flush()


def test_a_note_from_beside_is_sent_with_the_rest(server: Server, tracker: Tracker):
    server.lets_go.set()
    tracker.note(1, {"power": 1.0})
    tracker.progress(2, {"loss": 1.0})
    tracker.note(3, {"power": 1.0})
    tracker.flush()
    assert sorted(server.steps) == [1, 2, 3]


def test_a_note_leaves_what_was_not_taken_to_the_training(server: Server, tracker: Tracker):
    server.refuses = True
    server.lets_go.set()
    tracker.note(1, {"power": 1.0})
    assert tracker._sending is not None
    assert tracker._sending.exception(30) is not None
    tracker.note(2, {"power": 1.0})
    with pytest.raises(InfrastructureFault, match="full"):
        tracker.progress(3, {"loss": 1.0})
