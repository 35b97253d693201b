"""The MLflow server: an environment of its own, because it does not resolve with Airflow's."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from aifactory.settings import REPOSITORY, Settings
from plant.errors import PlantError
from plant.secrets import Secrets, database_url
from plant.supervision import Program

NAME = "mlflow"
REQUIREMENTS = REPOSITORY / "requirements-mlflow.txt"
ENVIRONMENT_VARIABLE = "AIF_MLFLOW_ENV"


def environment_folder(settings: Settings) -> Path:
    """Where the server's environment is: `AIF_MLFLOW_ENV` (to share one between plants), else under the home."""
    return Path(os.environ.get(ENVIRONMENT_VARIABLE) or settings.home / "mlflow-env")


def install(settings: Settings) -> bool:
    """Build the server's environment unless it stands with these very requirements; whether it had to.

    One builder at a time; the mark is written last, so that a broken installation is made anew.
    """
    folder = environment_folder(settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
        mark = folder / "requirements.sha256"
        if mark.exists() and mark.read_text() == wanted:
            return False
        shutil.rmtree(folder, ignore_errors=True)
        _build(folder)
        mark.write_text(wanted)
    return True


def _build(folder: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        raise PlantError(f"{uv} is missing: run `make install`")
    _run([str(uv), "venv", "--quiet", "--python", sys.executable, str(folder)])
    # Bytecode is left to the server's first start, which writes that of what it uses: 9 CPU-seconds instead of 22
    python = str(folder / "bin" / "python")
    _run([str(uv), "pip", "install", "--quiet", "--python", python, "--requirement", str(REQUIREMENTS)])


def prepare(settings: Settings, secrets: Secrets) -> Program:
    """How to run the server: one uvicorn process, no job runners, artifacts through it to S3.

    What `mlflow server` would do at 3.17.0 but for its own parent process (230 MB, 5 s): it sets these
    variables and starts uvicorn on the same application.
    """
    command = [str(environment_folder(settings) / "bin" / "python"), "-m", "uvicorn", "mlflow.server.fastapi_app:app"]
    command += ["--host", settings.host, "--port", str(settings.mlflow_port), "--workers", "1", "--no-access-log"]
    return Program(NAME, command, variables(settings, secrets), order=100)


def variables(settings: Settings, secrets: Secrets) -> dict[str, str]:
    """The environment of the server: where its database and its artifacts are, with the keys to them."""
    url = database_url(settings, "mlflow", secrets["PLANT_DB_MLFLOW_PASSWORD"])
    urls = (settings.mlflow_url, settings.pod_mlflow_url)
    hosts = ("localhost", "127.0.0.1", settings.host, *(urlsplit(url).hostname for url in urls))
    return {
        "_MLFLOW_SERVER_FILE_STORE": url,
        "_MLFLOW_SERVER_REGISTRY_STORE": url,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"s3://{settings.factory_bucket}/mlflow",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(f"{host}:*" for host in dict.fromkeys(hosts)),
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "4",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_S3_ENDPOINT_URL": settings.s3_url,
        "AWS_ACCESS_KEY_ID": secrets["AIF_S3_ACCESS_KEY"],
        "AWS_SECRET_ACCESS_KEY": secrets["AIF_S3_SECRET_KEY"],
        "AWS_DEFAULT_REGION": settings.s3_region,
        "PYTHONDONTWRITEBYTECODE": "",
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }


def answers(settings: Settings) -> bool:
    """Whether the server answers from its database, whose tables it makes on the first such question."""
    import httpx

    try:
        answer = httpx.post(
            f"{settings.mlflow_url}/api/2.0/mlflow/experiments/search", json={"max_results": 1}, timeout=60
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK


def _run(command: list[str]) -> None:
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
        raise PlantError(f"the MLflow server's environment cannot be built: {done.stderr.strip()[-2000:]}")
