"""What tuners learn from: audited inputs, and what thresholds would have done to them.

An audited input was run to the last exit, so that what every exit said of it is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from distree.exits_taken import exits_taken
from distree.thresholds import NEVER

Vector: TypeAlias = "tuple[float, ...]"
"""Thresholds of all exits but the last."""


@dataclass(frozen=True, slots=True)
class AuditedInput:
    """What every exit said of one input. scores: of all exits but the last. predictions: of all exits, as class ids.

    `label` is the true class, None where it is unknown. An audit that was started and never came back has `lost` set
    and says nothing else; it counts as the worst case.
    """

    scores: tuple[float, ...] = ()
    predictions: tuple[int, ...] = ()
    label: int | None = None
    lost: bool = False

    def losses(self) -> tuple[float, ...]:
        """Return the loss of leaving at each exit, 0 or 1; it is 0 at the last one.

        Without a label: the exit disagrees with the last one. With one: the last exit was right and this one is
        not. The mean of either bounds the accuracy drop against the last exit.
        """
        *early, last = self.predictions
        if self.label is not None:
            return (*(float(last == self.label != guess) for guess in early), 0.0)
        return (*(float(guess != last) for guess in early), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An audited input with the origin and the request that it came from, and the branches that were not heard."""

    origin: str
    request: str
    missing: tuple[int, ...]
    audit: AuditedInput


def losses_of(audit: AuditedInput, vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the loss of an audited input under each of `vectors` (n, exits − 1): (n,) of 0 and 1.

    A lost audit is a loss under every vector that enables at least one early exit.
    """
    if audit.lost:
        return np.asarray((vectors < NEVER).any(axis=1), np.float64)
    of_exits = audit.losses()
    if not any(of_exits):  # True of most, and the quick way out.
        return np.zeros(len(vectors))
    losses: npt.NDArray[np.float64] = np.asarray(of_exits)[exits_taken(audit.scores, vectors)]
    return losses
