"""`distree results`: print a site's results as they arrive, one JSON object per line."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time

from distree import topics
from distree.client.broker_options import add_broker_arguments, broker_settings
from distree.client.debounce import Debounce
from distree.client.results import result_topic
from distree.client.subscription import Subscription
from distree.errors import ConfigError, ResultTimeoutError
from distree.formatting import counted
from distree.messages.codec import decode
from distree.messages.result import Result
from distree.transport.base import Received


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree results`."""
    add_broker_arguments(parser)
    parser.add_argument("--pipeline", help="only this pipeline (default: all)")
    parser.add_argument("--count", type=int, metavar="N", help="stop after N results")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="stop after this time, with exit status 1")
    parser.add_argument(
        "--debounce",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="leave out a result that repeats a label that its origin gave within this time, as overlapping windows do",
    )
    parser.epilog = "example: distree results --site lab --pipeline fashion --count 10"


def run(args: argparse.Namespace) -> int:
    """Carry out `distree results`; return the exit status."""
    settings = broker_settings(args)
    pipeline = None if args.pipeline in (None, "+") else topics.check_id(args.pipeline, "--pipeline")
    if not 0 <= args.debounce < math.inf:
        raise ConfigError(f"--debounce: {args.debounce:g} is out of range", "choose a number of seconds, such as 2")
    ends_at = time.monotonic() + args.timeout if args.timeout else None
    debounce = Debounce(args.debounce)
    got = 0
    connect_timeout_s = settings.connect_timeout_s + 1.0
    with Subscription(
        settings, [result_topic(args.site, pipeline)], read, connect_timeout_s=connect_timeout_s
    ) as results:
        print("distree: subscribed, waiting for results", file=sys.stderr, flush=True)
        try:
            while args.count is None or got < args.count:
                result, text = results.get(None if ends_at is None else max(0.0, ends_at - time.monotonic()))
                if args.debounce and debounce.repeats(result, time.monotonic()):
                    continue
                print(text, flush=True)
                got += 1
        except ResultTimeoutError:
            print(f"distree: {_shortfall(args, got)}", file=sys.stderr, flush=True)
            return 1
    return 0


def _shortfall(args: argparse.Namespace, got: int) -> str:
    came = counted(got, "result") if args.count is None else f"{got:,} of {counted(args.count, 'result')}"
    came += f" came within {args.timeout:g} s"
    return came if got else f"{came}; see which boards of site {args.site} are there: distree top --site {args.site}"


def as_text(message: Received) -> str:
    """Return a result as it arrived; it is JSON already. RemoteProtocolError for anything else."""
    return read(message)[1]


def read(message: Received) -> tuple[Result, str]:
    """Return a result, and its text as it arrived, which is JSON; RemoteProtocolError for anything else.

    Of a text with line breaks or what else a terminal obeys, the same JSON is returned without them.
    """
    result, text = decode(Result, message.payload), message.payload.decode()
    return result, text if text.isprintable() else json.dumps(json.loads(text))
