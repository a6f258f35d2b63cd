"""The processes of the demo: an orchestrator and the agents, started, watched and stopped."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from device_agent.thumbnails import can_show
from distree import child_processes, topics
from distree.apps.demo.broker import DemoBroker
from distree.apps.demo.plan import DemoBoard, DemoSite
from distree.apps.demo.samples import Samples
from distree.apps.demo.watch import DemoListener, Watch
from distree.broker_settings import Session
from distree.errors import BrokerError, DistreeError
from distree.topics import Kind
from distree.transport import make_transport

PIPELINE = "demo"
START_S = 60.0
"""Longest wait for an agent to become ready: the slowest boards import numpy for seconds."""

STALL_S = 30.0
"""Longest silence before the demo gives up."""

DEADLINE_MS = 10_000
"""Generous, so that what is shown is the exit policy and not this machine's load."""

BRANCH_TIMEOUT_MS = 1000
"""Generous for the same reason."""

TELEMETRY_S = 0.5
PICTURES_HZ = 50.0
"""More than anybody can follow, but few enough not to slow down a demo without a dashboard."""

FAREWELL_S = 3.0
"""Longest wait for the broker to tell that the boards are gone."""

REPORTS_S = 5.0
"""Longest wait for the boards' reports on all they did."""


class Demo:
    """Starts everything, watches, and stops everything in the reverse order.

    With `pictures` the origin publishes thumbnails of its inputs, if they are images or windows of a recording.
    """

    def __init__(
        self,
        plan: DemoSite,
        samples: Samples,
        folder: Path,
        site: str,
        broker: DemoBroker,
        *,
        pictures: bool = False,
    ) -> None:
        self.plan = plan
        self.bundle = plan.bundle
        self.samples = samples
        self.folder = folder
        self.broker = broker.description
        self._settings_of = broker.settings_of
        self.pictures = pictures and can_show(self.bundle.manifest.input)
        self.site = site
        self.devices = [board.device for board in plan.boards]
        self.watch = Watch(branch_counts=plan.bundle.branch_counts, origin=plan.origin.device)
        self.wall_s = 0.0
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._killed: set[str] = set()
        self._transport = make_transport(
            broker.watcher(), client_id=f"{self.site}-watch", session=Session.NONE, receive_maximum=256
        )

    def __enter__(self) -> Demo:
        kinds = [Kind.STATE, Kind.MEMBER, Kind.RESULT, Kind.STAGE, Kind.OUTCOME]
        if self.bundle.is_wide:
            kinds += [Kind.EXIT, Kind.DECISION, Kind.TELEMETRY]
        filters = [topics.every(kind, self.site, PIPELINE) for kind in kinds]
        self._transport.open(DemoListener(self._transport, self.watch), [(name, 1) for name in filters])
        self._transport.connect_now(10.0)
        return self

    def __exit__(self, *_: object) -> None:
        processes = [process for _, process in reversed(self._processes)]
        if processes:
            # The origin by itself: it answers what is pending while the boards it waits for are still there.
            child_processes.stop(processes[0], 5.0)
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            child_processes.stop(process, 5.0)
        self._forget_retained()
        self._transport.close()

    def _forget_retained(self) -> None:
        """Leave nothing of the demo behind on a broker that it did not start."""
        # For a board that had to be killed the broker publishes a state, perhaps only now, and retains that too.
        ends_at = time.monotonic() + FAREWELL_S
        while self.watch.alive and self._transport.online and time.monotonic() < ends_at:
            self._transport.poll(0.1)
        if not self._transport.online:
            return
        names = [topics.device(self.site, device, kind) for device in self.devices for kind in (Kind.STATE, Kind.META)]
        names += [
            topics.member(self.site, PIPELINE, k, board.device)
            for board in self.plan.boards
            for k in range(len(self.bundle.stages))
            if board.fuses or k in board.stages
        ]
        with self._transport.lock:
            for name in (*names, topics.plan(self.site, PIPELINE), topics.orchestrator(self.site)):
                self._transport.publish(name, b"", qos=1, retain=True)

    def start(self) -> None:
        """Start orchestrator and agents; the origin last, so that every input finds the other stages ready."""
        self._spawn("orchestrator", ["orchestrator", "run"], self._orchestrator_config())
        origin = self.plan.origin
        others = [board for board in self.plan.boards if board is not origin]
        for board in others:
            self._spawn(board.device, ["agent", "run"], self._agent_config(board))
        self._await(lambda: {board.device for board in others} <= self.watch.ready, START_S, "the agents")
        self._spawn(origin.device, ["agent", "run"], self._agent_config(origin))
        self._await(lambda: origin.device in self.watch.ready, START_S, "the origin")

    def _spawn(self, name: str, command: list[str], config: dict[str, Any]) -> None:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        with (self.folder / f"{name}.log").open("wb") as errors:
            argv = [sys.executable, "-m", "distree", *command, "-c", str(path)]
            self._processes.append((name, child_processes.spawn(argv, stdout=errors, stderr=errors)))

    def _agent_config(self, board: DemoBoard) -> dict[str, Any]:
        pipeline: dict[str, Any] = {
            "name": PIPELINE,
            "bundle": str(self.bundle.path.resolve()),
            "stages": list(board.stages),
        }
        if board.branch is not None:
            pipeline["branch"] = board.branch
        if board.fuses:
            pipeline["fuse"] = True
        if board.fuses or board.is_origin:
            pipeline["branch_timeout_ms"] = BRANCH_TIMEOUT_MS
        if board.is_origin:
            pipeline["origin"] = self._origin_config()
        return {
            "site": self.site,
            "device": board.device,
            "broker": self._settings_of(board.device),
            "state_dir": str(self.folder / board.device),
            "pipelines": [pipeline],
            **({"telemetry_interval_s": TELEMETRY_S} if self.bundle.is_wide else {}),
        }

    def _origin_config(self) -> dict[str, Any]:
        source = {
            "kind": "replay",
            "path": str(self.samples.path.resolve()),
            "max_inputs": self.samples.count,
            "rate_hz": self.samples.rate_hz,
        }
        origin: dict[str, Any] = {
            "deadline_ms": DEADLINE_MS,
            "max_pending": 8,
            "min_retry_ms": 2000,
            "source": source,
            "mode": "eager" if self.plan.is_eager else "gated",
        }
        if self.pictures:
            origin["thumbnails"] = {"max_side_px": 64, "max_rate_hz": PICTURES_HZ}
        return origin if self.plan.fuser is None else {**origin, "fuser": self.plan.fuser}

    def _orchestrator_config(self) -> dict[str, Any]:
        return {
            "site": self.site,
            "broker": self._settings_of("orchestrator"),
            "store": {"path": str(self.folder / "orchestrator.db")},
            "pipelines": [{"name": PIPELINE, "bundle": str(self.bundle.path.resolve())}],
        }

    def _await(self, done: Any, timeout_s: float, what: str) -> None:
        ends_at = time.monotonic() + timeout_s
        while not done():
            self._transport.poll(0.1)
            self._check_processes()
            if time.monotonic() > ends_at:
                raise BrokerError(
                    f"{what} did not become ready within {timeout_s:g} s", "check the broker and this machine's load"
                )

    def _check_processes(self) -> None:
        """Raise DistreeError for a process that has ended, unless it is a branch that somebody killed."""
        killable = {board.device for board in self.plan.boards if board.branch is not None}
        for name, process in self._processes:
            status = process.poll()
            if status is not None and status < 0 and name in killable:
                if name not in self._killed:
                    self._killed.add(name)
                    print(f"  {name} was killed; the others go on without it", flush=True)
            elif status is not None:
                lines = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
                if not lines:
                    raise DistreeError(
                        f"{name} ended with status {status} and logged nothing", "check this machine's memory"
                    )
                raise DistreeError(f"{name} ended with status {status}: {lines[-1]}", "")  # the line has its remedy

    def stream(self) -> Iterator[None]:
        """Poll until every sample is answered; yields about five times a second.

        It gives up if nothing arrived for STALL_S, or if nothing has travelled for that long although it should have.
        """
        shown_at = 0.0
        while len(self.watch.results) < self.samples.count:
            self._transport.poll(0.1)
            now = time.monotonic()
            if now - shown_at >= 0.2:
                shown_at = now
                self._check_processes()
                yield
            if self.watch.heard_at and now - self.watch.heard_at > STALL_S:
                break
            is_stranded = self.watch.stranded > 0 and not self.watch.travelled
            if is_stranded and now - (self.watch.first_at or now) > STALL_S:
                break
        self.wall_s = time.monotonic() - (self.watch.first_at or time.monotonic())
        # What the boards still tell each other about answered inputs is part of the bytes.
        for _ in range(3):
            self._transport.poll(0.1)
        if self.bundle.is_wide:
            self._await_reports()

    def stay(self) -> NoReturn:
        """Keep everything running until the process is told to end; DistreeError if a part of it ends by itself."""
        while True:
            self._transport.poll(0.5)
            self._check_processes()

    def _await_reports(self) -> None:
        """Wait for a report of every board that was made after the last answer; boards that are gone owe none."""
        ends_at = time.monotonic() + REPORTS_S
        before = {device: report.sequence for device, report in self.watch.telemetry.items()}
        owing = self.watch.ready & before.keys()
        while owing and time.monotonic() < ends_at:
            self._transport.poll(0.1)
            # The one after the next: the next may have been on its way already.
            owing = {device for device in owing if self.watch.telemetry[device].sequence < before[device] + 2}
