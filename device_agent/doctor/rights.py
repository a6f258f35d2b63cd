"""What the broker lets this board do, on the very topics that its agent uses, without a word to a live site.

Publishing is tried at QoS 2 and not released (`distree.transport.probe`): the broker says whether it may be, and
nobody hears of it. Reading is tried on what is addressed to this board: there the trial is released, and must come in;
a broker may accept a subscription and then deliver nothing. Agents ignore what is sent, and stages are subscribed to in
a group of the doctor's own, so that no input misses the board it was meant for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from functools import partial
from uuid import uuid4

from device_agent.config import AgentConfig, PipelineConfig
from device_agent.doctor.checks import Finding, Visit, failed, ok, unknown
from device_agent.doctor.network import session
from device_agent.doctor.trials import NOBODY, SETTLE_S, came, withholds
from device_agent.startup import fuses, travels
from distree import topics, wire
from distree.bundle import Bundle
from distree.errors import RemoteProtocolError
from distree.topics import Kind
from distree.transport.probe import NAMES, REFUSED, HangUpError, ProbeClient
from distree.types import DeviceMeta

DELIVERY_S = 3.0
"""How long a released trial may take."""

AGENTS_READ = frozenset({Kind.STAGE, Kind.OUTCOME, Kind.EXIT, Kind.DECISION, Kind.INPUT})
"""What agents alone read, which ignore a trial; other kinds may have readers of any make."""

_ACL = "correct the rules for this user in the broker's ACL"


def read(config: AgentConfig, bundles: Sequence[Bundle]) -> list[str]:
    """Return the topics that the agent reads, as they are without a shared subscription's group."""
    found = [topics.device(config.site, config.device, Kind.STATE)]
    for pipeline, bundle in zip(config.pipelines, bundles, strict=True):
        found += _read_of(config, pipeline, bundle)
    return found


def _read_of(config: AgentConfig, pipeline: PipelineConfig, bundle: Bundle) -> Iterator[str]:
    site, name, me = config.site, pipeline.name, config.device
    yield topics.plan(site, name)
    for k in pipeline.stages:
        if travels(bundle, k):
            yield topics.stage(site, name, k)
    if fuses(pipeline, bundle):
        yield topics.of_wide(site, name, Kind.EXIT, me)
    if pipeline.branch is not None:
        yield topics.of_wide(site, name, Kind.DECISION, me)
    if pipeline.origin is not None:
        yield topics.of_origin(site, name, Kind.OUTCOME, me)
        if pipeline.origin.source.kind == "mqtt":
            yield topics.of_origin(site, name, Kind.INPUT, me)


def written(config: AgentConfig, bundles: Sequence[Bundle], metas: Sequence[DeviceMeta] = ()) -> list[str]:
    """Return the topics on which the agent publishes; those of other boards where `metas` names the boards."""
    found = [
        topics.device(config.site, config.device, kind) for kind in (Kind.STATE, Kind.META, Kind.TELEMETRY, Kind.DEAD)
    ]
    for pipeline, bundle in zip(config.pipelines, bundles, strict=True):
        found += _written_of(config, pipeline, bundle, [meta for meta in metas if meta.device != config.device])
    return list(dict.fromkeys(found))


def unheard(config: AgentConfig, bundles: Sequence[Bundle], metas: Sequence[DeviceMeta] = ()) -> list[str]:
    """Return topics as the agent publishes on to boards of which none was heard, addressed to a board that is not.

    Where rules are not for single boards, it stands for those that were not heard.
    """
    others = [meta for meta in metas if meta.device != config.device]
    found = []
    for pipeline, bundle in zip(config.pipelines, bundles, strict=True):
        told = {topics.parse(topic).kind for topic in _written_of(config, pipeline, bundle, others)}
        fuser = fuses(pipeline, bundle)
        if pipeline.origin is None and (pipeline.stages or fuser) and Kind.OUTCOME not in told:
            found.append(topics.of_origin(config.site, pipeline.name, Kind.OUTCOME, NOBODY))
        if pipeline.branch is not None and not fuser and Kind.EXIT not in told:
            found.append(topics.of_wide(config.site, pipeline.name, Kind.EXIT, NOBODY))
        if fuser and Kind.DECISION not in told:
            found.append(topics.of_wide(config.site, pipeline.name, Kind.DECISION, NOBODY))
    return found


def _written_of(
    config: AgentConfig, pipeline: PipelineConfig, bundle: Bundle, others: Sequence[DeviceMeta]
) -> Iterator[str]:
    site, name, me = config.site, pipeline.name, config.device
    if pipeline.origin is not None:
        yield topics.of_origin(site, name, Kind.RESULT, me)
        yield topics.of_origin(site, name, Kind.AUDIT, me)
        if pipeline.origin.thumbnails is not None:
            yield topics.of_origin(site, name, Kind.THUMBNAIL, me)
    for k in sorted(_sent_to(pipeline, bundle)):
        yield topics.stage(site, name, k)
    origins = [meta.device for meta in others if name in meta.origins]
    if pipeline.stages or pipeline.fuse:
        yield from (topics.of_origin(site, name, Kind.OUTCOME, origin) for origin in origins)
    if pipeline.branch is not None:
        fusers = [meta.device for meta in others if name in meta.fusers]
        yield from (topics.of_wide(site, name, Kind.EXIT, fuser) for fuser in fusers)
    if fuses(pipeline, bundle):
        branches = [
            meta.device for meta in others if any(h.pipeline == name and h.branch is not None for h in meta.stages)
        ]
        yield from (topics.of_wide(site, name, Kind.DECISION, board) for board in branches)


def _sent_to(pipeline: PipelineConfig, bundle: Bundle) -> set[int]:
    """Return the stages to which this board sends: the next ones of its own, and the first for its inputs."""
    wide_ends = [group[-1] for group in bundle.wide_groups] if fuses(pipeline, bundle) else []
    plain = [k for k in pipeline.stages if not bundle.stages[k].branches]
    following = {k + 1 for k in (*plain, *wide_ends) if k + 1 < len(bundle.stages)}
    if pipeline.origin is not None:
        following.add(0)
    return {k for k in following if k not in pipeline.stages}


def check_rights(visit: Visit) -> Finding:
    """Every topic that the agent reads or writes is open to it."""
    config = visit.config
    if not visit.greeting.shares and any(pipeline.stages for pipeline in config.pipelines):
        what = "this broker has no shared subscriptions, by which the boards of a stage take their inputs"
        return failed(what, "take one that has them, such as mosquitto 2")
    inbound = [topic for topic in read(config, visit.bundles) if topic not in visit.blamed]
    refused, silent, untried = _try_reading(visit, inbound)
    metas = _metas(visit)
    names = [topic for topic in written(config, visit.bundles, metas) if topic not in visit.blamed]
    others = [topic for topic in unheard(config, visit.bundles, metas) if topic not in visit.blamed]
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
    return written(visit.config, visit.bundles, metas) + unheard(visit.config, visit.bundles, metas)


def _try_reading(visit: Visit, inbound: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the topics whose subscription is refused, those that stay silent, and those that could not be tried."""
    ends_it: set[str] = set()
    while True:
        refused: list[str] = []
        tried: list[str] = []
        untried: list[str] = []
        trying = ""
        with session(visit) as client:
            try:
                _subscribe(visit, client, inbound, refused)
                for trying in (topic for topic in inbound if topics.parse(topic).kind is not Kind.STATE):
                    if trying not in ends_it and _release(visit, client, trying):
                        tried.append(trying)
                    elif not any(message.topic == trying for message in client.heard):
                        untried.append(trying)
                trying = ""
                # A refusal shows as silence, so this is waited for to the end: a slow broker is not a strict one.
                patience = min(visit.until(), time.monotonic() + DELIVERY_S)
                client.listen(patience, partial(_all_came, client, tried))
            except HangUpError:
                if not trying:
                    raise
                ends_it.add(trying)  # this board need not publish there, it only reads
                continue
            missing = [topic for topic in tried if topic not in refused and not came(client, topic)]
        if not visit.five:
            # Without reason codes silence may also mean that this board may not write there, which it need not.
            return refused, [], untried + missing
        return refused, missing, [topic for topic in untried if topic not in refused]


def _all_came(client: ProbeClient, names: Sequence[str]) -> bool:
    return all(came(client, topic) for topic in names)


def _subscribe(visit: Visit, client: ProbeClient, inbound: Sequence[str], refused: list[str]) -> None:
    group = uuid4().hex[:8]
    for topic in inbound:
        share = f"$share/doctor-{group}/" if topics.parse(topic).kind is Kind.STAGE else ""
        if client.subscribe(share + topic, visit.until()) >= REFUSED:
            refused.append(topic)


def _release(visit: Visit, client: ProbeClient, topic: str) -> bool:
    """Publish a trial where agents alone read; return whether it was taken."""
    if topics.parse(topic).kind not in AGENTS_READ or visit.qos < 2:
        return False
    if client.withhold(topic, wire.PROBE, visit.until()) >= REFUSED:
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
                    visit.metas.append(wire.decode_meta(message.payload))
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
                    code = client.withhold(now[0], wire.PROBE, visit.until())
                    if code >= REFUSED:
                        denied[now[0]] = NAMES.get(code, f"code {code}")
                    now.pop(0)
            except HangUpError:
                unseen.append(now[0])  # which is the matter of `publish`
                left = now[1:] + left
    return denied, unseen
