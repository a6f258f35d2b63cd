"""Writes the bundle of a split network into a folder: segments, golden vectors and manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distree.bundle.loading import MAX_SEGMENT_BYTES, Bundle
from distree.bundle.manifest import (
    DataUse,
    Exits,
    Macs,
    Manifest,
    MeasuredFigures,
    Promise,
    SplitFrom,
    StageSpec,
    TensorSpec,
)
from distree.messages.request import DType
from distree.tensors import Array
from model_zoo.build.manifest import draft_manifest, write_golden, write_manifest
from model_zoo.build.segments import check_boundaries, inspect_segment
from model_zoo.errors import SplitError
from model_zoo.split.asked import Asked
from model_zoo.split.cuts import Cut
from model_zoo.split.cutting import FEATURES, INPUT, LOGITS, ModelEditor
from model_zoo.split.graph import TensorInfo
from model_zoo.split.input_range import InputFit
from model_zoo.split.network import Network
from model_zoo.split.quantised import Layer, ServedHead, append_head, append_layer
from model_zoo.split.thresholds import CRITERION

_GOLDEN_SEED = 20_240_607
_GOLDEN_INPUTS = 4
_GOLDEN_GRID = 5


def serve_segments(network: Network, cuts: Sequence[Cut], heads: Sequence[ServedHead]) -> list[bytes]:
    """Write the segments as they are served: each with its head, the last one with the network's own scores."""
    graph, ending = network.graph, network.ending
    starts = [graph.inputs[0], *(cut.boundary.index for cut in cuts)]
    made = []
    for start, cut, head in zip(starts, cuts, heads, strict=False):
        editor = ModelEditor()
        editor.copy(graph, start, cut.boundary.index)
        boundary = editor.copied(cut.boundary.index)
        logits = append_head(editor, head, boundary)
        made.append(editor.finish({INPUT: editor.copied(start)}, {FEATURES: boundary, LOGITS: logits}))
    editor = ModelEditor()
    editor.copy(graph, starts[-1], ending.logits.index)
    logits = editor.copied(ending.logits.index)
    if ending.is_single_sigmoid:
        logits = append_layer(editor, _yes_or_no(ending.logits), logits, "yes_or_no")
    made.append(editor.finish({INPUT: editor.copied(starts[-1])}, {LOGITS: logits}))
    if max(map(len, made)) > MAX_SEGMENT_BYTES:
        raise SplitError(
            f"a segment is {max(map(len, made))} bytes long, but segments can be at most {MAX_SEGMENT_BYTES} bytes",
            "cut the network into more stages",
        )
    return made


def _yes_or_no(logit: TensorInfo) -> Layer:
    """Turn one logit into two, 0 and itself: their softmax is its sigmoid, and no value changes."""
    weights = np.asarray([[0], [1]])
    if logit.dtype == "float32":
        return Layer(weights.astype(np.float32), np.zeros(2, np.float32), 0.0, 0.0, 0, 0.0, 0, relu=False)
    if logit.dtype != "int8":
        raise SplitError(
            f"outputs a single {logit.dtype} score, but a single sigmoid must be int8 or float32",
            "convert it to int8 or float32",
        )
    # With a weight scale of 1 and the same scale on both sides, the output has exactly the steps of the input.
    scale = logit.scale
    zero = logit.zero_point
    return Layer(weights.astype(np.int8), np.zeros(2, np.int32), 1.0, scale, zero, scale, zero, relu=False)


def manifest_of(network: Network, asked: Asked, labels: tuple[str, ...], fit: InputFit) -> Manifest:
    """Make a manifest that says how inputs become tensors; stages and everything that depends on them are missing."""
    tensor = network.graph.input
    quantised = tensor.dtype != "float32"
    spec = TensorSpec(
        name=INPUT,
        dtype=_DTYPES[tensor.dtype],
        shape=tensor.shape,
        scale=tensor.scale if quantised else 1.0,
        zero_point=tensor.zero_point if quantised else 0,
    )
    nothing = StageSpec(segment="", sha256="", bytes=0, input=spec, logits=spec, macs=Macs(trunk=0, exit=0))
    return draft_manifest(
        name=asked.name,
        description=asked.description,
        licence=asked.licence,
        labels=labels,
        spec=fit.spec,
        preprocess=fit.preprocess,
        stages=(nothing,),
    )


_DTYPES: dict[str, DType] = {"int8": "int8", "uint8": "uint8", "float32": "float32"}


@dataclass(frozen=True, slots=True)
class Made:
    """What a bundle is made of, besides its draft."""

    segments: Sequence[bytes]
    tolerances: tuple[int, ...]
    thresholds: tuple[float, ...]
    golden_inputs: Array


def write_segments(draft: Manifest, made: Made, network: Network, cuts: Sequence[Cut], folder: Path) -> Bundle:
    """Write segments and golden vectors into `folder`, and return the bundle as it is so far."""
    folder.mkdir(parents=True)
    stages = []
    before = 0
    ends = [*(cut.macs for cut in cuts), network.graph.macs]
    heads = [*(network.plans[cut.after].macs for cut in cuts), 0]
    for number, (content, end, head) in enumerate(zip(made.segments, ends, heads, strict=True)):
        path = folder / f"stage{number}.tflite"
        path.write_bytes(content)
        stages.append(inspect_segment(path, Macs(trunk=end - before, exit=head)))
        before = end
    check_boundaries(tuple(stages))
    manifest = replace(
        draft,
        description=draft.description or _description(network, cuts, draft),
        stages=tuple(stages),
        exits=Exits(criterion=CRITERION, thresholds=made.thresholds),
    )
    bundle = Bundle(path=folder, revision="draft", manifest=manifest)
    golden = replace(write_golden(bundle, made.golden_inputs), stage_tolerances=made.tolerances)
    return replace(bundle, manifest=replace(manifest, golden=golden))


def _description(network: Network, cuts: Sequence[Cut], draft: Manifest) -> str:
    kind = "int8" if network.graph.input.dtype != "float32" else "float32"
    size = " x ".join(map(str, draft.input.shape))
    return f"{len(draft.labels)} classes, {size} {draft.input.dtype} inputs, {len(cuts) + 1} exits, {kind}"


def finish(bundle: Bundle, measured: MeasuredFigures | None, split_from: SplitFrom) -> None:
    """Write the manifest, the last of a bundle's files."""
    write_manifest(replace(bundle.manifest, measured=measured, split_from=split_from), bundle.path)


def golden_inputs(inputs: Array) -> Array:
    """Make up inputs for the self-test: smooth noise with the data's mean and standard deviation at each place.

    They are distributed with the bundle, so they contain none of the data itself.
    """
    real = inputs[:2_000].astype(np.float64)
    mean, spread = real.mean(axis=0), real.std(axis=0)
    generator = np.random.default_rng(_GOLDEN_SEED)
    made = np.stack([mean + spread * _smooth(inputs.shape[1:], generator) for _ in range(_GOLDEN_INPUTS)])
    if inputs.dtype.kind in "iu":
        limits = np.iinfo(inputs.dtype)
        made = np.clip(np.rint(made), limits.min, limits.max)
    found: Array = made.astype(inputs.dtype)
    return found


def _smooth(shape: tuple[int, ...], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw noise that changes slowly along its first two axes, as pictures and recordings do."""
    axes = min(len(shape), 2)
    coarse = generator.normal(0.0, 1.0, (*(min(size, _GOLDEN_GRID) for size in shape[:axes]), *shape[axes:]))
    for axis in range(axes):
        places = np.linspace(0.0, coarse.shape[axis] - 1, shape[axis])
        below = np.floor(places).astype(np.int64)
        above = np.minimum(below + 1, coarse.shape[axis] - 1)
        share = (places - below).reshape([-1 if i == axis else 1 for i in range(coarse.ndim)])
        coarse = np.take(coarse, below, axis=axis) * (1 - share) + np.take(coarse, above, axis=axis) * share
    return coarse


def origin(
    network: Network,
    asked: Asked,
    cuts: Sequence[Cut],
    heads_from: tuple[DataUse, ...],
    thresholds_from: DataUse,
    promise: Promise,
    tested_on: DataUse | None,
) -> SplitFrom:
    """Say what the bundle was cut from and what its exits were made of."""
    return SplitFrom(
        file=asked.model.name,
        sha256=network.sha256,
        after=tuple(cut.after for cut in cuts),
        heads=tuple(str(network.plans[cut.after]) for cut in cuts),
        seed=asked.seed,
        heads_from=heads_from,
        thresholds_from=thresholds_from,
        promise=promise,
        tested_on=tested_on,
    )
