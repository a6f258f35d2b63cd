"""What exits many inputs take, for whoever judges or tunes thresholds; a node decides one input at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def exits_taken(scores: npt.ArrayLike, thresholds: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Return the first exit whose score reaches its threshold, else the last.

    scores: (…, exits) or (…, exits − 1), for the score of the last exit does not matter. thresholds: (…, exits − 1).
    The leading axes are broadcast; returns (…).

    >>> exits_taken([[0.5, 0.9, 0.1], [0.4, 0.2, 0.1]], [0.5, 0.9]).tolist()
    [0, 2]
    """
    wanted = np.asarray(thresholds, np.float64)
    reached = np.asarray(scores)[..., : wanted.shape[-1]] >= wanted
    last = np.ones((*reached.shape[:-1], 1), np.bool_)
    taken: npt.NDArray[np.intp] = np.concatenate([reached, last], axis=-1).argmax(axis=-1)
    return taken
