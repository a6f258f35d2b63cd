"""`distree top`: the command."""

from __future__ import annotations

import argparse
import importlib.util
import time
from uuid import uuid4

from distree.apps.top.live import Live
from distree.broker_settings import Session
from distree.client.broker_options import add_broker_arguments, broker_settings
from distree.errors import ConfigError
from distree.transport import make_transport
from distree.transport.base import Transport

REFRESH_S = 1.0
RETAINED_S = 0.5
"""How long retained messages may take to arrive."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree top`."""
    add_broker_arguments(parser)
    parser.add_argument(
        "--once", action="store_true", help="print one snapshot when all ready boards have reported, and exit"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="with --once: longest wait for the reports (default: %(default)s)",
    )
    parser.epilog = (
        "example: distree top --broker 192.168.1.10:1883 --site lab (Ctrl-C ends it). ANS/S, EARLY, P50_MS and P95_MS "
        "describe origins between their last two reports; OPEN counts unanswered inputs; EXITS are shares since the "
        "origins started; RUN/S and WAIT describe the stages that a board serves."
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `distree top`; return the exit status, 1 if --once heard from no board."""
    if importlib.util.find_spec("rich") is None:
        raise ConfigError("distree top needs the package rich", "run: pip install 'distree[top]'")
    settings = broker_settings(args)
    transport = make_transport(settings, client_id=f"distree-top-{uuid4().hex[:8]}", session=Session.NONE)
    live = Live(args.site, transport)
    try:
        transport.open(live, live.subscriptions())
        transport.connect_now(settings.connect_timeout_s + 1.0)
        return _once(live, transport, args.wait) if args.once else _follow(live, transport)
    except KeyboardInterrupt:
        return 0
    finally:
        transport.close()


def _once(live: Live, transport: Transport, wait_s: float) -> int:
    from rich.console import Console

    from distree.apps.top.screen import draw

    began_at = time.monotonic()
    while (passed_s := time.monotonic() - began_at) < wait_s:
        transport.poll(0.1)
        if passed_s >= RETAINED_S and live.is_complete():
            break
    frame = live.frame()
    console = Console()
    console.print(draw(frame, width=console.width, height=None))
    return 0 if frame.boards else 1


def _follow(live: Live, transport: Transport) -> int:
    from rich.console import Console
    from rich.live import Live as Display

    from distree.apps.top.screen import draw

    console = Console()
    with Display(console=console, screen=True, auto_refresh=False) as display:
        while True:
            display.update(draw(live.frame(), width=console.width, height=console.height), refresh=True)
            ends_at = time.monotonic() + REFRESH_S
            while (left_s := ends_at - time.monotonic()) > 0:
                transport.poll(left_s)
