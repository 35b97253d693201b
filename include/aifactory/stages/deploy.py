"""Deploy: a verified version goes into service, and an operator can take it back."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from aifactory.errors import ReleaseDefect
from aifactory.factory import Factory
from aifactory.ledger import EventKind, ProductionEvent, event_key, station
from aifactory.line import LineSpec
from aifactory.reasons import ReasonCode
from aifactory.registry import Champion
from aifactory.rollout import PointerTarget, open_adapter
from aifactory.serving.traffic import Traffic
from aifactory.signing import load_released
from aifactory.stages.rollout import STEPS, advance
from aifactory.store import Conflict

log = logging.getLogger(__name__)


def propose(f: Factory, spec: LineSpec, version: str) -> dict[str, Any]:
    """What a person should know of a version before it is released.

    Returns:
        version, order_id, trained_until, report, mlflow_url, body (Markdown).

    Raises:
        ReleaseDefect: VERSION_UNKNOWN.
    """
    registry = f.registry(spec)
    wanted, champion = registry.version(version), registry.champion()
    report = f"reports/{spec.line}/train/{wanted.order_id}"
    mlflow_url = f"{f.settings.mlflow_ui_url}/#/models/{spec.line}/versions/{version}"
    metrics = {k.removeprefix("metric."): v for k, v in sorted(wanted.tags.items()) if k.startswith("metric.")}
    rows = "\n".join(f"| {name} | {value} |" for name, value in metrics.items())
    instead = f"version {champion.version}, trained until {champion.trained_until}" if champion else "nothing yet"
    body = (
        f"Version {version} of **{spec.line}**, trained until {wanted.trained_until} (order {wanted.order_id}), would "
        f"take the place of {instead}.\n\n[Evaluation report](/{report}/) · [MLflow]({mlflow_url})\n\n"
        f"| held-out metric | value |\n|---|---|\n{rows}"
    )
    return {
        "version": version,
        "order_id": wanted.order_id,
        "trained_until": wanted.trained_until,
        "report": report,
        "mlflow_url": mlflow_url,
        "body": body,
    }


def approval_asked(f: Factory, line: str, version: str, run: str) -> None:
    """Keep in the ledger since when a release waits for a person; `approval` ends it."""
    f.ledger.record(
        ProductionEvent(
            line, "deploy", "model", version, EventKind.STARTED,
            event_key(line, "deploy", version, EventKind.STARTED, f"approval {run}"),
            reason=ReasonCode.APPROVAL_WAITING, run_id=run,
        )
    )  # fmt: skip


def approval(f: Factory, spec: LineSpec, version: str, run: str, *, yes: bool, by: str) -> dict[str, Any]:
    """Keep in the ledger what a person said to a release; nobody, by the line's default, where `by` is empty."""
    who = by or f"nobody within {spec.deployment.approval_hours:g} hours, so the line's default"
    said = {"version": version, "by": by, "explanation": f"{'approved' if yes else 'refused'} by {who}"}
    with station(f.ledger, spec.line, "deploy", "model", version, run_id=run, revision=f"approval {run}") as work:
        work.event = EventKind.DECIDED if yes else EventKind.SCRAPPED
        work.reason = None if yes else ReasonCode.APPROVAL_REJECTED
        work.num_in, work.num_good, work.num_bad, work.detail = 1, int(yes), int(not yes), said
    return said


def promote(f: Factory, spec: LineSpec, version: str, run: str) -> dict[str, Any]:
    """Verify a version's package and put it into service; nothing changes where it is in service already.

    Returns:
        version, previous, trained_until, dataset_revision, order_id.

    Raises:
        PackageDefect: the package is incomplete, altered, or does not give its golden outputs.
        ReleaseDefect: VERSION_UNKNOWN, or ROLLOUT_SUPERSEDED: live requests are served by another version meanwhile.
        Conflict: another release was faster; a retry sees what it put into service.
    """
    registry = f.registry(spec)
    target = PointerTarget(registry)
    before = target.in_service()
    with station(f.ledger, spec.line, "deploy", "model", version, run_id=run, revision=_reign(before, version)) as work:
        wanted, live = registry.version(version), _live(f, spec)
        if live and live.champion != version:
            raise ReleaseDefect(
                ReasonCode.ROLLOUT_SUPERSEDED,
                f"live requests of {spec.line} are served by version {live.champion}, and not by {version} (any more); "
                f"trigger a new run of deploy to release {version}",
            )
        load_released(f, wanted.package)  # signature, hashes and golden outputs: what serves is what was judged
        now = target.switch(version, before, how="promoted", by="line", why=f"order {wanted.order_id}")
        work.event, work.num_in, work.num_good = EventKind.PROMOTED, 1, 1
        work.detail = _said(now)
    log.info("version %s of %s is in service, trained until %s", now.version, spec.line, now.trained_until)
    return _said(now)


def rollback(
    f: Factory,
    spec: LineSpec,
    to_version: str | None,
    run: str,
    by: str,
    why: str,
    *,
    leave: str | None = None,
    reason: ReasonCode = ReasonCode.ROLLED_BACK,
) -> dict[str, Any]:
    """Take the champion back to an earlier version.

    What a run is to do is decided once and kept, so that a run which is tried again never goes back a second time.
    Live requests go back first, then batch scoring; whoever dies between the two goes on when tried again.

    Args:
        f: the open factory.
        spec: the line.
        to_version: the version; None for the one before.
        run: id of the run.
        by: the operator, or the line.
        why: in words; goes into the ledger.
        leave: the version that is to go; nothing changes where another is in service by now. None for whichever it is.
        reason: the same for the ledger, as a code.

    Returns:
        As `promote`.

    Raises:
        ReleaseDefect: NO_CHAMPION, NO_PREVIOUS or VERSION_UNKNOWN, or why live requests cannot go back.
        PackageDefect: that version's package is not whole.
        Waiting: to be asked again; live requests are going back.
    """
    registry = f.registry(spec)
    target = PointerTarget(registry)
    before = target.in_service()
    if before is None:
        raise ReleaseDefect(ReasonCode.NO_CHAMPION, f"{spec.line} has no model in service that could be taken back")
    task = _decided_task(f, spec, before, to_version, leave, run)
    if task["from"] == task["to"] == before.version:
        log.info("version %s of %s is in service already", task["to"], spec.line)
        return _said(before)
    with station(f.ledger, spec.line, "deploy", "model", task["from"], run_id=run, revision=run) as work:
        load_released(f, registry.version(task["to"]).package)
        now = before
        if len(before.history) == task["reign"]:
            if _live(f, spec):
                _back_live(f, spec, task["to"], run)
            now = target.switch(task["to"], before, how="rolled_back", by=by, why=why)
        work.event, work.reason = EventKind.ROLLED_BACK, reason
        work.num_in, work.num_bad = 1, 1
        work.detail = {**_said(now), "from": task["from"], "to": task["to"], "by": by, "why": why}
    log.info("%s is on version %s: %s (%s)", spec.line, now.version, why, by)
    return _said(now)


def _decided_task(
    f: Factory, spec: LineSpec, before: Champion, to_version: str | None, leave: str | None, run: str
) -> dict[str, Any]:
    """Which version a rollback run leaves, for which, in which reign; written once a run.

    Where live requests and batches differ, somebody died between the two: an operator's way back is gone to its end,
    and a release that is half done is left again.

    Raises:
        ReleaseDefect: NO_PREVIOUS.
    """
    live, serving, version = _live(f, spec), before.version, before.previous
    if live and live.champion and live.champion != before.version:
        back = live.rollout is not None and live.rollout.direct
        serving, version = (before.version, live.champion) if back else (live.champion, before.version)
    version = to_version or version
    if leave not in {None, serving}:
        serving = version = before.version
    key = f"serving/{spec.line}/rollbacks/{hashlib.sha256(run.encode()).hexdigest()[:16]}.json"
    if version is None:
        raise ReleaseDefect(
            ReasonCode.NO_PREVIOUS, f"{spec.line} has had no champion before version {before.version}; name a version"
        )
    task = {"run": run, "from": serving, "to": version, "reign": len(before.history)}
    try:
        f.store.put_json(key, task, if_absent=True)
    except Conflict:
        return f.store.get_json(key)
    return task


def _live(f: Factory, spec: LineSpec) -> Traffic | None:
    """What live requests are served by; None where there are none, or nobody has asked for any yet."""
    document = open_adapter(f, spec).wanted() if spec.deployment.online else None
    return document if document and document.champion else None


def _back_live(f: Factory, spec: LineSpec, version: str, run: str) -> None:
    made = advance(f, spec, version, run, STEPS["canary"], direct=True)
    if made["champion"] != version:
        raise ReleaseDefect(ReasonCode[made.get("reason", "ROLLOUT_SUPERSEDED")], made["explanation"])


def _reign(before: Champion | None, version: str) -> str:
    """Names the reign that a promotion makes, or has made: promoted again after a rollback is another."""
    number = len(before.history) if before else 0
    return f"reign {number if before and before.version == version else number + 1}"


def _said(champion: Champion) -> dict[str, Any]:
    return {
        "version": champion.version,
        "previous": champion.previous,
        "order_id": champion.order_id,
        "trained_until": champion.trained_until,
        "dataset_revision": champion.dataset_revision,
    }
