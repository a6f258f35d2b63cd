"""How a connection begins and ends: the paho client, TLS, CONNECT with login and will, DISCONNECT."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from distree.broker_settings import BrokerSettings, Session
from distree.transport import credentials
from distree.transport.connection import Connection
from distree.transport.lean_client import MAX_INCOMING_BYTES, LeanClient, Sink, check_paho
from distree.transport.negotiation import Version

RESUME_S = 10
"""How long a broker keeps a session of `Session.PROCESS`, in seconds, once it has seen its connection end.

Long enough for two attempts to reconnect, which are at most 5 s apart, and no longer: until then the broker accepts
messages for a board that is gone, without telling their senders. Whatever waited longer is stale."""

_OBJECTION_S = 1.0
"""How long to wait for a broker to reject this end's certificate, once it has hung up on a CONNECT."""


class Dialler:
    """What a client says of itself, to the broker of `settings`.

    `will` is a topic and a payload. `receive_maximum` bounds received messages without an acknowledgement (MQTT 5).
    """

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        will: tuple[str, bytes] | None,
        receive_maximum: int,
        session: Session,
    ) -> None:
        self._settings = settings
        self._client_id = client_id
        self._will = will
        self._receive_maximum = receive_maximum
        self._session = session
        self._tls: ssl.SSLContext | None = None
        self._is_wary = False

    def read_files(self) -> None:
        """Read the password and what TLS needs; ConfigError for unusable files."""
        credentials.read_password(self._settings)
        if self._settings.tls is not None:
            self._tls = credentials.tls_context(self._settings.tls)

    def make_client(self, sink: Sink, version: Version) -> LeanClient:
        """Make a client without a connection; BrokerError where the installed paho is not supported."""
        check_paho()
        is_mqtt5 = version == "5"
        clean_session = None if is_mqtt5 else self._cleans(version, is_known=False)
        client = LeanClient(sink, self._client_id, is_mqtt5=is_mqtt5, clean_session=clean_session)
        client.connect_timeout = self._settings.connect_timeout_s
        client.on_socket_open = self._begin_connection
        if self._tls is not None:
            client.tls_set_context(self._tls)
        return client

    def connect(self, client: LeanClient, connection: Connection, will_flags: tuple[int, bool] | None) -> None:
        """Resolve the name, connect and send CONNECT: seconds at worst, so in a thread of its own.

        `will_flags` are the will's QoS and whether it is to be retained, None for a CONNECT without it. Raises OSError,
        ValueError and ConfigError.
        """
        version, self._is_wary = connection.handshake.version, connection.is_wary
        client.will_clear()
        if self._will is not None and will_flags is not None:
            client.will_set(*self._will, *will_flags)
        settings = self._settings
        client.username_pw_set(settings.username, credentials.read_password(settings))
        if self._tls is not None and settings.tls is not None:
            credentials.load_tls_files(self._tls, settings.tls)
        client.connect(settings.host, settings.port, settings.keepalive_s, **self._mqtt_5(version, connection.is_known))

    def disconnect(self, client: LeanClient, version: Version) -> None:
        """Disconnect cleanly, for good; a session of this process alone ends with it."""
        properties = None
        if self._session is Session.PROCESS and version == "5":
            properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0
        client.disconnect(properties=properties)

    def _cleans(self, version: Version, *, is_known: bool) -> bool:
        """Whether the broker is to forget what it kept.

        With MQTT 3.1.1 only durable sessions are kept: sessions never expire there, so one that is kept for a process
        would outlive it.
        """
        if version != "5":
            return self._session is not Session.DURABLE
        return self._session is Session.NONE or (self._session is Session.PROCESS and not is_known)

    def _mqtt_5(self, version: Version, is_known: bool) -> dict[str, Any]:
        if version != "5":
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = {
            Session.NONE: 0,
            Session.PROCESS: RESUME_S,
            Session.DURABLE: self._settings.session_expiry_s,
        }[self._session]
        properties.ReceiveMaximum = self._receive_maximum
        properties.MaximumPacketSize = MAX_INCOMING_BYTES
        return {"clean_start": self._cleans(version, is_known=is_known), "properties": properties}

    def _begin_connection(self, client: Any, _userdata: object, sock: Any) -> None:
        client.begin_connection(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # This detects a pulled cable while data is under way, not only after two keep-alives.
        if self._settings.keepalive_s:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._settings.keepalive_s * 1000)
        if self._is_wary:
            credentials.hear_objection(sock, _OBJECTION_S)
