"""What a recipe is, and the recipes by name. Importing this package imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from model_zoo.errors import DataError


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a network is trained: fixed by the recipe, but that seed and epochs may be given by hand."""

    epochs: int = 24
    batch: int = 256
    peak_rate: float = 0.1  # of the one-cycle schedule
    warm_up: float = 0.2  # share of all steps until the peak
    momentum: float = 0.9
    weight_decay: float = 5e-4
    exit_weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    distill_weight: float = 0.5  # share of the last exit's soft labels in the loss of an earlier exit
    distill_temperature: float = 2.0
    shift: int = 2  # pixels, both ways, both axes
    flip: bool = True  # mirror left and right with probability one half
    validation: int = 5000  # images held back, the last of the training set
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """One bundle's recipe.

    build_network: imports torch and returns a module with `stages`, a ModuleList in depth order, whose
    members take a float tensor (n, height, width, channels) and return a dict with `logits` (n, classes) and,
    but for the last, `features` (n, height, width, channels). Each stage has `exit`, the submodule that only
    its logits need.
    """

    name: str
    description: str
    labels: tuple[str, ...]
    input_shape: tuple[int, int, int]  # height, width, channels
    mean: tuple[float, ...]  # per channel, of values scaled to 0..1
    std: tuple[float, ...]
    data_name: str
    build_network: Callable[[], Any]
    settings: TrainingSettings = field(default_factory=TrainingSettings)


def recipe_names() -> tuple[str, ...]:
    """Names that `get_recipe` knows."""
    return ("fashion",)


def get_recipe(name: str) -> Recipe:
    """Return a recipe by name. Raises DataError, with the nearest name, for one that does not exist."""
    if name not in recipe_names():
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(recipe_names())}"
        raise DataError(f"no recipe {name!r}; {hint}")
    from model_zoo.recipes import fashion

    return fashion.RECIPE
