"""What a training is called, and what its checkpoint must agree with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from model_zoo.errors import DataError
from model_zoo.recipes import Distillation, Schedule, WideRecipe, get_recipe
from model_zoo.training.plans import VARIANTS, StudentPlan, WideSettings, teacher_checkpoint

RECIPE = get_recipe("cifar10-wide")
assert isinstance(RECIPE, WideRecipe)


def test_every_training_has_a_checkpoint_of_its_own() -> None:
    plans = [
        StudentPlan.of(RECIPE, WideSettings(branches, seed, variant))
        for branches in RECIPE.branch_counts
        for seed in (1, 2)
        for variant in VARIANTS
    ]
    places = {plan.checkpoint(Path("work")) for plan in plans} | {teacher_checkpoint(RECIPE, Path("work"))}
    assert len(places) == len(plans) + 1
    assert Path("work/cifar10-wide-full-b2-s1.checkpoint.pt") in places
    assert len({tuple(plan.identity().items()) for plan in plans}) == len(plans)


def test_the_identity_is_what_changes_the_weights() -> None:
    """Checkpoints made with an identity must be found again: its words are not free to change."""
    recipe = dataclasses.replace(
        RECIPE,
        student=Schedule(epochs=20, batch=128, peak_rate=0.06, anneal="linear"),
        distillation=Distillation((0.5, 0.7, 1.0), 0.9, 4.0, 1.0, 0.15, 0.3),
    )
    assert StudentPlan.of(recipe, WideSettings(4, 3, "small")).identity() == {
        "role": "small-b4-s3",
        "schedule": "Schedule(epochs=20, batch=128, peak_rate=0.06, warm_up=0.2, anneal='linear', momentum=0.9, "
        "weight_decay=0.0005, shift_rate=1.0, seed=3)",
        "distillation": "Distillation(exit_weights=(0.5, 0.7, 1.0), alpha=0.9, temperature=4.0, beta=1.0, "
        "dropout=0.15, masked_weight=0.3)",
        "exits": "(2,)",
    }


def test_variants_differ_in_what_they_say() -> None:
    full, without, small = (StudentPlan.of(RECIPE, WideSettings(2, variant=variant)) for variant in VARIANTS)
    assert without.distillation == dataclasses.replace(full.distillation, dropout=0.0)
    assert (full.exits, without.exits, small.exits) == ((0, 1, 2), (0, 1, 2), (2,))
    assert small.distillation == full.distillation


def test_epochs_may_be_given() -> None:
    assert StudentPlan.of(RECIPE, WideSettings(2, epochs=3)).schedule.epochs == 3
    assert StudentPlan.of(RECIPE, WideSettings(2)).schedule.epochs == RECIPE.student.epochs


def test_a_number_of_branches_that_the_recipe_is_not_for() -> None:
    with pytest.raises(DataError, match="does not support 3 branches; choose one of 2, 4"):
        StudentPlan.of(RECIPE, WideSettings(3))


def test_bundles_are_named_by_what_is_unusual_with_them() -> None:
    names = [WideSettings(b, variant=v).bundle_name(RECIPE) for b in (2, 4) for v in ("full", "no-dropout")]
    assert names == ["cifar10-wide", "cifar10-wide-no-dropout", "cifar10-wide-4", "cifar10-wide-4-no-dropout"]
