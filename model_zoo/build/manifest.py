"""Writes bundle.yaml, the golden vectors and the parameters of criteria; `distree.bundle.loading` reads them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from distree.bundle.loading import Bundle
from distree.bundle.manifest import (
    MANIFEST,
    Exits,
    Golden,
    InputSpec,
    Manifest,
    MeasuredFigures,
    ParametersFile,
    Preprocess,
    StageSpec,
    WindowRule,
)
from distree.bundle.preprocessing import Preprocessor
from distree.bundle.runtimes import DEFAULT_RUNTIME
from distree.tensors import Array
from distree.thresholds import NEVER, NEVER_WORD
from model_zoo.boards import Boards, quantised_logits
from model_zoo.evaluation import Evaluation

DRAFT_CRITERION = "max_softmax"
"""A draft's; no exit is ever taken by it."""

GOLDEN_FILE = "golden.npz"
PARAMETERS_FILE = "criteria.npz"
GOLDEN_INPUTS = 4
# Quantisation steps. Runtimes round the last step of a convolution differently, and a chain of some ten
# carries it on.
GOLDEN_TOLERANCE = 2


def write_manifest(manifest: Manifest, folder: Path) -> Path:
    """Write bundle.yaml into `folder`, one key a line and lists of scalars in one line; return its path."""
    path = folder / MANIFEST
    text = yaml.dump(_plain(manifest), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_declared(spec: InputSpec, preprocess: Preprocess, path: Path) -> None:
    """Write what inputs are as `distree zoo split --input` takes it: these two keys of bundle.yaml."""
    declared = {"input": _plain(spec, "input"), "preprocess": _plain(preprocess, "preprocess")}
    text = yaml.dump(declared, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """Lists, and mappings of tensors, in one line; everything else one key a line."""


class _OneLine(dict[str, Any]):
    """A mapping that is written in one line."""


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    scalars = not any(isinstance(item, dict) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=scalars)


def _represent_mapping(dumper: yaml.SafeDumper, value: dict[str, Any]) -> yaml.Node:
    one_line = isinstance(value, _OneLine)
    return dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), flow_style=one_line)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(dict, _represent_mapping)
_Dumper.add_representer(_OneLine, _represent_mapping)
_OF_SPLIT = {"heads_from[]", "thresholds_from", "promise", "tested_on"}
_OF_INPUTS = {"input", "window", "frontend"}
_ONE_LINE = _OF_SPLIT | _OF_INPUTS | {"features", "embedding", "logits", "macs", "golden", "parameters", "masked[]"}


def _plain(value: Any, name: str = "") -> Any:
    if dataclasses.is_dataclass(value):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        mapping = {key: _plain(part, key) for key, part in fields if part is not None and not _left_out(value, key)}
        return _OneLine(mapping) if name in _ONE_LINE else mapping
    if isinstance(value, tuple):
        return [_plain(part, f"{name}[]") for part in value]
    return NEVER_WORD if name == "thresholds[]" and value >= NEVER else value


def _left_out(value: Any, name: str) -> bool:
    """Whether a field goes without saying: a plain stage has no branches, nearly every bundle the usual runtime.

    What is declared of inputs is left out where it is the default. So a bundle that is written again has the same
    bytes, and the same revision.
    """
    if isinstance(value, Manifest) and name == "runtime":
        return value.runtime == DEFAULT_RUNTIME
    if isinstance(value, Preprocess) and name == "channel_order":
        return value.channel_order == "rgb"
    defaults = {field.name: field.default for field in dataclasses.fields(value)}
    is_default: bool = getattr(value, name) == defaults[name]
    return is_default and (defaults[name] == () or isinstance(value, InputSpec | Preprocess | WindowRule))


def draft_manifest(
    *,
    name: str,
    description: str,
    licence: str,
    labels: tuple[str, ...],
    spec: InputSpec,
    preprocess: Preprocess,
    stages: tuple[StageSpec, ...],
) -> Manifest:
    """Make a manifest that can be run: exits are closed, and golden vectors and figures are still missing."""
    return Manifest(
        format=1,
        name=name,
        description=description,
        license=licence,
        labels=labels,
        input=spec,
        preprocess=preprocess,
        stages=stages,
        exits=Exits(criterion=DRAFT_CRITERION, thresholds=(NEVER,) * (len(stages) - 1)),
        golden=Golden(file=GOLDEN_FILE, sha256="", tolerance=GOLDEN_TOLERANCE),
    )


def measured_on(data: str, evaluation: Evaluation) -> MeasuredFigures:
    """Lay out figures as a manifest has them, rounded; `data` says what they were measured on."""
    return MeasuredFigures(
        data=data,
        accuracy=tuple(round(value, 6) for value in evaluation.accuracy),
        accuracy_at_thresholds=round(evaluation.accuracy_at_thresholds, 6),
        exit_share=tuple(round(value, 6) for value in evaluation.exit_share),
        macs_per_input=round(evaluation.macs_per_input, 1),
        macs_no_early_exit_strict=evaluation.macs_no_early_exit_strict,
        macs_no_early_exit_loose=evaluation.macs_no_early_exit_loose,
        feature_bytes_per_input=round(evaluation.feature_bytes_per_input, 1),
    )


def write_golden(bundle: Bundle, inputs: Array) -> Golden:
    """Run the whole network on a few raw inputs (n, *input shape) and write golden.npz into the bundle's folder.

    Its keys, each array with n in front: of a plain stage stage{k}_input, stage{k}_features (but for the last) and
    stage{k}_logits; of a wide one stage{k}_branch{b}_input, stage{k}_branch{b}_features (where the branch has any),
    stage{k}_branch{b}_embedding, stage{k}_logits and stage{k}_features (where the fusion head gives some), nobody
    missing. All are as the segments' tensors are, quantised. The inputs end up in the bundle, so they must be ones
    that may be passed on.
    """
    preprocessor, boards = Preprocessor(bundle.manifest), Boards(bundle)
    vectors: dict[str, list[Array]] = {}
    for raw in inputs:
        for key, array in _golden_of(bundle, boards, preprocessor.tensor(raw)).items():
            vectors.setdefault(key, []).append(array)
    path = bundle.path / GOLDEN_FILE
    _write_arrays(path, {key: np.stack(rows) for key, rows in vectors.items()})
    return Golden(file=GOLDEN_FILE, sha256=_sha256(path), tolerance=GOLDEN_TOLERANCE)


def _golden_of(bundle: Bundle, boards: Boards, tensor: Array) -> dict[str, Array]:
    """Run one input tensor through all stages; return what went in and came out of each segment."""
    vectors: dict[str, Array] = {}
    flowing: list[Array | None] = []
    for k, stage in enumerate(bundle.stages):
        if not stage.branches:
            output = boards.run(k, tensor)
            vectors[f"stage{k}_input"] = tensor[0]
        else:
            given = flowing if k and bundle.stages[k - 1].branches else [tensor] * len(stage.branches)
            embeddings, flowing = _golden_of_branches(boards, k, given, vectors)
            output = boards.fuse(k, embeddings)
        vectors[f"stage{k}_logits"] = quantised_logits(output, stage.logits)
        if output.features is not None:
            tensor = output.features
            vectors[f"stage{k}_features"] = tensor[0]
    return vectors


def _golden_of_branches(
    boards: Boards, k: int, given: Sequence[Array | None], vectors: dict[str, Array]
) -> tuple[list[Array | None], list[Array | None]]:
    """Run all branches of wide stage `k`, note their vectors, and return their embeddings and features."""
    embeddings: list[Array | None] = []
    features: list[Array | None] = []
    for b, tensor in enumerate(given):
        assert tensor is not None  # noqa: S101 - the manifest's check: a branch has features for its next stage
        output = boards.run(k, tensor, b)
        parts = {"input": tensor, "features": output.features, "embedding": output.embedding}
        vectors |= {f"stage{k}_branch{b}_{part}": array[0] for part, array in parts.items() if array is not None}
        embeddings.append(output.embedding)
        features.append(output.features)
    return embeddings, features


def write_parameters(
    folder: Path, class_means: Sequence[Array] | None = None, gate: Sequence[Array] | None = None
) -> ParametersFile:
    """Write criteria.npz into `folder`: what criteria have learned or measured.

    class_means: per branch of the first wide exit (classes, values), the mean embedding of each class. gate: per
    exit (weights and, last, the bias,). All are written as float32.
    """
    path = folder / PARAMETERS_FILE
    arrays = {f"class_means{b}": np.asarray(of_branch, np.float32) for b, of_branch in enumerate(class_means or ())}
    arrays |= {f"gate{k}": np.asarray(of_exit, np.float32) for k, of_exit in enumerate(gate or ())}
    _write_arrays(path, arrays)
    return ParametersFile(file=PARAMETERS_FILE, sha256=_sha256(path))


def _write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    written: dict[str, Any] = dict(arrays)
    np.savez_compressed(path, **written)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
