"""`distree submit`: send files to a running origin whose source is `mqtt`, and print their results."""

from __future__ import annotations

import argparse
import time
from collections import Counter, deque
from pathlib import Path
from uuid import uuid4

from distree import topics
from distree.apps.results_cli import as_text
from distree.bundle.inputs import check_file
from distree.bundle.windows import count_of
from distree.client.broker_options import add_broker_arguments, broker_settings
from distree.client.results import result_topic
from distree.client.subscription import Subscription
from distree.errors import CHECK_PATH, BrokerError, ConfigError, RemoteProtocolError, ResultTimeoutError
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
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="images, WAV or CSV files, .npy arrays, raw values"
    )
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

    waiting, under_way, answered = deque(messages), dict[str, str](), Counter[str]()
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
            # A recording of several windows has an answer for each of them.
            request, windows = count_of(request)
            if request in under_way:
                answered[request] += 1
                if answered[request] >= windows:
                    del under_way[request]
                heard_at = time.monotonic()
                print(line, flush=True)  # noqa: T201
    return 0


def _message(path: Path, request: str) -> InputMessage:
    """Read a file, which travels as it is: its bundle, and so what is to be made of it, is known to the origin."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})", CHECK_PATH) from None
    if len(content) > MAX_MESSAGE_BYTES - 1024:
        raise ConfigError(
            f"{path}: {len(content)} bytes do not fit into one message (at most {MAX_MESSAGE_BYTES - 1024})",
            "shrink it, or put it into a folder on the board (source: {kind: directory})",
        )
    try:
        check_file(content, path.name)
    except RemoteProtocolError as error:
        raise ConfigError(f"{path}: {error.detail}", error.remedy) from None
    return InputMessage(request=request, name=printable(str(path)[-256:], 256), payload=content)
