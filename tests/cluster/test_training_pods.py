"""Training in pods of a real cluster, by the real scheduler. The tests share one plant, in the order of the file."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.cluster.conftest import LINE, Lab

pytestmark = [pytest.mark.kubernetes, pytest.mark.integration, pytest.mark.timeout(900)]


def test_a_night_from_landing_to_champion_with_its_training_in_a_pod(lab: Lab):
    lab.demo.make_first_champion(time.time())
    champion = lab.factory.registry(lab.spec).champion()
    assert champion is not None
    [run] = lab.api.runs(f"{LINE}.train")
    made: dict[str, Any] = lab.api.xcom(f"{LINE}.train", run.run_id, "train_challenger")
    assert made["pod"].startswith("flight-delay-train-challenger")
    assert made["schedule_s"] >= 0
    assert made["work_s"] > 0
    [log] = lab.tries(run.run_id, "train_challenger")
    assert "step 120/120" in log, "the pod's own progress is in the task's log"
    assert lab.pods() == []
