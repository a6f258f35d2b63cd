"""The running orchestrator: messages to the fleet and the planners, plans to the broker, all to the store.

One thread does everything, between two polls of the transport.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from distree import topics
from distree.errors import RemoteProtocolError
from distree.protocols import Received, Transport
from distree.topics import DELIVERY, Address, Kind
from distree.types import AuditRow, Claim, Lane, OriginStats, Plan, Telemetry
from distree.wire import (
    decode_audit,
    decode_claim,
    decode_meta,
    decode_plan,
    decode_state,
    decode_telemetry,
    decode_truth,
    encode_claim,
    encode_plan,
    encode_stats,
)
from orchestrator.config import HomeAssistantConfig, Pipeline, StoreConfig
from orchestrator.fleet import Device, Fleet, epoch_of
from orchestrator.home_assistant import HomeAssistant
from orchestrator.leadership import Leadership, Role
from orchestrator.load import rest_s
from orchestrator.metrics import Snapshot, pipeline_snapshot
from orchestrator.planner import Planner, Standing, fingerprint, same_content, starting_plan
from orchestrator.records import AuditSample, Batch, Observation, PipelineRow, PlanRow, Refused, ServiceRow, TuningRow
from orchestrator.stats import Stats
from orchestrator.store import SAMPLES_KEPT, Store, StoreError
from orchestrator.text import printable
from orchestrator.tuning import Sample, Tuning

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
LOOSEN_S = 1.0
"""Least time between two plans by which a tuner lets more inputs leave early; fewer take effect at once."""
ANNOUNCE_S = 1.0
"""How often it is looked whether Home Assistant has to be told anything, in seconds."""
SAMPLES_UNSAVED = 500
"""Samples after which a tuning is saved though its plan is the same; a restart learns again from no more."""
REFUSALS_KEPT = 1000
"""Pairs of topic and reason of which the first refusal was logged."""


def will_of(site: str, identity: str) -> tuple[str, bytes]:
    """Return topic and payload of the will by which a dead orchestrator's claim on a site is taken back."""
    return topics.orchestrator(site), encode_claim(Claim(orchestrator=identity, running=False))


class Link(Transport, Protocol):
    """A transport that says in one line why it has no connection."""

    last_error: str | None


class Service:
    """Joins a transport to the fleet, the planners and an open store; it is the transport's listener.

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
        self.refused: Counter[str] = Counter()
        self.fleet = Fleet({pipeline.name: pipeline.exits for pipeline in pipelines})
        self._site = site
        self._pipelines = tuple(pipelines)
        self._store = store
        self._transport = transport
        self._retention = retention
        self._clock = clock
        self._wall = wall
        self._started_at = wall()
        self.leadership = Leadership(identity)
        self._planners: dict[str, Planner] = {}
        self._tunings = {pipeline.name: Tuning(pipeline) for pipeline in pipelines if pipeline.goal is not None}
        self._samples: list[AuditSample] = []
        self._home_assistant = home_assistant
        self._home = HomeAssistant(home_assistant, site, (), {})
        self._stats = Stats()
        self._stats_due: list[OriginStats] = []
        self._unsaved: Counter[str] = Counter()
        self._overloaded: set[str] = set()
        self._control_at_s = self._estimate_at_s = 0.0
        self._loosen_at_s = dict.fromkeys(self._tunings, 0.0)
        self._authors: dict[str, str] = {}
        self._stopping = False
        self._online = False
        self._unread = False
        self._trouble: dict[str, str | None] = {}
        self._complained: set[tuple[str, str]] = set()
        self._dirty: dict[str, Observation] = {}
        self._reported: dict[str, Observation] = {}
        self._forgotten: set[str] = set()
        self._saved_pipelines: tuple[PipelineRow, ...] = ()
        self._saved_service: ServiceRow | None = None
        self._flush_at_s = self._silence_at_s = self._prune_at_s = self._plans_at_s = self._retry_at_s = 0.0
        self._announce_at_s = 0.0

    # ------------------------------------------------------------ life

    def open(self) -> None:
        """Read the plans from the store and register with the transport. Raises StoreError."""
        self._store.changed()  # first, so that what is written while the plans are read is not missed
        for pipeline in self._pipelines:
            known, latest = self._store.pipeline(pipeline.name), self._store.latest_plan(pipeline.name)
            last = latest.plan if latest is not None else None
            start = self._tuned_start(pipeline, last) or starting_plan(pipeline.plan, last, known.configured)
            # The last plan counts even where it is given up: its epoch must not name another content.
            self._planners[pipeline.name] = Planner(start, floor=max(known.floor, last.epoch if last else 0))
            author = "tuner" if pipeline.goal is not None else "config"
            self._authors[pipeline.name] = latest.author if latest and start == last else author
        self._home = HomeAssistant(self._home_assistant, self._site, self._planners, self._store.announced())
        self._transport.open(self, self._subscriptions())

    def _tuned_start(self, pipeline: Pipeline, last: Plan | None) -> Plan | None:
        """Restore the tuning of a pipeline; return the plan that it wants, None where there is no tuning."""
        tuning = self._tunings.get(pipeline.name)
        if tuning is None:
            return None
        state, later = self._store.tuning(pipeline.name)
        try:
            if state is not None:
                tuning.restore(state)
            for row in later:
                tuning.apply(row.sample)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("pipeline %s: tuning begins anew, for the last one %s", pipeline.name, printable(str(error)))
            tuning = self._tunings[pipeline.name] = Tuning(pipeline)
            self._unsaved[pipeline.name] = SAMPLES_UNSAVED
        wanted = tuning.plan(pipeline.plan if last is None else replace(pipeline.plan, rest_s=last.rest_s))
        return last if last is not None and same_content(last, wanted) else wanted

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
        settling = self.leadership.role is not Role.STANDBY and any(
            planner.standing is Standing.SETTLING for planner in self._planners.values()
        )
        self._transport.poll((SETTLING_POLL_S if settling else POLL_S) if timeout_s is None else timeout_s)
        self._report_trouble("broker", self._transport.last_error)
        with self._transport.lock:
            self._work(self._clock())

    def close(self) -> None:
        """Write what is left to the store, take the claim back and disconnect."""
        self._online = False
        for name, tuning in self._tunings.items():
            self._learn(name, tuning.overdue(float("inf")))
        self._flush()
        with self._transport.lock:
            if self.leadership.leads:
                self._claim(running=False)
        self._transport.close()

    @property
    def tunings(self) -> Mapping[str, Tuning]:
        """The tuning of each pipeline that has a goal, by its name."""
        return self._tunings

    def wanted(self) -> tuple[Plan, ...]:
        """Return the plan of each pipeline that is to hold; its epoch is 0 before it has one."""
        return tuple(planner.wanted for planner in self._planners.values())

    def snapshot(self) -> Snapshot:
        """Return what is known now, for metrics; callable in any thread."""
        with self._transport.lock:
            return Snapshot(
                now_s=self._clock(),
                online=self._online,
                refused=dict(self.refused),
                devices=tuple(self.fleet),
                pipelines=tuple(pipeline_snapshot(plan, self._tunings.get(plan.pipeline)) for plan in self.wanted()),
            )

    def _subscriptions(self) -> list[tuple[str, int]]:
        kinds = (Kind.STATE, Kind.META, Kind.TELEMETRY)
        of_devices = [(topics.device(self._site, "+", kind), DELIVERY[kind].qos) for kind in kinds]
        of_plans = [(topics.plan(self._site, name), DELIVERY[Kind.PLAN].qos) for name in self._planners]
        audits = [topics.of_origin(self._site, name, Kind.AUDIT, "+") for name in self._tunings]
        audits += [topics.truth(self._site, name) for name in self._tunings]
        audits.append(topics.orchestrator(self._site))
        births = [self._home.birth_topic] if self._home.birth_topic is not None else []
        return of_devices + of_plans + [(topic, DELIVERY[Kind.AUDIT].qos) for topic in audits + births]

    # ------------------------------------------------------------ what the transport calls

    def connected(self) -> None:
        """Begin to settle: the retained plans come now."""
        self._online = True
        log.info("connected to the broker")
        self.leadership.connected(self._clock())
        self._home.connected(self._clock())
        for planner in self._planners.values():
            planner.connected(self._clock())

    def disconnected(self, why: str) -> None:
        """Wait: the transport reconnects by itself."""
        self._online = False
        log.warning("no broker: %s", why)
        self._trouble["broker"] = why
        self.leadership.disconnected()
        for planner in self._planners.values():
            planner.disconnected()
        for tuning in self._tunings.values():
            tuning.intake.away()

    def received(self, message: Received) -> None:
        """Take a message in; one that breaks the protocol is counted, logged once and dropped."""
        if message.topic == self._home.birth_topic:
            self._home.heard_birth(message.payload)
            self._transport.acknowledge(message.token)
            return
        try:
            self._take_in(topics.parse(message.topic), message)
        except RemoteProtocolError as error:
            self._refuse(message.topic, error)
        self._transport.acknowledge(message.token)

    def published(self, token: str) -> None:
        """Do nothing: a plan is retained and sent again at each connect."""

    def given_up(self, token: str) -> None:
        """Nothing is done about it."""

    def _take_in(self, address: Address, message: Received) -> None:
        if address.kind is Kind.ORCHESTRATOR:
            self._take_in_claim(message)
        elif address.kind is Kind.AUDIT and address.pipeline is not None and address.origin is not None:
            self._take_in_audit(address.pipeline, address.origin, decode_audit(message.payload))
        elif address.kind is Kind.TRUTH and address.pipeline in self._tunings:
            self._learn(address.pipeline, self._tunings[address.pipeline].label(decode_truth(message.payload)))
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
                state = _of_device(device_id, decode_state(payload))
                self._note(self.fleet.saw_state(now_s, state, retained=message.retain), alive=alive)
                self._home.changed()
            case Kind.META:
                self._note(self.fleet.saw_meta(_of_device(device_id, decode_meta(payload))), alive=alive)
                self._home.changed()
            case Kind.TELEMETRY:
                report = _of_device(device_id, decode_telemetry(payload))
                device = self.fleet.saw_telemetry(now_s, report)
                self._reported[device_id] = self._note(device, alive=True)
                self._hear_epochs(now_s, device)
                self._hear_draws(report)
                if self._home.is_on and self.leadership.leads:
                    self._stats_due += self._stats.take(device)

    def _hear_epochs(self, now_s: float, device: Device) -> None:
        for name, planner in self._planners.items():
            epoch = epoch_of(device, name)
            if epoch is not None:
                planner.reported(now_s, epoch)

    def _take_in_claim(self, message: Received) -> None:
        if message.payload:
            claim = decode_claim(message.payload)
            line = self.leadership.heard(self._clock(), claim.orchestrator, running=claim.running)
            if line is not None:
                log.warning("%s", line)

    def _claim(self, *, running: bool) -> None:
        how, claim = DELIVERY[Kind.ORCHESTRATOR], Claim(orchestrator=self.leadership.own, running=running)
        topic = topics.orchestrator(self._site)
        self._transport.publish(
            topic, encode_claim(claim), qos=how.qos, retain=how.retain, content_type=how.content_type, lane=how.lane
        )

    def _take_in_plan(self, name: str, message: Received) -> None:
        planner, now_s = self._planners.get(name), self._clock()
        # Who stands by contradicts nobody.
        is_past = message.retain or not self.leadership.leads
        if planner is None:
            raise RemoteProtocolError("pipeline", f"{name!r} is not a pipeline of this orchestrator")
        try:
            plan = _of_pipeline(name, decode_plan(message.payload))
        except RemoteProtocolError:
            self._warn(name, planner.saw_garbage(now_s, retained=is_past))
            raise
        self._warn(name, planner.saw(now_s, plan, retained=is_past))

    def _take_in_audit(self, name: str, origin: str, row: AuditRow) -> None:
        tuning = self._tunings.get(name)
        if tuning is None:
            raise RemoteProtocolError("pipeline", f"{name!r} is not a pipeline that is tuned here")
        if row.origin != origin:
            raise RemoteProtocolError("origin", f"{row.origin!r} on the topic of {origin!r}")
        self._learn(name, tuning.take(self._clock(), row, self.fleet.get(origin)))

    def _hear_draws(self, report: Telemetry) -> None:
        for part in report.pipelines:
            tuning = self._tunings.get(part.pipeline)
            if tuning is not None and part.origin is not None:
                self._learn(part.pipeline, tuning.reported(report.device, report.boot, part.origin))

    def _learn(self, name: str, samples: Iterable[Sample]) -> None:
        now = self._wall()
        for sample in samples:
            self._tunings[name].apply(sample)
            self._samples.append(AuditSample(pipeline=name, sample=sample, at=now))
            self._unsaved[name] += 1

    def _warn(self, pipeline: str, warning: str | None) -> None:
        if warning is not None:
            log.warning("pipeline %s: %s", pipeline, warning)

    def _note(self, device: Device, *, alive: bool) -> Observation:
        now = self._wall()
        seen = Observation(device=device, heard_at=now if alive else None, seen_at=now)
        self._dirty[device.device] = seen
        self._forgotten.discard(device.device)
        return seen

    def _forget(self, device: str) -> None:
        self.fleet.forget(device)
        self._home.changed()
        self._stats.forget(device)
        if len(self._forgotten) < REFUSALS_KEPT:
            self._forgotten.add(device)
        self._dirty.pop(device, None)
        self._reported.pop(device, None)

    def _refuse(self, topic: str, error: RemoteProtocolError) -> None:
        self.refused[error.reason] += 1
        key = (topic, error.reason)
        if key not in self._complained and len(self._complained) < REFUSALS_KEPT:
            self._complained.add(key)
            log.warning("refused a message on %s: %s (said once)", printable(topic), printable(str(error)))

    # ------------------------------------------------------------ what each turn does

    def _work(self, now_s: float) -> None:
        if now_s >= self._plans_at_s:
            self._plans_at_s = now_s + POLL_S
            self._guarded("plans", self._read_plans)
        self._retune(now_s)
        if now_s >= self._control_at_s:
            self._control_at_s = now_s + CONTROL_S
            self._look(now_s)
        if self.leadership.step(now_s):
            self._claim(running=True)
        if now_s >= self._retry_at_s and not self._guarded("publishing", lambda: self._publish_due(now_s)):
            self._retry_at_s = now_s + RETRY_S
        self._publish_stats()
        if self.leadership.leads and now_s >= self._announce_at_s:
            self._announce_at_s = now_s + ANNOUNCE_S
            self._guarded("announcing", lambda: self._announce(now_s))
        if now_s >= self._silence_at_s:
            self._silence_at_s = now_s + SILENCE_CHECK_S
            self._tell_silence(now_s)
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
            self._report_trouble(purpose, str(error))
            return False
        self._trouble.pop(purpose, None)
        return True

    def _report_trouble(self, part: str, trouble: str | None) -> None:
        if trouble is not None and trouble != self._trouble.get(part):
            log.warning("%s: %s", part, trouble)
        self._trouble[part] = trouble

    def _read_plans(self) -> None:
        self._unread = self._store.changed() or self._unread
        if not self._unread:
            return
        for name, planner in self._planners.items():
            if name in self._tunings:
                continue
            latest = self._store.latest_plan(name)
            if latest is not None and latest.plan.epoch > planner.wanted.epoch:
                self._authors[name] = latest.author
                planner.want(latest.plan)
        self._unread = False

    def _retune(self, now_s: float) -> None:
        """Want what the tuners want: less at once, more after a pause."""
        for name, tuning in self._tunings.items():
            self._learn(name, tuning.overdue(now_s))
            planner = self._planners[name]
            wanted = tuning.plan(planner.wanted)
            if same_content(wanted, planner.wanted):
                continue
            if now_s >= self._loosen_at_s[name] or _is_tighter(wanted, planner.wanted):
                self._loosen_at_s[name] = now_s + LOOSEN_S
                self._authors[name] = "tuner"
                planner.want(replace(wanted, epoch=0))

    def _look(self, now_s: float) -> None:
        """Have each tuning choose by what its boards did of late; tell an overload once."""
        for name, planner in self._planners.items():
            estimate = rest_s(self.fleet, name, len(planner.wanted.thresholds) + 1)
            if now_s >= self._estimate_at_s and _is_other(estimate, planner.wanted.rest_s):
                self._estimate_at_s = now_s + ESTIMATE_S
                planner.want(replace(planner.wanted, rest_s=estimate, epoch=0))
        for name, tuning in self._tunings.items():
            tuning.look(self.fleet)
            if tuning.control.is_overloaded != (name in self._overloaded):
                self._overloaded ^= {name}
                log.warning("pipeline %s: %s", name, _load_words(tuning))

    def _publish_due(self, now_s: float) -> None:
        if not self.leadership.leads:
            return
        for name, planner in self._planners.items():
            plan = planner.step(now_s)
            if plan is not None and self._unsaved[name]:
                # Thresholds must not outlive what they rest on.
                self._save(self._batch(tuned=[name]))
            if plan is not None and self._record(name, planner, plan):
                self._publish(plan)
                planner.published(plan)

    def _record(self, name: str, planner: Planner, plan: Plan) -> bool:
        if self._store.record_plan(PlanRow(plan=plan, author=self._authors[name], at=self._wall())):
            return True
        # Somebody took the epoch for another content between two looks at the store: theirs is newer.
        latest = self._store.latest_plan(name)
        if latest is not None:
            planner.want(latest.plan)
            if name in self._tunings:
                planner.want(replace(plan, epoch=0))
        return False

    def _publish(self, plan: Plan) -> None:
        how = DELIVERY[Kind.PLAN]
        self._transport.publish(
            topics.plan(self._site, plan.pipeline),
            encode_plan(plan),
            qos=how.qos,
            retain=how.retain,
            content_type=how.content_type,
            lane=how.lane,
        )
        thresholds = " ".join(f"{threshold:g}" for threshold in plan.thresholds)
        log.info("pipeline %s: published epoch %d: %s %s", plan.pipeline, plan.epoch, plan.criterion, thresholds)

    def _announce(self, now_s: float) -> None:
        """Tell Home Assistant what is new; the store knows first, so that nothing announced is ever forgotten."""
        messages = self._home.due(now_s, self.fleet)
        if messages:
            self._store.announce(messages)
        for topic, payload in messages:
            self._transport.publish(topic, payload, qos=1, retain=True, content_type=topics.JSON, lane=Lane.LATEST)
        self._home.done(messages)

    def _publish_stats(self) -> None:
        how = DELIVERY[Kind.STATS]
        for stats in self._stats_due:
            topic = topics.of_origin(self._site, stats.pipeline, Kind.STATS, stats.origin)
            self._transport.publish(
                topic, encode_stats(stats), qos=how.qos, content_type=how.content_type, lane=how.lane
            )
        self._stats_due.clear()

    def _tell_silence(self, now_s: float) -> None:
        silent, back = self.fleet.silence(now_s)
        _log_devices("no telemetry any more from", silent)
        _log_devices("telemetry again from", back)

    # ------------------------------------------------------------ keeping

    def _flush(self) -> None:
        batch = self._batch([name for name, count in self._unsaved.items() if count >= SAMPLES_UNSAVED])
        if batch != Batch():
            self._guarded("history", lambda: self._save(batch))
        # Where the store is out of order, memory is not to fill: what is lost so is learned already.
        del self._samples[:-SAMPLES_KEPT]

    def _save(self, batch: Batch) -> None:
        self._store.save(batch)
        self._dirty.clear()
        self._reported.clear()
        self._forgotten.clear()
        self._samples.clear()
        for row in batch.tunings:
            self._unsaved[row.pipeline] = 0
        self._saved_pipelines = batch.pipelines or self._saved_pipelines
        self._saved_service = batch.service or self._saved_service

    def _batch(self, tuned: Iterable[str]) -> Batch:
        pipelines, service = tuple(self._pipeline_rows()), self._service_row()
        return Batch(
            devices=tuple(self._dirty.values()),
            reported=tuple(self._reported.values()),
            forgotten=tuple(self._forgotten),
            pipelines=pipelines if pipelines != self._saved_pipelines else (),
            service=service if self._is_news(service) else None,
            samples=tuple(self._samples),
            tunings=tuple(TuningRow(pipeline=name, state=self._tunings[name].snapshot()) for name in tuned),
        )

    def _is_news(self, service: ServiceRow) -> bool:
        # Refusals alone cause no write: they ride with the next one.
        saved = self._saved_service
        return saved is None or saved.online != service.online or (bool(self._dirty) and saved != service)

    def _pipeline_rows(self) -> Iterable[PipelineRow]:
        for pipeline in self._pipelines:
            planner = self._planners[pipeline.name]
            yield PipelineRow(
                name=pipeline.name,
                floor=planner.floor,
                standing=(self.leadership.role if self.leadership.role is Role.STANDBY else planner.standing).value,
                configured=fingerprint(pipeline.plan),
                branches=pipeline.branches,
            )

    def _service_row(self) -> ServiceRow:
        refused = tuple(Refused(reason=reason, count=self.refused[reason]) for reason in sorted(self.refused))
        return ServiceRow(pid=os.getpid(), started_at=self._started_at, online=self._online, refused=refused)

    def _prune(self) -> None:
        days, max_bytes = self._retention.telemetry_days, self._retention.max_mb << 20
        self._store.prune(now=self._wall(), telemetry_days=days, max_bytes=max_bytes)


class _FromDevice(Protocol):
    @property
    def device(self) -> str: ...


Said = TypeVar("Said", bound=_FromDevice)


def _of_device(device: str, said: Said) -> Said:
    if said.device != device:
        raise RemoteProtocolError("device", f"{said.device!r} on the topic of {device!r}")
    return said


def _of_pipeline(name: str, plan: Plan) -> Plan:
    if plan.pipeline != name:
        raise RemoteProtocolError("pipeline", f"a plan of {plan.pipeline!r} on the topic of {name!r}")
    return plan


def _is_tighter(wanted: Plan, before: Plan) -> bool:
    """Whether somebody who left early by one plan does not by the other."""
    raised = any(new > old for new, old in zip(wanted.thresholds, before.thresholds, strict=True))
    return raised or wanted.masked != before.masked


def _is_other(estimate: Sequence[float], before: Sequence[float]) -> bool:
    """Whether an estimate is worth a new plan: none was known, or one is off by a factor of two."""
    if not estimate or not before:
        return bool(estimate)
    return any(not 0.5 <= new / old <= 2.0 for new, old in zip(estimate, before, strict=True))


def _load_words(tuning: Tuning) -> str:
    if not tuning.control.is_overloaded:
        return "no longer overloaded"
    measured = tuning.measured
    shed = 0 if measured is None else measured.shed
    goals = ", ".join(f"{name} {goal:g}" for name, goal in tuning.goal.limits().items())
    return (
        f"overloaded: inputs leave as early as is proved safe and a goal is still missed ({goals}); boards shed {shed} "
        "inputs in the last period; add boards, lower the rate of inputs, or allow more accuracy_drop"
    )


def _log_devices(what: str, devices: frozenset[str]) -> None:
    if devices:
        names = sorted(devices)
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        log.warning("%s %s%s", what, ", ".join(names[:10]), more)
