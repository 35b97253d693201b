"""A bucket in a folder, for unit tests of what several processes write and read; see `memory_store`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aifactory.errors import NotFound
from aifactory.store import ObjectInfo


class FolderStore:
    """The few methods of `Store` that checkpoints use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: str, body: bytes, **_: Any) -> str:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        return ""

    def get(self, key: str) -> bytes:
        try:
            return (self.folder / key).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"{key} does not exist") from None

    def put_json(self, key: str, value: Mapping[str, Any]) -> str:
        return self.put(key, json.dumps(value).encode())

    def get_json(self, key: str) -> dict[str, Any]:
        return dict(json.loads(self.get(key)))

    def list(self, prefix: str) -> list[ObjectInfo]:
        files = [(str(p.relative_to(self.folder)), p) for p in self.folder.rglob("*") if p.is_file()]
        return [ObjectInfo(key, p.stat().st_size, "") for key, p in sorted(files) if key.startswith(prefix)]

    def delete(self, key: str) -> None:
        (self.folder / key).unlink(missing_ok=True)

    def uri(self, key: str) -> str:
        return f"folder://{key}"
