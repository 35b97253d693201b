"""A challenger held against the champion on the held-out days of its order: from S3 to a verdict, nothing written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aifactory.errors import DatasetDefect
from aifactory.evaluation import judge
from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.packaging import Package, load_package
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    import pyarrow as pa

_LATENCY_CALLS = 100


def judge_order(f: Factory, spec: LineSpec, order: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on an order's challenger; of the stores it reads S3 alone.

    Returns:
        See `evaluation.Verdict`.

    Raises:
        DatasetDefect: the held-out rows do not have both outcomes.
        PackageDefect: a model file was altered.
    """
    from aifactory.training.run import candidate_prefix

    challenger = load_package(f, candidate_prefix(spec.line, order["order_id"], "challenger"))
    champion = load_package(f, order["champion"]["package"]) if order["champion"] else None
    rows = held_out(f, spec, order, [challenger] + ([champion] if champion else []))
    return judge(
        spec,
        rows,
        challenger.predict(rows),
        champion.predict(rows) if champion else None,
        refresh=is_refresh(order),
        latency_ms=latency_ms(challenger.predict, rows),
        size_mb=challenger.size_bytes / 1e6,
    ).to_dict()


def is_refresh(order: Mapping[str, Any]) -> bool:
    """Whether the challenger is of the champion's make: same recipe, parameters and features, only newer data."""
    champion = order["champion"]
    own = {"categorical": order["categorical"], "numeric": order["numeric"]}
    return champion is not None and (
        (champion["recipe"], champion["parameters"], champion["features"])
        == (order["recipe"], order["parameters"], own)
    )


def latency_ms(predict: Callable[[pa.Table], object], table: pa.Table) -> float:
    """p95 of scoring one row from Arrow to probability, ms; of three rounds the one that was disturbed least."""
    import numpy as np

    rows = [table.slice(i % table.num_rows, 1) for i in range(_LATENCY_CALLS)]
    rounds = []
    for _ in range(3):
        taken = []
        for row in rows:
            began = time.perf_counter()
            predict(row)
            taken.append(time.perf_counter() - began)
        rounds.append(float(np.quantile(taken, 0.95)))
    return round(min(rounds) * 1000, 3)


def held_out(f: Factory, spec: LineSpec, order: Mapping[str, Any], packages: Sequence[Package]) -> pa.Table:
    """The held-out rows with an outcome, with every column that the judgement looks at.

    Raises:
        DatasetDefect: they do not have both outcomes.
    """
    import pyarrow.compute as pc

    named = [spec.model.target, spec.model.prediction_time, *spec.evaluation.slices]
    columns = sorted({*named, *(name for p in packages for name in [*p.categorical, *p.numeric])})
    table = f.datasets(spec).read_content(order["dir_md5"], order["days"]["holdout"], columns)
    known = table.filter(pc.is_valid(table[spec.model.target])).combine_chunks()
    if len(pc.unique(known[spec.model.target])) < 2:
        raise DatasetDefect(
            ReasonCode.DATASET_TOO_SMALL,
            f"{spec.line}: the {known.num_rows} held-out rows of {order['days']['holdout']} do not have both "
            f"outcomes, so nothing can be judged on them; wait for more days",
        )
    return known
