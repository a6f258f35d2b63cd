"""Exit heads as operators of a .tflite file: int8 on a quantised boundary, float32 on a float32 one.

Weights are quantised by hand, symmetrically with one scale per layer, which all runtimes know; activations by their
range on the data. On ResNet-8 this had no measurable cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distree.tensors import Array
from model_zoo.split.cutting import ModelEditor
from model_zoo.split.head_plan import HeadPlan

Floats = npt.NDArray[np.float32]
_SAME, _NO_ACTIVATION, _RELU = 0, 0, 1  # as the schema numbers them
_LEAST_RANGE = 1e-3  # of activations, so that their scale is not 0 if all of them are
_LEAST_RATIO, _MOST_RATIO = 2.0**-24, 2.0**7  # of the scale of products to that of sums
_MOST_BIAS = 2.0**30
_ZERO = -128  # of an activation behind a ReLU, so that no step is below 0


@dataclass(frozen=True, slots=True)
class Weights:
    """A head's layers on dequantised pooled values: hidden (values, hidden), classes (hidden, classes), and biases."""

    hidden: Floats
    hidden_bias: Floats
    classes: Floats
    classes_bias: Floats


@dataclass(frozen=True, slots=True)
class Layer:
    """A fully connected layer as it is served: weights (outputs, inputs) and bias, and what its output means.

    int8 and int32 with scales, or float32 throughout, where `weight_scale` is 0.
    """

    weights: Array
    bias: Array
    weight_scale: float
    in_scale: float
    in_zero: int
    out_scale: float
    out_zero: int
    relu: bool

    def __call__(self, taken: Array) -> Array:
        """Run it on (n, inputs) as the interpreter does, except that rounding may differ by one step."""
        if not self.weight_scale:
            given: Array = taken @ self.weights.T + self.bias
            return np.maximum(given, np.float32(0.0)) if self.relu else given
        sums = (taken.astype(np.float32) - self.in_zero) @ self.weights.T.astype(np.float32) + self.bias
        steps = np.rint(sums * (self.in_scale * self.weight_scale / self.out_scale)) + self.out_zero
        lowest = self.out_zero if self.relu else -128
        quantised: Array = np.clip(steps, lowest, 127).astype(np.int8)
        return quantised


@dataclass(frozen=True, slots=True)
class ServedHead:
    """A head as it is served: two layers on pooled values."""

    plan: HeadPlan
    hidden: Layer
    classes: Layer

    def logits(self, pooled: Array) -> npt.NDArray[np.float64]:
        """Return dequantised logits (n, classes) for pooled values (n, inputs)."""
        given = self.classes(self.hidden(pooled))
        if not self.classes.weight_scale:
            return given.astype(np.float64)
        return (given.astype(np.float64) - self.classes.out_zero) * self.classes.out_scale


def pooled_scale(plan: HeadPlan) -> tuple[float, int]:
    """Return scale and zero point of the pooled values, which are int8 if the boundary is quantised; else (0, 0)."""
    boundary = plan.boundary
    if boundary.dtype == "float32":
        return 0.0, 0
    return boundary.scale, boundary.zero_point - (128 if boundary.dtype == "uint8" else 0)


def served_head(plan: HeadPlan, weights: Weights, pooled: Array) -> ServedHead:
    """Turn trained weights into layers; `pooled` (n, inputs), from the data, determines the ranges."""
    scale, zero = pooled_scale(plan)
    if not scale:
        hidden = Layer(weights.hidden.T, weights.hidden_bias, 0.0, 0.0, 0, 0.0, 0, relu=True)
        return ServedHead(plan, hidden, Layer(weights.classes.T, weights.classes_bias, 0.0, 0.0, 0, 0.0, 0, relu=False))
    real = (pooled.astype(np.float32) - zero) * np.float32(scale)
    activations = np.maximum(real @ weights.hidden + weights.hidden_bias, 0.0)
    logits = activations @ weights.classes + weights.classes_bias
    out_scale = max(float(activations.max(initial=0.0)), _LEAST_RANGE) / 255
    hidden = _layer(weights.hidden, weights.hidden_bias, (scale, zero), (out_scale, _ZERO), relu=True)
    lowest, highest = min(float(logits.min()), 0.0), max(float(logits.max()), _LEAST_RANGE)
    logit_scale = (highest - lowest) / 255
    logit_zero = int(np.clip(np.rint(-128 - lowest / logit_scale), -128, 127))
    taken = (hidden.out_scale, hidden.out_zero)
    classes = _layer(weights.classes, weights.classes_bias, taken, (logit_scale, logit_zero), relu=False)
    return ServedHead(plan, hidden, classes)


def _layer(weights: Floats, bias: Floats, taken: tuple[float, int], given: tuple[float, int], *, relu: bool) -> Layer:
    in_scale, out_scale = float(np.float32(taken[0])), float(np.float32(given[0]))
    # Runtimes refuse a product scale more than 2^8 times the output scale, or less than a 2^32nd of it; and the bias,
    # in steps of the product scale, must fit into 32 bits.
    finest = float(np.abs(weights).max()) / 127
    fits = max(_LEAST_RATIO * out_scale, float(np.abs(bias).max()) / _MOST_BIAS) / in_scale
    weight_scale = float(np.float32(max(finest, fits)))
    out_scale = float(np.float32(max(out_scale, in_scale * weight_scale / _MOST_RATIO)))
    return Layer(
        weights=np.clip(np.rint(weights.T / weight_scale), -127, 127).astype(np.int8),
        bias=np.rint(bias / (in_scale * weight_scale)).astype(np.int32),
        weight_scale=weight_scale,
        in_scale=in_scale,
        in_zero=taken[1],
        out_scale=out_scale,
        out_zero=given[1],
        relu=relu,
    )


def append_pooling(editor: ModelEditor, plan: HeadPlan, boundary: int) -> int:
    """Add operators that average the tensor `boundary` into one row of values; return that tensor, (1, inputs)."""
    source, at = plan.boundary, boundary
    scale, zero = pooled_scale(plan)
    dtype = "int8" if scale else "float32"
    if source.dtype == "uint8":
        shifted = editor.add_activation("shifted", dtype, source.shape, scale, zero)
        editor.add_operator("QUANTIZE", 2, [at], shifted)
        at = shifted
    places = (1, plan.height, plan.width, plan.channels)
    if plan.pools and source.shape != places:
        at = _append_reshape(editor, at, "places", dtype, places, (scale, zero))
    if plan.pools:
        options = editor.options("Pool2DOptions")
        options.padding = _SAME
        options.filterHeight, options.filterWidth = options.strideH, options.strideW = plan.window
        cells = editor.add_activation("cells", dtype, (1, *plan.grid, plan.channels), scale, zero)
        editor.add_operator("AVERAGE_POOL_2D", 2 if scale else 1, [at], cells, options, "Pool2DOptions")
        at = cells
    if plan.pools or source.shape != (1, plan.inputs):
        at = _append_reshape(editor, at, "pooled", dtype, (1, plan.inputs), (scale, zero))
    return at


def _append_reshape(
    editor: ModelEditor, taken: int, name: str, dtype: str, shape: tuple[int, ...], scale: tuple[float, int]
) -> int:
    options = editor.options("ReshapeOptions")
    options.newShape = np.asarray(shape, np.int32)
    given = editor.add_activation(name, dtype, shape, *scale)
    to = editor.add_constant(f"{name}_shape", np.asarray(shape, np.int32))
    editor.add_operator("RESHAPE", 1, [taken, to], given, options, "ReshapeOptions")
    return given


def append_head(editor: ModelEditor, head: ServedHead, boundary: int) -> int:
    """Add a whole head on the tensor `boundary`; return the tensor of its logits (1, classes)."""
    at = append_pooling(editor, head.plan, boundary)
    at = append_layer(editor, head.hidden, at, "hidden")
    return append_layer(editor, head.classes, at, "head_logits")


def append_layer(editor: ModelEditor, layer: Layer, taken: int, name: str) -> int:
    """Add a fully connected layer on the tensor `taken` (1, inputs); return its output."""
    quantised = bool(layer.weight_scale)
    options = editor.options("FullyConnectedOptions")
    options.fusedActivationFunction = _RELU if layer.relu else _NO_ACTIVATION
    given = editor.add_activation(
        name, "int8" if quantised else "float32", (1, len(layer.bias)), layer.out_scale, layer.out_zero
    )
    weights = editor.add_constant(f"{name}_weights", layer.weights, layer.weight_scale)
    bias = editor.add_constant(f"{name}_bias", layer.bias, layer.in_scale * layer.weight_scale)
    editor.add_operator(
        "FULLY_CONNECTED", 4 if quantised else 1, [taken, weights, bias], given, options, "FullyConnectedOptions"
    )
    return given
