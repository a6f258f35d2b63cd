"""Segments on LiteRT, or on its predecessor tflite-runtime: whichever is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distree.bundle.loading import Bundle
from distree.bundle.manifest import TensorSpec
from distree.errors import BUILD_AGAIN, COPY_AGAIN, BundleError, RuntimeUnavailableError
from distree.printable import printable, quoted
from distree.segments import SegmentOutput, SegmentRuntime
from distree.tensors import Array


@dataclass(slots=True)
class _Segment:
    interpreter: Any
    input_index: int
    features_index: int | None
    logits_index: int
    logits_scale: float
    logits_zero: int


@dataclass(slots=True)
class _Branch:
    """A branch's segment of a wide stage."""

    interpreter: Any
    input_index: int
    features_index: int | None
    embedding_index: int


@dataclass(slots=True)
class _Port:
    """Where one embedding enters a fusion head, and what stands for it where it is missing."""

    index: int
    missing: Array
    scale: float
    zero: int


@dataclass(slots=True)
class _Fusion:
    """A wide stage's fusion head."""

    interpreter: Any
    ports: list[_Port]
    features_index: int | None
    logits_index: int
    logits_scale: float
    logits_zero: int


def load_interpreter() -> tuple[type[Any], str]:
    """Return the Interpreter class and "package version"; RuntimeUnavailableError if none works."""
    try:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter, _version("ai-edge-litert")
    except ImportError as first:
        missing = first
    if _installed("tflite-runtime") and int(np.__version__.split(".")[0]) >= 2:
        raise RuntimeUnavailableError(
            f"{_version('tflite-runtime')} needs numpy below 2, but numpy {np.__version__} is installed",
            "run: pip install 'numpy<2'",
        )
    try:
        from tflite_runtime.interpreter import Interpreter as Predecessor

        return Predecessor, _version("tflite-runtime")
    except ImportError as second:
        cause = missing if _installed("ai-edge-litert") else second
    raise RuntimeUnavailableError(
        f"no TFLite runtime can be loaded ({cause})",
        "run: pip install 'ai-edge-litert>=1.2,<2.4', or on armv7l: pip install tflite-runtime 'numpy<2'",
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
    """Runs segments of one bundle, each with its own interpreter; parameters and errors as of `make_runtime`."""

    def __init__(
        self,
        bundle: Bundle,
        stages: Iterable[int] | None,
        num_threads: int,
        *,
        branch: int | None,
        fuse: bool,
    ) -> None:
        interpreter_class, self.name = load_interpreter()
        open_segment = _Opener(interpreter_class, bundle, num_threads)
        counts = bundle.branch_counts
        if stages is None:
            stages = [k for k, count in enumerate(counts) if not count or branch is not None]
        held = list(stages)
        self._segments = {k: _load(open_segment, bundle, k) for k in held if not counts[k]}
        self._branches = {k: _load_branch(open_segment, bundle, k, branch) for k in held if counts[k]}
        self._fusions = {k: _load_fusion(open_segment, bundle, k) for k, count in enumerate(counts) if fuse and count}

    def run(self, stage: int, tensor: Array) -> SegmentOutput:
        """Run one plain stage, or this board's branch of a wide one, on a tensor of the manifest's shape and dtype."""
        try:
            segment = self._segments[stage]
        except KeyError:
            return self._run_branch(self._branches[stage], tensor)
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

    def _run_branch(self, branch: _Branch, tensor: Array) -> SegmentOutput:
        interpreter = branch.interpreter
        interpreter.set_tensor(branch.input_index, tensor)
        interpreter.invoke()
        features = branch.features_index
        return SegmentOutput(
            features=None if features is None else interpreter.get_tensor(features),
            logits=[],
            embedding=interpreter.get_tensor(branch.embedding_index),
        )

    def fuse(self, stage: int, embeddings: Sequence[Array | None]) -> SegmentOutput:
        """Run the fusion head of a wide stage on one embedding per branch, None where it is missing.

        Each is as the manifest says, (1, n) quantised; for a missing one stand zero points, so real zeros.
        """
        fusion = self._fusions[stage]
        interpreter, known = fusion.interpreter, []
        for port, embedding in zip(fusion.ports, embeddings, strict=True):
            interpreter.set_tensor(port.index, port.missing if embedding is None else embedding)
            known.append(None if embedding is None else _dequantised(embedding, port.scale, port.zero))
        interpreter.invoke()
        features = fusion.features_index
        return SegmentOutput(
            features=None if features is None else interpreter.get_tensor(features),
            logits=_dequantised(interpreter.get_tensor(fusion.logits_index), fusion.logits_scale, fusion.logits_zero),
            embeddings=tuple(known),
        )


def _dequantised(array: Array, scale: float, zero: int) -> list[float]:
    return [(q - zero) * scale for q in array.ravel().tolist()]


@dataclass(slots=True)
class _Opener:
    """Opens segments: verified bytes to an interpreter and the tensors of its signature."""

    interpreter_class: type[Any]
    bundle: Bundle
    num_threads: int

    def __call__(self, name: str, content: bytes) -> tuple[Any, dict[str, Any], dict[str, Any], str]:
        """Return the interpreter, its input and output details by name, and where it came from, for messages."""
        where = f"{self.bundle.path / name}"
        try:
            interpreter = self.interpreter_class(model_content=content, num_threads=self.num_threads)
            interpreter.allocate_tensors()
            runner = interpreter.get_signature_runner()
            return interpreter, runner.get_input_details(), runner.get_output_details(), where
        except (ValueError, RuntimeError) as error:
            raise BundleError(
                f"{where}: the interpreter cannot load it ({printable(str(error))})",
                f"{COPY_AGAIN}, or export it again",
            ) from None


def _load(open_segment: _Opener, bundle: Bundle, k: int) -> _Segment:
    spec = bundle.stages[k]
    interpreter, inputs, outputs, where = open_segment(spec.segment, bundle.segment(k))
    return _Segment(
        interpreter=interpreter,
        input_index=_index(inputs, spec.input, where),
        features_index=_optional_index(outputs, spec.features, where),
        logits_index=_index(outputs, spec.logits, where),
        logits_scale=_scale(spec.logits),
        logits_zero=spec.logits.zero_point,
    )


def _load_branch(open_segment: _Opener, bundle: Bundle, k: int, branch: int | None) -> _Branch:
    spec = bundle.branch(k, branch)
    interpreter, inputs, outputs, where = open_segment(spec.segment, bundle.branch_segment(k, branch))
    return _Branch(
        interpreter=interpreter,
        input_index=_index(inputs, spec.input, where),
        features_index=_optional_index(outputs, spec.features, where),
        embedding_index=_index(outputs, spec.embedding, where),
    )


def _load_fusion(open_segment: _Opener, bundle: Bundle, k: int) -> _Fusion:
    spec = bundle.stages[k]
    interpreter, inputs, outputs, where = open_segment(spec.segment, bundle.segment(k))
    return _Fusion(
        interpreter=interpreter,
        ports=[_port(inputs, b, branch.embedding, where) for b, branch in enumerate(spec.branches)],
        features_index=_optional_index(outputs, spec.features, where),
        logits_index=_index(outputs, spec.logits, where),
        logits_scale=_scale(spec.logits),
        logits_zero=spec.logits.zero_point,
    )


def _port(inputs: dict[str, Any], b: int, embedding: TensorSpec, where: str) -> _Port:
    return _Port(
        index=_index(inputs, replace(embedding, name=f"embedding{b}"), where),
        missing=np.full(embedding.shape, embedding.zero_point, embedding.dtype),
        scale=_scale(embedding),
        zero=embedding.zero_point,
    )


def _scale(spec: TensorSpec) -> float:
    return spec.scale if spec.dtype in ("int8", "uint8") else 1.0


def _optional_index(details: dict[str, Any], spec: TensorSpec | None, where: str) -> int | None:
    return None if spec is None else _index(details, spec, where)


def _index(details: dict[str, Any], spec: TensorSpec, where: str) -> int:
    """Find the tensor that the manifest names and check that it is what the manifest says."""
    if spec.name not in details:
        names = printable(", ".join(sorted(details)))
        raise BundleError(f"{where}: has no tensor {quoted(spec.name)}, only {names}", BUILD_AGAIN)
    found = details[spec.name]
    dtype, shape = np.dtype(found["dtype"]).name, tuple(int(size) for size in found["shape"])
    if (dtype, shape) != (spec.dtype, spec.shape):
        raise BundleError(
            f"{where}: {spec.name} is {dtype} {shape}, the manifest says {spec.dtype} {spec.shape}", BUILD_AGAIN
        )
    return int(found["index"])


if TYPE_CHECKING:
    _is_a_runtime: Callable[..., SegmentRuntime] = TFLiteRuntime
