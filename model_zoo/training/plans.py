"""What exactly a training of a wide recipe is, and where it keeps its checkpoint. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from model_zoo.errors import DataError
from model_zoo.recipes import Distillation, Schedule, WideRecipe

Variant = Literal["full", "no-dropout", "small"]
"""What is trained: the recipe's network; the same without branch dropout; the smaller one without early exits."""

VARIANTS: tuple[Variant, ...] = ("full", "no-dropout", "small")
NOT_TRAINED = "not trained"
"""Why a network cannot be used that has no checkpoint."""


@dataclass(frozen=True, slots=True)
class WideSettings:
    """What may be chosen by hand. epochs: of the student; None for the recipe's."""

    branches: int
    seed: int = 1
    variant: Variant = "full"
    epochs: int | None = None

    def bundle_name(self, recipe: WideRecipe) -> str:
        """Name of the bundle: the recipe's, and what is not as usual with it."""
        branches = "" if self.branches == recipe.branch_counts[0] else f"-{self.branches}"
        return f"{recipe.name}{branches}{'' if self.variant == 'full' else f'-{self.variant}'}"


@dataclass(frozen=True, slots=True)
class StudentPlan:
    """All that a training of a wide network depends on, but for its teacher and the images.

    exits: those that are trained.
    """

    name: str
    schedule: Schedule
    distillation: Distillation
    exits: tuple[int, ...]
    build_network: Callable[[], Any]
    recipe: WideRecipe

    @classmethod
    def of(cls, recipe: WideRecipe, settings: WideSettings) -> StudentPlan:
        """Apply settings to a recipe; DataError for a number of branches that the recipe is not for."""
        if settings.branches not in recipe.branch_counts:
            known = ", ".join(map(str, recipe.branch_counts))
            raise DataError(
                f"recipe {recipe.name} does not support {settings.branches} branches", f"choose one of {known}"
            )
        distillation, small = recipe.distillation, settings.variant == "small"
        exits = tuple(range(len(distillation.exit_weights)))
        return cls(
            name=f"{settings.variant}-b{settings.branches}-s{settings.seed}",
            schedule=replace(recipe.student, seed=settings.seed, epochs=settings.epochs or recipe.student.epochs),
            distillation=replace(distillation, dropout=0.0) if settings.variant == "no-dropout" else distillation,
            exits=exits[-1:] if small else exits,
            build_network=lambda: (recipe.build_small if small else recipe.build_network)(settings.branches),
            recipe=recipe,
        )

    def identity(self) -> dict[str, str]:
        """What a checkpoint of this training says of itself, but for the division of the teacher's filters."""
        return {
            "role": self.name,
            "schedule": repr(self.schedule),
            "distillation": repr(self.distillation),
            "exits": repr(self.exits),
        }

    def checkpoint(self, work: Path) -> Path:
        """Where the training's checkpoint is."""
        return work / f"{self.recipe.name}-{self.name}.checkpoint.pt"


def teacher_checkpoint(recipe: WideRecipe, work: Path) -> Path:
    """Where the checkpoint of the recipe's teacher is."""
    return work / f"{recipe.name}-teacher.checkpoint.pt"
