"""Quality gates: Great Expectations judges, DuckDB counts, and both speak of the same expectation objects.

GX's verdict on a batch is a pure function of *metrics* (row count, number of unexpected values ...), which an
execution engine supplies. `_ScanEngine` is such an engine: it turns every metric that a suite asks for into one
aggregate of ONE DuckDB statement, so that a suite of sixty metrics reads the data once. GX builds the metric graph,
validates each expectation from the metrics, and renders the Data Docs. The rows that failed are found by a second
scan, run only when a row expectation has failed, whose conditions come from the same expectations.

Every gate fails closed: an expectation that raised, or one that the scan cannot express, is GATE_BROKEN.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aifactory.errors import FactoryError, GateRefused, SpecError
from aifactory.expectations import DAY_COLUMN, ROW_COLUMN
from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from great_expectations import ExpectationSuite
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

log = logging.getLogger(__name__)

NUM_SAMPLES = 20
"""Values that a failed expectation shows in its report."""


@dataclass(frozen=True)
class Failure:
    """One expectation that the data did not meet."""

    reason: ReasonCode
    level: str
    expectation: str
    num_failed: int
    configuration: ExpectationConfiguration


@dataclass(frozen=True)
class Verdict:
    """What GX said of one table. `failures` are in the suite's order."""

    suite: str
    num_rows: int
    failures: tuple[Failure, ...]
    result: ExpectationSuiteValidationResult

    @property
    def passed(self) -> bool:
        """Whether every expectation was met."""
        return not self.failures

    def at(self, level: str) -> list[Failure]:
        """The failures of one level, `row` or `batch`."""
        return [f for f in self.failures if f.level == level]


def load_suites(settings: Settings, spec: LineSpec) -> ModuleType:
    """The line's `expectations.py`, with its functions raw(), batches(), features() and predictions()."""
    return _load_module(settings.lines_dir / spec.line / "expectations.py")


@lru_cache(maxsize=64)
def _load_module(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"aifactory_line_{path.parent.name}_expectations", path)
    if found is None or found.loader is None or not path.exists():
        raise SpecError(f"{path} does not exist; every line folder needs an expectations.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def connect(settings: Settings) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB in UTC, within the threads and the memory that the settings allow; it spills to the cache."""
    import duckdb

    spill = settings.home / "cache" / f"duckdb-{os.getpid()}"  # its files' names are not its process's own
    spill.parent.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect(
        config={
            "threads": settings.threads,
            "memory_limit": f"{settings.memory_limit_gb}GB",
            "preserve_insertion_order": False,
            "temp_directory": str(spill),
        }
    )
    con.execute("SET TimeZone = 'UTC'")
    return con


def judge(suite: ExpectationSuite, data: pa.Table | str, con: duckdb.DuckDBPyConnection) -> Verdict:
    """Let GX validate a suite against an Arrow table, or a relation of the connection by name.

    Raises:
        GateRefused: GATE_BROKEN, when the gate itself could not run.
    """
    try:
        result, num_rows = _validate(suite, _relation(data, con), con)
    except FactoryError:
        raise
    except Exception as error:  # whatever broke, a gate that cannot run is a gate that failed
        raise GateRefused(
            ReasonCode.GATE_BROKEN, f"the gate {suite.name} could not run: {type(error).__name__}: {error}"
        ) from error
    broken = [r for r in result.results if _raised(r)]
    if broken:
        named = "; ".join(f"{describe(r.expectation_config)}: {_raised(r)}" for r in broken[:3])
        raise GateRefused(ReasonCode.GATE_BROKEN, f"the gate {suite.name} could not judge {named}")
    if len(result.results) != len(suite.expectations):
        raise GateRefused(
            ReasonCode.GATE_BROKEN,
            f"the gate {suite.name} judged {len(result.results)} of {len(suite.expectations)} expectations",
        )
    place = {describe(x.configuration): n for n, x in enumerate(suite.expectations)}  # GX groups results by column
    unmet = sorted((r for r in result.results if not r.success), key=lambda r: place[describe(r.expectation_config)])
    failures = tuple(_failure(r) for r in unmet)
    return Verdict(suite.name, num_rows, failures, result)


def failing_rows(failures: Iterable[Failure], data: pa.Table | str, con: duckdb.DuckDBPyConnection) -> pa.Table:
    """Which rows failed, and what each failed first, by one scan.

    A row that repeats a key fails only if an earlier good row has the key, so the first good one stays.

    Returns:
        columns `_day`, `_row`, `reason`, `expectation`, sorted by day and row.
    """
    chosen = list(failures)
    relation = _relation(data, con)
    plain = [(n, f) for n, f in enumerate(chosen) if not _key_columns(f.configuration)]
    keys = [(n, f) for n, f in enumerate(chosen) if _key_columns(f.configuration)]
    cases = " ".join(f"WHEN {row_condition(f.configuration)} THEN {n}" for n, f in plain)
    first = f"CASE {cases} END" if cases else "NULL"
    inner = f"SELECT *, CAST({first} AS INTEGER) AS _first FROM {relation}"  # noqa: S608
    repeats = [
        f"WHEN ROW_NUMBER() OVER (PARTITION BY {', '.join(map(_quote, _key_columns(f.configuration)))} "
        f"ORDER BY CASE WHEN _first IS NULL THEN 0 ELSE 1 END, {ROW_COLUMN}) > 1 THEN {n}"
        for n, f in keys
    ]
    failed = f"CASE WHEN _first IS NOT NULL THEN _first {' '.join(repeats)} END"
    found = con.sql(
        f"SELECT * FROM (SELECT {DAY_COLUMN}, {ROW_COLUMN}, {failed} AS failed FROM ({inner})) "  # noqa: S608
        f"WHERE failed IS NOT NULL ORDER BY {DAY_COLUMN}, {ROW_COLUMN}"
    ).to_arrow_table()
    return _name_failures(found, chosen)


def _name_failures(found: pa.Table, failures: list[Failure]) -> pa.Table:
    import pyarrow as pa

    index = found.column("failed").combine_chunks()
    names = {"reason": [f.reason.value for f in failures], "expectation": [f.expectation for f in failures]}
    table = found.drop_columns(["failed"])
    for name, values in names.items():
        table = table.append_column(name, pa.array(values, pa.string()).take(index))
    return table


def _relation(data: pa.Table | str, con: duckdb.DuckDBPyConnection) -> str:
    if isinstance(data, str):
        return _quote(data)
    con.register("_batch", data)
    return '"_batch"'


def _failure(result: Any) -> Failure:
    configuration = result.expectation_config
    meta = configuration.meta or {}
    counted = result.result.get("unexpected_count", result.result.get("observed_value"))
    return Failure(
        reason=ReasonCode[meta["reason"]],
        level=meta["level"],
        expectation=describe(configuration),
        num_failed=int(counted or 0),
        configuration=configuration,
    )


def _raised(result: Any) -> str | None:
    """What an expectation raised, if it did. GX keeps one such record, or one for each metric that failed."""
    info = result.exception_info or {}
    records = [info] if "raised_exception" in info else list(info.values())
    messages = [str(r.get("exception_message")) for r in records if r.get("raised_exception")]
    return "; ".join(messages) or None


def describe(configuration: ExpectationConfiguration) -> str:
    """An expectation in a few words, e.g. `wind_speed between 0 and 150`."""
    if configuration.description:
        return str(configuration.description)
    k = configuration.kwargs
    words = {
        "expect_column_values_to_not_be_null": "{column} is not null",
        "expect_column_values_to_be_between": "{column} between {min_value} and {max_value}",
        "expect_column_values_to_be_in_set": "{column} in {value_set}",
        "expect_column_values_to_match_regex": "{column} matches {regex}",
        "expect_column_values_to_be_unique": "{column} is unique",
        "expect_compound_columns_to_be_unique": "{column_list} are unique together",
        "expect_column_pair_values_a_to_be_greater_than_b": "{column_A} is greater than {column_B}",
    }
    template = words.get(configuration.type, configuration.type)
    return str(template).format_map({**dict.fromkeys(("min_value", "max_value")), **k})


# --- expectations as SQL
def row_condition(configuration: ExpectationConfiguration) -> str:
    """The SQL condition that is true on the rows which fail an expectation."""
    kwargs = configuration.kwargs
    if configuration.type == "unexpected_rows_expectation":
        return _condition("unexpected_rows_query", kwargs)
    return _condition(str(configuration.to_domain_obj().map_metric), kwargs)


def _condition(metric: str, k: Mapping[str, Any]) -> str:
    """The SQL condition of one GX map metric: true where the value is unexpected."""
    build = _CONDITIONS.get(metric)
    if build is None:
        raise GateRefused(
            ReasonCode.GATE_BROKEN, f"the gate cannot express GX's {metric}; it knows {sorted(_CONDITIONS)}"
        )
    return f"({build(k)})"


def _between(k: Mapping[str, Any]) -> str:
    column, parts = _quote(k["column"]), []
    if k.get("min_value") is not None:
        parts.append(f"{column} {'<=' if k.get('strict_min') else '<'} {_literal(k['min_value'])}")
    if k.get("max_value") is not None:
        parts.append(f"{column} {'>=' if k.get('strict_max') else '>'} {_literal(k['max_value'])}")
    return " OR ".join(parts)


def _in_set(k: Mapping[str, Any]) -> str:
    return f"{_quote(k['column'])} NOT IN ({', '.join(map(_literal, k['value_set']))})"


def _a_greater(k: Mapping[str, Any]) -> str:
    return f"{_quote(k['column_A'])} {'<' if k.get('or_equal') else '<='} {_quote(k['column_B'])}"


_CONDITIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "column_values.nonnull": lambda k: f"{_quote(k['column'])} IS NULL",
    "column_values.between": _between,
    "column_values.in_set": _in_set,
    "column_values.match_regex": lambda k: f"NOT regexp_matches({_quote(k['column'])}, {_literal(k['regex'])})",
    "column_pair_values.a_greater_than_b": _a_greater,
    "unexpected_rows_query": lambda k: str(k["unexpected_rows_query"]).split(" WHERE ", 1)[1],
}
_UNIQUE = ("column_values.unique", "compound_columns.unique")


def _key_columns(configuration: ExpectationConfiguration) -> list[str]:
    """Columns that an expectation wants to be unique; empty for every other expectation."""
    if configuration.type == "expect_column_values_to_be_unique":
        return [configuration.kwargs["column"]]
    if configuration.type == "expect_compound_columns_to_be_unique":
        return list(configuration.kwargs["column_list"])
    return []


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: Any) -> str:
    return str(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"


# --- the engine that GX asks for metrics
def _validate(
    suite: ExpectationSuite, relation: str, con: duckdb.DuckDBPyConnection
) -> tuple[ExpectationSuiteValidationResult, int]:
    from great_expectations.validator.validator import Validator

    engine = _engine_class()(con, relation)
    validator = Validator(execution_engine=engine, expectation_suite=suite, data_context=_context())
    result = validator.validate(
        expectation_suite=suite, result_format={"result_format": "SUMMARY", "partial_unexpected_count": NUM_SAMPLES}
    )
    return result, engine.num_rows


@lru_cache(maxsize=1)
def _context() -> Any:
    """GX wants a context to exist: one in memory, without progress bars."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    return context


@lru_cache(maxsize=1)
def _engine_class() -> Any:
    """GX's execution engine over one DuckDB relation. Made on first use, as GX takes seconds to import."""
    from great_expectations.execution_engine import ExecutionEngine

    class ScanEngine(ExecutionEngine):  # type: ignore[misc]
        """Answers every metric of a suite by one statement over one relation."""

        def __init__(self, con: duckdb.DuckDBPyConnection, relation: str) -> None:
            super().__init__(name="duckdb_scan")
            self._con, self._relation = con, relation
            self.num_rows = 0

        def resolve_metrics(
            self, metrics_to_resolve: Iterable[Any], metrics: Any = None, runtime_configuration: Any = None
        ) -> dict[Any, Any]:
            """All counts by one scan; samples of unexpected values only where there are any."""
            wanted = list(metrics_to_resolve)
            counts = {m.id: _count_sql(m, self._relation) for m in wanted}
            asked = {i: sql for i, sql in counts.items() if sql}
            selected = ", ".join(["COUNT(*)", *asked.values()])
            row = self._con.execute(f"SELECT {selected} FROM {self._relation}").fetchall()[0]  # noqa: S608
            values = dict(zip(asked, (int(v or 0) for v in row[1:]), strict=True))
            self.num_rows = int(row[0])
            failed = {_base(m) for m in wanted if values.get(m.id)}
            for m in wanted:
                if m.id not in values:
                    values[m.id] = self._sample(m) if _base(m) in failed else []
            return values

        def _sample(self, metric: Any) -> list[Any]:
            """Some unexpected values of a failed expectation."""
            if not metric.metric_name.endswith(".unexpected_values"):
                return []
            columns = _columns_of(metric.metric_domain_kwargs)
            condition = _metric_condition(metric, self._relation)
            found = self._con.sql(
                f"SELECT {', '.join(map(_quote, columns))} FROM {self._relation} WHERE {condition} "  # noqa: S608
                f"LIMIT {NUM_SAMPLES}"
            )
            rows = found.to_arrow_table().to_pylist()
            return [r[columns[0]] if len(columns) == 1 else r for r in rows]

        def get_batch_data_and_markers(self, batch_spec: Any) -> Any:
            """There is one relation, given at the start; GX never asks for another."""
            raise NotImplementedError

        _comparison_condition_to_filter_clause = get_batch_data_and_markers
        _nullity_condition_to_filter_clause = get_batch_data_and_markers
        _and_condition_to_filter_clause = get_batch_data_and_markers
        _or_condition_to_filter_clause = get_batch_data_and_markers

    _register_metrics(ScanEngine)
    return ScanEngine


_SUFFIXES = (
    ".unexpected_count",
    ".unexpected_values",
    ".unexpected_index_list",
    ".unexpected_index_query",
    ".filtered_row_count",
)


def _register_metrics(engine: type) -> None:
    """Tell GX's registry that the engine supplies these metrics, each without dependencies on others."""
    from great_expectations.expectations import registry
    from great_expectations.expectations.metrics.metric_provider import MetricProvider

    maps = [m for m in (*_CONDITIONS, *_UNIQUE) if m != "unexpected_rows_query"]
    names = [m + s for m in maps for s in _SUFFIXES]
    for name in ["table.row_count", "unexpected_rows_query.row_count", "unexpected_rows_query.table", *names]:
        known = registry._registered_metrics.get(name)
        if known is None:  # e.g. single columns have no filtered_row_count
            continue
        registry.register_metric(
            metric_name=name,
            metric_domain_keys=known["metric_domain_keys"],
            metric_value_keys=known["metric_value_keys"],
            execution_engine=engine,
            metric_class=MetricProvider,
            metric_provider=_never_called,
        )


def _never_called(**_: Any) -> None:
    """GX wants a function per metric; the engine resolves them all itself, in one scan."""
    raise NotImplementedError


def _base(metric: Any) -> tuple[str, Any, Any]:
    """What a count and a list of the same unexpected values have in common."""
    name = metric.metric_name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name, metric.id[1], metric.id[2]


def _count_sql(metric: Any, relation: str) -> str | None:
    """The aggregate that answers a counting metric; None for the others."""
    name = metric.metric_name
    if name == "table.row_count":
        return "COUNT(*)"
    if name.endswith(".filtered_row_count"):
        judged = " AND ".join(f"{_quote(c)} IS NOT NULL" for c in _columns_of(metric.metric_domain_kwargs))
        return f"COUNT(*) FILTER (WHERE {judged})"
    if name.endswith(".unexpected_count") or name == "unexpected_rows_query.row_count":
        if _base(metric)[0] in _UNIQUE:
            keys = ", ".join(map(_quote, _columns_of(metric.metric_domain_kwargs)))
            return (
                f"(SELECT SUM(n) FROM (SELECT COUNT(*) AS n FROM {relation} "  # noqa: S608
                f"GROUP BY {keys} HAVING COUNT(*) > 1))"
            )
        return f"COUNT(*) FILTER (WHERE {_metric_condition(metric, relation)})"
    return None


def _metric_condition(metric: Any, relation: str) -> str:
    name = _base(metric)[0].removesuffix(".row_count")
    kwargs = {**metric.metric_domain_kwargs, **metric.metric_value_kwargs}
    if name in _UNIQUE:
        keys = ", ".join(map(_quote, _columns_of(kwargs)))
        return f"({keys}) IN (SELECT ({keys}) FROM {relation} GROUP BY {keys} HAVING COUNT(*) > 1)"  # noqa: S608
    return _condition(name, kwargs)


def _columns_of(kwargs: Mapping[str, Any]) -> list[str]:
    if kwargs.get("column_list"):
        return list(kwargs["column_list"])
    if kwargs.get("column_A"):
        return [kwargs["column_A"], kwargs["column_B"]]
    return [kwargs["column"]]


# --- Data Docs
def publish_docs(f: Factory, verdicts: Mapping[str, Verdict], prefix: str, summary: str = "") -> str:
    """Render GX's validation pages and put them, with an index page, under `reports/`.

    GX's own renderer makes one HTML page a verdict; no site is built, so a night's docs cost milliseconds.

    Args:
        f: the open factory.
        verdicts: page name -> verdict.
        prefix: key prefix of the pages.
        summary: one sentence for the top of the index page.

    Returns:
        key of the index page.
    """
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    for name, verdict in verdicts.items():
        page = ValidationResultsPageRenderer(run_info_at_end=True).render(verdict.result)
        html = _offline(DefaultJinjaPageView().render(page))
        f.store.put(f"{prefix}/{name}.html", html.encode(), content_type="text/html")
    index = f"{prefix}/index.html"
    f.store.put(index, _index_page(verdicts, prefix, summary).encode(), content_type="text/html")
    return index


_DOCS_STYLE = """<style>
body { font-family: system-ui, sans-serif; margin: 2em auto; max-width: 75em; color: #222 }
table { border-collapse: collapse; width: 100%; margin: .5em 0 1.5em }
td, th { border-bottom: 1px solid #ddd; padding: .3em .8em; text-align: left; vertical-align: top }
.badge { background: #eee; border-radius: .3em; padding: 0 .3em }
.fa-check-circle::before { content: "✓"; color: green } .fa-times::before { content: "✗"; color: red }
.fa-exclamation-triangle::before { content: "!"; color: darkorange }
nav, footer, .ge-toc, [id$="-toc"], .navigation-column, .ge-navigation-sidebar-container { display: none }
</style>"""
"""Looks enough to read GX's pages by, without the style sheets and scripts that they would load from other hosts."""


def _offline(html: str) -> str:
    """A page of GX's that asks no other host for anything."""
    import re

    bare = re.sub(r"<script\b.*?</script>|<link\b[^>]*>|<img\b[^>]*>|<footer>.*?</footer>", "", html, flags=re.DOTALL)
    return bare.replace("</head>", f"{_DOCS_STYLE}</head>", 1)


def _index_page(verdicts: Mapping[str, Verdict], prefix: str, summary: str) -> str:
    from html import escape

    lines = []
    for name, v in verdicts.items():
        unmet = "<br>".join(escape(f"{x.reason.value}: {x.expectation} ({x.num_failed})") for x in v.failures)
        lines.append(
            f"<tr><td><a href='{escape(name)}.html'>{escape(name)}</a></td>"
            f"<td>{'passed' if v.passed else 'failed'}</td><td>{v.num_rows}</td><td>{unmet}</td></tr>"
        )
    return (
        f"<!doctype html><meta charset='utf-8'><title>{escape(prefix)}</title>"
        "<style>body{font-family:sans-serif;margin:2em}td,th{padding:.3em 1em;text-align:left}</style>"
        f"<h1>{escape(prefix)}</h1><p>{escape(summary)}</p>"
        f"<table><tr><th>suite</th><th>verdict</th><th>rows</th><th>not met</th></tr>{''.join(lines)}</table>"
    )
