"""The library of model recipes. A recipe is loaded by name, and with it only what it needs itself."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from aifactory.errors import SpecError
from aifactory.recipes.base import Parameters, Recipe

RECIPES = ("gradient_boosting", "tabular_mlp")


def load_recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        SpecError: there is no such recipe.
    """
    if name not in RECIPES:
        raise SpecError(f"model.recipe: there is no recipe {name!r}; there are {list(RECIPES)}")
    recipe: Recipe = importlib.import_module(f"aifactory.recipes.{name}").RECIPE
    return recipe


def check_parameters(name: str, given: Mapping[str, Any]) -> Parameters:
    """The parameters of a recipe, checked by the recipe, defaults filled in.

    Raises:
        SpecError: names each wrong parameter with its value.
    """
    try:
        return load_recipe(name).parameters(**given)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors())
        raise SpecError(f"model.recipes.{name}.parameters: {problems}") from None
