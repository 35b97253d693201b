"""Probation: a champion that breaks a limit on live answers soon after its promotion is taken back by itself."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aifactory import feedback as rules
from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.reasons import ReasonCode
from aifactory.rollout import open_adapter
from aifactory.serving import live, traffic
from aifactory.stages.deploy import rollback
from aifactory.stages.feedback import live_verdict, served_rows

if TYPE_CHECKING:
    from aifactory.serving.traffic import Traffic

log = logging.getLogger(__name__)


def watch(f: Factory, spec: LineSpec) -> dict[str, Any]:
    """Whether the champion is to be taken back: it is new, and what it has answered since its promotion breaks a limit.

    Judged are the answers that it gave to callers from its slot since then, on the newest days whose outcomes are in,
    as many as a window has; not those of its canary, nor of an earlier reign. Nothing changes here.

    Returns:
        breach, explanation; where there is a breach: version, to (the champion before it), metrics, violations.
    """
    now = datetime.now(UTC)
    document = open_adapter(f, spec).wanted() if spec.deployment.online else None
    champion = f.registry(spec).champion()
    if document is None or not traffic.soon_after_promotion(document, spec.deployment, now):
        return _kept("no champion is on probation")
    if champion is None or champion.version != document.champion:
        return _kept(f"version {document.champion} is not released for batches (yet)")
    answered = _since_promotion(f, spec, document)
    if answered is None or answered["violations"] is None:
        counts = {name: (answered or {}).get(name, 0) for name in ("num_days", "num_outcomes")}
        return _kept(
            f"version {document.champion} has {counts['num_outcomes']} live answers with an outcome, on "
            f"{counts['num_days']} days; {spec.feedback.min_live_outcomes} and {spec.feedback.window_days} are judged"
        )
    if not answered["violations"]:
        return _kept(f"version {document.champion} keeps its limits on {answered['num_outcomes']} live answers")
    limit = f"{spec.deployment.rollback_window_hours:g} hours of its promotion"
    said = f"live {'; '.join(answered['violations'])}; {answered['num_outcomes']} answers, within {limit}"
    found = {name: answered[name] for name in ("metrics", "violations")}
    return {"breach": True, "explanation": said, "version": document.champion, "to": document.previous, **found}


def take_back(f: Factory, spec: LineSpec, breach: dict[str, Any], run: str) -> dict[str, Any]:
    """Roll back what `watch` found, as an operator would: live requests first, then batches. See `deploy.rollback`.

    Args:
        f: the open factory.
        spec: the line.
        breach: what `watch` returned.
        run: id of the run; its retries go back once.
    """
    return rollback(
        f,
        spec,
        breach["to"],
        f"feedback/{run}",
        by="line",
        why=breach["explanation"],
        leave=breach["version"],
        reason=ReasonCode.LIVE_BREACH,
    )


def _kept(why: str) -> dict[str, Any]:
    log.info("nothing is taken back: %s", why)
    return {"breach": False, "explanation": why}


def _since_promotion(f: Factory, spec: LineSpec, document: Traffic) -> dict[str, Any] | None:
    """The champion's answers to callers since its promotion, with a verdict; None where there are none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    version, promoted_at = f.datasets(spec).latest(), document.promoted_at
    if version is None or promoted_at is None:
        return None
    own = (
        (pc.field("model_version") == document.champion)
        & (pc.field("slot") == document.champion_slot)
        & ~pc.field("shadow")
        & (pc.field("served_at") >= pa.scalar(promoted_at, pa.timestamp("us", tz="UTC")))
    )
    parts: list[pa.Table] = []
    shipped = live.live_days(f.store, spec.line).read()
    since = [d for d, entry in shipped.items() if datetime.fromisoformat(entry["shipped_at"]) >= promoted_at]
    for day in sorted(set(since) & set(version.days), reverse=True):
        if len(parts) == spec.feedback.window_days:
            break
        if not rules.outcomes_due(spec, day, version.days[-1]):
            continue
        rows = served_rows(f, spec, day, version.revision)
        if rows is not None and (answers := rows.filter(own)).num_rows:
            parts.append(answers)
    if not parts:
        return None
    [served] = rules.served_metrics(spec, pa.concat_tables(parts))
    return live_verdict(f, spec, served)
