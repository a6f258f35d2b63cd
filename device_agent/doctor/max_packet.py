"""What the broker takes: the largest message of this board."""

from __future__ import annotations

from functools import partial

from device_agent import resource_estimate
from device_agent.addresses import subscriptions
from device_agent.doctor.acl import outbound
from device_agent.doctor.checks import Finding, Visit, failed, ok, told, unknown
from device_agent.doctor.disconnects import ends, least, nobody, send, withholds
from distree import topics
from distree.messages.codec import PROBE
from distree.messages.limits import MAX_MESSAGE_BYTES
from distree.topics import Kind
from distree.transport import connect_errors
from distree.transport.probe import NAMES, REFUSED

_NOT_AUTHORIZED = 0x87
_PRECISION_BYTES = 16
_PACKET_BYTES = 256
"""What a packet holds beside its message: header, topic, properties."""


def check_packet(visit: Visit) -> Finding:
    """The largest message passes. Sent in full and withheld, or to nobody where the broker withholds nothing."""
    heard = [sub for sub in subscriptions(visit.config, visit.bundles) if not sub.is_own_announcements]
    inbound = (sub.topic_of(visit.config.device) for sub in heard)
    names = dict.fromkeys([*outbound(visit), *inbound])
    sizes = {name: resource_estimate.message_bytes(visit.config, visit.bundles, name) for name in names}
    topic = max(sizes, key=lambda name: sizes[name])
    largest = f"the largest message, on {topic}, has {sizes[topic]:,} bytes"
    if sizes[topic] > MAX_MESSAGE_BYTES:
        return failed(
            f"{largest}, and boards take no more than {MAX_MESSAGE_BYTES:,}",
            "cut the network where features are smaller, or use smaller inputs",
        )
    limit = visit.greeting.max_packet_bytes
    if limit is not None and sizes[topic] + _PACKET_BYTES > limit:
        return _too_large(visit, sizes, limit)
    problem = _tried(visit, topic, sizes[topic])
    if problem is not None:
        return problem
    if not visit.five:
        return unknown(
            f"{largest}, and one of that size passes; the broker speaks MQTT 3.1.1 alone, which cannot say whether it "
            "hands it on",
            "take a broker with MQTT 5, such as mosquitto 2, or see that its limit is larger",
        )
    said = "says no limit" if limit is None else f"takes packets of {limit:,}"
    return ok(f"{largest}, the broker {said} and took one of that size")


def _too_large(visit: Visit, sizes: dict[str, int], limit: int) -> Finding:
    """Say which messages exceed the limit that the broker named, one of a kind, and what that means."""
    worst: dict[Kind, str] = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if sizes[name] + _PACKET_BYTES > limit:
            worst.setdefault(topics.parse(name).kind, name)
    first, *others = worst.values()
    found = told(connect_errors.too_large(visit.config.broker, first, sizes[first], limit))
    also = ", ".join(f"{name} ({sizes[name]:,})" for name in others)
    return failed(found.text + (f"; too large as well are {also}" if also else ""), found.remedy)


def _tried(visit: Visit, topic: str, size: int) -> Finding | None:
    """Send a message of `size` bytes; None if it passes."""
    settings, quietly = visit.config.broker, withholds(visit)
    places = [name for name in (topic, _own(visit)) if name not in visit.blamed] if quietly else [nobody(visit)]
    codes: list[int] = []

    def hangs_up(where: str, nbytes: int) -> bool:
        payload = bytes(nbytes) if nbytes > len(PROBE) else PROBE
        return ends(visit, lambda client: codes.append(send(visit, client, where, payload, quietly=quietly)))

    for where in places:
        if not hangs_up(where, size):
            # Whether it may publish there at all is the matter of `rights`.
            if codes[-1] == _NOT_AUTHORIZED:
                continue
            if codes[-1] < REFUSED:
                return None
            why = NAMES.get(codes[-1], f"code {codes[-1]}")
            address = f"{settings.host}:{settings.port}"
            return failed(f"{address} refuses a message of {size:,} bytes on {where} ({why})", _raise_to(size))
        if hangs_up(where, 0):
            return told(connect_errors.hangs_up_on_publish(settings, where, len(PROBE)))
        if where == topic and len(places) > 1 and not hangs_up(places[-1], size):
            return told(connect_errors.hangs_up_on_publish(settings, where, size))
        passed, stopped = least(0, size, partial(hangs_up, where), _PRECISION_BYTES)
        found = told(connect_errors.hangs_up_on_size(settings, stopped, passed))
        return failed(f"{found.text}; the largest on {topic} has {size:,}", f"{found.remedy}, to {_room(size):,} bytes")
    return None


def _own(visit: Visit) -> str:
    return topics.device(visit.config.site, visit.config.device, Kind.STATE)


def _raise_to(size: int) -> str:
    return f"raise the broker's limit to {_room(size):,} or more (mosquitto's max_packet_size and message_size_limit)"


def _room(size: int) -> int:
    return size + _PACKET_BYTES
