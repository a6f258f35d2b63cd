"""Runs mosquitto by a site's folder, as a process that ends with this one."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from broker_config.managed import find_mosquitto
from broker_config.site.folder import CONFIG, SiteFolder
from broker_config.site.mosquitto_conf import mosquitto_conf
from distree import child_processes
from distree.errors import BrokerError

_START_S = 10.0
_STOP_S = 5.0


class SiteBroker:
    """mosquitto with the users and rules of a folder, as a context manager.

    It listens on every address, or on `listen_on` alone. `log` is a file for what it prints. Errors: BrokerError where
    mosquitto is not installed or does not start, ConfigError for what the folder lacks.
    """

    def __init__(self, folder: Path, *, listen_on: str = "", log: Path | None = None) -> None:
        self.folder = SiteFolder(folder)
        self.config = self.folder.load()
        self._listen_on = listen_on
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    def describe(self) -> str:
        """Return what runs where, for people."""
        scheme = "mqtts" if self.config.tls else "mqtt"
        return f"mosquitto for the site {self.config.site} on port {self.config.port} ({scheme})"

    def __enter__(self) -> SiteBroker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it takes connections."""
        program = find_mosquitto()
        if program is None:
            raise BrokerError("mosquitto is not installed", "run: apt install mosquitto")
        _check_free(self.config.port, self._listen_on)
        if self.config.websockets is not None:
            _check_free(self.config.websockets, "")
        path = self.folder.path / CONFIG
        path.write_text(mosquitto_conf(self.config, self.folder.path, listen_on=self._listen_on), encoding="utf-8")
        log = None if self._log is None else self._log.open("ab")
        try:
            self._process = child_processes.spawn([program, "-c", str(path)], stdout=log, stderr=log)
        finally:
            if log is not None:
                log.close()
        try:
            self._await_connections(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, by force after some seconds. Safe to call twice."""
        if self._process is not None:
            child_processes.stop(self._process, _STOP_S)

    def _await_connections(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + _START_S
        ports = [port for port in (self.config.port, self.config.websockets) if port is not None]
        while time.monotonic() < until:
            if process.poll() is not None:
                raise BrokerError(
                    f"mosquitto ended with status {process.returncode} right after its start", "read what it printed"
                )
            try:
                for port in ports:
                    socket.create_connection((self._listen_on or "127.0.0.1", port), timeout=1.0).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise BrokerError(
            f"mosquitto takes no connections on {' or '.join(map(str, ports))} after {_START_S:g} s",
            "read what it printed",
        )


def _check_free(port: int, host: str) -> None:
    with socket.socket() as probe:
        # As brokers do: connections of a broker that has just ended must not get in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BrokerError(
                f"port {port} cannot be used ({(error.strerror or str(error)).lower()})",
                "stop the broker that runs there, or choose another port with `distree broker init --port`",
            ) from error
