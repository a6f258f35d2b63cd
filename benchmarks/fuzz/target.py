"""What is fuzzed: a target has forms, and a form has a reader of the product and good bytes for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distree.errors import DistreeError

Unit = Literal["messages", "files"]
Damage = Literal["bytes", "packed", "json", "text"]
"""How bytes are made bad, beside flipping, cutting and the like: values of MessagePack or JSON are replaced at any
depth, or numbers and words of a text."""


@dataclass(frozen=True, slots=True)
class Form:
    """One kind of message or file.

    fresh: returns a good one. read: what the product does with it; it may check what came of it by assertions.
    """

    name: str
    fresh: Callable[[random.Random], bytes]
    read: Callable[[bytes], object]
    damage: Damage = "bytes"


@dataclass(frozen=True, slots=True)
class Target:
    """Forms that belong together, fuzzed in one process.

    forms: returns them; it is given a folder of its own. share: how many of all messages, or files, are for this
    target, beside the shares of the others. refuses: what a reader may raise. most_mib: most memory that reading one
    may take. in_child: the product itself reads these in a child process, so a crash there is one of the product's own
    refusals.
    """

    name: str
    unit: Unit
    share: float
    forms: Callable[[Path], Sequence[Form]]
    most_mib: int
    refuses: tuple[type[Exception], ...] = (DistreeError,)
    in_child: bool = False


def constant(content: bytes) -> Callable[[random.Random], bytes]:
    """Return what gives the same bytes each time."""
    return lambda _rng: content


def from_file(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    """Return a reader of bytes that writes them to `path`, and then calls `read`, which finds them there."""

    def write_and_read(content: bytes) -> object:
        path.write_bytes(content)
        return read()

    return write_and_read
