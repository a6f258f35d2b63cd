"""Messages from the broker to the nodes, and the nodes' effects out to the broker.

Messages from other boards are decoded here, and messages to them encoded. An incoming message is given to a handler by
its topic: `device_agent.addresses` says to which topics this board subscribes. A topic ends in its sender.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from device_agent.addresses import TopicFilter, subscriptions
from device_agent.config import AgentConfig
from device_agent.echoes import Echoes
from device_agent.pipeline import AgentPipeline
from device_agent.plan_handler import PlanHandler
from device_agent.plan_seals import PlanSeals
from device_agent.reporting import Reporting
from distree import topics
from distree.errors import RESTRICT, LocalProtocolError, Problem, RemoteProtocolError
from distree.lanes import Lane
from distree.messages.audit import AuditRow
from distree.messages.codec import PROBE, decode, encode
from distree.messages.device import DeviceState
from distree.messages.events import EventKind, Thumbnail
from distree.messages.member import Call, Member
from distree.messages.request import Decision, Embedding, Outcome, StageMessage
from distree.messages.result import Result, Stamp
from distree.node import Acknowledge, Announce, Drop, Effect, Fuse, Listen, Publish, Run, Tell
from distree.printable import quoted
from distree.topics import DELIVERY, Kind
from distree.transport.base import Received, Transport

log = logging.getLogger(__name__)

DECISION_EXPIRY_S = 10.0
"""A decision that reaches its branch later than this, in seconds, is of no use any more."""

_MAX_KNOWN_TOPICS = 1024
"""Topics from and to other boards that are cached, each way: peers choose their names."""

_WORK = DELIVERY[Kind.STAGE]
"""How nodes' messages to other boards are sent."""

_KINDS: dict[type, Kind] = {Embedding: Kind.EXIT, Decision: Kind.DECISION, Outcome: Kind.OUTCOME}

Handler = Callable[[Received, str], None]
"""Handles a message and its sender, "" where the topic names none."""


class Mailbox:
    """Routes what is received and carries out what nodes want. All but `deliver_results` with the lock held.

    `put` hands a job to whoever computes.
    """

    def __init__(
        self,
        config: AgentConfig,
        boot: str,
        pipelines: Sequence[AgentPipeline],
        transport: Transport,
        reporting: Reporting,
        put: Callable[[tuple[AgentPipeline, Run | Fuse]], None],
    ) -> None:
        self.on_result: Callable[[Result], None] | None = None
        """Called with each final result of this board's origins, without the lock, by one of the agent's threads."""
        self._pipelines = pipelines
        self._transport = transport
        self._reporting = reporting
        self._put = put
        self._results: deque[Result] = deque()
        self._site, self._device = config.site, config.device
        self._plan_keys = config.plan_keys
        bundles = [pipeline.bundle for pipeline in pipelines]
        announced = [
            topics.member(config.site, pipeline.config.name, k, config.device)
            for pipeline in pipelines
            for k in pipeline.node.served
        ]
        self.echoes = Echoes(config, boot, transport, reporting, announced, self._announce_all)
        # Inputs by MQTT have a connection of their own, and own announcements are subscribed to once they are made.
        self._subscriptions = [
            sub for sub in subscriptions(config, bundles) if sub.kind is not Kind.INPUT and not sub.is_own_announcements
        ]
        self._handlers = {sub.filter: self._handler_of(sub) for sub in self._subscriptions}
        self._handlers[self.echoes.echo_topic] = self.echoes.on_echo
        self._known_topics: dict[str, tuple[Handler, str]] = {}
        self._listening: dict[str, set[int]] = {}
        """Boards whose states are subscribed to, and for which pipelines."""
        self._topic_to = functools.lru_cache(_MAX_KNOWN_TOPICS)(functools.partial(_topic_to, config))

    # ------------------------------------------------------------ messages in

    def subscriptions(self) -> list[tuple[str, int]]:
        """Return the filters that this board subscribes to, with their QoS."""
        return [(sub.filter, DELIVERY[sub.kind].qos) for sub in self._subscriptions]

    def receive(self, message: Received) -> None:
        """Route a message by its topic; whatever breaks the protocol is dead-lettered and acknowledged."""
        if message.payload == PROBE:
            self._transport.acknowledge(message.token)
            return
        try:
            handle, sender = self._known_topics.get(message.topic) or self._look_up(message.topic)
            handle(message, sender)
        except RemoteProtocolError as error:
            if not (message.retain and error.reason == "topic"):  # amqtt delivers what others have subscribed to
                self._reporting.dead_letter(message.topic, error, message.payload)
            self._transport.acknowledge(message.token)

    def _look_up(self, topic: str) -> tuple[Handler, str]:
        """Return what takes messages of a topic that is new, and who sends them."""
        head, _, sender = topic.rpartition("/")
        if sender == self._device and _kind_of(topic) is Kind.MEMBER:
            return self.echoes.on_own_member, sender
        handle = self._handlers.get(f"{head}/+")
        if handle is None:
            handle, sender = self._handlers.get(topic), ""
            if handle is None and _kind_of(topic) is Kind.STATE:
                return self._ignore_state, sender
            if handle is None:
                raise RemoteProtocolError("topic", "not subscribed to by this agent", "check the broker")
        elif not topics.is_device(sender):
            raise RemoteProtocolError(
                "sender", f"the topic ends in {quoted(sender)}, which is not a board's id", RESTRICT
            )
        if len(self._known_topics) >= _MAX_KNOWN_TOPICS:
            self._known_topics.clear()
        self._known_topics[topic] = found = handle, sender
        return found

    def _handler_of(self, sub: TopicFilter) -> Handler:
        if sub.pipeline is None:
            return self.echoes.on_own_state
        pipeline = self._pipelines[sub.pipeline]
        match sub.kind:
            case Kind.STAGE:
                return self._stage_handler(pipeline, sub.stage)
            case Kind.EXIT:
                return self._exit_handler(pipeline)
            case Kind.DECISION:
                return self._node_handler(pipeline, Decision)
            case Kind.OUTCOME:
                return self._node_handler(pipeline, Outcome)
            case Kind.PLAN:
                return self._plan_handler(pipeline)
            case Kind.MEMBER:
                return self._member_handler(pipeline, sub.stage)
            case Kind.CALL:
                return self._call_handler(pipeline)
        raise AssertionError(f"no handler for {sub.kind}")

    def _stage_handler(self, pipeline: AgentPipeline, k: int) -> Handler:
        receive, is_wide = pipeline.node.receive, pipeline.branch_of(k) is not None

        def handle(message: Received, sender: str) -> None:
            decoded = decode(StageMessage, message.payload)
            context = decoded.context
            if decoded.stage != k:
                raise RemoteProtocolError("stage", f"claims stage {decoded.stage} on the topic of stage {k}", RESTRICT)
            if sender != context.origin and not context.names(sender):
                raise RemoteProtocolError("sender", f"{context.request}: {sender} is not on its route", RESTRICT)
            effects = receive(time.monotonic(), decoded, message.token)
            if is_wide:
                pipeline.is_eager = context.eager
            self.perform(pipeline, effects)

        return handle

    def _exit_handler(self, pipeline: AgentPipeline) -> Handler:
        def handle(message: Received, sender: str) -> None:
            embedding = decode(Embedding, message.payload)
            if embedding.device != sender:
                raise RemoteProtocolError("sender", _claims(embedding.device, sender), RESTRICT)
            self.perform(pipeline, pipeline.node.receive(time.monotonic(), embedding, message.token))

        return handle

    def _node_handler(self, pipeline: AgentPipeline, cls: type[Decision] | type[Outcome]) -> Handler:
        def handle(message: Received, sender: str) -> None:
            decoded: Decision | Outcome = decode(cls, message.payload)
            self.perform(pipeline, pipeline.node.receive(time.monotonic(), decoded, message.token, sender))

        return handle

    def _plan_handler(self, pipeline: AgentPipeline) -> Handler:
        plans = PlanHandler(pipeline, self._reporting, self._seals_of(pipeline))

        def handle(message: Received, _sender: str) -> None:
            self.perform(pipeline, plans.take(message))

        return handle

    def _seals_of(self, pipeline: AgentPipeline) -> PlanSeals | None:
        if not self._plan_keys:
            return None

        def tell(problem: Problem) -> None:
            self._reporting.tell(EventKind.DISK, problem.what, problem.remedy, pipeline=pipeline.config.name)

        return PlanSeals(self._plan_keys, pipeline.plan_file, tell)

    def _member_handler(self, pipeline: AgentPipeline, k: int) -> Handler:
        def handle(message: Received, sender: str) -> None:
            self._transport.acknowledge(message.token)
            node, now = pipeline.node, time.monotonic()
            if not message.payload:
                self.perform(pipeline, node.withdrawn(now, sender, k))
                return
            member = decode(Member, message.payload)
            if (member.device, member.pipeline) != (sender, pipeline.config.name):
                raise RemoteProtocolError("sender", f"{_claims(member.device, sender)}, in {member.pipeline}", RESTRICT)
            self.perform(pipeline, node.announced(now, member, k, is_live=not message.retain))

        return handle

    def _call_handler(self, pipeline: AgentPipeline) -> Handler:
        def handle(message: Received, sender: str) -> None:
            self._transport.acknowledge(message.token)
            call = decode(Call, message.payload)
            if call.caller != sender:
                raise RemoteProtocolError("sender", _claims(call.caller, sender), RESTRICT)
            pipeline.node.called(time.monotonic(), sender)

        return handle

    def _on_device_state(self, message: Received, _sender: str) -> None:
        """Take the state of a board that has announced itself, for all pipelines that listen to it."""
        self._transport.acknowledge(message.token)
        if not message.payload:
            return
        state = decode(DeviceState, message.payload)
        if topics.device(self._site, state.device, Kind.STATE) != message.topic:
            raise RemoteProtocolError("device", f"{state.device} on another board's topic", RESTRICT)
        for index in tuple(self._listening.get(state.device, ())):
            pipeline = self._pipelines[index]
            self.perform(pipeline, pipeline.node.state_changed(time.monotonic(), state))

    def _ignore_state(self, message: Received, _sender: str) -> None:
        """Ignore a state that was under way while this board unsubscribed from it."""
        self._transport.acknowledge(message.token)

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        """The broker says that nobody reads what was published: whoever asked for it must choose another board."""
        address = topics.parse(topic)
        to = address.to or address.device
        pipeline = next((one for one in self._pipelines if one.config.name == address.pipeline), None)
        if pipeline is None or to is None or address.kind not in (Kind.STAGE, Kind.EXIT):
            return
        message: StageMessage | Embedding
        message = decode(StageMessage, payload) if address.kind is Kind.STAGE else decode(Embedding, payload)
        self.perform(pipeline, pipeline.node.no_subscribers(time.monotonic(), message, to))

    # ------------------------------------------------------------ effects out

    def perform(self, pipeline: AgentPipeline, effects: Sequence[Effect]) -> None:
        """Carry out a node's effects, in order."""
        if len(effects) == 1 and type(effects[0]) is Run:
            # What a message usually leads to; there is nothing to gather.
            self._put((pipeline, effects[0]))
            return
        self._transport.cork()
        try:
            self._carry_out(pipeline, effects)
        finally:
            self._transport.uncork()

    def _carry_out(self, pipeline: AgentPipeline, effects: Sequence[Effect]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Publish:
                self._send(pipeline, effect)  # type: ignore[arg-type]
            elif kind is Run or kind is Fuse:
                self._put((pipeline, effect))  # type: ignore[arg-type]
            elif kind is Acknowledge:
                self._transport.acknowledge(effect.delivery)  # type: ignore[union-attr]
            elif kind is Announce:
                self._announce(effect)  # type: ignore[arg-type]
            elif kind is Listen:
                self._listen(pipeline, effect)  # type: ignore[arg-type]
            elif kind is Tell:
                self._reporting.tell_of(pipeline, effect)  # type: ignore[arg-type]
            elif kind is Drop and log.isEnabledFor(logging.DEBUG):
                log.debug("%s dropped: %s", effect.request, effect.reason)  # type: ignore[union-attr]

    def _send(self, pipeline: AgentPipeline, effect: Publish) -> None:
        message = effect.message
        if isinstance(message, StageMessage):
            self._send_stage(pipeline, message, effect.to or "")
        elif isinstance(message, Result):
            self._send_result(pipeline, message, Lane.SHED if effect.turned_away else Lane.OWED)
        elif isinstance(message, AuditRow):
            topic = self._topic_to(Kind.AUDIT, pipeline.config.name)
            self._reporting.publish(Kind.AUDIT, topic, encode(message))
        elif isinstance(message, Call):
            topic = topics.call(self._site, pipeline.config.name, self._device)
            self._reporting.publish(Kind.CALL, topic, encode(message))
        elif effect.to is not None:
            self._send_to(effect.to, pipeline, message)

    def _announce(self, effect: Announce) -> None:
        payload = encode(effect.member)
        for k in effect.stages:
            topic = topics.member(self._site, effect.member.pipeline, k, self._device)
            self._reporting.publish(Kind.MEMBER, topic, payload)
        if effect.again:
            self._reporting.republish()

    def _announce_all(self) -> None:
        for pipeline in self._pipelines:
            self.perform(pipeline, pipeline.node.announce())

    def _listen(self, pipeline: AgentPipeline, effect: Listen) -> None:
        topic = topics.device(self._site, effect.device, Kind.STATE)
        if effect.device == self._device:
            return
        listening = self._listening.setdefault(effect.device, set())
        if effect.on:
            if not listening:
                self._handlers[topic] = self._on_device_state
                self._transport.subscribe([(topic, DELIVERY[Kind.STATE].qos)])
            listening.add(pipeline.index)
            return
        listening.discard(pipeline.index)
        if not listening:
            del self._listening[effect.device]
            del self._handlers[topic]
            self._known_topics.pop(topic, None)
            self._transport.unsubscribe([topic])

    def _send_stage(self, pipeline: AgentPipeline, message: StageMessage, to: str) -> None:
        payload, topic = encode(message), self._topic_to(Kind.STAGE, pipeline.config.name, to, message.stage)
        pipeline.node.sent(message.stage, len(payload), audit=message.context.audit)
        try:
            self._transport.publish(topic, payload, qos=_WORK.qos, expiry_s=_left_s(message))
        except LocalProtocolError as error:
            self._reporting.note_refused(topic, error)
            self._reporting.dead_letter(topic, error, payload)
            self.perform(pipeline, pipeline.node.refused(time.monotonic(), message))

    def _send_to(self, board: str, pipeline: AgentPipeline, message: Embedding | Decision | Outcome) -> None:
        kind, payload = _KINDS[type(message)], encode(message)
        # An outcome is never too late: its origin knows.
        expiry_s = DECISION_EXPIRY_S if kind is Kind.DECISION else None
        if isinstance(message, Embedding):
            pipeline.node.sent(message.stage + 1, len(payload), audit=message.context.audit)
            expiry_s = _left_s(message)
        topic = self._topic_to(kind, pipeline.config.name, board)
        try:
            self._transport.publish(topic, payload, qos=_WORK.qos, expiry_s=expiry_s)
        except LocalProtocolError as error:
            # To the board that fuses, an embedding that is not sent is one that it has not heard.
            self._reporting.note_refused(topic, error)

    def publish_thumbnail(self, pipeline: AgentPipeline, thumbnail: Thumbnail) -> None:
        """Publish a picture of an input. Takes the lock itself, since encoding takes time."""
        how, payload = DELIVERY[Kind.THUMBNAIL], encode(thumbnail)
        # A broker may not accept packets of this size.
        with self._transport.lock, contextlib.suppress(LocalProtocolError):
            topic = self._topic_to(Kind.THUMBNAIL, pipeline.config.name)
            self._transport.publish(topic, payload, qos=how.qos, lane=how.lane)

    # ------------------------------------------------------------ results

    def _send_result(self, pipeline: AgentPipeline, result: Result, lane: Lane) -> None:
        time_now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        payload = encode(result, Stamp(time=time_now, clock_synced=self._reporting.clock_synced))
        if not result.final:
            self._publish_result(pipeline, None, payload, Lane.SHED)
            return
        pipeline.note_answer(result.request, payload)
        self._publish_result(pipeline, result.request, payload, lane)
        pipeline.room.notify()
        if self.on_result is not None:
            self._results.append(result)

    def republish_results(self, pipeline: AgentPipeline) -> None:
        """Publish the results of an earlier run that the broker may not have."""
        for request, payload in pipeline.take_unpublished():
            self._publish_result(pipeline, request, payload, Lane.OWED)

    def _publish_result(self, pipeline: AgentPipeline, request: str | None, payload: bytes, lane: Lane) -> None:
        """Publish an encoded result; `request` if it is the final one, whose fate is then reported to the node."""
        how, topic = DELIVERY[Kind.RESULT], self._topic_to(Kind.RESULT, pipeline.config.name)
        token = None if request is None else f"{pipeline.index}/{lane.name}/{request}"
        try:
            self._transport.publish(topic, payload, qos=how.qos, content_type=how.content_type, token=token, lane=lane)
        except LocalProtocolError as error:
            # This broker does not accept it now, nor would it after the next start.
            self._reporting.note_refused(topic, error)
            self._reporting.dead_letter(topic, error, payload)
            if token is not None:
                self.note_given_up(token)

    def note_published(self, token: str) -> None:
        """Note that the broker has a result."""
        self._settle(token, told=True)

    def note_given_up(self, token: str) -> None:
        """Note that a result will never reach the broker."""
        self._settle(token, told=False)

    def _settle(self, token: str, *, told: bool) -> None:
        index, lane, request = token.split("/", 2)
        pipeline = self._pipelines[int(index)]
        if lane == Lane.SHED.name:
            pipeline.note_turned_away(request, told=told)
        else:
            pipeline.note_published(request)

    def deliver_results(self) -> None:
        """Hand results to the program that runs this agent; without the lock, since it may take its time."""
        while self._results and self.on_result is not None:
            with contextlib.suppress(IndexError):  # the other thread was quicker
                self.on_result(self._results.popleft())


def _claims(device: str, sender: str) -> str:
    return f"claims to be from {device} on a topic of {sender}"


def _kind_of(topic: str) -> Kind | None:
    """Return what a topic carries, None for one that is not of this protocol."""
    try:
        return topics.parse(topic).kind
    except RemoteProtocolError:
        return None


def _left_s(message: StageMessage | Embedding) -> float:
    return message.context.budget_s - message.progress.spent_s


def _topic_to(config: AgentConfig, kind: Kind, pipeline: str, to: str = "", stage: int = 0) -> str:
    """Return the topic on which this board publishes in a pipeline, to a board and, of kind STAGE, for a stage."""
    me = config.device
    if kind is Kind.STAGE:
        return topics.stage(config.site, pipeline, stage, to, me)
    if kind in topics.ADDRESSED:
        return topics.to_board(config.site, pipeline, kind, to, me)
    return topics.of_origin(config.site, pipeline, kind, me)
