"""Whether all that the agent asks of the broker works: a will, retained messages, QoS 1, subscriptions, publishes.

A broker, or a proxy in front of it, may answer by ending the connection, and an agent that reconnects and does the same
again is never online. So each thing is tried by itself, and whatever ends the connection twice is named.

The will is empty and addressed to a board that does not exist: should the connection break between login and logout,
and the broker publish it, nothing is retained (an empty retained message only deletes, and there is nothing on that
topic) and no board receives it. Retained messages are tried at QoS 2 and not released, like all publishes that others
than agents might read. There is one exception: where this board has not announced itself, a message that agents ignore
is retained in that place, to see whether later subscribers get it, and removed again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

from device_agent.addresses import publications, subscriptions
from device_agent.doctor.acl import AGENT_ONLY, outgoing_topics
from device_agent.doctor.checks import Check, CheckContext, Finding, failed, failure_from, ok, unknown
from device_agent.doctor.disconnects import (
    SETTLE_S,
    disconnects,
    filters_to_blame,
    send,
    subscribing_disconnects,
    unread_topic,
    withholds,
)
from device_agent.doctor.network import login_with_will, session
from distree import topics
from distree.errors import Problem
from distree.formatting import counted
from distree.messages.codec import PROBE
from distree.topics import Kind
from distree.transport import connect_errors
from distree.transport.negotiation import MAX_FILTERS_PER_SUBSCRIBE
from distree.transport.probe import REFUSED, HangUpError, Will

_MOST_NAMED = 4
"""Most problems that one finding names."""

_NOT_AUTHORIZED, _NO_RETAIN, _NO_QOS = 0x87, 0x9A, 0x9B


def check_retained(context: CheckContext) -> Finding:
    """Retained messages work: states, descriptions and plans are kept for later subscribers."""
    settings, config = context.config.broker, context.config
    quietly = withholds(context)
    if not context.greeting.retains:
        context.retains = False
        return failure_from(connect_errors.takes_no_retained(settings))
    if not quietly:
        return unknown("the broker does not rule them out, but they cannot be tried here without leaving one behind")
    codes: list[int] = []
    for kind in (Kind.STATE, Kind.META):
        topic = topics.device(config.site, config.device, kind)
        if not _withheld_ends(context, topic, codes, retain=True):
            context.retains = codes[-1] != _NO_RETAIN
            return _handed_out(context) if context.retains else failure_from(connect_errors.takes_no_retained(settings))
        if not _withheld_ends(context, topic, codes, retain=False):
            context.retains = False
            return failure_from(connect_errors.hangs_up_on_retained(settings))
    return unknown(
        "the connection ends on every publish on this board's topics, retained or not",
        "fix what the check publish reports",
    )


def _handed_out(context: CheckContext) -> Finding:
    """See whether what boards announce reaches those who subscribe later, by wildcards."""
    config = context.config
    inbound = [sub for sub in subscriptions(config, context.bundles) if sub.kind is Kind.MEMBER]
    (echoes,) = (sub.filter for sub in inbound if sub.is_own_announcements)
    names = publications(config, context.bundles)
    own = next((name for name in names if topics.parse(name).kind is Kind.MEMBER), None)
    there = ok("retained messages work, and reach later subscribers")
    try:
        if _comes_retained(context, [sub.filter for sub in inbound]):
            return there
        if own is None or not _leave(context, own, PROBE):
            return ok(
                "retained messages work; whether they reach later subscribers was not tried, "
                "as no board has announced itself"
            )
        try:
            comes = _comes_retained(context, [echoes])
        finally:
            _leave(context, own, b"")
    except HangUpError:
        return ok("retained messages work; the connection ended while trying whether they reach later subscribers")
    return there if comes else failure_from(connect_errors.keeps_no_announcement(config.broker, echoes))


def _comes_retained(context: CheckContext, filters: Sequence[str]) -> bool:
    """Whether anything retained arrives on these."""
    with session(context) as client:
        for name in filters:
            client.subscribe(name, context.until())
        patience = min(context.until(), time.monotonic() + SETTLE_S)
        return client.listen(patience, lambda: any(message.retain for message in client.heard))


def _leave(context: CheckContext, topic: str, payload: bytes) -> bool:
    """Have the broker retain a message, or forget it if it is empty; return whether it does."""
    with session(context) as client:
        return client.publish(topic, payload, qos=min(1, context.qos), until=context.until(), retain=True) < REFUSED


def _withheld_ends(context: CheckContext, topic: str, codes: list[int], *, retain: bool) -> bool:
    return disconnects(
        context, lambda client: codes.append(client.withhold(topic, PROBE, context.until(), retain=retain))
    )


def check_qos(context: CheckContext) -> Finding:
    """Publishes at QoS 1 work: without them a lost connection loses what is under way."""
    settings = context.config.broker
    with session(context):
        context.qos = min(context.qos, context.greeting.max_qos)
    if context.qos == 0:
        return failure_from(connect_errors.takes_no_qos_1(settings))
    codes: list[int] = []
    for topic in _read_by_agents(context):
        if not _publish_ends(context, topic, 1, codes):
            if codes[-1] != _NO_QOS:
                return ok("publishes at QoS 1 work")
            context.qos = 0
            return failure_from(connect_errors.takes_no_qos_1(settings))
        if not _publish_ends(context, topic, 0, codes):
            context.qos = 0
            return failure_from(connect_errors.hangs_up_on_qos(settings))
    return unknown(
        "the connection ends on every publish that could be tried, whatever its QoS",
        "fix what the check publish reports",
    )


def _read_by_agents(context: CheckContext) -> Iterator[str]:
    yield unread_topic(context)
    yield from (name for name in outgoing_topics(context) if topics.parse(name).kind in AGENT_ONLY)


def _publish_ends(context: CheckContext, topic: str, qos: int, codes: list[int]) -> bool:
    return disconnects(
        context, lambda client: codes.append(client.publish(topic, PROBE, qos=qos, until=context.until()))
    )


def check_will(context: CheckContext) -> Finding:
    """A login with a will works: it tells the others when this board dies."""
    settings = context.config.broker
    # What is known not to work was reported already.
    qos, retain = min(1, context.qos), context.greeting.retains and context.retains is not False
    answers: dict[tuple[int, bool], int | None] = {}
    # First as the agent does it, then with less, to see what the broker objects to.
    for how in dict.fromkeys([(qos, retain), (qos, False), (0, retain), (0, False)]):
        answers[how] = _greet_twice(context, harmless_will(context, *how))
        if answers[how] in (0, _NOT_AUTHORIZED):
            break
    last, first = list(answers.items())[-1], next(iter(answers.values()))
    if last[1] == _NOT_AUTHORIZED:
        return unknown(
            "this broker checks at the login whether this user may publish on the will's topic, and it may not on one "
            "that nobody reads",
            "see the check acl for this board's own topics",
        )
    if first == 0:
        return ok(f"a login with a will works (QoS {qos}, {'retained' if retain else 'not retained'})")
    if last[1] == 0 and last[0][1] != retain and not context.retains:
        hung_up, refused = connect_errors.hangs_up_on_retained, connect_errors.takes_no_retained
    elif last[1] == 0 and last[0][1] == retain:
        hung_up, refused = connect_errors.hangs_up_on_qos, connect_errors.takes_no_qos_1
    else:
        hung_up, refused = connect_errors.hangs_up_on_will, connect_errors.refuses_will
    return failure_from((hung_up if first is None else refused)(settings))


def harmless_will(context: CheckContext, qos: int, retain: bool) -> Will:
    """Return a will that reaches nobody and leaves nothing behind, should it ever be published."""
    return Will(topic=unread_topic(context), payload=b"", qos=qos, retain=retain)


def _greet_twice(context: CheckContext, will: Will) -> int | None:
    """Log in with a will; if the connection ends, try again, provided that one without a will still works."""
    code = login_with_will(context, will)
    if code is None:
        disconnects(context, lambda _: None)
        code = login_with_will(context, will)
    return code


def check_subscribe(context: CheckContext) -> Finding:
    """Subscriptions work, with several filters per packet, as the agent sends them."""
    settings = context.config.broker
    filters = [sub.filter for sub in subscriptions(context.config, context.bundles)]
    blamed: list[str] = []
    at, at_once, number = 0, MAX_FILTERS_PER_SUBSCRIBE, 0
    while at < len(filters):
        packet = filters[at : at + at_once]
        if subscribing_disconnects(context, packet):
            found, least_number = filters_to_blame(context, packet)
            blamed += found
            if least_number and not found:
                number = least_number
                at_once = number - 1
                continue
        at += len(packet)
    if not blamed and not number:
        most = min(len(filters), MAX_FILTERS_PER_SUBSCRIBE)
        return ok(f"subscriptions work, {most} filters at a time")
    context.disconnecting.update(blamed)
    problems = [connect_errors.hangs_up_on_subscribe(settings, [name]) for name in blamed]
    if number:
        problems.insert(0, connect_errors.hangs_up_on_subscribe(settings, filters[:number]))
    return _joined(problems)


def check_publish(context: CheckContext) -> Finding:
    """Small publishes work on every topic of the agent."""
    names = outgoing_topics(context)
    quietly = withholds(context)
    tried = [name for name in names if quietly or topics.parse(name).kind in AGENT_ONLY]
    # Each costs several connections, and these are enough to recognise a broker that accepts no publishes at all.
    blamed = list(islice(_ending(context, tried, quietly=quietly), _MOST_NAMED + 1))
    if blamed:
        context.disconnecting.update(blamed)
        return _joined(
            [connect_errors.hangs_up_on_publish(context.config.broker, topic, len(PROBE)) for topic in blamed]
        )
    if not tried:
        return unknown("publishes cannot be tried on this broker without disturbing others")
    of_all = f" of {len(names)}" if len(tried) < len(names) else ""
    return ok(f"publishes work on {counted(len(tried), 'topic')}{of_all}")


def _ending(context: CheckContext, names: Sequence[str], *, quietly: bool) -> Iterator[str]:
    """Yield the topics on which a publish ends the connection."""
    # A broker limits how much may be under way: what was withheld is forgotten with the connection.
    batch = max(1, min(context.greeting.receive_maximum, 16) - 1)
    at = 0
    while at < len(names):
        passed = at
        try:
            with session(context) as client:
                for topic in names[at : at + batch]:
                    send(context, client, topic, PROBE, quietly=quietly)
                    passed += 1
                client.ping(context.until())
        except HangUpError:
            # Some brokers answer first and hang up then, so it may be the one before.
            for topic in names[max(at, passed - 1) : passed + 1]:
                if disconnects(context, partial(send, context, topic=topic, payload=PROBE, quietly=quietly)):
                    yield topic
            passed += 1
        at = passed


def _joined(problems: Sequence[Problem]) -> Finding:
    """Make one finding of several problems; remedies that are the same are given once."""
    remedies = list(dict.fromkeys(problem.remedy for problem in problems))
    texts = [problem.what for problem in problems[:_MOST_NAMED]]
    if len(problems) > _MOST_NAMED:
        texts.append("and on more topics like these")
    return failed("; ".join(texts), "; ".join(remedies))


CHECKS = (
    Check(name="retained", run=check_retained, needs=("login", "bundle")),
    Check(name="qos", run=check_qos, needs=("login", "bundle")),
    Check(name="will", run=check_will, needs=("login",)),
    Check(name="subscribe", run=check_subscribe, needs=("login", "bundle")),
    Check(name="publish", run=check_publish, needs=("login", "bundle")),
)
