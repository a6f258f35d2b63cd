"""`distree orchestrator home-assistant`: show or remove what a broker retains for Home Assistant about a site.

It asks the broker and not the store, so it finds what any orchestrator of the site has left there.
"""

from __future__ import annotations

import json
import secrets
from functools import partial
from typing import Any

from distree.client.retained import find_retained
from distree.formatting import counted
from distree.printable import printable
from distree.topics import check_prefix
from orchestrator.config import HOME_ASSISTANT_PREFIX, OrchestratorConfig
from orchestrator.home_assistant import config_topic, is_of_site
from orchestrator.store.lock import is_served


def show(config: OrchestratorConfig, prefix: str | None, *, remove: bool) -> str:
    """Return lines on what Home Assistant was told about the site, and remove it if asked. Raises BrokerError."""
    if prefix is None:
        prefix = config.home_assistant.prefix if config.home_assistant else HOME_ASSISTANT_PREFIX
    where = config_topic(check_prefix(prefix, "--prefix"), "+")
    client_id = f"orchestrator-{config.site}-home-{secrets.token_hex(3)}"
    found = find_retained(config.broker, client_id, [where], partial(is_of_site, config.site), remove=remove)
    if not found:
        return f"nothing about site {config.site} at {where}"
    lines = [f"{'removed ' if remove else ''}{topic}: {_about(payload)}" for topic, payload in found.items()]
    if remove and config.home_assistant is not None and is_served(config.store.path):
        lines.append(
            "the running orchestrator announces the site again when Home Assistant starts: remove home_assistant from "
            "its configuration and restart it"
        )
    return "\n".join(lines)


def _about(payload: bytes) -> str:
    try:
        said: Any = json.loads(payload)
        return f"{printable(str(said['dev']['name']))}, {counted(len(said['cmps']), 'entity', 'entities')}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{counted(len(payload), 'byte')} that are not a discovery message"
