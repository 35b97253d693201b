"""Score: the champion predicts every pending day; the predictions pass a gate before they are written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aifactory import gates, jobs, scoring
from aifactory.datasets import DatasetVersion
from aifactory.dayindex import Entry
from aifactory.errors import Defect, FactoryError, GateRefused
from aifactory.factory import Factory
from aifactory.jobs import CarryOut
from aifactory.ledger import Work, station
from aifactory.line import LineSpec
from aifactory.packaging import Package, load_package
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

Reign = Mapping[str, Any]
Predict = Callable[[str, Reign], "pa.Table"]
"""The predictions of (day, reign), one row a unit of that day."""


def score(f: Factory, spec: LineSpec, day: str | None, run: str, carry_out: CarryOut | None = None) -> dict[str, Any]:
    """Score what is pending: every dataset day without predictions for its present rows.

    A day whose predictions are refused does not hold up the others: they are scored, then the refusal is raised.

    Args:
        f: the open factory.
        spec: the line.
        day: the partition that the run is for. Every pending day is scored; a refused one is only tried again with
            the same rows and model where it is this one.
        run: id of the run.
        carry_out: has the predicting done elsewhere, all pending days at once; default here, day by day. The gate is
            here always.

    Returns:
        days, num_rows, model_version, docs; `reason` where nothing could be scored.

    Raises:
        GateRefused: PREDICTIONS_GATE; those predictions were not written.
    """
    version, reigns = f.datasets(spec).latest(), f.registry(spec).champions()
    outcome: dict[str, Any] = {"days": [], "num_rows": 0, "model_version": None, "docs": None}
    if version is None or not reigns:
        log.info("nothing is scored: %s", ReasonCode.NO_CHAMPION.sentence)
        return outcome | {"reason": ReasonCode.NO_CHAMPION.value}
    here = _Desk(f, spec, version, f.datasets(spec).content(version.revision), run, scoring.scored_days(f, spec).read())
    todo = scoring.pending(reigns, here.content, here.done, asked=day)
    if not todo:
        log.info("no day is pending (asked for %s)", day or "whatever is pending")
    refused: list[GateRefused] = []
    with here.predictor(todo, carry_out) as predict:
        for pending_day, reign in todo:
            try:
                here.score_day(pending_day, reign, predict)
            except GateRefused as refusal:
                log.warning("%s", refusal)
                refused.append(refusal)
    if refused:
        raise GateRefused(refused[0].reason, "; ".join(each.message for each in refused))
    made = [here.done[each] for each, _ in todo]
    return outcome | {
        "days": [each for each, _ in todo],
        "num_rows": sum(entry["num_rows"] for entry in made),
        "model_version": made[-1]["model_version"] if made else reigns[-1]["version"],
        "docs": made[-1]["docs"] if made else None,
    }


@dataclass
class _Desk:
    """What one run of scoring holds in its hands: the dataset version, and each model once."""

    f: Factory
    spec: LineSpec
    version: DatasetVersion
    content: Mapping[str, str]
    run: str
    done: dict[str, Entry]
    packages: dict[str, Package] = field(default_factory=dict)

    @contextmanager
    def predictor(self, todo: Sequence[tuple[str, Reign]], carry_out: CarryOut | None) -> Iterator[Predict]:
        """What gives a day's predictions: computed when asked, or read where they were computed elsewhere before."""
        if carry_out is None or not todo:
            yield self._predict
            return
        days = [
            {"day": day, "version": str(reign["version"]), "package": reign["package"], "content": self.content[day]}
            for day, reign in todo
        ]
        asked = {"revision": self.version.revision, "dir_md5": self.version.dir_md5, "days": days}
        with ExitStack() as stack:
            try:
                made = stack.enter_context(jobs.asked(self.f, self.spec, "score", asked, carry_out))
            except FactoryError as error:
                for day, reign in todo:
                    with suppress(FactoryError), self._at_station(day, reign):
                        raise error
                raise

            def take(day: str, reign: Reign) -> pa.Table:
                if day in made["refused"]:
                    why = made["refused"][day]
                    raise Defect(ReasonCode[why["reason"]], why["message"])
                return self.f.store.get_table(made["tables"][day])

            yield take

    def _at_station(self, day: str, reign: Reign) -> AbstractContextManager[Work]:
        return station(
            self.f.ledger, self.spec.line, "score", "predictions", day,
            partition=day, run_id=self.run, revision=f"{reign['version']}:{self.content[day]}",
        )  # fmt: skip

    def _predict(self, day: str, reign: Reign) -> pa.Table:
        version = str(reign["version"])
        if version not in self.packages:
            self.packages[version] = load_package(self.f, reign["package"])
        package = self.packages[version]
        units = self.f.datasets(self.spec).read(
            self.version.revision, [day], scoring.needed_columns(self.spec, package)
        )
        return scoring.predict_day(self.spec, package, units, version, self.version.revision)

    def score_day(self, day: str, reign: Reign, predict: Predict) -> None:
        """Predict, gate, write: predictions, then the record, then the index that has the day done.

        So whatever ends it in between, a ledger that is away too, the day is simply scored again.

        Raises:
            GateRefused: PREDICTIONS_GATE.
        """
        f, spec, model, rows = self.f, self.spec, str(reign["version"]), self.content[day]
        entry: dict[str, Any] = {}
        try:
            with self._at_station(day, reign) as work:
                predictions = predict(day, reign)
                work.num_in = predictions.num_rows
                entry |= _entry(predictions) | {
                    "content": rows,
                    "model_version": model,
                    "dataset_revision": self.version.revision,
                }
                work.detail = {"model_version": model, "mean_score": entry["mean_score"]}
                docs, problems = self._gate(day, predictions, entry)
                entry |= {"docs": docs, "refused": bool(problems)}
                if problems:
                    work.num_bad = predictions.num_rows
                    what = "; ".join(problems)
                    raise GateRefused(ReasonCode.PREDICTIONS_GATE, f"predictions of {day}: {what}; see {docs}")
                f.store.put_table(scoring.predictions_key(spec.line, day), predictions)
                work.num_good = predictions.num_rows
        except GateRefused:
            if "refused" in entry:
                self._note(day, entry)
            raise
        self._note(day, entry)
        log.info("%s: %d units scored by version %s, mean %.3f", day, work.num_good, model, entry["mean_score"])

    def _gate(self, day: str, predictions: pa.Table, entry: Entry) -> tuple[str, list[str]]:
        """Judge by the line's suite and against the recent days; returns the key of the docs, and what is wrong."""
        suites = gates.load_suites(self.f.settings, self.spec)
        with gates.connect(self.f.settings) as con:
            verdict = gates.judge(suites.predictions(self.spec), predictions, con)
        found = [f"{failure.expectation}: {failure.num_failed} rows" for failure in verdict.failures]
        found += scoring.problems(
            self.spec, predictions.num_rows, entry, scoring.recent_entries(self.spec, self.done, day)
        )
        summary = "; ".join(found) or f"{entry['num_rows']} predictions, mean score {entry['mean_score']:.4f}"
        prefix = f"reports/{self.spec.line}/score/{day}"
        return gates.publish_docs(self.f, {"predictions": verdict}, prefix, summary), found

    def _note(self, day: str, entry: Entry) -> None:
        scoring.scored_days(self.f, self.spec).merge({day: entry})
        self.done[day] = entry


def _entry(predictions: pa.Table) -> dict[str, Any]:
    """The figures of a day's predictions; a score that is not finite is none."""
    import pyarrow.compute as pc

    finite = predictions["score"].filter(pc.is_finite(predictions["score"]))
    mean = float(pc.mean(finite).as_py() or 0.0)
    return {"num_rows": predictions.num_rows, "num_scored": len(finite), "mean_score": round(mean, 6)}
