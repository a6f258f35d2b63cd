"""Boards that are lost and back, as an orchestrator tells it."""

import pytest

from distree.messages.device import DeviceState, DeviceStatus
from distree.messages.events import Severity
from orchestrator.board_watch import BoardWatch
from orchestrator.fleet import Fleet


class Site:
    def __init__(self):
        self.fleet, self.watch = Fleet(None), BoardWatch()

    def says(self, now_s, status, *, boot="b1", retained=False):
        device = self.fleet.saw_state(now_s, DeviceState(device="a", boot=boot, status=status), retained=retained)
        told = self.watch.note(now_s, device, retained=retained)
        return None if told is None else told.what.split(":")[0]


@pytest.fixture
def site():
    return Site()


def test_a_board_is_lost_and_back(site):
    assert site.says(0.0, DeviceStatus.READY) == "has started"
    assert site.says(1.0, DeviceStatus.READY) is None
    assert site.says(10.0, DeviceStatus.LOST) == "lost"
    assert site.says(11.0, DeviceStatus.LOST) is None
    assert site.says(22.0, DeviceStatus.INIT, boot="b2") is None
    assert site.says(22.0, DeviceStatus.READY, boot="b2") == "is back after 12 s"


def test_a_board_that_is_stopped_is_told_once_and_is_no_warning(site):
    site.says(0.0, DeviceStatus.READY)
    assert site.says(1.0, DeviceStatus.DRAINING) == "is stopping"
    assert site.says(2.0, DeviceStatus.DISCONNECTED) is None
    assert site.says(3.0, DeviceStatus.READY, boot="b2") == "is back after 2 s"


def test_a_restart_that_nobody_saw_is_told(site):
    site.says(0.0, DeviceStatus.READY)
    assert site.says(5.0, DeviceStatus.READY, boot="b2") == "has restarted"


def test_what_was_so_before_is_no_news(site):
    assert site.says(0.0, DeviceStatus.READY, retained=True) is None
    assert site.says(1.0, DeviceStatus.READY) is None
    assert site.says(2.0, DeviceStatus.LOST, retained=True) is None


def test_silence_and_its_end_are_told_once(site):
    site.says(0.0, DeviceStatus.READY)
    ((name, told),) = site.watch.silence(40.0, {"a"}, ())
    assert (name, told.severity) == ("a", Severity.WARNING)
    ((_, back),) = site.watch.silence(60.0, (), {"a"})
    assert (back.what, back.severity) == ("telemetry has resumed after 20 s", Severity.INFO)


def test_a_silent_board_that_is_then_lost_is_told_of_its_return_once(site):
    site.says(0.0, DeviceStatus.READY)
    site.watch.silence(40.0, {"a"}, ())
    assert site.says(50.0, DeviceStatus.LOST) == "lost"
    assert site.watch.silence(55.0, (), {"a"}) == []
    assert site.says(70.0, DeviceStatus.READY, boot="b2") == "is back after 30 s"


def test_a_board_that_is_forgotten_starts_anew(site):
    site.says(0.0, DeviceStatus.READY)
    site.watch.forget("a")
    assert site.says(1.0, DeviceStatus.READY) == "has started"
