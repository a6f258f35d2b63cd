"""Configuration files of brokers, as text. Nothing here touches the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_PACKET_BYTES = 2 << 20
"""More than the 1 MiB that transports allow themselves where a broker cannot state its limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebsocketsSettings:
    """A listener for browsers, with users and an access list of its own.

    Mosquitto 2.0 opens it on every address of the machine, whatever it is told, so it requires a password.
    """

    port: int
    password_file: Path
    acl_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MosquittoSettings:
    """How DistrEE configures mosquitto.

    Anonymous clients are accepted only without a `password_file`. `user` is the account to run as if it is started by
    root. Queue limits apply to each client: beyond them mosquitto silently drops messages at QoS 1.
    """

    port: int = 1883
    host: str = "127.0.0.1"
    persistence: Path | None = None
    password_file: Path | None = None
    acl_file: Path | None = None
    user: str | None = None
    websockets: WebsocketsSettings | None = None
    max_packet_bytes: int = MAX_PACKET_BYTES
    max_inflight_messages: int = 64
    max_queued_messages: int = 20_000
    max_queued_bytes: int = 64 << 20


def mosquitto_conf(settings: MosquittoSettings) -> str:
    """Render mosquitto.conf."""
    lines = [
        "# Written by DistrEE at each start: changes here are lost.",
        *(["per_listener_settings true"] if settings.websockets else []),
        f"listener {settings.port} {settings.host}",
        *_access(settings),
        *_websockets(settings.websockets),
        "",
        *limits(settings),
        "",
        *_persistence(settings),
        "",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "connection_messages false",
    ]
    return "\n".join(lines) + "\n"


def limits(settings: MosquittoSettings) -> list[str]:
    """Return the lines about how much mosquitto takes, and how promptly it sends."""
    return [
        "# Without this, here and at the client, a small message can wait 40 ms for an acknowledgement.",
        "set_tcp_nodelay true",
        "",
        f"max_inflight_messages {settings.max_inflight_messages}",
        f"max_queued_messages {settings.max_queued_messages}",
        f"max_queued_bytes {settings.max_queued_bytes}",
        f"max_packet_size {settings.max_packet_bytes}",
        "persistent_client_expiration 1d",
    ]


def _access(settings: MosquittoSettings) -> list[str]:
    lines = [f"allow_anonymous {'true' if settings.password_file is None else 'false'}"]
    if settings.password_file is not None:
        lines.append(f"password_file {settings.password_file}")
    if settings.acl_file is not None:
        lines.append(f"acl_file {settings.acl_file}")
    if settings.user is not None:
        lines.append(f"user {settings.user}")
    return lines


def _websockets(settings: WebsocketsSettings | None) -> list[str]:
    if settings is None:
        return []
    lines = [
        "",
        "# For browsers, on every address of this machine, since mosquitto cannot bind it to one.",
        f"listener {settings.port}",
        "protocol websockets",
        "allow_anonymous false",
        f"password_file {settings.password_file}",
    ]
    if settings.acl_file is not None:
        lines.append(f"acl_file {settings.acl_file}")
    return lines


def _persistence(settings: MosquittoSettings) -> list[str]:
    if settings.persistence is None:
        return ["persistence false"]
    return [
        "# Written every half hour and at the end: writing wears out an SD card.",
        "persistence true",
        f"persistence_location {settings.persistence}/",
        "autosave_interval 1800",
        "autosave_on_changes false",
    ]


def iotcore_toml(port: int, host: str = "127.0.0.1", max_packet_bytes: int = MAX_PACKET_BYTES) -> str:
    """Render the configuration of the embedded broker: one MQTT 3.1.1 listener.

    Its segments are small because each topic keeps a log of segments in memory: at the default sizes the
    process grew to 906 MB. The price is that a reader who falls behind by 8 MiB loses messages.
    `max_inflight_count` stands in for the client's receive maximum, which this broker ignores.
    """
    return f"""\
# Written by DistrEE at each start: changes here are lost.
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 8

[v4.1]
name = "distree"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[v4.1.connections]
connection_timeout_ms = 5000
max_payload_size = {max_packet_bytes}
max_inflight_count = 16
dynamic_filters = true
"""
