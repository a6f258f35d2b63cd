"""Reads the inputs of a split and checks them against the network: shapes, classes, and whether there are enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distree.bundle.manifest import InputSpec, Preprocess
from distree.formatting import counted
from model_zoo.data import Examples, is_of_arrays, load_examples
from model_zoo.errors import SplitError
from model_zoo.split.declared import DeclaredInput
from model_zoo.split.graph import TensorInfo

FEWEST_INPUTS = 50
FEWEST_OF_CLASS = 5
_ALIKE = 0.5

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Classes:
    """The network's classes by name, in its order."""

    names: tuple[str, ...]


def read(path: Path, declared: DeclaredInput | None, tensor: TensorInfo) -> Examples:
    """Read inputs in any form described in docs/howto/data.md.

    Without anything `declared`, arrays are read as they are, and files as images of the size of the network's input,
    `tensor`. SplitError for files if that input is not an image.
    """
    if declared is not None:
        return load_examples(path, spec=declared.input, preprocess=declared.preprocess)
    if is_of_arrays(path):
        return load_examples(path)
    return load_examples(path, spec=_image_spec(path, tensor), preprocess=Preprocess(range="0..1", layout="nhwc"))


def _image_spec(path: Path, tensor: TensorInfo) -> InputSpec:
    shape = tensor.shape[1:]
    if len(shape) == 3 and shape[-1] not in (1, 3) and shape[0] in (1, 3):
        shape = (*shape[1:], shape[0])
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise SplitError(
            f"expects {tensor}, which is not an image, so it does not say how to turn the files in {path} into inputs",
            "describe the inputs with --input FILE.yaml (see docs/howto/own-model.md)",
        )
    return InputSpec(dtype="uint8", shape=shape)


def name_classes(given: tuple[str, ...], of_data: tuple[str, ...] | None, count: int, single: bool) -> Classes:
    """Return the names of the network's classes: those given, or else the data's, or else numbers.

    single: whether it is one score of yes or no, for which one name is enough. SplitError for another number of names.
    """
    names = given or of_data or tuple(f"class{k}" for k in range(count))
    if single and len(names) == 1:
        names = (f"not {names[0]}", names[0])
    if len(names) != count:
        where = "--labels" if given else "the data"
        raise SplitError(
            f"{where}: {counted(len(names), 'class', 'classes')}, but the network has {count}",
            "name every class of the network",
        )
    if len(set(names)) < count or not all(names):
        raise SplitError("--labels: a name is empty or occurs twice", "give every class its own name")
    return Classes(names)


def class_labels(examples: Examples, classes: Classes, *, anyway: bool) -> Labels | None:
    """Return the labels as the network counts its classes; None without any.

    If the data names its classes and has them in another order than the network, labels follow the names. SplitError
    for labels that do not fit, for a single class, and, unless `anyway`, for too few inputs of a class.
    """
    labels, names = examples.labels, examples.names
    if labels is None:
        return None
    if names is not None and names != classes.names and set(names) == set(classes.names):
        order = np.asarray([classes.names.index(name) for name in names], np.int64)
        labels = order[labels] if labels.max() < len(order) else labels
    if labels.max() >= len(classes.names):
        raise SplitError(
            f"{examples.source}: label {labels.max()}, but the network has {len(classes.names)} classes, "
            "numbered from 0",
            "correct the labels",
        )
    counts = np.bincount(labels, minlength=len(classes.names))
    if (counts > 0).sum() < 2:
        raise SplitError(f"{examples.source}: all inputs belong to one class", "give inputs of every class")
    fewest = int(np.where(counts > 0, counts, counts.max()).argmin())
    if counts[fewest] < FEWEST_OF_CLASS and not anyway:
        raise SplitError(
            f"{examples.source}: only {counted(int(counts[fewest]), 'input')} of class {classes.names[fewest]}, but "
            f"every class in the data needs at least {FEWEST_OF_CLASS}",
            "give more, leave the class out, or use the data as it is with --force",
        )
    return labels


def check_count(examples: Examples) -> None:
    """Raise SplitError for too few inputs to learn from."""
    if len(examples) < FEWEST_INPUTS:
        raise SplitError(f"{examples.source}: {len(examples)} inputs are too few", f"give at least {FEWEST_INPUTS}")


def check_same_kind(examples: Examples, data: Examples) -> None:
    """Raise SplitError unless the inputs of a second file are like those of the first."""
    one, other = examples.inputs, data.inputs
    if one.dtype != other.dtype or one.shape[1:] != other.shape[1:]:
        raise SplitError(
            f"{examples.source}: inputs are {one.dtype} {one.shape[1:]}, but those of {data.source} are {other.dtype} "
            f"{other.shape[1:]}",
            "give inputs of the same dtype and shape",
        )


def check_answers(
    answers: Labels, labels: Labels | None, classes: Classes, *, anyway: bool, say: Callable[[str], None]
) -> None:
    """Raise SplitError if the network's answers make no sense: always one class, or no better than guessing."""
    if len(np.unique(answers)) < 2:
        raise SplitError(
            f"the network answers {classes.names[int(answers[0])]!r} to every input",
            "give inputs of the kind that it was trained on, and set their range of values with --range",
        )
    if labels is None:
        return
    right = float((answers == labels).mean())
    guessing = float(np.bincount(labels).max()) / len(labels)
    say(f"accuracy of the whole network: {100 * right:.2f} % of {len(labels):,} inputs")
    if right > guessing + 2.0 * np.sqrt(guessing * (1 - guessing) / len(labels)) or anyway:
        return
    why = _other_order(answers, labels, classes) or "check that the labels, the range and the inputs match the network"
    raise SplitError(
        f"the network classifies {100 * right:.1f} % of the inputs correctly, no better than guessing "
        f"({100 * guessing:.1f} %)",
        f"{why}, or use them as they are with --force",
    )


def _other_order(answers: Labels, labels: Labels, classes: Classes) -> str:
    """Say so if the labels are the network's classes in a different order."""
    count = len(classes.names)
    table = np.zeros((count, count), np.int64)
    np.add.at(table, (labels, answers), 1)
    seen = np.flatnonzero(table.sum(axis=1))
    taken = table[seen].argmax(axis=1)
    share = table[seen, taken].sum() / len(labels)
    if share < _ALIKE or len(set(taken.tolist())) < len(seen):
        return ""
    pairs = ", ".join(
        f"{classes.names[a]!r} in the data is {classes.names[b]!r} in the network"
        for a, b in zip(seen[:3], taken[:3], strict=True)
    )
    return f"name the classes in the network's own order with --labels ({pairs}, …)"
