"""What the broker lets this board do, on the very topics that its agent uses, without a word to a live site.

Publishing is tried at QoS 2 and not released (`distree.transport.probe`): the broker says whether it may be, and
nobody hears of it. Reading is tried on what is addressed to this board: there the trial is released, and must come in;
a broker may accept a subscription and then deliver nothing. Agents ignore what is sent, and stages are subscribed to in
a group of the doctor's own, so that no input misses the board it was meant for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from functools import partial
from uuid import uuid4

from device_agent.addresses import Subscription, publications, subscriptions, unheard
from device_agent.doctor.checks import Finding, Visit, failed, ok, unknown
from device_agent.doctor.network import session
from device_agent.doctor.trials import NOBODY, SETTLE_S, came, withholds
from distree import topics
from distree.errors import RemoteProtocolError
from distree.messages.codec import PROBE, decode
from distree.messages.device import DeviceMeta
from distree.topics import TABLE, Kind, Role
from distree.transport.probe import NAMES, REFUSED, HangUpError, ProbeClient

DELIVERY_S = 3.0
"""How long a released trial may take."""

AGENTS_READ = frozenset(
    kind for kind, topic in TABLE.items() if not topic.subscribers & {Role.BOARD, Role.ORCHESTRATOR, Role.USER}
)
"""What agents alone read, which ignore a trial; other kinds may have readers of any make."""

_ACL = "correct the rules for this user in the broker's ACL"


def check_rights(visit: Visit) -> Finding:
    """Every topic that the agent reads or writes is open to it."""
    config = visit.config
    if not visit.greeting.shares and any(pipeline.stages for pipeline in config.pipelines):
        what = "this broker has no shared subscriptions, by which the boards of a stage take their inputs"
        return failed(what, "take one that has them, such as mosquitto 2")
    inbound = [sub for sub in subscriptions(config, visit.bundles) if sub.filter not in visit.blamed]
    refused, silent, untried = _try_reading(visit, inbound)
    metas = _metas(visit)
    names = [topic for topic in publications(config, visit.bundles, metas) if topic not in visit.blamed]
    others = [topic for topic in unheard(config, visit.bundles, metas, NOBODY) if topic not in visit.blamed]
    denied, unseen = _try_writing(visit, [*names, *others])
    silent_peers = [topic for topic in others if denied.pop(topic, None) is not None]
    if refused or denied or silent:
        words = [f"may not subscribe to {topic}" for topic in refused]
        words += [f"gets nothing of what comes on {topic}" for topic in silent]
        words += [f"may not publish on {topic} ({why})" for topic, why in denied.items()]
        return failed("; ".join(words), _ACL)
    may = f"may publish on {len({*names, *others} - {*unseen, *silent_peers})} topics and subscribe to {len(inbound)}"
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


def outbound(visit: Visit) -> list[str]:
    """Return the topics on which the agent publishes, to boards that were heard and to those that may be there."""
    metas = _metas(visit)
    return publications(visit.config, visit.bundles, metas) + unheard(visit.config, visit.bundles, metas, NOBODY)


def _try_reading(visit: Visit, inbound: Sequence[Subscription]) -> tuple[list[str], list[str], list[str]]:
    """Return the filters that are refused, those that stay silent, and those that could not be tried.

    What passes by a filter is tried with a message from this board itself.
    """
    me = visit.config.device
    ends_it: set[str] = set()
    while True:
        refused: list[str] = []
        tried: list[Subscription] = []
        untried: list[str] = []
        trying = ""
        with session(visit) as client:
            try:
                _subscribe(visit, client, inbound, refused)
                for sub in (sub for sub in inbound if sub.kind is not Kind.STATE):
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


def _all_came(client: ProbeClient, names: Sequence[str]) -> bool:
    return all(came(client, topic) for topic in names)


def _subscribe(visit: Visit, client: ProbeClient, inbound: Sequence[Subscription], refused: list[str]) -> None:
    group = uuid4().hex[:8]
    for sub in inbound:
        share = f"$share/doctor-{group}/" if sub.kind is Kind.STAGE else ""
        if client.subscribe(share + sub.filter, visit.until()) >= REFUSED:
            refused.append(sub.filter)


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
    """Return what boards of the site say of themselves, as far as this user may read it. Asked once."""
    if visit.metas is None:
        visit.metas = []
        with contextlib.suppress(HangUpError), session(visit) as client:
            client.subscribe(topics.device(visit.config.site, "+", Kind.META), visit.until())
            client.listen(_soon(visit))
            for message in client.heard:
                with contextlib.suppress(RemoteProtocolError):  # not this check's matter
                    visit.metas.append(decode(DeviceMeta, message.payload))
    return visit.metas


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
