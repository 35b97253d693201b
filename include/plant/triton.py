"""The model servers: NVIDIA Triton from its wheel, one process a slot, in an environment of its own.

    <home>/triton-env/backends/     what `--backend-directory` names: Triton's Python backend and our `onnxruntime`
    <home>/serving/<slot>/          model repository of a slot
    <home>/spool/<slot>/            prediction log of a slot

A server loads all that is in its repository when it starts, and from then on what it is told to. It is on loopback
alone: the wheel's build is old, and its repository calls are for the plant only.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from aifactory.serving.backend import LOG_FOLDER_VARIABLE, REQUEST_ID_HEADER, SHADOW_HEADER, SLOT_VARIABLE
from aifactory.settings import REPOSITORY, Settings
from plant.environments import Environment
from plant.errors import PlantError
from plant.ports import internal
from plant.slots import LOOPBACK, SLOTS, name, repository_folder, spool_folder
from plant.supervision import Program

_GLIBC = (2, 35)
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_LIBPYTHON = f"libpython{_PYTHON}.so.1.0"
_EXIT_S = 10
"""How long a server that is asked to stop finishes requests, s."""

_OTHERWISE = "set AIF_SERVING_RUNTIME=own to use the factory's own model server instead"

_BACKEND = '''"""Our backend, from the code of the plant that runs it: Triton's Python ignores PYTHONPATH."""

import os
import sys

sys.path.insert(0, os.environ["PYTHONPATH"])
from aifactory.serving.backend.model import TritonPythonModel
'''


def install(settings: Settings) -> bool:
    """Build the servers' environment unless it stands; whether it had to.

    Raises:
        PlantError: the wheel cannot run on this machine, or the environment cannot be built; says what to do.
    """
    check_machine()
    built = ENVIRONMENT.install(settings)
    _write_backend(ENVIRONMENT.folder(settings))
    return built


def check_machine() -> None:
    """Fail where Triton's wheel cannot run: it is for Linux with glibc 2.35 or newer, on x86-64 or ARM64.

    Raises:
        PlantError: it cannot; names the setting that chooses the other server.
    """
    needs = f"the Triton wheel needs Linux with glibc {'.'.join(map(str, _GLIBC))} or newer, x86-64 or ARM64"
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise PlantError(f"{needs}; this is {sys.platform} on {platform.machine()}: {_OTHERWISE}")
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(int(n) for n in version.split(".")[:2]) < _GLIBC:
        raise PlantError(f"{needs}; here is {f'{library} {version}'.strip() or 'another C library'}: {_OTHERWISE}")
    own = Path(sysconfig.get_config_var("LIBDIR") or "/nowhere") / _LIBPYTHON
    try:
        ctypes.CDLL(str(own) if own.exists() else _LIBPYTHON)
    except OSError as error:
        raise PlantError(
            f"Triton's Python backend needs {_LIBPYTHON} (Debian and Ubuntu: apt-get install libpython{_PYTHON}): "
            f"{error}; install it, or {_OTHERWISE}"
        ) from error


def prepare(settings: Settings) -> list[Program]:
    """How to run the servers of both slots."""
    return [_program(settings, slot) for slot in SLOTS]


def shared_memory_prefix(settings: Settings, slot: str) -> str:
    """What a slot's shared-memory segments begin with, of this plant alone."""
    home = hashlib.sha256(os.fsencode(settings.home)).hexdigest()[:12]
    return f"ai-factory-{home}-{slot}-"


def _program(settings: Settings, slot: str) -> Program:
    environment, repository = ENVIRONMENT.folder(settings), repository_folder(settings, slot)
    repository.mkdir(parents=True, exist_ok=True)
    shared_memory = shared_memory_prefix(settings, slot)
    forwarded = f"{REQUEST_ID_HEADER}|{SHADOW_HEADER}"
    flags = {
        "id": name(slot),
        "model-repository": repository,
        "backend-directory": environment / "backends",
        "model-control-mode": "explicit",
        "load-model": "*",
        # One model that is refused keeps neither the server nor the other lines' models from serving.
        "exit-on-error": "false",
        "strict-readiness": "false",
        "exit-timeout-secs": _EXIT_S,
        "allow-gpu-metrics": "false",
        "pinned-memory-pool-byte-size": 0,
        "http-address": LOOPBACK,
        "http-port": internal(settings, f"serving_{slot}_http"),
        "http-header-forward-pattern": f"(?i){forwarded}",
        "grpc-address": LOOPBACK,
        "grpc-port": internal(settings, f"serving_{slot}_grpc"),
        "grpc-header-forward-pattern": forwarded,
        "metrics-address": LOOPBACK,
        "metrics-port": internal(settings, f"serving_{slot}_metrics"),
        "backend-config": f"python,shm-region-prefix-name={shared_memory}",
    }
    # A server that was killed leaves its shared memory behind; the shell becomes the server.
    command = ["/bin/sh", "-c", 'rm -f "/dev/shm/$0"*; exec "$@"', shared_memory, str(_server(environment))]
    command += ["--disable-auto-complete-config", *(f"--{flag}={value}" for flag, value in flags.items())]
    variables = {
        "LD_LIBRARY_PATH": _library_path(environment),
        "PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(REPOSITORY / "include"),
        LOG_FOLDER_VARIABLE: str(spool_folder(settings, slot)),
        SLOT_VARIABLE: slot,
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }
    return Program(name(slot), command, variables, order=300, stop_wait_s=_EXIT_S + 5)


def lay_out(environment: Path) -> None:
    """Bring the backends together in a new environment, and see whether the wheel runs here.

    Files are copied, for Triton refuses links that lead out of the directory.

    Raises:
        PlantError: it does not.
    """
    _write_backend(environment)
    backends, version = environment / "backends", _PYTHON
    shutil.copytree(_wheel(environment) / "backends" / "python", backends / "python")
    stub = backends / "python" / "triton_python_backend_stub"
    shutil.copy2(_wheel(environment) / "python_backend_stubs" / version / stub.name, stub)
    for command, sign in (([str(_server(environment)), "--help"], "--model-repository"), ([str(stub)], "arguments")):
        said = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "LD_LIBRARY_PATH": _library_path(environment)},
        )
        if sign not in said.stdout + said.stderr:
            raise PlantError(
                f"Triton cannot run here: {said.stderr.strip()[-500:]}. It needs the shared library of "
                f"Python {version} (on Debian and Ubuntu: apt-get install libpython{version}). Install it, "
                f"or {_OTHERWISE}"
            )


def _write_backend(environment: Path) -> None:
    backend = environment / "backends" / "onnxruntime" / "model.py"
    backend.parent.mkdir(parents=True, exist_ok=True)
    backend.write_text(_BACKEND)


def _library_path(environment: Path) -> str:
    folders = [_wheel(environment).parents[1] / "nvidia_pytriton.libs"]
    own = Path(sysconfig.get_config_var("LIBDIR") or "/nowhere")
    if (own / _LIBPYTHON).exists():
        folders.append(own)
    return ":".join(str(folder) for folder in folders)


def _server(environment: Path) -> Path:
    return _wheel(environment) / "bin" / "tritonserver"


def _wheel(environment: Path) -> Path:
    return environment / "lib" / f"python{_PYTHON}" / "site-packages" / "pytriton" / "tritonserver"


ENVIRONMENT = Environment("triton", "the model servers", dependencies=False, finish=lay_out)
