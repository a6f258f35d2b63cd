"""Writes bundle.yaml and the golden vectors; `distree.bundle` reads them."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from distree.bundle import MANIFEST, Bundle, Golden, Manifest
from distree.preprocess import Preprocessor
from distree.runtimes.tflite import TFLiteRuntime

GOLDEN_FILE = "golden.npz"
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
_ONE_LINE = frozenset({"input", "features", "logits", "macs", "golden"})


def _plain(value: Any, name: str = "") -> Any:
    if dataclasses.is_dataclass(value):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        mapping = {key: _plain(part, key) for key, part in fields if part is not None}
        return _OneLine(mapping) if name in _ONE_LINE else mapping
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value


def write_golden(bundle: Bundle, images: npt.NDArray[np.uint8]) -> Golden:
    """Run the chain on a few raw inputs (n, *input shape) and write golden.npz into the bundle's folder.

    Its keys, each with n in front: stage{k}_input, stage{k}_features (but for the last stage) and
    stage{k}_logits, all as the segment's tensors are, quantised.
    """
    preprocessor, runtime = Preprocessor(bundle.manifest), TFLiteRuntime(bundle)
    vectors: dict[str, list[npt.NDArray[Any]]] = {}
    for image in images:
        tensor = preprocessor.tensor(image)
        for k, stage in enumerate(bundle.stages):
            output = runtime.run(k, tensor)
            # The runtime dequantises logits; the division gives back the very integer.
            steps = np.rint(np.asarray(output.logits) / stage.logits.scale) + stage.logits.zero_point
            vectors.setdefault(f"stage{k}_input", []).append(tensor[0])
            vectors.setdefault(f"stage{k}_logits", []).append(steps.astype(stage.logits.dtype))
            if output.features is not None:
                tensor = output.features
                vectors.setdefault(f"stage{k}_features", []).append(tensor[0])
    path = bundle.path / GOLDEN_FILE
    arrays: dict[str, Any] = {key: np.stack(rows) for key, rows in vectors.items()}
    np.savez_compressed(path, **arrays)
    return Golden(file=GOLDEN_FILE, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), tolerance=GOLDEN_TOLERANCE)
