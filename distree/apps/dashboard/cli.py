"""`distree dashboard`: serve the page, or write it out for a web server."""

from __future__ import annotations

import argparse
import sys
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from distree import topics
from distree.apps.dashboard.page import Asset, assets, check_broker, policy
from distree.apps.dashboard.server import make_server
from distree.broker_address import joined
from distree.errors import ConfigError

DEFAULT_BROKER = "ws://127.0.0.1:9001"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree dashboard`."""
    parser.add_argument(
        "--broker",
        action="append",
        metavar="URL",
        help="a broker's websockets listener as browsers reach it, ws://HOST:PORT or wss://HOST:PORT; may be given "
        f"several times (default: {DEFAULT_BROKER})",
    )
    parser.add_argument(
        "--site", default="", help="site to show first (default: all that the broker allows to be read)"
    )
    parser.add_argument("--port", type=int, default=8080, help="port of the page, 0 for a free one (default: 8080)")
    parser.add_argument(
        "--bind",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on, 0.0.0.0 for all networks (default: 127.0.0.1)",
    )
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the page's files there and exit")
    parser.epilog = "example: distree dashboard --broker ws://192.168.1.10:9001 --bind 0.0.0.0"


def run(args: argparse.Namespace) -> int:
    """Carry out `distree dashboard`; serves until Ctrl-C."""
    brokers = [check_broker(url) for url in args.broker or [DEFAULT_BROKER]]
    if args.site:
        topics.check_id(args.site, "--site")
    page = assets(brokers, args.site)
    if args.export is not None:
        _export(args.export, page)
        print(f"{len(page)} files written to {args.export}; serve them as they are, index.html first")
        return 0
    if not 0 <= args.port < 65536:
        raise ConfigError(f"--port: {args.port} is out of range", "choose 0 to 65535, where 0 picks a free port")
    with make_server(args.bind, args.port, page, policy(brokers)) as server:
        host, port = server.server_address[:2]
        print(f"dashboard on http://{joined(str(host), port)}/, until Ctrl-C", flush=True)
        for url in brokers:
            if not _is_loopback(args.bind) and _is_loopback(urlsplit(url).hostname or ""):
                print(
                    f"distree: other machines cannot reach {url}; give --broker the address that they use",
                    file=sys.stderr,
                )
        server.serve_forever()
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _export(folder: Path, page: dict[str, Asset]) -> None:
    try:
        for name, asset in page.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(asset.content)
    except OSError as error:
        what = f"--export {folder}: cannot be written ({error.strerror or error})"
        raise ConfigError(what, "name a folder that can be written") from None
