"""Things that run for the length of a `with` or `async with` block, and whose opening and closing may take a while."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import TYPE_CHECKING

from distree.errors import ClosedError

if TYPE_CHECKING:
    from typing_extensions import Self


class Lifetime:
    """`with` and `async with` by `_open` and `close`, which may block: event loops go on meanwhile.

    It belongs to the process that opened it: a fork has neither its threads nor its connection.
    """

    _process: int | None = None

    @property
    def _is_forked(self) -> bool:
        """Whether another process opened it, of which this one is a fork."""
        return self._process is not None and self._process != os.getpid()

    def _check_process(self) -> None:
        """Raise ClosedError in a forked process."""
        if self._is_forked:
            name = type(self).__name__
            raise ClosedError(
                f"this {name} belongs to the process from which this one was forked", "make a new one after the fork"
            )

    def _open(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """End what `_open` began; harmless the second time."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._process = os.getpid()
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._process = os.getpid()
        opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # A thread cannot be cancelled: what it has opened by its end is closed.
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await asyncio.to_thread(self.close)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)
