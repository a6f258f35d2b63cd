"""Whether what a manifest declares of its inputs fits together, and fits the first segment."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from distree.bundle.frontends import make_frontend
from distree.bundle.manifest import InputSpec, Manifest, Preprocess
from distree.messages.limits import MAX_RANK

MAX_INPUT_BYTES = 16 << 20
MAX_RATE_HZ = 10_000_000


def input_problems(manifest: Manifest) -> Iterator[str]:
    """Say what is wrong with `input` and `preprocess`."""
    spec, preprocess = manifest.input, manifest.preprocess
    faults = [*_spec_problems(spec), *_window_problems(spec, preprocess), *_value_problems(spec, preprocess)]
    yield from faults
    if faults or not manifest.stages:
        return
    try:
        shape = make_frontend(preprocess.frontend, spec.shape, spec.rate_hz).shape
    except ValueError as error:
        yield f"preprocess.frontend: {preprocess.frontend.kind}: {error}"
        return
    taken = manifest.stages[0].input
    if math.prod(shape) != math.prod(taken.shape):
        made = "" if shape == spec.shape else f" becomes {list(shape)}, which"
        yield f"input.shape: {list(spec.shape)}{made} does not fill stages[0].input, {list(taken.shape)}"
    if preprocess.range == "quantised" and spec.dtype != taken.dtype:
        yield f"preprocess.range: quantised inputs are {taken.dtype}, as stages[0].input is, not {spec.dtype}"
    for name, given in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(given) not in (0, 1, shape[-1]):
            yield f"preprocess.{name}: {len(given)} values, one or one for each of {shape[-1]} channels is needed"


def _spec_problems(spec: InputSpec) -> Iterator[str]:
    shape = spec.shape
    if not 1 <= len(shape) <= MAX_RANK or min(shape) < 1:
        yield f"input.shape: {list(shape)}, must be 1 to {MAX_RANK} sizes of at least 1"
    elif np.dtype(spec.dtype).itemsize * math.prod(shape) > MAX_INPUT_BYTES:
        yield f"input.shape: {list(shape)} of {spec.dtype}, must be at most {MAX_INPUT_BYTES} bytes"
    if spec.rate_hz is not None and not 0 < spec.rate_hz <= MAX_RATE_HZ:
        yield f"input.rate_hz: must be above 0 and at most {MAX_RATE_HZ}, received {spec.rate_hz:g}"
    if spec.channels and (len(shape) != 2 or len(spec.channels) != shape[1]):
        yield f"input.channels: {len(spec.channels)} names, needs a shape of [samples, {len(spec.channels)}]"
    if len({name.casefold() for name in spec.channels}) != len(spec.channels):
        yield "input.channels: a name is given twice"


def _window_problems(spec: InputSpec, preprocess: Preprocess) -> Iterator[str]:
    hop, is_recording = preprocess.window.hop, len(spec.shape) in (1, 2)
    if hop is not None and not is_recording:
        yield f"preprocess.window: only recordings are cut, and inputs are {list(spec.shape)}; remove it"
    elif hop is not None and not 1 <= hop <= spec.shape[0]:
        yield f"preprocess.window.hop: must be 1 to the {spec.shape[0]} samples of a window, received {hop}"


def _value_problems(spec: InputSpec, preprocess: Preprocess) -> Iterator[str]:
    mean, std = preprocess.mean, preprocess.std
    if preprocess.range is not None:
        if mean or std:
            yield "preprocess: give range, or mean and std, not both"
        if preprocess.range == "quantised" and preprocess.frontend.kind != "raw":
            yield "preprocess.range: quantised inputs have no front end; remove one of them"
        if preprocess.range != "quantised" and (spec.dtype != "uint8" or preprocess.frontend.kind != "raw"):
            yield f"preprocess.range: {preprocess.range} is of uint8 values; give mean and std"
        return
    if len(mean) != len(std) or 0 in std or not all(map(math.isfinite, (*mean, *std))):
        yield "preprocess: mean and std need one value per channel each, std not 0"
    if not mean and (spec.dtype in ("uint8", "int8") and preprocess.frontend.kind == "raw"):
        what = "0..1, -1..1 or 0..255" if spec.is_image else "quantised"
        yield f"preprocess: say what the network expects of {spec.dtype} values: range ({what}), or mean and std"
