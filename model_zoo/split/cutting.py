"""Writes parts of a network, and networks with something added, as .tflite files of their own.

A file made here has one signature, `serving_default`, whose tensors have the names that bundles use.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model_zoo.split.ending import operators_between
from model_zoo.split.graph import Graph, OperatorInfo
from model_zoo.split.schema import load_schema, write_model

SIGNATURE = "serving_default"
INPUT, FEATURES, LOGITS = "input", "features", "logits"

_NUMPY_TYPES = {"int8": "INT8", "uint8": "UINT8", "int32": "INT32", "float32": "FLOAT32"}


def cut_segment(graph: Graph, start: int, end: int, name: str = FEATURES) -> bytes:
    """Write the part of a network from the tensor `start` to the tensor `end`, whose signature name is `name`."""
    editor = ModelEditor()
    editor.copy(graph, start, end)
    return editor.finish({INPUT: editor.copied(start)}, {name: editor.copied(end)})


class ModelEditor:
    """A model under construction: operators copied from others, and new ones."""

    def __init__(self) -> None:
        self._schema = load_schema()
        self._codes: dict[tuple[int, str, int], int] = {}
        self._code_list: list[Any] = []
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._buffers: list[Any] = [self._schema.BufferT()]  # the first one is for tensors without data
        self._places: dict[int, int] = {}

    # ---------------------------------------------------------------- copied

    def copy(self, graph: Graph, start: int, end: int) -> None:
        """Copy all operators from the tensor `start` to `end`, except those that are already here."""
        self._copy_tensor(graph, start)
        for operator in operators_between(graph, start, end):
            if not all(tensor in self._places for tensor in operator.outputs):
                self._copy_operator(graph, operator)

    def copied(self, tensor: int) -> int:
        """Return the index that a tensor of the copied graph has here."""
        return self._places[tensor]

    def _copy_operator(self, graph: Graph, operator: OperatorInfo) -> None:
        made = copy.copy(graph.model.subgraphs[0].operators[operator.index])
        code = graph.model.operatorCodes[made.opcodeIndex]
        made.opcodeIndex = self._code(
            max(code.builtinCode, code.deprecatedBuiltinCode), int(code.version), code.customCode or ""
        )
        for side in ("inputs", "outputs", "intermediates"):
            # An empty vector comes back as the number 0.
            named = getattr(made, side)
            indices = [] if named is None or np.ndim(named) == 0 else [int(index) for index in named]
            setattr(made, side, np.asarray([self._copy_tensor(graph, index) for index in indices], np.int32))
        made.mutatingVariableInputs = None
        made.debugMetadataIndex = -1
        self._operators.append(made)

    def _copy_tensor(self, graph: Graph, index: int) -> int:
        if index < 0 or index in self._places:
            return self._places.get(index, -1)
        made = copy.copy(graph.model.subgraphs[0].tensors[index])
        made.shape = np.asarray(graph.tensors[index].shape, np.int32)
        made.shapeSignature = None
        data = graph.model.buffers[made.buffer].data if graph.tensors[index].is_constant else None
        made.buffer = 0 if data is None else self._buffer(np.asarray(data, np.uint8))
        self._places[index] = self._append(made)
        return self._places[index]

    # ---------------------------------------------------------------- new

    def add_constant(self, name: str, values: Any, scale: float = 0.0) -> int:
        """Add a constant tensor of int8, int32 or float32 values, with a scale if they are quantised."""
        array = np.ascontiguousarray(values)
        return self._add_tensor(name, array.dtype.name, array.shape, scale, 0, self._buffer(array.reshape(-1)))

    def add_activation(
        self, name: str, dtype: str, shape: Sequence[int], scale: float = 0.0, zero_point: int = 0
    ) -> int:
        """Add a tensor that an operator writes."""
        return self._add_tensor(name, dtype, shape, scale, zero_point, 0)

    def add_operator(
        self, name: str, version: int, inputs: Sequence[int], output: int, options: Any = None, kind: str = ""
    ) -> None:
        """Add a built-in operator; `kind` names its options in the schema."""
        made = self._schema.OperatorT()
        made.opcodeIndex = self._code(getattr(self._schema.BuiltinOperator, name), version, "")
        made.inputs, made.outputs = np.asarray(inputs, np.int32), np.asarray([output], np.int32)
        if options is not None:
            made.builtinOptionsType = getattr(self._schema.BuiltinOptions, kind)
            made.builtinOptions = options
        self._operators.append(made)

    def options(self, kind: str) -> Any:
        """Return the options of one kind of operator, all at their defaults."""
        return getattr(self._schema, f"{kind}T")()

    def finish(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> bytes:
        """Return the file, with these tensors as its signature's."""
        schema = self._schema
        main = schema.SubGraphT()
        main.name = "main"
        main.tensors, main.operators = self._tensors, self._operators
        main.inputs, main.outputs = _places(inputs), _places(outputs)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
        signature.inputs, signature.outputs = self._maps(inputs), self._maps(outputs)
        model = schema.ModelT()
        model.version, model.description = 3, "Cut by DistrEE"
        model.operatorCodes, model.subgraphs, model.buffers = self._code_list, [main], self._buffers
        model.signatureDefs = [signature]
        return write_model(model)

    def _maps(self, tensors: Mapping[str, int]) -> list[Any]:
        made = []
        for name, index in tensors.items():
            entry = self._schema.TensorMapT()
            entry.name, entry.tensorIndex = name, index
            made.append(entry)
        return made

    def _add_tensor(
        self, name: str, dtype: str, shape: Sequence[int], scale: float, zero_point: int, buffer: int
    ) -> int:
        made = self._schema.TensorT()
        made.name = name
        made.type = getattr(self._schema.TensorType, _NUMPY_TYPES[dtype])
        made.shape, made.buffer = np.asarray(shape, np.int32), buffer
        made.hasRank = True
        if scale:
            made.quantization = self._schema.QuantizationParametersT()
            made.quantization.scale = np.asarray([scale], np.float32)
            made.quantization.zeroPoint = np.asarray([zero_point], np.int64)
        return self._append(made)

    def _append(self, tensor: Any) -> int:
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _buffer(self, values: Any) -> int:
        made = self._schema.BufferT()
        made.data = values.view(np.uint8)
        self._buffers.append(made)
        return len(self._buffers) - 1

    def _code(self, code: int, version: int, custom_code: str) -> int:
        key = (code, custom_code, version)
        if key not in self._codes:
            made = self._schema.OperatorCodeT()
            made.builtinCode, made.version = code, version
            # Readers from before 2020 know only the first field, which ends at 127.
            made.deprecatedBuiltinCode = min(code, 127)
            self._codes[key] = len(self._code_list)
            self._code_list.append(made)
        return self._codes[key]


def _places(tensors: Mapping[str, int]) -> Any:
    return np.asarray(list(tensors.values()), np.int32)
