"""Programs beside the factory: the outside world that delivers raw material."""

from __future__ import annotations

import sys

from aifactory.settings import REPOSITORY, Settings
from plant.secrets import Secrets, private_folder
from plant.supervision import Program

NAME = "outside-world"
_PROGRAMS = {NAME: ("outside.flights", ["play", "--follow"])}


def prepare(settings: Settings, secrets: Secrets) -> list[Program]:
    """The outside programs whose modules are there.

    They have a home of their own and the world's key alone, so that nothing of the factory can leak into
    what is delivered to it.
    """
    home = private_folder(settings.home / "world")
    environment = {
        "AIF_HOME": str(home),
        "AIF_HOST": settings.host,
        "AIF_S3_ENDPOINT": settings.s3_url,
        "AIF_S3_REGION": settings.s3_region,
        "AIF_LANDING_BUCKET": settings.landing_bucket,
        "AIF_WORLD_ACCESS_KEY": secrets["AIF_WORLD_ACCESS_KEY"],
        "AIF_WORLD_SECRET_KEY": secrets["AIF_WORLD_SECRET_KEY"],
        "PYTHONPATH": str(REPOSITORY / "include"),
        "PYTHONUNBUFFERED": "1",
    }
    return [
        Program(name, [sys.executable, "-m", module, *arguments], environment, order=400)
        for name, (module, arguments) in _PROGRAMS.items()
        if (REPOSITORY / "include" / module.replace(".", "/")).with_suffix(".py").exists()
    ]
