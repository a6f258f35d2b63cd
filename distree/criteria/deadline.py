"""Deadline: whether going on would take longer than the time that is left.

Formula: rest - left, in seconds: the estimate of what the rest of the path takes, less the budget left. Sign:
at or above 0 the answer must be given now. Range: any. Parameters: none; the threshold is 0.

It is a rule to use beside a criterion, as it knows nothing of the logits; as the only criterion it makes a
pipeline go as deep as time allows. Origin: DistrEE's own; anytime prediction under a budget, as in G. Huang
et al., "Multi-Scale Dense Networks for Resource Efficient Image Classification", ICLR 2018.
"""

from __future__ import annotations

from distree.criteria.base import ANY_NUMBER, ExitEvidence, Score
from distree.criteria.softmax import LEAST_SURE, clamped


class Deadline:
    """Score an exit by how many seconds too late going on would be.

    Without an estimate or a budget (NaN, or infinite on both sides) the score is -inf: go on.

    >>> Deadline().score(ExitEvidence(logits=[], left_s=0.5, rest_s=0.75)).value
    0.25
    """

    name = "deadline"
    range = ANY_NUMBER

    def score(self, evidence: ExitEvidence) -> Score:
        """Score one exit; reads `left_s` and `rest_s` alone."""
        late_s = evidence.rest_s - evidence.left_s
        return Score(value=clamped(late_s) if late_s > LEAST_SURE else LEAST_SURE)
