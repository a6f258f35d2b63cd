"""What the whole network computes, run once and kept: pooled values at every cut, and its own scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distree.tensors import Array
from model_zoo.errors import SplitError
from model_zoo.split.cutting import INPUT, ModelEditor
from model_zoo.split.ending import Ending
from model_zoo.split.graph import Graph, TensorInfo
from model_zoo.split.head_plan import HeadPlan
from model_zoo.split.quantised import append_pooling
from model_zoo.split.running import Runner
from model_zoo.split.supervision import Teller

_REPORT_EVERY = 100


@dataclass(frozen=True, slots=True)
class Answers:
    """For n inputs: per cut the pooled values (n, values) that the head reads, and the network's logits.

    logits: dequantised float32 (n, classes); for a single sigmoid two, the first of which is 0.
    """

    pooled: tuple[Array, ...]
    logits: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.logits)

    def select(self, chosen: npt.NDArray[np.int64]) -> Answers:
        """Return the answers on some of the inputs."""
        return Answers(tuple(pooled[chosen] for pooled in self.pooled), self.logits[chosen])


def together(parts: Sequence[Answers]) -> Answers:
    """Return several answers as one, in order."""
    pooled = tuple(np.concatenate(of_cut) for of_cut in zip(*(part.pooled for part in parts), strict=True))
    return Answers(pooled, np.concatenate([part.logits for part in parts]))


class Probe:
    """The whole network, with the pooling of every head added."""

    def __init__(self, graph: Graph, ending: Ending, plans: Sequence[HeadPlan]) -> None:
        self._plans = tuple(plans)
        self._ending = ending
        self._runner = Runner(_probe_file(graph, ending, plans))

    def answers(self, tensors: Iterable[Array], count: int, tell: Teller) -> Answers:
        """Run `count` input tensors (1, …); SplitError if the network's scores are not finite."""
        pooled: list[list[Array]] = [[] for _ in self._plans]
        logits: list[Array] = []
        for done, tensor in enumerate(tensors, start=1):
            *of_cuts, scores = self._runner(tensor)
            for into, found in zip(pooled, of_cuts, strict=True):
                into.append(found[0])
            logits.append(scores.reshape(-1))
            if done % _REPORT_EVERY == 0 or done == count:
                tell.step(done, count)
        return Answers(
            pooled=tuple(np.stack(of_cut) for of_cut in pooled),
            logits=class_logits(np.stack(logits), self._ending),
        )


def _probe_file(graph: Graph, ending: Ending, plans: Sequence[HeadPlan]) -> bytes:
    editor = ModelEditor()
    start = graph.inputs[0]
    editor.copy(graph, start, ending.logits.index)
    outputs = {
        f"pooled{k}": append_pooling(editor, plan, editor.copied(plan.boundary.index)) for k, plan in enumerate(plans)
    }
    outputs["logits"] = editor.copied(ending.logits.index)
    return editor.finish({INPUT: editor.copied(start)}, outputs)


def class_logits(scores: Array, ending: Ending) -> npt.NDArray[np.float32]:
    """Turn a network's scores (n, values) into logits (n, classes); SplitError if they are not finite."""
    real = dequantised(scores, ending.logits)
    if not np.isfinite(real).all():
        raise SplitError(
            "some scores of the network are not finite (NaN or infinite)", "check the range of the inputs (--range)"
        )
    if ending.is_single_sigmoid:
        return np.concatenate([np.zeros_like(real), real], axis=1)
    return real


def dequantised(values: Array, tensor: TensorInfo) -> npt.NDArray[np.float32]:
    """Return the real numbers that the values of a tensor stand for."""
    if tensor.dtype == "float32":
        return values.astype(np.float32)
    steps = values.astype(np.float32) - np.float32(tensor.zero_point)
    real: npt.NDArray[np.float32] = steps * np.float32(tensor.scale)
    return real
