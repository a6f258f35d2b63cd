"""A mosquitto with a configuration of one's own, and what a broker says it dropped."""

from __future__ import annotations

import os
import pwd
import tempfile
import time
from pathlib import Path
from types import TracebackType

from broker_config.managed import ManagedBroker, answers_mqtt, find_mosquitto, free_port
from distree import child_processes

HOST = "127.0.0.1"
_START_S = 10.0


class RawBroker:
    """mosquitto on a free port of 127.0.0.1, told nothing but to let everybody in and the given lines."""

    def __init__(self, *lines: str) -> None:
        self.port = free_port()
        self.pid = 0
        self._lines = lines

    def __enter__(self) -> RawBroker:
        with tempfile.TemporaryDirectory(prefix="chaos-broker-") as folder:
            path = Path(folder) / "mosquitto.conf"
            user = [f"user {pwd.getpwuid(0).pw_name}"] if os.geteuid() == 0 else []
            lines = [f"listener {self.port} {HOST}", "allow_anonymous true", *user, *self._lines]
            path.write_text("\n".join([*lines, "log_dest none"]) + "\n")
            self._process = child_processes.spawn([find_mosquitto() or "mosquitto", "-c", str(path)])
            self.pid = self._process.pid
            ends_at = time.monotonic() + _START_S
            while not answers_mqtt(HOST, self.port):
                if self._process.poll() is not None or time.monotonic() > ends_at:
                    child_processes.stop(self._process, 1.0)
                    raise OSError(f"mosquitto does not start with {', '.join(self._lines) or 'nothing'}")
                time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        child_processes.stop(self._process, 3.0)


def make_broker(kind: str) -> ManagedBroker | RawBroker:
    """Return mosquitto as this project configures it (`managed`), or as it comes (`stock`)."""
    return ManagedBroker(engine="mosquitto") if kind == "managed" else RawBroker()
