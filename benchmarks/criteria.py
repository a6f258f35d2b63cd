"""Time of one score of each softmax-like criterion, as plain Python (the product) and as numpy.

Usage: python -m benchmarks.criteria [--json FILE]

Logits come out of a runtime as a list of floats, so the numpy forms pay for the conversion, as they would on
a board. Prints microseconds per score, the best of several runs; judges nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distree.policies import make_policy
from distree.protocols import Array, Evidence, Score

CLASSES = (10, 100, 1000)


def _softmax(logits: list[float]) -> Array:
    weights = np.exp(np.asarray(logits) - max(logits))
    return weights / weights.sum()


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


def numpy_score(name: str, logits: list[float]) -> Score:
    """Score as the product does, with the same guard and result type."""
    if not np.isfinite(logits).all():
        return Score(value=-math.inf)
    return Score(value=NUMPY[name](logits))


def best_us(call: Callable[[], object]) -> float:
    """Microseconds of one call, the best of seven runs."""
    timer = timeit.Timer(call)
    number = max(1, int(0.02 / timer.timeit(20) * 20))
    return min(timer.repeat(repeat=7, number=number)) / number * 1e6


def measure() -> list[dict[str, object]]:
    """One row for each criterion and number of classes."""
    generator = random.Random(7)
    rows: list[dict[str, object]] = []
    for classes in CLASSES:
        logits = [generator.gauss(0.0, 3.0) for _ in range(classes)]
        evidence = Evidence(logits=logits)
        for name in NUMPY:
            policy = make_policy(name)
            python_us = best_us(lambda policy=policy, evidence=evidence: policy.score(evidence))
            numpy_us = best_us(lambda name=name, logits=logits: numpy_score(name, logits))
            rows.append({"criterion": name, "classes": classes, "python_us": python_us, "numpy_us": numpy_us})
    return rows


def main() -> None:
    """Print the table; write it as JSON too if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = measure()
    print(f"{'criterion':<12} {'classes':>7} {'Python µs':>10} {'numpy µs':>10}")
    for row in rows:
        print("{criterion:<12} {classes:>7} {python_us:>10.2f} {numpy_us:>10.2f}".format(**row))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
