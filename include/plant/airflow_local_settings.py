"""Loaded by every Airflow process when it starts; linked into `$AIRFLOW_HOME/config`.

In the scheduler it imports what tasks will need. LocalExecutor forks its workers from the scheduler and
tasks from the workers, so each task starts with these modules in place instead of importing them anew
(5 CPU-seconds), and the memory of their code is shared between all of them. Other processes run no tasks.
"""

from __future__ import annotations

import importlib
import logging
import sys

log = logging.getLogger(__name__)

__all__: list[str] = []  # Airflow takes every public name of this module over into its own settings

_MODULES = (
    "airflow.providers.standard.operators.empty",
    "airflow.providers.standard.operators.hitl",
    "airflow.providers.standard.operators.python",
    "pydantic_settings",
    "yaml",
    "pandas",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "duckdb",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "boto3",
    "s3transfer.manager",
    "great_expectations",
    "great_expectations.render.view",
    "dvc_data.hashfile.tree",
    "sklearn.metrics",
    "scipy.stats",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "mlflow.tracking",
    "onnxruntime",
)
"""Libraries alone: the factory's own code is loaded by each task anew, so that an edit counts with the next run."""


def _preload() -> None:
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    _ = ProvidersManagerTaskRuntime().asset_uri_handlers  # type: ignore[no-untyped-call]
    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it tells hundreds of lines while it loads
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except ImportError:  # a task that needs it will say so; the scheduler must run all the same
            log.warning("cannot preload %s", name, exc_info=True)
    _warm_s3()


def _warm_s3() -> None:
    """Read botocore's description of S3 once, 0.1 CPU-seconds: the default session keeps it, and forks inherit that."""
    try:
        import boto3

        # keys, because it would look for some in the cloud's metadata service
        boto3.client("s3", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none")  # noqa: S106
    except Exception:  # a broken boto3 or its user's configuration; tasks will say so
        log.warning("cannot prepare the S3 client", exc_info=True)


if "scheduler" in sys.argv[1:2]:
    _preload()
