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
from typing import Any

from aifactory import features, scoring
from aifactory.errors import InfrastructureFault
from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.packaging import Package, load_package
from aifactory.training import outcome

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
        request: what is asked; it names the content that the answer depends on.
        carry_out: has it done.
    """
    whole = {"kind": kind, "spec": spec.model_dump(mode="json"), "asked": dict(request)}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    job = f"{kind.replace('_', '-')}-{digest[:16]}"
    f.store.put_json(key(spec.line, job, ".json"), whole)
    try:
        yield carry_out(job)
    except InfrastructureFault:
        raise  # the next try may find it done
    except BaseException:
        with suppress(InfrastructureFault):
            _remove(f, spec.line, job)
        raise
    _remove(f, spec.line, job)


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
    return {"table": table, "num_rows": built.num_rows}


def evaluate(f: Factory, spec: LineSpec, job: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on an order's challenger."""
    from aifactory.judgement import judge_order
    from aifactory.training.run import order_key

    order = f.store.get_json(order_key(spec.line, request["order_id"]))
    log.info("job %s judges the challenger of order %s", job, request["order_id"])
    return {"verdict": judge_order(f, spec, order)}


def score(f: Factory, spec: LineSpec, job: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The predictions of some days, one table a day."""
    packages: dict[str, Package] = {}
    tables, num_rows = {}, 0
    for number, each in enumerate(request["days"], 1):
        day, package = each["day"], packages.get(each["package"]) or load_package(f, each["package"])
        packages[each["package"]] = package
        columns = scoring.needed_columns(spec, package)
        units = f.datasets(spec).read_content(request["dir_md5"], [day], columns)
        made = scoring.predict_day(spec, package, units, each["version"], request["revision"])
        tables[day] = key(spec.line, job, f"/date={day}.parquet")
        f.store.put_table(tables[day], made)
        num_rows += made.num_rows
        log.info("day %d/%d, %s: %d predictions by version %s", number, len(request["days"]), day, made.num_rows,
                 each["version"])  # fmt: skip
    return {"tables": tables, "num_rows": num_rows}


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
    return outcome.told(
        lambda f: carry_out(f, given.line, given.job), failure=key(given.line, given.job, ".failure.json")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
