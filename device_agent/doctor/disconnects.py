"""Whether something ends the connection: tried on a connection of its own, and a second time before it is blamed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from device_agent.doctor.checks import CheckContext
from device_agent.doctor.network import session
from distree import topics
from distree.errors import BrokerError
from distree.messages.codec import PROBE
from distree.topics import Kind
from distree.transport import connect_errors
from distree.transport.probe import REFUSED, HangUpError, ProbeClient

SETTLE_S = 0.5
"""How long a broker may take to deliver what it has, in seconds."""

NOBODY = "doctor-nobody"
"""A board that does not exist: what is addressed to it reaches nobody."""

Act = Callable[[ProbeClient], object]


def disconnects(context: CheckContext, act: Act) -> bool:
    """Whether `act` ends the connection both times; a connection that ends before it is the network's fault.

    Raises BrokerError for a connection that ends by itself.
    """
    return _ended(context, act) and _ended(context, act)


def _ended(context: CheckContext, act: Act) -> bool:
    with session(context) as client:
        try:
            client.ping(context.until())
        except HangUpError:
            raise BrokerError(*connect_errors.breaks_by_itself(context.config.broker)) from None
        try:
            act(client)
            client.ping(context.until())
        except HangUpError:
            return True
    return False


def bisected(low: int, high: int, fails: Callable[[int], bool], within: int = 1) -> tuple[int, int]:
    """Narrow down from which number on something fails: (works, fails), at most `within` apart.

    `low` is known to work and `high` to fail.

    >>> bisected(1, 1000, lambda n: n > 300)
    (300, 301)
    """
    while high - low > within:
        middle = (low + high) // 2
        if fails(middle):
            high = middle
        else:
            low = middle
    return low, high


def filters_to_blame(context: CheckContext, filters: Sequence[str]) -> tuple[list[str], int]:
    """Find what is wrong with a SUBSCRIBE that ends the connection: return (filters, number of filters).

    The filters are those that end it by themselves. If none does, it is their number: then the second value is the
    smallest number that ends the connection, otherwise 0. If neither explains it, it was the network.
    """
    if len(filters) == 1:
        return (list(filters), 0) if subscribing_disconnects(context, filters) else ([], 0)
    middle = len(filters) // 2
    blamed: list[str] = []
    for half in (filters[:middle], filters[middle:]):
        if subscribing_disconnects(context, half):
            found, number = filters_to_blame(context, half)
            if number:
                return [], number
            blamed += found
    if blamed or not subscribing_disconnects(context, filters):
        return blamed, 0
    return [], bisected(middle, len(filters), lambda n: subscribing_disconnects(context, filters[:n]))[1]


def subscribing_disconnects(context: CheckContext, filters: Sequence[str]) -> bool:
    """Whether a SUBSCRIBE with these filters ends the connection."""
    return disconnects(context, lambda client: client.subscribe_all(filters, context.until()))


def withholds(context: CheckContext) -> bool:
    """Whether the broker keeps what is published at QoS 2 until it is released. Tried once, on harmless topics."""
    if context.withholds is None:
        with session(context):
            context.qos = min(context.qos, context.greeting.max_qos)
        context.withholds = context.qos == 2 and _keeps_back(context)
    return context.withholds


def _keeps_back(context: CheckContext) -> bool:
    config = context.config
    own = topics.device(config.site, config.device, Kind.STATE)
    all_end = True
    for topic in (own, unread_topic(context)):
        try:
            with session(context) as client:
                client.subscribe(topic, context.until())
                code = client.withhold(topic, PROBE, context.until())
                all_end = False
                if code < REFUSED:
                    patience = min(context.until(), time.monotonic() + SETTLE_S)
                    return not client.listen(patience, partial(arrived, client, topic))
        except HangUpError:
            continue
    other = unread_topic(context)
    if all_end and not disconnects(context, lambda client: client.publish(other, PROBE, qos=0, until=context.until())):
        context.qos = 1  # or less, which is tried later
        return False
    # Refused, or hung up on, whatever it is: nothing that follows is likely to be delivered.
    return True


def unread_topic(context: CheckContext) -> str:
    """Return a topic that only agents read, addressed to a board that does not exist."""
    config = context.config
    return topics.to_board(config.site, config.pipelines[0].name, Kind.OUTCOME, NOBODY, config.device)


def arrived(client: ProbeClient, topic: str) -> bool:
    """Whether a trial on `topic` has arrived."""
    return any(message.topic == topic and message.payload == PROBE for message in client.heard)


def send(context: CheckContext, client: ProbeClient, topic: str, payload: bytes, *, quietly: bool) -> int:
    """Publish at QoS 2, never to be released, or if the broker delivers that at once, as well as it allows."""
    if quietly:
        return client.withhold(topic, payload, context.until())
    return client.publish(topic, payload, qos=min(1, context.qos), until=context.until())
