"""What the Airflow UI and scheduler load: the nightly timetable, the reports pages, the menu entries.

Task processes load plugins too, so nothing here imports FastAPI or reads settings.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from orchestration.links import REPORTS_PREFIX, MlflowLink, ReportLink
from orchestration.schedule import NightlyPartitions


class _Lazy:
    """An ASGI application that is made when its first request comes."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            from orchestration.reports import create_app

            self._app = create_app()
        await self._app(scope, receive, send)


class FactoryPlugin(AirflowPlugin):
    """The AI factory in Airflow."""

    name = "ai_factory"
    timetables = [NightlyPartitions]
    operator_extra_links = [ReportLink(), MlflowLink()]
    fastapi_apps = [{"app": _Lazy(), "url_prefix": REPORTS_PREFIX, "name": "reports"}]
    external_views = [
        {
            "name": "Data Docs & reports",
            "href": f"{REPORTS_PREFIX}/",
            "destination": "nav",
            "category": "browse",
            "url_route": "reports",
        },
        {"name": "MLflow", "href": f"{REPORTS_PREFIX}/-/mlflow", "destination": "nav", "category": "browse"},
    ]
