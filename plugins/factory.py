"""What the Airflow UI and scheduler load: the nightly timetable, the reports pages, the floor, the menu entries.

Task processes load plugins too, so nothing here imports FastAPI or reads settings.
"""

from __future__ import annotations

import gc
from importlib import import_module
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from orchestration.links import FLOOR_PREFIX, REPORTS_PREFIX, MlflowLink, ReportLink
from orchestration.schedule import NightlyPartitions


class _Lazy:
    """An ASGI application that a module's `create_app` makes when its first request comes."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            self._app = import_module(self._module).create_app()
            gc.collect()
            gc.freeze()  # what the server has loaded by now stays: a collection in a request need not go through it
        await self._app(scope, receive, send)


def _floor(destination: str, route: str, place: str = "") -> dict[str, Any]:
    """The factory floor at one place of the UI; its own routes are in the fragment."""
    return {
        "name": "Factory floor",
        "href": f"{FLOOR_PREFIX}/{place}",
        "destination": destination,
        "url_route": route,
        "icon": f"{FLOOR_PREFIX}/icon.svg",
        "icon_dark_mode": f"{FLOOR_PREFIX}/icon-dark.svg",
    }


class FactoryPlugin(AirflowPlugin):
    """The AI factory in Airflow."""

    name = "ai_factory"
    timetables = [NightlyPartitions]
    operator_extra_links = [ReportLink(), MlflowLink()]
    fastapi_apps = [
        {"app": _Lazy("orchestration.reports"), "url_prefix": REPORTS_PREFIX, "name": "reports"},
        {"app": _Lazy("orchestration.floorapi"), "url_prefix": FLOOR_PREFIX, "name": "floor"},
    ]
    external_views = [
        {**_floor("nav", "floor"), "name": "Floor", "nav_top_level": True},
        _floor("dag", "floor-line", "#/dags/{DAG_ID}"),
        _floor("dag_run", "floor-run", "#/dags/{DAG_ID}/runs/{RUN_ID}"),
        {
            "name": "Data Docs & reports",
            "href": f"{REPORTS_PREFIX}/",
            "destination": "nav",
            "category": "browse",
            "url_route": "reports",
        },
        {"name": "MLflow", "href": f"{REPORTS_PREFIX}/-/mlflow", "destination": "nav", "category": "browse"},
    ]
