"""Airflow's REST API, logged in: what the demo, the tests and the benches need of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aifactory.settings import Settings
from plant.errors import PlantError
from plant.operate import login

if TYPE_CHECKING:
    import httpx

ACTIVE = ("queued", "running")
FINISHED = ("success", "failed")
_POLL_S = 0.3
_MAY_BE_SAID_TWICE = frozenset({"GET", "PATCH", "DELETE"})
_PAUSES_S = (1, 2, 4)
_PAGE = 100


@dataclass(frozen=True)
class Run:
    """One DAG run.

    Args:
        dag_id: of its DAG.
        run_id: of itself.
        state: queued, running, success or failed.
        queued_at: epoch seconds.
        started_at: epoch seconds, 0 before its start.
        ended_at: epoch seconds, 0 before its end.
        partition_key: the partition it is for.
        conf: what it was triggered with.
    """

    dag_id: str
    run_id: str
    state: str
    queued_at: float
    started_at: float
    ended_at: float
    partition_key: str | None
    conf: dict[str, Any]

    @property
    def seconds(self) -> float:
        """How long it ran, up to now where it has not ended; 0 before its start."""
        return (self.ended_at or time.time()) - self.started_at if self.started_at else 0.0


class AirflowApi:
    """Airflow's REST API for one user; it logs in when first used and again when its token has expired.

    Raises (every method):
        PlantError: Airflow does not answer, or refuses; with its own words.
    """

    def __init__(self, settings: Settings, user: str, password: str) -> None:
        import httpx

        self.settings = settings
        self._login = {"username": user, "password": password}
        self.client: httpx.Client = httpx.Client(base_url=settings.airflow_api_url, timeout=60)

    def request(self, method: str, path: str, **arguments: Any) -> Any:
        """One request below `/api/v2`; the answer's JSON, or its text where it is no JSON.

        What may be said twice is: Airflow answers 500 where the database broke a deadlock with its scheduler.
        """
        answer = self._send(method, path, **arguments)
        for pause_s in _PAUSES_S if method in _MAY_BE_SAID_TWICE else ():
            if not answer.is_server_error:
                break
            time.sleep(pause_s)
            answer = self._send(method, path, **arguments)
        if answer.status_code == 401:
            self.log_in()
            answer = self._send(method, path, **arguments)
        if answer.is_error:
            raise PlantError(f"Airflow answered {answer.status_code} to {method} {path}: {answer.text[:500]}")
        if not answer.content:
            return None
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text

    def trigger_dag(
        self,
        dag_id: str,
        conf: dict[str, Any] | None = None,
        *,
        logical_date: datetime | None = None,
        partition_key: str | None = None,
        wait_for_dag_s: float = 60,
    ) -> str:
        """Start a run and return its id; a DAG that is not parsed yet is waited for."""
        self.wait_dag(dag_id, wait_for_dag_s)
        body: dict[str, Any] = {"conf": conf or {}, "logical_date": logical_date.isoformat() if logical_date else None}
        if partition_key is not None:
            body["partition_key"] = partition_key
        return str(self.request("POST", f"/dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def wait_dag(self, dag_id: str, timeout_s: float = 60) -> None:
        """Wait until Airflow knows a DAG."""
        deadline = time.monotonic() + timeout_s
        while True:
            known = self.request("GET", "/dags", params={"dag_id_pattern": dag_id, "limit": _PAGE})["dags"]
            if any(dag["dag_id"] == dag_id for dag in known):
                return
            if time.monotonic() > deadline:
                raise PlantError(
                    f"Airflow does not know the DAG {dag_id} after {timeout_s:.0f} s; import errors: "
                    f"{self.import_errors() or 'none'}"
                )
            time.sleep(_POLL_S)

    def import_errors(self) -> dict[str, str]:
        """File → the last line of why Airflow cannot load it."""
        errors = self.request("GET", "/importErrors")["import_errors"]
        return {e["filename"]: e["stack_trace"].strip().splitlines()[-1] for e in errors}

    def run(self, dag_id: str, run_id: str) -> Run:
        """One run."""
        return _run(self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}"))

    def runs(self, dag_id: str = "~", *, states: tuple[str, ...] = (), prefix: str = "") -> list[Run]:
        """Runs of one DAG, or of all, oldest first; those in some states, of DAGs whose id has a prefix."""
        found: list[Run] = []
        parameters: dict[str, Any] = {"limit": _PAGE, "order_by": "id"}
        if states:
            parameters["state"] = list(states)
        while True:
            page = self.request("GET", f"/dags/{dag_id}/dagRuns", params={**parameters, "offset": len(found)})[
                "dag_runs"
            ]
            found += [_run(each) for each in page]
            if len(page) < _PAGE:
                return [run for run in found if run.dag_id.startswith(prefix)]

    def active_runs(self, prefix: str = "") -> list[Run]:
        """Runs that are queued or running."""
        return self.runs(states=ACTIVE, prefix=prefix)

    def failed_runs(self, prefix: str = "") -> list[Run]:
        """Runs that failed."""
        return self.runs(states=("failed",), prefix=prefix)

    def wait_run(self, dag_id: str, run_id: str, timeout_s: float = 600) -> str:
        """Wait until a run has ended; its state."""
        deadline = time.monotonic() + timeout_s
        while (run := self.run(dag_id, run_id)).state not in FINISHED:
            if time.monotonic() > deadline:
                raise PlantError(
                    f"{dag_id} run {run_id} is {run.state} after {timeout_s:.0f} s: {self.run_url(dag_id, run_id)}"
                )
            time.sleep(_POLL_S)
        return run.state

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a run, as Airflow describes them."""
        answer = self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": _PAGE})
        return list(answer["task_instances"])

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """What a task returned."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.request("GET", path, params={"map_index": map_index, "deserialize": True})["value"]

    def logs(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """The log of one try of a task, as text."""
        answer = self.request(
            "GET",
            f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}",
            params={"map_index": map_index, "full_content": True},
            headers={"accept": "application/json"},
        )
        lines = answer["content"] if isinstance(answer, dict) else str(answer).splitlines()
        return "\n".join(line if isinstance(line, str) else str(line.get("event", line)) for line in lines)

    def run_url(self, dag_id: str, run_id: str) -> str:
        """Where a person sees a run."""
        return f"{self.settings.airflow_url}/dags/{dag_id}/runs/{run_id}"

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        import httpx

        try:
            if "authorization" not in self.client.headers:
                self.log_in()
            return self.client.request(method, f"/api/v2{path}", **arguments)
        except httpx.HTTPError as error:
            raise PlantError(
                f"Airflow at {self.settings.airflow_api_url} did not answer {method} {path} ({error!r}); "
                "see `make status`"
            ) from error

    def log_in(self) -> None:
        """Get a token, which `client` then sends; requests of this class do so by themselves.

        Raises:
            PlantError: Airflow refuses the login.
        """
        answer = self.client.post("/auth/token", json=self._login)
        if answer.is_error:
            raise PlantError(f"Airflow refuses the login of {self._login['username']}: {answer.status_code}")
        self.client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"


def airflow_api(settings: Settings, user: str = "admin") -> AirflowApi:
    """The plant's Airflow, as `admin`, `operator` or `viewer`."""
    return AirflowApi(settings, *login(settings, user))


def _run(described: dict[str, Any]) -> Run:
    return Run(
        dag_id=described["dag_id"],
        run_id=described["dag_run_id"],
        state=described["state"],
        queued_at=_epoch(described["queued_at"]),
        started_at=_epoch(described["start_date"]),
        ended_at=_epoch(described["end_date"]),
        partition_key=described.get("partition_key"),
        conf=described.get("conf") or {},
    )


def _epoch(moment: str | None) -> float:
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0
