"""What a station has done, day by day, in one object of the store.

A line runs for years. Finding out what is pending must not read one object a day, so each station keeps one index: one
request reads it, and merging is a compare-and-swap, so that runs at the same time lose nothing of each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aifactory.errors import NotFound
from aifactory.store import Conflict, Store

Entry = Mapping[str, Any]

_MAX_RACES = 20


@dataclass(frozen=True)
class DayIndex:
    """Entries by day under one key."""

    store: Store
    key: str

    def read(self) -> dict[str, Entry]:
        """Every entry by day, oldest first; empty where nothing has been done yet."""
        return self._read()[0]

    def merge(self, entries: Mapping[str, Entry]) -> None:
        """Add or replace the entries of some days.

        Raises:
            Conflict: other writers kept winning.
        """
        for attempt in range(1, _MAX_RACES + 1):
            known, etag = self._read()
            if {**known, **entries} == known:
                return
            try:
                self.store.put_json(self.key, {**known, **entries}, if_match=etag, if_absent=etag is None)
            except Conflict:
                if attempt == _MAX_RACES:
                    raise
            else:
                return

    def _read(self) -> tuple[dict[str, Entry], str | None]:
        try:
            raw, etag = self.store.get_with_etag(self.key)
        except NotFound:
            return {}, None
        return dict(sorted(json.loads(raw).items())), etag
