"""One turn of the loop in one process: the same stages that the DAGs call, without a scheduler.

For a data engineer who tries a line, for replays over months, and as the baseline that the scheduler's own
overhead is measured against. What it writes is what the DAGs write.
"""

from __future__ import annotations

from typing import Any

from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.stages import deploy, feedback, ingest, score, train


def turn(f: Factory, spec: LineSpec, days: list[str], run: str) -> dict[str, Any]:
    """Take landed days through the whole loop.

    Args:
        f: the open factory.
        spec: the line.
        days: partition keys, oldest first.
        run: names this turn in the ledger and in staged keys.

    Returns:
        What each stage returned, by stage; `train` and `deploy` only where feedback called for them.
    """
    done: dict[str, Any] = {}
    gated = ingest.gate_raw(f, spec, days, run)
    built = ingest.build_features(f, spec, gated["days"], run)
    done["ingest"] = ingest.commit_dataset(f, spec, built["staged"], run)
    last = gated["days"][-1]
    done["score"] = score.score(f, spec, last, run)
    feedback.judge(f, spec, last, run)
    done["feedback"] = feedback.decide(f, spec, last, run)
    if done["feedback"]["emit"]:
        done |= remake(f, spec, done["feedback"], run)
    return done


def remake(f: Factory, spec: LineSpec, request: dict[str, Any], run: str) -> dict[str, Any]:
    """Train a challenger, judge it, and release it where it has earned that."""
    order = train.resolve_order(f, spec, request)
    order_id = order["order_id"]
    train.train(f, spec, order_id, "challenger")
    verdict = train.evaluate(f, spec, order_id)
    if not verdict["passed"]:
        return {"train": verdict}
    train.train(f, spec, order_id, "refit")
    candidate = train.register(f, spec, order_id)
    return {"train": verdict | candidate, "deploy": deploy.promote(f, spec, candidate["version"], run)}
