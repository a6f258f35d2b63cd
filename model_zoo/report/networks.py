"""Finds the networks of a report in a work folder, and makes their bundles where they are not there yet.

A network's folder holds its bundle, recordings of what the bundle gave on validation and test images, and source.json,
written last, which says what all of it was made of. A bundle is made exactly as `distree zoo build` makes it; the test
set is run through it once, then and there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distree.bundle.loading import Bundle, load_bundle
from distree.errors import BundleError
from distree.regular_files import open_regular, read_regular
from model_zoo.build.finish import ImageSets
from model_zoo.errors import DataError, needs_zoo
from model_zoo.recipes import WideRecipe
from model_zoo.report.recording import Recording
from model_zoo.report.results import Teacher
from model_zoo.thresholds import masks_of
from model_zoo.training.plans import NOT_TRAINED, StudentPlan, WideSettings, teacher_checkpoint

_FORMAT = 1
_SOURCE = "source.json"
_BLOCK = 1 << 20
_MAX_SOURCE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """What a network's folder was made of, and what is known only while it is made."""

    format: int
    data_sha256: str
    checkpoint_sha256: str
    identity: dict[str, str]
    revision: str
    train_inputs: int
    validation_inputs: int
    test_inputs: int
    epochs: int
    kept_epoch: int
    seconds: float
    machine: str | None
    float_validation: tuple[float, ...]
    float_test: tuple[float, ...]
    teacher: Teacher | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A network that can be judged."""

    settings: WideSettings
    bundle: Bundle
    source: Source
    validation: Recording
    test: Recording


class Workshop:
    """Prepares the networks of one recipe from one data file and one work folder.

    train: whether to train what is not trained. progress and step: see `model_zoo.training.loop.Loop`. `prepare` raises
    ExportError where a network has to be made and torch is missing, or where it does not come out sound.
    """

    def __init__(
        self,
        recipe: WideRecipe,
        images: ImageSets,
        data_sha256: str,
        work: Path,
        train: bool = False,
        progress: Callable[[str], None] = lambda _: None,
        step: Callable[[int, int, int], None] = lambda *_: None,
    ) -> None:
        self._recipe, self._images, self._data_sha256 = recipe, images, data_sha256
        self._work, self._train = work, train
        self._progress, self._step = progress, step
        self._training: Any = None

    def prepare(self, settings: WideSettings) -> Prepared | str:
        """Return a network's bundle and recordings; if it is not trained, say why not in a few words."""
        plan = StudentPlan.of(self._recipe, settings)
        folder = self._work / "report" / f"{self._recipe.name}-{plan.name}"
        return self._reuse(settings, plan, folder) or self._make(settings, plan, folder)

    def _reuse(self, settings: WideSettings, plan: StudentPlan, folder: Path) -> Prepared | None:
        source = _read_source(folder / _SOURCE)
        checkpoint = plan.checkpoint(self._work)
        if source is None or not checkpoint.is_file() or source.identity != plan.identity():
            return None
        if (source.data_sha256, source.checkpoint_sha256) != (self._data_sha256, file_sha256(checkpoint)):
            return None
        try:
            bundle = load_bundle(folder / "bundle")
            recordings = [Recording.load(folder / f"{split}.npz") for split in ("validation", "test")]
        except (BundleError, DataError) as error:
            self._progress(f"made again: {error}")
            return None
        return Prepared(settings, bundle, source, *recordings) if bundle.revision == source.revision else None

    def _make(self, settings: WideSettings, plan: StudentPlan, folder: Path) -> Prepared | str:
        if not self._train and not plan.checkpoint(self._work).is_file():
            return NOT_TRAINED
        try:
            from model_zoo.build.wide import export_trained
            from model_zoo.training.trained import float_accuracy
        except ImportError as error:
            raise needs_zoo("exporting a network", error) from error
        found = self._find(settings, plan)
        if isinstance(found, str):
            return found
        images = self._images
        self._progress(f"{plan.name}: epoch {found.checkpoint.kept_epoch} of {found.checkpoint.epochs} kept")
        (folder / _SOURCE).unlink(missing_ok=True)
        finished = export_trained(self._recipe, settings, found, images, folder / "bundle", self._progress)
        masks = () if settings.variant == "small" else masks_of(finished.bundle)
        recordings = Recording.of(finished.validation, masks), Recording.of(finished.test, masks)
        for split, recording in zip(("validation", "test"), recordings, strict=True):
            recording.save(folder / f"{split}.npz")
        source = Source(
            format=_FORMAT,
            data_sha256=self._data_sha256,
            checkpoint_sha256=file_sha256(plan.checkpoint(self._work)),
            identity=plan.identity(),
            revision=finished.bundle.revision,
            train_inputs=len(images.train),
            validation_inputs=len(images.validation),
            test_inputs=len(images.test),
            epochs=found.checkpoint.epochs,
            kept_epoch=found.checkpoint.kept_epoch,
            seconds=found.checkpoint.seconds,
            machine=found.checkpoint.machine,
            float_validation=float_accuracy(found.network, images.validation, self._recipe),
            float_test=float_accuracy(found.network, images.test, self._recipe),
            teacher=self._teacher(),
        )
        _write_source(source, folder / _SOURCE)
        return Prepared(settings, finished.bundle, source, *recordings)

    def _teacher(self) -> Teacher | None:
        from model_zoo.training.loop import read_checkpoint

        path = teacher_checkpoint(self._recipe, self._work)
        if not path.is_file():
            return None
        found = read_checkpoint(path)
        return Teacher(found.epochs, found.kept_epoch, found.seconds, found.machine, found.accuracy[0])

    def _find(self, settings: WideSettings, plan: StudentPlan) -> Any:
        """Return a `model_zoo.training.trained.TrainedNetwork`, or why there is none."""
        from model_zoo.training.trained import find_trained
        from model_zoo.training.wide import WideTraining

        found = find_trained(plan, self._work)
        if not isinstance(found, str) or not self._train:
            return found
        if self._training is None:
            self._training = WideTraining(
                self._recipe, self._images.train, self._images.validation, self._work, self._progress, self._step
            )
        self._training.train(settings)
        return find_trained(plan, self._work)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files in the order of their names, in hexadecimal."""
    digest = hashlib.sha256()
    for part in sorted(filter(Path.is_file, path.iterdir())) if path.is_dir() else [path]:
        with open_regular(part) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _read_source(path: Path) -> Source | None:
    """Read source.json; None where it is missing or of another form."""
    try:
        document = json.loads(read_regular(path, _MAX_SOURCE_BYTES))
        if document["format"] != _FORMAT:
            return None
        lists = {key: tuple(document[key]) for key in ("float_validation", "float_test")}
        teacher = None if document["teacher"] is None else Teacher(**document["teacher"])
        return Source(**{**document, **lists, "teacher": teacher})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _write_source(source: Source, path: Path) -> None:
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(dataclasses.asdict(source), indent=1) + "\n", encoding="utf-8")
    aside.replace(path)
