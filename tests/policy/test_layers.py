"""Dependencies point one way: dags, plugins → orchestration → aifactory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from aifactory.settings import REPOSITORY


def test_the_layers_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=REPOSITORY, capture_output=True, text=True,
        check=False, env={"PYTHONPATH": "include", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", sorted([*(REPOSITORY / "dags").glob("*.py"), *(REPOSITORY / "plugins").glob("*.py")]))
def test_dags_and_plugins_reach_the_factory_only_through_its_stages(file: Path) -> None:
    modules = re.findall(r"^\s*(?:from|import) (aifactory[\w.]*)", file.read_text(), re.MULTILINE)
    # specs, and work
    assert set(modules) <= {"aifactory.line", "aifactory.capacity.inventory", "aifactory.notices", "aifactory.stages"}


@pytest.mark.parametrize("file", sorted((REPOSITORY / "include" / "aifactory").rglob("*.py")), ids=lambda f: f.stem)
def test_the_factory_never_imports_airflow(file: Path) -> None:
    assert not re.search(r"^\s*(from|import) airflow\b", file.read_text(), re.MULTILINE)
