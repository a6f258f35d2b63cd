"""What a board reports about itself: state, description, telemetry, and what it rejected or could not publish."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Sequence
from datetime import datetime, timezone

from device_agent.config import AgentConfig
from device_agent.linux import memory_mb, rss_bytes
from device_agent.pipeline import AgentPipeline
from device_agent.spells import Spells
from distree import __version__, topics
from distree.clock import clock_synced
from distree.errors import LocalProtocolError, Problem, RemoteProtocolError
from distree.formatting import counted
from distree.log_throttle import LogThrottle
from distree.messages.codec import decode, encode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus, HeldStage, InputDescription
from distree.messages.events import LEVELS, DeadLetter, Event, EventKind, Severity
from distree.messages.telemetry import Telemetry
from distree.node import Tell
from distree.printable import printable
from distree.topics import DELIVERY, Kind
from distree.transport.base import Transport

log = logging.getLogger(__name__)

_NEVER = float("inf")

BURST = 20
"""Most events in a few seconds; the next one says how many were left out."""

REFUSED_LOG_INTERVAL_S = 600.0
"""Shortest time between two log lines about a message that the broker refuses."""

REFUSALS_TOLD = 8
"""Refused inputs that are told one by one within a few seconds, of those refused for one reason."""

REPUBLISH_S = 1.0
"""Shortest time between two corrections of our state, which another board of the same name would overwrite again."""


def state_of(config: AgentConfig, boot: str, status: DeviceStatus) -> tuple[str, bytes]:
    """Return topic and payload of a board's state."""
    topic = topics.device(config.site, config.device, Kind.STATE)
    return topic, encode(DeviceState(device=config.device, boot=boot, status=status))


class Reporting:
    """Publishes what a board reports about itself, and keeps its counters. All with the lock held."""

    def __init__(
        self, config: AgentConfig, boot: str, transport: Transport, pipelines: Sequence[AgentPipeline]
    ) -> None:
        self.dead_letters = 0
        self.unpublished = 0
        """Messages that the broker does not accept."""
        self.clock_synced = clock_synced()
        """Whether this board's clock can be trusted, as last seen."""
        self._config = config
        self._boot = boot
        self._transport = transport
        self._pipelines = pipelines
        self._topic = {
            kind: topics.device(config.site, config.device, kind)
            for kind in (Kind.META, Kind.TELEMETRY, Kind.DEAD, Kind.EVENT)
        }
        self._started_at = time.monotonic()
        self._status = DeviceStatus.INIT
        self._sequence = 0
        self._report_at = 0.0
        self._republished_at = 0.0
        self._republish_at = _NEVER
        self._refused = LogThrottle(interval_s=REFUSED_LOG_INTERVAL_S)
        self._rejected = LogThrottle()
        self._events = LogThrottle(burst=BURST)
        self._spells = [Spells() for _ in pipelines]
        self._refusals = 0

    # ------------------------------------------------------------ what is due

    def due_at(self) -> float:
        """When a report or a correction of the state is due."""
        return min(self._report_at, self._republish_at)

    def tick(self, now: float) -> None:
        """Publish what is due."""
        if now >= self._republish_at:
            self._republished_at, self._republish_at = now, _NEVER
            self.set_status(self._status)
        if now >= self._report_at:
            self._report_at = now + self._config.telemetry_interval_s
            self.report()

    def report_soon(self) -> None:
        """Make the next report due now."""
        self._report_at = 0.0

    # ------------------------------------------------------------ state, description, telemetry

    def set_status(self, status: DeviceStatus) -> None:
        """Publish a new state."""
        self._status = status
        self.publish(Kind.STATE, *state_of(self._config, self._boot, status))

    def republish(self) -> None:
        """Publish state and description again, for those who cannot get them from the broker."""
        self.describe()
        self.set_status(self._status)

    def check_own_state(self, payload: bytes) -> DeviceState | None:
        """Republish our state if it was overwritten: the will of an earlier connection may arrive after a birth.

        Returns the state that overwrote it, None if it is ours. Raises RemoteProtocolError for anything that is not a
        state.
        """
        if payload == state_of(self._config, self._boot, self._status)[1]:
            return None
        self._republish_at = max(time.monotonic(), self._republished_at + REPUBLISH_S)
        return decode(DeviceState, payload)

    def describe(self) -> None:
        """Publish the description of this board."""
        pipelines = self._pipelines
        runtimes = {pipeline.runtime.name for pipeline in pipelines if pipeline.runtime is not None}
        meta = DeviceMeta(
            device=self._config.device,
            boot=self._boot,
            version=__version__,
            python=platform.python_version(),
            runtime=", ".join(sorted(runtimes)),
            machine=platform.machine(),
            memory_mb=memory_mb(),
            stages=tuple(
                HeldStage(
                    pipeline=p.config.name,
                    stage=k,
                    model=p.bundle.name,
                    revision=p.bundle.revision,
                    branch=p.branch_of(k),
                )
                for p in pipelines
                for k in p.config.stages
            ),
            origins=tuple(p.config.name for p in pipelines if p.config.origin is not None),
            fusers=tuple(p.config.name for p in pipelines if p.fuses),
            inputs=tuple(
                InputDescription(
                    pipeline=p.config.name,
                    source=p.config.origin.source.kind,
                    model=p.bundle.name,
                    revision=p.bundle.revision,
                    dtype=p.preprocessor.dtype.name,
                    shape=p.preprocessor.shape,
                )
                for p in pipelines
                if p.config.origin is not None
            ),
        )
        self.publish(Kind.META, self._topic[Kind.META], encode(meta))

    def report(self) -> None:
        """Publish the counters, if the broker is connected; a spool whose disk failed is tried again."""
        now = time.monotonic()
        for pipeline in self._pipelines:
            if pipeline.spool is not None:
                pipeline.spool.retry(now)
                while pipeline.spool.notices:
                    self.tell_of(pipeline, pipeline.spool.notices.popleft())
        if not self._transport.online:
            return
        self._sequence += 1
        self.clock_synced = clock_synced()
        telemetry = Telemetry(
            device=self._config.device,
            boot=self._boot,
            sequence=self._sequence,
            uptime_s=time.monotonic() - self._started_at,
            rss_bytes=rss_bytes(),
            dead_letters=self.dead_letters,
            offline_dropped=self._transport.offline_dropped + self.unpublished,
            pipelines=tuple(pipeline.telemetry() for pipeline in self._pipelines),
        )
        self.publish(Kind.TELEMETRY, self._topic[Kind.TELEMETRY], encode(telemetry))
        for pipeline, spells, report in zip(self._pipelines, self._spells, telemetry.pipelines, strict=True):
            for told in spells.note(now, report):
                self.tell_of(pipeline, told)

    # ------------------------------------------------------------ what people should know

    def tell(
        self,
        kind: EventKind,
        what: str,
        remedy: str = "",
        *,
        severity: Severity = Severity.WARNING,
        like: str = "",
        pipeline: str | None = None,
    ) -> None:
        """Log an event and publish it; of those `like` each other, or with the same text, one every few seconds."""
        text = str(Problem(what, remedy)) if remedy else what
        unsaid = self._events.unsaid_before(time.monotonic(), f"{kind.value} {like or text}")
        if unsaid is None:
            log.debug("%s", text)
            return
        more = f" (and {counted(unsaid, 'time')} before)" if unsaid else ""
        log.log(LEVELS[severity], "%s%s%s", f"{pipeline}: " if pipeline else "", text, more)
        event = Event(
            device=self._config.device,
            kind=kind,
            severity=severity,
            pipeline=pipeline,
            what=printable(what, 256),
            remedy=printable(remedy, 256),
            unsaid=unsaid,
            time=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            clock_synced=self.clock_synced,
        )
        self.publish(Kind.EVENT, self._topic[Kind.EVENT], encode(event))

    def tell_of(self, pipeline: AgentPipeline, told: Tell) -> None:
        """Log and publish what a pipeline tells."""
        self.tell(told.kind, told.what, told.remedy, severity=told.severity, pipeline=pipeline.config.name)

    # ------------------------------------------------------------ what went wrong

    def refuse_input(
        self, pipeline: str, topic: str, name: str, request: str, error: RemoteProtocolError, payload: bytes
    ) -> None:
        """Count something that is not a valid input, publish why, and tell it as an event.

        Some refusals for one reason are told one by one, each with its input; more of them are told together.
        """
        named = RemoteProtocolError(error.reason, f"{name or 'input'}: {error.detail}", error.remedy)
        self._publish_dead(topic, named, payload, name, request)
        self._refusals += 1
        like = f"{pipeline} {error.reason} {self._refusals % REFUSALS_TOLD}"
        self.tell(EventKind.INPUT, f"refused {named.detail}", error.remedy, like=like, pipeline=pipeline)

    def dead_letter(self, topic: str, error: RemoteProtocolError | LocalProtocolError, payload: bytes) -> None:
        """Count a message that broke the protocol, publish why, and log what peers sent, at a bounded rate."""
        if isinstance(error, RemoteProtocolError):
            problem = Problem(printable(error.detail, 256), printable(error.remedy, 256))
            self._log_rejected(f"rejected on {printable(topic)}: {error.reason}: {problem}", error.reason)
        self._publish_dead(topic, error, payload)

    def _publish_dead(
        self,
        topic: str,
        error: RemoteProtocolError | LocalProtocolError,
        payload: bytes,
        name: str = "",
        request: str = "",
    ) -> None:
        self.dead_letters += 1
        letter = DeadLetter(
            device=self._config.device,
            topic=printable(topic, 256),
            reason=error.reason,
            detail=printable(error.detail, 256),
            remedy=printable(error.remedy, 256),
            payload_bytes=len(payload),
            head_hex=bytes(payload[:32]).hex(),
            input=printable(name, 256),
            request=request,
        )
        self.publish(Kind.DEAD, self._topic[Kind.DEAD], encode(letter))

    def _log_rejected(self, line: str, reason: str) -> None:
        told = self._rejected.line(time.monotonic(), line, reason)
        if told is not None:
            log.warning("%s", told)
        else:
            log.debug("%s", line)

    def note_refused(self, topic: str, error: LocalProtocolError) -> None:
        """Count a message that the broker does not accept, and log it, once in a while for each topic."""
        self.unpublished += 1
        line = self._refused.line(time.monotonic(), str(Problem(error.detail, error.remedy)), topic)
        if line is not None:
            log.warning("%s", line)

    def publish(self, kind: Kind, topic: str, payload: bytes) -> None:
        """Publish a message as messages of its kind are; one that the broker does not accept is noted."""
        how = DELIVERY[kind]
        try:
            self._transport.publish(
                topic, payload, qos=how.qos, retain=how.retain, content_type=how.content_type, lane=how.lane
            )
        except LocalProtocolError as error:
            self.note_refused(topic, error)
