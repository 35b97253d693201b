"""Training as MLflow shows it: one run for each order and phase, its metrics live while it trains.

A lost MLflow server is an infrastructure fault: a model whose making is nowhere recorded is not released.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from aifactory.errors import InfrastructureFault
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from aifactory.settings import Settings

FLUSH_S = 2.0
"""Metrics are sent at most this often, seconds, and beside the step loop: it does not wait for the tracking server."""


def mlflow_client(settings: Settings) -> MlflowClient:
    """A client of the plant's MLflow server that gives up in seconds, not in the stock ten minutes."""
    for name, value in (
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
        ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ):
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=settings.mlflow_url, registry_uri=settings.mlflow_url)


@contextmanager
def mlflow_errors(settings: Settings) -> Iterator[None]:
    """Turn MLflow's errors into the factory's."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise InfrastructureFault(
            ReasonCode.STORE_UNREACHABLE,
            f"MLflow at {settings.mlflow_url} did not do as asked ({str(error)[:500]}); see `make status`",
        ) from error


class Tracker:
    """One MLflow run of one order and phase; made when first opened, gone on with when opened again."""

    def __init__(self, settings: Settings, line: str, order_id: str, phase: str) -> None:
        self._settings = settings
        self._client = mlflow_client(settings)
        self._changing = threading.RLock()
        self._pending: list[Any] = []
        self._sent_at = 0.0
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._sending: Future[None] | None = None
        with mlflow_errors(settings):
            self.experiment_id = self._experiment(line)
            self.run_id = self._find(order_id, phase) or self._create(order_id, phase)

    @property
    def url(self) -> str:
        """The run in MLflow's UI."""
        return f"{self._settings.mlflow_ui_url}/#/experiments/{self.experiment_id}/runs/{self.run_id}"

    def begin(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Say what is trained; a run that is trained again says the same."""
        from mlflow.entities import Param, RunTag

        with mlflow_errors(self._settings):
            self._client.update_run(self.run_id, status="RUNNING")
            self._client.log_batch(
                self.run_id,
                params=[Param(k, str(v)[:6000]) for k, v in params.items()],
                tags=[RunTag(k, str(v)[:5000]) for k, v in tags.items()],
            )

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note metrics of one step; they are sent together, from another thread, at most every `FLUSH_S` seconds.

        Raises:
            InfrastructureFault: those of an earlier step could not be sent.
        """
        with self._changing:
            self._add(step, metrics)
            if self._is_idle():
                self._send()

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """The same from a thread beside the training: what could not be sent is left to `progress` and `flush`."""
        with self._changing:
            self._add(step, metrics)
            if self._is_idle() and (self._sending is None or self._sending.exception() is None):
                self._send()

    def flush(self) -> None:
        """Send what is noted, and wait until all of it has arrived."""
        with self._changing:
            self._send()
            self._wait()

    def _add(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(name, float(value), now, step) for name, value in metrics.items()]

    def _is_idle(self) -> bool:
        """Whether it is time to send, and nothing is under way."""
        idle = self._sending is None or self._sending.done()
        return idle and time.monotonic() - self._sent_at >= FLUSH_S

    def _send(self) -> None:
        self._wait()
        noted, self._pending, self._sent_at = self._pending, [], time.monotonic()
        self._sending = self._sender.submit(self._log, noted)

    def _wait(self) -> None:
        """Until what was sent last has arrived."""
        sending, self._sending = self._sending, None
        if sending is not None:
            with mlflow_errors(self._settings):
                sending.result()

    def _log(self, metrics: list[Any]) -> None:
        for start in range(0, len(metrics), 500):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + 500])

    def tag(self, **tags: Any) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        with mlflow_errors(self._settings):
            self._client.log_batch(self.run_id, tags=[RunTag(k, str(v)[:5000]) for k, v in tags.items()])

    def artifact(self, text: str, name: str) -> None:
        """Store a text file with the run."""
        with mlflow_errors(self._settings):
            self._client.log_text(self.run_id, text, name)

    def end(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.flush()
        with mlflow_errors(self._settings):
            self._client.set_terminated(self.run_id, status)

    def _experiment(self, line: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(line)
        if found is None:
            with suppress(MlflowException):  # another order of the line was quicker
                return str(self._client.create_experiment(line))
            found = self._client.get_experiment_by_name(line)
        return str(found.experiment_id)

    def _find(self, order_id: str, phase: str) -> str | None:
        wanted = f"tags.order_id = '{order_id}' and tags.phase = '{phase}' and tags.store = '{self._store}'"
        found = self._client.search_runs([self.experiment_id], wanted, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _create(self, order_id: str, phase: str) -> str:
        tags = {"order_id": order_id, "phase": phase, "store": self._store}
        made = self._client.create_run(self.experiment_id, tags=tags, run_name=f"{order_id} {phase}")
        return str(made.info.run_id)

    @property
    def _store(self) -> str:
        return self._settings.factory_bucket
