"""What an orchestrator wants of a pipeline."""

from __future__ import annotations

import hashlib

from distree.messages.fields import (
    branches,
    data,
    declared,
    durations,
    epoch,
    ident,
    number,
    parts,
    scores,
    text,
)
from distree.messages.limits import HASH_DIGITS, MAX_EPOCH, MAX_MASKED, MAX_STAGES, SEAL_BYTES
from distree.thresholds import Threshold


@declared(as_row=True)
class MaskedThresholds:
    """Thresholds for the exits of wide stages while the branches in `missing` (ascending) are not heard from."""

    missing: tuple[int, ...] = branches("Branches that are not heard from.", least=1)
    thresholds: tuple[Threshold, ...] = scores("Score at which each exit but the last is then taken.", most=MAX_STAGES)


@declared(kind="plan")
class Plan:
    """What the orchestrator wants a pipeline to use. One threshold per exit but the last; retained.

    The plan on the topic is the one to be followed, whatever its epoch, which names a decision for people: plans that
    differ in `audit_rate` and `rest_s` alone share it. Two plans are the same if their hashes are, see `plan_hash`.

    `masked` has thresholds for sets of missing branches; with a set that is not in it, only the last exit is taken.
    `audit_rate` is the share of inputs that origins draw for audits. `rest_s` is, per exit but the last, what a
    request takes at least from there to the next exit, as boards reported it, network not counted; () if unknown.
    `signed`, which is written last, is for boards that know the orchestrator's key, see `distree/signing.py`.
    """

    pipeline: str = ident("Id of the pipeline.")
    epoch: int = epoch("Number of the decision, from 1.", least=1)
    model: str = text("Name of the bundle.")
    revision: str = text("Revision of the bundle.")
    criterion: str = text("Exit criterion.")
    thresholds: tuple[Threshold, ...] = scores("Score at which each exit but the last is taken.", most=MAX_STAGES)
    masked: tuple[MaskedThresholds, ...] = parts(
        MaskedThresholds, "Thresholds for sets of missing branches.", most=MAX_MASKED, default=()
    )
    audit_rate: float = number("Share of inputs that origins draw for audits.", most=1.0, default=0.0)
    rest_s: tuple[float, ...] = durations(
        "Least time from each exit but the last to the next.", most=MAX_STAGES, default=()
    )
    reason: str = text("Why it was decided, for people.", default="")
    author: str = text("Who or what decided it, for people.", default="")
    signed: bytes | None = data(
        "Key, sequence and signature of an orchestrator that signs.",
        least=SEAL_BYTES,
        most=SEAL_BYTES,
        what="a seal",
        default=None,
    )

    def fault(self) -> str:
        """Say what is wrong with the fields together."""
        if len({row.missing for row in self.masked}) != len(self.masked):
            return "masked: expected each set of missing branches once, received one twice"
        return ""


def plan_hash(plan: Plan) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of all that a board does by a plan.

    That is what decides exits and how often it audits: `pipeline`, `model`, `revision`, `criterion`, `thresholds`,
    `masked`, `audit_rate`, `rest_s`, in this order as one MessagePack list in which every number is a float 64 and each
    of `masked` a list of two lists. What is for people is left out: `epoch`, `reason`, `author`, and `signed`.
    """
    # Where networks are trained there are messages, but no msgpack.
    from distree.messages.packing import pack

    masked = [[_floats(row.missing), _floats(row.thresholds)] for row in plan.masked]
    numbers = _floats(plan.thresholds), masked, float(plan.audit_rate), _floats(plan.rest_s)
    content = pack([plan.pipeline, plan.model, plan.revision, plan.criterion, *numbers])
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]


def _floats(values: tuple[float, ...]) -> list[float]:
    # Zero has no sign here: -0.0 and 0.0 decide alike.
    return [float(value) + 0.0 for value in values]


def same_decision(one: Plan, other: Plan) -> bool:
    """Whether two plans decide exits by the same criterion and thresholds of the same bundle."""
    return _decision(one) == _decision(other)


def _decision(plan: Plan) -> tuple[object, ...]:
    return plan.pipeline, plan.model, plan.revision, plan.criterion, plan.thresholds, plan.masked


def next_epoch(epoch: int) -> int:
    """Return the number of the decision after the one with this number."""
    return epoch + 1 if epoch < MAX_EPOCH else 1
