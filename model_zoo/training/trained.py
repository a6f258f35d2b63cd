"""Finds trained wide networks by their checkpoints. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distree.bundle.manifest import Trained
from model_zoo.data import LabelledExamples
from model_zoo.recipes import WideRecipe
from model_zoo.training.loop import Checkpoint, read_checkpoint
from model_zoo.training.plans import NOT_TRAINED, StudentPlan
from model_zoo.training.views import Images

_BATCH = 500


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network with the weights of its kept epoch, in evaluation mode on the CPU, and its checkpoint."""

    network: Any
    checkpoint: Checkpoint
    trained: Trained


def find_trained(plan: StudentPlan, work: Path) -> TrainedNetwork | str:
    """Return what a finished training left in `work`; if there is none, say in a few words why.

    The division of the teacher's filters is not compared: the checkpoint holds what came of it. Raises DataError for
    a file that is no checkpoint.
    """
    path = plan.checkpoint(work)
    if not path.is_file():
        return NOT_TRAINED
    checkpoint = read_checkpoint(path)
    wanted = plan.identity()
    if {key: checkpoint.identity.get(key) for key in wanted} != wanted:
        return "trained with other settings"
    if checkpoint.epochs < plan.schedule.epochs:
        return f"trained for {checkpoint.epochs} of {plan.schedule.epochs} epochs"
    network = plan.build_network()
    try:
        network.load_state_dict(checkpoint.weights)
    except RuntimeError:
        return "trained with another structure"
    trained = Trained(
        epochs=checkpoint.epochs,
        seed=plan.schedule.seed,
        seconds=round(checkpoint.seconds, 1),
        torch=str(torch.__version__),
    )
    return TrainedNetwork(network.eval(), checkpoint, trained)


def float_accuracy(network: Any, images: LabelledExamples, recipe: WideRecipe) -> tuple[float, ...]:
    """Return the accuracy of each exit before quantisation, nobody missing, 0..1."""
    pixels = Images.of(images.inputs, recipe.mean, recipe.std, "cpu")
    right = np.zeros(len(network.fusions), np.int64)
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            part = slice(start, start + _BATCH)
            for k, embeddings in enumerate(network.embeddings(pixels.plain(part))):
                guesses = network.fusions[k](*embeddings)["logits"].argmax(1).numpy()
                right[k] += int((guesses == images.labels[part]).sum())
    return tuple(float(value) for value in right / len(images))
