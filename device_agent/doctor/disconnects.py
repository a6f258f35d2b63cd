"""Whether something ends the connection: tried on connections of its own, and once more before it is blamed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from device_agent.doctor.checks import Visit
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
"""A board that is not there: what is addressed to it reaches nobody."""

Act = Callable[[ProbeClient], object]


def ends(visit: Visit, act: Act) -> bool:
    """Whether `act` ends the connection twice out of two; a connection that ends before it is the network's matter.

    Raises BrokerError for a connection that ends by itself.
    """
    return _ended(visit, act) and _ended(visit, act)


def _ended(visit: Visit, act: Act) -> bool:
    with session(visit) as client:
        try:
            client.ping(visit.until())
        except HangUpError:
            raise BrokerError(connect_errors.breaks_by_itself(visit.config.broker)) from None
        try:
            act(client)
            client.ping(visit.until())
        except HangUpError:
            return True
    return False


def least(low: int, high: int, fails: Callable[[int], bool], within: int = 1) -> tuple[int, int]:
    """Narrow down from which number on something fails: (passes, fails), at most `within` apart.

    `low` is known to pass and `high` to fail.

    >>> least(1, 1000, lambda n: n > 300)
    (300, 301)
    """
    while high - low > within:
        middle = (low + high) // 2
        if fails(middle):
            high = middle
        else:
            low = middle
    return low, high


def bad_filters(visit: Visit, filters: Sequence[str]) -> tuple[list[str], int]:
    """Find what is wrong with a SUBSCRIBE that ends the connection: the filters that do so by themselves.

    Where none does it is their number: then returns with no filter the least number that ends the connection, else 0.
    Where neither explains it, both are empty: it was the network.
    """
    if len(filters) == 1:
        return (list(filters), 0) if hangs_up_on(visit, filters) else ([], 0)
    middle = len(filters) // 2
    blamed: list[str] = []
    for half in (filters[:middle], filters[middle:]):
        if hangs_up_on(visit, half):
            found, number = bad_filters(visit, half)
            if number:
                return [], number
            blamed += found
    if blamed or not hangs_up_on(visit, filters):
        return blamed, 0
    return [], least(middle, len(filters), lambda n: hangs_up_on(visit, filters[:n]))[1]


def hangs_up_on(visit: Visit, filters: Sequence[str]) -> bool:
    """Whether a SUBSCRIBE with these filters ends the connection."""
    return ends(visit, lambda client: client.subscribe_all(filters, visit.until()))


def withholds(visit: Visit) -> bool:
    """Whether the broker keeps what is published at QoS 2 until it is released. Asked once, on harmless topics."""
    if visit.withholds is None:
        with session(visit):
            visit.qos = min(visit.qos, visit.greeting.max_qos)
        visit.withholds = visit.qos == 2 and _keeps_back(visit)
    return visit.withholds


def _keeps_back(visit: Visit) -> bool:
    config = visit.config
    own = topics.device(config.site, config.device, Kind.STATE)
    all_end = True
    for topic in (own, nobody(visit)):
        try:
            with session(visit) as client:
                client.subscribe(topic, visit.until())
                code = client.withhold(topic, PROBE, visit.until())
                all_end = False
                if code < REFUSED:
                    patience = min(visit.until(), time.monotonic() + SETTLE_S)
                    return not client.listen(patience, partial(came, client, topic))
        except HangUpError:
            continue
    other = nobody(visit)
    if all_end and not ends(visit, lambda client: client.publish(other, PROBE, qos=0, until=visit.until())):
        visit.qos = 1  # or less, which is tried later
        return False
    # Refused, or hung up on, whatever it is: nothing of what follows is likely to be handed on.
    return True


def nobody(visit: Visit) -> str:
    """Return a topic that agents alone read, addressed to none that is there."""
    config = visit.config
    return topics.to_board(config.site, config.pipelines[0].name, Kind.OUTCOME, NOBODY, config.device)


def came(client: ProbeClient, topic: str) -> bool:
    """Whether a trial on `topic` came in."""
    return any(message.topic == topic and message.payload == PROBE for message in client.heard)


def send(visit: Visit, client: ProbeClient, topic: str, payload: bytes, *, quietly: bool) -> int:
    """Publish: at QoS 2, not to be released, or where that is not kept back as well as the broker takes it."""
    if quietly:
        return client.withhold(topic, payload, visit.until())
    return client.publish(topic, payload, qos=min(1, visit.qos), until=visit.until())
