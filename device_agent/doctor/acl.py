"""What the broker lets this board do, on the very topics that its agent uses, without a word to a live site.

Publishing is tried at QoS 2 and not released (`distree.transport.probe`): the broker says whether it may be, and
nobody hears of it. Reading is tried on what is addressed to this board: there the trial is released, and must come in;
a broker may accept a subscription and then deliver nothing. Agents ignore what is sent. What an origin reads of other
boards, their announcements and states, is retained: there it is seen whether it comes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from functools import partial

from device_agent.addresses import TopicFilter, publications, subscriptions, unheard
from device_agent.doctor.checks import Finding, Visit, failed, ok, unknown
from device_agent.doctor.disconnects import NOBODY, SETTLE_S, came, withholds
from device_agent.doctor.network import session
from distree import topics
from distree.errors import RemoteProtocolError
from distree.messages.codec import PROBE, decode
from distree.messages.device import DeviceMeta, HeldStage
from distree.messages.member import Member
from distree.topics import ADDRESSED, TABLE, Kind, Role
from distree.transport.probe import NAMES, REFUSED, HangUpError, ProbeClient

DELIVERY_S = 3.0
"""How long a released trial may take."""

AGENTS_READ = frozenset(kind for kind, topic in TABLE.items() if not topic.subscribers & {Role.ORCHESTRATOR, Role.USER})
"""What agents alone read, which ignore a trial; other kinds may have readers of any make."""


def check_rights(visit: Visit) -> Finding:
    """Every topic that the agent reads or writes is open to it."""
    config = visit.config
    inbound = [sub for sub in subscriptions(config, visit.bundles) if sub.filter not in visit.blamed]
    refused, silent, untried = _try_reading(visit, inbound)
    silent_members, untried_members = _try_members(visit, inbound)
    silent, untried = [*silent, *silent_members], [*untried, *untried_members]
    metas = _metas(visit)
    names = [topic for topic in publications(config, visit.bundles, metas) if topic not in visit.blamed]
    others = [topic for topic in unheard(config, visit.bundles, metas, NOBODY) if topic not in visit.blamed]
    denied, unseen = _try_writing(visit, [*names, *others])
    silent_peers = [topic for topic in others if denied.pop(topic, None) is not None]
    if refused or denied or silent:
        words = [f"may not subscribe to {topic}" for topic in refused]
        words += [f"gets nothing of what comes on {topic}" for topic in silent]
        words += [f"may not publish on {topic} ({why})" for topic, why in denied.items()]
        return failed("; ".join(words), _rules([*refused, *silent], list(denied)))
    count = len({*names, *others} - {*unseen, *silent_peers})
    may = f"may publish on {count} topics and subscribe to {len(inbound)}"
    if silent_peers:
        where = ", ".join(topic.replace(NOBODY, "+") for topic in silent_peers)
        return unknown(
            f"{may}; no board was heard to which it sends on {where}, and not every name is allowed there",
            "ask again while the other boards run; this user must be allowed to read device/+/meta to hear of them",
        )
    if unseen:
        return unknown(f"{may}; this broker does not say whether it may publish on {', '.join(unseen)}")
    if untried:
        may += f"; whether messages come in was not tried on {', '.join(untried)}"
    return ok(may)


def _rules(to_read: Sequence[str], to_write: Sequence[str]) -> str:
    """Say which lines this user's rules lack, as mosquitto writes them, for whatever boards there may be."""
    lines = dict.fromkeys([f"topic read {_for_all(topic)}" for topic in to_read])
    lines |= dict.fromkeys([f"topic write {_for_all(topic)}" for topic in to_write])
    return f"add to the rules for this user in the broker's ACL {', '.join(lines)}"


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


def outbound(visit: Visit) -> list[str]:
    """Return the topics on which the agent publishes, to boards that were heard and to those that may be there."""
    metas = _metas(visit)
    return publications(visit.config, visit.bundles, metas) + unheard(visit.config, visit.bundles, metas, NOBODY)


def _try_reading(visit: Visit, inbound: Sequence[TopicFilter]) -> tuple[list[str], list[str], list[str]]:
    """Return the filters that are refused, those that stay silent, and those that could not be tried.

    What passes by a filter is tried with a message from this board itself.
    """
    me = visit.config.device
    ends_it: set[str] = set()
    while True:
        refused: list[str] = []
        tried: list[TopicFilter] = []
        untried: list[str] = []
        trying = ""
        with session(visit) as client:
            try:
                _subscribe(visit, client, inbound, refused)
                for sub in (sub for sub in inbound if sub.kind not in (Kind.STATE, Kind.MEMBER)):
                    trying = sub.filter
                    topic = sub.topic_of(me)
                    if trying not in ends_it and _release(visit, client, sub.kind, topic):
                        tried.append(sub)
                    elif not any(message.topic == topic for message in client.heard):
                        untried.append(trying)
                trying = ""
                # A refusal shows as silence, so this is waited for to the end: a slow broker is not a strict one.
                patience = min(visit.until(), time.monotonic() + DELIVERY_S)
                client.listen(patience, partial(_all_came, client, [sub.topic_of(me) for sub in tried]))
            except HangUpError:
                if not trying:
                    raise
                ends_it.add(trying)  # this board need not publish there, it only reads
                continue
            missing = [sub.filter for sub in tried if sub.filter not in refused and not came(client, sub.topic_of(me))]
        if not visit.five:
            # Without reason codes silence may also mean that this board may not write there, which it need not.
            return refused, [], untried + missing
        return refused, missing, [name for name in untried if name not in refused]


def _try_members(visit: Visit, inbound: Sequence[TopicFilter]) -> tuple[list[str], list[str]]:
    """Return what stays silent of what an origin reads of other boards, and what could not be tried.

    That is what they announce, and the state of each that has, by its name: one of them is enough to see whether it
    may. Where descriptions say that a board serves a stage, its announcement must be there, and with it its state.
    """
    config = visit.config
    members = [sub for sub in inbound if sub.kind is Kind.MEMBER and not sub.is_own_announcements]
    if not members:
        return [], []
    states = topics.device(config.site, "+", Kind.STATE)
    silent: list[str] = []
    untried: list[str] = []
    with contextlib.suppress(HangUpError), session(visit) as client:
        for sub in members:
            client.subscribe(sub.filter, visit.until())
        client.listen(_soon(visit))
        there = [m.topic for m in client.heard if m.retain and m.payload and not m.topic.endswith(f"/{config.device}")]
        for sub in members:
            if not any(topic.startswith(sub.filter[:-1]) for topic in there):
                (silent if _is_served(visit, sub) else untried).append(sub.filter)
        if not there:
            return silent, [*untried, states]
        state = topics.device(config.site, min(there).rpartition("/")[2], Kind.STATE)
        code = client.subscribe(state, visit.until())
        if code >= REFUSED or not client.listen(_soon(visit), partial(_has_come, client, state)):
            silent.append(states)
    return silent, untried


def _is_served(visit: Visit, sub: TopicFilter) -> bool:
    """Whether a board says in its description that it serves the stage of a subscription, and the broker keeps such."""
    name = visit.config.pipelines[sub.pipeline or 0].name
    return visit.retains is not False and any(
        (held.pipeline, held.stage) == (name, sub.stage)
        for meta in _metas(visit)
        for held in meta.stages
        if meta.device != visit.config.device
    )


def _has_come(client: ProbeClient, topic: str) -> bool:
    return any(message.topic == topic for message in client.heard)


def _all_came(client: ProbeClient, names: Sequence[str]) -> bool:
    return all(came(client, topic) for topic in names)


def _subscribe(visit: Visit, client: ProbeClient, inbound: Sequence[TopicFilter], refused: list[str]) -> None:
    refused += [sub.filter for sub in inbound if client.subscribe(sub.filter, visit.until()) >= REFUSED]


def _release(visit: Visit, client: ProbeClient, kind: Kind, topic: str) -> bool:
    """Publish a trial where agents alone read; return whether it was taken."""
    if kind not in AGENTS_READ or visit.qos < 2:
        return False
    if client.withhold(topic, PROBE, visit.until()) >= REFUSED:
        return False
    client.release(topic, visit.until())
    return True


def _soon(visit: Visit) -> float:
    return min(visit.until(), time.monotonic() + SETTLE_S)


def _metas(visit: Visit) -> list[DeviceMeta]:
    """Return what boards of the site say of themselves, as far as this user may read it. Asked once.

    Who may not read their descriptions may read what they announce, as origins must: that says nearly as much.
    """
    if visit.metas is None:
        visit.metas = []
        site = visit.config.site
        announced = [topics.member(site, pipeline.name, "+", "+") for pipeline in visit.config.pipelines]
        members: list[Member] = []
        with contextlib.suppress(HangUpError), session(visit) as client:
            for name in (topics.device(site, "+", Kind.META), *announced):
                client.subscribe(name, visit.until())
            client.listen(_soon(visit))
            for message in client.heard:
                with contextlib.suppress(RemoteProtocolError):  # not this check's matter
                    if topics.parse(message.topic).kind is Kind.META:
                        visit.metas.append(decode(DeviceMeta, message.payload))
                    elif message.payload:
                        members.append(decode(Member, message.payload))
        described = {meta.device for meta in visit.metas}
        visit.metas += [_as_described(member) for member in members if member.device not in described]
    return visit.metas


def _as_described(member: Member) -> DeviceMeta:
    """Return of a board's description what its announcement says too."""
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


def _try_writing(visit: Visit, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return why topics are refused, and the topics of which this broker does not say."""
    if not visit.five or visit.qos < 2:
        return {}, list(names)
    harmless = [topic for topic in names if withholds(visit) or topics.parse(topic).kind in AGENTS_READ]
    denied: dict[str, str] = {}
    unseen = [topic for topic in names if topic not in harmless]
    # A broker bounds how much may be under way: what was withheld is forgotten with the connection.
    batch = max(1, min(visit.greeting.receive_maximum, 16) - 1)
    left = list(harmless)
    while left:
        now, left = left[:batch], left[batch:]
        with session(visit) as client:
            try:
                while now:
                    code = client.withhold(now[0], PROBE, visit.until())
                    if code >= REFUSED:
                        denied[now[0]] = NAMES.get(code, f"code {code}")
                    now.pop(0)
            except HangUpError:
                unseen.append(now[0])  # which is the matter of `publish`
                left = now[1:] + left
    return denied, unseen
