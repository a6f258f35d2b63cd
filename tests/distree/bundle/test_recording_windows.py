"""Windows of recordings and of streams: the same ones, however the stream is cut into pieces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distree.bundle.manifest import WindowRule
from distree.bundle.windows import WindowBuffer, count_of, cut, request_of
from distree.errors import RemoteProtocolError


@pytest.mark.parametrize(
    ("count", "hop", "starts"), [(8, 4, [0, 4]), (9, 4, [0, 4]), (8, 2, [0, 2, 4]), (4, 1, [0]), (7, 3, [0, 3])]
)
def test_windows_begin_every_hop_and_are_whole(count, hop, starts):
    recording = np.arange(2 * count).reshape(count, 2)
    windows = cut(recording, 4, WindowRule(hop=hop))
    assert [window.start for window in windows] == starts
    for window in windows:
        np.testing.assert_array_equal(window.values, recording[window.start : window.start + 4])


@given(st.integers(1, 12), st.integers(1, 12), st.lists(st.integers(0, 30), max_size=12), st.sampled_from([(), (3,)]))
def test_a_stream_in_pieces_has_the_windows_of_the_whole(length, hop, sizes, channels):
    whole = np.arange(sum(sizes) * max(1, sum(channels))).reshape(sum(sizes), *channels)
    buffer, streamed = WindowBuffer(length, hop), []
    for end, size in zip(np.cumsum(sizes, dtype=int), sizes, strict=True):
        streamed += list(buffer.push(whole[end - size : end]))
    starts = range(0, len(whole) - length + 1, hop)
    assert len(streamed) == len(starts)
    for start, window in zip(starts, streamed, strict=True):
        np.testing.assert_array_equal(window, whole[start : start + length])


def test_short_and_empty_recordings():
    with pytest.raises(RemoteProtocolError, match="the recording has no samples; a window has 4"):
        cut(np.empty(0), 4, WindowRule(short="pad"))
    with pytest.raises(
        RemoteProtocolError, match="the recording has 3 samples, fewer than a window, which has 4; record more"
    ):
        cut(np.arange(3), 4, WindowRule(hop=4))
    (window,) = cut(np.arange(6).reshape(3, 2), 4, WindowRule(short="pad"))
    assert window.values.tolist() == [[0, 1], [2, 3], [4, 5], [0, 0]]


@pytest.mark.parametrize("request_id", ["clip", "a~b", "~", "clip~x/y", "clip~2/", "clip~3"])
def test_request_ids_of_windows_lead_back_to_that_of_their_file(request_id):
    assert count_of(request_id) == (request_id, 1)
    assert request_of(request_id, 1, 1) == request_id
    assert count_of(request_of(request_id, 3, 7)) == (request_id, 7)
