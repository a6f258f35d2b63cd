"""How the broker answers: whether it says when nobody reads a message, and whether it holds small ones back."""

from __future__ import annotations

import contextlib
import time

from device_agent.addresses import subscriptions, unheard
from device_agent.doctor.checks import Finding, Visit, noted, ok, told, unknown
from device_agent.doctor.disconnects import NOBODY, nobody
from device_agent.doctor.network import session
from distree.messages.codec import PROBE
from distree.transport import connect_errors, nagle
from distree.transport.packets import NO_SUBSCRIBERS
from distree.transport.probe import REFUSED, HangUpError

_ECHOES_S = 3.0
"""How long the echoes of one trial may take: twenty pairs, each some 40 ms late at worst."""


def check_unread(visit: Visit) -> Finding:
    """The broker says when nobody reads a message: a board that has stopped is then noticed at once."""
    settings = visit.config.broker
    if not visit.five:
        return noted(connect_errors.tells_no_unread(settings, is_mqtt5=False))
    names = [nobody(visit), *unheard(visit.config, visit.bundles, (), NOBODY)]
    for topic in names if visit.qos else ():
        with contextlib.suppress(HangUpError), session(visit) as client:
            code = client.publish(topic, PROBE, qos=1, until=visit.until())
            if code == NO_SUBSCRIBERS:
                return ok("the broker says when nobody reads a message")
            if code < REFUSED:
                return noted(connect_errors.tells_no_unread(settings, is_mqtt5=True))
    return unknown("whether the broker says when nobody reads a message is not known: this user may not try it")


def check_delay(visit: Visit) -> Finding:
    """Small messages pass at once: a broker that leaves TCP_NODELAY off holds them back."""
    me = visit.config.device
    for sub in subscriptions(visit.config, visit.bundles):
        if not sub.filter.endswith(f"/{me}/+") or sub.filter in visit.blamed:
            continue  # others would hear of it
        with contextlib.suppress(HangUpError, TimeoutError), session(visit) as client:
            until = min(visit.until(), time.monotonic() + _ECHOES_S)
            found = nagle.over_probe(client, sub.topic_of(me), PROBE, until)
            if found is not None:
                return (
                    told(connect_errors.holds_back(visit.config.broker)) if found else ok("small messages pass at once")
                )
    return unknown(
        "whether small messages pass at once is not known: nothing that this board sends to itself comes back"
    )
