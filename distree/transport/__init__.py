"""Connections to a broker: `paho` speaks MQTT, `memory` is a broker inside the process, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distree.broker_settings import BrokerSettings, Session

if TYPE_CHECKING:
    from distree.transport.base import Transport


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

    `will` is a topic and a payload, retained at QoS 1. `receive_maximum` bounds received messages without an
    acknowledgement (with MQTT 5); `offline_items` and `offline_bytes` bound the lane WORK while it waits for the
    connection or for the broker's acknowledgements. `trial_payload` is what every reader of every topic ignores: it
    helps to find out what the broker hangs up on, see `hangups`. BrokerError where the installed paho is not supported.
    """
    from distree.transport.mqtt import PahoTransport  # only by those who connect: it takes a board long to load

    return PahoTransport(
        settings,
        client_id=client_id,
        will=will,
        receive_maximum=receive_maximum,
        session=session,
        trial_payload=trial_payload,
        offline_items=offline_items,
        offline_bytes=offline_bytes,
    )
