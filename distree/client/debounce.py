"""Recognises answers that only repeat what was just said, as overlapping windows of one word do.

This belongs to whoever reads the results. Every accepted input gets exactly one final result, whoever else has said the
same, so a source could leave inputs out, but only before they are computed, and then it would not know their answers.
"""

from __future__ import annotations

from distree.messages.result import Result


class Debounce:
    """Knows which labels an origin has given within the last `hold_s` seconds; each repetition counts anew.

    >>> debounce = Debounce(1.0)
    >>> [debounce.is_repeat(("lab", "mic"), "seven", now) for now in (0.0, 0.5, 1.4, 3.0)]
    [False, True, True, False]
    """

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._seen_at: dict[tuple[tuple[str, ...], str | None], float] = {}

    def repeats(self, result: Result, now: float) -> bool:
        """Whether a result that arrives at `now`, in monotonic seconds, repeats one of its pipeline and origin."""
        return self.is_repeat((result.site, result.pipeline, result.origin), result.label, now)

    def is_repeat(self, whose: tuple[str, ...], label: str | None, now: float) -> bool:
        """Whether a label was given by the same a moment ago."""
        seen_at = self._seen_at.pop((whose, label), None)
        # The oldest come first, so what is past is dropped from there.
        while self._seen_at and now - next(iter(self._seen_at.values())) > self._hold_s:
            del self._seen_at[next(iter(self._seen_at))]
        self._seen_at[(whose, label)] = now
        return seen_at is not None and now - seen_at <= self._hold_s
