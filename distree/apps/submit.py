"""`distree submit`: send files to a running origin whose source is `mqtt`, and print their results."""

from __future__ import annotations

import argparse
import io
import time
from collections import deque
from pathlib import Path
from uuid import uuid4

import numpy as np

from distree import topics
from distree.apps.results_cli import as_text
from distree.client.broker_options import add_broker_arguments, broker_settings
from distree.client.results import result_topic
from distree.client.subscription import Subscription
from distree.errors import CHECK_PATH, BrokerError, ConfigError, ResultTimeoutError
from distree.formatting import counted
from distree.messages.codec import decode, encode
from distree.messages.limits import MAX_MESSAGE_BYTES
from distree.messages.request import InputMessage
from distree.messages.result import Result
from distree.printable import printable
from distree.topics import Kind
from distree.transport.base import Received

WINDOW = 16
"""Inputs under way at a time: enough to keep an origin busy, fewer than it accepts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree submit`."""
    add_broker_arguments(parser)
    parser.add_argument("--pipeline", required=True, help="pipeline id")
    parser.add_argument("--origin", required=True, help="device id of the origin")
    parser.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="longest wait for the next answer (default: %(default)g)",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".npy arrays, images or raw bytes")
    parser.epilog = "example: distree submit --site lab --pipeline fashion --origin cam1 boot.png bag.npy"


def run(args: argparse.Namespace) -> int:
    """Carry out `distree submit`; return 0 if every file was answered, 1 otherwise."""
    settings = broker_settings(args)
    pipeline, origin = topics.check_id(args.pipeline, "--pipeline"), topics.check_id(args.origin, "--origin")
    batch = uuid4().hex[:12]
    messages = [_message(path, f"{batch}-{index:x}") for index, path in enumerate(args.files)]

    def own(message: Received) -> tuple[str, str] | None:
        result = decode(Result, message.payload)
        return (result.request, as_text(message)) if result.final and result.request.startswith(batch) else None

    waiting, under_way = deque(messages), dict[str, str]()
    topic = topics.of_origin(args.site, pipeline, Kind.INPUT, origin)
    connect_timeout_s = settings.connect_timeout_s + 1.0
    with Subscription(
        settings, [result_topic(args.site, pipeline, origin)], own, connect_timeout_s=connect_timeout_s
    ) as results:
        heard_at = time.monotonic()
        while waiting or under_way:
            while waiting and len(under_way) < WINDOW:
                message = waiting.popleft()
                under_way[message.request] = message.name
                results.publish(topic, encode(message))
            try:
                request, line = results.get(max(0.0, heard_at + args.timeout - time.monotonic()))
            except ResultTimeoutError:
                names = ", ".join([*under_way.values()][:3])
                raise BrokerError(
                    f"{len(waiting) + len(under_way)} of {counted(len(messages), 'input')} got no answer within "
                    f"{args.timeout:g} s ({names})",
                    f"check that the agent {origin!r} of site {args.site!r} is running, that it has an origin of "
                    f"pipeline {pipeline!r} with source mqtt, and that these are inputs for its bundle",
                ) from None
            if request in under_way:
                del under_way[request]
                heard_at = time.monotonic()
                print(line, flush=True)  # noqa: T201
    return 0


def _message(path: Path, request: str) -> InputMessage:
    """Read a file; an .npy array travels as its bare bytes."""
    try:
        payload = path.read_bytes()
        if path.suffix == ".npy":
            payload = np.load(io.BytesIO(payload), allow_pickle=False).tobytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})", CHECK_PATH) from None
    except Exception:  # noqa: BLE001 - for a file that is not an .npy numpy raises whatever it likes
        raise ConfigError(f"{path}: not an .npy array", "write one with numpy.save(path, array)") from None
    if len(payload) > MAX_MESSAGE_BYTES - 1024:
        raise ConfigError(
            f"{path}: {len(payload)} bytes do not fit into one message (at most {MAX_MESSAGE_BYTES - 1024})",
            "shrink it, or put it into a folder on the board (source: {kind: directory})",
        )
    return InputMessage(request=request, name=printable(str(path)[-256:], 256), payload=payload)
