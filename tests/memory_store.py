"""A bucket in memory for unit tests of what only lists, reads and writes objects; `test_store.py` tests the real one.

`tests/integration/test_checkpoints.py` runs the same tests of checkpoints against the real store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aifactory.errors import InfrastructureFault, NotFound
from aifactory.reasons import ReasonCode
from aifactory.store import ObjectInfo, parquet_bytes


class MemoryStore:
    """The few methods of `Store` that checkpoints use; it can be slow, or away."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.put_s = 0.0
        self.away = False

    def put(self, key: str, body: bytes, **_: Any) -> str:
        time.sleep(self.put_s)
        if self.away:
            raise InfrastructureFault(ReasonCode.STORE_UNREACHABLE, f"put {key}: the store is away")
        self.objects[key] = body
        return ""

    def get(self, key: str) -> bytes:
        if self.away:
            raise InfrastructureFault(ReasonCode.STORE_UNREACHABLE, f"get {key}: the store is away")
        if key not in self.objects:
            raise NotFound(f"{key} does not exist")
        return self.objects[key]

    def put_json(self, key: str, value: Mapping[str, Any]) -> str:
        return self.put(key, json.dumps(value).encode())

    def get_json(self, key: str) -> dict[str, Any]:
        return dict(json.loads(self.get(key)))

    def list(self, prefix: str) -> list[ObjectInfo]:
        return [ObjectInfo(k, len(v), "") for k, v in sorted(self.objects.items()) if k.startswith(prefix)]

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def uri(self, key: str) -> str:
        return f"s3://memory/{key}"

    def put_table(self, key: str, table: pa.Table) -> str:
        return self.put(key, parquet_bytes(table))

    def get_table(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        return pq.read_table(pa.BufferReader(self.get(key)), columns=columns)
