"""What is wrong is reported once, and not with every message or at every turn. Lines are returned, not logged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping

from distree.errors import Problem, RemoteProtocolError
from distree.printable import printable
from orchestrator.fleet import Device

MAX_REPORTED = 100
"""Topics whose first refusal for a reason is reported; beyond them, refusals for that reason are only counted."""

SHARED_ID_S = 600.0
"""Period in which runs that take turns are counted; a shared id is reported once in it."""

SHARED_ID_RETURNS = 4
"""Returns to an earlier run by which an id counts as shared. A will that comes after the first message of the next run
makes two: its own, and the one by which the board corrects it; and a board rarely dies twice within SHARED_ID_S."""


class RefusedMessages:
    """Messages that broke the protocol; `counts` has how many, by reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._reported: dict[str, set[str]] = {}
        """The topics of each reason."""

    def add(self, topic: str, error: RemoteProtocolError, count: int = 1) -> str | None:
        """Count a message, or `count` of them; return a line to log for the first with its topic and reason."""
        self.counts[error.reason] += count
        shown = printable(topic)
        reported = self._reported.setdefault(error.reason, set())
        if shown in reported or len(reported) >= MAX_REPORTED:
            return None
        reported.add(shown)
        return f"refused a message on {shown}: {printable(str(error), 400)} (logged once)"


class OngoingProblems:
    """What does not work at present, by task of the orchestrator."""

    def __init__(self) -> None:
        self._problems: dict[str, Problem | str | None] = {}

    def note(self, task: str, problem: Problem | str | None) -> str | None:
        """Note how a task went, None for well; return a line to log if its problem is not the one it had before."""
        before = self._problems.get(task)
        self._problems[task] = problem
        return f"{task}: {problem}" if problem is not None and problem != before else None


class PersistentProblems:
    """Problems that last from one check to the next: while boards start, much is wrong for a moment."""

    def __init__(self) -> None:
        self._is_reported: dict[Hashable, bool] = {}

    def note(self, problems: Mapping[Hashable, str]) -> list[str]:
        """Note all that is wrong at a check; return a line for each problem that the last one found too, once."""
        before = self._is_reported
        self._is_reported = {problem: problem in before for problem in problems}
        return [line for problem, line in problems.items() if before.get(problem) is False]


class SharedIds:
    """Boards that share an id, found by how often the fleet heard a run again that another had replaced."""

    def __init__(self) -> None:
        self._counted: dict[str, tuple[float, int, int]] = {}
        """Since when returns are counted, how many there were then, and how many at the last message."""

    def note(self, now_s: float, device: Device) -> str | None:
        """Note a device after each of its messages, by one monotonic clock; return a line to log, if any."""
        since_s, before, last = self._counted.get(device.device, (now_s, 0, 0))
        if last == before or now_s - since_s > SHARED_ID_S:
            # The period begins with the first return.
            since_s, before = now_s, last
        self._counted[device.device] = since_s, before, device.returns
        return shared_id_text(device) if last < before + SHARED_ID_RETURNS <= device.returns else None

    def forget(self, device: str) -> None:
        """Drop a device that is gone."""
        self._counted.pop(device, None)


def shared_id_text(device: Device) -> str:
    """Say that two boards use the same id, and what to do about it."""
    boots = ", ".join(sorted(printable(run.boot) for run in (device, *device.earlier[:1])))
    return str(Problem(f"two boards use the id {device.device} (boots {boots})", "give one of them another id"))
