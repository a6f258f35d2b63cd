"""Audits as tuners see them: what every exit said of an input that was run to the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from distree.criteria import NEVER
from distree.thresholds import exits_taken

Vector: TypeAlias = "tuple[float, ...]"
"""Thresholds of all exits but the last."""


@dataclass(frozen=True, slots=True)
class Audit:
    """One audited input. scores: of all exits but the last. predictions: of all exits. label: the truth, if known.

    An audit that was begun and never came back has `lost` set and says nothing else; it counts as the worst.
    """

    scores: tuple[float, ...] = ()
    predictions: tuple[int, ...] = ()
    label: int | None = None
    lost: bool = False

    def losses(self) -> tuple[float, ...]:
        """What leaving at each exit costs, 0 or 1; nothing at the last one.

        Without a label: the exit disagrees with the last one. With one: the last exit was right and this one is
        not. The mean of either bounds the accuracy drop against the last exit.
        """
        *early, last = self.predictions
        if self.label is not None:
            return (*(float(last == self.label != guess) for guess in early), 0.0)
        return (*(float(guess != last) for guess in early), 0.0)


def losses_of(audit: Audit, vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the loss of an audit under each of `vectors` (n, exits − 1): (n,) of 0 and 1.

    A lost audit is a loss under every vector by which somebody could leave early.
    """
    if audit.lost:
        return np.asarray((vectors < NEVER).any(axis=1), np.float64)
    of_exits = audit.losses()
    if not any(of_exits):  # of most audits, which need no more than this
        return np.zeros(len(vectors))
    losses: npt.NDArray[np.float64] = np.asarray(of_exits)[exits_taken(audit.scores, vectors)]
    return losses
