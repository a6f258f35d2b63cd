"""What a broker that runs retains of a board that is no longer one of its users."""

from __future__ import annotations

import secrets
from pathlib import Path

from broker_config.site import control
from broker_config.site.config import SiteConfig
from distree import topics
from distree.client.retained import find_retained
from distree.errors import BrokerError


def filters_of(site: str, board: str) -> list[str]:
    """Return filters for all topics on which the broker retains what a board says."""
    names = dict.fromkeys(("device", "origin", "to", "sender"), "+")
    return [
        topics.build(kind, site=site, pipeline="+", stage="+", **names | {topic.author: board})
        for kind, topic in topics.TABLE.items()
        if topic.delivery.retain and topic.author is not None
    ]


def clear(config: SiteConfig, users: Path, board: str) -> None:
    """Remove all of it, as an administrator; BrokerError if that fails.

    A board whose rights are gone can neither take it back nor be called lost by the broker, and others would go on
    taking it for ready.
    """
    name = control.find_administrator(config, users, board)
    if name is None:
        raise BrokerError(f"no administrator's secret is in {users}", "copy the folder of an administrator back")
    settings = control.settings_of(config, users / name, name)
    find_retained(settings, f"distree-control-{secrets.token_hex(4)}", filters_of(config.site, board), remove=True)
