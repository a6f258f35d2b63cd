"""Inputs from the origin's input topic, and from topics of other programs, on a connection of their own.

The broker keeps this connection's session while the agent is away, so that inputs published meanwhile are answered when
it is back. Nothing else arrives on it: while the origin is full nothing is read, and the broker keeps what waits.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import ClassVar, Literal
from uuid import uuid4

from device_agent.sources.base import BaseSourceConfig, InputSink
from distree.bundle.windows import request_of
from distree.errors import ConfigError, Problem, RemoteProtocolError
from distree.log_throttle import LogThrottle
from distree.messages.codec import PROBE, decode
from distree.messages.events import EventKind
from distree.messages.limits import MAX_MESSAGE_BYTES, MAX_TEXT
from distree.messages.request import InputMessage, is_input
from distree.printable import printable, quoted
from distree.record import record
from distree.tensors import Array
from distree.topics import check_filter, overlap
from distree.transport.base import QuietListener, Received, Transport

log = logging.getLogger(__name__)

WAITING = 256
"""Inputs at QoS 1 that may wait here for room; then reading stops. Brokers may send more than they were asked to."""

WAITING_BYTES = 4 << 20

_TURN_BYTES = 2 << 20
"""What may be read in one turn, beyond what may wait."""

_TOPICS = 4096
"""Topics whose last message is known again, where retained ones are taken."""

_POLL_S = 0.5
_ROOM_S = 0.25
_TURN_S = 2.0
"""How long inputs are handed over before the connection is looked after again."""


@record
class _Input:
    """One input of a message that is handed over piece by piece."""

    name: str
    raw: Array
    request: str | None


@record
class _Seen:
    """The last message on a topic, where retained ones are taken."""

    digest: bytes
    was_retained: bool


@record
class MqttSourceConfig(BaseSourceConfig):
    """Inputs by MQTT: what a file would contain, as it is, with a name, or inside JSON."""

    kind: Literal["mqtt"]
    """Inputs by MQTT, on `pipeline/{pipeline}/input/{device}` and on a topic of your own."""
    topic: str | None = None
    """A topic of other programs, such as `frigate/+/+/snapshot`, to be read beside this origin's own."""
    json_field: str | None = None
    """Which field of a JSON message holds the input, such as `data.image`; if left out, its name says so."""
    retained: Literal["ignore", "take"] = "ignore"
    """Whether a retained message, published before this origin was there, is an input; if so, it is answered once."""

    reads_input_topic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.topic is not None:
            check_filter(self.topic, "topic")
        if self.json_field is not None and not all(self.json_field.split(".")):
            raise ConfigError(
                f"json_field: {quoted(self.json_field)} is not a field", "write names with full stops between them"
            )

    def make(self, sink: InputSink, topic: str, connection: Callable[[], Transport]) -> MqttSource:
        """Make what reads the topics, by a connection of its own."""
        return MqttSource(self, sink, connection(), topic)

    def foreign_topics(self) -> tuple[str, ...]:
        """Return `topic`, if there is one."""
        return () if self.topic is None else (self.topic,)

    def memory(self) -> dict[str, int]:
        """Return what inputs may take that wait for room."""
        return {"inputs that wait for room": WAITING_BYTES + _TURN_BYTES}

    def longest_file(self) -> int:
        """Return the size of the largest message."""
        return MAX_MESSAGE_BYTES


class MqttSource(QuietListener):
    """Takes inputs from `topic`, and from the configured one, of `transport`.

    A message is what a file would contain, as it is, in JSON, or with a name and a request id (`InputMessage`); a
    recording of several windows is as many inputs. An input at QoS 1 waits for room, and is acknowledged once it is in
    custody. One at QoS 0 cannot wait, since the broker would drop it: without room it is answered `shed`. A retained
    message was published before this origin was there, and is an input only where that is configured; each time that
    the connection comes back it is delivered again, and is known by its content. An empty one clears what was retained.
    """

    def __init__(self, config: MqttSourceConfig, sink: InputSink, transport: Transport, topic: str) -> None:
        self._config = config
        self._sink = sink
        self._transport = transport
        self._topic = topic
        self._filters = (topic, *config.foreign_topics())
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._waiting: deque[Received] = deque()
        self._waiting_bytes = 0
        self._at_qos_0: deque[Received] = deque()
        self._opened: deque[_Input] = deque()
        self._message: Received
        self._throttle = LogThrottle()
        self._said: Problem | None = None
        self.ready = False
        """Whether the topics were subscribed to; from then on no input is lost."""

    def run(self, stop: threading.Event) -> None:
        """Read and submit until `stop`; what was not submitted by then stays with the broker."""
        self._transport.open(self, [(name, 1) for name in self._filters])
        try:
            while not stop.is_set():
                self._transport.poll(0.0 if self._waiting or self._opened else _POLL_S)
                self._log_problems()
                self._submit_waiting(stop)
        finally:
            self._transport.close()

    def _submit_waiting(self, stop: threading.Event) -> None:
        while self._at_qos_0:
            message = self._at_qos_0.popleft()
            inputs = self._inputs_of(message)
            while inputs:
                self._submit(inputs.popleft(), message)
        ends_at = time.monotonic() + _TURN_S
        while (self._opened or self._waiting) and not stop.is_set() and self._sink.wait_for_room(0.0):
            if time.monotonic() > ends_at:
                break
            if not self._opened:
                self._message = self._waiting.popleft()
                self._waiting_bytes -= len(self._message.payload)
                self._opened = self._inputs_of(self._message)
            if self._opened:
                self._submit(self._opened.popleft(), self._message)
            if not self._opened:
                with self._transport.lock:
                    self._transport.acknowledge(self._message.token)
        if (self._opened or self._waiting) and not stop.is_set():
            self._sink.wait_for_room(_ROOM_S)
        full = len(self._waiting) >= WAITING or self._waiting_bytes >= WAITING_BYTES
        with self._transport.lock:
            self._transport.pause(paused=full)

    def _inputs_of(self, message: Received) -> deque[_Input]:
        """Read a message: its inputs, in order; none if it is refused."""
        request, content = "", message.payload
        name = "" if message.topic == self._topic else printable(message.topic, 256)
        try:
            if is_input(content):
                named = decode(InputMessage, content)
                request, name, content = named.request, named.name or name, named.payload
            found = self._sink.reader.read_named(content, self._config.json_field)
            name, request = name if request else found.name or name, request or found.request or ""
            if not request and len(found.inputs) > 1:
                request = uuid4().hex[:12]
            return deque(
                _Input(
                    name=item.named(name),
                    raw=item.raw,
                    request=_part_of(request, number, len(found.inputs)) if request else None,
                )
                for number, item in enumerate(found.inputs, 1)
            )
        except RemoteProtocolError as error:
            self._sink.reject(name, error, message.payload, request=request, topic=message.topic)
        return deque()

    def _submit(self, given: _Input, message: Received) -> None:
        try:
            self._sink.submit(given.name, given.raw, given.request)
            self._sink.run_jobs()
        except RemoteProtocolError as error:
            self._sink.reject(given.name, error, message.payload, request=given.request or "", topic=message.topic)

    def note_answered(self, request: str) -> None:
        """Nothing to do: the delivery was acknowledged when the input was submitted."""

    def _log_problems(self) -> None:
        """Log what is wrong with the connection."""
        while self._transport.notices:
            log.warning("inputs: %s", self._transport.notices.popleft())
        error = self._transport.last_error
        if error is not None and error != self._said:
            self._warn(str(error))
        self._said = error

    def _warn(self, text: str) -> None:
        line = self._throttle.line(time.monotonic(), text)
        if line is not None:
            log.warning("inputs: %s", line)

    # ------------------------------------------------------------ Listener

    def connected(self) -> None:
        """The topic is subscribed to."""
        self.ready = True
        self._sink.wake()

    def disconnected(self, why: Problem) -> None:
        """Forget what was not acknowledged: it will be delivered again."""
        for message in self._waiting if not self._opened else (*self._waiting, self._message):
            self._seen.pop(message.topic, None)
        self._waiting.clear()
        self._opened.clear()
        self._waiting_bytes = 0
        self._warn(str(why))
        self._said = self._transport.last_error

    def received(self, message: Received) -> None:
        """Take in a message; anything but an input is acknowledged at once."""
        if not self._is_input(message):
            self._transport.acknowledge(message.token)
        elif message.token is None:
            self._at_qos_0.append(message)
        else:
            self._waiting.append(message)
            self._waiting_bytes += len(message.payload)

    def _is_input(self, message: Received) -> bool:
        if not any(overlap(name, message.topic) for name in self._filters):
            # The broker's session outlives a change of the configuration.
            self._sink.tell(
                EventKind.SOURCE,
                f"ignored a message on {printable(message.topic)}, to which an earlier configuration subscribed",
                "let the broker forget the session of this origin's inputs, or stop the agent for longer than "
                "session_expiry_s, to end this",
                like="unsubscribed",
            )
            return False
        if not message.payload or message.payload == PROBE:
            return False
        if self._config.retained == "take":
            return self._is_new(message)
        if message.retain:
            self._sink.tell(
                EventKind.INPUT,
                f"ignored a retained message on {printable(message.topic)}, which may be old",
                "publish inputs without retain, or set retained: take",
                like=f"retained {message.topic}",
            )
        return not message.retain

    def _is_new(self, message: Received) -> bool:
        """Whether a message is not the one that the broker has retained and delivered before.

        What was published during an outage comes twice: as it was retained, and as it was kept for this client.
        """
        digest = hashlib.sha256(message.payload).digest()
        last = self._seen.pop(message.topic, None)
        self._seen[message.topic] = _Seen(digest=digest, was_retained=message.retain)
        if len(self._seen) > _TOPICS:
            self._seen.popitem(last=False)
        return last is None or last.digest != digest or not (message.retain or last.was_retained)


def _part_of(request: str, number: int, count: int) -> str:
    """Return the request id of a window; RemoteProtocolError where it would be too long for one."""
    part = request_of(request, number, count)
    if len(part) > MAX_TEXT:
        raise RemoteProtocolError(
            "request",
            f"{len(request)} characters, and {part[len(request) :]!r} of a window, exceed the limit of {MAX_TEXT}",
            "give a shorter request id",
        )
    return part
