"""One settings object for everything that runs: the plant, the tasks, the training program, the tests.

Values come from the environment (`AIF_...`), then from the plant's generated file
`<home>/secrets/plant.env` (mode 0600), then from the defaults below. Nothing is read at import.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parents[2]


def _absolute(path: str | Path | None) -> Path | None:
    """A path that every process of the plant understands; an empty one is none."""
    return Path(path).absolute() if path else None


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(value.get_secret_value()) if isinstance(value, SecretStr) else str(value)


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
    serving_port: int = Field(8390, ge=1, le=65535, description="The gateway to the models: REST and gRPC.")
    internal_port: int = Field(
        18600, ge=1, le=65500, description="First of a block of 32 ports that the parts use among themselves."
    )

    # --- addresses, where the parts are not all on `host` (containers)
    postgres_host: str = Field("", description="Host of Postgres; empty means `host`.")
    airflow_uri: str = Field("", description="URL of Airflow as people reach it; empty means `host` and its port.")
    airflow_endpoint: str = Field("", description="URL of Airflow as programs reach it; empty means as people do.")
    mlflow_public_uri: str = Field("", description="URL of MLflow as people reach it; empty means as programs do.")

    serving_endpoint: str = Field("", description="host:port of the gateway as programs reach it; empty: the plant's.")

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
    signing_key: SecretStr = Field(
        SecretStr(""), description="Private key that released packages are signed with, PEM in base64; generated once."
    )
    verifying_key: str = Field("", description="Its public key, PEM in base64: what puts a package in service has it.")
    capacity_password: SecretStr = Field(
        SecretStr(""), description="Password of Airflow's user `capacity`, which keeps the pools; generated once."
    )
    mlflow_uri: str = Field("", description="URL of the MLflow server; empty means the plant's own on mlflow_port.")
    dataset_git_root: str = Field(
        "", description="Folder or URL prefix of the bare dataset repositories; empty means <home>/git."
    )

    dataset_cache_mb: int = Field(
        512, ge=0, description="Size of the local cache of dataset partitions under <home>/cache, MB; 0 for none."
    )

    live_spool_mb: int = Field(
        1024,
        ge=1,
        description="Size of the prediction log's spool under <home>/spool, MB; above, the oldest is dropped.",
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
    pod_queue: str = Field("", description="Kueue's LocalQueue of the namespace that pods wait in; empty for none.")
    pod_doorway: str = Field(
        "", description="Address of this machine on which pods find S3 and MLflow; empty where they need none."
    )
    pod_s3_endpoint: str = Field("", description="URL of S3 as pods reach it; empty means the same as here.")
    pod_mlflow_uri: str = Field("", description="URL of MLflow as pods reach it; empty means the same as here.")
    pod_gpu_class_label: str = Field("nvidia.com/gpu.product", description="Node label that holds the class of GPU.")
    capacity_file: Annotated[Path | None, BeforeValidator(_absolute)] = Field(
        None, description="Inventory of clusters and prices that work is placed by, see docs/capacity.md; empty: none."
    )
    cluster_grows: bool = Field(
        False, description="Whether nodes are added on demand: what no present node can hold is then waited for."
    )

    # --- what is told to people and to monitoring
    notices_file: Annotated[Path | None, BeforeValidator(_absolute)] = Field(
        None, description="Who is told of what, see docs/notices.md; empty: notices go to the log alone."
    )
    metrics_token: SecretStr = Field(
        SecretStr(""), description="Bearer token that reads /floor/metrics; empty: only who is logged in to Airflow."
    )

    demo_nights: int = Field(8, ge=2, le=8, description="How many nights the demo plays; fewer are a quicker look.")

    # --- what work costs, as the program that does it is told; the defaults are of a machine that is paid for anyway
    currency: str = Field("EUR", pattern=r"^[A-Z]{3}$", description="ISO 4217 code of all money.")
    unit_hour: float = Field(
        0.0, ge=0, description="Price of an hour of use of a GPU, or of the program where it has none. Not cents."
    )
    energy_price_kwh: float = Field(
        0.2,
        allow_inf_nan=False,
        description="Price of energy, money per kWh, which may be below 0; 0 where unit_hour pays for it. Default: of "
        "firms in the EU, end of 2023 (Eurostat).",
    )
    carbon_g_kwh: float = Field(
        473.0, ge=0, description="Carbon of energy, grams of CO2 per kWh. Default: the world's mean of 2024 (Ember)."
    )
    pue: float = Field(1.2, ge=1, le=3, description="Power usage effectiveness: energy drawn ÷ energy of the machines.")
    core_idle_w: float = Field(
        0.74, ge=0, description="Power of an idle core with its share of the machine, W; see core_busy_w."
    )
    core_busy_w: float = Field(
        2.76,
        ge=0,
        description="More power of a busy core, W. By these energy is estimated where RAPL cannot be read; 0.74 W idle "
        "and 3.5 W at full use are Cloud Carbon Footprint's means for a vCPU of AWS.",
    )
    rapl_dir: Path = Field(Path("/sys/class/powercap"), description="Folder of the processor's energy meters (RAPL).")
    dcgm_url: str = Field("", description="URL of the figures of this node's dcgm-exporter; empty where none runs.")

    # --- serving
    serving_runtime: Literal["auto", "triton", "own"] = Field(
        "auto", description="The model servers: NVIDIA Triton, or the factory's own; auto: Triton where its wheel runs."
    )
    serving_keys_file: Annotated[Path | None, BeforeValidator(_absolute)] = Field(
        None,
        description="File of mode 0600 with a client's name=key a line, see plant/clients.py; empty: no key is asked.",
    )
    serving_requests_per_s: int = Field(
        2000,
        ge=1,
        le=1_000_000,
        description="Requests of all callers of the gateway together, 1/s; twice that at once.",
    )
    serving_max_request_mb: float = Field(
        4,
        ge=0.001,
        le=8,
        description="Size of a request's body, MB (10^6 bytes); the model servers take no more than 8.",
    )
    serving_target: Literal["plant", "kserve"] = Field(
        "plant", description="What serves: the plant's own slots and gateway, or KServe, docs/serving-on-kubernetes.md."
    )
    kserve_namespace: str = Field("ai-factory", description="Namespace of the InferenceServices, one a line.")
    kserve_gateway: str = Field(
        "kserve/kserve-ingress-gateway",
        description="KServe's Gateway, namespace/name: a trial's route hangs on it too.",
    )
    kserve_domain: str = Field("example.com", description="KServe's ingressDomain: <service>-<namespace>.<domain>.")
    kserve_runtime: str = Field("kserve-tritonserver", description="The (Cluster)ServingRuntime of Triton.")
    kserve_service_account: str = Field(
        "ai-factory-serving", description="Service account whose secret has the key that models are fetched from S3 by."
    )
    kserve_logger_url: str = Field(
        "", description="URL of the receiver of logged requests; empty: the Service that its manifests make."
    )
    kserve_log_secret: str = Field(
        "ai-factory-log",
        description="Secret of the namespace with the receiver's S3 key, AIF_S3_ACCESS_KEY and ..._SECRET_KEY.",
    )
    serving_image: str = Field("ai-factory-serving:dev", description="Image of that receiver.")

    # --- work
    threads: int = Field(2, ge=1, description="Threads that one piece of work may use.")
    memory_limit_gb: float = Field(2.0, gt=0, description="Memory that DuckDB may use before it spills, GB.")
    processes: int = Field(1, ge=1, description="Processes of this machine that share one training.")
    nodes: str = Field(
        "1", pattern=r"^[1-9]\d*(:[1-9]\d*)?$", description="Machines that share one training: number, or fewest:most."
    )
    rendezvous: str = Field("", description="host:port where several machines meet for a training; the host's own too.")
    rendezvous_wait_s: int = Field(1800, gt=0, description="Machines of one training wait so long for each other, s.")
    code_revision: str = Field("", description="Commit of the code where it lies outside git, as in an image.")
    trial: str = Field("", description="Free text put into every MLflow run and report, e.g. the name of a test.")

    def variables(self, names: Iterable[str]) -> dict[str, str]:
        """Fields as the environment of a program has them: None as an empty text, a secret in plain."""
        return {f"AIF_{name.upper()}": _text(getattr(self, name)) for name in names}

    @property
    def s3_url(self) -> str:
        """URL of the S3 endpoint."""
        return self.s3_endpoint or f"http://{self.host}:{self.s3_port}"

    @property
    def serving_url(self) -> str:
        """URL of the gateway to the models."""
        return f"http://{self.serving_address}"

    @property
    def serving_address(self) -> str:
        """host:port of the gateway to the models."""
        return self.serving_endpoint or f"{self.host}:{self.serving_port}"

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
