"""Joint training of all exits of a recipe's network, resumable after every epoch. Only `build` imports this.

Everything random comes from the seed and the number of the epoch, so a run that was cut off and resumed ends
with the same weights as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from model_zoo.data import LabelledImages
from model_zoo.errors import DataError
from model_zoo.recipes import Recipe, TrainingSettings

_EVALUATION_BATCH = 1000


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What training came to. accuracy: of each exit on the validation images, 0..1, at the kept epoch."""

    epochs: int
    kept_epoch: int
    seed: int
    seconds: float
    torch_version: str
    accuracy: tuple[float, ...]


@dataclass(slots=True)
class _State:
    """What a checkpoint holds."""

    epoch: int
    seconds: float
    best_epoch: int
    best_accuracy: tuple[float, ...]
    best_weights: dict[str, Any]


def normalise(images: npt.NDArray[np.uint8], recipe: Recipe) -> Any:
    """Turn uint8 (n, height, width, c) into a float32 tensor of that shape, normalised as on boards."""
    mean, std = np.asarray(recipe.mean, np.float32), np.asarray(recipe.std, np.float32)
    return torch.from_numpy((images.astype(np.float32) / np.float32(255.0) - mean) / std)


class Trainer:
    """Trains one network of a recipe on `train`, choosing the epoch on `validation`.

    work: folder for the checkpoint; a checkpoint of the same settings found there is resumed, one of others
    refused. progress: is given a line after every epoch.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: TrainingSettings,
        train: LabelledImages,
        validation: LabelledImages,
        work: Path,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._recipe = recipe
        self._tell = progress
        self._settings = settings
        self._images = normalise(train.images, recipe)
        self._labels = torch.from_numpy(train.labels)
        self._validation = normalise(validation.images, recipe)
        self._validation_labels = validation.labels
        self._checkpoint = work / f"{recipe.name}.checkpoint.pt"
        torch.manual_seed(settings.seed)
        torch.use_deterministic_algorithms(True)
        # Nothing here reads memory before it is written; filling it first costs a sixth of the time.
        torch.utils.deterministic.fill_uninitialized_memory = False
        self.network = recipe.build_network()
        self._optimiser, self._schedule = self._build_optimiser()

    def _build_optimiser(self) -> tuple[Any, Any]:
        settings = self._settings
        optimiser = torch.optim.SGD(
            self.network.parameters(),
            lr=settings.peak_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=True,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=settings.peak_rate,
            total_steps=settings.epochs * self._steps_per_epoch,
            pct_start=settings.warm_up,
            cycle_momentum=False,
        )
        return optimiser, schedule

    @property
    def _steps_per_epoch(self) -> int:
        return len(self._labels) // self._settings.batch

    def run(self) -> TrainingReport:
        """Train what is left to train, put the best epoch's weights into `network` and report."""
        state = self._resume() or _State(0, 0.0, 0, (), {})
        for epoch in range(state.epoch, self._settings.epochs):
            started = time.monotonic()
            loss = self._train_epoch(epoch)
            accuracy = self.validate()
            state = self._after_epoch(state, epoch, accuracy, time.monotonic() - started)
            self._report(epoch, loss, accuracy, state.seconds)
        self.network.load_state_dict(state.best_weights)
        self.network.eval()
        return TrainingReport(
            epochs=self._settings.epochs,
            kept_epoch=state.best_epoch,
            seed=self._settings.seed,
            seconds=state.seconds,
            torch_version=str(torch.__version__),
            accuracy=state.best_accuracy,
        )

    def _after_epoch(self, state: _State, epoch: int, accuracy: tuple[float, ...], seconds: float) -> _State:
        # The mean over the exits: a network is kept for all of its exits, and a mean is less noisy than one
        # of them.
        better = not state.best_accuracy or sum(accuracy) >= sum(state.best_accuracy)
        weights = {name: value.clone() for name, value in self.network.state_dict().items()} if better else {}
        after = _State(
            epoch=epoch + 1,
            seconds=state.seconds + seconds,
            best_epoch=epoch + 1 if better else state.best_epoch,
            best_accuracy=accuracy if better else state.best_accuracy,
            best_weights=weights or state.best_weights,
        )
        self._save(after)
        return after

    def _report(self, epoch: int, loss: float, accuracy: tuple[float, ...], seconds: float) -> None:
        exits = " / ".join(f"{100 * value:.2f}" for value in accuracy)
        total = self._settings.epochs
        self._tell(f"epoch {epoch + 1}/{total}  loss {loss:.3f}  validation {exits} %  {seconds:.0f} s")

    def _train_epoch(self, epoch: int) -> float:
        self.network.train()
        generator = torch.Generator().manual_seed(self._settings.seed * 100_003 + epoch)
        total = 0.0
        for images, labels in self._batches(generator):
            loss = self._loss(exit_logits(self.network, images), labels)
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self._optimiser.step()
            self._schedule.step()
            total += float(loss.detach())
        return total / self._steps_per_epoch

    def _batches(self, generator: Any) -> Iterator[tuple[Any, Any]]:
        order = torch.randperm(len(self._labels), generator=generator)
        size = self._settings.batch
        for step in range(self._steps_per_epoch):
            chosen = order[step * size : (step + 1) * size]
            yield augment(self._images[chosen], self._settings, generator), self._labels[chosen]

    def _loss(self, logits: list[Any], labels: Any) -> Any:
        settings = self._settings
        teacher = logits[-1].detach()
        loss = settings.exit_weights[-1] * functional.cross_entropy(logits[-1], labels)
        for weight, student in zip(settings.exit_weights, logits[:-1], strict=False):
            hard = functional.cross_entropy(student, labels)
            soft = soft_loss(student, teacher, settings.distill_temperature)
            loss = loss + weight * ((1 - settings.distill_weight) * hard + settings.distill_weight * soft)
        return loss

    def validate(self) -> tuple[float, ...]:
        """Accuracy of each exit on the validation images, 0..1."""
        self.network.eval()
        correct: list[int] = []
        with torch.no_grad():
            for start in range(0, len(self._validation), _EVALUATION_BATCH):
                part = slice(start, start + _EVALUATION_BATCH)
                guesses = [z.argmax(1).numpy() for z in exit_logits(self.network, self._validation[part])]
                hits = [int((guess == self._validation_labels[part]).sum()) for guess in guesses]
                correct = [a + b for a, b in zip(correct, hits, strict=True)] if correct else hits
        return tuple(hits / len(self._validation) for hits in correct)

    def _identity(self) -> dict[str, Any]:
        return {"recipe": self._recipe.name, "settings": asdict(self._settings)}

    def _save(self, state: _State) -> None:
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "identity": self._identity(),
            "state": asdict(state),
            "weights": self.network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        # Written aside and renamed, so that a cut never leaves half a checkpoint.
        aside = self._checkpoint.with_suffix(".part")
        torch.save(content, aside)
        aside.replace(self._checkpoint)

    def _resume(self) -> _State | None:
        if not self._checkpoint.is_file():
            return None
        content = torch.load(self._checkpoint, weights_only=True)
        if content["identity"] != self._identity():
            raise DataError(
                f"{self._checkpoint}: is of another seed or other settings; delete it or give another --work"
            )
        self.network.load_state_dict(content["weights"])
        self._optimiser.load_state_dict(content["optimiser"])
        self._schedule.load_state_dict(content["schedule"])
        state = _State(**content["state"])
        self._tell(f"resuming after epoch {state.epoch} from {self._checkpoint}")
        return state


def exit_logits(network: Any, images: Any) -> list[Any]:
    """Run all stages on float images (n, height, width, channels); return each exit's logits (n, classes)."""
    logits = []
    features = images
    for stage in network.stages:
        outputs = stage(features)
        logits.append(outputs["logits"])
        features = outputs.get("features")
    return logits


def soft_loss(student: Any, teacher: Any, temperature: float) -> Any:
    """T squared times KL(teacher || student) of logits (n, classes) at temperature T, mean over the batch."""
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


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
