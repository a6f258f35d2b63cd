"""Files in a folder through outages of the broker and kills of the agent: short forms of `benchmarks.folder`."""

from __future__ import annotations

import pytest

from benchmarks.folder import kills, overwrite, stand

pytestmark = pytest.mark.usefixtures("mosquitto_only")


@pytest.mark.parametrize("rename", [False, True], ids=["written in place", "renamed into place"])
def test_each_picture_of_a_name_is_answered_or_counted_and_none_is_moved_unread(rename):
    with stand() as bench:
        found = overwrite(bench, rename=rename, seconds=8.0, outage_s=3.0, rate_hz=40.0)
    assert found.written == 320
    assert found.last_answered
    assert found.answered > 200
    assert (found.unexplained, found.moved_unread, found.twice_differently) == (0, 0, 0), found


def test_an_agent_that_is_killed_loses_no_file_and_gives_no_two_answers_that_differ():
    with stand(quiet_s=0.3) as bench:
        found = kills(bench, count=400, times=5)
    assert (found.lost, found.left, found.answered, found.twice_differently) == (0, 0, 400, 0), found
