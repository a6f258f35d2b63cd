"""A broker process that lives and dies with this one."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from broker_config.broker_process import BrokerProcess, check_free
from broker_config.passwords import hash_password, password_line
from broker_config.render import MosquittoSettings, WebsocketsSettings, iotcore_toml, mosquitto_conf
from distree import child_processes
from distree.errors import BrokerError, ConfigError
from distree.topics import Kind, Role, every, readers

Engine = Literal["auto", "mosquitto", "embedded"]

HOST = "127.0.0.1"

WEBSOCKETS_USER = "dashboard"
"""The user that may log in by websockets, with a random password, to read what dashboards show, of all sites."""

_CLIENT_ID = b"distree-probe"
_CONNECT = b"\x00\x04MQTT\x04\x02\x00\x0a" + len(_CLIENT_ID).to_bytes(2, "big") + _CLIENT_ID
_CONNECT = b"\x10" + bytes((len(_CONNECT),)) + _CONNECT
_DISCONNECT = b"\xe0\x00"


MOSQUITTO_VARIABLE = "DISTREE_MOSQUITTO"
"""Environment variable that names the mosquitto to run, by path or name; if empty, there is none."""


def find_mosquitto() -> str | None:
    """Return the path of mosquitto, even where a user's PATH leaves it out; None if there is none.

    If DISTREE_MOSQUITTO is set, it is that program and no other; None if it is empty or names no program.
    """
    chosen = os.environ.get(MOSQUITTO_VARIABLE)
    if chosen is not None:
        return shutil.which(chosen) if chosen else None
    path = os.environ.get("PATH", os.defpath)
    return shutil.which("mosquitto", path=os.pathsep.join((path, "/usr/sbin", "/usr/local/sbin")))


def has_embedded() -> bool:
    """Tell whether the embedded broker is installed."""
    return importlib.util.find_spec("iotcore") is not None


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def answers_mqtt(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Tell whether an MQTT broker answers a CONNECT, even if with a refusal."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.sendall(_CONNECT)
            answer = connection.recv(1)
            connection.sendall(_DISCONNECT)
            return answer == b"\x20"
    except OSError:
        return False


class ManagedBroker(BrokerProcess):
    """A broker on 127.0.0.1, as a context manager: mosquitto where it is installed, else the embedded one.

    `port` 0 picks a free one. `persistence` is a directory for sessions and retained messages;
    `password_file` and `acl_file` are mosquitto's; `websockets_port` opens a listener for browsers, 0 on a free
    port, on every address of this machine, where only WEBSOCKETS_USER with `websockets_password` can read. All four
    need mosquitto. The process ends with the thread that started it, even if that is killed, so start it from a thread
    that lives as long as the broker is needed. Errors: BrokerError for a port in use, a broker that is not installed or
    does not start; ConfigError for what an engine cannot do.
    """

    host = HOST

    def __init__(
        self,
        port: int = 0,
        engine: Engine = "auto",
        persistence: Path | None = None,
        *,
        password_file: Path | None = None,
        acl_file: Path | None = None,
        websockets_port: int | None = None,
    ) -> None:
        super().__init__()
        self.port = port
        self.engine: Engine = engine
        self.persistence = persistence
        self.password_file = password_file
        self.acl_file = acl_file
        self.websockets_port = websockets_port
        self.websockets_password = secrets.token_urlsafe(9)

    def describe(self) -> str:
        """Return engine, version and address, as in "mosquitto 2.0.11 on 127.0.0.1:1883"."""
        if self.engine == "mosquitto":
            return f"mosquitto {_mosquitto_version(find_mosquitto() or '')} on {self.host}:{self.port}"
        return f"iotcore {importlib.metadata.version('iotcore')} (MQTT 3.1.1) on {self.host}:{self.port}"

    def start(self) -> None:
        """Start the process and wait until it answers MQTT; again after `stop` on the same port."""
        self.engine = self._choose()
        if self.websockets_port == 0:
            self.websockets_port = free_port()
        if self.port:
            self._start_on(self.port)
        else:
            self._start_anywhere()

    def _start_anywhere(self) -> None:
        for _ in range(2):  # somebody else may take a free port before the broker does
            with contextlib.suppress(BrokerError):
                self._start_on(free_port())
                return
        self._start_on(free_port())

    def _start_on(self, port: int) -> None:
        check_free(port, self.host, "--port")
        if self.websockets_port is not None:
            check_free(self.websockets_port, "", "--websockets")
        before, self.port = self.port, port
        try:
            # Both engines read their file only once, so nothing is left behind however this process ends.
            with tempfile.TemporaryDirectory(prefix="distree-broker-") as directory:
                self._await_start(
                    _spawn(self._command(self.engine, Path(directory))),
                    lambda: answers_mqtt(self.host, port),
                    f"{self.engine} on {self.host}:{port}",
                )
        except BaseException:
            self.stop()
            self.port = before
            raise

    def _choose(self) -> Literal["mosquitto", "embedded"]:
        only_mosquitto = self.persistence or self.password_file or self.acl_file or self.websockets_port is not None
        if self.engine != "embedded" and find_mosquitto() is not None:
            return "mosquitto"
        if self.engine == "mosquitto":
            if MOSQUITTO_VARIABLE in os.environ:
                raise BrokerError(f"{MOSQUITTO_VARIABLE} does not name a program", "unset it, or use --engine embedded")
            raise BrokerError("mosquitto is not installed", "run: apt install mosquitto, or use --engine embedded")
        if not has_embedded():
            raise BrokerError("no broker is installed", "run: apt install mosquitto, or: pip install 'distree[broker]'")
        if only_mosquitto:
            raise ConfigError(
                "the embedded broker does not support persistence, users or websockets", "run: apt install mosquitto"
            )
        return "embedded"

    def _command(self, engine: Engine, directory: Path) -> list[str]:
        if engine == "embedded":
            config = directory / "iotcore.toml"
            config.write_text(iotcore_toml(self.port, self.host), encoding="utf-8")
            return [sys.executable, "-m", "broker_config.embedded", "--config", str(config)]
        if self.persistence is not None:
            self.persistence.mkdir(parents=True, exist_ok=True)
        settings = MosquittoSettings(
            port=self.port,
            host=self.host,
            persistence=self.persistence and self.persistence.resolve(),
            password_file=self.password_file and self.password_file.resolve(),
            acl_file=self.acl_file and self.acl_file.resolve(),
            user=_own_name_as_root(),
            websockets=self._websockets(directory),
        )
        config = directory / "mosquitto.conf"
        config.write_text(mosquitto_conf(settings), encoding="utf-8")
        return [find_mosquitto() or "mosquitto", "-c", str(config)]

    def _websockets(self, directory: Path) -> WebsocketsSettings | None:
        if self.websockets_port is None:
            return None
        users, access = directory / "websockets.users", directory / "websockets.acl"
        users.touch(0o600)
        users.write_text(password_line(WEBSOCKETS_USER, hash_password(self.websockets_password)))
        shown = [every(kind, "+") for kind in Kind if Role.DASHBOARD in readers(kind)]
        access.write_text("".join([f"user {WEBSOCKETS_USER}\n", *(f"topic read {name}\n" for name in shown)]))
        return WebsocketsSettings(port=self.websockets_port, password_file=users, acl_file=access)


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a broker; the embedded one finds this package even where it is not installed."""
    source = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    return child_processes.spawn(command, env={**os.environ, "PYTHONPATH": path})


def _own_name_as_root() -> str | None:
    # Started by root, mosquitto would switch to another user, who cannot write here and does not end with us.
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(0).pw_name
    return None


@functools.lru_cache
def _mosquitto_version(path: str) -> str:
    """Return the version that `mosquitto -h` states; "?" where it states none."""
    output = subprocess.run([path, "-h"], capture_output=True, text=True, timeout=10, check=False).stdout
    found = re.search(r"version (\S+)", output)
    return found.group(1) if found else "?"
