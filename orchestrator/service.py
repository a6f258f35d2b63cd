"""The running orchestrator: messages to the fleet and the pipelines, plans to the broker, all to the store.

One thread does everything, between two polls of the transport. The service alone publishes, writes to the store and
tells people: its parts know no other part and return what there is to send, to keep and to say.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from distree import topics
from distree.errors import RESTRICT, Problem, RemoteProtocolError
from distree.messages.audit import AuditRow
from distree.messages.codec import decode
from distree.messages.device import DeviceMeta, DeviceState
from distree.messages.plan import Plan
from distree.messages.site import Claim, Truth
from distree.messages.telemetry import Telemetry
from distree.topics import Address, Kind
from distree.transport.base import Received, Transport
from orchestrator import addresses
from orchestrator.addresses import Outgoing, of_device, of_pipeline
from orchestrator.caller import Caller
from orchestrator.complaints import Lasting, Namesakes, Refusals, Troubles
from orchestrator.config import HomeAssistantConfig, Pipeline, StoreConfig
from orchestrator.controllers import Pipelines
from orchestrator.coverage import gap_text
from orchestrator.fleet import Device, Fleet
from orchestrator.home_assistant import HomeAssistant
from orchestrator.leadership import Leadership, Role
from orchestrator.metrics import Snapshot, pipeline_snapshot
from orchestrator.pipeline_controller import Learned, PlannedPipeline
from orchestrator.restore import restored_pipeline
from orchestrator.store.database import Store, StoreError
from orchestrator.store.journal import Unsaved
from orchestrator.store.records import AuditSample, Batch, Observation, PlanRow, Refused, ServiceRow
from orchestrator.tuning.pipeline_tuning import Tuning

log = logging.getLogger("distree.orchestrator")

POLL_S = 0.25
SETTLING_POLL_S = 0.05
FLUSH_S = 1.0
RETRY_S = 1.0
SILENCE_CHECK_S = 5.0
PRUNE_S = 60.0
CONTROL_S = 2.0
"""How often thresholds are chosen by what boards measure, in seconds."""
ESTIMATE_S = 30.0
"""Least time between two plans that only tell other times of stages."""
ANNOUNCE_S = 1.0
"""How often it is looked whether Home Assistant has to be told anything, in seconds."""


class Link(Transport, Protocol):
    """A transport that says in one line why it has no connection."""

    last_error: Problem | None


class Service:
    """Joins a transport to the fleet, the pipelines and an open store; it is the transport's listener.

    `identity` is an id that no other orchestrator of the site has; the transport's will is `will_of` it. `clock` gives
    monotonic seconds, `wall` Unix seconds. Call `open`, then `run`, which ends after `stop`.
    """

    def __init__(
        self,
        site: str,
        pipelines: Sequence[Pipeline],
        *,
        store: Store,
        transport: Link,
        identity: str,
        retention: StoreConfig,
        home_assistant: HomeAssistantConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.fleet = Fleet({pipeline.name: pipeline.exits for pipeline in pipelines})
        self.leadership = Leadership(identity)
        self._site = site
        self._configured = tuple(pipelines)
        self._store = store
        self._transport = transport
        self._retention = retention
        self._clock = clock
        self._wall = wall
        self._started_at = wall()
        self._pipelines = Pipelines(())
        self._home_assistant = home_assistant
        self._home = HomeAssistant(home_assistant, site, (), {})
        self._unsaved = Unsaved()
        self._refusals = Refusals()
        self._troubles = Troubles()
        self._lasting = Lasting()
        self._namesakes = Namesakes()
        self._caller = Caller()
        self._stopping = False
        self._online = False
        self._unread = False
        self._plans_at_s = self._control_at_s = self._estimate_at_s = self._retry_at_s = 0.0
        self._announce_at_s = self._silence_at_s = self._flush_at_s = self._prune_at_s = 0.0

    # ------------------------------------------------------------ life

    def open(self) -> None:
        """Read the plans from the store and register with the transport. Raises StoreError."""
        self._store.changed()  # first, so that what is written while the plans are read is not missed
        self._pipelines = Pipelines(restored_pipeline(self._store, each) for each in self._configured)
        self._home = HomeAssistant(self._home_assistant, self._site, self._pipelines.names, self._store.announced())
        names, tuned = self._pipelines.names, self._pipelines.tunings
        self._transport.open(self, addresses.subscriptions(self._site, names, tuned, self._home.birth_topic))

    def run(self) -> None:
        """Turn until `stop` is called, then write what is left and disconnect."""
        try:
            while not self._stopping:
                self.turn()
        finally:
            self.close()

    def stop(self) -> None:
        """Have `run` end within one turn; safe in a signal handler."""
        self._stopping = True

    def turn(self, timeout_s: float | None = None) -> None:
        """Poll once and do what is due; by default waits no longer than the next thing to do."""
        settling = self.leadership.role is not Role.STANDBY and self._pipelines.are_settling
        self._transport.poll((SETTLING_POLL_S if settling else POLL_S) if timeout_s is None else timeout_s)
        self._warn(self._troubles.note("broker", self._transport.last_error))
        with self._transport.lock:
            self._work(self._clock())

    def close(self) -> None:
        """Write what is left to the store, take the claim back and disconnect."""
        self._online = False
        self._keep_samples(self._pipelines.take_overdue(float("inf")))
        self._flush()
        with self._transport.lock:
            if self.leadership.leads:
                self._publish_claim(running=False)
        self._transport.close()

    @property
    def tunings(self) -> Mapping[str, Tuning]:
        """The tuning of each pipeline that has a goal, by its name."""
        return self._pipelines.tunings

    @property
    def refused(self) -> Mapping[str, int]:
        """How many messages broke the protocol, by reason."""
        return self._refusals.counts

    def wanted(self) -> tuple[Plan, ...]:
        """Return the plan of each pipeline that is to hold; its epoch is 0 before it has one."""
        return tuple(pipeline.planner.wanted for pipeline in self._pipelines)

    def snapshot(self) -> Snapshot:
        """Return what is known now, for metrics; callable in any thread."""
        with self._transport.lock:
            return Snapshot(
                now_s=self._clock(),
                online=self._online,
                refused=dict(self.refused),
                devices=tuple(self.fleet),
                pipelines=tuple(pipeline_snapshot(each.planner.wanted, each.tuning) for each in self._pipelines),
            )

    # ------------------------------------------------------------ what the transport calls

    def connected(self) -> None:
        """Begin to settle: the retained plans come now."""
        self._online = True
        log.info("connected to the broker")
        self.leadership.connected(self._clock())
        self._caller.connected(self._clock())
        self._home.connected(self._clock())
        self._pipelines.connected(self._clock())

    def disconnected(self, why: Problem) -> None:
        """Wait: the transport reconnects by itself."""
        self._online = False
        log.warning("no broker: %s", why)
        self._troubles.note("broker", why)
        self.leadership.disconnected()
        self._caller.disconnected()
        self._pipelines.disconnected()

    def received(self, message: Received) -> None:
        """Take a message in; one that breaks the protocol is counted, logged once and dropped."""
        if message.topic == self._home.birth_topic:
            self._home.heard_birth(message.payload)
            self._transport.acknowledge(message.token)
            return
        try:
            self._take_in(topics.parse(message.topic), message)
        except RemoteProtocolError as error:
            self._warn(self._refusals.add(message.topic, error))
        self._transport.acknowledge(message.token)

    def published(self, token: str) -> None:
        """Do nothing: a plan is retained and sent again at each connect."""

    def given_up(self, token: str) -> None:
        """Nothing is done about it."""

    def unread(self, topic: str, payload: bytes) -> None:
        """No work is sent from here."""

    def _take_in(self, address: Address, message: Received) -> None:
        if address.kind is Kind.ORCHESTRATOR:
            self._take_in_claim(message)
        elif address.kind is Kind.AUDIT and address.pipeline is not None and address.origin is not None:
            self._take_in_audit(address.pipeline, address.origin, decode(AuditRow, message.payload))
        elif address.kind is Kind.TRUTH and address.pipeline is not None:
            self._take_in_truth(address.pipeline, message.payload)
        elif address.kind is Kind.PLAN and address.pipeline is not None:
            self._take_in_plan(address.pipeline, message)
        elif address.device is not None and address.kind is Kind.STATE and not message.payload:
            self._forget(address.device)
        elif address.device is not None and message.payload:
            self._take_in_device(address.kind, address.device, message)

    def _take_in_device(self, kind: Kind, device_id: str, message: Received) -> None:
        now_s, payload, alive = self._clock(), message.payload, not message.retain
        match kind:
            case Kind.STATE:
                state = of_device(device_id, decode(DeviceState, payload))
                has_started = alive and self.fleet.is_start(state)
                device = self.fleet.saw_state(now_s, state, retained=message.retain)
                self._keep_device(device, alive=alive)
                if has_started:
                    self._pipelines.started(device)
                self._caller.heard(retained=message.retain)
                self._home.changed()
            case Kind.META:
                meta = of_device(device_id, decode(DeviceMeta, payload))
                self._keep_device(self.fleet.saw_meta(meta), alive=alive)
                self._caller.heard(retained=message.retain)
                self._home.changed()
            case Kind.TELEMETRY:
                report = of_device(device_id, decode(Telemetry, payload))
                device = self.fleet.saw_telemetry(now_s, report)
                self._keep_device(device, alive=True, reported=True)
                self._keep_samples(self._pipelines.take_report(now_s, device, report))
                self._pipelines.reported(now_s, device)
                if self.leadership.leads:
                    self._home.take_report(device)

    def _take_in_claim(self, message: Received) -> None:
        if message.payload:
            claim = decode(Claim, message.payload)
            self._warn(self.leadership.heard(self._clock(), claim.orchestrator, running=claim.running))

    def _take_in_plan(self, name: str, message: Received) -> None:
        pipeline, now_s = self._pipelines.planned(name), self._clock()
        # Who stands by contradicts nobody.
        is_past = message.retain or not self.leadership.leads
        try:
            plan = of_pipeline(name, decode(Plan, message.payload))
        except RemoteProtocolError:
            self._warn(pipeline.planner.saw_garbage(now_s, retained=is_past), name)
            raise
        self._warn(pipeline.planner.saw(now_s, plan, retained=is_past), name)

    def _take_in_audit(self, name: str, origin: str, row: AuditRow) -> None:
        pipeline = self._pipelines.tuned(name)
        if row.origin != origin:
            raise RemoteProtocolError("origin", f"{row.origin!r} on the topic of {origin!r}", RESTRICT)
        self._keep_samples(pipeline.take_audit(self._clock(), row, self.fleet.get(origin)))

    def _take_in_truth(self, name: str, payload: bytes) -> None:
        if name in self.tunings:
            self._keep_samples(self._pipelines.tuned(name).take_truth(decode(Truth, payload)))

    def _forget(self, device: str) -> None:
        self.fleet.forget(device)
        self._namesakes.forget(device)
        self._pipelines.forget(device)
        self._home.forget(device)
        self._unsaved.forget(device)

    def _warn(self, line: str | None, pipeline: str | None = None) -> None:
        """Tell people, if there is anything to tell."""
        if line is not None:
            log.warning("%s", line if pipeline is None else f"pipeline {pipeline}: {line}")

    # ------------------------------------------------------------ what each turn does

    def _work(self, now_s: float) -> None:
        if now_s >= self._plans_at_s:
            self._plans_at_s = now_s + POLL_S
            self._guarded("plans", self._read_plans)
        self._keep_samples(self._pipelines.take_overdue(now_s))
        self._pipelines.retune(now_s)
        if now_s >= self._control_at_s:
            self._control_at_s = now_s + CONTROL_S
            self._look(now_s)
        if self.leadership.step(now_s):
            self._publish_claim(running=True)
        if self.leadership.leads and self._caller.step(now_s):
            self._call()
        if now_s >= self._retry_at_s and not self._guarded("publishing", lambda: self._publish_due(now_s)):
            self._retry_at_s = now_s + RETRY_S
        self._publish_stats()
        if self.leadership.leads and now_s >= self._announce_at_s:
            self._announce_at_s = now_s + ANNOUNCE_S
            self._guarded("announcing", lambda: self._announce(now_s))
        if now_s >= self._silence_at_s:
            self._silence_at_s = now_s + SILENCE_CHECK_S
            self._tell_silence(now_s)
            self._tell_gaps()
        if now_s >= self._flush_at_s:
            self._flush_at_s = now_s + FLUSH_S
            self._flush()
        if now_s >= self._prune_at_s:
            self._prune_at_s = now_s + PRUNE_S
            self._guarded("clean-up", self._prune)

    def _guarded(self, purpose: str, action: Callable[[], None]) -> bool:
        """Do something with the store; its trouble is told once, and never ends the service."""
        try:
            action()
        except StoreError as error:
            self._warn(self._troubles.note(purpose, error.problem))
            return False
        self._troubles.note(purpose, None)
        return True

    def _read_plans(self) -> None:
        self._unread = self._store.changed() or self._unread
        if not self._unread:
            return
        for pipeline in self._pipelines:
            latest = self._store.latest_plan(pipeline.name) if pipeline.tuning is None else None
            if latest is not None:
                pipeline.follow(latest)
        self._unread = False

    def _look(self, now_s: float) -> None:
        """Have thresholds chosen, and times of stages told, by what boards did of late."""
        for pipeline in self._pipelines:
            if now_s >= self._estimate_at_s and pipeline.estimate(self.fleet):
                self._estimate_at_s = now_s + ESTIMATE_S
            self._warn(pipeline.look(self.fleet), pipeline.name)

    def _publish_due(self, now_s: float) -> None:
        if not self.leadership.leads:
            return
        for pipeline in self._pipelines:
            plan = pipeline.planner.step(now_s)
            if plan is None:
                again = pipeline.again(now_s)
                if again is not None:
                    self._publish_plan(again)
            elif self._record(pipeline, plan):
                self._publish_plan(plan)
                pipeline.published(now_s, plan)

    def _record(self, pipeline: PlannedPipeline, plan: Plan) -> bool:
        if pipeline.unsaved:
            # Thresholds must not outlive what they rest on.
            self._save(self._batch([pipeline]))
        if self._store.record_plan(PlanRow(plan=plan, author=pipeline.author, at=self._wall())):
            return True
        # Somebody took the epoch for another content between two looks at the store: theirs is newer.
        latest = self._store.latest_plan(pipeline.name)
        if latest is not None:
            pipeline.give_way(plan, latest.plan)
        return False

    def _tell_silence(self, now_s: float) -> None:
        silent, back = self.fleet.silence(now_s)
        _log_devices("no telemetry any more from", silent)
        _log_devices("telemetry again from", back)

    def _tell_gaps(self) -> None:
        for pipeline in self._pipelines:
            found = pipeline.gaps(self.fleet)
            for line in self._lasting.note(pipeline.name, {gap.what: gap_text(gap) for gap in found}):
                self._warn(line, pipeline.name)

    # ------------------------------------------------------------ publishing

    def _publish(self, message: Outgoing) -> None:
        topic, payload, how = message.topic, message.payload, message.delivery
        self._transport.publish(
            topic, payload, qos=how.qos, retain=how.retain, content_type=how.content_type, lane=how.lane
        )

    def _publish_claim(self, *, running: bool) -> None:
        self._publish(addresses.claim(self._site, self.leadership.own, running=running))

    def _call(self) -> None:
        for name in self._pipelines.names:
            self._publish(addresses.call(self._site, name, self.leadership.own))
        # On a site without boards this is every few seconds.
        log.debug("the broker handed over nothing of boards: asked them to say what they are")

    def _publish_plan(self, plan: Plan) -> None:
        self._publish(addresses.plan(self._site, plan))
        thresholds = " ".join(f"{threshold:g}" for threshold in plan.thresholds)
        log.info("pipeline %s: published epoch %d: %s %s", plan.pipeline, plan.epoch, plan.criterion, thresholds)

    def _announce(self, now_s: float) -> None:
        """Tell Home Assistant what is new; the store knows first, so that nothing announced is ever forgotten."""
        messages = self._home.due(now_s, self.fleet)
        if messages:
            self._store.announce(messages)
        for topic, payload in messages:
            self._publish(addresses.discovery(topic, payload))
        self._home.done(messages)

    def _publish_stats(self) -> None:
        for stats in self._home.stats_due():
            self._publish(addresses.stats(self._site, stats))

    # ------------------------------------------------------------ keeping

    def _keep_device(self, device: Device, *, alive: bool, reported: bool = False) -> None:
        now, shared = self._wall(), self._namesakes.note(self._clock(), device)
        self._warn(shared)
        shared_at = now if shared is not None else None
        heard_at = now if alive else None
        seen = Observation(device=device, heard_at=heard_at, seen_at=now, shared=shared, shared_at=shared_at)
        self._unsaved.add_device(seen, reported=reported)

    def _keep_samples(self, learned: Iterable[Learned]) -> None:
        now = self._wall()
        self._unsaved.add_samples(AuditSample(pipeline=name, sample=sample, at=now) for name, sample in learned)

    def _flush(self) -> None:
        batch = self._batch([pipeline for pipeline in self._pipelines if pipeline.is_save_due])
        if batch != Batch():
            self._guarded("history", lambda: self._save(batch))
        self._unsaved.drop_old_samples()

    def _save(self, batch: Batch) -> None:
        self._store.save(batch)
        self._unsaved.saved(batch)
        for row in batch.tunings:
            self._pipelines.planned(row.pipeline).unsaved = 0

    def _batch(self, tuned: Iterable[PlannedPipeline]) -> Batch:
        return self._unsaved.batch(
            [pipeline.row(self.leadership.role) for pipeline in self._pipelines],
            self._service_row(),
            [pipeline.tuning_row() for pipeline in tuned],
        )

    def _service_row(self) -> ServiceRow:
        refused = tuple(Refused(reason=reason, count=count) for reason, count in sorted(self.refused.items()))
        return ServiceRow(pid=os.getpid(), started_at=self._started_at, online=self._online, refused=refused)

    def _prune(self) -> None:
        days, max_bytes = self._retention.telemetry_days, self._retention.max_mb << 20
        self._store.prune(now=self._wall(), telemetry_days=days, max_bytes=max_bytes)


def _log_devices(what: str, devices: frozenset[str]) -> None:
    if devices:
        names = sorted(devices)
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        log.warning("%s %s%s", what, ", ".join(names[:10]), more)
