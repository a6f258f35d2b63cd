"""Which boards are lost, and which are back: told once each, by what their states and their silence say."""

from __future__ import annotations

from collections.abc import Iterable

from distree.formatting import ago
from distree.messages.device import DeviceStatus
from distree.messages.events import EventKind, Severity
from distree.node import Tell
from orchestrator.fleet import Device

_GONE = {
    DeviceStatus.LOST: Tell(
        kind=EventKind.BOARD,
        what="lost: its connection to the broker ended without a goodbye",
        remedy="see whether it has power and network; its log says more",
    ),
    DeviceStatus.DRAINING: Tell(kind=EventKind.BOARD, what="is stopping", severity=Severity.INFO),
    DeviceStatus.DISCONNECTED: Tell(kind=EventKind.BOARD, what="stopped", severity=Severity.INFO),
}
_SILENT = Tell(
    kind=EventKind.BOARD,
    what="no more telemetry, although the broker still counts it as connected",
    remedy="see whether it is overloaded or its network is bad",
)


class BoardWatch:
    """Remembers what was last said of each board; `now_s` is of one monotonic clock."""

    def __init__(self) -> None:
        self._said: dict[str, DeviceStatus] = {}
        self._boots: dict[str, str] = {}
        self._gone_at_s: dict[str, float] = {}

    def note(self, now_s: float, device: Device, *, retained: bool) -> Tell | None:
        """Take in a board's state; return what has changed, None for nothing or for what was so before we came."""
        name, status = device.device, device.status
        before, boot = self._said.get(name), self._boots.get(name)
        if status is None or status is DeviceStatus.INIT or (before, boot) == (status, device.boot):
            return None
        self._said[name], self._boots[name] = status, device.boot
        if status is DeviceStatus.READY:
            gone_at_s = self._gone_at_s.pop(name, None)
            if retained:
                return None
            if before is None:
                what = "has started"
            elif gone_at_s is None:
                what = "has restarted"
            else:
                what = f"is back after {ago(now_s - gone_at_s)}"
            return Tell(kind=EventKind.BOARD, what=what, severity=Severity.INFO)
        self._gone_at_s.setdefault(name, now_s)
        # Its last message before it stopped says that it is stopping: once is enough.
        if retained or (before is DeviceStatus.DRAINING and status is DeviceStatus.DISCONNECTED):
            return None
        return _GONE[status]

    def silence(self, now_s: float, silent: Iterable[str], heard: Iterable[str]) -> list[tuple[str, Tell]]:
        """Take in which boards fell silent and which are heard again; return what to say of each."""
        told = []
        for name in sorted(silent):
            self._gone_at_s.setdefault(name, now_s)
            told.append((name, _SILENT))
        for name in sorted(heard):
            # One that said that it is lost, or ready again, has been told of.
            gone_at_s = self._gone_at_s.pop(name, None) if self._said.get(name) is DeviceStatus.READY else None
            if gone_at_s is not None:
                what = f"telemetry has resumed after {ago(now_s - gone_at_s)}"
                told.append((name, Tell(kind=EventKind.BOARD, what=what, severity=Severity.INFO)))
        return told

    def forget(self, device: str) -> None:
        """Drop a board whose retained state was cleared."""
        for book in (self._said, self._boots, self._gone_at_s):
            book.pop(device, None)
