"""How each broker is started: on free ports of this machine, with all that it writes in a temporary folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from broker_config.managed import HOST, answers_mqtt, find_mosquitto, free_port, has_embedded
from broker_config.render import MosquittoSettings, mosquitto_conf
from distree import child_processes

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distree-brokers"
"""Where `install` puts what is no Debian package: outside of the checkout, so that no other tool stumbles over it."""

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The script itself: the one on the PATH insists on the system's own node, user and folders."""

AEDES, AMQTT = "aedes@1.2", "amqtt==0.12.1"

_STOP_S = 15.0


class BrokerUnavailableError(Exception):
    """A broker that is not installed here, or does not start; the message says how to get it, or what it wrote."""


@dataclass(frozen=True, slots=True)
class Server:
    """A broker that runs."""

    host: str
    port: int
    version: str


@dataclass(frozen=True, slots=True)
class Command:
    """A process that belongs to a broker, with what is added to its environment."""

    argv: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broker:
    """One row: how a broker is found and started. `mqtt` is the version that agents are told to speak."""

    name: str
    obtain: str
    """What a person does to have it."""
    version: Callable[[], str | None]
    """Its version; None where it is not installed."""
    commands: Callable[[Path, int, bool], list[Command]]
    """Its processes, given a folder of its own, the port, and whether to ask for TCP_NODELAY where that can be said."""
    config: str = ""
    """File in its folder that was written for it, to be shown; empty if there is none."""
    mqtt: str | int = "auto"
    can_delay: bool = False
    """Whether it has a setting for TCP_NODELAY, and leaves it off."""
    start_s: float = 20.0

    @contextlib.contextmanager
    def start(self, folder: Path, *, nodelay: bool = True) -> Iterator[Server]:
        """Run it until the block ends; BrokerUnavailableError where it cannot be had."""
        version = self.version()
        if version is None:
            raise BrokerUnavailableError(f"not installed: {self.obtain}")
        port = free_port()
        processes: list[subprocess.Popen[bytes]] = []
        log = folder / "broker.log"
        try:
            with log.open("wb") as out:
                for command in self.commands(folder, port, nodelay):
                    env = {**os.environ, **command.env}
                    processes.append(child_processes.spawn(command.argv, stdout=out, stderr=out, env=env))
            self._await_answer(port, processes, log)
            yield Server(HOST, port, version)
        finally:
            for process in reversed(processes):
                _stop(process)

    def _await_answer(self, port: int, processes: list[subprocess.Popen[bytes]], log: Path) -> None:
        ends_at = time.monotonic() + self.start_s
        while not answers_mqtt(HOST, port):
            ended = any(process.poll() is not None for process in processes)
            if ended or time.monotonic() > ends_at:
                last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no word"]
                raise BrokerUnavailableError(f"{'ended' if ended else 'does not answer'}: {last[0][:200]}")
            time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, and whatever it started: each leads a session of its own."""
    child_processes.stop(process, _STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _output(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False).stdout
    except OSError:
        return ""


def _found(pattern: str, *argv: str) -> str | None:
    found = re.search(pattern, _output(*argv))
    return found.group(1) if found else None


# ---------------------------------------------------------------- mosquitto, and the embedded broker


def _mosquitto_version() -> str | None:
    path = find_mosquitto()
    return path and _found(r"version (\S+)", path, "-h")


def _mosquitto(folder: Path, port: int, nodelay: bool) -> list[Command]:
    # Started by root, it would become another user, who cannot write here.
    user = pwd.getpwuid(0).pw_name if os.geteuid() == 0 else None
    text = mosquitto_conf(MosquittoSettings(port=port, host=HOST, user=user))
    if not nodelay:
        text = text.replace("set_tcp_nodelay true", "set_tcp_nodelay false")
    (folder / "mosquitto.conf").write_text(text)
    return [Command([find_mosquitto() or "mosquitto", "-c", str(folder / "mosquitto.conf")])]


def _embedded_version() -> str | None:
    return importlib.metadata.version("iotcore") if has_embedded() else None


def _embedded(_folder: Path, port: int, _nodelay: bool) -> list[Command]:
    argv = [sys.executable, "-m", "broker_config.embedded", "--port", str(port)]
    return [Command(argv, {"PYTHONPATH": str(ROOT)})]


# ---------------------------------------------------------------- RabbitMQ


def _rabbitmq_version() -> str | None:
    # The name of the folder that the script leads to; `rabbitmqctl version` takes seconds to say the same.
    found = re.search(r"rabbitmq_server-([^/]+)", str(RABBITMQ.resolve()))
    return found.group(1) if found and RABBITMQ.exists() and shutil.which("epmd") else None


def _rabbitmq(folder: Path, port: int, _nodelay: bool) -> list[Command]:
    """Return Erlang's port mapper, which would otherwise stay behind as a daemon, and the broker."""
    (folder / "rabbitmq.conf").write_text(
        "# No AMQP: DistrEE does not use it.\n"
        "listeners.tcp = none\n"
        f"mqtt.listeners.tcp.1 = {HOST}:{port}\n"
        "# Clients that give no user name are logged in as guest, who may log in only from this machine.\n"
        "mqtt.allow_anonymous = true\n"
        "loopback_users.guest = true\n"
        "# How many QoS 1 messages may be in flight to a client; the default is 10.\n"
        "mqtt.prefetch = 64\n"
        "log.console = true\n"
        "log.console.level = warning\n"
        "log.file = false\n"
    )
    (folder / "enabled_plugins").write_text("[rabbitmq_mqtt].\n")
    mapper, distribution = free_port(), free_port()
    env = {
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(mapper),
        "RABBITMQ_NODENAME": f"distree-{port}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
    }
    return [
        Command([shutil.which("epmd") or "epmd", "-address", HOST, "-port", str(mapper)]),
        Command([str(RABBITMQ)], env),
    ]


# ---------------------------------------------------------------- NATS


def _nats_version() -> str | None:
    return _found(r"v(\d\S*)", "nats-server", "--version")


def _nats(folder: Path, port: int, _nodelay: bool) -> list[Command]:
    (folder / "nats.conf").write_text(
        "server_name: distree\n"
        "# For NATS's own clients: any free port.\n"
        f"host: {HOST}\nport: -1\n"
        "# MQTT needs JetStream, which keeps retained messages and sessions.\n"
        f'jetstream {{ store_dir: "{folder / "jetstream"}" }}\n'
        "# The default of 1 MiB also limits MQTT messages.\n"
        "max_payload: 2MB\n"
        "mqtt {\n"
        f"  host: {HOST}\n  port: {port}\n"
        "  # How many QoS 1 messages may be in flight to a subscription; the default is 100.\n"
        "  max_ack_pending: 1000\n"
        "}\n"
    )
    return [Command(["nats-server", "-c", str(folder / "nats.conf")])]


# ---------------------------------------------------------------- aedes and amqtt


def _aedes_version() -> str | None:
    package = CACHE / "aedes" / "node_modules" / "aedes" / "package.json"
    if not package.exists() or shutil.which("node") is None:
        return None
    return str(json.loads(package.read_text())["version"])


def _aedes(_folder: Path, port: int, nodelay: bool) -> list[Command]:
    script = Path(__file__).with_name("aedes.mjs")
    return [Command(["node", str(script), str(CACHE / "aedes"), str(port), str(nodelay).lower()])]


def _amqtt_version() -> str | None:
    return _found(r"(\d\S*)", str(CACHE / "amqtt" / "bin" / "amqtt"), "--version")


def _amqtt(folder: Path, port: int, _nodelay: bool) -> list[Command]:
    (folder / "amqtt.yaml").write_text(
        "listeners:\n"
        "  default:\n"
        "    type: tcp\n"
        f"    bind: {HOST}:{port}\n"
        "plugins:\n"
        "  amqtt.plugins.authentication.AnonymousAuthPlugin:\n"
        "    allow_anonymous: true\n"
    )
    return [Command([str(CACHE / "amqtt" / "bin" / "amqtt"), "-c", str(folder / "amqtt.yaml")])]


def install() -> None:
    """Fetch aedes and amqtt into `CACHE`; what Debian packages is left to apt."""
    aedes, amqtt = CACHE / "aedes", CACHE / "amqtt"
    aedes.mkdir(parents=True, exist_ok=True)
    flags = ["--no-save", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    steps = [[sys.executable, "-m", "venv", str(amqtt)], [str(amqtt / "bin" / "pip"), "install", "--quiet", AMQTT]]
    if shutil.which("npm"):
        steps.append(["npm", "install", "--prefix", str(aedes), *flags, AEDES])
    for step in steps:
        if subprocess.run(step, check=False).returncode:
            print(f"{' '.join(step[:4])} … failed; that broker is left out", file=sys.stderr)


_MOSQUITTO = "apt install mosquitto"
_INSTALL = "python -m benchmarks.brokers --install"

BROKERS = (
    Broker("mosquitto", _MOSQUITTO, _mosquitto_version, _mosquitto, can_delay=True),
    Broker("mosquitto, MQTT 3.1.1", _MOSQUITTO, _mosquitto_version, _mosquitto, mqtt="3.1.1", can_delay=True),
    Broker("embedded (iotcore)", 'pip install "distree[broker]"', _embedded_version, _embedded),
    Broker("RabbitMQ", "apt install rabbitmq-server", _rabbitmq_version, _rabbitmq, "rabbitmq.conf", start_s=60.0),
    Broker("NATS", "apt install nats-server", _nats_version, _nats, "nats.conf"),
    Broker("aedes", f"{_INSTALL}, with node", _aedes_version, _aedes, can_delay=True),
    Broker("amqtt", _INSTALL, _amqtt_version, _amqtt, "amqtt.yaml"),
)
