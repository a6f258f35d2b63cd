"""How to reach a broker, and how messages wait for the connection to it."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Literal

from distree.broker_address import host_fault, joined
from distree.errors import ConfigError
from distree.printable import quoted
from distree.record import record

_SUFFIX = re.compile(r"[A-Za-z0-9-]{1,64}")


class Session(enum.Enum):
    """How long a broker keeps what waits for a client that is away."""

    NONE = "none"
    """Not at all: each connection starts from scratch."""
    PROCESS = "process"
    """While this process lives, and a short time longer: a new process starts from scratch."""
    DURABLE = "durable"
    """Over restarts, for `BrokerSettings.session_expiry_s`."""


@record
class TlsSettings:
    """How the connection to the broker is encrypted; certificate and host name are always verified."""

    ca_file: Path | None = None
    """CA certificates (PEM) to verify the broker with; if left out, those that the system trusts."""
    cert_file: Path | None = None
    """Client certificate (PEM), for a broker that asks for one."""
    key_file: Path | None = None
    """Private key of the client certificate (PEM, no passphrase)."""

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError("cert_file: a client certificate needs its key", "give both cert_file and key_file")


@record
class BrokerSettings:
    """Where the broker is and how to log in; passwords are never written in YAML."""

    transport: str = "mqtt"
    """What carries the messages; so far there is only `mqtt`."""
    host: str = "127.0.0.1"
    """Name or address of the broker."""
    port: int = 1883
    """The broker's port for MQTT over TCP."""
    username: str | None = None
    """User name on the broker; if left out, the client is anonymous."""
    password_file: Path | None = None
    """File whose first line is the password."""
    tls: TlsSettings | None = None
    """If given, even as `{}`, the connection is encrypted; brokers usually expect that on port 8883."""
    keepalive_s: int = 15
    """Keep-alive: the client pings after this long without traffic; the broker drops it after 1.5 times as long."""
    mqtt_version: Literal["auto", 5, "3.1.1"] = "auto"
    """MQTT version; `auto` takes 5, or 3.1.1 if that is all the broker speaks."""
    session_expiry_s: int = 3600
    """How long the broker keeps inputs for an origin with an mqtt source while it is away."""
    connect_timeout_s: float = 5.0
    """Time limit of one attempt to connect."""
    client_id_suffix: str | None = None
    """Something random, from a-z, A-Z, 0-9 and '-', that is appended to this client's ids. Whoever connects with the id
    of another client throws it off; nobody can do that with an id that they cannot guess."""

    def own_client_id(self, client_id: str) -> str:
        """Return a client id with the suffix, if there is one."""
        return client_id if self.client_id_suffix is None else f"{client_id}-{self.client_id_suffix}"

    @property
    def address(self) -> str:
        """HOST:PORT, for people."""
        return joined(self.host, self.port)

    def __post_init__(self) -> None:
        if remedy := host_fault(self.host):
            raise ConfigError(f"host: {quoted(self.host)} is neither a name nor an address", remedy)
        if self.client_id_suffix is not None and not _SUFFIX.fullmatch(self.client_id_suffix):
            raise ConfigError(
                f"client_id_suffix: {quoted(self.client_id_suffix)} cannot end a client id",
                "use 1 to 64 of a-z, A-Z, 0-9 and '-'",
            )
        if not 0 < self.port < 65536:
            raise ConfigError(f"port: {self.port} is out of range", "choose 1 to 65535")
        if not 0 < self.keepalive_s < 65536:
            raise ConfigError(f"keepalive_s: {self.keepalive_s} is out of range", "choose 1 to 65535")
        if not 0 <= self.session_expiry_s < 1 << 32:
            raise ConfigError(f"session_expiry_s: {self.session_expiry_s} is out of range", "choose 0 to 4294967295")
        if not 0 < self.connect_timeout_s <= 600:
            raise ConfigError(
                f"connect_timeout_s: {self.connect_timeout_s:g} is out of range", "choose a value above 0, at most 600"
            )
