"""The plant as containers: what the one-shot services of `docker-compose.yaml` do before the parts start.

    prepare   as root without a network: hands every part its own share of the secrets, for its own user alone
    init      databases and roles, Airflow's and the ledger's tables, buckets, the folder of the dataset repositories

The operator's secrets file is of mode 0600 and belongs to whoever made it, while each part runs as a user of its own:
only root can hand them over. A part gets what it needs and no more, by a volume that nobody else mounts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from aifactory.settings import Settings
from plant import airflow, mlflow_server, objectstore, postgres
from plant.clients import parse_keys
from plant.errors import PlantError
from plant.secrets import (
    Secrets,
    complete_secrets,
    private_folder,
    read_secrets,
    with_secrets,
    write_private,
    write_secrets,
)
from plant.stores import migrate_ledger

SECRETS = Path("/run/secrets/plant")
"""Where Compose puts the operator's secrets."""
METRICS_TOKEN = Path("/run/secrets/metrics")
"""Where it puts the token that reads the metrics; empty where there is none."""

_CLIENTS = "serving.keys"
"""Name of the clients' keys in a part's share, see `plant.clients`: of the gateway, and of the demo's callers."""
_NOTICES = "notices.yaml"
"""Name of the routes of notices in the share of Airflow's parts."""
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,256}=*")

KEYS, FACTORY, WORLD = Path("/factory/keys"), Path("/factory/var"), Path("/factory/world")
SERVING = Path("/factory/serving")
S3, MLFLOW, POSTGRES = Path("/shares/s3"), Path("/shares/mlflow"), Path("/shares/postgres")
S3_DATA, POSTGRES_DATA = Path("/data/s3"), Path("/data/postgres")
"""Where the images' own folders belong to users that the stores do not run as."""

_PARTS_UID = 10001
"""The user of the factory's own images, and of SeaweedFS as the compose file starts it."""
_POSTGRES_UID = 70
"""The user `postgres` of the Alpine image."""
_WRITTEN = ("", "*", "secrets/*", "airflow/*", "airflow/config/*")
_OPERATORS_ONLY = ("PLANT_POSTGRES_PASSWORD", "PLANT_S3_", "PLANT_DB_MLFLOW_PASSWORD", "PLANT_SERVING_", "AIF_WORLD_")
"""What no Airflow part needs: the superuser's password, the key that makes buckets, others' keys and passwords."""


def prepare(settings: Settings) -> None:
    """Give each part its share. Written anew at every start, so that a changed setting counts."""
    known = read_secrets(SECRETS)
    if not known:
        raise PlantError("the secrets file is empty: `make compose-up` generates it")
    clients, routes = settings.serving_keys_file, settings.notices_file
    own = {"serving_keys_file": None, "notices_file": None}  # each part has its own copy
    settings = settings.model_copy(update=own | {"metrics_token": _metrics_token()})
    secrets = complete_secrets(settings, known)
    airflows = settings.model_copy(update={"home": FACTORY})
    _secrets_file(KEYS, secrets)
    _secrets_file(FACTORY, {k: v for k, v in secrets.items() if not k.startswith(_OPERATORS_ONLY)})
    _secrets_file(WORLD, {k: v for k, v in secrets.items() if k.startswith("AIF_WORLD_")})
    _secrets_file(
        SERVING,
        {
            "AIF_S3_ACCESS_KEY": secrets["PLANT_SERVING_ACCESS_KEY"],
            "AIF_S3_SECRET_KEY": secrets["PLANT_SERVING_SECRET_KEY"],
            "AIF_VERIFYING_KEY": secrets["AIF_VERIFYING_KEY"],
        },
    )
    for home in (SERVING, KEYS):
        _hand_over(home / "secrets" / _CLIENTS, _clients(clients) if clients else None)
    _hand_over(FACTORY / "secrets" / _NOTICES, routes.read_text() if routes else None)
    airflow.write_configuration(airflows, secrets)
    objectstore.write_identities(private_folder(S3) / "identities.json", settings, secrets)
    write_private(private_folder(MLFLOW) / "environment.json", json.dumps(mlflow_server.variables(settings, secrets)))
    write_private(private_folder(POSTGRES) / "password", secrets["PLANT_POSTGRES_PASSWORD"])
    for folder in (KEYS, FACTORY, WORLD, SERVING, S3, MLFLOW, S3_DATA):
        _give(folder, _PARTS_UID)
    for folder in (POSTGRES, POSTGRES_DATA):
        _give(folder, _POSTGRES_UID)


def init(settings: Settings) -> None:
    """Bring every store to this version of the factory; running it again changes nothing."""
    secrets = read_secrets(settings.secrets_file)
    settings = with_secrets(settings, secrets)
    if not postgres.accepts(settings, secrets):
        raise PlantError(
            f"Postgres at {settings.postgres_host} does not take the superuser's password: its volume was made with "
            "other secrets. Put back the secrets file of that time, or remove the state: `make compose-down VOLUMES=1`"
        )
    postgres.ensure_databases(settings, secrets)
    airflows = settings.model_copy(update={"home": FACTORY})
    airflow.migrate(airflows)
    airflow.prune_logs(airflows)
    migrate_ledger(settings)
    objectstore.ensure_buckets(settings)
    Path(airflows.git_root).mkdir(parents=True, exist_ok=True)


def _secrets_file(home: Path, values: Mapping[str, str] | Secrets) -> None:
    write_secrets(private_folder(private_folder(home) / "secrets") / "plant.env", values)


def _hand_over(path: Path, text: str | None) -> None:
    """Write a file of a part's share; take away what an earlier start left where there is none any more."""
    if text is None:
        path.unlink(missing_ok=True)
    else:
        write_private(path, text)


def _clients(path: Path) -> str:
    """The clients' keys, checked but for the mode, which the engine may not show as it is."""
    text = path.read_text()
    parse_keys(text, path)
    return text


def _metrics_token() -> SecretStr:
    """The token that reads the metrics; an empty one opens nothing.

    Raises:
        PlantError: it is none that a request could carry (RFC 6750), or too short.
    """
    token = METRICS_TOKEN.read_text().strip() if METRICS_TOKEN.exists() else ""
    if token and not _TOKEN.fullmatch(token):
        raise PlantError(
            "the file of AIF_METRICS_TOKEN_FILE holds no token: one line of 16 to 256 letters, digits and - . _ ~ + / "
            "(and = at its end); `openssl rand -hex 24` makes one"
        )
    return SecretStr(token)


def _give(folder: Path, uid: int) -> None:
    """Give what this program has written to its user; what the part itself wrote, years of it, is its own already."""
    for pattern in _WRITTEN:
        for each in folder.glob(pattern) if pattern else [folder]:
            if each.lstat().st_uid != uid:
                os.chown(each, uid, uid, follow_symlinks=False)
