"""The running orchestrator: messages to the site view and the controllers, plans to the broker, all to the store.

One thread does everything, between two polls of the transport. The service alone publishes, writes to the store and
logs: its parts know nothing of each other and return what there is to publish, to write and to log.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from distree import topics
from distree.clock import clock_synced
from distree.errors import RESTRICT, Problem, RemoteProtocolError
from distree.formatting import plan_text
from distree.messages.audit import AuditRow
from distree.messages.codec import decode
from distree.messages.events import Event, EventKind
from distree.messages.plan import Plan
from distree.node import Tell
from distree.topics import Address, Kind
from distree.transport.base import Received, Transport
from orchestrator import addresses
from orchestrator.addresses import of_device
from orchestrator.announcement_requests import AnnouncementRequester
from orchestrator.board_watch import BoardWatch
from orchestrator.config import HomeAssistantConfig, StoreConfig
from orchestrator.controllers import Controllers
from orchestrator.fleet import MAX_DEVICES, Device
from orchestrator.home_assistant import HomeAssistant
from orchestrator.leadership import Leadership, Role
from orchestrator.metrics import Snapshot
from orchestrator.pipeline_controller import DuePlan, PipelineController
from orchestrator.pipeline_spec import PipelineSpec
from orchestrator.problems import OngoingProblems, RefusedMessages, SharedIds
from orchestrator.publisher import Publisher
from orchestrator.restore import restored_controller
from orchestrator.signing import Signing
from orchestrator.site_events import SiteEvents
from orchestrator.site_view import Heard, SiteView, device_row
from orchestrator.store.connection import StoreError
from orchestrator.store.database import Store
from orchestrator.store.journal import Journal
from orchestrator.store.records import AuditSample, EventRow, PlanRow, Refused, ServiceRow
from orchestrator.timers import Periodic
from orchestrator.tuning.samples import Sample

log = logging.getLogger("distree.orchestrator")

POLL_S = 0.25
SETTLING_POLL_S = 0.05
WRITE_S = 1.0
CHECK_S = 5.0
PRUNE_S = 60.0
ANNOUNCE_S = 1.0
"""How often to check for news for Home Assistant, in seconds."""

TOO_MANY = (
    f"more than {MAX_DEVICES:,} boards announce themselves: those that never reported, or were silent longest, are "
    "forgotten; restrict who may publish states in the broker's ACL"
)


class Service:
    """Joins a transport to the site, the pipelines and an open store; it is the transport's listener.

    `identity` is an id that no other orchestrator of the site has; the transport's will is `will_of` it. `clock` gives
    monotonic seconds, `wall` Unix seconds. Without `signing` nothing is signed or checked. Call `open`, then `run`,
    which ends after `stop`.
    """

    def __init__(
        self,
        site: str,
        specs: Sequence[PipelineSpec],
        *,
        store: Store,
        transport: Transport,
        identity: str,
        retention: StoreConfig,
        home_assistant: HomeAssistantConfig | None = None,
        signing: Signing | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        origins = {origin for spec in specs for origin in spec.origins}
        self.view = SiteView({spec.name: spec.exits for spec in specs}, reserved=origins)
        self.leadership = Leadership(identity)
        self.controllers = Controllers()
        self._site = site
        self._specs = tuple(specs)
        self._store = store
        self._transport = transport
        self._retention = retention
        self._clock = clock
        self._wall = wall
        self._started_at = wall()
        self._signing = signing or Signing(site, None, store, wall)
        self._home = HomeAssistant(home_assistant, site, [spec.name for spec in specs])
        self._journal = Journal(store)
        self._refused = RefusedMessages()
        self._problems = OngoingProblems()
        self._publisher = Publisher(transport, clock)
        self._events = SiteEvents(clock, wall, clock_synced)
        self._board_watch = BoardWatch()
        self._shared_ids = SharedIds()
        self._requester = AnnouncementRequester()
        self._is_stopping = False
        self._is_online = False
        self._store_check = Periodic(POLL_S)
        self._writing = Periodic(WRITE_S)
        self._chores = (
            (Periodic(ANNOUNCE_S), self._announce),
            (Periodic(CHECK_S), self._check_site),
            (self._writing, self._write),
            (Periodic(PRUNE_S), self._prune),
        )

    # ------------------------------------------------------------ life

    def open(self) -> None:
        """Restore the pipelines from the store and register with the transport. Raises StoreError."""
        self._store.changed()  # First, so that what is written while pipelines are restored is not missed.
        self.controllers = Controllers(restored_controller(self._store, spec) for spec in self._specs)
        for controller in self.controllers:
            for line in controller.warnings():
                self._tell(EventKind.PLAN, line, controller.name)
        self._home.recall(self._store.announced())
        names, tuned = self.controllers.names, self.controllers.tuned_names
        self._transport.open(self, addresses.subscriptions(self._site, names, tuned, self._home.birth_topic))

    def run(self) -> None:
        """Take turns until `stop` is called, then write what is left and disconnect."""
        try:
            while not self._is_stopping:
                self.turn()
        finally:
            self.close()

    def stop(self) -> None:
        """Have `run` end within one turn; safe in a signal handler."""
        self._is_stopping = True

    def turn(self, timeout_s: float | None = None) -> None:
        """Poll once and do what is due; by default the poll waits no longer than until something may be due."""
        settling = self.leadership.role is not Role.STANDBY and self.controllers.are_settling
        self._transport.poll((SETTLING_POLL_S if settling else POLL_S) if timeout_s is None else timeout_s)
        with self._transport.lock:
            for line in self._publisher.problems():
                self._tell(EventKind.CONNECTION, line)
            self._work(self._clock())

    def close(self) -> None:
        """Write what is left to the store, take the claim back and disconnect."""
        self._is_online = False
        for controller in self.controllers:
            self._keep_samples(controller, controller.take_overdue(float("inf")))
        self._write(self._clock())
        with self._transport.lock:
            if self.leadership.leads:
                self._publish_claim(running=False)
        self._transport.close()

    @property
    def refused(self) -> Mapping[str, int]:
        """How many messages broke the protocol, by reason."""
        return self._refused.counts

    def snapshot(self) -> Snapshot:
        """Return what is known now, for metrics; callable in any thread."""
        with self._transport.lock:
            return Snapshot(
                now_s=self._clock(),
                online=self._is_online,
                refused=dict(self.refused),
                devices=tuple(self.view.fleet),
                pipelines=tuple(controller.snapshot() for controller in self.controllers),
            )

    # ------------------------------------------------------------ what the transport calls

    def connected(self) -> None:
        """Begin to settle: the retained plans come now."""
        self._is_online = True
        self._writing.hasten()  # Commands read in the store whether their plan can be published.
        log.info("connected to the broker")
        now_s = self._clock()
        self.leadership.connected(now_s)
        self._requester.connected(now_s)
        self._home.connected(now_s)
        for controller in self.controllers:
            controller.connected(now_s)

    def disconnected(self, why: Problem) -> None:
        """Wait: the transport reconnects by itself."""
        self._is_online = False
        self._writing.hasten()
        log.warning("lost the broker: %s", why)
        self._publisher.lost(why)
        self.leadership.disconnected()
        self._requester.disconnected()
        for controller in self.controllers:
            controller.disconnected()

    def received(self, message: Received) -> None:
        """Take a message in; one that breaks the protocol is counted, logged once and dropped."""
        if message.topic == self._home.birth_topic:
            self._home.heard_birth(message.payload)
            self._transport.acknowledge(message.token)
            return
        try:
            self._take_in(topics.parse(message.topic), message)
        except RemoteProtocolError as error:
            self._tell(EventKind.REFUSED, self._refused.add(message.topic, error))
        self._transport.acknowledge(message.token)

    def published(self, token: str) -> None:
        """Do nothing: a plan is retained and published again at each connect."""

    def given_up(self, token: str) -> None:
        """Do nothing, for the same reason."""

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        """No work is sent from here."""

    def _take_in(self, address: Address, message: Received) -> None:
        if address.kind is Kind.ORCHESTRATOR:
            self._take_in_claim(message)
        elif address.kind is Kind.AUDIT and address.pipeline is not None and address.origin is not None:
            self._take_in_audit(address.pipeline, address.origin, decode(AuditRow, message.payload))
        elif address.kind is Kind.LABEL and address.pipeline is not None:
            controller = self.controllers.tuned(address.pipeline)
            if (label := self._signing.read_label(address.pipeline, message.payload)) is not None:
                self._keep_samples(controller, controller.take_label(label))
        elif address.kind is Kind.PLAN and address.pipeline is not None:
            self._take_in_plan(address.pipeline, message)
        elif address.device is not None and address.kind is Kind.STATE and not message.payload:
            self._forget(address.device)
        elif address.device is not None and address.kind is Kind.EVENT:
            event = of_device(address.device, decode(Event, message.payload))
            self._journal.add_event(EventRow(at=self._wall(), sender=address.device, event=event))
        elif address.device is not None and message.payload:
            now_s, retained = self._clock(), message.retain
            heard = self.view.take(now_s, address.kind, address.device, message.payload, retained=retained)
            if heard is not None:
                self._take_in_device(now_s, heard, retained=retained)

    def _take_in_device(self, now_s: float, heard: Heard, *, retained: bool) -> None:
        for gone in heard.pushed_out:
            self._forget(gone)
            self._refused.counts["fleet-full"] += 1
            self._tell(EventKind.REFUSED, TOO_MANY)
        device, report = heard.device, heard.report
        self._keep_device(now_s, device, alive=report is not None or not retained, reported=report is not None)
        self._home.heard(device.device, reported=report is not None)
        if report is None:
            self._requester.heard(retained=retained)
            self._tell_of(device.device, self._board_watch.note(now_s, device, retained=retained))
        for controller in self.controllers:
            if heard.has_started:
                controller.started(device)
            if report is not None:
                self._keep_samples(controller, controller.reported(now_s, device, report))
        if self.leadership.leads:
            self._home.take_stats(heard.stats)

    def _take_in_claim(self, message: Received) -> None:
        if message.payload:
            claim = self._signing.read_claim(message.payload, own=self.leadership.own, retained=message.retain)
            line = self.leadership.heard(self._clock(), claim.orchestrator, running=claim.running)
            self._tell(EventKind.PLAN, line)

    def _take_in_plan(self, name: str, message: Received) -> None:
        planner, now_s = self.controllers.of(name).planner, self._clock()
        # An orchestrator on standby contradicts nobody.
        is_past = message.retain or not self.leadership.leads
        try:
            plan = self._signing.read_plan(name, message.payload)
        except RemoteProtocolError as error:
            self._tell(EventKind.PLAN, planner.saw_garbage(now_s, message.payload, error, retained=is_past), name)
            raise
        self._tell(EventKind.PLAN, planner.saw(now_s, plan, retained=is_past), name)

    def _take_in_audit(self, name: str, origin: str, row: AuditRow) -> None:
        controller = self.controllers.tuned(name)
        if row.origin != origin:
            raise RemoteProtocolError("origin", f"{row.origin!r} on the topic of {origin!r}", RESTRICT)
        device = self.view.fleet.get(origin)
        self._keep_samples(controller, controller.take_audit(self._clock(), row, device))

    def _forget(self, device: str) -> None:
        self.view.forget(device)
        self._shared_ids.forget(device)
        self._board_watch.forget(device)
        self._journal.forget(device)
        self._home.changed()
        for controller in self.controllers:
            controller.forget(device)

    # ------------------------------------------------------------ what each turn does

    def _work(self, now_s: float) -> None:
        if self.leadership.step(now_s):
            self._publish_claim(running=True)
        if self.leadership.leads and self._requester.step(now_s):
            self._request_announcements()
        if self._store_check.is_due(now_s):
            self._guarded("checking the store for changes", self._find_changes)
            for controller in self.controllers:
                self._read_plan(controller)
        for controller in self.controllers:
            self._tend(now_s, controller)
        for stats in self._home.stats_due():
            self._publisher.publish(addresses.stats(self._site, stats))
        for timer, chore in self._chores:
            if timer.is_due(now_s):
                chore(now_s)

    def _find_changes(self) -> None:
        if self._store.changed():
            for controller in self.controllers:
                controller.is_unread = True

    def _read_plan(self, controller: PipelineController) -> None:
        if controller.is_unread:
            task = f"pipeline {controller.name}: reading its plan"
            self._guarded(task, lambda: controller.follow(self._store.latest_plan(controller.name)))

    def _tend(self, now_s: float, controller: PipelineController) -> None:
        """Do what is due for one pipeline; a failure of one delays no other."""
        self._keep_samples(controller, controller.take_overdue(now_s))
        for refused in controller.unexplained(now_s):
            topic = topics.of_origin(self._site, controller.name, Kind.AUDIT, refused.origin)
            self._tell(EventKind.REFUSED, self._refused.add(topic, refused.error, refused.count))
        self._tell(EventKind.PLAN, controller.adjust(now_s, self.view.fleet), controller.name)
        due = controller.due(now_s) if self.leadership.leads else None
        if due is None:
            return
        task = f"pipeline {controller.name}: publishing its plan"
        if not self._guarded(task, partial(self._publish_due, now_s, controller, due)):
            controller.failed(now_s)

    def _guarded(self, task: str, action: Callable[[], None]) -> bool:
        """Do something with the store; a failure is logged once, and never ends the service."""
        try:
            action()
        except StoreError as error:
            self._tell(EventKind.DISK, self._problems.note(task, error.problem))
            return False
        self._problems.note(task, None)
        return True

    def _publish_due(self, now_s: float, controller: PipelineController, due: DuePlan) -> None:
        plan = due.plan
        if due.is_new and not self._record(controller, plan):
            return
        self._publisher.publish(self._signing.plan(plan))
        level = logging.INFO if due.is_other_decision else logging.DEBUG
        log.log(level, "pipeline %s: published %s", plan.pipeline, plan_text(plan))
        controller.published(now_s, due)

    def _record(self, controller: PipelineController, plan: Plan) -> bool:
        if controller.unsaved:
            # Thresholds must not outlive what they rest on.
            self._write_journal([controller])
        row_id = self._store.record_plan(PlanRow(plan=plan, at=self._wall()), after=controller.row_id)
        if row_id is None:
            # Another process wrote a plan between two checks of the store: its plan is newer.
            controller.is_unread = True
            return False
        controller.row_id = row_id
        return True

    def _check_site(self, now_s: float) -> None:
        for device, told in self._board_watch.silence(now_s, *self.view.fleet.silence(now_s)):
            self._tell_of(device, told)
        self._tell(EventKind.PLAN, self.leadership.take_notice())
        for controller in self.controllers:
            if self.leadership.leads:
                self._tell(EventKind.PLAN, controller.planner.remind(now_s), controller.name)
            for line in controller.check_coverage(self.view.fleet):
                self._tell(EventKind.BOARD, line, controller.name)

    def _tell(self, kind: EventKind, line: str | None, pipeline: str | None = None) -> None:
        """Log a warning, if there is one, keep it, and publish it."""
        if line is not None:
            self._keep_event(self._events.tell(kind, line, pipeline=pipeline))

    def _tell_of(self, device: str, told: Tell | None) -> None:
        self._keep_event(None if told is None else self._events.tell_of(device, told))

    def _keep_event(self, event: Event | None) -> None:
        if event is None:
            return
        self._journal.add_event(EventRow(at=self._wall(), sender="", event=event))
        if self.leadership.leads:
            self._publisher.publish(addresses.event(self._site, event))

    # ------------------------------------------------------------ publishing

    def _publish_claim(self, *, running: bool) -> None:
        self._publisher.publish(self._signing.claim(self.leadership.own, running=running))

    def _request_announcements(self) -> None:
        for name in self.controllers.names:
            self._publisher.publish(addresses.call(self._site, name, self.leadership.own))
        # On a site without boards this is every few seconds.
        log.debug("the broker delivered nothing about boards: asked them to announce themselves")

    def _announce(self, now_s: float) -> None:
        if self.leadership.leads:
            self._guarded("announcing to Home Assistant", lambda: self._tell_home_assistant(now_s))

    def _tell_home_assistant(self, now_s: float) -> None:
        """Publish what is new; it is in the store first, so that nothing announced is ever forgotten."""
        messages = self._home.due(now_s, self.view.fleet)
        self._tell(EventKind.BOARD, self._problems.note("boards", self._home.problem))
        if messages:
            self._store.announce(messages)
        for topic, payload in messages:
            self._publisher.publish(addresses.discovery(topic, payload))
        self._home.done(messages)

    # ------------------------------------------------------------ keeping

    def _keep_device(self, now_s: float, device: Device, *, alive: bool, reported: bool) -> None:
        now, shared = self._wall(), self._shared_ids.note(now_s, device)
        self._tell(EventKind.BOARD, shared)
        shared_at = now if shared is not None else None
        heard_at = now if alive else None
        row = device_row(device, seen_at=now, heard_at=heard_at, shared=shared, shared_at=shared_at)
        self._journal.add_device(row, reported=reported)

    def _keep_samples(self, controller: PipelineController, samples: Iterable[Sample]) -> None:
        now = self._wall()
        self._journal.add_samples(AuditSample(pipeline=controller.name, sample=sample, at=now) for sample in samples)

    def _write(self, now_s: float) -> None:  # noqa: ARG002 - a chore is told the time
        due = [controller for controller in self.controllers if controller.is_save_due]
        self._guarded("writing to the store", lambda: self._write_journal(due))

    def _write_journal(self, tuned: Sequence[PipelineController]) -> None:
        """Write what the store lacks, with the tunings of some pipelines."""
        rows = [controller.row(self.leadership.role) for controller in self.controllers]
        tunings = [one.tuning_row() for one in tuned]
        self._journal.write(rows, self._service_row(), tunings, self._signing.label_numbers)
        for controller in tuned:
            controller.unsaved = 0

    def _service_row(self) -> ServiceRow:
        refused = tuple(Refused(reason=reason, count=count) for reason, count in sorted(self.refused.items()))
        return ServiceRow(pid=os.getpid(), started_at=self._started_at, online=self._is_online, refused=refused)

    def _prune(self, now_s: float) -> None:  # noqa: ARG002 - a chore is told the time
        days, max_bytes = self._retention.telemetry_days, self._retention.max_mb << 20
        self._guarded(
            "pruning the store",
            lambda: self._store.prune(now=self._wall(), telemetry_days=days, max_bytes=max_bytes),
        )
