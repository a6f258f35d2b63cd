"""`distree results`: print a site's results as they come, one JSON object a line."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from uuid import uuid4

from distree import topics
from distree.errors import ConfigError
from distree.protocols import Received
from distree.topics import ROOT
from distree.transport.paho import PahoTransport
from distree.types import BrokerSettings


def add_broker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the broker is and which site is meant."""
    parser.add_argument("--broker", default="127.0.0.1:1883", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--username", help="user name at the broker")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="its first line is the password")
    parser.add_argument("--site", required=True, help="site id, as in agent.yaml")


def broker_settings(args: argparse.Namespace) -> BrokerSettings:
    """Read the options of `add_broker_arguments`; ConfigError for what is no HOST:PORT or no site."""
    topics.check_id(args.site, "--site")
    host, port = split_address(args.broker)
    return BrokerSettings(host=host, port=port, username=args.username, password_file=args.password_file)


def split_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT; ConfigError if it is not of that form."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--broker: expected HOST:PORT, received {address!r}; for example 127.0.0.1:1883")
    return host, int(port)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree results`."""
    add_broker_arguments(parser)
    parser.add_argument("--pipeline", default="+", help="only this pipeline (default: all)")
    parser.add_argument("--count", type=int, metavar="N", help="end after N results")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="end after so long, with exit status 1")
    parser.epilog = "example: distree results --site lab --pipeline fashion --count 10"


class _Printer:
    """Prints what comes, as it came, up to `count` of it: results are JSON already."""

    def __init__(self, transport: PahoTransport, count: int | None) -> None:
        self._transport = transport
        self._count = count
        self.seen = 0

    @property
    def done(self) -> bool:
        """Whether all that was wanted is printed."""
        return self._count is not None and self.seen >= self._count

    def connected(self) -> None:
        """Nothing to say: results follow."""

    def disconnected(self, why: str) -> None:
        """Say why; the transport keeps trying."""
        print(f"distree: {why}", file=sys.stderr)  # noqa: T201

    def received(self, message: Received) -> None:
        """Print one result; one turn at the network may bring more of them than are wanted."""
        if self.done:
            return
        self.seen += 1
        print(message.payload.decode(errors="replace"), flush=True)  # noqa: T201
        self._transport.acknowledge(message.token)

    def published(self, token: str) -> None:
        """Nothing is published here."""


def run(args: argparse.Namespace) -> int:
    """Carry out `distree results`; return the exit status."""
    settings = broker_settings(args)
    pipeline = args.pipeline if args.pipeline == "+" else topics.check_id(args.pipeline, "--pipeline")
    transport = PahoTransport(settings, client_id=f"distree-results-{uuid4().hex[:8]}", clean=True)
    printer = _Printer(transport, args.count)
    ends_at = time.monotonic() + args.timeout if args.timeout else float("inf")
    try:
        transport.open(printer, [(f"{ROOT}/{args.site}/pipeline/{pipeline}/result/+", 1)])
        transport.connect_now(settings.connect_timeout_s + 1.0)
        while not printer.done:
            if time.monotonic() > ends_at:
                return 1
            transport.poll(0.5)
    finally:
        transport.close()
    return 0
