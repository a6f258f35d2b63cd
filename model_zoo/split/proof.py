"""Compares segments with the whole network: run as a chain, they must output the same bytes on every input.

They are run as boards run them, with XNNPACK, and without it, as the older runtime of 32-bit boards does. Each of the
two must equal the whole network run the same way. The two may differ from each other by a few steps, since XNNPACK
rounds differently; how many is measured for each segment, and a bundle's self-test allows that many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from distree.bundle.golden import steps_off
from distree.tensors import Array
from model_zoo.split.graph import TensorInfo
from model_zoo.split.running import Runner

LEAST_TOLERANCE = 2
"""The fewest steps that a self-test allows, as for the bundles that DistrEE ships."""

MARGIN = 1
"""Steps added to what was measured: other inputs and other processors round differently."""


@dataclass(frozen=True, slots=True)
class Link:
    """A segment of a chain: its file, and the number of the output that goes on to the next one."""

    content: bytes
    goes_on: int = 0


@dataclass(frozen=True, slots=True)
class Proof:
    """On how many inputs a chain was compared with the whole network, and on how many of them it differed."""

    inputs: int
    mismatches: int


def random_tensors(tensor: TensorInfo, count: int, seed: int) -> Iterator[Array]:
    """Give `count` random input tensors (1, …) for a network: any values of integers, normal values of floats."""
    generator = np.random.default_rng([seed, count])
    for _ in range(count):
        if tensor.dtype == "float32":
            yield generator.normal(0.0, 1.0, tensor.shape).astype(np.float32)
        else:
            bounds = np.iinfo(tensor.dtype)
            yield generator.integers(bounds.min, bounds.max, tensor.shape, tensor.dtype, endpoint=True)


def prove(
    whole: bytes,
    chain: Sequence[Link],
    tensors: Iterable[Array],
    step: Callable[[int], None] = lambda _: None,
) -> Proof:
    """Run input tensors (1, …) through the whole network and through the chain, with XNNPACK and without.

    The output of the last segment that `goes_on` is compared with the whole network's. `step` is called with the
    number of inputs done.
    """
    ways = [
        (Runner(whole, xnnpack=xnnpack), [Runner(link.content, xnnpack=xnnpack) for link in chain])
        for xnnpack in (True, False)
    ]
    inputs = mismatches = 0
    for tensor in tensors:
        same = True
        for whole_runner, runners in ways:
            flowing = tensor
            for link, runner in zip(chain, runners, strict=True):
                flowing = runner(flowing)[link.goes_on]
            same &= whole_runner(tensor)[0].tobytes() == flowing.tobytes()
        inputs += 1
        mismatches += not same
        step(inputs)
    return Proof(inputs, mismatches)


def measure_tolerances(
    chain: Sequence[Link], tensors: Iterable[Array], step: Callable[[int], None] = lambda _: None
) -> tuple[int, ...]:
    """Return, per segment, the steps that a self-test should allow: the largest difference found here, plus a margin.

    Each segment reads what the segments before it output with XNNPACK, as with golden vectors.
    """
    ways = [[Runner(link.content, xnnpack=xnnpack) for link in chain] for xnnpack in (True, False)]
    worst = np.zeros(len(chain))
    for done, tensor in enumerate(tensors, start=1):
        flowing = tensor
        for k, (link, fast, plain) in enumerate(zip(chain, *ways, strict=True)):
            outputs = fast(flowing)
            worst[k] = max(worst[k], *map(steps_off, plain(flowing), outputs))
            flowing = outputs[link.goes_on]
        step(done)
    return tuple(max(LEAST_TOLERANCE, int(np.ceil(steps)) + MARGIN) for steps in worst.tolist())
