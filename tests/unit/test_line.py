"""The line spec: every line of the house is valid, and a wrong file says which field of which file is wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from aifactory.errors import SpecError
from aifactory.line import find_line, lines_under, load_line
from aifactory.settings import REPOSITORY

LINES = REPOSITORY / "include" / "lines"


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    def edit(change: Callable[[dict[str, Any]], Any]) -> Path:
        content = yaml.safe_load((LINES / "flight_delay" / "line.yaml").read_text())
        change(content)
        folder = tmp_path / "flight_delay"
        folder.mkdir(exist_ok=True)
        (folder / "line.yaml").write_text(yaml.safe_dump(content))
        return folder

    return edit


def test_every_line_of_the_house_is_valid():
    good, bad = lines_under(LINES)
    assert "flight_delay" in [spec.line for spec in good]
    assert bad == {}


def test_a_line_that_was_edited_is_read_again(edited):
    folder = edited(lambda c: c.update(title="before"))
    assert [spec.title for spec in lines_under(folder.parent)[0]] == ["before"]
    again = folder / "line.yaml"
    again.write_text(again.read_text().replace("before", "after"))
    os.utime(again, ns=(1, 1))
    assert [spec.title for spec in lines_under(folder.parent)[0]] == ["after"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"line: flight_delay\nnonsense: 1\n", "nonsense"),
        (b"a: [1,", "is not YAML"),
        (b"a: 2026-13-45\n", "month must be in 1..12"),
        (b"a: caf\xe9\n", "is not YAML"),
        (b"", "must be a mapping"),
    ],
)
def test_a_line_that_is_not_valid_is_told_and_the_others_go_on(edited, content: bytes, words: str):
    good = edited(lambda _: None)
    (good.parent / "bad").mkdir()
    (good.parent / "bad" / "line.yaml").write_bytes(content)
    (good.parent / "notes").mkdir()
    specs, bad = lines_under(good.parent)
    assert [spec.line for spec in specs] == ["flight_delay"]
    assert list(bad) == ["bad"]
    assert words in bad["bad"].message
    shutil.copytree(good, good.parent / "bad", dirs_exist_ok=True)
    mended = good.parent / "bad" / "line.yaml"
    mended.write_text(mended.read_text().replace("line: flight_delay", "line: bad"))
    assert [spec.line for spec in lines_under(good.parent)[0]] == ["bad", "flight_delay"]
    assert lines_under(good.parent / "nowhere") == ((), {})


def test_spec_is_frozen_and_its_digest_is_stable():
    spec = load_line(LINES / "flight_delay")
    with pytest.raises(Exception, match="frozen"):
        spec.title = "other"  # type: ignore[misc]
    assert spec.digest == load_line(LINES / "flight_delay").digest


def test_digest_changes_with_the_content(edited):
    before = load_line(LINES / "flight_delay").digest
    assert load_line(edited(lambda c: c["model"].update(seed=7))).digest != before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["quality"].update(max_quarantine_shar=0.1), ["quality.max_quarantine_shar", "Extra inputs"]),
        (lambda c: c["quality"].update(max_quarantine_share=5), ["quality.max_quarantine_share", "got 5"]),
        (lambda c: c["schedule"].update(cron="0 6 * *"), ["schedule.cron", "five fields", "0 6 * *"]),
        (lambda c: c["schedule"].update(cron="61 6 * * *"), ["schedule.cron", "out of its range", "61 6 * * *"]),
        (lambda c: c["schedule"].update(timezone="Mars/Base"), ["schedule.timezone", "IANA", "Mars/Base"]),
        (lambda c: c["model"].update(recipe="magic"), ["model", "'magic'", "recipes"]),
        (lambda c: c["model"].update(target="carrier"), ["target 'carrier'", "feature"]),
        (lambda c: c["source"].update(units="planes"), ["units", "'planes'", "tables"]),
        (lambda c: c["source"].update(pattern="x/{day}"), ["pattern", "{table}"]),
        (lambda c: c.update(edge={"max_size_ratio": 2}), ["edge.max_size_ratio", "got 2"]),
        (lambda c: c.update(edge={"max_size": 0.5}), ["edge.max_size", "Extra inputs"]),
        (lambda c: c["dataset"].update(min_holdout_days=99), ["min_holdout_days 99", "holdout_days"]),
        (lambda c: c["feedback"].update(rule_violations=9), ["rule_violations 9", "rule_windows"]),
        (lambda c: c["evaluation"].update(slices={"tailnum": 0.1}), ["evaluation.slices", "model.categorical"]),
        (lambda c: c["feedback"].update(cadence_days=9999), ["feedback.cadence_days 9999", "dataset.history_days"]),
        (
            lambda c: c["feedback"].update(label_delay_hours=24),
            ["deployment.rollback_window_hours 72", "window_days 3, label_delay_hours 24: 72 hours"],
        ),
        (lambda c: c.update(line="plant"), ["'plant'", "every line"]),
        (
            lambda c: c["compute"].update(timeout_minutes=90, flexible_hours=99),
            ["compute.flexible_hours 99", "schedule.deadline_minutes"],
        ),
        (lambda c: c.pop("owner"), ["owner", "required"]),
        (lambda c: c["deployment"].update(canary=[{"percent": 50, "bake_minutes": 1}] * 2), ["canary", "rise"]),
        (
            lambda c: c["deployment"].update(canary=[{"percent": 100, "bake_minutes": 1}]),
            ["deployment.canary.0.percent", "99"],
        ),
        (
            lambda c: c["deployment"].update(tier="medium", shadow_minutes=0, canary=[]),
            ["tier", "'medium'", "shadow_minutes", "canary"],
        ),
        (
            lambda c: c["deployment"].update(tier="high", no_traffic="promote_after_offline_checks"),
            ["tier", "'high'", "no_traffic"],
        ),
        (lambda c: c["deployment"].update(max_latency_ratio=1), ["deployment.max_latency_ratio", "greater than 1"]),
    ],
)
def test_a_wrong_field_is_named_with_its_file(edited, change, words):
    with pytest.raises(SpecError) as caught:
        load_line(edited(change))
    for word in ["line.yaml", *words]:
        assert word in str(caught.value)


def test_not_yaml_not_a_mapping_and_missing(tmp_path: Path):
    folder = tmp_path / "x"
    folder.mkdir()
    with pytest.raises(SpecError, match="cannot be read"):
        load_line(folder)
    (folder / "line.yaml").write_text("a: [1,")
    with pytest.raises(SpecError, match="is not YAML"):
        load_line(folder)
    (folder / "line.yaml").write_text("- a\n- b\n")
    with pytest.raises(SpecError, match="must be a mapping"):
        load_line(folder)


def test_folder_and_name_must_agree(edited):
    with pytest.raises(SpecError, match="'other' but the folder is 'flight_delay'"):
        load_line(edited(lambda c: c.update(line="other")))


def test_unknown_line_names_the_known_ones():
    with pytest.raises(SpecError, match="flight_delay"):
        find_line(LINES, "flight_dely")
