"""The page that is shipped was built from the sources that are shipped, against the API that is shipped."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from scripts import floor


def test_the_types_of_the_page_are_those_of_the_api() -> None:
    assert floor.SCHEMA.read_text() == floor.schema(), "the API's models have changed: run `make floor`"


def test_the_bundle_was_built_from_these_sources() -> None:
    assert floor.RECORD.read_text().strip() == floor.sources_hash(), "the page's sources have changed: run `make floor`"


def test_the_hash_sees_every_source(tmp_path: Path) -> None:
    copy = shutil.copytree(floor.FLOOR, tmp_path / "floor", ignore=shutil.ignore_patterns("node_modules", "dist"))
    before = floor.sources_hash(copy)
    assert before == floor.sources_hash()
    (copy / "src" / "lib" / "new.ts").write_text("")
    assert floor.sources_hash(copy) != before


def test_the_lockfile_names_no_registry_but_the_public_one() -> None:
    lock = (floor.FLOOR / "package-lock.json").read_text()
    assert not re.findall(r'"resolved": "(?!https://registry\.npmjs\.org/)[^"]*"', lock)


def test_the_bundle_asks_no_other_host() -> None:
    pages = [floor.FLOOR / "dist" / "index.html", *(floor.FLOOR / "dist").rglob("*.css")]
    assert not [
        page.name for page in pages if re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page.read_text())
    ]
