"""The agent: the life of a board, from the first login to the last message.

It assembles the parts: pipelines, each with its node, the `Mailbox` between nodes and broker, `Reporting`, and the
`Crew` of threads that serve the network and the interpreter. One lock, `transport.lock`, guards nodes and connection;
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
from device_agent.log_throttle import Repeats
from device_agent.mailbox import Mailbox
from device_agent.pipeline import Pipeline
from device_agent.preflight import load_bundles, start_self_tests
from device_agent.reporting import Reporting, state_of
from device_agent.selftest import SelfTest
from device_agent.watchdog import SystemdNotifier
from device_agent.worker_threads import Crew
from distree.broker_settings import Session
from distree.bundle.loading import Bundle
from distree.errors import Problem
from distree.messages.codec import PROBE
from distree.messages.device import DeviceStatus
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
    """A device agent, and the `Board` of its pipelines. `run` blocks until `stop`, by any thread or signal handler.

    Raises ConfigError, BundleError or RuntimeUnavailableError out of the constructor or `prepare`.
    """

    def __init__(
        self,
        config: AgentConfig,
        transport: Transport | None = None,
        bundles: Sequence[Bundle] | None = None,
        input_transport: Callable[[str], Transport] | None = None,
    ) -> None:
        self.config = config
        self.boot = os.urandom(4).hex()
        will = state_of(config, self.boot, DeviceStatus.LOST)
        self.transport: Transport = transport or _connect(config, config.client_id, will=will)
        self._input_transport = input_transport or functools.partial(_connect, config, session=Session.DURABLE)
        self.lock = self.transport.lock
        self.pipelines = [
            Pipeline(self, config, index, bundle, self.boot)
            for index, bundle in enumerate(load_bundles(config) if bundles is None else bundles)
        ]
        self.crew: Crew[tuple[Pipeline, Run | Fuse]] = Crew(
            self._turn, self._glance, self._infer, self.lock, self.fault
        )
        self.reporting = Reporting(config, self.boot, self.transport, self.pipelines)
        self.mailbox = Mailbox(config, self.boot, self.pipelines, self.transport, self.reporting, self.crew.put)
        self.on_hang: Callable[[], object] = functools.partial(os._exit, 70)
        """Called, with the lock held, when inference hangs for good. A thread cannot be ended, a process can."""
        # Methods of this object that its parts implement: bound here, so that no message costs one more call.
        self.received, self.published, self.given_up, self.unread = (
            self.mailbox.receive,
            self.mailbox.note_published,
            self.mailbox.note_given_up,
            self.mailbox.unread,
        )
        self.owed_since = self.transport.unacknowledged_since
        self.perform, self.show, self.deliver_results = (
            self.mailbox.perform,
            self.mailbox.show,
            self.mailbox.deliver_results,
        )
        self.dead_letter = self.reporting.dead_letter
        self.work, self.look, self.wake = self.crew.work, self.crew.look, self.transport.wake
        self._notifier = SystemdNotifier()
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._exit_status = 0
        self._watchdog_at = 0.0
        self._waits_until = 0.0
        self._problem: Problem | None = None
        self._repeats = Repeats()
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
            client_id = f"{self.config.client_id}_{pipeline.config.name}"
            pipeline.load(self.config.num_threads, functools.partial(self._input_transport, client_id))

    def run(self) -> int:
        """Serve until `stop`, then drain; return the exit status (0, or 70 after a fault of the program)."""
        here = presence.announce(self.config, self.boot)
        with contextlib.closing(self.transport), here or contextlib.nullcontext():
            self.transport.open(self, self.mailbox.subscriptions())
            self.crew.start()
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
        """Answer what is in custody and finish what is at work, within `drain_s`; then disconnect."""
        self._notifier.send("STOPPING=1")
        with self.lock:
            for pipeline in self.pipelines:
                pipeline.stop_feeding()
                # What others send from here on is for another board, or for the next run of this one.
                pipeline.node.drain()
            self.reporting.set_status(DeviceStatus.DRAINING)
        ends_at = time.monotonic() + self.config.drain_s
        while not self._idle() and time.monotonic() < ends_at and not self._exit_status:
            time.sleep(0.01)
        for pipeline in self.pipelines:
            pipeline.join_source(1.0)
        self.wake()
        self.crew.stop(2.0)
        with self.lock:
            for pipeline in self.pipelines:
                self.perform(pipeline, pipeline.node.give_up_audits(time.monotonic()))
            self.reporting.report()
            self.reporting.set_status(DeviceStatus.DISCONNECTED)

    def _idle(self) -> bool:
        with self.lock:
            return all(pipeline.node.idle() for pipeline in self.pipelines)

    # ------------------------------------------------------------ the crew's turns

    def _turn(self) -> None:
        """Wait for the network or for what is due, and handle both."""
        now = time.monotonic()
        self._waits_until = until = min(now + POLL_S, self._due_at())
        self.transport.poll(max(0.0, until - now))
        self._waits_until = 0.0
        if time.monotonic() >= until:
            with self.lock:
                self._tick(time.monotonic())
        self.deliver_results()

    def _glance(self) -> None:
        """Handle what the network has brought, without waiting for more."""
        self.transport.poll(0.0)
        self.deliver_results()

    def _infer(self, job: tuple[Pipeline, Run | Fuse]) -> None:
        pipeline, task = job
        pipeline.infer(task)

    def wake_for(self, due_at: float) -> None:
        """Shorten the network thread's wait if something is due before its end."""
        if due_at < self._waits_until:
            self.wake()

    def _due_at(self) -> float:
        due = min([pipeline.due_at() for pipeline in self.pipelines])
        if self._unready_until:
            due = 0.0 if self._takes_inputs() else min(due, self._unready_until)
        due = min(due, self.mailbox.echoes.due_at())
        return min(due, self.reporting.due_at(), self._watchdog_at if self._notifier.interval_s else due)

    def _tick(self, now: float) -> None:
        for pipeline in self.pipelines:
            pipeline.tick(now)
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
        busy_s, interval_s = self.crew.busy_s(), self._notifier.interval_s
        if interval_s and now >= self._watchdog_at:
            self._watchdog_at = now + interval_s
            if busy_s < self.config.hang_s:
                self._notifier.send("WATCHDOG=1")
        if busy_s > 2 * self.config.hang_s:
            # Not even a supervisor helped. Custody of what is spooled survives; a hung thread cannot be ended.
            log.critical("inference has hung for %.0f s: exiting, to be restarted", busy_s)
            self.on_hang()

    # ------------------------------------------------------------ the connection

    @property
    def online(self) -> bool:
        """Whether the broker is connected."""
        return self.transport.online

    def connected(self) -> None:
        """Publish the state on every connect, so that no board is stuck as lost."""
        first = not self._was_connected
        self._was_connected = True
        if first:
            for pipeline in self.pipelines:
                self.mailbox.send_again(pipeline)
            self._start_sources()
            self._unready_until = time.monotonic() + SOURCES_S
        else:
            log.info("connected again")
        self.reporting.describe()
        for pipeline in self.pipelines:
            self.perform(pipeline, pipeline.node.connected(time.monotonic()))
        self.mailbox.echoes.connected(time.monotonic())
        if self._unready_until and self._takes_inputs():
            self._be_ready()
        elif not self._unready_until:
            self.reporting.set_status(DeviceStatus.DRAINING if self._stopping.is_set() else DeviceStatus.READY)

    def _start_sources(self) -> None:
        for pipeline in self.pipelines:
            pipeline.start(self._stopping)

    def _takes_inputs(self) -> bool:
        return all(pipeline.ready for pipeline in self.pipelines)

    def _be_ready(self) -> None:
        self._unready_until = 0.0
        if not self._stopping.is_set():
            self.reporting.set_status(DeviceStatus.READY)
        log.info("%s is ready: %s", self.config.device, ", ".join(map(str, self.pipelines)))
        self._notifier.send("READY=1")
        self._ready.set()

    def disconnected(self, why: Problem) -> None:
        """Log why, at a bounded rate; the transport keeps trying."""
        self._problem = why
        if self.transport.judging:
            log.debug("%s", why)  # the outcome will be logged
            return
        line = self._repeats.line(time.monotonic(), str(why))
        if line is not None:
            log.warning("%s", line)
