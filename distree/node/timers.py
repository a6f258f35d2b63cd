"""When things are due: one time per key, that can be changed or taken back."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

K = TypeVar("K")

_NEVER = float("inf")

_SLACK = 64
"""Outdated entries that are always tolerated, so that a short agenda is never rebuilt."""


class Agenda(Generic[K]):
    """Keys, each with the time when it is due. `now` and times are seconds of any one clock.

    A heap keeps outdated entries until their time comes, which may be an hour away; this one holds at most as many of
    them as there are keys, and a few more.

    >>> agenda = Agenda[str]()
    >>> agenda.set("a", 2.0); agenda.set("b", 1.0); agenda.set("a", 3.0); agenda.drop("b")
    >>> agenda.next_due(), agenda.pop(2.5), agenda.pop(3.0), len(agenda)
    (3.0, None, 'a', 0)
    """

    __slots__ = ("_at", "_heap")

    def __init__(self) -> None:
        self._at: dict[K, float] = {}
        self._heap: list[tuple[float, K]] = []

    def __len__(self) -> int:
        return len(self._at)

    def set(self, key: K, at: float) -> None:
        """Have `key` due at `at`, and at no other time."""
        heap = self._heap
        self._at[key] = at
        heappush(heap, (at, key))
        if len(heap) > _SLACK and len(heap) > 2 * len(self._at) + _SLACK:
            self._heap = [(at, key) for key, at in self._at.items()]
            heapify(self._heap)

    def drop(self, key: K) -> None:
        """Have `key` due no more; harmless for one that is not."""
        self._at.pop(key, None)
        if not self._at:
            self._heap.clear()

    def next_due(self) -> float:
        """When `pop` is next worth a call; infinity when nothing is due ever."""
        heap = self._heap
        while heap:
            at, key = heap[0]
            if self._at.get(key) == at:
                return at
            heappop(heap)
        return _NEVER

    def pop(self, now: float) -> K | None:
        """Take out the key that is due first, if it is due by now; None if there is none."""
        if self.next_due() > now:
            return None
        _, key = heappop(self._heap)
        del self._at[key]
        return key
