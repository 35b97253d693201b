"""Which day is scored by which model, and what is wrong with a day's predictions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifactory import scoring
from aifactory.line import find_line
from aifactory.settings import REPOSITORY

SPEC = find_line(REPOSITORY / "include" / "lines", "flight_delay")
REIGNS = [
    {"version": "1", "trained_until": "2026-06-10"},
    {"version": "2", "trained_until": "2026-06-20"},
]
days = st.dates().map(str)


def entry(content: str = "a", version: str = "1", refused: bool = False) -> dict:
    return {"content": content, "model_version": version, "refused": refused}


def todo(content, done, reigns=REIGNS, asked=None):
    return [(day, reign["version"]) for day, reign in scoring.pending(reigns, content, done, asked)]


def test_a_day_is_scored_by_the_newest_model_that_has_not_learned_from_it():
    assert todo({"2026-06-10": "a", "2026-06-11": "b", "2026-06-20": "c", "2026-06-21": "d"}, {}) == [
        ("2026-06-11", "1"),
        ("2026-06-20", "1"),
        ("2026-06-21", "2"),
    ]


@given(st.lists(days, max_size=6), days)
def test_no_model_scores_what_it_learned_from(learned, day):
    reigns = [{"version": str(n), "trained_until": until} for n, until in enumerate(learned)]
    reign = scoring.honest_reign(reigns, day)
    assert reign is None or reign["trained_until"] < day
    assert (reign is None) == all(until >= day for until in learned)


def test_a_model_that_was_rolled_back_to_scores_again():
    assert todo({"2026-06-25": "a"}, {}, [*REIGNS, REIGNS[0]]) == [("2026-06-25", "1")]


def test_what_was_said_in_time_is_not_rewritten_by_a_newer_model():
    assert todo({"2026-06-21": "a"}, {"2026-06-21": entry("a", "1")}, asked="2026-06-21") == []


def test_a_corrected_day_is_scored_again_by_the_model_that_scored_it_first():
    assert todo({"2026-06-21": "b"}, {"2026-06-21": entry("a", "1")}) == [("2026-06-21", "1")]


def test_a_refused_day_waits_for_other_rows_another_model_or_a_word():
    done = {"2026-06-21": entry("a", "2", refused=True)}
    assert todo({"2026-06-21": "a"}, done) == []
    assert todo({"2026-06-21": "b"}, done) == [("2026-06-21", "2")]
    assert todo({"2026-06-21": "a"}, done, [*REIGNS, REIGNS[0]]) == [("2026-06-21", "1")]
    assert todo({"2026-06-21": "a"}, done, asked="2026-06-21") == [("2026-06-21", "2")]


# --- the gate against recent days
RECENT = [{"num_rows": 900, "mean_score": 0.2, "refused": False}] * 5


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ({"num_scored": 700}, "coverage 0.778 is below scoring.min_coverage"),
        ({"mean_score": 0.7}, r"moved by \+0.500 against 5 recent days"),
        ({"num_rows": 90, "num_scored": 900}, "number of predictions is 0.10"),
    ],
)
def test_a_problem_is_named_with_its_number(made, named):
    good = {"num_rows": 900, "num_scored": 900, "mean_score": 0.25}
    assert scoring.problems(SPEC, 900, good, RECENT) == []
    assert scoring.problems(SPEC, 900, good, []) == []
    [said] = scoring.problems(SPEC, 900, good | made, RECENT)
    assert re.search(named, said)


def test_a_day_is_compared_with_the_good_days_before_it():
    done = {f"2026-06-{n:02d}": {"n": n, "refused": n == 4} for n in range(1, 8)}
    spec = SPEC.model_copy(update={"scoring": SPEC.scoring.model_copy(update={"recent_days": 3})})
    assert [e["n"] for e in scoring.recent_entries(spec, done, "2026-06-06")] == [2, 3, 5]
