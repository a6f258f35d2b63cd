"""What an audited input loses by leaving early."""

from __future__ import annotations

import math

import numpy as np
from audit_samples import LOST
from hypothesis import given
from hypothesis import strategies as st

from distree.criteria import NEVER
from distree.exits_taken import exits_taken
from orchestrator.tuning.samples import AuditedInput, losses_of


def test_loss_is_disagreement_with_the_last_exit_or_with_a_truth_that_the_last_exit_knew() -> None:
    guesses = (1, 2, 2)
    assert AuditedInput(scores=(0.5, 0.5), predictions=guesses).losses() == (1.0, 0.0, 0.0)
    assert AuditedInput(scores=(0.5, 0.5), predictions=guesses, label=2).losses() == (1.0, 0.0, 0.0)
    assert AuditedInput(scores=(0.5, 0.5), predictions=guesses, label=1).losses() == (0.0, 0.0, 0.0)
    assert AuditedInput(scores=(0.5, 0.5), predictions=guesses, label=7).losses() == (0.0, 0.0, 0.0)


def test_a_lost_audit_is_a_loss_wherever_somebody_could_leave_early() -> None:
    vectors = np.array([(NEVER, NEVER), (NEVER, 0.9), (0.1, 0.1)])
    assert losses_of(LOST, vectors).tolist() == [0.0, 1.0, 1.0]


vectors_of_two = st.tuples(*[st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0, NEVER])] * 2)


@given(
    scores=st.tuples(*[st.sampled_from([-math.inf, 0.0, 0.3, 0.6, 0.9])] * 2),
    predictions=st.tuples(*[st.integers(0, 2)] * 3),
    label=st.none() | st.integers(0, 2),
    vectors=st.lists(vectors_of_two, min_size=1, max_size=4),
)
def test_losses_of_many_vectors_are_those_of_each(scores, predictions, label, vectors) -> None:
    audit = AuditedInput(scores=scores, predictions=predictions, label=label)
    expected = [audit.losses()[exits_taken(scores, vector)] for vector in vectors]
    assert losses_of(audit, np.array(vectors)).tolist() == expected
