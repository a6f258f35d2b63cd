"""One hierarchy of errors; the class says whose fault it is and who can fix it.

Every error has two parts, and so has everything else that is wrong and is not raised (see `Problem`): `what` says
what is wrong, where, and what was received; `remedy` says how to fix it, as an imperative sentence without a full
stop. As text they are joined in one way: "WHAT; REMEDY". Nobody has to take that text apart: whoever shows the two
separately, as `distree doctor` does, takes the fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """What is wrong, and how to fix it; `remedy` is "" only where nothing can be done.

    >>> str(Problem("nothing listens on hub:1883", "start the broker"))
    'nothing listens on hub:1883; start the broker'
    """

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what

    def at(self, where: str) -> Problem:
        """Return the same problem with the place where it was found."""
        return Problem(f"{where}: {self.what}", self.remedy)


CHECK_PATH = "check the path and its permissions"
"""The remedy for a file that cannot be opened."""

BUILD_AGAIN = "build the bundle again"
COPY_AGAIN = "copy the whole bundle to this board again"
SAME_BUNDLE = "put the same bundle on all boards of the pipeline"
"""The remedies for a bundle that was made wrongly, for one that was damaged later, and for boards that differ."""

RESTRICT = "if it keeps happening, restrict who may publish there in the broker's ACL"
"""The remedy for a message that its sender had no business to send: a late one, or a forged one."""


class DistreeError(Exception):
    """Anything that DistrEE reports to a person. Raised as `SomeError(what, remedy)`, or `SomeError(*problem)`."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    @property
    def problem(self) -> Problem:
        """The two parts, for whoever passes them on without raising them."""
        return Problem(self.what, self.remedy)

    def __str__(self) -> str:
        return str(self.problem)


class ConfigError(DistreeError):
    """A configuration file or option is wrong; the process ends with exit status 2."""


class ConfigFileError(ConfigError):
    """Several things are wrong with a configuration file; `problems` has them all, and the text has a line for each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)), "")
        self.problems = tuple(problems)
        self.args = (self.problems,)  # what pickle and copy call the class with


class BundleError(DistreeError):
    """A bundle cannot be used: missing, tampered with, or not what its manifest says."""


class RuntimeUnavailableError(DistreeError):
    """The interpreter cannot be loaded, or gives wrong answers on this machine."""


class BrokerError(DistreeError):
    """The broker cannot be reached or refuses this client."""


class InputError(DistreeError):
    """An input is not what the bundle expects: another dtype or shape, or a file of another kind. Nothing was sent."""


class OverloadError(DistreeError):
    """There was no room for an input within the time its sender was willing to wait. Nothing was sent: try again."""


class ClosedError(DistreeError):
    """An Origin or a Results was used outside its `with` block, or closed before an input was answered."""


class ResultTimeoutError(DistreeError, TimeoutError):
    """No result arrived within the time its reader was willing to wait."""


class ProtocolError(DistreeError):
    """A message breaks the protocol; `reason` is a short word for counters and dead letters, `detail` the rest."""

    def __init__(self, reason: str, detail: str, remedy: str = "") -> None:
        super().__init__(f"{reason}: {detail}", remedy)
        self.args = (reason, detail, remedy)  # what pickle and copy call the class with
        self.reason = reason
        self.detail = detail


class RemoteProtocolError(ProtocolError):
    """A peer sent something it must not send. Counted, dead-lettered, dropped; never fatal."""


class LocalProtocolError(ProtocolError):
    """This process was about to send something that it must not send, or that the broker does not accept."""
