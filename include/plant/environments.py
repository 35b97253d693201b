"""Environments of programs that do not resolve with Airflow's: built from pins, once, under the plant's home."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aifactory.settings import REPOSITORY, Settings
from plant.errors import PlantError


@dataclass(frozen=True)
class Environment:
    """A Python environment of one program.

    Args:
        name: of the program; `requirements-<name>.txt` holds its pins, `AIF_<NAME>_ENV` may say where it is.
        title: of the program, for messages.
        dependencies: whether to install what the pins depend on; else the pins alone.
        finish: what else is to be done to a new environment, given its folder.
    """

    name: str
    title: str
    dependencies: bool = True
    finish: Callable[[Path], None] | None = None

    @property
    def requirements(self) -> Path:
        """Its pins."""
        return REPOSITORY / f"requirements-{self.name}.txt"

    def folder(self, settings: Settings) -> Path:
        """Where it is: `AIF_<NAME>_ENV` (to share one between plants), else under the home."""
        return Path(os.environ.get(f"AIF_{self.name.upper()}_ENV") or settings.home / f"{self.name}-env")

    def install(self, settings: Settings) -> bool:
        """Build it unless it stands with these very requirements; whether it had to.

        One builder at a time; the mark is written last, so that a broken installation is made anew.

        Raises:
            PlantError: it cannot be built.
        """
        folder = self.folder(settings)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            wanted = hashlib.sha256(self.requirements.read_bytes()).hexdigest()
            mark = folder / "requirements.sha256"
            if mark.exists() and mark.read_text() == wanted:
                return False
            shutil.rmtree(folder, ignore_errors=True)
            self._build(folder)
            mark.write_text(wanted)
        return True

    def _build(self, folder: Path) -> None:
        uv = Path(sys.executable).parent / "uv"
        if not uv.exists():
            raise PlantError(f"{uv} is missing: run `make install`")
        self._run([str(uv), "venv", "--quiet", "--python", sys.executable, str(folder)])
        # Bytecode is left to the program's first start, which writes that of what it uses: for MLflow 9 CPU-seconds
        # instead of 22
        command = [str(uv), "pip", "install", "--quiet", "--python", str(folder / "bin" / "python")]
        command += [] if self.dependencies else ["--no-deps"]
        self._run([*command, "--requirement", str(self.requirements)])
        if self.finish is not None:
            self.finish(folder)

    def _run(self, command: list[str]) -> None:
        """Run the installer; it finds packages where pip's own settings say."""
        environment = dict(os.environ)
        for pip, uv in (
            ("PIP_FIND_LINKS", "UV_FIND_LINKS"),
            ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"),
            ("PIP_EXTRA_INDEX_URL", "UV_INDEX"),
        ):
            if pip in environment:
                environment.setdefault(uv, environment[pip])
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise PlantError(f"the environment of {self.title} cannot be built: {done.stderr.strip()[-2000:]}")
