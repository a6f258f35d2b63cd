"""Training of a whole network without exits. Imports torch; see `loop` beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from distree.bundle.preprocessing import Preprocessor
from distree.tensors import Array
from model_zoo.recipes import Divided, Schedule, WholeRecipe
from model_zoo.training.loop import Loop, TrainingReport


class WholeTrainer:
    """Trains the network of a recipe on `parts.train`, choosing the epoch on `parts.validation`.

    Every time that an input is seen it is varied, and then prepared by `preprocessor`, which is what boards run. work:
    folder for the checkpoint; a checkpoint of the same settings found there is resumed, one of others refused. progress
    and step: see `model_zoo.training.loop.Loop`.
    """

    def __init__(
        self,
        recipe: WholeRecipe,
        schedule: Schedule,
        parts: Divided,
        preprocessor: Preprocessor,
        work: Path,
        progress: Callable[[str], None] = lambda _: None,
        step: Callable[[int, int, int], None] = lambda *_: None,
    ) -> None:
        self._recipe = recipe
        self._train = parts.train
        self._preprocessor = preprocessor
        self._validation = self.prepared(parts.validation.inputs)
        self._validation_labels = torch.from_numpy(parts.validation.labels)
        torch.manual_seed(schedule.seed)
        self.network = recipe.build_network()
        self._loop = Loop(
            self.network,
            schedule,
            len(parts.train),
            self._loss,
            self.validate,
            work / f"{recipe.name}.checkpoint.pt",
            identity={"recipe": recipe.name, "schedule": asdict(schedule), "inputs": len(parts.train)},
            progress=progress,
            step=step,
        )

    def run(self) -> TrainingReport:
        """Train what is left to train, put the best epoch's weights into `network` and report."""
        return self._loop.run()

    def prepared(self, inputs: Array) -> Any:
        """Return raw inputs (n, …) as the network takes them: float32 (n, height, width, channels)."""
        values = [self._preprocessor.values(one).reshape(self._recipe.input_shape) for one in inputs]
        return torch.from_numpy(np.stack(values).astype(np.float32))

    def _loss(self, chosen: Any, generator: Any, _: int) -> Any:
        draws = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
        varied = np.stack([self._recipe.vary(self._train.inputs[place], draws) for place in chosen.tolist()])
        labels = torch.from_numpy(self._train.labels)[chosen]
        return functional.cross_entropy(self.network(self.prepared(varied))["logits"], labels, label_smoothing=0.05)

    def validate(self) -> tuple[float, ...]:
        """Accuracy on the validation inputs, 0..1, of a network in evaluation mode."""
        with torch.no_grad():
            guesses = self.network(self._validation)["logits"].argmax(1)
        return (float((guesses == self._validation_labels).double().mean()),)
