"""`distree orchestrator home-assistant`: show or remove what a broker retains for Home Assistant about a site.

It asks the broker and not the store, so it finds what any orchestrator of the site has left there.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from distree.broker_settings import Session
from distree.client.confirmations import Confirmations
from distree.formatting import counted
from distree.printable import printable
from distree.topics import check_prefix
from distree.transport import make_transport
from distree.transport.base import Received, Transport
from orchestrator.config import HOME_ASSISTANT_PREFIX, OrchestratorConfig
from orchestrator.home_assistant import config_topic, is_of_site
from orchestrator.store.lock import is_served

QUIET_S = 1.0
"""After so many seconds without a message, the broker has sent everything that it retains."""

LONGEST_S = 10.0
"""Longest wait for that."""


class _Finder(Confirmations):
    """Collects the site's discovery messages as the broker sends them, by topic."""

    def __init__(self, transport: Transport, site: str) -> None:
        super().__init__()
        self._transport = transport
        self._site = site
        self.found: dict[str, bytes] = {}
        self.heard_at = time.monotonic()

    def connected(self) -> None:
        """What the broker retains comes now."""
        self.heard_at = time.monotonic()

    def received(self, message: Received) -> None:
        """Keep what belongs to this site; others announce their devices beside it."""
        self._transport.acknowledge(message.token)
        self.heard_at = time.monotonic()
        if message.payload and is_of_site(self._site, message.topic):
            self.found[message.topic] = message.payload


def show(config: OrchestratorConfig, prefix: str | None, *, remove: bool) -> str:
    """Return lines on what Home Assistant was told about the site, and remove it if asked. Raises BrokerError."""
    if prefix is None:
        prefix = config.home_assistant.prefix if config.home_assistant else HOME_ASSISTANT_PREFIX
    where = config_topic(check_prefix(prefix, "--prefix"), "+")
    client_id = f"orchestrator-{config.site}-home-{secrets.token_hex(3)}"
    transport = make_transport(config.broker, client_id=client_id, session=Session.NONE)
    finder = _Finder(transport, config.site)
    try:
        transport.open(finder, [(where, 1)])
        transport.connect_now(config.broker.connect_timeout_s + 1.0)
        ends_at = time.monotonic() + LONGEST_S
        while time.monotonic() < min(ends_at, finder.heard_at + QUIET_S):
            transport.poll(0.1)
        found = dict(sorted(finder.found.items()))
        if remove:
            _remove(transport, finder, found)
    finally:
        transport.close()
    if not found:
        return f"nothing about site {config.site} at {where}"
    lines = [f"{'removed ' if remove else ''}{topic}: {_about(payload)}" for topic, payload in found.items()]
    if remove and config.home_assistant is not None and is_served(config.store.path):
        lines.append(
            "the running orchestrator announces the site again when Home Assistant starts: remove home_assistant from "
            "its configuration and restart it"
        )
    return "\n".join(lines)


def _remove(transport: Transport, finder: _Finder, found: dict[str, bytes]) -> None:
    with transport.lock:
        for topic in found:
            transport.publish(topic, b"", qos=1, retain=True, token=topic)
    finder.wait_for(transport, found)


def _about(payload: bytes) -> str:
    try:
        said: Any = json.loads(payload)
        return f"{printable(str(said['dev']['name']))}, {counted(len(said['cmps']), 'entity', 'entities')}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{counted(len(payload), 'byte')} that are not a discovery message"
