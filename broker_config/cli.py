"""`distree broker`: a broker for a first try, for one board, or for development."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from broker_config.managed import WEBSOCKETS_USER, ManagedBroker
from distree.errors import ConfigError, DistreeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `distree broker` to a parser."""
    parser.epilog = "example: distree broker run --port 1884"
    commands = parser.add_subparsers(dest="broker_command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "run", help="run a broker on 127.0.0.1 until Ctrl-C", epilog="example: distree broker run --port 1884"
    )
    command.add_argument(
        "--port", type=int, default=1883, help="port on 127.0.0.1, 0 for a free one (default: %(default)s)"
    )
    command.add_argument(
        "--engine",
        choices=("auto", "mosquitto", "embedded"),
        default="auto",
        help="auto uses mosquitto if it is installed, otherwise the embedded broker (default: %(default)s); the "
        "environment variable DISTREE_MOSQUITTO may name mosquitto's path, and rules it out if empty",
    )
    command.add_argument(
        "--websockets",
        type=int,
        metavar="PORT",
        help="also let browsers (`distree dashboard`) connect to this port, on every address of this machine, "
        "read-only, with the password that is printed (mosquitto only; 0 for a free port)",
    )
    command.add_argument(
        "--persistence",
        type=Path,
        metavar="DIR",
        help="folder for sessions and retained messages (mosquitto only; written every half hour and at the end)",
    )


def run(args: argparse.Namespace) -> int:
    """Run a broker until SIGINT or SIGTERM. Exit status: 0 stopped, 1 the broker died, 2 it cannot start."""
    if not 0 <= args.port < 65536:
        raise ConfigError(f"--port: {args.port} is out of range", "choose 0 to 65535, where 0 picks a free port")
    if args.websockets is not None and not 0 <= args.websockets < 65536:
        raise ConfigError(
            f"--websockets: {args.websockets} is out of range", "choose 0 to 65535, where 0 picks a free port"
        )
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ManagedBroker(args.port, args.engine, args.persistence, websockets_port=args.websockets) as broker:
            print(f"{broker.describe()}, until Ctrl-C", flush=True)
            if broker.websockets_port is not None:
                print(
                    f"for browsers: ws://{broker.host}:{broker.websockets_port}, user {WEBSOCKETS_USER}, "
                    f"password {broker.websockets_password}",
                    flush=True,
                )
            while broker.running and not stop.wait(0.5):
                pass
            if not stop.is_set():
                print(f"distree: {broker.describe()} ended by itself; start it again", file=sys.stderr)
                return 1
    except DistreeError as error:
        print(f"distree: {error}", file=sys.stderr)
        return 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0
