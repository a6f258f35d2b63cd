"""`record` keeps the promises of a frozen, slotted, keyword-only dataclass."""

from __future__ import annotations

import dataclasses
import doctest
import typing

import pytest

import distree.record
from distree.record import record


@record
class Box:
    """A box."""

    width: float
    height: float = 2.0
    tags: tuple[str, ...] = dataclasses.field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.width < 0:
            raise ValueError("width: must not be negative")

    @property
    def area(self) -> float:
        return self.width * self.height


def test_it_is_a_dataclass():
    box = Box(width=3.0)
    assert dataclasses.asdict(box) == {"width": 3.0, "height": 2.0, "tags": ()}
    assert dataclasses.replace(box, height=1.0) == Box(width=3.0, height=1.0)
    assert [field.name for field in dataclasses.fields(Box)] == ["width", "height", "tags"]
    assert typing.get_type_hints(Box)["width"] is float
    assert (box.area, Box.__doc__) == (6.0, "A box.")


def test_it_is_frozen_and_slotted():
    box = Box(width=3.0)
    for change in (lambda: setattr(box, "width", 1.0), lambda: setattr(box, "new", 1), lambda: delattr(box, "width")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()
    assert not hasattr(box, "__dict__")
    assert box.width == 3.0


def test_arguments_are_checked():
    for arguments in ({}, {"width": 1.0, "depth": 2.0}):
        with pytest.raises(TypeError):
            Box(**arguments)
    with pytest.raises(TypeError):
        Box(1.0)
    with pytest.raises(ValueError, match="width"):
        Box(width=-1.0)


def test_equality_hash_and_text():
    assert Box(width=1.0) == Box(width=1.0)
    assert Box(width=1.0) != Box(width=2.0)
    assert Box(width=1.0) != (1.0, 2.0, ())
    assert len({Box(width=1.0), Box(width=1.0), Box(width=2.0)}) == 2
    assert repr(Box(width=1.0)) == "Box(width=1.0, height=2.0, tags=())"


def test_examples():
    assert doctest.testmod(distree.record).failed == 0
