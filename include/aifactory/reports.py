"""Reports for people: one HTML page with its pictures, in the factory bucket."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from aifactory.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = (
    "body{font-family:system-ui,sans-serif;margin:2em auto;max-width:60em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ddd;padding:.3em .8em;text-align:left}"
    "img{max-width:100%}"
)


def write_report(
    store: Store,
    prefix: str,
    title: str,
    sentences: Sequence[str],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    figures: Mapping[str, Figure],
) -> str:
    """Write a page with sentences, figures and tables; the same content gives the same bytes.

    Args:
        store: the factory's bucket.
        prefix: key prefix, `reports/<line>/<station>/<id>`.
        title: of the page.
        sentences: paragraphs.
        tables: heading -> rows; the first row's keys are the columns.
        figures: file stem -> figure; written beside the page.

    Returns:
        key of the page, written last.
    """
    for stem, figure in figures.items():
        store.put(f"{prefix}/{stem}.png", _png(figure), content_type="image/png")
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(s)}</p>" for s in sentences)]
    body += [f"<img src='{escape(stem)}.png' alt='{escape(stem)}'>" for stem in figures]
    body += [f"<h2>{escape(heading)}</h2>{_table(rows)}" for heading, rows in tables.items()]
    page = f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title><style>{_STYLE}</style>{''.join(body)}"
    key = f"{prefix}/index.html"
    store.put(key, page.encode(), content_type="text/html")
    return key


def new_figure(title: str) -> tuple[Figure, Any]:
    """An empty figure and its axes. Made without pyplot: that keeps every figure alive and wants a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>none</p>"
    head = "".join(f"<th>{escape(str(name))}</th>" for name in rows[0])
    lines = ("".join(f"<td>{escape(_shown(row.get(name)))}</td>" for name in rows[0]) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return buffer.getvalue()
