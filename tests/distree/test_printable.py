"""Text from outside on a line of a log: printable, and cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distree.printable import MOST, MOST_SHOWN, printable, printable_lines, quoted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("", ""),
        ("grün", "grün"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("lone \udce9", r"lone \udce9"),
        ("a" * MOST, "a" * MOST),
        ("a" * (MOST + 1), "a" * (MOST - 1) + "…"),
        ("\n" * 60_000, r"\n" * ((MOST - 1) // 2) + "\\…"),
    ],
)
def test_what_is_shown(text, shown):
    assert printable(text) == shown
    assert quoted(text) == f"'{shown}'"


@given(st.text(alphabet=st.characters(), max_size=300), st.integers(2, 200))
def test_it_is_one_printable_line_of_bounded_length(text, most):
    shown = printable(text, most)
    assert shown.isprintable()
    assert len(shown) <= most
    assert printable(shown, most) == shown


def test_an_error_of_several_lines_keeps_them():
    told = printable_lines("a\x1b[2J\n" + "b" * 9000)
    first, second = told.split("\n")
    assert first == r"a\x1b[2J"
    assert len(second) == MOST_SHOWN
