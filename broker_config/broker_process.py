"""A broker's process, as a context manager: started when its ports are free, waited for, and ended with this one."""

from __future__ import annotations

import abc
import socket
import subprocess
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from distree import child_processes
from distree.errors import BrokerError

if TYPE_CHECKING:
    from typing_extensions import Self

_START_S = 10.0
_STOP_S = 5.0


class BrokerProcess(abc.ABC):
    """What is common to brokers that are run here. Errors: BrokerError for a port in use or one that does not start."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def start(self) -> None:
        """Start the process and wait until it takes connections."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Return what runs where, for people."""

    @property
    def pid(self) -> int:
        """Process id of the broker; BrokerError where it was never started."""
        if self._process is None:
            raise BrokerError("the broker is not started", "call start, or use it in a with block")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the broker's process is running."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process, by force after some seconds. Safe to call twice."""
        if self._process is not None:
            child_processes.stop(self._process, _STOP_S)

    def _await_start(self, process: subprocess.Popen[bytes], is_up: Callable[[], bool], what: str) -> None:
        """Wait until the process `is_up`; `what` says what runs where."""
        self._process = process
        until = time.monotonic() + _START_S
        while not is_up():
            if process.poll() is not None:
                raise BrokerError(
                    f"{what} ended with status {process.returncode} right after its start", "read what it printed"
                )
            if time.monotonic() > until:
                raise BrokerError(
                    f"{what} takes no connections after {_START_S:g} s", "check this machine's load, and try again"
                )
            time.sleep(0.02)


def check_free(port: int, host: str, option: str) -> None:
    """Raise BrokerError if a port of `host`, or of any address if that is empty, is used; `option` chooses the port."""
    with socket.socket() as probe:
        # As brokers do: connections of a broker that has just ended must not get in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BrokerError(
                f"port {port} on {host or 'this machine'} cannot be used ({(error.strerror or str(error)).lower()})",
                f"use or stop the broker that runs there, or choose another port with {option}",
            ) from error


def takes_connections(host: str, port: int) -> bool:
    """Tell whether something listens on a port."""
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True
