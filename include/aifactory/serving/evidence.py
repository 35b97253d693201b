"""What a rollout is judged on since a generation is in force: the gateway's counts, the prediction log's scores."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.serving.analysis import PAIRED_EDGES, SCORE_EDGES, Comparison, Counts, Histogram
from aifactory.serving.live import day_prefix, live_days, read_day
from aifactory.serving.routing import CountedRole, read_counted
from aifactory.serving.traffic import Evidence, Observed, Stage, Traffic

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa


def evidence(f: Factory, spec: LineSpec, document: Traffic, observed: Observed | None) -> Evidence:
    """What is known of a document's rollout now."""
    counted = read_counted(f.store, spec.line)
    if counted is None or counted.generation != document.generation:
        return Evidence(observed=observed)
    log = _served_since(f, spec, counted.since)
    shadow = document.stage is Stage.SHADOW
    champion = _first_rows(log, document.champion, shadow=False)
    challenger = _first_rows(log, document.challenger, shadow=shadow)
    comparison = Comparison(
        generation=counted.generation,
        champion=_counts(counted.champion, champion),
        challenger=_counts(counted.challenger, challenger),
        paired=_paired(champion, challenger) if shadow else None,
    )
    return Evidence(observed=observed, counts=comparison)


def _served_since(f: Factory, spec: LineSpec, since: datetime) -> pa.Table | None:
    """Logged rows since a moment, of whatever day they are about."""
    import pyarrow as pa
    import pyarrow.compute as pc

    told = live_days(f.store, spec.line).read()
    days = [day for day, entry in told.items() if datetime.fromisoformat(entry["shipped_at"]) >= since]
    columns = ["request_id", "row", "model_version", "shadow", "served_at", "score"]
    tables = [table for day in days for table in read_day(f.store, day_prefix(spec.line, day), columns)[1]]
    if not tables:
        return None
    log = pa.concat_tables(tables)
    return log.filter(pc.greater_equal(log["served_at"], pa.scalar(since, pa.timestamp("us", tz="UTC"))))


def _first_rows(log: pa.Table | None, version: str | None, *, shadow: bool) -> dict[str, float]:
    """Score of the first row of each request that a version answered, by the request's id.

    The rows of one request are not independent, and only one of them may count.
    """
    import pyarrow.compute as pc

    if log is None or version is None:
        return {}
    mine = pc.and_(pc.equal(log["model_version"], version), pc.equal(log["shadow"], shadow))
    first = log.filter(pc.and_(mine, pc.equal(log["row"], 0)))
    return {
        name: score
        for name, score in zip(first["request_id"].to_pylist(), first["score"].to_pylist(), strict=True)
        if name and score is not None and not name.startswith("golden-")
    }


def _counts(counted: CountedRole, scores: dict[str, float]) -> Counts:
    import numpy as np

    return Counts(
        requests=counted.requests,
        errors=min(counted.errors, counted.requests),
        latency_ms=counted.latency_ms,
        scores=_histogram(np.fromiter(scores.values(), float), SCORE_EDGES),
    )


def _paired(champion: dict[str, float], challenger: dict[str, float]) -> Histogram:
    import numpy as np

    both = champion.keys() & challenger.keys()
    return _histogram(np.fromiter((challenger[name] - champion[name] for name in both), float), PAIRED_EDGES)


def _histogram(values: npt.NDArray[np.float64], edges: tuple[float, ...]) -> Histogram:
    import numpy as np

    bins = np.searchsorted(np.asarray(edges), values, side="left")  # a value on an edge belongs below it
    return Histogram(edges=edges, counts=tuple(int(n) for n in np.bincount(bins, minlength=len(edges) + 1)))
