"""Reports for people: one HTML page with its pictures under `reports/` in the factory bucket."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from aifactory.factory import Factory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = (
    "body{font-family:system-ui,sans-serif;margin:2em auto;max-width:60em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ddd;padding:.3em .8em;text-align:left}"
    "img{max-width:100%}"
)


def write_report(
    f: Factory,
    prefix: str,
    title: str,
    sentences: Sequence[str],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    figures: Mapping[str, Figure],
) -> str:
    """Write a page with sentences, tables and figures; returns its key. The same content gives the same bytes.

    Args:
        f: the open factory.
        prefix: key prefix below `reports/`.
        title: of the page.
        sentences: paragraphs.
        tables: heading -> rows; the first row's keys are the columns.
        figures: file stem -> matplotlib figure.
    """
    for stem, figure in figures.items():
        f.store.put(f"{prefix}/{stem}.png", _png(figure), content_type="image/png")
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(s)}</p>" for s in sentences)]
    body += [f"<h2>{escape(stem)}</h2><img src='{escape(stem)}.png' alt='{escape(stem)}'>" for stem in figures]
    body += [f"<h2>{escape(heading)}</h2>{_table(rows)}" for heading, rows in tables.items()]
    page = f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title><style>{_STYLE}</style>{''.join(body)}"
    key = f"{prefix}/index.html"
    f.store.put(key, page.encode(), content_type="text/html")
    return key


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>none</p>"
    head = "".join(f"<th>{escape(str(name))}</th>" for name in rows[0])
    lines = ("".join(f"<td>{escape(_shown(v))}</td>" for v in row.values()) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return buffer.getvalue()
