"""Bandit: try threshold vectors and prefer those that did best. It has no guarantee; it is there to compare with.

One arm per vector. Playing an arm on an input earns 1 if its answer agrees with the last exit's, less `price` times the
share of the last exit's cost that it took; no label is needed. The arm with the highest upper confidence bound is
played next. It learns only from the arm that is played, like a tuner that sees each input only as it was answered, and
what it maximises is a bargain between accuracy and cost: nothing keeps the accuracy drop below a bound while it tries
arms, and which arm is best is only ever an estimate.

Live, the price is the goal's accuracy drop ε. The arm that disables every early exit then earns 1 − ε, so the arm that
truly earns most loses at most ε.

Sources: P. Auer, N. Cesa-Bianchi and P. Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem", Machine
Learning 2002 (UCB1); H. Hanawal et al., "Unsupervised Early Exit in DNNs with Multiple Exits", AIMLSystems 2022, for
its use on exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from distree.exits_taken import exits_taken
from distree.formatting import percent, thresholds_text
from distree.thresholds import NEVER
from orchestrator.tuning.live_tuner import Figure, LiveTuner, Remark, TunerExplanation, TunerSetup
from orchestrator.tuning.samples import AuditedInput, Vector, losses_of

LEVEL_AUDITS = 400
"""Audits from whose scores the thresholds to choose from are taken."""

PLAYS = 50
"""Audits for which an arm is played in a row when it runs live: each change of arm is a plan to every board."""

_LEVELS = 6  # Thresholds per exit. The arms are all their combinations, and too many arms are never learned.
_WIDTH = 0.5  # Of the confidence bound: UCB1's own explores too much for rewards that vary this little.


def spread_levels(scores: npt.NDArray[np.float64]) -> list[Vector]:
    """Return thresholds to choose from, per exit: quantiles of scores (n, exits − 1), and one that is never reached."""
    shares = np.linspace(0, 1, _LEVELS - 1)
    levels: list[Vector] = []
    for column in scores.T:
        finite = column[np.isfinite(column)]
        quantiles = np.quantile(finite, shares, method="lower").tolist() if len(finite) else []
        levels.append((*quantiles, NEVER))
    return levels


class Bandit(LiveTuner):
    """UCB over a grid of thresholds.

    costs: of leaving at each exit, the last included. levels: per exit, the thresholds to choose from; without them,
    the first LEVEL_AUDITS audits give them, and until then early exits are disabled. price: what the whole cost of the
    last exit is worth, in answers that agree. seed: breaks ties. plays: audits for which an arm is played in a row.

    >>> tuner = Bandit(costs=(1.0, 3.0), levels=[(0.5, float("inf"))], price=0.3)
    >>> for _ in range(50):
    ...     tuner.observe(AuditedInput(scores=(0.9,), predictions=(1, 1)))
    >>> tuner.thresholds
    (0.5,)
    """

    name = "bandit"
    has_guarantee = False

    def __init__(
        self,
        costs: Sequence[float],
        levels: Sequence[Sequence[float]] | None = None,
        *,
        price: float = 0.1,
        seed: int = 0,
        plays: int = 1,
    ) -> None:
        self._shares = np.asarray(costs, np.float64) / costs[-1]
        self._price, self._seed, self._plays_in_a_row = price, seed, plays
        self._begin(levels)

    @classmethod
    def create(cls, setup: TunerSetup) -> Bandit:
        """Make a tuner for a goal; earlier audits give its levels."""
        scores = [audit.scores for audit in setup.earlier if not audit.lost]
        levels = spread_levels(np.array(scores)) if scores else None
        return cls(setup.costs, levels, price=setup.accuracy_drop, seed=setup.seed, plays=PLAYS)

    def _begin(self, levels: Sequence[Sequence[float]] | None) -> None:
        """Start with nothing tried; without levels there is one arm, which disables every early exit."""
        self._levels = None if levels is None else [list(map(float, of_exit)) for of_exit in levels]
        grids = np.meshgrid(*(self._levels or [[NEVER]] * (len(self._shares) - 1)), indexing="ij")
        self._arms = np.stack([grid.ravel() for grid in grids], axis=1)
        self._scores: list[list[float]] = []
        self._played = np.zeros(len(self._arms))
        self._earned = np.zeros(len(self._arms))
        self._lost = np.zeros(len(self._arms))
        self._order = np.random.default_rng(self._seed).permutation(len(self._arms))
        self._arm = int(self._order[0])
        self._in_a_row = 0

    @property
    def choices(self) -> tuple[Vector, ...]:
        """The arm that is played, and nothing else."""
        return (tuple(self._arms[self._arm].tolist()),)

    @property
    def gathering(self) -> int:
        """How many audits are still needed for the levels, 0 when there are some."""
        return 0 if self._levels is not None else LEVEL_AUDITS - len(self._scores)

    def observe(self, audit: AuditedInput) -> None:
        """Learn what the played arm would have earned on one audit, and choose the next arm if its turn is over."""
        if self._levels is None:
            self._gather(audit)
            return
        arm = self._arms[self._arm]
        loss = float(losses_of(audit, arm[None])[0])
        taken = len(arm) if audit.lost else int(exits_taken(audit.scores, arm))
        self._played[self._arm] += 1
        self._lost[self._arm] += loss
        self._earned[self._arm] += 1.0 - loss - self._price * self._shares[taken]
        self._in_a_row += 1
        if self._in_a_row >= self._plays_in_a_row:
            self._arm, self._in_a_row = self._next(), 0

    def _gather(self, audit: AuditedInput) -> None:
        if audit.lost:
            return
        self._scores.append(list(audit.scores))
        if not self.gathering:
            self._begin(spread_levels(np.array(self._scores)))

    def _next(self) -> int:
        played = self._played[self._order]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = self._earned[self._order] / played
            bound = mean + _WIDTH * np.sqrt(np.log(played.sum()) / played)
        return int(self._order[int(np.where(played == 0, np.inf, bound).argmax())])

    def explain(self) -> TunerExplanation:
        """Return how much has been tried, and what the arm that is played has lost."""
        plays, audits = int(self._played[self._arm]), int(self._played.sum())
        loss = float(self._lost[self._arm]) / max(1, plays)
        tried, arms = int((self._played > 0).sum()), len(self._arms)
        progress = f"{tried} of {arms} threshold vectors tried on {audits:,} audits"
        if self.gathering:
            progress = f"gathering audits to take thresholds from, {self.gathering:,} more needed"
        playing = f"{thresholds_text(self.thresholds)}: mean loss {percent(loss)} on {plays:,} audits"
        return TunerExplanation(
            thresholds=self.thresholds,
            audits=audits,
            gathering=self.gathering,
            alarms=0,
            progress=progress,
            remarks=() if self.gathering else (Remark(label="trying", text=playing),),
            figures=(
                Figure(name="arms", value=arms, meaning="Threshold vectors to choose from."),
                Figure(name="tried", value=tried, meaning="Threshold vectors that have been tried."),
                Figure(name="mean_loss", value=loss, meaning="Mean loss of the thresholds that are tried now."),
            ),
        )

    def snapshot(self) -> dict[str, Any]:
        """Return plain data, for `restore`."""
        return {
            "shares": self._shares.tolist(),
            "price": self._price,
            "levels": self._levels,
            "scores": self._scores,
            "played": self._played.tolist(),
            "earned": self._earned.tolist(),
            "lost": self._lost.tolist(),
            "arm": self._arm,
            "in_a_row": self._in_a_row,
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Go on where another one with the same costs and price stood; see `LiveTuner.restore`."""
        if (data["shares"], data["price"]) != (self._shares.tolist(), self._price):
            raise ValueError("its rewards are for other costs or another accuracy drop")
        other = Bandit(self._shares.tolist(), data["levels"], price=self._price, seed=self._seed)
        other._plays_in_a_row = self._plays_in_a_row
        counts = [np.asarray(data[name], np.float64) for name in ("played", "earned", "lost")]
        other._arm, other._in_a_row = int(data["arm"]), int(data["in_a_row"])
        if any(count.shape != other._played.shape for count in counts) or not 0 <= other._arm < len(other._arms):
            raise ValueError(f"its counts are not those of {len(other._arms)} arms")
        other._played, other._earned, other._lost = counts
        other._scores = [list(map(float, scores)) for scores in data["scores"]]
        vars(self).update(vars(other))
