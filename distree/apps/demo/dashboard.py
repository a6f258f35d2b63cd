"""The dashboard beside the demo."""

from __future__ import annotations

import contextlib
import threading

from distree.apps.dashboard.page import assets, policy
from distree.apps.dashboard.server import make_server
from distree.errors import ConfigError


def serve_dashboard(stack: contextlib.ExitStack, port: int, broker: str) -> str:
    """Serve the page of a broker (ws://HOST:PORT) on a port of 127.0.0.1 until `stack` closes; return its URL."""
    if not 0 <= port < 65536:
        raise ConfigError(f"--dashboard: port {port} is out of range", "choose 0 to 65535, where 0 picks a free port")
    server = stack.enter_context(make_server("127.0.0.1", port, assets([broker]), policy([broker])))
    threading.Thread(target=server.serve_forever, name="dashboard", daemon=True).start()
    stack.callback(server.shutdown)
    return f"http://127.0.0.1:{server.server_address[1]}/"
