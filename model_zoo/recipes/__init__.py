"""What a recipe is, and the recipes by name. Importing this package imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distree.bundle.manifest import InputSpec, Preprocess
from distree.tensors import Array
from model_zoo.data import LabelledExamples
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


@dataclass(frozen=True, slots=True)
class Schedule:
    """One-cycle SGD with Nesterov momentum: up to `peak_rate` for the share `warm_up` of all steps, then to nought.

    shift_rate: by how much faster than all else the shifts of the normalisations learn.
    """

    epochs: int
    batch: int
    peak_rate: float
    warm_up: float = 0.2
    anneal: str = "cos"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shift_rate: float = 1.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Distillation:
    """Weights of the joint loss of `model_zoo.training.distillation`. dropout: chance of a branch to be left out."""

    exit_weights: tuple[float, ...] = (0.5, 0.7, 1.0)
    alpha: float = 0.9
    temperature: float = 4.0
    beta: float = 1.0
    dropout: float = 0.15
    masked_weight: float = 0.3


@dataclass(frozen=True, slots=True)
class WideRecipe:
    """One wide bundle's recipe: a teacher, and branches that learn from it.

    build_network takes the number of branches, one of `branch_counts`, and returns a `WideNetwork` of that many.
    build_small returns one whose last exit alone costs about what the other one does with early exits. build_teacher
    returns a `Teacher`. Both classes are of `model_zoo.training.layers`. All import torch.
    """

    name: str
    description: str
    labels: tuple[str, ...]
    input_shape: tuple[int, int, int]  # height, width, channels
    mean: tuple[float, ...]  # per channel, of values scaled to 0..1
    std: tuple[float, ...]
    data_name: str
    branch_counts: tuple[int, ...]
    build_network: Callable[[int], Any]
    build_small: Callable[[int], Any]
    build_teacher: Callable[[], Any]
    teacher: Schedule
    student: Schedule
    distillation: Distillation
    data_hint: str = ""  # where the data comes from, and in what form it is wanted
    validation: int = 5000  # images held back from training, the same number of each class


@dataclass(frozen=True, slots=True)
class Divided:
    """Examples as a recipe divides them: the test set is for the one measurement at the end."""

    train: LabelledExamples
    validation: LabelledExamples
    test: LabelledExamples


@dataclass(frozen=True, slots=True)
class WholeRecipe:
    """One whole network without exits, which `distree zoo split` cuts afterwards.

    input and preprocess: what the network takes, as a bundle declares it; training sees inputs through the same code as
    boards. read: takes what was downloaded, raises DataError where it is something else. build_network: imports torch
    and returns a module that takes a float tensor (n, *input_shape) and returns a dict with `logits` (n, classes).
    input_shape: the front end's features with a channel axis, last. vary: makes another raw input of one, as
    augmentation. after: the operators to cut after, chosen on the validation inputs.
    """

    name: str
    description: str
    labels: tuple[str, ...]
    licence: str  # of the weights
    input: InputSpec
    preprocess: Preprocess
    input_shape: tuple[int, int, int]
    read: Callable[[Path], Divided]
    build_network: Callable[[], Any]
    vary: Callable[[Array, np.random.Generator], Array]
    schedule: Schedule
    after: tuple[int, ...]
    data_hint: str  # where the data comes from, and in what form it is wanted


def recipe_names() -> tuple[str, ...]:
    """Names that `get_recipe` knows."""
    return ("fashion", "cifar10-wide")


def get_recipe(name: str) -> Recipe | WideRecipe:
    """Return a recipe by name. Raises DataError, with the nearest name, for one that does not exist."""
    if name not in recipe_names():
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        remedy = f"name {near[0]!r}, the nearest one" if near else f"name one of {', '.join(recipe_names())}"
        raise DataError(f"there is no recipe {name!r}", remedy)
    from model_zoo.recipes import cifar10_wide, fashion

    found: dict[str, Recipe | WideRecipe] = {recipe.name: recipe for recipe in (fashion.RECIPE, cifar10_wide.RECIPE)}
    return found[name]


def whole_recipe_names() -> tuple[str, ...]:
    """Names that `get_whole_recipe` knows."""
    return ("spoken-digits", "wrist-exercises")


def get_whole_recipe(name: str) -> WholeRecipe:
    """Return a recipe of a whole network by name. Raises DataError for one that does not exist."""
    from model_zoo.recipes import spoken_digits, wrist_exercises

    found = {recipe.name: recipe for recipe in (spoken_digits.RECIPE, wrist_exercises.RECIPE)}
    if name not in found:
        raise DataError(f"no recipe {name!r} of a whole network", f"name one of {', '.join(whole_recipe_names())}")
    return found[name]
