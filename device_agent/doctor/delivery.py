"""What passes between this board and the broker as the agent sends it: a will, retained messages, QoS 1, subscriptions.

A broker, or a proxy before it, may answer by ending the connection, and an agent that connects again and does the same
again is never online. So each thing is tried by itself, and what ends the connection twice is named.

The will is empty and addressed to a board that is not there: should the connection break in the moment between login
and logout, and the broker publish it, nothing is retained (an empty retained message only deletes, and there is
nothing on that topic) and no board hears of it. Retained messages are tried at QoS 2 and not released, like all
publishes that others than agents might read; but for one that agents ignore, in the place of this board's own
announcement where it has none, to see whether it is there for whoever subscribes later. It is taken away again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

from device_agent.addresses import publications, subscriptions
from device_agent.doctor.acl import AGENTS_READ, outbound
from device_agent.doctor.checks import Finding, Visit, failed, ok, told, unknown
from device_agent.doctor.disconnects import SETTLE_S, bad_filters, ends, hangs_up_on, nobody, send, withholds
from device_agent.doctor.network import greet_with, session
from distree import topics
from distree.messages.codec import PROBE
from distree.topics import Kind
from distree.transport import connect_errors
from distree.transport.negotiation import MAX_FILTERS_PER_SUBSCRIBE
from distree.transport.probe import REFUSED, HangUpError, Will

_MOST_NAMED = 4
"""No more lines than these in one finding."""

_NOT_AUTHORIZED, _NO_RETAIN, _NO_QOS = 0x87, 0x9A, 0x9B


def check_retained(visit: Visit) -> Finding:
    """Retained messages pass: states, descriptions and plans are kept for those who come late."""
    settings, config = visit.config.broker, visit.config
    quietly = withholds(visit)
    if not visit.greeting.retains:
        visit.retains = False
        return told(connect_errors.takes_no_retained(settings))
    if not quietly:
        return unknown("the broker says nothing against them; they cannot be tried here without being kept")
    codes: list[int] = []
    for kind in (Kind.STATE, Kind.META):
        topic = topics.device(config.site, config.device, kind)
        if not _withheld_ends(visit, topic, codes, retain=True):
            visit.retains = codes[-1] != _NO_RETAIN
            return _handed_out(visit) if visit.retains else told(connect_errors.takes_no_retained(settings))
        if not _withheld_ends(visit, topic, codes, retain=False):
            visit.retains = False
            return told(connect_errors.hangs_up_on_retained(settings))
    return unknown("the connection ends on every publish on this board's topics, retained or not: see publish")


def _handed_out(visit: Visit) -> Finding:
    """See whether what boards announce is there for whoever subscribes afterwards, by wildcards."""
    config = visit.config
    inbound = [sub for sub in subscriptions(config, visit.bundles) if sub.kind is Kind.MEMBER]
    (echoes,) = (sub.filter for sub in inbound if sub.is_own_announcements)
    names = publications(config, visit.bundles)
    own = next((name for name in names if topics.parse(name).kind is Kind.MEMBER), None)
    there = ok("retained messages pass, and are there for whoever subscribes later")
    try:
        if _comes_retained(visit, [sub.filter for sub in inbound]):
            return there
        if own is None or not _leave(visit, own, PROBE):
            return ok("retained messages pass; no board has announced itself, so whether that lasts was not tried")
        try:
            comes = _comes_retained(visit, [echoes])
        finally:
            _leave(visit, own, b"")
    except HangUpError:
        return ok("retained messages pass; the connection ends where it was tried whether they last")
    return there if comes else told(connect_errors.keeps_no_announcement(config.broker, echoes))


def _comes_retained(visit: Visit, filters: Sequence[str]) -> bool:
    """Whether anything that is retained comes on these."""
    with session(visit) as client:
        for name in filters:
            client.subscribe(name, visit.until())
        patience = min(visit.until(), time.monotonic() + SETTLE_S)
        return client.listen(patience, lambda: any(message.retain for message in client.heard))


def _leave(visit: Visit, topic: str, payload: bytes) -> bool:
    """Have the broker keep a message, or forget it where it is empty; return whether it does."""
    with session(visit) as client:
        return client.publish(topic, payload, qos=min(1, visit.qos), until=visit.until(), retain=True) < REFUSED


def _withheld_ends(visit: Visit, topic: str, codes: list[int], *, retain: bool) -> bool:
    return ends(visit, lambda client: codes.append(client.withhold(topic, PROBE, visit.until(), retain=retain)))


def check_qos(visit: Visit) -> Finding:
    """Publishes at QoS 1 pass: without them a lost connection loses what is under way."""
    settings = visit.config.broker
    with session(visit):
        visit.qos = min(visit.qos, visit.greeting.max_qos)
    if visit.qos == 0:
        return told(connect_errors.takes_no_qos_1(settings))
    codes: list[int] = []
    for topic in _read_by_agents(visit):
        if not _publish_ends(visit, topic, 1, codes):
            if codes[-1] != _NO_QOS:
                return ok("publishes at QoS 1 pass")
            visit.qos = 0
            return told(connect_errors.takes_no_qos_1(settings))
        if not _publish_ends(visit, topic, 0, codes):
            visit.qos = 0
            return told(connect_errors.hangs_up_on_qos(settings))
    return unknown("the connection ends on every publish that could be tried, whatever its QoS: see publish")


def _read_by_agents(visit: Visit) -> Iterator[str]:
    yield nobody(visit)
    yield from (name for name in outbound(visit) if topics.parse(name).kind in AGENTS_READ)


def _publish_ends(visit: Visit, topic: str, qos: int, codes: list[int]) -> bool:
    return ends(visit, lambda client: codes.append(client.publish(topic, PROBE, qos=qos, until=visit.until())))


def check_will(visit: Visit) -> Finding:
    """A login with a will passes: it tells the others when this board dies."""
    settings = visit.config.broker
    # What is known not to pass was told already.
    qos, retain = min(1, visit.qos), visit.greeting.retains and visit.retains is not False
    answers: dict[tuple[int, bool], int | None] = {}
    # As the agent does it, then by half measures, to see what is in the way.
    for how in dict.fromkeys([(qos, retain), (qos, False), (0, retain), (0, False)]):
        answers[how] = _greet_twice(visit, harmless_will(visit, *how))
        if answers[how] in (0, _NOT_AUTHORIZED):
            break
    last, first = list(answers.items())[-1], next(iter(answers.values()))
    if last[1] == _NOT_AUTHORIZED:
        return unknown(
            "this broker asks at the login whether a will's topic is open to this user, and one that nobody reads "
            "is not; whether this board's own topics are is told by rights"
        )
    if first == 0:
        return ok(f"a login with a will passes (QoS {qos}, {'retained' if retain else 'not retained'})")
    if last[1] == 0 and last[0][1] != retain and not visit.retains:
        hung_up, refused = connect_errors.hangs_up_on_retained, connect_errors.takes_no_retained
    elif last[1] == 0 and last[0][1] == retain:
        hung_up, refused = connect_errors.hangs_up_on_qos, connect_errors.takes_no_qos_1
    else:
        hung_up, refused = connect_errors.hangs_up_on_will, connect_errors.refuses_will
    return told((hung_up if first is None else refused)(settings))


def harmless_will(visit: Visit, qos: int, retain: bool) -> Will:
    """Return a will that nobody hears and that leaves nothing behind, should it ever be published."""
    return Will(topic=nobody(visit), payload=b"", qos=qos, retain=retain)


def _greet_twice(visit: Visit, will: Will) -> int | None:
    """Log in with a will; where the connection ends, once more if one without a will still lives."""
    code = greet_with(visit, will)
    if code is None:
        ends(visit, lambda _: None)
        code = greet_with(visit, will)
    return code


def check_subscribe(visit: Visit) -> Finding:
    """Subscriptions pass, several filters in a packet, as the agent sends them."""
    settings = visit.config.broker
    filters = [sub.filter for sub in subscriptions(visit.config, visit.bundles)]
    blamed: list[str] = []
    at, at_once, number = 0, MAX_FILTERS_PER_SUBSCRIBE, 0
    while at < len(filters):
        packet = filters[at : at + at_once]
        if hangs_up_on(visit, packet):
            found, least_number = bad_filters(visit, packet)
            blamed += found
            if least_number and not found:
                number = least_number
                at_once = number - 1
                continue
        at += len(packet)
    if not blamed and not number:
        most = min(len(filters), MAX_FILTERS_PER_SUBSCRIBE)
        return ok(f"subscriptions pass, {most} filters at a time")
    visit.blamed.update(blamed)
    lines = [connect_errors.hangs_up_on_subscribe(settings, [name]) for name in blamed]
    if number:
        lines.insert(0, connect_errors.hangs_up_on_subscribe(settings, filters[:number]))
    return _joined(lines)


def check_publish(visit: Visit) -> Finding:
    """Small publishes pass on every topic of the agent."""
    names = outbound(visit)
    quietly = withholds(visit)
    tried = [name for name in names if quietly or topics.parse(name).kind in AGENTS_READ]
    # Each costs several connections, and a broker that takes no publishes at all is told as well by these.
    blamed = list(islice(_ending(visit, tried, quietly=quietly), _MOST_NAMED + 1))
    if blamed:
        visit.blamed.update(blamed)
        return _joined([connect_errors.hangs_up_on_publish(visit.config.broker, topic, len(PROBE)) for topic in blamed])
    if not tried:
        return unknown("publishes cannot be tried on this broker without disturbing others")
    return ok(f"publishes pass on {len(tried)} topics" + (f" of {len(names)}" if len(tried) < len(names) else ""))


def _ending(visit: Visit, names: Sequence[str], *, quietly: bool) -> Iterator[str]:
    """Yield the topics on which a publish ends the connection."""
    # A broker bounds how much may be under way: what was withheld is forgotten with the connection.
    batch = max(1, min(visit.greeting.receive_maximum, 16) - 1)
    at = 0
    while at < len(names):
        passed = at
        try:
            with session(visit) as client:
                for topic in names[at : at + batch]:
                    send(visit, client, topic, PROBE, quietly=quietly)
                    passed += 1
                client.ping(visit.until())
        except HangUpError:
            # Some answer first and hang up then, so that the one before may be it.
            for topic in names[max(at, passed - 1) : passed + 1]:
                if ends(visit, partial(send, visit, topic=topic, payload=PROBE, quietly=quietly)):
                    yield topic
            passed += 1
        at = passed


def _joined(lines: Sequence[str]) -> Finding:
    """Make one finding of several lines; remedies that are the same are given once."""
    findings = [told(line) for line in lines]
    remedies = list(dict.fromkeys(finding.remedy for finding in findings))
    texts = [finding.text for finding in findings[:_MOST_NAMED]]
    if len(findings) > _MOST_NAMED:
        texts.append("and on more like these")
    return failed("; ".join(texts), "; ".join(remedies))
