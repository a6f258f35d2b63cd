"""Makes up valid messages of every kind, from the declarations of their fields."""

from __future__ import annotations

import random
import string
from typing import Any

from distree.messages.forms import (
    Branches,
    Data,
    Flag,
    Form,
    Id,
    Items,
    Number,
    Packed,
    PackedItems,
    Part,
    Tally,
    Text,
    Whole,
    Word,
)
from distree.messages.layout import REQUIRED, layout_of
from distree.messages.limits import MAX_BRANCHES
from distree.messages.result import Stamp

STAMP = Stamp(time="2026-01-15T09:30:00.123+00:00", clock_synced=True)
IDS = string.ascii_lowercase + string.digits + "-"
LETTERS = string.ascii_letters + string.digits + " .,-äß✓😀"


class Maker:
    """Makes valid messages up, small ones as a rule."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def record(self, cls: type) -> Any:
        """Return a record with random fields; its fault, if it has one, is left to chance no more than a few times."""
        while True:
            given = {}
            for field in layout_of(cls).fields:
                if field.default is REQUIRED or self.rng.random() < 0.5:
                    is_none = field.nullable and self.rng.random() < 0.3
                    given[field.name] = None if is_none else self.value(field.form)
            made = cls(**given)
            if not (hasattr(made, "fault") and made.fault()):
                return made

    def value(self, form: Form) -> Any:
        """Return a random value of a form."""
        rng = self.rng
        match form:
            case Text():
                return "".join(
                    rng.choices(LETTERS, k=rng.choice((0, 1, rng.randint(0, min(form.most, 40)), form.most)))
                )
            case Id():
                return "".join(rng.choices(IDS, k=rng.choice((1, 4, 32))))
            case Whole():
                return rng.choice((form.least, form.most, rng.randint(form.least, min(form.most, form.least + 100))))
            case Number():
                return float(rng.choice((form.least, form.most, rng.uniform(form.least, min(form.most, 1.0)))))
            case Word():
                return rng.choice(list(form.words.values()))
            case Flag():
                return rng.random() < 0.5
            case Data():
                return form.start + rng.randbytes(max(form.least, min(form.most - len(form.start), rng.randint(0, 40))))
            case Branches():
                return tuple(sorted(rng.sample(range(MAX_BRANCHES), k=rng.randint(form.least, 4))))
            case Items():
                most = min(form.most, rng.choice((0, 1, 2, 3)))
                return tuple(self.value(form.item) for _ in range(max(form.least, most)))
            case Tally():
                return {word: self.value(form.count) for word in form.words if rng.random() < 0.5}
            case Part() | Packed():
                return self.record(form.cls)
            case PackedItems():
                return self.value(form.items)
        raise TypeError(f"{form!r}: cannot be made up")
