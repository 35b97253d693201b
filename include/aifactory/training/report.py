"""The evaluation report as a page for people; the same figures are beside it as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}
td,th{padding:.25rem .9rem .25rem 0;text-align:left;border-bottom:1px solid #d8dee4}td.n{text-align:right;
font-variant-numeric:tabular-nums}.verdict{padding:.6rem 1rem;border-radius:6px;color:#fff}.no{background:#b42318}
.yes{background:#1a7f37}.bar{background:#2f6feb;height:.7rem}"""


def evaluation_page(order: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    """One self-contained page: verdict, reasons, metrics side by side, the bootstrapped gain, slices, calibration."""
    word, colour = ("Passed", "yes") if verdict["passed"] else ("Refused", "no")
    reasons = "".join(f"<li><b>{escape(r['code'])}</b> {escape(r['message'])}</li>" for r in verdict["reasons"])
    parts = [
        f"<h1>{escape(order['line'])}: order {escape(order['order_id'])}</h1>",
        f"<p class='verdict {colour}'><b>{word}</b>, judged as {escape(verdict['kind'])}</p><ul>{reasons}</ul>",
        _table("What was judged", ["", ""], _about(order)),
        _table("Metrics on the held-out days", ["metric", "challenger", "champion"], _metrics(verdict)),
        _gain(verdict["gain"]),
        _table(
            "Slices",
            ["column", "value", "rows", "challenger", "champion", "allowed drop", "passed"],
            [[s[k] for k in _SLICE] for s in verdict["slices"]],
        ),
        _table(
            "Calibration",
            ["rows", "mean probability", "share of positives"],
            [[c["num_rows"], c["probability"], c["outcome"]] for c in verdict["calibration"]],
        ),
        _table(
            "Budgets",
            ["", "measured", "allowed"],
            [
                ["p95 of one row, ms", verdict["latency_ms"], verdict["limits"]["max_latency_ms"]],
                ["package, MB", verdict["size_mb"], verdict["limits"]["max_size_mb"]],
            ],
        ),
    ]
    title = escape(f"{order['line']} {order['order_id']}")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
        f"<body>{''.join(parts)}</body></html>"
    )


_SLICE = ("column", "value", "num_rows", "challenger", "champion", "allowed_drop", "passed")


def _about(order: Mapping[str, Any]) -> list[list[Any]]:
    days, champion = order["days"], order["champion"]
    return [
        ["recipe", order["recipe"]],
        ["parameters", ", ".join(f"{k}={v}" for k, v in order["parameters"].items())],
        ["features left out", ", ".join(order["drop_features"]) or "none"],
        ["dataset", f"{order['tag']} {order['revision']}"],
        ["learned", f"{days['challenger'][0]} to {days['challenger'][-1]}, {len(days['challenger'])} days"],
        ["held out", f"{days['holdout'][0]} to {days['holdout'][-1]}, {len(days['holdout'])} days"],
        [
            "champion",
            f"version {champion['version']}, learned to {champion['trained_until']}" if champion else "none yet",
        ],
        ["asked for by", f"{order['reason']} {order['why']}"],
    ]


def _metrics(verdict: Mapping[str, Any]) -> list[list[Any]]:
    other = verdict["champion_metrics"] or {}
    return [[name, value, other.get(name, "")] for name, value in verdict["metrics"].items()]


def _gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    row = [gain["mean"], gain["low"], gain["high"], gain["required"], gain["confidence"], gain["proved"]]
    names = ["observed", "lower bound", "upper bound", "lower bound required", "confidence", "proved"]
    return _table("Gain in the primary metric, paired bootstrap over hours", names, [row])


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><table><tr>{top}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, int | float):
        return f"<td class='n'>{value:.4f}</td>" if isinstance(value, float) else f"<td class='n'>{value}</td>"
    return f"<td>{escape(str(value))}</td>"
