"""One settings object for everything that runs: the plant, the tasks, the training program, the tests.

Values come from the environment (`AIF_...`), then from the plant's generated file
`<home>/secrets/plant.env` (mode 0600), then from the defaults below. Nothing is read at import.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parents[2]


class Settings(BaseSettings):
    """Where the plant's parts are and how to reach them. Every field is `AIF_<NAME>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="AIF_", extra="ignore", frozen=True)

    # --- places
    home: Path = Field(REPOSITORY / "var", description="Folder of all state; ignored by git.")
    lines_dir: Path = Field(REPOSITORY / "include" / "lines", description="Folder of the line specs.")
    dags_dir: Path = Field(REPOSITORY / "dags", description="Folder of the DAG files.")
    host: str = Field("127.0.0.1", description="Address that every part listens on.")

    # --- ports (0 is not allowed: a plant keeps its ports over restarts)
    airflow_port: int = Field(8080, ge=1, le=65535, description="Airflow UI and API.")
    mlflow_port: int = Field(5500, ge=1, le=65535, description="MLflow UI and tracking API.")
    postgres_port: int = Field(5440, ge=1, le=65535, description="Postgres.")
    s3_port: int = Field(8340, ge=1, le=65535, description="S3 (SeaweedFS).")
    internal_port: int = Field(
        18600, ge=1, le=65500, description="First of a block of 16 ports that the parts use among themselves."
    )

    # --- addresses, where the parts are not all on `host` (containers)
    postgres_host: str = Field("", description="Host of Postgres; empty means `host`.")
    airflow_uri: str = Field("", description="URL of Airflow as people reach it; empty means `host` and its port.")
    airflow_endpoint: str = Field("", description="URL of Airflow as programs reach it; empty means as people do.")
    mlflow_public_uri: str = Field("", description="URL of MLflow as people reach it; empty means as programs do.")

    # --- stores
    s3_endpoint: str = Field("", description="URL of S3; empty means the plant's own on s3_port.")
    s3_region: str = "us-east-1"
    s3_access_key: str = ""
    s3_secret_key: SecretStr = SecretStr("")
    world_access_key: str = Field("", description="Key of the outside world: it may write to the landing bucket alone.")
    world_secret_key: SecretStr = SecretStr("")
    landing_bucket: str = "landing"
    factory_bucket: str = "factory"
    ledger_dsn: SecretStr = Field(SecretStr(""), description="SQLAlchemy URL of the ledger's database.")
    mlflow_uri: str = Field("", description="URL of the MLflow server; empty means the plant's own on mlflow_port.")
    dataset_git_root: str = Field(
        "", description="Folder or URL prefix of the bare dataset repositories; empty means <home>/git."
    )

    dataset_cache_mb: int = Field(
        512, ge=0, description="Size of the local cache of dataset partitions under <home>/cache, MB; 0 for none."
    )

    # --- pods, where the Airflow connection `kubernetes_conn_id` exists; without it work runs on this machine
    plant_id: str = Field("", description="Names this plant on a cluster that several share; generated once.")
    kubernetes_conn_id: str = Field("kubernetes_default", description="The Airflow connection to the cluster.")
    trainer_image: str = Field("ai-factory-trainer:dev", description="Image of training pods.")
    pod_template: Path = Field(
        REPOSITORY / "include" / "orchestration" / "pod.yaml", description="What every pod has in common."
    )
    pod_secret: str = Field("ai-factory-trainer", description="Secret of the namespace with the pods' S3 key.")
    pod_pull_secret: str = Field("", description="Secret of the namespace with the registry's login; empty for none.")
    pod_priority_class: str = Field("", description="Priority class of pods; empty for the cluster's default.")
    pod_doorway: str = Field(
        "", description="Address of this machine on which pods find S3 and MLflow; empty where they need none."
    )
    pod_s3_endpoint: str = Field("", description="URL of S3 as pods reach it; empty means the same as here.")
    pod_mlflow_uri: str = Field("", description="URL of MLflow as pods reach it; empty means the same as here.")
    pod_gpu_class_label: str = Field("nvidia.com/gpu.product", description="Node label that holds the class of GPU.")
    cluster_grows: bool = Field(
        False, description="Whether nodes are added on demand: what no present node can hold is then waited for."
    )

    # --- work
    threads: int = Field(2, ge=1, description="Threads that one piece of work may use.")
    memory_limit_gb: float = Field(2.0, gt=0, description="Memory that DuckDB may use before it spills, GB.")
    code_revision: str = Field("", description="Commit of the code where it lies outside git, as in an image.")
    trial: str = Field("", description="Free text put into every MLflow run and report, e.g. the name of a test.")

    @property
    def s3_url(self) -> str:
        """URL of the S3 endpoint."""
        return self.s3_endpoint or f"http://{self.host}:{self.s3_port}"

    @property
    def mlflow_url(self) -> str:
        """URL of the MLflow server."""
        return self.mlflow_uri or f"http://{self.host}:{self.mlflow_port}"

    @property
    def pod_s3_url(self) -> str:
        """URL of the S3 endpoint as pods reach it."""
        door = f"http://{self.pod_doorway}:{self.s3_port}" if self.pod_doorway else self.s3_url
        return self.pod_s3_endpoint or door

    @property
    def pod_mlflow_url(self) -> str:
        """URL of the MLflow server as pods reach it."""
        door = f"http://{self.pod_doorway}:{self.mlflow_port}" if self.pod_doorway else self.mlflow_url
        return self.pod_mlflow_uri or door

    @property
    def mlflow_ui_url(self) -> str:
        """URL of MLflow for a person's browser: what links lead to."""
        return self.mlflow_public_uri or self.mlflow_url

    @property
    def airflow_url(self) -> str:
        """URL of the Airflow UI and API for a person."""
        return self.airflow_uri or f"http://{self.host}:{self.airflow_port}"

    @property
    def airflow_api_url(self) -> str:
        """URL of the Airflow API for a program."""
        return self.airflow_endpoint or self.airflow_url

    @property
    def git_root(self) -> str:
        """Where the bare dataset repositories are: `<git_root>/<line>.git`."""
        return self.dataset_git_root or str(self.home / "git")

    @property
    def secrets_file(self) -> Path:
        """The plant's generated secrets, `AIF_NAME=value` a line, mode 0600."""
        return secrets_file(self.home)


def secrets_file(home: Path) -> Path:
    """Path of the generated secrets under a plant's home."""
    return home / "secrets" / "plant.env"


def load_settings(home: Path | None = None) -> Settings:
    """Read the settings: environment first, then the plant's secrets file, then defaults.

    Args:
        home: the plant's home; default `AIF_HOME`, else `<repository>/var`.
    """
    chosen = home or Path(os.environ.get("AIF_HOME") or REPOSITORY / "var")
    generated = secrets_file(chosen)
    return Settings(home=chosen, _env_file=generated if generated.exists() else None)  # type: ignore[call-arg]
