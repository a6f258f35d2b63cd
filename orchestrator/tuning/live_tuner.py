"""The contract of a live tuner: an algorithm that learns a pipeline's thresholds from audits while the site runs.

To add one, write a class that fulfils it into a file of its own in `tuners/` and name it in the table in
`tuners/__init__.py`. Configuration, status, explain, metrics, restarts and `distree tune` then know it, and
tests/orchestrator/tuning/test_live_tuners.py holds it to the contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from distree.record import record
from orchestrator.tuning.samples import AuditedInput, Vector


@record
class TunerSetup:
    """What a tuner is made from.

    `costs` are multiply-accumulates of an input that leaves at each exit, the last included: two or more, growing.
    `accuracy_drop` and `confidence` are the goal's, both between 0 and 1. `thresholds` were configured or calibrated
    with the bundle. `earlier` are audits of other inputs, which a tuner may prepare from instead of gathering some
    first. `seed` settles whatever is random.
    """

    costs: Vector
    accuracy_drop: float
    confidence: float
    thresholds: Vector
    earlier: tuple[AuditedInput, ...] = ()
    seed: int = 0


@record
class Remark:
    """A line of an explanation for people, under a label of one word."""

    label: str
    text: str


@record
class Figure:
    """A number of an explanation for programs; `name` is in snake case, `meaning` one sentence."""

    name: str
    value: float
    meaning: str


@record
class TunerExplanation:
    """Why a tuner wants the `thresholds` that it wants, which stand here as plans carry them.

    `audits` is how many audits they rest on, `gathering` how many more the tuner needs before it can let any input
    leave early (0 once it can), `alarms` how often it withdrew thresholds because inputs had changed. `progress` is
    one line; `remarks` are for people and `figures` for programs, in the order in which they are shown.
    """

    thresholds: Vector
    audits: int
    gathering: int
    alarms: int
    progress: str
    remarks: tuple[Remark, ...] = ()
    figures: tuple[Figure, ...] = ()


class LiveTuner(ABC):
    """Learns thresholds of all exits but the last, one audit at a time, in bounded memory.

    Thresholds are finite, or `NEVER` for an exit that is disabled. Every change of them becomes a plan that every board
    receives, so a tuner changes them rarely: at most once in ten audits on average.
    """

    name: ClassVar[str]
    """What `goal.tuner` calls it."""

    has_guarantee: ClassVar[bool]
    """Whether the accuracy drop stays within the goal with the goal's confidence."""

    offers_choice: ClassVar[bool] = False
    """Whether `choices` may hold several vectors, so that goals for latency, energy and traffic can be weighed."""

    uses_given_thresholds: ClassVar[bool] = False
    """Whether it starts from `TunerSetup.thresholds`, so that a pipeline may have both `thresholds` and a goal."""

    @classmethod
    @abstractmethod
    def create(cls, setup: TunerSetup) -> LiveTuner:
        """Make a tuner that has heard nothing yet."""

    @property
    @abstractmethod
    def choices(self) -> Sequence[Vector]:
        """The vectors that may be in force now, from the safest to the riskiest; never empty."""

    @property
    def thresholds(self) -> Vector:
        """The vector that the tuner itself wants: the last of its choices."""
        return self.choices[-1]

    @property
    def recent(self) -> tuple[AuditedInput, ...]:
        """Audits by which to weigh several choices, the oldest first."""
        return ()

    @property
    def alarms(self) -> int:
        """How often thresholds were withdrawn because inputs had changed."""
        return 0

    @abstractmethod
    def observe(self, audit: AuditedInput) -> None:
        """Learn from one audit, which may be a lost one."""

    @abstractmethod
    def explain(self) -> TunerExplanation:
        """Return why the thresholds are what they are."""

    @abstractmethod
    def snapshot(self) -> dict[str, Any]:
        """Return plain data (numbers, strings, lists, dicts) from which `restore` goes on exactly."""

    @abstractmethod
    def restore(self, data: dict[str, Any]) -> None:
        """Go on where a tuner of the same setup stood; `data` is a snapshot that went through JSON.

        Raises ValueError, LookupError or TypeError for data of another setup or of no tuner, and is then unchanged.
        """
