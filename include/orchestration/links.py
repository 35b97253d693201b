"""Buttons on a task in the UI that lead to what the task made: reports in S3, runs in MLflow.

The URL is set while the task runs and travels by XCom: Airflow asks `get_link` in the task's own process when
the task ends, whether well or not, and the UI reads what was pushed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import XComArg

REPORTS_PREFIX = "/reports"
"""Where the plugin mounts the reports app."""

FLOOR_PREFIX = "/floor"
"""Where the plugin mounts the factory floor."""

_urls: dict[str, str] = {}
"""URLs set by the one task that this process runs, by name of the link."""


class ReportLink(BaseOperatorLink):
    """To the Data Docs, plots or evaluation report of the task."""

    name = "Data Docs & reports"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """What the task has set."""
        return _urls.get(self.name, "")


class MlflowLink(BaseOperatorLink):
    """To the task's run or model version in MLflow."""

    name = "MLflow"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """What the task has set."""
        return _urls.get(self.name, "")


def with_links(task: XComArg) -> Any:
    """Give a task its buttons; what comes back stands for the task's result."""
    for operator, _ in task.iter_references():
        operator.operator_extra_links = (ReportLink(), MlflowLink())
    return task


def set_report(key_or_prefix: str) -> None:
    """Point the report button at one report, or at the list of those under a prefix, in the factory bucket."""
    _urls[ReportLink.name] = report_url(key_or_prefix)


def set_mlflow(url: str) -> None:
    """Point the MLflow button at a page."""
    _urls[MlflowLink.name] = url


def report_url(key_or_prefix: str) -> str:
    """URL path of an object, or of the list under a prefix, that begins with `reports/`."""
    return f"{REPORTS_PREFIX}/{quote(key_or_prefix.removeprefix('reports/'))}"
