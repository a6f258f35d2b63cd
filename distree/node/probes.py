"""Probes: copies of inputs, sent to see whether boards that did not answer are back."""

from __future__ import annotations

from dataclasses import dataclass, field

from distree.messages.request import RequestContext

PROBES = 64
"""Probes remembered; one a second is sent to boards that do not answer, and its answer may be late."""

PROBE_BUDGET_S = 10.0
"""Longest time a probe may take, in seconds."""


@dataclass(slots=True)
class Probes:
    """The probes of one origin: the context of each and when it was sent, None for one that has ended."""

    _sent: dict[str, tuple[RequestContext, float | None]] = field(default_factory=dict)

    def open(self, now: float, context: RequestContext) -> None:
        """Note a probe as sent."""
        self._sent[context.request] = context, now
        if len(self._sent) > PROBES:
            del self._sent[next(iter(self._sent))]

    def is_open(self, request: str) -> bool | None:
        """Whether a probe of this id is under way; None if there is no such probe."""
        known = self._sent.get(request)
        return None if known is None else known[1] is not None

    def context(self, request: str) -> RequestContext:
        """Return the context of a probe that is known."""
        return self._sent[request][0]

    def close(self, now: float, request: str) -> float | None:
        """End a probe that is known; return the seconds that it took, None if it had ended before."""
        context, sent_at = self._sent[request]
        self._sent[request] = context, None
        return None if sent_at is None else now - sent_at
