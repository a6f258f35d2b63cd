"""How people write thresholds."""

from __future__ import annotations

import doctest
import math

import pytest

from distree import thresholds
from distree.formatting import thresholds_text
from distree.thresholds import NEVER, parse_threshold, plain_thresholds


def test_the_examples_run():
    failed, tried = doctest.testmod(thresholds)
    assert (failed, tried > 0) == (0, True)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e301", "", "Never", "0.9x"])
def test_what_is_no_threshold_is_refused(text):
    with pytest.raises(ValueError):
        parse_threshold(text)


def test_what_was_written_is_read_again():
    for value in (0.0, -1.5, 1e299, NEVER):
        assert parse_threshold(thresholds_text([value])) == value


def test_nobody_is_shown_the_number_that_stands_for_never():
    assert thresholds_text([NEVER, math.inf]) == "never never"
    assert plain_thresholds((0.5, NEVER)) == [0.5, "never"]
