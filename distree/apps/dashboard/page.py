"""The files of the page as they are served or exported: the brokers written in, and the policy that names no other."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from urllib.parse import urlsplit

from distree import __version__
from distree.broker_address import parse_address
from distree.errors import ConfigError
from distree.printable import printable, quoted
from distree.record import record

INDEX = "index.html"

_SCHEMES = {"ws": None, "wss": None}
_PATH = re.compile(r"[A-Za-z0-9/_.~-]*")

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
NAMES = (
    INDEX,
    "style.css",
    "icon.svg",
    "main.js",
    "link.js",
    "decode.js",
    "declared.js",
    "plan_hash.js",
    "model.js",
    "flow.js",
    "view.js",
    "vendor/mqtt.min.js",
    "vendor/mqtt.LICENSE.txt",
    "vendor/msgpack.min.js",
    "vendor/msgpack.LICENSE.txt",
)
"""All files of the page; nothing else is ever served."""


@record
class Asset:
    """One file of the page."""

    content_type: str
    content: bytes


def check_broker(url: str) -> str:
    """Return a broker's websockets address, with its path, as a browser takes it; ConfigError for anything else."""
    head, separator, path = url.strip().partition("://")
    authority, slash, path = path.partition("/")
    host = authority.rpartition("@")[2]
    if "@" in authority or any(mark in url for mark in "?#"):
        raise ConfigError(
            f"--broker: the address of {printable(host.partition(':')[0])} has more than a host and port",
            "remove the rest, and type the user and the password into the page",
        )
    address = parse_address(f"{head}{separator}{authority}", "--broker", _SCHEMES, needs_scheme=True)
    # It becomes part of the page's security policy, where a space or a semicolon would say something else.
    if not _PATH.fullmatch(path) or not address.host.isascii():
        raise ConfigError(
            f"--broker: {quoted(url)} cannot stand in a page", "write it with plain letters, digits, '-', '.' and '_'"
        )
    return f"{address.scheme}://{address}{slash}{path}"


def policy(brokers: Iterable[str]) -> str:
    """Return the Content-Security-Policy of the page: its own files, and connections to `brokers` only."""
    # A source with a path would have to match exactly; the origin is enough.
    origins = sorted({f"{parts.scheme}://{parts.netloc}" for parts in map(urlsplit, brokers)})
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        f"connect-src {' '.join(origins)}; base-uri 'none'; form-action 'none'"
    )


def assets(brokers: Sequence[str], site: str = "") -> dict[str, Asset]:
    """Return the page's files by name, the brokers and the site to begin with written into its index."""
    folder = files("distree.apps.dashboard") / "page"
    made = {}
    for name in NAMES:
        content = folder.joinpath(*name.split("/")).read_bytes()
        if name == INDEX:
            content = _filled(content.decode(), brokers, site).encode()
        made[name] = Asset(content_type=_TYPES[name.rpartition(".")[2]], content=content)
    return made


def _filled(index: str, brokers: Sequence[str], site: str) -> str:
    values = {"POLICY": policy(brokers), "BROKERS": " ".join(brokers), "SITE": site, "VERSION": __version__}
    for name, value in values.items():
        index = index.replace(f"@{name}@", html.escape(value))
    return index
