"""What an origin expects of a board, from what it has measured of it."""

from __future__ import annotations

import pytest

from distree.messages.request import Hop
from distree.node.peer_estimates import FADES_S, PeerEstimate


def measured(compute_s, queue_s=0.0, under_way=0):
    peer = PeerEstimate()
    peer.under_way = under_way
    peer.measured(0.0, Hop(device="b", stage=1, queue_s=queue_s, compute_s=compute_s))
    return peer


USUAL = {1: 0.2, 2: 0.3}


def test_what_was_never_measured_is_expected_to_take_as_long_as_elsewhere():
    assert PeerEstimate().expected_s(0.0, [1], USUAL) == pytest.approx(0.2)
    assert measured(0.1).expected_s(0.0, [1, 2], USUAL) == pytest.approx(0.4)
    assert PeerEstimate().expected_s(0.0, [1], {}) == 0.0


def test_own_work_under_way_comes_first():
    assert measured(0.1, under_way=3).expected_s(0.0, [1], USUAL) == pytest.approx(0.4)
    assert measured(0.1, queue_s=0.5, under_way=3).expected_s(0.0, [1], USUAL) == pytest.approx(0.4 + 0.5 / 4)


def test_a_board_that_was_slow_once_is_tried_again_after_a_while():
    peer = measured(1.0)
    assert peer.expected_s(0.0, [1], USUAL) == pytest.approx(1.0)
    assert peer.expected_s(5 * FADES_S, [1], USUAL) == pytest.approx(0.2, abs=0.01)
    # By one request at a time: with that under way it counts in full.
    peer.under_way = 1
    assert peer.expected_s(5 * FADES_S, [1], USUAL) == pytest.approx(2.0)


def test_at_worst_what_is_ahead_takes_twice_as_long():
    assert measured(0.1, under_way=3).worst_s(0.0, [1], USUAL) == pytest.approx(0.7)
    assert measured(0.1).worst_s(0.0, [1], USUAL) == pytest.approx(0.1)
