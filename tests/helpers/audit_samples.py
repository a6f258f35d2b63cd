"""Audited inputs of a made-up network, and pipelines that are tuned on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from orchestrator_samples import HASH, origin, pipeline, stage, telemetry, wide_pipeline

from distree.messages.telemetry import PipelineTelemetry, Telemetry
from distree.strict_yaml import Share
from distree.thresholds import NEVER
from orchestrator.pipeline_spec import PipelineSpec
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.samples import AuditedInput

COSTS = (1.0, 2.0, 4.0)
LOST = AuditedInput(lost=True)
GOAL = Goal(accuracy_drop=Share(0.05), audit_rate=Share(0.1))
LABELS = tuple(f"class {k}" for k in range(100))
SHUT = (NEVER, NEVER)


def stream(count: int, seed: int = 0, confusion: float = 0.02) -> list[AuditedInput]:
    """Audits of a network whose exits are surer when they are right; `confusion`: how often a sure exit is wrong."""
    random = np.random.default_rng(seed)
    audits = []
    for _ in range(count):
        ease, last = random.random(), int(random.integers(10))
        scores, predictions = [], []
        for skill in (0.6, 0.8):
            sure = ease < skill
            scores.append(float(np.clip((0.75 if sure else 0.35) + 0.2 * random.standard_normal(), 0, 1)))
            wrong = random.random() < (confusion if sure else 0.5)
            predictions.append((last + 1) % 10 if wrong else last)
        audits.append(AuditedInput(scores=tuple(scores), predictions=(*predictions, last)))
    return audits


def tuned(goal: Goal = GOAL, make=pipeline, **content) -> PipelineSpec:
    """As `orchestrator_samples.pipeline`, with a goal, costs and labels; its exits are shut unless told otherwise."""
    made = make(**{"thresholds": SHUT, **content})
    return replace(made, goal=goal, costs=COSTS, labels=LABELS)


def tuned_wide(**content) -> PipelineSpec:
    return tuned(make=wide_pipeline, masked=(), **content)


def load_report(sequence: int, *, answered=(0, 0, 0), p95_s=0.01, nbytes=0, audited=0, shed=0, boot="b1") -> Telemetry:
    """A report of a board that has answered so many inputs at each exit."""
    part = PipelineTelemetry(
        pipeline="fashion",
        epoch=1,
        plan_hash=HASH,
        revision="r1",
        stages=(replace(stage(), bytes_out=nbytes, audited=audited, shed=shed),),
        origin=replace(origin(exits=answered), answered=sum(answered), latency_p95_s=p95_s),
    )
    return telemetry(sequence=sequence, boot=boot, pipelines=(part,))


def arrays(count: int = 1500, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a recording of `stream`."""
    audits = stream(count, seed)
    return {
        "score": np.array([(*audit.scores, 1.0) for audit in audits]),
        "prediction": np.array([audit.predictions for audit in audits]),
        "mac": np.array(COSTS),
        "label": np.array([audit.predictions[-1] for audit in audits]),
    }
