"""Time of one score of each criterion of logits or embeddings, as plain Python (the product) and as numpy.

Usage: python -m benchmarks.criteria [--json FILE]

Logits and embeddings come out of a runtime as lists of floats, so the numpy forms pay for the conversion, as they
would on a board. The gate and the feature difference are timed at the first exit and at the second; the latter's size
is the number of values in the embeddings of four branches, with ten classes. Prints microseconds per score, the best
of several runs; judges nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distree.criteria import make_criterion
from distree.criteria.base import CriterionParameters, ExitEvidence, Score
from distree.messages.request import CriterionMemory
from distree.tensors import Array

CLASSES = (10, 100, 1000)
VALUES = (32, 128, 512)
BRANCHES = 4


def _softmax(logits: list[float]) -> Array:
    weights: Array = np.exp(np.asarray(logits) - max(logits))
    weights /= weights.sum()
    return weights


def _max_softmax(logits: list[float]) -> float:
    return float(_softmax(logits).max())


def _entropy(logits: list[float]) -> float:
    p = _softmax(logits)
    p = p[p > 0.0]
    return float(1.0 + (p * np.log(p)).sum() / math.log(len(logits)))


def _margin(logits: list[float]) -> float:
    second, first = np.partition(_softmax(logits), -2)[-2:]
    return float(first - second)


def _energy(logits: list[float]) -> float:
    z = np.asarray(logits)
    top = z.max()
    return float(top + np.log(np.exp(z - top).sum()))


NUMPY: dict[str, Callable[[list[float]], float]] = {
    "max_softmax": _max_softmax,
    "entropy": _entropy,
    "margin": _margin,
    "energy": _energy,
}


Call = Callable[[], object]
Case = tuple[str, int, Call, Call]
"""A criterion, as shown, its size, and one score in Python and in numpy."""

Row = dict[str, Any]


def numpy_score(name: str, logits: list[float]) -> Score:
    """Score as the product does, with the same guard and result type."""
    if not np.isfinite(logits).all():
        return Score(value=-math.inf)
    return Score(value=NUMPY[name](logits))


def numpy_gate(logits: list[float], weights: Array, earlier: CriterionMemory) -> Score:
    """Score as the gate does, and remember."""
    if not np.isfinite(logits).all():
        return Score(value=-math.inf)
    p = _softmax(logits)
    heard = p[p > 0.0]
    certainty = 1.0 + (heard * np.log(heard)).sum() / math.log(len(logits))
    value = float(weights[:-1] @ np.array([*p, p.max(), certainty, *earlier]) + weights[-1])
    return Score(value=value, memory=(*earlier, value))


def numpy_difference(embeddings: list[list[float]], others: Array) -> Score:
    """Score by the distance to the nearest of the unit vectors in `others`, and remember."""
    values = np.concatenate([np.asarray(embedding) for embedding in embeddings])
    norm = np.linalg.norm(values)
    if not 0.0 < norm < math.inf:
        return Score(value=-math.inf)
    memory = [number for embedding in embeddings for number in (float(len(embedding)), *embedding)]
    return Score(value=-float(np.linalg.norm(others - values / norm, axis=-1).min()), memory=tuple(memory))


def _units(rows: Array) -> Array:
    units: Array = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return units


def of_logits(generator: random.Random, classes: int) -> list[Case]:
    """Every criterion of the logits of one exit."""
    logits = [generator.gauss(0.0, 3.0) for _ in range(classes)]
    evidence = ExitEvidence(logits=logits)
    return [
        (name, classes, partial(make_criterion(name).score, evidence), partial(numpy_score, name, logits))
        for name in NUMPY
    ]


def of_the_gate(generator: random.Random, classes: int) -> list[Case]:
    """The gate at two exits."""
    logits = [generator.gauss(0.0, 3.0) for _ in range(classes)]
    gate = tuple(tuple(generator.gauss(0.0, 1.0) for _ in range(classes + 3 + exit)) for exit in range(2))
    criterion = make_criterion("gate", CriterionParameters(gate=gate))
    memory = criterion.score(ExitEvidence(logits=logits)).memory
    evidences = ExitEvidence(logits=logits), ExitEvidence(logits=logits, exit=1, memory=memory)
    return [
        (
            f"gate, exit {exit}",
            classes,
            partial(criterion.score, evidence),
            partial(numpy_gate, logits, np.array(gate[exit]), evidence.memory),
        )
        for exit, evidence in enumerate(evidences)
    ]


def of_embeddings(generator: random.Random, values: int) -> list[Case]:
    """The feature difference at two exits, with no branch missing."""

    def drawn() -> list[list[float]]:
        return [[generator.gauss(0.0, 1.0) for _ in range(values // BRANCHES)] for _ in range(BRANCHES)]

    logits = [generator.gauss(0.0, 3.0) for _ in range(10)]
    means, before, now = [drawn() for _ in logits], drawn(), drawn()
    class_means = tuple(tuple(map(tuple, of_class)) for of_class in means)
    criterion = make_criterion("feature_difference", CriterionParameters(class_means=class_means))
    memory = criterion.score(ExitEvidence(logits=logits, embeddings=before)).memory
    evidences = (
        ExitEvidence(logits=logits, embeddings=now),
        ExitEvidence(logits=logits, exit=1, embeddings=now, memory=memory),
    )
    others = _units(np.array(means).reshape(len(means), -1)), _units(np.array(before).reshape(1, -1))
    return [
        (
            f"feature difference, exit {exit}",
            values,
            partial(criterion.score, evidence),
            partial(numpy_difference, now, others[exit]),
        )
        for exit, evidence in enumerate(evidences)
    ]


def best_us(call: Call) -> float:
    """Microseconds of one call, the best of seven runs."""
    timer = timeit.Timer(call)
    number = max(1, int(0.02 / timer.timeit(20) * 20))
    return min(timer.repeat(repeat=7, number=number)) / number * 1e6


def cases() -> list[Case]:
    """Return everything that is timed."""
    generator = random.Random(7)
    found: list[Case] = []
    for classes in CLASSES:
        found += of_logits(generator, classes) + of_the_gate(generator, classes)
    for values in VALUES:
        found += of_embeddings(generator, values)
    return found


def measure() -> list[Row]:
    """One row for each criterion and size."""
    return [
        {"criterion": name, "size": size, "python_us": best_us(product), "numpy_us": best_us(other)}
        for name, size, product, other in cases()
    ]


def main() -> None:
    """Print the table; write it as JSON too if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = measure()
    print(f"{'criterion':<26} {'size':>5} {'Python µs':>10} {'numpy µs':>10}")
    for row in rows:
        print("{criterion:<26} {size:>5} {python_us:>10.2f} {numpy_us:>10.2f}".format(**row))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
