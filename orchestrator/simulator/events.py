"""The simulated clock: calls in order of time, and in order of request where times are equal."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Events:
    """A heap of calls. `now` is in simulated seconds, from 0."""

    __slots__ = ("_heap", "count", "now")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.count = 0
        self.now = 0.0

    def at(self, when_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Schedule `call(*arguments)` for `when_s`, which is not before now."""
        self.count += 1
        # The count breaks ties, so that calls are never compared.
        heapq.heappush(self._heap, (when_s, self.count, call, arguments))

    def run(self) -> None:
        """Make all calls, including those that they schedule, until none is left."""
        heap, pop = self._heap, heapq.heappop
        while heap:
            self.now, _, call, arguments = pop(heap)
            call(*arguments)
