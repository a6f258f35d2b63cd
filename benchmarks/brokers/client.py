"""A client by plain paho that waits for each answer within a limit, so that a broker that gives none costs seconds."""

from __future__ import annotations

import itertools
import queue
import secrets
import socket
import threading
from collections.abc import Sequence
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

V5, V3 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
LIMIT_S = 5.0
"""Longest wait for an answer that should come at once."""

_numbers = itertools.count()


class NoAnswerError(Exception):
    """The broker did not answer in time, refused, or closed the connection."""


class Client:
    """Connected when made. Ids and topics are new with each run, so that no broker remembers an earlier one."""

    def __init__(
        self,
        address: tuple[str, int],
        version: MQTTProtocolVersion = V5,
        *,
        client_id: str = "",
        keeps: bool = False,
        will: tuple[str, bytes, bool] | None = None,
    ) -> None:
        self.heard: queue.Queue[mqtt.MQTTMessage] = queue.Queue()
        self.unasked: list[str] = []
        """Topics of messages that no filter of this client's matches."""
        self.present = False
        """Whether the broker had a session of this id."""
        self.answer: Any = None
        """Properties that came with the answer to CONNECT, of MQTT 5."""
        self._version = version
        self._filters: set[str] = set()
        self._answers: dict[int, Any] = {}
        self._changed = threading.Condition()
        self._greeting: str | None = None
        self._lost = False
        self._client = self._make(client_id or f"brokers-{secrets.token_hex(4)}-{next(_numbers)}", keeps)
        if will is not None:
            self._client.will_set(will[0], will[1], qos=1, retain=will[2])
        self._connect(address, keeps)

    def _make(self, client_id: str, keeps: bool) -> mqtt.Client:
        clean = None if self._version == V5 else not keeps
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=clean,
            protocol=self._version,
            reconnect_on_failure=False,
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = lambda _c, _d, mid, codes, _p: self._keep(mid, [code.value for code in codes])
        client.on_publish = lambda _c, _d, mid, code, _p: self._keep(mid, code.value)
        client.on_message = lambda _c, _d, message: self._take(message)
        client.on_socket_open = _without_delay
        return client

    def _connect(self, address: tuple[str, int], keeps: bool) -> None:
        how: dict[str, Any] = {}
        if self._version == V5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 600 if keeps else 0
            how = {"clean_start": not keeps, "properties": properties}
        try:
            self._client.connect(*address, **how)
        except OSError as error:
            raise NoAnswerError(str(error)) from error
        self._client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._greeting is not None or self._lost, LIMIT_S)
        if self._greeting != "Success":
            self.close()
            raise NoAnswerError(self._greeting or "no answer to CONNECT")

    def _on_connect(self, _client: mqtt.Client, _data: object, flags: Any, code: Any, properties: Any) -> None:
        with self._changed:
            self.present, self.answer, self._greeting = flags.session_present, properties, str(code)
            self._changed.notify_all()

    def _on_disconnect(self, *_: Any) -> None:
        with self._changed:
            self._lost = True
            self._changed.notify_all()

    def _take(self, message: mqtt.MQTTMessage) -> None:
        # Of a session that was there before, the filters are not known.
        if self.present or any(mqtt.topic_matches_sub(name, message.topic) for name in self._filters):
            self.heard.put(message)
        else:
            self.unasked.append(message.topic)

    def _keep(self, mid: int, answer: Any) -> None:
        with self._changed:
            self._answers[mid] = answer
            self._changed.notify_all()

    def _await(self, mid: int | None, limit_s: float, what: str) -> Any:
        with self._changed:
            if not self._changed.wait_for(lambda: mid in self._answers or self._lost, limit_s):
                raise NoAnswerError(f"no {what}")
            if mid not in self._answers:
                raise NoAnswerError("disconnected")
            return self._answers.pop(mid)  # type: ignore[arg-type]

    def subscribe(self, *filters: str, qos: int = 1, no_local: bool = False) -> Sequence[int]:
        """Subscribe to all filters by one packet; return the codes, 128 and more for those that were refused."""
        self._filters.update(name.split("/", 2)[2] if name.startswith("$share/") else name for name in filters)
        if no_local:
            asked: Any = [(name, SubscribeOptions(qos=qos, noLocal=True)) for name in filters]
        else:
            asked = [(name, SubscribeOptions(qos=qos) if self._version == V5 else qos) for name in filters]
        codes: Sequence[int] = self._await(self._client.subscribe(asked)[1], LIMIT_S, "SUBACK")
        return codes

    def publish(
        self, topic: str, payload: bytes = b"x", *, qos: int = 1, retain: bool = False, limit_s: float = LIMIT_S
    ) -> int:
        """Publish, wait for PUBACK, and return its code."""
        mid = self._client.publish(topic, payload, qos=qos, retain=retain).mid
        return int(self._await(mid, limit_s, "PUBACK"))

    def publish_soon(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1 without waiting for anything."""
        self._client.publish(topic, payload, qos=1)

    def echo(self, topic: str) -> None:
        """Answer each message at once, on `topic`."""
        self._client.on_message = lambda _c, _d, message: self.publish_soon(topic, message.payload)

    def hear(self, limit_s: float = LIMIT_S) -> mqtt.MQTTMessage | None:
        """Return the next message; None if none came in time."""
        try:
            return self.heard.get(timeout=limit_s)
        except queue.Empty:
            return None

    def hear_all(self, quiet_s: float = 0.7) -> list[mqtt.MQTTMessage]:
        """Return what comes until nothing came for `quiet_s`; the first message may take LIMIT_S."""
        found = []
        message = self.hear()
        while message is not None:
            found.append(message)
            message = self.hear(quiet_s)
        return found

    def kill(self) -> None:
        """Cut the connection off, as the end of a process does: without DISCONNECT."""
        sock = self._client.socket()
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()

    def close(self) -> None:
        """Say DISCONNECT; return when the connection is gone."""
        self._client.disconnect()
        with self._changed:
            self._changed.wait_for(lambda: self._lost, 1.0)
        self._client.loop_stop()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _without_delay(_client: mqtt.Client, _data: object, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
