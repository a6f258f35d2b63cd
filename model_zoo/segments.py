"""What a segment file says of itself, read by the TFLite interpreter; imports no torch."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from distree.bundle import Macs, StageSpec, TensorSpec
from distree.runtimes.tflite import load_interpreter
from distree.types import DType
from model_zoo.errors import ExportError

_DTYPES: dict[str, DType] = {"int8": "int8", "uint8": "uint8", "float16": "float16", "float32": "float32"}
_SCALE_TOLERANCE = 1e-5  # relative; converters compute the two scales of a boundary separately, in float32


def inspect_segment(path: Path, macs: Macs) -> StageSpec:
    """Read a segment's signature: one input, an output `logits` and perhaps an output `features`.

    Returns what a manifest says of it, `macs` included. Raises ExportError for a file with other tensors.
    """
    content = path.read_bytes()
    interpreter_class, _ = load_interpreter()
    interpreter = interpreter_class(model_content=content, num_threads=1)
    runner = interpreter.get_signature_runner()
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    if len(inputs) != 1 or "logits" not in outputs:
        raise ExportError(
            f"{path}: has inputs {sorted(inputs)} and outputs {sorted(outputs)}; needs one input and logits"
        )
    ((input_name, input_detail),) = inputs.items()
    return StageSpec(
        segment=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        input=_tensor_spec(input_name, input_detail),
        features=_tensor_spec("features", outputs["features"]) if "features" in outputs else None,
        logits=_tensor_spec("logits", outputs["logits"]),
        macs=macs,
    )


def _tensor_spec(name: str, detail: dict[str, Any]) -> TensorSpec:
    scale, zero_point = detail["quantization"]
    return TensorSpec(
        name=name,
        dtype=_DTYPES[np.dtype(detail["dtype"]).name],
        shape=tuple(int(size) for size in detail["shape"]),
        scale=float(scale),
        zero_point=int(zero_point),
    )


def check_boundaries(stages: tuple[StageSpec, ...]) -> None:
    """Raise ExportError unless each stage's features are, with scale and zero point, the next one's input.

    Features travel as int8 with no scale beside them, so both sides must read the same value from the same
    byte.
    """
    for before, after in itertools.pairwise(stages):
        if before.features is None or not _same_values(before.features, after.input):
            raise ExportError(
                f"{before.segment} gives {before.features}, {after.segment} takes {after.input}: "
                "features would change their meaning between the boards; calibrate both on the same images"
            )


def _same_values(one: TensorSpec, other: TensorSpec) -> bool:
    close = abs(one.scale - other.scale) <= _SCALE_TOLERANCE * max(one.scale, other.scale)
    return close and (one.dtype, one.shape, one.zero_point) == (other.dtype, other.shape, other.zero_point)
