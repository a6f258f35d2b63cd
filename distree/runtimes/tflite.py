"""Segments on LiteRT, or on its predecessor tflite-runtime: whichever is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distree.bundle import Bundle, StageSpec, TensorSpec
from distree.errors import BundleError, RuntimeUnavailableError
from distree.protocols import Array, SegmentOutput


@dataclass(slots=True)
class _Segment:
    interpreter: Any
    input_index: int
    features_index: int | None
    logits_index: int
    logits_scale: float
    logits_zero: int


def load_interpreter() -> tuple[type[Any], str]:
    """Return the Interpreter class and "package version"; RuntimeUnavailableError with the remedy if none works."""
    try:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter, _version("ai-edge-litert")
    except ImportError as first:
        missing = first
    if _installed("tflite-runtime") and int(np.__version__.split(".")[0]) >= 2:
        raise RuntimeUnavailableError(
            f"{_version('tflite-runtime')} needs numpy below 2, but numpy {np.__version__} is "
            "installed; run: pip install 'numpy<2'"
        )
    try:
        from tflite_runtime.interpreter import Interpreter as Predecessor

        return Predecessor, _version("tflite-runtime")
    except ImportError as second:
        cause = missing if _installed("ai-edge-litert") else second
    raise RuntimeUnavailableError(
        f"no TFLite runtime can be loaded ({cause}); run: pip install 'ai-edge-litert>=1.2,<2.2', or on armv7l: "
        "pip install tflite-runtime 'numpy<2'"
    )


def _installed(package: str) -> bool:
    return _version(package) != package


def _version(package: str) -> str:
    """Return "package version", or the bare package where it is not installed.

    Read from the name of the folder that pip leaves: importing importlib.metadata takes a board longer than loading
    a segment.
    """
    stem = package.replace("-", "_")
    for folder in sys.path:
        for found in Path(folder or ".").glob(f"{stem}-*.dist-info"):
            return f"{package} {found.name.removesuffix('.dist-info').partition('-')[2]}"
    return package


class TFLiteRuntime:
    """Runs segments of one bundle, each with its own interpreter. Used by one thread at a time.

    Raises RuntimeUnavailableError when no interpreter works here, BundleError when a segment is missing, was
    changed, cannot be read by the interpreter, or does not have the tensors that the manifest names.
    """

    def __init__(self, bundle: Bundle, stages: Iterable[int] | None = None, num_threads: int = 1) -> None:
        interpreter_class, self.name = load_interpreter()
        held = range(len(bundle.stages)) if stages is None else stages
        self._segments = {k: _load(interpreter_class, bundle, k, num_threads) for k in held}

    def run(self, stage: int, tensor: Array) -> SegmentOutput:
        """Run one stage on a tensor of the manifest's shape and dtype."""
        segment = self._segments[stage]
        interpreter = segment.interpreter
        interpreter.set_tensor(segment.input_index, tensor)
        interpreter.invoke()
        quantised = interpreter.get_tensor(segment.logits_index).ravel().tolist()
        scale, zero = segment.logits_scale, segment.logits_zero
        features = segment.features_index
        return SegmentOutput(
            features=None if features is None else interpreter.get_tensor(features),
            logits=[(q - zero) * scale for q in quantised],
        )


def _load(interpreter_class: type[Any], bundle: Bundle, k: int, num_threads: int) -> _Segment:
    spec = bundle.stages[k]
    content = bundle.segment(k)
    try:
        interpreter = interpreter_class(model_content=content, num_threads=num_threads)
        interpreter.allocate_tensors()
        runner = interpreter.get_signature_runner()
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
    except (ValueError, RuntimeError) as error:
        raise BundleError(f"{bundle.path / spec.segment}: the interpreter refuses it: {error}"[:300]) from None
    where = f"{bundle.path / spec.segment}"
    features = spec.features
    return _Segment(
        interpreter=interpreter,
        input_index=_index(inputs, spec.input, where),
        features_index=None if features is None else _index(outputs, features, where),
        logits_index=_index(outputs, spec.logits, where),
        logits_scale=_scale(spec),
        logits_zero=spec.logits.zero_point,
    )


def _scale(spec: StageSpec) -> float:
    return spec.logits.scale if spec.logits.dtype in ("int8", "uint8") else 1.0


def _index(details: dict[str, Any], spec: TensorSpec, where: str) -> int:
    """Find the tensor that the manifest names and check that it is what the manifest says."""
    if spec.name not in details:
        raise BundleError(f"{where}: has no tensor {spec.name!r} (it has {', '.join(sorted(details))})")
    found = details[spec.name]
    dtype, shape = np.dtype(found["dtype"]).name, tuple(int(size) for size in found["shape"])
    if (dtype, shape) != (spec.dtype, spec.shape):
        raise BundleError(f"{where}: {spec.name} is {dtype} {shape}, the manifest says {spec.dtype} {spec.shape}")
    return int(found["index"])
