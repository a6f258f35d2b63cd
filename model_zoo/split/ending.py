"""How a network ends: which tensor holds its scores before they become probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model_zoo.split.graph import Graph, OperatorInfo, TensorInfo

_PROBABILITIES = {"SOFTMAX": "softmax", "LOG_SOFTMAX": "softmax", "LOGISTIC": "sigmoid"}
_CHANGE_NOTHING = {"DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS"}


@dataclass(frozen=True, slots=True)
class Ending:
    """The tensor of scores, `logits`, and what turns it into probabilities, if anything.

    Exits compare logits, so the operators after them are not part of the served segments.
    """

    logits: TensorInfo
    kind: Literal["softmax", "sigmoid", "none"]

    @property
    def is_single_sigmoid(self) -> bool:
        """Whether it is one logit of yes or no, which becomes two: 0 for no, and the logit for yes."""
        return self.kind == "sigmoid" and self.logits.values == 1

    @property
    def classes(self) -> int:
        """The number of classes."""
        return 2 if self.is_single_sigmoid else self.logits.values


def find_ending(graph: Graph) -> Ending:
    """Find the logits of a graph with one output."""
    made_by = {tensor: operator for operator in graph.operators for tensor in operator.outputs}
    at = made_by.get(graph.outputs[0])
    while at is not None and at.name in _CHANGE_NOTHING and at.inputs:
        at = made_by.get(at.inputs[0])
    if at is None or at.name not in _PROBABILITIES or not at.inputs:
        return Ending(graph.output, "none")
    return Ending(graph.tensors[at.inputs[0]], "softmax" if _PROBABILITIES[at.name] == "softmax" else "sigmoid")


def operators_between(graph: Graph, start: int, end: int) -> tuple[OperatorInfo, ...]:
    """Return the operators that `end` needs, from the tensor `start` on, in order, also for constants."""
    needed, found = {end}, []
    for operator in reversed(graph.operators):
        if needed.intersection(operator.outputs) and start not in operator.outputs:
            needed.update(operator.inputs)
            found.append(operator)
    return tuple(reversed(found))
