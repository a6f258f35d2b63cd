"""Serves the page: known files from memory, GET and HEAD only, each answer with the headers that keep it harmless."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from distree.apps.dashboard.page import INDEX, Asset
from distree.errors import ConfigError

_IDLE_S = 10.0
"""A client that sends nothing for this long is disconnected."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    assets: Mapping[str, Asset]
    policy: str

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up; anything else is a bug in this program."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "distree"
    sys_version = ""
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """Answer with a known file, or 404."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer as do_GET would, without the file."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        # A look-up by name: what is not in the table does not exist, however its path is written.
        name = unquote(urlsplit(self.path).path).removeprefix("/") or INDEX
        asset = self.server.assets.get(name)
        if asset is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", asset.content_type)
        self.send_header("Content-Length", str(len(asset.content)))
        self.end_headers()
        if with_body:
            self.wfile.write(asset.content)

    def end_headers(self) -> None:
        """Add to every answer, including errors, what browsers must not allow."""
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing: requests for a few files are not worth it."""


def make_server(bind: str, port: int, assets: Mapping[str, Asset], policy: str) -> ThreadingHTTPServer:
    """Return a server that listens on `bind`:`port` (0: a free one), to be run by `serve_forever`.

    `policy` is the Content-Security-Policy of its answers, to which it adds that no other page may frame them.
    ConfigError where it cannot listen.
    """
    try:
        server = _Server((bind, port), _Handler)
    except (OSError, OverflowError) as error:
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConfigError(
            f"cannot serve the page on {bind}:{port} ({why})", "choose another --bind or --port"
        ) from None
    server.assets, server.policy = assets, f"{policy}; frame-ancestors 'none'"
    return server
