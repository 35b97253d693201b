"""The MLflow server: an environment of its own, because it does not resolve with Airflow's."""

from __future__ import annotations

from urllib.parse import urlsplit

from aifactory.settings import Settings
from plant.environments import Environment
from plant.secrets import Secrets, database_url
from plant.supervision import Program

NAME = "mlflow"
ENVIRONMENT = Environment(NAME, "the MLflow server")


def install(settings: Settings) -> bool:
    """Build the server's environment unless it stands; whether it had to."""
    return ENVIRONMENT.install(settings)


def prepare(settings: Settings, secrets: Secrets) -> Program:
    """How to run the server: one uvicorn process, no job runners, artifacts through it to S3.

    What `mlflow server` would do at 3.17.0 but for its own parent process (230 MB, 5 s): it sets these
    variables and starts uvicorn on the same application.
    """
    command = [str(ENVIRONMENT.folder(settings) / "bin" / "python"), "-m", "uvicorn", "mlflow.server.fastapi_app:app"]
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
