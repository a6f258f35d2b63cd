"""How the broker behaves: whether it reports messages that nobody reads, and whether it delays small ones."""

from __future__ import annotations

import contextlib
import time

from device_agent.addresses import subscriptions, unheard
from device_agent.doctor.checks import Check, CheckContext, Finding, failure_from, note_from, ok, unknown
from device_agent.doctor.disconnects import NOBODY, unread_topic
from device_agent.doctor.network import session
from distree.messages.codec import PROBE
from distree.transport import connect_errors, nagle
from distree.transport.packets import NO_SUBSCRIBERS
from distree.transport.probe import REFUSED, HangUpError

_ECHOES_S = 3.0
"""How long the echoes of one trial may take: twenty pairs, each some 40 ms late at worst."""


def check_no_subscribers(context: CheckContext) -> Finding:
    """The broker reports messages that nobody reads, so that a board that has stopped is noticed at once."""
    settings = context.config.broker
    if not context.is_mqtt5:
        return note_from(connect_errors.tells_no_unread(settings, is_mqtt5=False))
    names = [unread_topic(context), *unheard(context.config, context.bundles, (), NOBODY)]
    for topic in names if context.qos else ():
        with contextlib.suppress(HangUpError), session(context) as client:
            code = client.publish(topic, PROBE, qos=1, until=context.until())
            if code == NO_SUBSCRIBERS:
                return ok("the broker reports messages that nobody reads")
            if code < REFUSED:
                return note_from(connect_errors.tells_no_unread(settings, is_mqtt5=True))
    return unknown(
        "this user is not allowed to test whether the broker reports messages that nobody reads",
        f"allow it to publish on {unread_topic(context)}",
    )


def check_tcp_nodelay(context: CheckContext) -> Finding:
    """Small messages are passed on at once: a broker that leaves TCP_NODELAY off delays them."""
    me = context.config.device
    for sub in subscriptions(context.config, context.bundles):
        if sub.is_foreign or not sub.filter.endswith(f"/{me}/+") or sub.filter in context.disconnecting:
            continue  # others would receive it
        with contextlib.suppress(HangUpError, TimeoutError), session(context) as client:
            until = min(context.until(), time.monotonic() + _ECHOES_S)
            found = nagle.over_probe(client, sub.topic_of(me), PROBE, until)
            if found is not None:
                slow = connect_errors.holds_back(context.config.broker)
                return failure_from(slow) if found else ok("small messages are passed on at once")
    return unknown(
        "whether small messages are delayed is not known: nothing that this board sends to itself comes back"
    )


CHECKS = (
    Check(name="no-subscribers", run=check_no_subscribers, needs=("login", "bundle")),
    Check(name="tcp-nodelay", run=check_tcp_nodelay, needs=("login", "bundle")),
)
