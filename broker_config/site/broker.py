"""Runs mosquitto by a site's folder, as a process that ends with this one."""

from __future__ import annotations

import contextlib
from pathlib import Path

from broker_config.broker_process import BrokerProcess, check_free, takes_connections
from broker_config.managed import find_mosquitto
from broker_config.site.folder import CONFIG, SiteFolder
from broker_config.site.mosquitto_conf import mosquitto_conf
from broker_config.site.private_files import locked, write
from distree import child_processes
from distree.errors import BrokerError


class SiteBroker(BrokerProcess):
    """mosquitto with the users and rules of a folder, as a context manager.

    It listens on every address, or on `listen_on` alone. `log` is a file for what it prints. Errors: BrokerError where
    mosquitto is not installed or does not start, ConfigError for what the folder lacks.
    """

    def __init__(self, folder: Path, *, listen_on: str = "", log: Path | None = None) -> None:
        super().__init__()
        self.folder = SiteFolder(folder)
        self.config = self.folder.load()
        self._listen_on = listen_on
        self._log = log

    def describe(self) -> str:
        """Return what runs where, for people."""
        scheme = "mqtts" if self.config.tls else "mqtt"
        return f"mosquitto for the site {self.config.site} on port {self.config.port} ({scheme})"

    def start(self) -> None:
        """Start the process and wait until it takes connections."""
        program = find_mosquitto()
        if program is None:
            raise BrokerError("mosquitto is not installed", "run: apt install mosquitto")
        with locked(self.folder.path):  # a change that comes meanwhile would be made without this broker
            self._start(program)

    def _start(self, program: str) -> None:
        check_free(self.config.port, self._listen_on, "`port` in site.yaml and in each broker.yaml")
        if self.config.websockets is not None:
            check_free(self.config.websockets, "", "`websockets` in site.yaml")
        path = self.folder.path / CONFIG
        write(path, mosquitto_conf(self.config, self.folder.path, listen_on=self._listen_on))
        with contextlib.ExitStack() as files:
            log = None if self._log is None else files.enter_context(self._log.open("ab"))
            process = child_processes.spawn([program, "-c", str(path)], stdout=log, stderr=log)
        try:
            self._await_start(process, self._is_up, self.describe())
        except BaseException:
            self.stop()
            raise

    def _is_up(self) -> bool:
        ports = [port for port in (self.config.port, self.config.websockets) if port is not None]
        return all(takes_connections(self._listen_on or "127.0.0.1", port) for port in ports)
