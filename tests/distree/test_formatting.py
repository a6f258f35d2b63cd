"""Text for terminals and logs."""

from __future__ import annotations

import doctest
import math

import distree.formatting
from distree.formatting import table, thresholds_text
from distree.thresholds import NEVER


def test_examples():
    assert doctest.testmod(distree.formatting).failed == 0


def test_numbers_are_aligned_on_the_right_unless_one_cell_is_none():
    assert table(["N", "M"], [["1", "1"], ["10", "x"]]).splitlines() == [" N  M", " 1  1", "10  x"]


def test_thresholds_that_disable_their_exit_are_never():
    assert thresholds_text([math.inf, NEVER, 0.123456789]) == "never never 0.123457"
    assert thresholds_text([0.123456789], digits=4) == "0.1235"
