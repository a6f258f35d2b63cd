"""Joint training of all exits of a recipe's chain of stages. Only `build` imports this; see `loop` beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from model_zoo.data import LabelledExamples
from model_zoo.recipes import Recipe, Schedule, TrainingSettings
from model_zoo.training.distillation import soft_loss
from model_zoo.training.loop import Loop, TrainingReport

_EVALUATION_BATCH = 1000


def normalise(images: npt.NDArray[np.uint8], recipe: Recipe) -> Any:
    """Turn uint8 (n, height, width, c) into a float32 tensor of that shape, normalised as on boards."""
    mean, std = np.asarray(recipe.mean, np.float32), np.asarray(recipe.std, np.float32)
    return torch.from_numpy((images.astype(np.float32) / np.float32(255.0) - mean) / std)


class Trainer:
    """Trains one network of a recipe on `train`, choosing the epoch on `validation`.

    work: folder for the checkpoint; a checkpoint of the same settings found there is resumed, one of others
    refused. progress and step: see `model_zoo.training.loop.Loop`.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: TrainingSettings,
        train: LabelledExamples,
        validation: LabelledExamples,
        work: Path,
        progress: Callable[[str], None] = lambda _: None,
        step: Callable[[int, int, int], None] = lambda *_: None,
    ) -> None:
        self._settings = settings
        self._images = normalise(train.inputs, recipe)
        self._labels = torch.from_numpy(train.labels)
        self._validation = normalise(validation.inputs, recipe)
        self._validation_labels = validation.labels
        torch.manual_seed(settings.seed)
        self.network = recipe.build_network()
        self._loop = Loop(
            self.network,
            _schedule(settings),
            len(train),
            self._loss,
            self.validate,
            work / f"{recipe.name}.checkpoint.pt",
            identity={"recipe": recipe.name, "settings": asdict(settings)},
            progress=progress,
            step=step,
        )

    def run(self) -> TrainingReport:
        """Train what is left to train, put the best epoch's weights into `network` and report."""
        return self._loop.run()

    def _loss(self, chosen: Any, generator: Any, _: int) -> Any:
        settings, labels = self._settings, self._labels[chosen]
        logits = exit_logits(self.network, augment(self._images[chosen], settings, generator))
        teacher = logits[-1].detach()
        loss = settings.exit_weights[-1] * functional.cross_entropy(logits[-1], labels)
        for weight, student in zip(settings.exit_weights, logits[:-1], strict=False):
            hard = functional.cross_entropy(student, labels)
            soft = soft_loss(student, teacher, settings.distill_temperature)
            loss = loss + weight * ((1 - settings.distill_weight) * hard + settings.distill_weight * soft)
        return loss

    def validate(self) -> tuple[float, ...]:
        """Accuracy of each exit on the validation images, 0..1, of a network in evaluation mode."""
        correct: list[int] = []
        with torch.no_grad():
            for start in range(0, len(self._validation), _EVALUATION_BATCH):
                part = slice(start, start + _EVALUATION_BATCH)
                guesses = [z.argmax(1).numpy() for z in exit_logits(self.network, self._validation[part])]
                hits = [int((guess == self._validation_labels[part]).sum()) for guess in guesses]
                correct = [a + b for a, b in zip(correct, hits, strict=True)] if correct else hits
        return tuple(hits / len(self._validation) for hits in correct)


def _schedule(settings: TrainingSettings) -> Schedule:
    return Schedule(
        epochs=settings.epochs,
        batch=settings.batch,
        peak_rate=settings.peak_rate,
        warm_up=settings.warm_up,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
    )


def exit_logits(network: Any, images: Any) -> list[Any]:
    """Run all stages on float images (n, height, width, channels); return each exit's logits (n, classes)."""
    logits = []
    features = images
    for stage in network.stages:
        outputs = stage(features)
        logits.append(outputs["logits"])
        features = outputs.get("features")
    return logits


def augment(images: Any, settings: TrainingSettings, generator: Any) -> Any:
    """Shift and mirror each image (n, height, width, channels) by its own draw; edges are repeated."""
    count, height, width, _ = images.shape
    reach = settings.shift
    down = torch.randint(-reach, reach + 1, (count, 1), generator=generator)
    right = torch.randint(-reach, reach + 1, (count, 1), generator=generator)
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    columns = (torch.arange(width) + right).clamp(0, width - 1)
    if settings.flip:
        mirrored = torch.randint(0, 2, (count, 1), generator=generator).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    return images[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
