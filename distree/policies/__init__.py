"""Exit criteria, one a file. Each scores an exit, which is taken when the score reaches its threshold.

Every criterion is pure, higher is surer, and logits that are not all finite score `LEAST_SURE`, never NaN.
Logits are one float per class, of at least two classes; what an empty list does is not defined.
"""

from __future__ import annotations

import difflib

from distree.errors import ConfigError
from distree.policies.deadline import Deadline
from distree.policies.energy import Energy
from distree.policies.entropy import Entropy
from distree.policies.margin import Margin
from distree.policies.max_softmax import MaxSoftmax
from distree.policies.patience import Patience
from distree.policies.softmax import LEAST_SURE, NEVER, confidence
from distree.protocols import ExitPolicy

__all__ = ["LEAST_SURE", "NEVER", "POLICIES", "confidence", "make_policy"]

POLICIES: dict[str, type[ExitPolicy]] = {
    policy.name: policy for policy in (MaxSoftmax, Entropy, Margin, Patience, Energy, Deadline)
}
"""Every criterion that a plan or a bundle may name, by name; each can be made without arguments."""


def make_policy(name: str) -> ExitPolicy:
    """Make the criterion called `name` with its default parameters; an unknown name raises ConfigError.

    >>> make_policy("entropy").name
    'entropy'
    """
    if name in POLICIES:
        return POLICIES[name]()
    nearest = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0.0)[0]
    raise ConfigError(f"unknown criterion {name!r}; nearest: {nearest}; known: {', '.join(POLICIES)}")
