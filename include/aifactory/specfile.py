"""Typed YAML files: frozen pydantic models, and errors that name the file, the field and the value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aifactory.errors import SpecError

Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,40}$")]


class Spec(BaseModel):
    """Part of a file: frozen, and without room for what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Model = TypeVar("Model", bound=Spec)


def read_spec(path: Path, model: type[Model], remedy: str) -> Model:
    """Read and validate a file.

    Args:
        path: the file.
        model: what it must be.
        remedy: what to do where there is no such file.

    Raises:
        SpecError: names the file, and each wrong field with its value.
    """
    try:
        content = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe loaders
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except (yaml.YAMLError, ValueError) as error:  # the second of a date such as 2026-13-45
        raise SpecError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{path}: must be a mapping of sections, got {type(content).__name__}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_problem(dict(e)) for e in error.errors())
        raise SpecError(f"{path}: {problems}") from None


def _problem(error: dict[str, Any]) -> str:
    """One pydantic error as `field: what (got value)`."""
    where = ".".join(str(part) for part in error["loc"]) or "(whole file)"
    message = str(error["msg"]).removeprefix("Value error, ")
    shown = repr(error["input"])
    plain = error["type"] != "value_error" and len(shown) <= 60
    return f"{where}: {message}" + (f" (got {shown})" if plain else "")
