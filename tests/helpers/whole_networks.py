"""Whole networks as `distree zoo split` gets them: made by hand, and the shipped bundle put together again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from distree.bundle.loading import load_bundle
from model_zoo.split.cutting import ModelEditor
from model_zoo.split.schema import load_schema, read_model, write_model

SAME, VALID = 0, 1
RELU = 1
_IO_SCALE, _IO_ZERO = 1.0, -128  # int8 pictures of 0 to 255


def changed(content: bytes, edit: Callable[[Any], None]) -> bytes:
    """A file after `edit` of its model."""
    model = read_model(content)
    edit(model)
    return write_model(model)


class Net:
    """A network under construction, int8 or float32, with random weights."""

    def __init__(self, dtype: str = "int8", shape: tuple[int, ...] = (1, 8, 8, 3), seed: int = 0) -> None:
        self.editor = ModelEditor()
        self.dtype = dtype
        self.generator = np.random.default_rng(seed)
        self.shapes: dict[int, tuple[int, ...]] = {}
        scale = (_IO_SCALE / 255, _IO_ZERO) if dtype == "int8" else (0.0, 0)
        self.scales: dict[int, float] = {}
        self.input = self.tensor("given", shape, *scale)

    def tensor(self, name: str, shape: tuple[int, ...], scale: float = 0.0, zero: int = 0) -> int:
        index = self.editor.add_activation(name, self.dtype, shape, scale, zero)
        self.shapes[index], self.scales[index] = shape, scale
        return index

    def conv(self, taken: int, channels: int, stride: int = 1, kernel: int = 3) -> int:
        _, height, width, depth = self.shapes[taken]
        given = self._like(f"conv{taken}", (1, -(-height // stride), -(-width // stride), channels))
        options = self.editor.options("Conv2DOptions")
        options.strideH = options.strideW = stride
        options.padding, options.fusedActivationFunction = SAME, RELU
        options.dilationHFactor = options.dilationWFactor = 1
        weights, bias = self._weights(taken, (channels, kernel, kernel, depth), channels)
        self.editor.add_operator("CONV_2D", 3, [taken, weights, bias], given, options, "Conv2DOptions")
        return given

    def depthwise(self, taken: int) -> int:
        shape = self.shapes[taken]
        given = self._like(f"depthwise{taken}", shape)
        options = self.editor.options("DepthwiseConv2DOptions")
        options.strideH = options.strideW = options.depthMultiplier = 1
        options.dilationHFactor = options.dilationWFactor = 1
        options.padding, options.fusedActivationFunction = SAME, RELU
        weights, bias = self._weights(taken, (1, 3, 3, shape[-1]), shape[-1])
        self.editor.add_operator(
            "DEPTHWISE_CONV_2D", 3, [taken, weights, bias], given, options, "DepthwiseConv2DOptions"
        )
        return given

    def add(self, one: int, other: int) -> int:
        given = self._like(f"sum{one}", self.shapes[one])
        self.editor.add_operator("ADD", 2, [one, other], given, self.editor.options("AddOptions"), "AddOptions")
        return given

    def mean(self, taken: int) -> int:
        """Average over all places, as a vector."""
        _, height, width, depth = self.shapes[taken]
        options = self.editor.options("Pool2DOptions")
        options.padding, options.strideH, options.strideW = VALID, 1, 1
        options.filterHeight, options.filterWidth = height, width
        pooled = self.tensor(f"pooled{taken}", (1, 1, 1, depth), self.scales[taken], _IO_ZERO if self._quantised else 0)
        self.editor.add_operator("AVERAGE_POOL_2D", 2, [taken], pooled, options, "Pool2DOptions")
        return self.reshape(pooled, (1, depth))

    def reshape(self, taken: int, shape: tuple[int, ...]) -> int:
        given = self.tensor(f"shaped{taken}", shape, self.scales[taken], _IO_ZERO if self._quantised else 0)
        to = self.editor.add_constant(f"shape{taken}", np.asarray(shape, np.int32))
        self.editor.add_operator("RESHAPE", 1, [taken, to], given)
        return given

    def dense(self, taken: int, values: int, *, relu: bool = False, bias: float = 0.0) -> int:
        given = self._like(f"dense{taken}", (1, values), 0.05 if not relu else 0.02, 0 if not relu else _IO_ZERO)
        options = self.editor.options("FullyConnectedOptions")
        options.fusedActivationFunction = RELU if relu else 0
        constants = self._weights(taken, (values, self.shapes[taken][-1]), values, bias)
        self.editor.add_operator("FULLY_CONNECTED", 4, [taken, *constants], given, options, "FullyConnectedOptions")
        return given

    def softmax(self, taken: int) -> int:
        options = self.editor.options("SoftmaxOptions")
        options.beta = 1.0
        given = self._like(f"softmax{taken}", self.shapes[taken], 1 / 256, _IO_ZERO)
        self.editor.add_operator("SOFTMAX", 2, [taken], given, options, "SoftmaxOptions")
        return given

    def sigmoid(self, taken: int) -> int:
        given = self._like(f"sigmoid{taken}", self.shapes[taken], 1 / 256, _IO_ZERO)
        self.editor.add_operator("LOGISTIC", 2, [taken], given)
        return given

    def finish(self, *outputs: int, inputs: tuple[int, ...] = ()) -> bytes:
        given = {f"in{k}": tensor for k, tensor in enumerate(inputs or (self.input,))}
        return self.editor.finish(given, {f"out{k}": tensor for k, tensor in enumerate(outputs)})

    @property
    def _quantised(self) -> bool:
        return self.dtype == "int8"

    def _like(self, name: str, shape: tuple[int, ...], scale: float = 0.02, zero: int = _IO_ZERO) -> int:
        return self.tensor(name, shape, scale, zero) if self._quantised else self.tensor(name, shape)

    def _weights(self, taken: int, shape: tuple[int, ...], outputs: int, bias: float = 0.0) -> tuple[int, int]:
        depth = int(np.prod(shape[1:]))
        real = self.generator.normal(0.0, (2.0 / depth) ** 0.5, shape)
        if not self._quantised:
            return (
                self.editor.add_constant(f"weights{taken}", real.astype(np.float32)),
                self.editor.add_constant(f"bias{taken}", np.full(outputs, bias, np.float32)),
            )
        scale = float(np.abs(real).max()) / 127
        return (
            self.editor.add_constant(f"weights{taken}", np.rint(real / scale).astype(np.int8), scale),
            self.editor.add_constant(
                f"bias{taken}",
                np.full(outputs, round(bias / (self.scales[taken] * scale)), np.int32),
                self.scales[taken] * scale,
            ),
        )


def chain(dtype: str = "int8", classes: int = 4, seed: int = 0) -> bytes:
    """Convolutions in a row, a mean, classes, softmax: it can be cut everywhere."""
    net = Net(dtype, seed=seed)
    at = net.conv(net.input, 8)
    at = net.depthwise(at)
    at = net.conv(at, 16, stride=2)
    at = net.conv(at, 16)
    return net.finish(net.softmax(net.dense(net.mean(at), classes)))


def residual(dtype: str = "int8") -> bytes:
    """Two blocks with a skip connection each."""
    net = Net(dtype)
    at = net.conv(net.input, 8)
    for _ in range(2):
        at = net.add(at, net.conv(net.conv(at, 8), 8))
    return net.finish(net.softmax(net.dense(net.mean(at), 4)))


def yes_or_no(dtype: str = "int8") -> bytes:
    """One sigmoid at the end, which says yes to about half of random inputs."""
    net = Net(dtype)
    at = net.conv(net.conv(net.input, 8), 16, stride=2)
    bias = {"int8": -0.165, "float32": -0.199}[dtype]
    return net.finish(net.sigmoid(net.dense(net.mean(at), 1, bias=bias)))


def vector(classes: int = 3) -> bytes:
    """Dense layers on a vector of float32."""
    net = Net("float32", (1, 12))
    at = net.dense(net.dense(net.input, 64, relu=True), 64, relu=True)
    return net.finish(net.softmax(net.dense(at, classes)))


def fashion() -> bytes:
    """The shipped bundle `fashion` as one network, without its early exits: 10 classes of 28 x 28 grey pictures."""
    schema = load_schema()
    bundle = load_bundle("fashion")
    whole = schema.ModelT()
    main = schema.SubGraphT()
    main.tensors, main.operators = [], []
    whole.version, whole.subgraphs, whole.operatorCodes = 3, [main], []
    whole.buffers = [schema.BufferT()]
    flowing = None
    for number in range(len(bundle.stages)):
        part = read_model(bundle.segment(number))
        flowing = _append(whole, part, flowing, "features" if bundle.stages[number].features else "logits")
    main.outputs = np.asarray([flowing], np.int32)
    return write_model(whole)


def _append(whole: Any, part: Any, flowing: int | None, output: str) -> int:
    """Append a segment whose input is the tensor `flowing`; return the tensor of its output of that name."""
    main, source = whole.subgraphs[0], part.subgraphs[0]
    signature = part.signatureDefs[0]
    given = signature.inputs[0].tensorIndex
    wanted = {entry.name: entry.tensorIndex for entry in signature.outputs}[output.encode()]
    first_code, first_buffer, places = len(whole.operatorCodes), len(whole.buffers), {-1: -1}
    whole.operatorCodes += part.operatorCodes
    whole.buffers += part.buffers
    for index, tensor in enumerate(source.tensors):
        if index == given and flowing is not None:
            places[index] = flowing
            continue
        made = copy.copy(tensor)
        made.buffer += first_buffer
        main.tensors.append(made)
        places[index] = len(main.tensors) - 1
    if flowing is None:
        main.inputs = np.asarray([places[given]], np.int32)
    for operator in source.operators:
        made = copy.copy(operator)
        made.opcodeIndex += first_code
        made.inputs = np.asarray([places[int(index)] for index in operator.inputs], np.int32)
        made.outputs = np.asarray([places[int(index)] for index in operator.outputs], np.int32)
        main.operators.append(made)
    return places[wanted]
