"""What a segment file says of itself, read by the TFLite interpreter; imports no torch."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distree.bundle.manifest import BranchSpec, Macs, StageSpec, TensorSpec
from distree.bundle.runtimes.tflite import load_interpreter
from distree.messages.request import DType
from model_zoo.errors import ExportError

_FLOATS = ("float16", "float32")
_DTYPES: dict[str, DType] = {"int8": "int8", "uint8": "uint8", "float16": "float16", "float32": "float32"}
_SCALE_TOLERANCE = 1e-5  # relative; converters compute the two scales of a boundary separately, in float32
_FEW_BRANCHES = 4


def inspect_segment(path: Path, macs: Macs) -> StageSpec:
    """Read a plain stage's signature: one input, an output `logits` and perhaps an output `features`.

    Returns what a manifest says of it, `macs` included. Raises ExportError for a file with other tensors.
    """
    found = _Signature.of(path)
    return StageSpec(
        segment=path.name,
        sha256=found.sha256,
        bytes=found.bytes,
        input=found.only_input("logits"),
        features=found.outputs.get("features"),
        logits=found.outputs["logits"],
        macs=macs,
    )


def inspect_branch(path: Path, macs: Macs) -> BranchSpec:
    """Read a branch's signature: one input, an output `embedding` and perhaps an output `features`.

    Returns what a manifest says of it, `macs` included. Raises ExportError for a file with other tensors.
    """
    found = _Signature.of(path)
    return BranchSpec(
        segment=path.name,
        sha256=found.sha256,
        bytes=found.bytes,
        input=found.only_input("embedding"),
        features=found.outputs.get("features"),
        embedding=found.outputs["embedding"],
        macs=macs,
    )


def inspect_fusion(
    path: Path, branches: tuple[BranchSpec, ...], fusion_macs: int
) -> tuple[StageSpec, dict[str, TensorSpec]]:
    """Read a fusion head's signature: inputs `embedding0`, …, an output `logits` and perhaps one `features`.

    Returns what a manifest says of the wide stage, and the head's inputs by name. Raises ExportError for a file with
    other tensors.
    """
    found = _Signature.of(path)
    wanted = {f"embedding{b}" for b in range(len(branches))}
    if set(found.inputs) != wanted or "logits" not in found.outputs:
        raise ExportError(f"{path}: has {found}", f"export it with inputs {sorted(wanted)} and an output logits")
    stage = StageSpec(
        segment=path.name,
        sha256=found.sha256,
        bytes=found.bytes,
        input=branches[0].input,
        features=found.outputs.get("features"),
        logits=found.outputs["logits"],
        macs=Macs(
            trunk=sum(branch.macs.trunk for branch in branches),
            exit=sum(branch.macs.exit for branch in branches) + fusion_macs,
        ),
        branches=branches,
    )
    return stage, found.inputs


@dataclass(frozen=True, slots=True)
class _Signature:
    """A segment file and its tensors by name."""

    path: Path
    sha256: str
    bytes: int
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]

    @classmethod
    def of(cls, path: Path) -> _Signature:
        content = path.read_bytes()
        interpreter_class, _ = load_interpreter()
        runner = interpreter_class(model_content=content, num_threads=1).get_signature_runner()
        return cls(
            path=path,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            inputs={name: _tensor_spec(name, detail) for name, detail in runner.get_input_details().items()},
            outputs={name: _tensor_spec(name, detail) for name, detail in runner.get_output_details().items()},
        )

    def only_input(self, output: str) -> TensorSpec:
        """Return the one input; ExportError where there are more, or no such output."""
        if len(self.inputs) != 1 or output not in self.outputs:
            raise ExportError(f"{self.path}: has {self}", f"export it with one input and an output {output}")
        (tensor,) = self.inputs.values()
        return tensor

    def __str__(self) -> str:
        return f"inputs {sorted(self.inputs)} and outputs {sorted(self.outputs)}"


def _tensor_spec(name: str, detail: dict[str, Any]) -> TensorSpec:
    dtype = np.dtype(detail["dtype"]).name
    if dtype not in _DTYPES:
        raise ExportError(f"tensor {name} is {dtype}", f"only {', '.join(_DTYPES)} can be served")
    shape = tuple(int(size) for size in detail["shape"])
    if dtype in _FLOATS:
        return TensorSpec(name=name, dtype=_DTYPES[dtype], shape=shape)
    scale, zero_point = detail["quantization"]
    return TensorSpec(name=name, dtype=_DTYPES[dtype], shape=shape, scale=float(scale), zero_point=int(zero_point))


def check_boundaries(stages: tuple[StageSpec, ...]) -> None:
    """Raise ExportError unless each stage's features are, with scale and zero point, the next one's input.

    Features travel as int8 with no scale beside them, so both sides must read the same value from the same
    byte. Between two wide stages that holds for each branch's own; one tensor reaches all branches of the first.
    """
    for before, after in itertools.pairwise(stages):
        if before.branches and after.branches:
            pairs = zip(before.branches, after.branches, strict=True)
            for one, other in pairs:
                _check_boundary(one, other)
        else:
            for taker in after.branches or (after,):
                _check_boundary(before, taker)
    for stage in stages[:1]:
        for branch in stage.branches:
            if not same_values(stage.input, branch.input):
                raise ExportError(
                    f"{branch.segment} takes {branch.input}, but all branches receive {stage.input}",
                    "calibrate all branches on the same images",
                )


def _check_boundary(before: StageSpec | BranchSpec, after: StageSpec | BranchSpec) -> None:
    if before.features is None or not same_values(before.features, after.input):
        raise ExportError(
            f"{before.segment} gives {before.features}, but {after.segment} takes {after.input}, so features would "
            "change their meaning between boards",
            "calibrate both on the same images",
        )


def same_values(one: TensorSpec, other: TensorSpec) -> bool:
    """Whether the same bytes mean the same numbers in both."""
    close = abs(one.scale - other.scale) <= _SCALE_TOLERANCE * max(one.scale, other.scale)
    return close and (one.dtype, one.shape, one.zero_point) == (other.dtype, other.shape, other.zero_point)


def missing_sets(branches: int) -> tuple[tuple[int, ...], ...]:
    """Return the sets of missing branches that are worth preparing for: all, of few branches; else each alone."""
    sizes = range(1, branches) if branches <= _FEW_BRANCHES else (1,)
    return tuple(missing for size in sizes for missing in itertools.combinations(range(branches), size))
