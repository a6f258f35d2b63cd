"""When boards are asked to announce themselves again."""

from __future__ import annotations

from orchestrator.announcement_requests import PAUSE_S, WAIT_S, AnnouncementRequester


def test_boards_are_asked_until_one_answers_and_only_where_nothing_is_retained():
    requester = AnnouncementRequester()
    asked = [requester.step(0.0)]
    requester.connected(10.0)
    requester.heard(retained=False)  # A board that happens to start.
    asked += [requester.step(10.0 + at_s) for at_s in (0.5, WAIT_S, 2.0, WAIT_S + PAUSE_S)]
    requester.heard(retained=False)
    asked.append(requester.step(100.0))
    assert asked == [False, False, True, False, True, False]
    requester.connected(200.0)
    requester.heard(retained=True)
    assert not requester.step(300.0)
    requester.connected(400.0)
    requester.disconnected()
    assert not requester.step(500.0)
