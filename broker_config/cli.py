"""`distree broker`: a broker for a first try, and one for a site with users of its own."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from broker_config.managed import WEBSOCKETS_USER, ManagedBroker
from broker_config.site import cli as site_cli
from broker_config.site.broker import SiteBroker
from distree.errors import ConfigError, DistreeError
from distree.printable import printable_lines

if TYPE_CHECKING:
    from collections.abc import Iterator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `distree broker` to a parser."""
    parser.epilog = "example: distree broker run --port 1884"
    commands = parser.add_subparsers(dest="broker_command", required=True, metavar="COMMAND")
    _add_run(
        commands.add_parser(
            "run",
            help="run a broker until Ctrl-C: one for a first try on 127.0.0.1, or that of a site",
            epilog="example: distree broker run --port 1884",
        )
    )
    site_cli.add_init_arguments(
        commands.add_parser("init", help="make a broker for a site: users, secrets and rules, in a folder")
    )
    for command, told in (
        ("add", "let another board or user in"),
        ("change", "give a board or user other roles"),
        ("remove", "lock a board or user out"),
        ("rotate", "give a board or user a new password or certificate"),
    ):
        site_cli.add_user_arguments(commands.add_parser(command, help=told), command)
    site_cli.add_renew_arguments(commands.add_parser("renew", help="give the broker a new certificate"))


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="run the broker of this folder, from `distree broker init`",
    )
    command.add_argument("--port", type=int, help="port on 127.0.0.1, 0 for a free one (default: 1883)")
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
    """Carry out a subcommand. Exit status: 0 done or stopped, 1 the broker died, 2 it cannot start, or wrong usage."""
    match args.broker_command:
        case "init":
            return site_cli.run_init(args)
        case "add" | "change" | "remove" | "rotate":
            return site_cli.run_change(args, args.broker_command)
        case "renew":
            return site_cli.run_renew(args)
    return _run_broker(args)


def _run_broker(args: argparse.Namespace) -> int:
    for option, port in (("--port", args.port), ("--websockets", args.websockets)):
        if port is not None and not 0 <= port < 65536:
            raise ConfigError(f"{option}: {port} is out of range", "choose 0 to 65535, where 0 picks a free port")
    if args.folder is not None:
        given = (args.port, args.websockets, args.persistence)
        if given != (None, None, None) or args.engine != "auto":
            raise ConfigError(
                f"{args.folder}: the folder says how its broker runs", "leave the options out, or leave out the folder"
            )
        return _run_until_a_signal(SiteBroker(args.folder))
    port = 1883 if args.port is None else args.port
    return _run_until_a_signal(ManagedBroker(port, args.engine, args.persistence, websockets_port=args.websockets))


def _run_until_a_signal(broker: ManagedBroker | SiteBroker) -> int:
    try:
        with _stopped_by_signals() as stop, broker:
            print(f"{broker.describe()}, until Ctrl-C", flush=True)
            if isinstance(broker, ManagedBroker) and broker.websockets_port is not None:
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
        print(f"distree: {printable_lines(str(error))}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
