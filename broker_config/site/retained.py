"""What a broker that runs retains of a board that is no longer one of its users."""

from __future__ import annotations

from pathlib import Path

from broker_config.site import control
from broker_config.site.config import SiteConfig
from distree import topics
from distree.client.retained import find_retained


def filters_of(site: str, board: str) -> list[str]:
    """Return filters for all topics on which the broker retains what a board says."""
    names = dict.fromkeys(("device", "origin", "to", "sender"), "+")
    return [
        topics.build(kind, site=site, pipeline="+", stage="+", **names | {topic.author: board})
        for kind, topic in topics.TABLE.items()
        if topic.delivery.retain and topic.author is not None
    ]


def clear(config: SiteConfig, users: Path, board: str) -> None:
    """Remove all of it, as an administrator; BrokerError or ConfigError if that fails.

    A board whose rights are gone can neither take it back nor be called lost by the broker, and others would go on
    taking it for ready.
    """
    _, settings = control.administrator(config, users, board)
    find_retained(settings, control.new_client_id(), filters_of(config.site, board), remove=True)
