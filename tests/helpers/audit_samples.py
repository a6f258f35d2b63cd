"""Made-up audits, as tuners see them."""

from __future__ import annotations

import numpy as np

from orchestrator.tuning.tuners import Audit

COSTS = (1.0, 2.0, 4.0)
LOST = Audit(lost=True)


def stream(count: int, seed: int = 0, confusion: float = 0.02) -> list[Audit]:
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
        audits.append(Audit(scores=tuple(scores), predictions=(*predictions, last)))
    return audits
