"""What is measured of the boards beyond: how long a request is away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RoundTrip:
    """Estimate of how long the rest of a pipeline takes: smoothed mean and deviation, as TCP estimates its timer.

    Source: Jacobson, Congestion Avoidance and Control (1988), with Karn's rule: answers to re-sent requests are no
    samples, and each silence doubles the time-out until a fresh sample comes.
    """

    min_s: float
    mean_s: float | None = None
    deviation_s: float = 0.0
    backoff: int = 1

    def sample(self, took_s: float) -> None:
        """Take in one measured time from sending features to their outcome."""
        self.backoff = 1
        if self.mean_s is None:
            self.mean_s, self.deviation_s = took_s, took_s / 2
            return
        error = took_s - self.mean_s
        self.mean_s += error / 8
        self.deviation_s += (abs(error) - self.deviation_s) / 4

    def fade(self) -> None:
        """Forget a little, when the estimate kept a request here, so that one bad sample does not do so forever."""
        if self.mean_s is not None:
            self.mean_s *= 0.9

    def timeout_s(self, left_s: float) -> float:
        """Seconds after which silence is suspicious; half of the time left while nothing was measured."""
        if self.mean_s is None:
            return left_s / 2
        return self.backoff * max(self.min_s, self.mean_s + 4 * self.deviation_s)
