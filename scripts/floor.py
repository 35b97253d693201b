"""What ties the floor's page to the API that it asks and its bundle to the sources; run by `make floor`.

`schema` writes the API's models as JSON schema, from which the page's types are made; `record` writes into the bundle
the hash of the sources that it was built from, which a unit test compares with the sources that are there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from orchestration import floormodels

FLOOR = Path(__file__).resolve().parent.parent / "plugins" / "floor"
SCHEMA = FLOOR / "models.schema.json"
RECORD = FLOOR / "dist" / "sources.sha256"
_BASES = {BaseModel, floormodels.FloorModel, floormodels.Page}
SOURCES = ("package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "index.html", "models.schema.json")


class _WithoutTitles(GenerateJsonSchema):
    """Types are named for models; a title on each field would make a type of each field."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema() -> str:
    """The models of the API as one JSON schema, as text."""
    named = [
        model
        for model in vars(floormodels).values()
        if isinstance(model, type) and issubclass(model, BaseModel) and model not in _BASES
    ]
    pages = [floormodels.Page[item] for item in _items_of_pages()]
    _, found = models_json_schema(
        [(model, "serialization") for model in (*named, *pages)], schema_generator=_WithoutTitles
    )
    return json.dumps({"title": "Api", "type": "object", **_plain(found)}, indent=1, ensure_ascii=False) + "\n"


def sources_hash(folder: Path = FLOOR) -> str:
    """SHA-256 over the names and contents of all that the bundle is built from."""
    found = [p for part in ("src", "public") for p in (folder / part).rglob("*") if p.is_file()]
    digest = hashlib.sha256()
    for file in sorted([*(folder / name for name in SOURCES), *found]):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _plain(part: Any) -> Any:
    """References alone, without the words beside them, for which the generator would make a type of its own."""
    if isinstance(part, dict):
        return {"$ref": part["$ref"]} if "$ref" in part else {key: _plain(value) for key, value in part.items()}
    return [_plain(item) for item in part] if isinstance(part, list) else part


def _items_of_pages() -> list[type[BaseModel]]:
    return [
        floormodels.Attention,
        floormodels.GateResult,
        floormodels.Rollout,
        floormodels.UnitSummary,
        floormodels.QuarantinedBatch,
        floormodels.QuarantinedRow,
    ]


if __name__ == "__main__":
    if sys.argv[1] == "schema":
        SCHEMA.write_text(schema())
    else:
        RECORD.write_text(sources_hash() + "\n")
