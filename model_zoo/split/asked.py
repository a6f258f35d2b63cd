"""The options of one split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_zoo.split.declared import DeclaredInput
from model_zoo.split.thresholds import Rule


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of `distree zoo split`, checked as far as one can without opening a file.

    data: inputs; without labels, the network's own answers count as correct. declared: what the inputs are, if the
    network's input tensor does not say: for recordings and features. unlabelled: more inputs for the heads. test:
    inputs that are opened once, at the end. seen: whether the network was trained on `data`. value_range: the value of
    `--range`. max_drop: a fraction.
    """

    model: Path
    name: str
    data: Path | None = None
    declared: DeclaredInput | None = None
    unlabelled: Path | None = None
    test: Path | None = None
    labels: tuple[str, ...] = ()
    list_only: bool = False
    stages: int | None = None
    after: tuple[int, ...] = ()
    max_drop: float = 0.01
    rule: Rule = "bound"
    seen: bool = False
    value_range: str | None = None
    hidden: int = 128
    seed: int = 1
    licence: str = "not stated"
    description: str = ""
    force: bool = False
