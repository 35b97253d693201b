"""Deploy: a verified version goes into service, and an operator can take it back."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from aifactory.errors import ReleaseDefect
from aifactory.factory import Factory
from aifactory.ledger import EventKind, station
from aifactory.line import LineSpec
from aifactory.packaging import load_package
from aifactory.reasons import ReasonCode
from aifactory.registry import Champion
from aifactory.rollout import PointerTarget
from aifactory.store import Conflict

log = logging.getLogger(__name__)


def promote(f: Factory, spec: LineSpec, version: str, run: str) -> dict[str, Any]:
    """Verify a version's package and put it into service; nothing changes where it is in service already.

    Returns:
        version, previous, trained_until, dataset_revision, order_id.

    Raises:
        PackageDefect: the package is incomplete, altered, or does not give its golden outputs.
        ReleaseDefect: VERSION_UNKNOWN.
        Conflict: another release was faster; a retry sees what it put into service.
    """
    registry = f.registry(spec)
    target = PointerTarget(registry)
    before = target.in_service()
    with station(f.ledger, spec.line, "deploy", "model", version, run_id=run, revision=_reign(before, version)) as work:
        wanted = registry.version(version)
        load_package(f, wanted.package)  # hashes and golden outputs: what serves is what was judged
        now = target.switch(version, before, how="promoted", by="line", why=f"order {wanted.order_id}")
        work.event, work.num_in, work.num_good = EventKind.PROMOTED, 1, 1
        work.detail = _said(now)
    log.info("version %s of %s is in service, trained until %s", now.version, spec.line, now.trained_until)
    return _said(now)


def rollback(f: Factory, spec: LineSpec, to_version: str | None, run: str, by: str, why: str) -> dict[str, Any]:
    """Take the champion back to an earlier version, on an operator's word.

    What a run is to do is decided once and kept, so that a run which is tried again never goes back a second time.

    Args:
        f: the open factory.
        spec: the line.
        to_version: the version; None for the one before.
        run: id of the run.
        by: the operator.
        why: in words; goes into the ledger.

    Returns:
        As `promote`.

    Raises:
        ReleaseDefect: NO_CHAMPION, NO_PREVIOUS or VERSION_UNKNOWN.
        PackageDefect: that version's package is not whole.
    """
    registry = f.registry(spec)
    target = PointerTarget(registry)
    before = target.in_service()
    if before is None:
        raise ReleaseDefect(ReasonCode.NO_CHAMPION, f"{spec.line} has no model in service that could be taken back")
    task = _decided_task(f, spec, before, to_version, run)
    if task["from"] == task["to"]:
        log.info("version %s of %s is in service already", task["to"], spec.line)
        return _said(before)
    with station(f.ledger, spec.line, "deploy", "model", task["from"], run_id=run, revision=run) as work:
        load_package(f, registry.version(task["to"]).package)
        now = before
        if len(before.history) == task["reign"]:
            now = target.switch(task["to"], before, how="rolled_back", by=by, why=why)
        work.event, work.reason = EventKind.ROLLED_BACK, ReasonCode.ROLLED_BACK
        work.num_in, work.num_bad = 1, 1
        work.detail = {**_said(now), "from": task["from"], "to": task["to"], "by": by, "why": why}
    log.info("%s is on version %s: %s (%s)", spec.line, now.version, why, by)
    return _said(now)


def _decided_task(f: Factory, spec: LineSpec, before: Champion, to_version: str | None, run: str) -> dict[str, Any]:
    """Which version a rollback run leaves, for which, in which reign; written once a run.

    Raises:
        ReleaseDefect: NO_PREVIOUS.
    """
    version = to_version or before.previous
    key = f"serving/{spec.line}/rollbacks/{hashlib.sha256(run.encode()).hexdigest()[:16]}.json"
    if version is None:
        raise ReleaseDefect(
            ReasonCode.NO_PREVIOUS, f"{spec.line} has had no champion before version {before.version}; name a version"
        )
    task = {"run": run, "from": before.version, "to": version, "reign": len(before.history)}
    try:
        f.store.put_json(key, task, if_absent=True)
    except Conflict:
        return f.store.get_json(key)
    return task


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
