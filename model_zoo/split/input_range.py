"""How raw inputs become what the network expects: their range of values, and the order of colours.

A file does not say whether a network was trained on values of 0 to 255, 0 to 1 or -1 to 1, nor whether red or blue
comes first; with the wrong choice the network runs without complaint and answers badly. With labels the right choice
is found by accuracy. Without, it can only be read off the scale of a quantised input, or be given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from distree.bundle.frontends import make_frontend
from distree.bundle.manifest import InputSpec, Manifest, Preprocess
from distree.bundle.preprocessing import FULL_SCALE, Preprocessor
from distree.tensors import Array
from model_zoo.errors import SplitError
from model_zoo.split.declared import DeclaredInput
from model_zoo.split.graph import TensorInfo

AS_IT_IS = "as-it-is"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_TARGETS = {"0..255": (0.0, 255.0), "0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0), "-128..127": (-128.0, 127.0)}
RANGES = (*_TARGETS, "imagenet", AS_IT_IS)
"""Values of --range: what the network was trained on for the smallest and the largest input value."""

ChannelOrder = Literal["rgb", "bgr"]
ORDERS: tuple[ChannelOrder, ...] = ("rgb", "bgr")
_TRIED = 500


@dataclass(frozen=True, slots=True)
class InputWay:
    """One way: the range that the network is assumed to expect, and the preprocessing that produces it."""

    name: str
    preprocess: Preprocess

    def __str__(self) -> str:
        turned = ", blue first" if self.preprocess.channel_order == "bgr" else ""
        return f"{self.name}{turned}"


@dataclass(frozen=True, slots=True)
class InputFit:
    """What inputs look like at a source, and how their axes lie in the network's input.

    preprocess: all of it but the range of values, unless that was declared too; then there is only one way.
    """

    spec: InputSpec
    preprocess: Preprocess
    is_declared: bool = False


def fit_inputs(inputs: Array, tensor: TensorInfo, declared: DeclaredInput | None = None) -> InputFit:
    """Find how inputs (n, …), as they are or as declared, fit the network's input tensor; SplitError if they do not."""
    spec = InputSpec(dtype=inputs.dtype.name, shape=inputs.shape[1:]) if declared is None else declared.input
    wanted, shape = tensor.shape[1:], spec.shape
    if declared is None:
        return InputFit(spec, Preprocess(layout=_layout(shape, wanted)))
    preprocess = declared.preprocess
    if preprocess.frontend.kind != "raw":
        shape = make_frontend(preprocess.frontend, spec.shape, spec.rate_hz).shape
    if _layout(shape, wanted) != preprocess.layout and _layout(shape, wanted) == "nchw":
        raise SplitError(f"expects inputs of {_text(wanted)}, channels first", "declare layout: nchw")
    has_range = preprocess.range is not None or bool(preprocess.mean)
    return InputFit(spec, preprocess, has_range or preprocess.frontend.kind != "raw")


def _layout(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Literal["nchw", "nhwc"]:
    if _squeezed(shape) == _squeezed(wanted) or (len(wanted) == 1 and int(np.prod(shape)) == wanted[0]):
        return "nhwc"
    if len(shape) == len(wanted) and (shape[-1], *shape[:-1]) == wanted:
        return "nchw"
    raise SplitError(f"expects inputs of {_text(wanted)}, but the data has {_text(shape)}", "resize or cut the data")


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "single values"


def input_ways(inputs: Array, fit: InputFit, tensor: TensorInfo, wanted: str | None) -> list[InputWay]:
    """Return the ways that make sense for such inputs, or the one named by `wanted`, the value of `--range`.

    SplitError for a name that is unknown, or that does not apply to them.
    """
    if fit.is_declared:
        if wanted:
            raise SplitError(
                f"--range {wanted}: the file given by --input already declares the range", "leave --range out"
            )
        return [InputWay("declared", fit.preprocess)]
    names, orders = _wanted(wanted) if wanted else (_sensible(inputs, tensor), _orders(fit))
    ways = [way for name in names for way in _ways(name, inputs, fit, tensor, orders)]
    if not ways:
        raise SplitError(
            f"--range {wanted}: does not apply to {inputs.dtype} inputs of {_text(fit.spec.shape)}",
            "leave --range out, and the range is found from the data",
        )
    return ways


def _wanted(text: str) -> tuple[Sequence[str], tuple[ChannelOrder, ...]]:
    name, _, order = text.partition(",")
    orders = tuple(known for known in ORDERS if known == (order or "rgb"))
    if name not in RANGES or not orders:
        raise SplitError(
            f"--range {text}: unknown", f"use one of {', '.join(RANGES)}, followed by ,bgr if blue comes first"
        )
    return (name,), orders


def _sensible(inputs: Array, tensor: TensorInfo) -> Sequence[str]:
    if _full_scale(inputs) is None:
        return (AS_IT_IS, "-1..1") if _is_sound(inputs) else (AS_IT_IS,)
    return RANGES if inputs.dtype != tensor.dtype or tensor.scale else (AS_IT_IS,)


def _orders(fit: InputFit) -> tuple[ChannelOrder, ...]:
    shape = fit.spec.shape
    return ORDERS if len(shape) == 3 and shape[-1] == 3 else ORDERS[:1]


def _full_scale(inputs: Array) -> float | None:
    """Return the largest value of such inputs: 1 for bytes, which count as 0 to 1; 1 or 255 for pictures as floats.

    None for measured values, which have no such bound.
    """
    if inputs.dtype == np.uint8:
        return 1.0
    if inputs.dtype.kind != "f" or inputs.ndim != 4 or inputs.shape[-1] not in (1, 3) or inputs.min() < 0.0:
        return None
    highest = float(inputs.max())
    return 1.0 if highest <= 1.0 else 255.0 if highest <= 255.0 else None


def _is_sound(inputs: Array) -> bool:
    """Whether inputs are samples of 16 bits, as such or as whole numbers among floats."""
    if inputs.dtype == np.int16:
        return True
    some_inputs = inputs[:_TRIED]
    loud = inputs.dtype.kind == "f" and 256.0 < float(np.abs(some_inputs).max()) <= 32768.0
    return loud and bool((np.rint(some_inputs) == some_inputs).all())


def _ways(
    name: str, inputs: Array, fit: InputFit, tensor: TensorInfo, orders: Iterable[ChannelOrder]
) -> list[InputWay]:
    scaling = _scaling(name, inputs, fit, tensor)
    if scaling is None:
        return []
    mean, std = scaling
    return [InputWay(name, replace(fit.preprocess, mean=mean, std=std, channel_order=order)) for order in orders]


def _scaling(
    name: str, inputs: Array, fit: InputFit, tensor: TensorInfo
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std of a manifest's preprocessing, which reads uint8 as 0 to 1; None if it does not apply."""
    if name == AS_IT_IS:
        unit = FULL_SCALE.get(inputs.dtype.name, 1.0)
        if inputs.dtype.name == tensor.dtype and tensor.scale:
            # Already quantised: dequantised and quantised again, which leads to the same steps.
            return (tensor.zero_point / unit,), (1.0 / (tensor.scale * unit),)
        return (0.0,), (1.0 / unit,)
    full = _full_scale(inputs)
    if full is None:
        full = 1.0 if inputs.dtype == np.int16 else 32768.0
        return ((0.0,), (full,)) if name == "-1..1" and _is_sound(inputs) else None
    if name == "imagenet":
        means, stds = _IMAGENET
        return (tuple(full * v for v in means), tuple(full * v for v in stds)) if fit.spec.shape[-1:] == (3,) else None
    low, high = _TARGETS[name]
    # (value - mean) / std maps 0 to `low` and the largest value to `high`.
    std = full / (high - low)
    return (-low * std,), (std,)


def find_way(
    ways: Sequence[InputWay],
    accuracy: Callable[[InputWay], float] | None,
    tensor: TensorInfo,
    say: Callable[[str], None],
) -> InputWay:
    """Return the way with the highest accuracy; without labels (None), the one that the scale of its input implies.

    SplitError, which asks for --range, if neither decides.
    """
    if len(ways) == 1:
        return ways[0]
    if accuracy is None:
        return _by_scale(ways, tensor)
    found = sorted(((accuracy(way), -number) for number, way in enumerate(ways)), reverse=True)
    best, second = ways[-found[0][1]], ways[-found[1][1]]
    told = f"range of values {best}: {100 * found[0][0]:.1f} % right; next best, {second}: {100 * found[1][0]:.1f} %"
    close = found[0][0] - found[1][0] < 0.02
    say(f"{told}; too close to be sure: set it with --range" if close else told)
    return best


def _by_scale(ways: Sequence[InputWay], tensor: TensorInfo) -> InputWay:
    if tensor.dtype == "float32" or not tensor.scale:
        raise SplitError(
            "expects values in an unknown range, which cannot be found by accuracy without labels",
            "set it with --range",
        )
    bounds = np.iinfo(tensor.dtype)
    covered = [tensor.scale * (step - tensor.zero_point) for step in (bounds.min, bounds.max)]

    def off(way: InputWay) -> float:
        low, high = _TARGETS.get(way.name, (np.inf, np.inf))
        return float(abs(covered[0] - low) + abs(covered[1] - high)) + (way.preprocess.channel_order == "bgr")

    best = min(ways, key=off)
    if off(best) > 0.1 * (covered[1] - covered[0]):
        raise SplitError(
            f"expects values from {covered[0]:.3g} to {covered[1]:.3g}, which is not one of the usual ranges, and "
            "without labels the range cannot be found by accuracy",
            "set it with --range",
        )
    return best


def differing(ways: Sequence[InputWay], manifest: Manifest, inputs: Array) -> list[InputWay]:
    """Return the ways that turn some `inputs` into different tensors; of ways that do not differ, the first."""
    found: dict[bytes, InputWay] = {}
    for way in ways:
        made = preprocessor(manifest, way)
        found.setdefault(b"".join(made.tensor(one).tobytes() for one in inputs), way)
    return list(found.values())


def preprocessor(manifest: Manifest, way: InputWay) -> Preprocessor:
    """Return the preprocessor that turns inputs into tensors this way, as boards do it."""
    return Preprocessor(replace(manifest, preprocess=way.preprocess))


def some(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the indices of inputs to try ways on."""
    return np.sort(generator.permutation(len(labels))[:_TRIED])
