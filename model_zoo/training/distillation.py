"""Joint training of a wide network's exits from a teacher. Only `build` imports this.

The loss of an exit, from NoNN's (see `model_zoo.training.partition`) and Hinton's, with its embeddings F_b, logits z,
teacher's logits t and the teacher's filters T[group b]:

    (1 − α)·CE(z) + α·T²·KL(t ‖ z at temperature T) + β·mean_b ‖F_b/‖F_b‖ − T[group b]/‖T[group b]‖‖²

The joint loss is the weighted sum over the exits. Branch dropout adds the first two terms for the same embeddings
with branches left out at random, since the fusion is so small that a second pass costs next to nothing; the exits
learn both, whole and with branches missing, from every batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from model_zoo.recipes import Distillation, Schedule
from model_zoo.training.loop import Loop, TrainingReport
from model_zoo.training.views import Images, View

_EVALUATION_BATCH = 500


@dataclass(frozen=True, slots=True)
class Lessons:
    """What the teacher says of training images as one epoch sees them: logits (n, classes), features (n, filters)."""

    logits: Any
    features: Any


@dataclass(slots=True)
class Classroom:
    """Training and validation images, and the teacher's lessons of each epoch, kept in `work`.

    reach: of the shifts, in pixels. A file of lessons is found again by the teacher's weights.
    """

    train: Images
    labels: Any
    validation: Images
    validation_labels: npt.NDArray[np.int64]
    work: Path
    reach: int = 2
    _views: dict[int, View] = field(default_factory=dict)
    _lessons: dict[int, Lessons] = field(default_factory=dict)

    def view(self, epoch: int) -> View:
        """Return the view of an epoch; only the last one asked for is kept."""
        if epoch not in self._views:
            self._views = {epoch: View.of_epoch(epoch, len(self.train), self.reach)}
        return self._views[epoch]

    def batches(self, images: Images) -> Iterator[Any]:
        """Yield images as boards see them, in order."""
        for start in range(0, len(images), _EVALUATION_BATCH):
            yield images.plain(slice(start, start + _EVALUATION_BATCH))

    def lessons(self, teacher: Any, epoch: int) -> Lessons:
        """Return what a teacher in evaluation mode says of an epoch's view, from `work` if it has said it before."""
        if epoch not in self._lessons:
            self._lessons = {epoch: self._load(teacher, epoch) or self._ask(teacher, epoch)}
        return self._lessons[epoch]

    def _path(self, teacher: Any, epoch: int) -> Path:
        digest = hashlib.sha256(teacher.classify.weight.detach().cpu().numpy().tobytes()).hexdigest()[:12]
        return self.work / f"lessons-{digest}-{epoch}.pt"

    def _load(self, teacher: Any, epoch: int) -> Lessons | None:
        path = self._path(teacher, epoch)
        if not path.is_file():
            return None
        content = torch.load(path, weights_only=True, map_location=self.train.pixels.device)
        return Lessons(content["logits"], content["features"])

    def _ask(self, teacher: Any, epoch: int) -> Lessons:
        view, features, logits = self.view(epoch), [], []
        with torch.no_grad():
            for chosen in torch.arange(len(self.train)).split(_EVALUATION_BATCH):
                of_batch = teacher(self.train.viewed(chosen, view))
                features.append(of_batch[0].half())
                logits.append(of_batch[1].half())
        lessons = Lessons(torch.cat(logits), torch.cat(features))
        path = self._path(teacher, epoch)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        torch.save({"logits": lessons.logits, "features": lessons.features}, aside)
        aside.replace(path)
        return lessons


def train_teacher(
    teacher: Any, room: Classroom, schedule: Schedule, checkpoint: Path, **telling: Callable[..., None]
) -> TrainingReport:
    """Train the teacher by cross entropy, in place; it sees views of its own."""

    def loss(chosen: Any, _: Any, epoch: int) -> Any:
        images = room.train.viewed(chosen, room.view(_TEACHERS_EPOCHS + epoch))
        return functional.cross_entropy(teacher(images)[1], room.labels[chosen])

    def validate() -> tuple[float, ...]:
        with torch.no_grad():
            guesses = torch.cat([teacher(images)[1].argmax(1) for images in room.batches(room.validation)])
        return (_accuracy(guesses, room.validation_labels),)

    identity = {"role": "teacher", "schedule": repr(schedule)}
    return Loop(teacher, schedule, len(room.train), loss, validate, checkpoint, identity, **telling).run()


_TEACHERS_EPOCHS = 1_000
"""The teacher's views are other ones than its students'."""


@dataclass(slots=True)
class Student:
    """Trains a wide network from a teacher in evaluation mode.

    groups: the teacher's filters of each branch. exits: those that are trained and computed (all by default).
    identity: what the checkpoint must agree with, see `model_zoo.training.plans`; the groups are added to it.
    """

    network: Any
    teacher: Any
    groups: Sequence[Sequence[int]]
    room: Classroom
    distillation: Distillation
    schedule: Schedule
    checkpoint: Path
    identity: Mapping[str, str]
    exits: Sequence[int] = (0, 1, 2)

    def train(self, **telling: Callable[..., None]) -> TrainingReport:
        """Train what is left to train, in place."""
        loop = Loop(
            self.network,
            self.schedule,
            len(self.room.train),
            self._loss,
            self.validate,
            self.checkpoint,
            {**self.identity, "groups": repr(self.groups)},
            **telling,
        )
        return loop.run()

    def _loss(self, chosen: Any, generator: Any, epoch: int) -> Any:
        lessons = self.room.lessons(self.teacher, epoch)
        taught = lessons.logits[chosen].float(), lessons.features[chosen].float()
        images, labels = self.room.train.viewed(chosen, self.room.view(epoch)), self.room.labels[chosen]
        present = self._present(len(chosen), generator).to(images.device)
        total = torch.zeros((), device=images.device)
        for k, embeddings in enumerate(self.network.embeddings(images, self.exits)):
            if embeddings is not None:
                weight = self.distillation.exit_weights[k]
                total = total + weight * self._exit_loss(k, embeddings, present, labels, taught)
        return total

    def _exit_loss(self, k: int, embeddings: Sequence[Any], present: Any, labels: Any, taught: tuple[Any, Any]) -> Any:
        fuse, settings = self.network.fusions[k], self.distillation
        loss = self._class_loss(fuse(*embeddings)["logits"], labels, taught[0])
        if settings.dropout > 0:
            heard = [embedding * present[:, b, None] for b, embedding in enumerate(embeddings)]
            loss = loss + settings.masked_weight * self._class_loss(fuse(*heard)["logits"], labels, taught[0])
        if settings.beta > 0:
            distances = [
                transfer_loss(embedding, taught[1][:, list(group)])
                for embedding, group in zip(embeddings, self.groups, strict=True)
            ]
            loss = loss + settings.beta * torch.stack(distances).mean()
        return loss

    def _class_loss(self, logits: Any, labels: Any, teacher: Any) -> Any:
        settings = self.distillation
        hard = functional.cross_entropy(logits, labels)
        return (1 - settings.alpha) * hard + settings.alpha * soft_loss(logits, teacher, settings.temperature)

    def _present(self, count: int, generator: Any) -> Any:
        """Draw which branches are heard, (count, branches) of 0 and 1; at least one is."""
        branches = len(self.network.branches)
        heard = torch.rand((count, branches), generator=generator) >= self.distillation.dropout
        survivor = torch.randint(0, branches, (count, 1), generator=generator)
        nobody = ~heard.any(dim=1, keepdim=True)
        return (heard | (nobody & (torch.arange(branches) == survivor))).float()

    def validate(self) -> tuple[float, ...]:
        """Accuracy of each trained exit on the validation images, no branch missing, 0..1."""
        guesses: dict[int, list[Any]] = {k: [] for k in self.exits}
        with torch.no_grad():
            for images in self.room.batches(self.room.validation):
                for k, embeddings in enumerate(self.network.embeddings(images, self.exits)):
                    if embeddings is not None:
                        guesses[k].append(self.network.fusions[k](*embeddings)["logits"].argmax(1))
        return tuple(_accuracy(torch.cat(guesses[k]), self.room.validation_labels) for k in self.exits)


def _accuracy(guesses: Any, labels: npt.NDArray[np.int64]) -> float:
    return float((guesses.cpu().numpy() == labels).mean())


def transfer_loss(embedding: Any, target: Any) -> Any:
    """Squared distance of an embedding (n, values) to its target (n, values), both made unit vectors; the mean."""
    return (functional.normalize(embedding) - functional.normalize(target)).square().sum(1).mean()


def soft_loss(student: Any, teacher: Any, temperature: float) -> Any:
    """T squared times KL(teacher || student) of logits (n, classes) at temperature T, mean over the batch."""
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def teacher_activity(teacher: Any, images: Iterator[Any]) -> npt.NDArray[np.float64]:
    """Return the teacher's features (n, filters) of batches of images."""
    with torch.no_grad():
        return np.concatenate([teacher(batch)[0].double().cpu().numpy() for batch in images])
