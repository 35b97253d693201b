"""Start the MLflow server in its own image, with the variables of a file that its user alone may read.

Runs in MLflow's environment, which has nothing of the factory: `python mlflow_start.py migrate|serve`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

ENVIRONMENT = Path("/share/environment.json")


def main(arguments: list[str]) -> int:
    """Bring the tables to this version of MLflow, or become the server."""
    os.environ.update(json.loads(ENVIRONMENT.read_text()))
    if arguments == ["serve"]:
        serve()
    migrate(os.environ["_MLFLOW_SERVER_FILE_STORE"])
    return 0


def serve() -> NoReturn:
    """Become the server: one uvicorn process."""
    address = ["--host", "0.0.0.0", "--port", os.environ["MLFLOW_PORT"]]  # noqa: S104 - the container's own network
    command = [sys.executable, "-m", "uvicorn", "mlflow.server.fastapi_app:app", *address]
    os.execv(sys.executable, [*command, "--workers", "1", "--no-access-log"])  # noqa: S606


def migrate(url: str) -> None:
    """Make the tables where there are none, else upgrade them."""
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine_with_retry(url)
    if utils._all_tables_exist(engine):
        utils._upgrade_db(engine)
    else:
        utils._initialize_tables(engine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
