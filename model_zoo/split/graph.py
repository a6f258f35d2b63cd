"""A network as a graph: its tensors, its operators in the order in which they run, and what each of them costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from model_zoo.errors import SplitError
from model_zoo.split.schema import dtype_name, operator_name

ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1, "int16": 2, "int32": 4, "int64": 8, "bool": 1}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor. `scale` is 0 where it is not quantised as a whole; a constant's values are in the file."""

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    is_constant: bool
    is_variable: bool
    has_unknown_size: bool  # in an axis other than the first

    @property
    def values(self) -> int:
        """The number of its values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Its size in bytes; 0 for a type without a fixed size."""
        return self.values * ITEM_BYTES.get(self.dtype, 0)

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape)) or 'one value'} {self.dtype}"


@dataclass(frozen=True, slots=True)
class OperatorInfo:
    """One operator: its place in the order, and the tensors that it reads and writes; omitted ones are not listed."""

    index: int
    name: str
    custom_name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """The network that runs from `inputs` to `outputs`, and the model that it was read from.

    Operators on which no output depends are left out; the others keep their numbers.
    """

    model: Any
    tensors: tuple[TensorInfo, ...]
    operators: tuple[OperatorInfo, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    subgraphs: int

    @property
    def input(self) -> TensorInfo:
        """The first input; `refusals` allows only one."""
        return self.tensors[self.inputs[0]]

    @property
    def output(self) -> TensorInfo:
        """The first output; `refusals` allows only one."""
        return self.tensors[self.outputs[0]]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole network."""
        return sum(operator_macs(self, operator) for operator in self.operators)

    def live(self) -> frozenset[int]:
        """Return the tensors that depend on the input; the others are the same for every input."""
        found = set(self.inputs)
        for operator in self.operators:
            if found.intersection(operator.inputs):
                found.update(operator.outputs)
        return frozenset(found)

    def consumers(self, tensor: int) -> tuple[OperatorInfo, ...]:
        """Return the operators that read a tensor."""
        return tuple(operator for operator in self.operators if tensor in operator.inputs)

    def with_shapes(self, shapes: Mapping[int, tuple[int, ...]]) -> Graph:
        """Return the graph with the shapes that tensors had in a run: those in a file can be wrong."""
        tensors = tuple(replace(tensor, shape=shapes.get(tensor.index, tensor.shape)) for tensor in self.tensors)
        return replace(self, tensors=tensors)


def read_graph(model: Any) -> Graph:
    """Read the first subgraph of a `ModelT`; SplitError if it contradicts itself."""
    if not model.subgraphs or not model.subgraphs[0].tensors or not model.subgraphs[0].operators:
        raise SplitError("contains no network", "convert it again")
    main = model.subgraphs[0]
    tensors = tuple(_tensor(model, index, tensor) for index, tensor in enumerate(main.tensors))
    operators = tuple(_operator(model, index, operator) for index, operator in enumerate(main.operators))
    graph = Graph(
        model=model,
        tensors=tensors,
        operators=operators,
        inputs=_indices(main.inputs),
        outputs=_indices(main.outputs),
        subgraphs=len(model.subgraphs),
    )
    _check(graph)
    return replace(graph, operators=_needed(graph))


def _needed(graph: Graph) -> tuple[OperatorInfo, ...]:
    needed, found = set(graph.outputs), []
    for operator in reversed(graph.operators):
        if needed.intersection(operator.outputs):
            needed.update(operator.inputs)
            found.append(operator)
    return tuple(reversed(found))


def _tensor(model: Any, index: int, tensor: Any) -> TensorInfo:
    scales, zeros = _quantisation(tensor.quantization)
    per_tensor = len(scales) == 1
    signature = () if tensor.shapeSignature is None else tuple(tensor.shapeSignature)
    return TensorInfo(
        index=index,
        name=_text(tensor.name),
        dtype=dtype_name(tensor.type),
        shape=_indices(tensor.shape),
        scale=scales[0] if per_tensor else 0.0,
        zero_point=zeros[0] if per_tensor and zeros else 0,
        is_constant=_has_data(model, tensor.buffer),
        is_variable=bool(tensor.isVariable),
        has_unknown_size=any(size < 0 for size in signature[1:]),
    )


def _quantisation(parameters: Any) -> tuple[list[float], list[int]]:
    if parameters is None or parameters.scale is None:
        return [], []
    zeros = [] if parameters.zeroPoint is None else np.asarray(parameters.zeroPoint).tolist()
    return np.asarray(parameters.scale).tolist(), zeros


def _has_data(model: Any, buffer: int) -> bool:
    if not 0 <= buffer < len(model.buffers or ()):
        raise SplitError("is damaged: a tensor's data is not in the file", "copy or convert it again")
    data, offset = model.buffers[buffer].data, model.buffers[buffer].offset
    return offset > 1 or (data is not None and len(data) > 0)


def _operator(model: Any, index: int, operator: Any) -> OperatorInfo:
    if not 0 <= operator.opcodeIndex < len(model.operatorCodes or ()):
        raise SplitError(
            f"is damaged: operator {index} refers to a kind that the file does not list", "copy or convert it again"
        )
    code = model.operatorCodes[operator.opcodeIndex]
    return OperatorInfo(
        index=index,
        name=operator_name(max(code.builtinCode, code.deprecatedBuiltinCode)),
        custom_name=_text(code.customCode),
        inputs=tuple(tensor for tensor in _indices(operator.inputs) if tensor >= 0),
        outputs=_indices(operator.outputs),
    )


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")


def _indices(vector: Any) -> tuple[int, ...]:
    # An empty vector comes back as the number 0.
    return () if vector is None or np.ndim(vector) == 0 else tuple(int(value) for value in vector)


def _check(graph: Graph) -> None:
    """Raise SplitError for tensors that do not exist, and operators that run before their inputs are computed."""
    known = len(graph.tensors)
    named = [*graph.inputs, *graph.outputs]
    named += [tensor for operator in graph.operators for tensor in (*operator.inputs, *operator.outputs)]
    if not all(0 <= tensor < known for tensor in named):
        raise SplitError("is damaged: it names tensors that are not in it", "copy or convert it again")
    made_by: dict[int, int] = {}
    for operator in graph.operators:
        for tensor in operator.outputs:
            if tensor in made_by or tensor in graph.inputs:
                raise SplitError("is damaged: two operators write the same tensor", "copy or convert it again")
            made_by[tensor] = operator.index
    for operator in graph.operators:
        if any(made_by.get(tensor, -1) >= operator.index for tensor in operator.inputs):
            raise SplitError(
                f"is damaged: operator {operator.index} runs before its inputs are computed", "convert it again"
            )


def operator_macs(graph: Graph, operator: OperatorInfo) -> int:
    """Count the multiply-accumulates of one operator: only convolutions and matrix products have any."""
    if operator.name not in _MACS or not operator.outputs or len(operator.inputs) < 2:
        return 0
    taken = [graph.tensors[index] for index in operator.inputs]
    count: int = _MACS[operator.name](taken, graph.tensors[operator.outputs[0]])
    return count


def _convolution(taken: list[TensorInfo], given: TensorInfo) -> int:
    # The weights of one output channel: the kernel times the input channels of its group.
    return given.values * math.prod(taken[1].shape[1:])


def _depthwise(taken: list[TensorInfo], given: TensorInfo) -> int:
    return given.values * math.prod(taken[1].shape[1:-1])


def _transposed(taken: list[TensorInfo], _: TensorInfo) -> int:
    if len(taken) < 3:
        return 0
    _shape, weights, tensor = taken[:3]
    return tensor.values * math.prod(weights.shape[:-1])


def _product(taken: list[TensorInfo], given: TensorInfo) -> int:
    return given.values * (taken[1].shape[-1] if taken[1].shape else 1)


def _batch_product(taken: list[TensorInfo], given: TensorInfo) -> int:
    # The number of values in each sum, whichever side is transposed.
    rows = given.shape[-2] if len(given.shape) > 1 else 1
    batch = given.values // max(rows * given.shape[-1], 1) if given.shape else 1
    return given.values * (taken[0].values // max(rows * batch, 1))


_MACS = {
    "CONV_2D": _convolution,
    "CONV_3D": lambda taken, given: given.values * math.prod(taken[1].shape[:-1]),
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _product,
    "BATCH_MATMUL": _batch_product,
}
