"""The topic table applied to an orchestrator: what it reads, and where it publishes what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from distree import topics
from distree.errors import RESTRICT, RemoteProtocolError
from distree.lanes import Lane
from distree.messages.codec import encode
from distree.messages.events import Event
from distree.messages.member import Call
from distree.messages.plan import Plan
from distree.messages.site import Claim, OriginStats
from distree.record import record
from distree.signing import SigningKey
from distree.topics import DELIVERY, TABLE, Delivery, Kind, Role

_DISCOVERY = Delivery(qos=1, retain=True, content_type=topics.JSON, lane=Lane.LATEST)


@record
class Outgoing:
    """A message to be published."""

    topic: str
    payload: bytes
    delivery: Delivery


def subscriptions(
    site: str, pipelines: Iterable[str], tuned: Iterable[str], birth_topic: str | None
) -> list[tuple[str, int]]:
    """Return what an orchestrator of these pipelines reads on its site, as topic filters with their QoS.

    For pipelines that are `tuned` it also reads audits and labels. `birth_topic` is where Home Assistant says that it
    has started, None if that is not used.
    """
    planned, tuned = list(pipelines), list(tuned)
    found = []
    for kind, topic in TABLE.items():
        if Role.ORCHESTRATOR not in topics.readers(kind):
            continue
        if "{pipeline}" not in topic.form:
            found.append((topics.every(kind, site), kind))
        else:
            found += [(topics.every(kind, site, name), kind) for name in (planned if kind is Kind.PLAN else tuned)]
    births = [(birth_topic, _DISCOVERY.qos)] if birth_topic is not None else []
    return [(topic, DELIVERY[kind].qos) for topic, kind in found] + births


def claim(site: str, identity: str, *, running: bool, key: SigningKey | None = None, sequence: int = 0) -> Outgoing:
    """Return an orchestrator's claim on a site, or the message that takes it back, which is also its will.

    With a `key` it is signed, as number `sequence`.
    """
    topic, said = topics.orchestrator(site), Claim(orchestrator=identity, running=running)
    payload = encode(said) if key is None else key.sign(topic, said, sequence)
    return Outgoing(topic=topic, payload=payload, delivery=DELIVERY[Kind.ORCHESTRATOR])


def will_of(site: str, identity: str, key: SigningKey | None = None, sequence: int = 0) -> tuple[str, bytes]:
    """Return topic and payload of the will that takes back a dead orchestrator's claim on a site."""
    back = claim(site, identity, running=False, key=key, sequence=sequence)
    return back.topic, back.payload


def call(site: str, pipeline: str, identity: str) -> Outgoing:
    """Return the request to the boards of a pipeline to announce themselves; `identity` is the orchestrator's id."""
    topic = topics.call(site, pipeline, identity)
    return Outgoing(topic=topic, payload=encode(Call(caller=identity)), delivery=DELIVERY[Kind.CALL])


def plan(site: str, to_hold: Plan) -> Outgoing:
    """Return a plan as boards receive it."""
    topic = topics.plan(site, to_hold.pipeline)
    return Outgoing(topic=topic, payload=encode(to_hold), delivery=DELIVERY[Kind.PLAN])


def stats(site: str, of_origin: OriginStats) -> Outgoing:
    """Return the recent figures of an origin, as users receive them."""
    topic = topics.of_origin(site, of_origin.pipeline, Kind.STATS, of_origin.origin)
    return Outgoing(topic=topic, payload=encode(of_origin), delivery=DELIVERY[Kind.STATS])


def event(site: str, told: Event) -> Outgoing:
    """Return an event of the site, as people receive it."""
    return Outgoing(topic=topics.site_event(site), payload=encode(told), delivery=DELIVERY[Kind.SITE_EVENT])


def discovery(topic: str, payload: bytes) -> Outgoing:
    """Return a message by which Home Assistant discovers or forgets a device."""
    return Outgoing(topic=topic, payload=payload, delivery=_DISCOVERY)


class _FromDevice(Protocol):
    @property
    def device(self) -> str | None: ...


Said = TypeVar("Said", bound=_FromDevice)


def of_device(device: str, said: Said) -> Said:
    """Return a message from a topic of `device`; RemoteProtocolError if it is about another one."""
    if said.device != device:
        raise RemoteProtocolError("device", f"{said.device!r} on the topic of {device!r}", RESTRICT)
    return said


def of_pipeline(name: str, seen: Plan) -> Plan:
    """Return a plan from the topic of a pipeline; RemoteProtocolError if it is for another one."""
    if seen.pipeline != name:
        raise RemoteProtocolError("pipeline", f"a plan of {seen.pipeline!r} on the topic of {name!r}", RESTRICT)
    return seen
