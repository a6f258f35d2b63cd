"""One hierarchy of errors; the class says whose fault it is and who can mend it."""

from __future__ import annotations


class DistreeError(Exception):
    """Anything that DistrEE reports to a person: one line that says what, where and how to mend it."""


class ConfigError(DistreeError):
    """A configuration file or option is wrong; the process ends with exit status 2."""


class BundleError(DistreeError):
    """A bundle cannot be used: missing, tampered with, or not what its manifest says."""


class RuntimeUnavailableError(DistreeError):
    """The interpreter cannot be loaded, or gives wrong answers on this machine."""


class BrokerError(DistreeError):
    """The broker cannot be reached or refuses this client."""


class InputError(DistreeError):
    """An input is not what the bundle takes: another dtype or shape, or a file of another kind. Nothing was sent."""


class OverloadError(DistreeError):
    """There was no room for an input in the time that its sender would wait; nothing was sent, so try it again."""


class ClosedError(DistreeError):
    """An Origin or a Results was used outside of its `with` block, or ended before an input was answered."""


class ResultTimeoutError(DistreeError, TimeoutError):
    """No result came in the time that its reader would wait."""


class ProtocolError(DistreeError):
    """A message breaks the protocol; `reason` is a short word for counters and dead letters."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class RemoteProtocolError(ProtocolError):
    """A peer sent what it must not send. Counted, dead-lettered, dropped; never fatal."""


class LocalProtocolError(ProtocolError):
    """This process was about to send what it must not send: a fault of ours."""
