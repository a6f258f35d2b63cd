"""Connections to a broker. Each kind is a file of its own, with a class as in `base`, and a row of `TRANSPORTS`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distree import lazy
from distree.broker_settings import BrokerSettings, Session
from distree.errors import ConfigError

if TYPE_CHECKING:
    from distree.transport.base import Transport

TRANSPORTS = {"mqtt": "distree.transport.mqtt:MqttTransport"}
"""The transports that a configuration may name, and what each is made by."""


def make_transport(
    settings: BrokerSettings,
    *,
    client_id: str,
    will: tuple[str, bytes] | None = None,
    receive_maximum: int = 8,
    session: Session = Session.PROCESS,
    trial_payload: bytes = b"",
    offline_items: int = 4096,
    offline_bytes: int = 8 << 20,
) -> Transport:
    """Make a connection to the broker of `settings`, which begins once it is opened and polled.

    `client_id` is followed by `settings.client_id_suffix`. `will` is a topic and a payload, retained at QoS 1.
    `receive_maximum` bounds received messages without an acknowledgement (with MQTT 5); `offline_items` and
    `offline_bytes` bound the lane WORK while it waits for the connection or for the broker's acknowledgements.
    `trial_payload` is what every reader of every topic ignores: it helps to find out what the broker hangs up on, see
    `hangups`. ConfigError for an unknown `settings.transport`, BrokerError where the installed paho is not supported.
    """
    if settings.transport not in TRANSPORTS:
        known = ", ".join(TRANSPORTS)
        raise ConfigError(f"broker.transport: unknown {settings.transport!r}", f"choose one of {known}")
    made: Transport = lazy.load(TRANSPORTS[settings.transport])(
        settings,
        client_id=settings.own_client_id(client_id),
        will=will,
        receive_maximum=receive_maximum,
        session=session,
        trial_payload=trial_payload,
        offline_items=offline_items,
        offline_bytes=offline_bytes,
    )
    return made
