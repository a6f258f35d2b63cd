"""Threads and event loops that wait for the same thing."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class WaitQueue:
    """A condition on which threads wait by `wait_for`, and coroutines by `join` and `wait`.

    All but `wait` are called with `lock` held. Being woken does not mean owning what one waited for: look again, with
    the lock held, and wait once more if somebody else was quicker.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._condition = threading.Condition(lock)
        self._waiters: deque[asyncio.Future[None]] = deque()

    def wait_for(self, predicate: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait in this thread until `predicate()` holds; False after `timeout_s` seconds (None: never)."""
        return self._condition.wait_for(predicate, timeout_s)

    def join(self) -> asyncio.Future[None]:
        """Put the running coroutine in line; give what it returns to `wait`, without the lock."""
        import asyncio  # loaded already where coroutines wait; a board where only threads wait does without it

        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    async def wait(self, waiter: asyncio.Future[None], timeout_s: float | None) -> bool:
        """Wait until woken; False after `timeout_s` seconds (None: never). Leaves the line however it ends."""
        import asyncio

        try:
            await asyncio.wait_for(asyncio.shield(waiter), timeout_s)
        except asyncio.TimeoutError:
            self._leave(waiter)
            return False
        except BaseException:
            self._leave(waiter)
            raise
        return True

    def _leave(self, waiter: asyncio.Future[None]) -> None:
        with self._lock:
            try:
                self._waiters.remove(waiter)
            except ValueError:
                # Woken in the same moment: the one behind must not sleep on because of it.
                self.notify()
        waiter.cancel()

    def notify(self) -> None:
        """Wake one thread and one coroutine, if there are any."""
        self._condition.notify()
        if self._waiters:
            _wake(self._waiters.popleft())

    def notify_all(self) -> None:
        """Wake all that wait."""
        self._condition.notify_all()
        while self._waiters:
            _wake(self._waiters.popleft())


def _wake(waiter: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # its event loop is closed: nobody waits any more
        waiter.get_loop().call_soon_threadsafe(_settle, waiter)


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
