"""What is measured of the boards beyond: how long they take, and whether they answer at all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RoundTrip:
    """Estimate of how long the rest of a pipeline takes: smoothed mean and deviation, as TCP estimates its timer.

    Source: Jacobson, Congestion Avoidance and Control (1988), with Karn's rule: answers to re-sent requests are no
    samples, and each silence doubles the time-out until a fresh sample comes.
    """

    floor_s: float
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
        """Forget a little: called when the estimate kept a request here, lest one bad sample do so for ever."""
        if self.mean_s is not None:
            self.mean_s *= 0.9

    def silence_s(self, left_s: float) -> float:
        """Seconds after which silence is suspicious; half of the time left while nothing was measured."""
        if self.mean_s is None:
            return left_s / 2
        return self.backoff * max(self.floor_s, self.mean_s + 4 * self.deviation_s)


@dataclass(slots=True)
class Circuit:
    """Stops sending to boards that do not answer, so that a dead board costs no one its deadline.

    Opens after `limit` failures in a row. While it is open it asks for a probe every `probe_s`: a copy of what would
    have been sent, whose fate matters to nobody. Any answer closes it.
    """

    limit: int = 1
    probe_s: float = 1.0
    failures: int = 0
    probe_at: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether nothing but probes goes through."""
        return self.failures >= self.limit

    def wants_probe(self, now: float) -> bool:
        """Whether a probe is due; True counts as one sent."""
        if not self.is_open or now < self.probe_at:
            return False
        self.probe_at = now + self.probe_s
        return True

    def failed(self, now: float) -> None:
        """One more request got no answer."""
        self.failures += 1
        if self.failures == self.limit:
            self.probe_at = now + self.probe_s

    def answered(self) -> None:
        """The boards are alive."""
        self.failures = 0
