"""How often a property is tried. Examples are drawn anew in each run, so what counts is how many all runs try together:
`make test` tries fewer, to be run often, and `make test-thorough` all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings

T = TypeVar("T")

SHARE = 0.4


def register() -> None:
    """Make the profiles of `--hypothesis-profile`: `thorough`, and the usual one."""
    # No deadline: it would measure how busy the machine is.
    settings.register_profile("thorough", max_examples=100, deadline=None, derandomize=False)
    settings.register_profile("usual", max_examples=often(100), deadline=None, derandomize=False)
    settings.load_profile("usual")


def often(count: int) -> int:
    """Return `count` in a thorough run, and a share of it else."""
    return count if is_thorough() else max(1, round(SHARE * count))


def is_thorough() -> bool:
    """Whether this is `make test-thorough`."""
    return settings.get_current_profile_name() == "thorough"


def some(items: Sequence[T], every: int) -> Sequence[T]:
    """Return all items in a thorough run, and one in `every` else."""
    return items if is_thorough() else items[::every]
