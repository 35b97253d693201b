"""Work of a station that may be done elsewhere, in a pod: from S3 to S3, without ledger, gate, git or Airflow.

    jobs/<line>/<job>.json            what is asked: {"kind", "spec", "asked"}
    jobs/<line>/<job>.result.json     what was made; .failure.json why not, see `training.outcome`
    jobs/<line>/<job>/...             the tables of it

The station that asked takes what was made through its gate and into its place; then all of this is removed. A job is
named by what is asked, so that the next try of a task that was lost finds it done.

`python -m aifactory.jobs --line L --job JOB` does one, and ends as `python -m aifactory.training` does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any

from aifactory import features, scoring
from aifactory.errors import Defect, InfrastructureFault, NotFound
from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.packaging import load_package
from aifactory.training import outcome
from aifactory.training.run import code_revision
from aifactory.training.stop import StopSignal

log = logging.getLogger(__name__)

CarryOut = Callable[[str], dict[str, Any]]
"""Has the job of this name done wherever that is; gives what was made."""


def key(line: str, job: str, name: str) -> str:
    """Key of a part of a job: `.json`, `.result.json`, `.failure.json` or `/<table>`."""
    return f"jobs/{line}/{job}{name}"


# --- of the station that asks
@contextmanager
def asked(
    f: Factory, spec: LineSpec, kind: str, request: Mapping[str, Any], carry_out: CarryOut
) -> Iterator[dict[str, Any]]:
    """Ask for a job, give what was made, and remove it when it has been taken.

    Args:
        f: the open factory.
        spec: the line; the job is done by this spec, whatever the image's says.
        kind: of `KINDS`.
        request: what is asked; with spec and code it names all that the answer depends on.
        carry_out: has it done.
    """
    whole = {"kind": kind, "spec": spec.model_dump(mode="json"), "asked": dict(request)}
    code = [f.settings.trainer_image, code_revision()]
    digest = hashlib.sha256(json.dumps([whole, code], sort_keys=True).encode()).hexdigest()
    job = f"{kind.replace('_', '-')}-{digest[:16]}"
    f.store.put_json(key(spec.line, job, ".json"), whole | {"at": datetime.now(UTC).isoformat()})
    try:
        yield carry_out(job)
    except InfrastructureFault:
        raise  # the next try may find it done
    except BaseException:
        with suppress(InfrastructureFault):
            _remove(f, spec.line, job)
        raise
    _remove(f, spec.line, job)


def prune(f: Factory, line: str, older_than: timedelta) -> list[str]:
    """Remove jobs that nobody took, of tasks that were lost or asked for something else since; gives their names.

    What has no request any more was written by a program that was told to end, and did not yet.
    """
    folder, left = key(line, "", ""), []
    parts = {o.key.removeprefix(folder).partition("/")[0].partition(".")[0] for o in f.store.list(folder)}
    for job in sorted(parts):
        try:
            at = datetime.fromisoformat(f.store.get_json(key(line, job, ".json"))["at"])
        except NotFound:
            at = datetime.min.replace(tzinfo=UTC)
        if datetime.now(UTC) - at > older_than:
            _remove(f, line, job)
            left.append(job)
    return left


def _remove(f: Factory, line: str, job: str) -> None:
    for found in f.store.list(key(line, job, "")):
        f.store.delete(found.key)


# --- of the program that does it
def build_features(f: Factory, spec: LineSpec, job: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The features of some days, as one table."""
    days = list(request["days"])
    raw = features.accepted(f, spec, features.needed_days(spec, days))
    built = features.build(f.settings, spec, days, raw, request["sql"])
    log.info("%d rows of %d days", built.num_rows, len(days))
    table = key(spec.line, job, "/features.parquet")
    f.store.put_table(table, built)
    return {"table": table}


def evaluate(f: Factory, spec: LineSpec, job: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on an order's challenger."""
    from aifactory.judgement import judge_order
    from aifactory.training.run import order_key

    order = f.store.get_json(order_key(spec.line, request["order_id"]))
    log.info("job %s judges the challenger of order %s", job, request["order_id"])
    return {"verdict": judge_order(f, spec, order)}


def score(f: Factory, spec: LineSpec, job: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The predictions of some days, one table a day; why there are none of a day, where a model or its rows are bad."""
    package = lru_cache(maxsize=4)(partial(load_package, f))
    tables, refused = {}, {}
    for number, each in enumerate(request["days"], 1):
        day, count = each["day"], f"day {number}/{len(request['days'])}"
        try:
            model = package(each["package"])
            columns = scoring.needed_columns(spec, model)
            units = f.datasets(spec).read_content(request["dir_md5"], [day], columns)
        except Defect as defect:
            log.warning("%s, %s: %s", count, day, defect)
            refused[day] = outcome.describe(defect)
            continue
        made = scoring.predict_day(spec, model, units, each["version"], request["revision"])
        tables[day] = key(spec.line, job, f"/date={day}.parquet")
        f.store.put_table(tables[day], made)
        log.info("%s, %s: %d predictions by version %s", count, day, made.num_rows, each["version"])
    return {"tables": tables, "refused": refused}


KINDS: dict[str, Callable[[Factory, LineSpec, str, Mapping[str, Any]], dict[str, Any]]] = {
    "build_features": build_features,
    "evaluate": evaluate,
    "score": score,
}


def carry_out(f: Factory, line: str, job: str) -> dict[str, Any]:
    """Do a job that was asked for, and say in S3 what was made."""
    whole = f.store.get_json(key(line, job, ".json"))
    made = KINDS[whole["kind"]](f, LineSpec.model_validate(whole["spec"]), job, whole["asked"])
    outcome.succeeded(f.store, key(line, job, ".result.json"), made)
    return made


def main(argv: list[str]) -> int:
    """Parse, do, tell."""
    parser = argparse.ArgumentParser(prog="aifactory.jobs", description=__doc__)
    parser.add_argument("--line", required=True, help="name of the line")
    parser.add_argument("--job", required=True, help="name of the job")
    given = parser.parse_args(argv)
    StopSignal().install()
    return outcome.told(
        lambda f: carry_out(f, given.line, given.job), failure=key(given.line, given.job, ".failure.json")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
