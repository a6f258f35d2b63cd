"""What the broker takes: the size of the largest message of the bundles, and MQTT 5."""

from __future__ import annotations

from device_agent import budget
from device_agent.doctor.checks import Finding, Visit, failed, ok, unknown
from device_agent.doctor.network import session
from distree import topics
from distree.errors import BrokerError
from distree.topics import Kind
from distree.transport.probe import NAMES, REFUSED
from distree.wire import MAX_MESSAGE_BYTES

_NOT_AUTHORIZED = 0x87
_PACKET_BYTES = 256
"""What a packet holds beside its message: header, topic, properties."""


def check_packet(visit: Visit) -> Finding:
    """The largest message passes. Sent in full and withheld, on this board's own topic of state."""
    size, name = max((budget.largest_message(bundle), bundle.name) for bundle in visit.bundles)
    largest = f"the largest message of bundle {name} has {size:,} bytes"
    if size > MAX_MESSAGE_BYTES:
        return failed(
            f"{largest}, and boards take no more than {MAX_MESSAGE_BYTES:,}",
            "cut the network where features are smaller, or use smaller inputs",
        )
    if not visit.five:
        return unknown(
            f"{largest}; the broker speaks MQTT 3.1.1 alone, which cannot say what it takes",
            "take a broker with MQTT 5, such as mosquitto 2, or see that its limit is larger",
        )
    limit = visit.greeting.max_packet_bytes
    if limit is not None and size + _PACKET_BYTES > limit:
        return failed(f"{largest}, the broker takes packets of {limit:,}", _raise_to(size))
    said = "says no limit" if limit is None else f"takes packets of {limit:,}"
    if visit.greeting.max_qos < 2 or visit.hands_on_at_once:
        return ok(f"MQTT 5; {largest}, the broker {said}")
    problem = _refusal(visit, size)
    if problem:
        return failed(f"{largest}, and the broker refuses one of that size ({problem})", _raise_to(size))
    return ok(f"MQTT 5; {largest}, the broker {said} and took one of that size")


def _raise_to(size: int) -> str:
    return (
        f"raise the broker's limit to {size + _PACKET_BYTES:,} or more; mosquitto: max_packet_size, message_size_limit"
    )


def _refusal(visit: Visit, size: int) -> str:
    """Return why a message of `size` bytes is refused; "" if it is taken."""
    topic = topics.device(visit.config.site, visit.config.device, Kind.STATE)
    with session(visit) as client:
        try:
            code = client.withhold(topic, bytes(size), visit.until())
        except (BrokerError, ConnectionError) as error:
            return str(error)
    # Whether it may publish there at all is the matter of `rights`.
    return NAMES.get(code, f"code {code}") if code >= REFUSED and code != _NOT_AUTHORIZED else ""
