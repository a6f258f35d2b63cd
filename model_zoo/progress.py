"""How a long run shows its progress: line by line, and within an epoch in one line that is redrawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TextIO

_WIDTH = 30
_CLEAR = "\r\x1b[K"


@dataclass(slots=True)
class Progress:
    """Writes to `stream`; the line that is drawn again only where that is a terminal."""

    stream: TextIO
    _drawn: bool = field(default=False, init=False)

    def line(self, text: str) -> None:
        """Write one line, in place of a line that was drawn."""
        self.stream.write(f"{self._undrawn()}{text}\n")
        self.stream.flush()

    def step(self, epoch: int, done: int, steps: int) -> None:
        """Draw how far the epoch has come, as `model_zoo.training.loop.Loop` tells it."""
        self.bar(f"epoch {epoch + 1}", done, steps)

    def bar(self, what: str, done: int, steps: int) -> None:
        """Draw how far anything has come."""
        if not self.stream.isatty():
            return
        filled = "#" * (_WIDTH * done // max(steps, 1))
        self.stream.write(f"{self._undrawn()}{what} [{filled:.<{_WIDTH}}] {done}/{steps}")
        self.stream.flush()
        self._drawn = True

    def clear(self) -> None:
        """Take away a line that was drawn."""
        if self._drawn:
            self.stream.write(self._undrawn())
            self.stream.flush()

    def _undrawn(self) -> str:
        clear, self._drawn = _CLEAR if self._drawn else "", False
        return clear
