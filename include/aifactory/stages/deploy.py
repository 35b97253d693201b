"""Deploy: a verified version goes into service, and an operator can take it back."""

from __future__ import annotations

import logging
from typing import Any

from aifactory.errors import ReleaseDefect
from aifactory.factory import Factory
from aifactory.ledger import EventKind, station
from aifactory.line import LineSpec
from aifactory.packaging import load_package
from aifactory.reasons import ReasonCode
from aifactory.registry import Champion
from aifactory.rollout import PointerTarget, RolloutTarget

log = logging.getLogger(__name__)


def promote(f: Factory, spec: LineSpec, version: str, run: str) -> dict[str, Any]:
    """Verify a version's package and put it into service; nothing changes where it is in service already.

    Returns:
        version, previous, trained_until, dataset_revision, order_id.

    Raises:
        PackageDefect: the package is incomplete, altered, or does not give its golden outputs.
        ReleaseDefect: there is no such version.
    """
    registry = f.registry(spec)
    target = PointerTarget(registry)
    before = target.in_service()
    revision = f"{version} after {before.version if before and before.version != version else _before(before)}"
    with station(f.ledger, spec.line, "deploy", "model", version, run_id=run, revision=revision) as work:
        wanted = registry.version(version)
        load_package(f, wanted.package)  # hashes and golden outputs: what serves is what was judged
        now = _switch(target, version, before, how="promoted", by="line", why=f"order {wanted.order_id}")
        work.event, work.num_in, work.num_good = EventKind.PROMOTED, 1, 1
        work.detail = _said(now)
    log.info("version %s of %s is in service, trained until %s", now.version, spec.line, now.trained_until)
    return _said(now)


def rollback(f: Factory, spec: LineSpec, to_version: str | None, run: str, by: str, why: str) -> dict[str, Any]:
    """Take the champion back to an earlier version, on an operator's word.

    Args:
        f: the open factory.
        spec: the line.
        to_version: the version; None for the one before.
        run: id of the run.
        by: the operator.
        why: in words; goes into the ledger.

    Raises:
        ReleaseDefect: NO_CHAMPION, NO_PREVIOUS or VERSION_UNKNOWN.
        PackageDefect: that version's package is not whole.
    """
    registry = f.registry(spec)
    target = PointerTarget(registry)
    before = target.in_service()
    if before is None:
        raise ReleaseDefect(ReasonCode.NO_CHAMPION, f"{spec.line} has no model in service that could be taken back")
    version = to_version or before.previous
    if version is None:
        raise ReleaseDefect(
            ReasonCode.NO_PREVIOUS, f"{spec.line} has had no champion before version {before.version}; name a version"
        )
    with station(f.ledger, spec.line, "deploy", "model", before.version, run_id=run, revision=run) as work:
        load_package(f, registry.version(version).package)
        now = _switch(target, version, before, how="rolled_back", by=by, why=why)
        work.event, work.reason = EventKind.ROLLED_BACK, ReasonCode.ROLLED_BACK
        work.num_in, work.num_bad = 1, 1
        work.detail = {**_said(now), "from": before.version, "by": by, "why": why}
    log.info("%s is back on version %s: %s (%s)", spec.line, now.version, why, by)
    return _said(now)


def _switch(target: RolloutTarget, version: str, seen: Champion | None, *, how: str, by: str, why: str) -> Champion:
    return target.switch(version, seen, how=how, by=by, why=why)


def _before(champion: Champion | None) -> str | None:
    return champion.previous if champion else None


def _said(champion: Champion) -> dict[str, Any]:
    return {
        "version": champion.version,
        "previous": champion.previous,
        "order_id": champion.order_id,
        "trained_until": champion.trained_until,
        "dataset_revision": champion.dataset_revision,
    }
