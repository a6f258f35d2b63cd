"""From images to trained wide networks: the teacher, the division of its filters, the students. Imports torch.

Everything is kept in a work folder and found again there, so that a run that was cut off goes on where it stopped
and several seeds and variants share one teacher and its lessons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model_zoo.data import LabelledExamples
from model_zoo.recipes import WideRecipe
from model_zoo.training.distillation import Classroom, Student, teacher_activity, train_teacher
from model_zoo.training.layers import fit_whitening
from model_zoo.training.loop import TrainingReport
from model_zoo.training.partition import partition
from model_zoo.training.plans import StudentPlan, WideSettings, teacher_checkpoint
from model_zoo.training.views import Images

_SOME_IMAGES = 5_000
"""How many training images say how the teacher's filters are divided and how a first layer whitens."""


@dataclass(frozen=True, slots=True)
class TrainedWide:
    """A trained network in evaluation mode, on the CPU, and how it came to be."""

    network: Any
    groups: tuple[tuple[int, ...], ...]
    teacher: TrainingReport
    student: TrainingReport


def device() -> str:
    """Return "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class WideTraining:
    """One recipe's trainings in one work folder, on `device()`.

    progress: is given a line after every epoch. step: see `model_zoo.training.loop.Loop`.
    """

    def __init__(
        self,
        recipe: WideRecipe,
        train: LabelledExamples,
        validation: LabelledExamples,
        work: Path,
        progress: Callable[[str], None] = lambda _: None,
        step: Callable[[int, int, int], None] = lambda *_: None,
    ) -> None:
        self._recipe = recipe
        self._work = work
        self._progress, self._step = progress, step
        on = device()
        self._room = Classroom(
            train=Images.of(train.inputs, recipe.mean, recipe.std, on),
            labels=torch.from_numpy(train.labels).to(on),
            validation=Images.of(validation.inputs, recipe.mean, recipe.std, on),
            validation_labels=validation.labels,
            work=work,
        )
        self._teacher: tuple[Any, TrainingReport] | None = None

    def train(self, settings: WideSettings) -> TrainedWide:
        """Train a network, its teacher first if it is not there yet; DataError for a number of branches unknown."""
        plan = StudentPlan.of(self._recipe, settings)
        teacher, teacher_report = self.teacher()
        groups = self.groups(settings.branches)
        torch.manual_seed(settings.seed)
        network = plan.build_network().to(device())
        self._fit_whitening(network)
        student = Student(
            network=network,
            teacher=teacher,
            groups=groups,
            room=self._room,
            distillation=plan.distillation,
            schedule=plan.schedule,
            checkpoint=plan.checkpoint(self._work),
            identity=plan.identity(),
            exits=plan.exits,
        )
        self._progress(f"training {plan.name} on {device()}")
        report = student.train(progress=self._progress, step=self._step)
        return TrainedWide(network.cpu(), groups, teacher_report, report)

    def teacher(self) -> tuple[Any, TrainingReport]:
        """Return the trained teacher, in evaluation mode."""
        if self._teacher is None:
            torch.manual_seed(self._recipe.teacher.seed)
            network = self._recipe.build_teacher().to(device())
            self._fit_whitening(network)
            self._progress(f"training the teacher on {device()}")
            checkpoint = teacher_checkpoint(self._recipe, self._work)
            report = train_teacher(
                network, self._room, self._recipe.teacher, checkpoint, progress=self._progress, step=self._step
            )
            self._teacher = network, report
        return self._teacher

    def groups(self, branches: int) -> tuple[tuple[int, ...], ...]:
        """Return the teacher's filters of each branch."""
        teacher, _ = self.teacher()
        return partition(teacher_activity(teacher, self._room.batches(self._some())), branches)

    def _fit_whitening(self, network: Any) -> None:
        fit_whitening(network, self._some().plain(slice(None)).permute(0, 3, 1, 2))

    def _some(self) -> Images:
        images = self._room.train
        return Images(images.pixels[:_SOME_IMAGES], images.mean, images.std)
