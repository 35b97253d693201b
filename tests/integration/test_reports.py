"""Reports in the real store: whole, harmless, the same bytes again."""

from __future__ import annotations

import pytest
from tests.served import contents

from aifactory.factory import Factory
from aifactory.reports import new_figure, write_report

pytestmark = pytest.mark.integration


def write(f: Factory) -> str:
    figure, axes = new_figure("a line")
    axes.plot([1, 2], [3, 4])
    rows = [{"name": "<script>alert(1)</script>", "value": 0.123456}, {"name": "b", "value": None}]
    return write_report(f.store, "reports/x/y/z", "A & B", ["1 < 2"], {"rows": rows, "empty": []}, {"line": figure})


def test_a_report_is_whole_and_escapes_what_it_shows(factory: Factory) -> None:
    page = factory.store.get(write(factory)).decode()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "1 &lt; 2" in page
    assert "0.1235" in page
    assert "<p>none</p>" in page
    assert "<img src='line.png'" in page
    assert factory.store.get("reports/x/y/z/line.png").startswith(b"\x89PNG")


def test_a_report_written_again_is_the_same(factory: Factory) -> None:
    write(factory)
    before = contents(factory, "reports/")
    write(factory)
    assert contents(factory, "reports/") == before
