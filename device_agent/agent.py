"""The agent: the life of a board, from the first login to the last message.

It assembles the parts, which know each other in one direction: an `AgentPipeline` each with its node, which calls
nobody; `Reporting` and the `Mailbox` between nodes and broker; the `WorkerThreads` that serve the network and the
interpreter; and an `Intake` for each pipeline that has inputs. One lock, `transport.lock`, guards nodes and connection;
inference and waiting happen outside it. Effects are carried out right where they arise, by whichever thread it is, so
there is no queue between node and socket.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from device_agent import presence
from device_agent.config import AgentConfig
from device_agent.intake import Intake
from device_agent.mailbox import Mailbox
from device_agent.pipeline import AgentPipeline
from device_agent.preflight import load_bundles, start_self_tests
from device_agent.reporting import Reporting, state_of
from device_agent.selftest import SelfTest
from device_agent.watchdog import SystemdNotifier
from device_agent.worker_threads import WorkerThreads
from distree import topics
from distree.broker_settings import Session
from distree.bundle.loading import Bundle
from distree.errors import Problem, RemoteProtocolError
from distree.log_throttle import LogThrottle
from distree.messages.codec import PROBE
from distree.messages.device import DeviceStatus
from distree.messages.events import EventKind, Severity
from distree.node import Fuse, Run
from distree.transport import make_transport
from distree.transport.base import Transport

log = logging.getLogger(__name__)

POLL_S = 1.0
"""Longest wait for the network; everything that is due sooner shortens it."""

SIGNALS_S = 2.0
"""How often the waiting main thread looks for signals that another thread received."""

SOURCES_S = 5.0
"""An agent whose input topic cannot be subscribed to is ready after this time all the same: it may serve stages."""


def _connect(
    config: AgentConfig, client_id: str, *, session: Session = Session.PROCESS, will: tuple[str, bytes] | None = None
) -> Transport:
    return make_transport(
        config.broker,
        client_id=client_id,
        will=will,
        receive_maximum=config.receive_maximum,
        session=session,
        trial_payload=PROBE,
    )


class Agent:
    """A device agent. `run` blocks until `stop`, by any thread or signal handler.

    Raises ConfigError, BundleError or RuntimeUnavailableError out of the constructor or `prepare`. With `keeps_state`
    off it neither reads nor writes `state_dir`, which a running agent may be using.
    """

    def __init__(
        self,
        config: AgentConfig,
        transport: Transport | None = None,
        bundles: Sequence[Bundle] | None = None,
        input_transport: Callable[[str], Transport] | None = None,
        *,
        keeps_state: bool = True,
    ) -> None:
        self.config = config
        self.boot = os.urandom(4).hex()
        will = state_of(config, self.boot, DeviceStatus.LOST)
        self.transport: Transport = transport or _connect(config, config.client_id, will=will)
        self._input_transport = input_transport or functools.partial(_connect, config, session=Session.DURABLE)
        self.lock = self.transport.lock
        self.pipelines = [
            AgentPipeline(config, index, bundle, self.boot, self.lock, keeps_state=keeps_state)
            for index, bundle in enumerate(load_bundles(config) if bundles is None else bundles)
        ]
        self.workers: WorkerThreads[tuple[AgentPipeline, Run | Fuse]] = WorkerThreads(
            self._poll, self._poll_once, self._compute, self.lock, self.fault
        )
        self.reporting = Reporting(config, self.boot, self.transport, self.pipelines)
        self.mailbox = Mailbox(config, self.boot, self.pipelines, self.transport, self.reporting, self.workers.put)
        self.intakes = [
            Intake(pipeline, self.transport, self.mailbox, self.reporting, self.workers, self._wake_for, self.fault)
            for pipeline in self.pipelines
            if pipeline.config.origin is not None
        ]
        self.on_hang: Callable[[], object] = functools.partial(os._exit, 70)
        """Called, with the lock held, when inference hangs for good. A thread cannot be ended, a process can."""
        # What the transport calls and the mailbox does: bound here, so that no message costs one more call.
        self.received, self.published, self.given_up, self.no_subscribers = (
            self.mailbox.receive,
            self.mailbox.note_published,
            self.mailbox.note_given_up,
            self.mailbox.no_subscribers,
        )
        self._notifier = SystemdNotifier()
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._exit_status = 0
        self._watchdog_at = 0.0
        self._waits_until = 0.0
        self._problem: Problem | None = None
        self._lost_at: float | None = None
        self._throttle = LogThrottle()
        self._was_connected = False
        self._unready_until = 0.0

    # ------------------------------------------------------------ life

    def prepare(self, tests: Iterable[SelfTest] | None = None) -> None:
        """Test and load the interpreters. Without `tests` under way it starts them, so call it in a single thread."""
        if tests is None:
            tests = start_self_tests(self.config, [pipeline.bundle for pipeline in self.pipelines])
        for test in tests:
            test.wait()
        for pipeline in self.pipelines:
            pipeline.load(self.config.num_threads)
        for intake in self.intakes:
            client_id = f"{self.config.client_id}_{intake.pipeline.config.name}"
            intake.load(functools.partial(self._input_transport, client_id))

    def run(self) -> int:
        """Serve until `stop`, then drain; return the exit status (0, or 70 after a fault of the program)."""
        here = presence.announce(self.config, self.boot)
        with contextlib.closing(self.transport), here or contextlib.nullcontext():
            self.transport.open(self, self.mailbox.subscriptions())
            self.workers.start()
            # The calling thread only waits, so that it is free to take signals, whatever hangs elsewhere. The kernel
            # may deliver one to another thread, though, and then Python's handler runs when this one wakes up.
            while not self._stopping.wait(SIGNALS_S):
                pass
            self._drain()
        for pipeline in self.pipelines:
            pipeline.close()
        return self._exit_status

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the agent has connected for the first time; for programs that run it in a thread."""
        return self._ready.wait(timeout_s)

    def stop(self) -> None:
        """Ask `run` to drain and return; safe in a signal handler."""
        self._stopping.set()

    def abandon(self) -> None:
        """Ask `run` to return without draining, with exit status 70."""
        self._exit_status = 70
        self.stop()

    def fault(self, error: BaseException) -> None:
        """Log that this program has a bug, and end."""
        log.critical("ended by a bug in this program; please report it", exc_info=error)
        self.abandon()

    def _drain(self) -> None:
        """Answer what is in custody and finish what is at work, within `shutdown_timeout_s`; then disconnect."""
        self._notifier.send("STOPPING=1")
        with self.lock:
            for intake in self.intakes:
                intake.stop_pulling()
            for pipeline in self.pipelines:
                # What others send from here on is for another board, or for the next run of this one.
                pipeline.node.drain()
            self.reporting.set_status(DeviceStatus.DRAINING)
        ends_at = time.monotonic() + self.config.shutdown_timeout_s
        while not self._idle() and time.monotonic() < ends_at and not self._exit_status:
            time.sleep(0.01)
        for intake in self.intakes:
            intake.join(1.0)
        self.transport.wake()
        self.workers.stop(2.0)
        with self.lock:
            for pipeline in self.pipelines:
                self.mailbox.perform(pipeline, pipeline.node.give_up_audits(time.monotonic()))
            self.reporting.report()
            self.reporting.set_status(DeviceStatus.DISCONNECTED)

    def _idle(self) -> bool:
        with self.lock:
            return all(pipeline.node.idle() for pipeline in self.pipelines)

    # ------------------------------------------------------------ the threads' turns

    def _poll(self) -> None:
        """Wait for the network or for what is due, and handle both."""
        now = time.monotonic()
        self._waits_until = until = min(now + POLL_S, self._due_at())
        self.transport.poll(max(0.0, until - now))
        self._waits_until = 0.0
        if time.monotonic() >= until:
            with self.lock:
                self._tick(time.monotonic())
        self.mailbox.deliver_results()

    def _poll_once(self) -> None:
        """Handle what the network has brought, without waiting for more."""
        self.transport.poll(0.0)
        self.mailbox.deliver_results()

    def _compute(self, job: tuple[AgentPipeline, Run | Fuse]) -> None:
        """Run one segment or fusion head, and carry out what follows."""
        pipeline, task = job
        try:
            output, took_s = pipeline.compute(task)
        except Exception as error:  # noqa: BLE001 - whatever the interpreter raises costs this input, not the agent
            with self.lock:
                self._note_failure(pipeline, task, error)
                self.mailbox.perform(pipeline, pipeline.node.failed(time.monotonic(), task.key, str(error)))
            self.mailbox.deliver_results()
            return
        if pipeline.is_eager:
            # If a decision to stop has arrived meanwhile, take it in before the branch goes on by itself.
            self.workers.poll_between_jobs()
        with self.lock:
            # The node's time is read under the lock: it must not run backwards between two events.
            self.mailbox.perform(pipeline, pipeline.completed(time.monotonic(), task, output, took_s))
        self.mailbox.deliver_results()
        self._wake_for(pipeline.node.notify_at())

    def _note_failure(self, pipeline: AgentPipeline, task: Run | Fuse, error: Exception) -> None:
        if isinstance(error, RemoteProtocolError) and isinstance(task, Run):
            # Its sender is not known any more.
            topic = topics.stage(self.config.site, pipeline.config.name, task.stage, self.config.device, "+")
            self.reporting.dead_letter(topic, error, bytes(task.tensor.payload))
        else:
            # Without a traceback: this may come with each input.
            what = f"stage {task.stage} failed: {type(error).__name__}: {error}"
            self.reporting.tell(
                EventKind.STAGE,
                what,
                "check the bundle with: distree agent check; restart the agent",
                severity=Severity.ERROR,
                like=f"{pipeline.config.name} {task.stage}",
                pipeline=pipeline.config.name,
            )

    def _wake_for(self, due_at: float) -> None:
        """Shorten the network thread's wait if something is due before its end."""
        if due_at < self._waits_until:
            self.transport.wake()

    def _due_at(self) -> float:
        due = min([pipeline.node.notify_at() for pipeline in self.pipelines])
        due = min([due, *[intake.due_at() for intake in self.intakes]])
        if self._unready_until:
            due = 0.0 if self._takes_inputs() else min(due, self._unready_until)
        due = min(due, self.mailbox.echoes.due_at())
        return min(due, self.reporting.due_at(), self._watchdog_at if self._notifier.interval_s else due)

    def _tick(self, now: float) -> None:
        owed_since = self.transport.unacknowledged_since()
        for pipeline in self.pipelines:
            if effects := pipeline.tick(now, owed_since):
                self.mailbox.perform(pipeline, effects)
        for intake in self.intakes:
            intake.tick(now)
        while self.transport.notices:
            log.warning("%s", self.transport.notices.popleft())
        if self.transport.last_error is not None and self.transport.last_error != self._problem:
            self.disconnected(self.transport.last_error)
        if self._unready_until and (self._takes_inputs() or now >= self._unready_until):
            self._be_ready()
        self.reporting.tick(now)
        self.mailbox.echoes.tick(now)
        self._watch(now)

    def _watch(self, now: float) -> None:
        """Tell systemd that this agent is alive, unless its inference hangs."""
        busy_s, interval_s = self.workers.busy_s(), self._notifier.interval_s
        if interval_s and now >= self._watchdog_at:
            self._watchdog_at = now + interval_s
            if busy_s < self.config.inference_timeout_s:
                self._notifier.send("WATCHDOG=1")
        if busy_s > 2 * self.config.inference_timeout_s:
            # Not even a supervisor helped. Custody of what is spooled survives; a hung thread cannot be ended.
            log.critical("inference has hung for %.0f s: exiting so that the agent can be restarted", busy_s)
            self.on_hang()

    # ------------------------------------------------------------ the connection

    def connected(self) -> None:
        """Publish the state on every connect, so that no board is stuck as lost."""
        first = not self._was_connected
        self._was_connected = True
        if first:
            for pipeline in self.pipelines:
                self.mailbox.republish_results(pipeline)
            for intake in self.intakes:
                intake.start(self._stopping)
            self._unready_until = time.monotonic() + SOURCES_S
        else:
            self._tell_connected()
        self.reporting.describe()
        for pipeline in self.pipelines:
            self.mailbox.perform(pipeline, pipeline.node.connected(time.monotonic()))
        self.mailbox.echoes.connected(time.monotonic())
        if self._unready_until and self._takes_inputs():
            self._be_ready()
        elif not self._unready_until:
            self.reporting.set_status(DeviceStatus.DRAINING if self._stopping.is_set() else DeviceStatus.READY)

    def _tell_connected(self) -> None:
        """Say that the connection is back, and for how long it was lost."""
        lost_s = 0.0 if self._lost_at is None else time.monotonic() - self._lost_at
        self._lost_at = None
        what = f"connected to the broker again after {lost_s:.1f} s"
        self.reporting.tell(EventKind.CONNECTION, what, severity=Severity.INFO, like="again")

    def _takes_inputs(self) -> bool:
        return all(intake.ready for intake in self.intakes)

    def _be_ready(self) -> None:
        self._unready_until = 0.0
        if not self._stopping.is_set():
            self.reporting.set_status(DeviceStatus.READY)
        log.info("%s is ready: %s", self.config.device, ", ".join(map(str, self.pipelines)))
        self._notifier.send("READY=1")
        self._ready.set()

    def disconnected(self, why: Problem) -> None:
        """Log what is wrong, at a bounded rate: the connection ended, and the transport keeps trying, or a refusal."""
        self._problem = why
        if self._lost_at is None and not self.transport.online:
            self._lost_at = time.monotonic()
        if self.transport.diagnosing:
            log.debug("%s", why)  # the outcome will be logged
            return
        line = self._throttle.line(time.monotonic(), str(why))
        if line is not None:
            log.warning("%s", line)
