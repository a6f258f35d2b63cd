"""`distree submit`: send files to a running origin whose source is `mqtt`, and print their results."""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections import deque
from pathlib import Path
from uuid import uuid4

import numpy as np

from distree import topics, wire
from distree.errors import BrokerError, ConfigError, RemoteProtocolError
from distree.protocols import Received
from distree.results import add_broker_arguments, broker_settings
from distree.topics import DELIVERY, Kind
from distree.transport.paho import PahoTransport
from distree.types import InputMessage

WINDOW = 16
"""Inputs on their way at a time: enough to keep an origin busy, fewer than its books hold."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree submit`."""
    add_broker_arguments(parser)
    parser.add_argument("--pipeline", required=True, help="pipeline id")
    parser.add_argument("--origin", required=True, help="device id of the origin")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="longest wait for an answer")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".npy arrays, images or raw bytes")
    parser.epilog = "example: distree submit --site lab --pipeline fashion --origin cam1 boot.png bag.npy"


class _Submitter:
    def __init__(self, transport: PahoTransport, topic: str, messages: list[InputMessage]) -> None:
        self._transport = transport
        self._topic = topic
        self._waiting = deque(messages)
        self._under_way: set[str] = set()
        self.heard_at = time.monotonic()

    @property
    def missing(self) -> int:
        return len(self._waiting) + len(self._under_way)

    def connected(self) -> None:
        self._fill()

    def disconnected(self, why: str) -> None:
        print(f"distree: {why}", file=sys.stderr)  # noqa: T201

    def published(self, token: str) -> None:
        """The result tells more than the broker's acknowledgement."""

    def received(self, message: Received) -> None:
        self._transport.acknowledge(message.token)
        try:
            result = wire.decode_result(message.payload)
        except RemoteProtocolError as error:
            print(f"distree: {message.topic}: {error}", file=sys.stderr)  # noqa: T201
            return
        if result.request in self._under_way and result.final:
            self._under_way.discard(result.request)
            self.heard_at = time.monotonic()
            print(message.payload.decode(), flush=True)  # noqa: T201
            self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._under_way) < WINDOW:
            message = self._waiting.popleft()
            self._under_way.add(message.request)
            delivery = DELIVERY[Kind.INPUT]
            self._transport.publish(self._topic, wire.encode_input(message), qos=delivery.qos)


def run(args: argparse.Namespace) -> int:
    """Carry out `distree submit`; return 0 if every file was answered, 1 otherwise."""
    settings = broker_settings(args)
    pipeline, origin = topics.check_id(args.pipeline, "--pipeline"), topics.check_id(args.origin, "--origin")
    batch = uuid4().hex[:12]
    messages = [_message(path, f"{batch}-{index:x}") for index, path in enumerate(args.files)]
    transport = PahoTransport(settings, client_id=f"distree-submit-{batch}", clean=True)
    submitter = _Submitter(transport, topics.of_origin(args.site, pipeline, Kind.INPUT, origin), messages)
    try:
        transport.open(submitter, [(topics.of_origin(args.site, pipeline, Kind.RESULT, origin), 1)])
        transport.connect_now(settings.connect_timeout_s + 1.0)
        while submitter.missing and time.monotonic() < submitter.heard_at + args.timeout:
            transport.poll(0.2)
    finally:
        transport.close()
    if submitter.missing:
        raise BrokerError(
            f"{submitter.missing} of {len(messages)} inputs got no answer within {args.timeout:g} s: is the agent "
            f"{origin!r} of site {args.site!r} running, with an origin of pipeline {pipeline!r} whose source is mqtt?"
        )
    return 0


def _message(path: Path, request: str) -> InputMessage:
    """Read a file; an .npy array travels as its bare bytes."""
    try:
        payload = path.read_bytes()
        if path.suffix == ".npy":
            payload = np.load(io.BytesIO(payload), allow_pickle=False).tobytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001 - of a file that is not an .npy numpy raises whatever it likes
        raise ConfigError(f"{path}: cannot be read as an .npy array: {' '.join(str(error).split())}") from None
    if len(payload) > wire.MAX_MESSAGE_BYTES - 1024:
        raise ConfigError(
            f"{path}: {len(payload)} bytes are too many for one message ({wire.MAX_MESSAGE_BYTES - 1024})"
        )
    return InputMessage(request=request, name=wire.printable(str(path))[-256:], payload=payload)
