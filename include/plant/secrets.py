"""The plant's secrets: generated once, kept in one file that only its owner may read.

The file also remembers ports and bucket names, so that a command without the environment of `up`
finds the same plant. Two groups of lines: `AIF_*` is what `aifactory.settings` reads, `PLANT_*` is for
the plant alone (database passwords, Airflow's keys).
"""

from __future__ import annotations

import base64
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pydantic import SecretStr

from aifactory.settings import Settings
from aifactory.signing import new_keys

_REMEMBERED = (
    "host", "airflow_port", "mlflow_port", "postgres_port", "s3_port", "serving_port", "internal_port",
    "kubernetes_conn_id", "trainer_image", "pod_template", "pod_secret", "pod_pull_secret", "pod_priority_class",
    "pod_queue", "serving_runtime", "serving_keys_file", "serving_requests_per_s", "serving_max_request_mb",
    "pod_doorway", "pod_s3_endpoint", "pod_mlflow_uri", "pod_gpu_class_label", "cluster_grows",
    "capacity_file", "currency", "unit_hour", "energy_price_kwh", "carbon_g_kwh", "pue", "core_idle_w", "core_busy_w",
    "rapl_dir", "dcgm_url", "notices_file", "metrics_token",
)  # fmt: skip
"""Settings that a command without the environment of `up`, and every task, must find again."""


def _token() -> str:
    return secrets.token_urlsafe(24)


def _access_key() -> str:
    return secrets.token_hex(10).upper()


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _jwt_secret() -> str:
    return secrets.token_urlsafe(72)  # Airflow signs with HS512: 64 bytes or more


def _plant_id() -> str:
    return secrets.token_hex(4)  # not secret; generated once and kept like one


_GENERATORS: dict[str, Callable[[], str]] = {
    "AIF_PLANT_ID": _plant_id,
    "PLANT_TRAINER_ACCESS_KEY": _access_key,
    "PLANT_TRAINER_SECRET_KEY": _token,
    "PLANT_SERVING_ACCESS_KEY": _access_key,
    "PLANT_SERVING_SECRET_KEY": _token,
    "AIF_S3_ACCESS_KEY": _access_key,
    "AIF_S3_SECRET_KEY": _token,
    "AIF_WORLD_ACCESS_KEY": _access_key,
    "AIF_WORLD_SECRET_KEY": _token,
    "PLANT_S3_ACCESS_KEY": _access_key,
    "PLANT_S3_SECRET_KEY": _token,
    "PLANT_POSTGRES_PASSWORD": _token,
    "PLANT_DB_AIRFLOW_PASSWORD": _token,
    "PLANT_DB_MLFLOW_PASSWORD": _token,
    "PLANT_DB_FACTORY_PASSWORD": _token,
    "PLANT_AIRFLOW_ADMIN_PASSWORD": _token,
    "PLANT_AIRFLOW_OPERATOR_PASSWORD": _token,
    "PLANT_AIRFLOW_VIEWER_PASSWORD": _token,
    "AIF_CAPACITY_PASSWORD": _token,
    "PLANT_AIRFLOW_FERNET_KEY": _fernet_key,
    "PLANT_AIRFLOW_JWT_SECRET": _jwt_secret,
    "PLANT_AIRFLOW_SECRET_KEY": _token,
}


class Secrets(Mapping[str, str]):
    """The values of the secrets file. Its representation shows names alone."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self._values)})"


def read_secrets(path: Path) -> Secrets:
    """The secrets of an existing plant; empty where there is none yet."""
    if not path.exists():
        return Secrets({})
    lines = path.read_text().splitlines()
    return Secrets({name: value for name, _, value in (line.partition("=") for line in lines if "=" in line)})


def ensure_secrets(settings: Settings) -> Secrets:
    """Read the plant's secrets, generating those that are missing, and write the file back atomically."""
    path = settings.secrets_file
    private_folder(path.parent)
    known = read_secrets(path)
    secrets = complete_secrets(settings, known)
    write_secrets(path, secrets)
    return secrets


def complete_secrets(settings: Settings, known: Mapping[str, str]) -> Secrets:
    """These secrets, with those generated that are missing, and what follows from the settings."""
    values = {name: known.get(name) or make() for name, make in _GENERATORS.items()}
    keys = ("AIF_SIGNING_KEY", "AIF_VERIFYING_KEY")
    values |= (
        {name: known[name] for name in keys} if set(keys) <= set(known) else dict(zip(keys, new_keys(), strict=True))
    )
    values |= settings.variables(_REMEMBERED)
    values["AIF_LEDGER_DSN"] = database_url(settings, "factory", values["PLANT_DB_FACTORY_PASSWORD"])
    return Secrets(values)


def write_secrets(path: Path, values: Mapping[str, str]) -> None:
    """Write a secrets file, atomically."""
    write_private(path, "".join(f"{name}={value}\n" for name, value in values.items()))


def with_secrets(settings: Settings, values: Mapping[str, str]) -> Settings:
    """The settings, completed with the generated secrets."""
    return settings.model_copy(
        update={
            "plant_id": values["AIF_PLANT_ID"],
            "s3_access_key": values["AIF_S3_ACCESS_KEY"],
            "s3_secret_key": SecretStr(values["AIF_S3_SECRET_KEY"]),
            "world_access_key": values["AIF_WORLD_ACCESS_KEY"],
            "world_secret_key": SecretStr(values["AIF_WORLD_SECRET_KEY"]),
            "signing_key": SecretStr(values["AIF_SIGNING_KEY"]),
            "verifying_key": values["AIF_VERIFYING_KEY"],
            "ledger_dsn": SecretStr(values["AIF_LEDGER_DSN"]),
        }
    )


def database_url(settings: Settings, role: str, password: str) -> str:
    """SQLAlchemy URL of the database that belongs to a role of the same name."""
    host = settings.postgres_host or settings.host
    return f"postgresql+psycopg2://{role}:{password}@{host}:{settings.postgres_port}/{role}"


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner may enter."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 so that a reader sees the old or the new content, never a part."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
