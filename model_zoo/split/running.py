"""Runs networks and segments on LiteRT, with and without XNNPACK."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from distree.tensors import Array
from model_zoo.errors import SplitError
from model_zoo.split.graph import Graph


class Runner:
    """One interpreter with one thread, for a network with one input; outputs come in the order of the file."""

    def __init__(self, content: bytes, *, xnnpack: bool = True) -> None:
        self._interpreter = _interpreter(content, xnnpack=xnnpack)
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = [detail["index"] for detail in self._interpreter.get_output_details()]

    def __call__(self, tensor: Array) -> list[Array]:
        """Run one input (1, …) of the network's dtype; return copies of its outputs."""
        self._interpreter.set_tensor(self._input, tensor)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(output) for output in self._outputs]


def _interpreter(content: bytes, *, xnnpack: bool, keep_all: bool = False) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        made = Interpreter(
            model_content=content,
            num_threads=1,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=keep_all,
        )
        made.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SplitError(f"the interpreter refuses it: {reason}", "convert it with a current converter") from None
    return made


def with_true_shapes(graph: Graph, content: bytes) -> Graph:
    """Run the network once and return its graph with the shapes that its tensors had; SplitError if that fails."""
    interpreter = _interpreter(content, xnnpack=False, keep_all=True)
    detail = interpreter.get_input_details()[0]
    interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    try:
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SplitError(f"cannot be run: {reason}", "convert it with a current converter") from None
    shapes = {}
    for found in interpreter.get_tensor_details():
        shape = tuple(int(size) for size in found["shape"])
        index = int(found["index"])
        if index < len(graph.tensors) and not graph.tensors[index].is_constant and math.prod(shape) > 0:
            shapes[index] = shape
    return graph.with_shapes(shapes)
