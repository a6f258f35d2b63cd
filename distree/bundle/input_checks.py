"""Whether a manifest's declarations about inputs are consistent, and match the first segment."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from distree.bundle.frontends import make_frontend
from distree.bundle.manifest import InputSpec, Manifest, Preprocess
from distree.errors import ConfigError, Problem
from distree.messages.limits import MAX_RANK

MAX_INPUT_BYTES = 16 << 20
MAX_RATE_HZ = 10_000_000


def input_problems(manifest: Manifest) -> Iterator[Problem]:
    """Yield what is wrong with `input` and `preprocess`."""
    spec, preprocess = manifest.input, manifest.preprocess
    faults = [*_spec_problems(spec), *_window_problems(spec, preprocess), *_value_problems(spec, preprocess)]
    yield from faults
    if faults or not manifest.stages:
        return
    try:
        shape = make_frontend(preprocess.frontend, spec.shape, spec.rate_hz).shape
    except ConfigError as error:
        yield error.problem.at(f"preprocess.frontend: {preprocess.frontend.kind}")
        return
    taken = manifest.stages[0].input
    if math.prod(shape) != math.prod(taken.shape):
        made = "" if shape == spec.shape else f" becomes {list(shape)}, which"
        yield Problem(
            f"input.shape: {list(spec.shape)}{made} does not fill stages[0].input, {list(taken.shape)}",
            "make both the same number of values",
        )
    if preprocess.channel_order == "bgr" and spec.shape[-1:] != (3,):
        yield Problem(
            f"preprocess.channel_order: bgr, but inputs of shape {list(spec.shape)} do not have three channels",
            "remove it",
        )
    if preprocess.range == "quantised" and spec.dtype != taken.dtype:
        yield Problem(
            f"preprocess.range: quantised inputs have the dtype of stages[0].input, {taken.dtype}, not {spec.dtype}",
            f"make input.dtype {taken.dtype}",
        )
    for name, given in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(given) not in (0, 1, shape[-1]):
            yield Problem(
                f"preprocess.{name}: {len(given)} values", f"give one, or one for each of the {shape[-1]} channels"
            )


def _spec_problems(spec: InputSpec) -> Iterator[Problem]:
    shape = spec.shape
    if not 1 <= len(shape) <= MAX_RANK or min(shape) < 1:
        yield Problem(f"input.shape: {list(shape)} is not possible", f"give 1 to {MAX_RANK} sizes of at least 1")
    elif np.dtype(spec.dtype).itemsize * math.prod(shape) > MAX_INPUT_BYTES:
        yield Problem(
            f"input.shape: {list(shape)} of {spec.dtype} is too large", f"give at most {MAX_INPUT_BYTES} bytes"
        )
    if spec.rate_hz is not None and not 0 < spec.rate_hz <= MAX_RATE_HZ:
        yield Problem(
            f"input.rate_hz: {spec.rate_hz:g} is out of range", f"choose a value above 0, at most {MAX_RATE_HZ}"
        )
    if spec.channels and (len(shape) != 2 or len(spec.channels) != shape[1]):
        yield Problem(
            f"input.channels: {len(spec.channels)} names for inputs of shape {list(shape)}",
            f"make the shape [samples, {len(spec.channels)}]",
        )
    if len({name.casefold() for name in spec.channels}) != len(spec.channels):
        yield Problem("input.channels: a name is given twice", "give each channel a name of its own")


def _window_problems(spec: InputSpec, preprocess: Preprocess) -> Iterator[Problem]:
    hop, is_recording = preprocess.window.hop, len(spec.shape) in (1, 2)
    if hop is not None and not is_recording:
        yield Problem(
            f"preprocess.window: only recordings can be cut into windows, but inputs are {list(spec.shape)}",
            "remove it",
        )
    elif hop is not None and not 1 <= hop <= spec.shape[0]:
        yield Problem(
            f"preprocess.window.hop: {hop} is out of range", f"choose 1 to {spec.shape[0]}, the samples of a window"
        )


def _value_problems(spec: InputSpec, preprocess: Preprocess) -> Iterator[Problem]:
    mean, std = preprocess.mean, preprocess.std
    if preprocess.range is not None:
        if mean or std:
            yield Problem("preprocess: range cannot be combined with mean or std", "give range, or mean and std")
        if preprocess.range == "quantised" and preprocess.frontend.kind != "raw":
            yield Problem("preprocess.range: quantised inputs cannot have a front end", "remove one of the two")
        if preprocess.range != "quantised" and (spec.dtype != "uint8" or preprocess.frontend.kind != "raw"):
            yield Problem(
                f"preprocess.range: {preprocess.range} works only for uint8 values without a front end",
                "give mean and std",
            )
        return
    if len(mean) != len(std) or 0 in std or not all(map(math.isfinite, (*mean, *std))):
        yield Problem(
            "preprocess: mean and std differ in length, are not finite, or std has a 0",
            "give both one value per channel, and no std of 0",
        )
    if not mean and (spec.dtype in ("uint8", "int8") and preprocess.frontend.kind == "raw"):
        what = "0..1, -1..1 or 0..255" if spec.is_image else "quantised"
        yield Problem(
            f"preprocess: does not say which range the network expects {spec.dtype} values in",
            f"give range ({what}), or mean and std",
        )
