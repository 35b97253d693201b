"""No try of a task takes longer than six hours, whatever a line asks for: it is made to fit, or refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from aifactory.line import Compute, LineSpec, Schedule, find_line
from aifactory.settings import REPOSITORY
from orchestration import compute

SIX_HOURS = timedelta(hours=6)
LINE = find_line(REPOSITORY / "include" / "lines", "flight_delay")


def with_compute(**changes: Any) -> LineSpec:
    return LINE.model_copy(update={"compute": Compute(in_pods=["train", "score"], **changes)})


def limit(work: str, **changes: Any) -> timedelta:
    found: timedelta = compute.limits(with_compute(**changes), work)["execution_timeout"]
    return found


@given(
    st.sampled_from(["train", "score"]),
    st.sampled_from([1, 2, 3, 10**6]),
    st.integers(1, 400) | st.integers(1, 10**30),
    st.integers(1, 200) | st.floats(1e-3, 1e300),
    st.integers(1, 200) | st.floats(1e-3, 1e300),
)
@example("train", 2, 46, 30.0, 10.0)
@example("train", 10**6, 285, 30.0, 10.0)
@example("train", 1, 353, 1.0, 1.0)
@example("train", 1, 60, float("inf"), 10.0)
@example("train", 3, 106, 2.0, 5.0)
def test_every_spec_fits_or_is_refused(work: str, nodes: int, timeout: int, queue: float, start: float) -> None:
    asked = {"nodes": nodes, "timeout_minutes": timeout, "queue_minutes": queue, "start_minutes": start}
    minutes = timeout + queue * min(nodes, 2) + start + 5
    assume(minutes == 360 or abs(minutes - 360) > 1e-6)  # a timedelta has microseconds
    most = 3 if work == "train" else 2
    if minutes > 360:
        with pytest.raises(ValidationError, match=r"timeout_minutes .* queue_minutes .* start_minutes") as refused:
            limit(work, **asked)
        assert ("nodes" in refused.value.errors()[0]["msg"]) == (nodes > 1)
        return
    num_pods = limit(work, **asked) / timedelta(minutes=minutes)
    assert limit(work, **asked) <= SIX_HOURS
    assert num_pods == pytest.approx(min(most, max(1, 360 * (1 + 1e-9) // minutes)))


@pytest.mark.parametrize(
    ("nodes", "timeout", "num_pods"),
    [(1, 60, 3), (1, 75, 3), (1, 76, 2), (1, 135, 2), (1, 136, 1), (1, 315, 1), (2, 45, 3), (2, 46, 2), (9, 60, 2),
     (2, 105, 2), (2, 106, 1), (2, 285, 1)],
)  # fmt: skip
def test_the_longer_a_pod_may_take_the_fewer_there_is_time_for(nodes: int, timeout: int, num_pods: int) -> None:
    one = timedelta(minutes=timeout + 30 * min(nodes, 2) + 10 + 5)
    assert limit("train", nodes=nodes, timeout_minutes=timeout) == num_pods * one


@pytest.mark.parametrize(("nodes", "timeout"), [(1, 316), (2, 286)])
def test_a_pod_that_could_outlast_a_try_is_refused(nodes: int, timeout: int) -> None:
    with pytest.raises(ValidationError, match=rf"timeout_minutes {timeout}, queue_minutes 30.*6 h"):
        Compute(nodes=nodes, timeout_minutes=timeout)


def test_other_tasks_too() -> None:
    assert timedelta(minutes=Schedule(cron="0 6 * * *", stage_timeout_minutes=360).stage_timeout_minutes) == SIX_HOURS
    with pytest.raises(ValidationError, match="stage_timeout_minutes"):
        Schedule(cron="0 6 * * *", stage_timeout_minutes=361)
