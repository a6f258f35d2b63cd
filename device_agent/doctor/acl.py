"""What the broker allows this board to do, on the very topics that its agent uses, without disturbing a live site.

Publishing is tried at QoS 2 and not released (`distree.transport.probe`): the broker says whether it is allowed, and
nobody receives it. Reading is tried on what is addressed to this board: there the trial is released, and must arrive,
since a broker may accept a subscription and then deliver nothing. Agents ignore what is sent. What an origin reads
about other boards, their announcements and states, is retained: that must arrive.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from functools import partial

from device_agent.addresses import TopicFilter, publications, subscriptions, unheard
from device_agent.doctor.checks import Check, CheckContext, Finding, failed, ok, unknown
from device_agent.doctor.disconnects import NOBODY, SETTLE_S, arrived, withholds
from device_agent.doctor.network import session
from distree import topics
from distree.errors import RemoteProtocolError
from distree.formatting import counted
from distree.messages.codec import PROBE, decode
from distree.messages.device import DeviceMeta, HeldStage
from distree.messages.member import Member
from distree.topics import ADDRESSED, BOARD_ROLES, TABLE, Kind
from distree.transport.connect_errors import REASONS
from distree.transport.probe import REFUSED, HangUpError, ProbeClient

DELIVERY_S = 3.0
"""How long a released trial may take to arrive."""

AGENT_ONLY = frozenset(kind for kind, topic in TABLE.items() if topic.subscribers <= BOARD_ROLES)
"""Kinds that only agents read, which ignore a trial; others may be read by any program."""


def check_acl(context: CheckContext) -> Finding:
    """The agent may read and write all its topics."""
    config = context.config
    inbound = [sub for sub in subscriptions(config, context.bundles) if sub.filter not in context.disconnecting]
    refused, silent, untried = _try_reading(context, inbound)
    silent_members, untried_members = _try_members(context, inbound)
    silent, untried = [*silent, *silent_members], [*untried, *untried_members]
    metas = _metas(context)
    names = [topic for topic in publications(config, context.bundles, metas) if topic not in context.disconnecting]
    others = [topic for topic in unheard(config, context.bundles, metas, NOBODY) if topic not in context.disconnecting]
    denied, unseen = _try_writing(context, [*names, *others])
    silent_peers = [topic for topic in others if denied.pop(topic, None) is not None]
    if refused or denied or silent:
        words = [f"may not subscribe to {topic}" for topic in refused]
        words += [f"receives nothing from {topic}" for topic in silent]
        words += [f"may not publish on {topic} ({why})" for topic, why in denied.items()]
        return failed("; ".join(words), _rules([*refused, *silent], list(denied)))
    count = len({*names, *others} - {*unseen, *silent_peers})
    may = f"may publish on {counted(count, 'topic')} and subscribe to {len(inbound):,}"
    if silent_peers:
        where = ", ".join(topic.replace(NOBODY, "+") for topic in silent_peers)
        return unknown(
            f"{may}; no board is known yet to which it sends on {where}, and the ACL does not allow every name there",
            "run the doctor again while the other boards run, and allow this user to read device/+/meta",
        )
    if unseen:
        return unknown(f"{may}; this broker does not say whether publishing is allowed on {', '.join(unseen)}")
    if untried:
        may += f"; whether messages arrive was not tried on {', '.join(untried)}"
    return ok(may)


def _rules(to_read: Sequence[str], to_write: Sequence[str]) -> str:
    """Return the lines that this user's rules lack, as mosquitto writes them, for all boards there may be."""
    lines = dict.fromkeys([f"topic read {_for_all(topic)}" for topic in to_read])
    lines |= dict.fromkeys([f"topic write {_for_all(topic)}" for topic in to_write])
    return f"add to this user's rules in the broker's ACL: {', '.join(lines)}"


def _for_all(topic: str) -> str:
    """Return a topic with other boards left open: new ones may come."""
    try:
        address = topics.parse(topic)
    except RemoteProtocolError:
        return topic  # with wildcards already
    if address.kind is Kind.STAGE:
        return topics.stage(address.site, address.pipeline or "", address.stage or 0, "+", address.sender or "")
    if address.kind in ADDRESSED:
        return topics.to_board(address.site, address.pipeline or "", address.kind, "+", address.sender or "")
    return topic


def outgoing_topics(context: CheckContext) -> list[str]:
    """Return the topics on which the agent publishes, to boards that were heard and to those that may exist."""
    metas = _metas(context)
    return publications(context.config, context.bundles, metas) + unheard(
        context.config, context.bundles, metas, NOBODY
    )


def _try_reading(context: CheckContext, inbound: Sequence[TopicFilter]) -> tuple[list[str], list[str], list[str]]:
    """Return the filters that are refused, those that stay silent, and those that could not be tried.

    A filter is tried with a message from this board itself.
    """
    me = context.config.device
    ends_it: set[str] = set()
    while True:
        refused: list[str] = []
        tried: list[TopicFilter] = []
        untried: list[str] = []
        trying = ""
        with session(context) as client:
            try:
                _subscribe(context, client, inbound, refused)
                for sub in (sub for sub in inbound if sub.kind not in (Kind.STATE, Kind.MEMBER)):
                    trying = sub.filter
                    topic = sub.topic_of(me)
                    if not sub.is_foreign and trying not in ends_it and _release(context, client, sub.kind, topic):
                        tried.append(sub)
                    elif not any(topics.overlap(trying, message.topic) for message in client.heard):
                        untried.append(trying)
                trying = ""
                # A refusal shows only as silence, so wait to the end: a slow broker must not look like a strict one.
                patience = min(context.until(), time.monotonic() + DELIVERY_S)
                client.listen(patience, partial(_all_came, client, [sub.topic_of(me) for sub in tried]))
            except HangUpError:
                if not trying:
                    raise
                ends_it.add(trying)  # this board need not publish there, it only reads
                continue
            missing = [
                sub.filter for sub in tried if sub.filter not in refused and not arrived(client, sub.topic_of(me))
            ]
        if not context.is_mqtt5:
            # Without reason codes silence may also mean that this board may not publish there, which it need not do.
            return refused, [], untried + missing
        return refused, missing, [name for name in untried if name not in refused]


def _try_members(context: CheckContext, inbound: Sequence[TopicFilter]) -> tuple[list[str], list[str]]:
    """Return which topics about other boards stay silent, of those that an origin reads, and which were not tried.

    These are their announcements, and the state of each board that has announced itself, by its name: one of them is
    enough to see whether reading is allowed. Where descriptions say that a board serves a stage, its announcement must
    be there, and its state.
    """
    config = context.config
    members = [sub for sub in inbound if sub.kind is Kind.MEMBER and not sub.is_own_announcements]
    if not members:
        return [], []
    states = topics.device(config.site, "+", Kind.STATE)
    silent: list[str] = []
    untried: list[str] = []
    with contextlib.suppress(HangUpError), session(context) as client:
        for sub in members:
            client.subscribe(sub.filter, context.until())
        client.listen(_soon(context))
        there = [m.topic for m in client.heard if m.retain and m.payload and not m.topic.endswith(f"/{config.device}")]
        for sub in members:
            if not any(topic.startswith(sub.filter[:-1]) for topic in there):
                (silent if _is_served(context, sub) else untried).append(sub.filter)
        if not there:
            return silent, [*untried, states]
        state = topics.device(config.site, min(there).rpartition("/")[2], Kind.STATE)
        code = client.subscribe(state, context.until())
        if code >= REFUSED or not client.listen(_soon(context), partial(_has_come, client, state)):
            silent.append(states)
    return silent, untried


def _is_served(context: CheckContext, sub: TopicFilter) -> bool:
    """Whether, by its description, a board serves the stage of a subscription, and the broker retains messages."""
    name = context.config.pipelines[sub.pipeline or 0].name
    return context.retains is not False and any(
        (held.pipeline, held.stage) == (name, sub.stage)
        for meta in _metas(context)
        for held in meta.stages
        if meta.device != context.config.device
    )


def _has_come(client: ProbeClient, topic: str) -> bool:
    return any(message.topic == topic for message in client.heard)


def _all_came(client: ProbeClient, names: Sequence[str]) -> bool:
    return all(arrived(client, topic) for topic in names)


def _subscribe(context: CheckContext, client: ProbeClient, inbound: Sequence[TopicFilter], refused: list[str]) -> None:
    refused += [sub.filter for sub in inbound if client.subscribe(sub.filter, context.until()) >= REFUSED]


def _release(context: CheckContext, client: ProbeClient, kind: Kind, topic: str) -> bool:
    """Publish a trial where only agents read; return whether it was accepted."""
    if kind not in AGENT_ONLY or context.qos < 2:
        return False
    if client.withhold(topic, PROBE, context.until()) >= REFUSED:
        return False
    client.release(topic, context.until())
    return True


def _soon(context: CheckContext) -> float:
    return min(context.until(), time.monotonic() + SETTLE_S)


def _metas(context: CheckContext) -> list[DeviceMeta]:
    """Return the descriptions of the site's boards, as far as this user may read them. Read once.

    A user who may not read them may read the announcements, as origins must: they say nearly as much.
    """
    if context.metas is None:
        context.metas = []
        site = context.config.site
        announced = [topics.member(site, pipeline.name, "+", "+") for pipeline in context.config.pipelines]
        members: list[Member] = []
        with contextlib.suppress(HangUpError), session(context) as client:
            for name in (topics.device(site, "+", Kind.META), *announced):
                client.subscribe(name, context.until())
            client.listen(_soon(context))
            for message in client.heard:
                with contextlib.suppress(RemoteProtocolError):  # not this check's business
                    if topics.parse(message.topic).kind is Kind.META:
                        context.metas.append(decode(DeviceMeta, message.payload))
                    elif message.payload:
                        members.append(decode(Member, message.payload))
        described = {meta.device for meta in context.metas}
        context.metas += [_as_described(member) for member in members if member.device not in described]
    return context.metas


def _as_described(member: Member) -> DeviceMeta:
    """Return as much of a board's description as its announcement has."""
    return DeviceMeta(
        device=member.device, boot=member.boot, version="", python="", runtime="", machine="", memory_mb=0,
        stages=tuple(
            HeldStage(
                pipeline=member.pipeline, stage=k, model=member.model, revision=",".join(member.revisions)[:64],
                branch=member.branch,
            )
            for k in member.stages
        ),
        origins=(),
        fusers=(member.pipeline,) if member.fuses else (),
    )  # fmt: skip


def _try_writing(context: CheckContext, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return why topics are refused, and the topics about which this broker says nothing."""
    if not context.is_mqtt5 or context.qos < 2:
        return {}, list(names)
    harmless = [topic for topic in names if withholds(context) or topics.parse(topic).kind in AGENT_ONLY]
    denied: dict[str, str] = {}
    unseen = [topic for topic in names if topic not in harmless]
    # A broker limits how much may be under way: what was withheld is forgotten with the connection.
    batch = max(1, min(context.greeting.receive_maximum, 16) - 1)
    left = list(harmless)
    while left:
        now, left = left[:batch], left[batch:]
        with session(context) as client:
            try:
                while now:
                    code = client.withhold(now[0], PROBE, context.until())
                    if code >= REFUSED:
                        denied[now[0]] = REASONS.get(code, f"code {code}")
                    now.pop(0)
            except HangUpError:
                unseen.append(now[0])  # which is the business of `publish`
                left = now[1:] + left
    return denied, unseen


CHECKS = (Check(name="acl", run=check_acl, needs=("login", "bundle")),)
