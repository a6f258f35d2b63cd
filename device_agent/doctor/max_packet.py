"""Whether the broker accepts the largest message of this board."""

from __future__ import annotations

from functools import partial

from device_agent import resource_estimate
from device_agent.addresses import subscriptions
from device_agent.doctor.acl import outgoing_topics
from device_agent.doctor.checks import Check, CheckContext, Finding, failed, failure_from, ok, unknown
from device_agent.doctor.disconnects import bisected, disconnects, send, unread_topic, withholds
from distree import topics
from distree.messages.codec import PROBE
from distree.messages.limits import MAX_MESSAGE_BYTES
from distree.topics import Kind
from distree.transport import connect_errors
from distree.transport.connect_errors import REASONS
from distree.transport.probe import REFUSED

_NOT_AUTHORIZED = 0x87
_PRECISION_BYTES = 16
_PACKET_BYTES = 256
"""What a packet has beside its message: header, topic, properties."""


def check_max_packet(context: CheckContext) -> Finding:
    """The largest message works: sent in full and withheld, or to nobody where the broker withholds nothing."""
    heard = [
        sub
        for sub in subscriptions(context.config, context.bundles)
        if not (sub.is_own_announcements or sub.is_foreign)
    ]
    inbound = (sub.topic_of(context.config.device) for sub in heard)
    names = dict.fromkeys([*outgoing_topics(context), *inbound])
    sizes = {name: resource_estimate.message_bytes(context.config, context.bundles, name) for name in names}
    topic = max(sizes, key=lambda name: sizes[name])
    largest = f"the largest message has {sizes[topic]:,} bytes, on {topic}"
    if sizes[topic] > MAX_MESSAGE_BYTES:
        return failed(
            f"{largest}, but boards accept no more than {MAX_MESSAGE_BYTES:,}",
            "cut the network where features are smaller, or use smaller inputs",
        )
    limit = context.greeting.max_packet_bytes
    if limit is not None and sizes[topic] + _PACKET_BYTES > limit:
        return _too_large(context, sizes, limit)
    problem = _tried(context, topic, sizes[topic])
    if problem is not None:
        return problem
    if not context.is_mqtt5:
        return unknown(
            f"{largest}; the broker accepts one of that size, but speaks MQTT 3.1.1 only, which cannot say whether it "
            "delivers it",
            "use an MQTT 5 broker, such as mosquitto 2, or make sure that its limit is larger",
        )
    said = "states no limit" if limit is None else f"accepts packets of up to {limit:,}"
    return ok(f"{largest}; the broker {said}, and accepted one of that size")


def _too_large(context: CheckContext, sizes: dict[str, int], limit: int) -> Finding:
    """Say which messages exceed the limit that the broker stated, one of each kind, and what that means."""
    worst: dict[Kind, str] = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if sizes[name] + _PACKET_BYTES > limit:
            worst.setdefault(topics.parse(name).kind, name)
    first, *others = worst.values()
    found = connect_errors.too_large(context.config.broker, first, sizes[first], limit)
    also = ", ".join(f"{name} ({sizes[name]:,})" for name in others)
    return failed(found.what + (f"; also too large: {also}" if also else ""), found.remedy)


def _tried(context: CheckContext, topic: str, size: int) -> Finding | None:
    """Send a message of `size` bytes; None if that works."""
    settings, quietly = context.config.broker, withholds(context)
    places = (
        [name for name in (topic, _own(context)) if name not in context.disconnecting]
        if quietly
        else [unread_topic(context)]
    )
    codes: list[int] = []

    def hangs_up(where: str, nbytes: int) -> bool:
        payload = bytes(nbytes) if nbytes > len(PROBE) else PROBE
        return disconnects(context, lambda client: codes.append(send(context, client, where, payload, quietly=quietly)))

    for where in places:
        if not hangs_up(where, size):
            # Whether it may publish there at all is the business of `acl`.
            if codes[-1] == _NOT_AUTHORIZED:
                continue
            if codes[-1] < REFUSED:
                return None
            why = REASONS.get(codes[-1], f"code {codes[-1]}")
            address = settings.address
            what = f"{address} refuses a message of {size:,} bytes on {where} ({why})"
            return failed(what, connect_errors.raise_limit(size))
        if hangs_up(where, 0):
            return failure_from(connect_errors.hangs_up_on_publish(settings, where, len(PROBE)))
        if where == topic and len(places) > 1 and not hangs_up(places[-1], size):
            return failure_from(connect_errors.hangs_up_on_publish(settings, where, size))
        passed, stopped = bisected(0, size, partial(hangs_up, where), _PRECISION_BYTES)
        found = connect_errors.hangs_up_on_size(settings, stopped, passed)
        return failed(
            f"{found.what}; the largest has {size:,}, on {topic}", f"{found.remedy}, to {size + _PACKET_BYTES:,} bytes"
        )
    return None


def _own(context: CheckContext) -> str:
    return topics.device(context.config.site, context.config.device, Kind.STATE)


CHECKS = (Check(name="max-packet", run=check_max_packet, needs=("login", "bundle")),)
