"""A camera whose ffmpeg is killed: what is taken, dropped and answered, how soon it is back, and what memory it takes.

A real mosquitto, and one agent in a process of its own that runs all stages of a bundle. Its camera is ffmpeg with a
synthesised picture, 640 x 480 at 10 frames a second. ffmpeg is killed (SIGKILL) at random moments.
`python -m benchmarks.camera --minutes 10`
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from broker_config.managed import ManagedBroker
from distree import child_processes, topics
from distree.broker_settings import BrokerSettings, Session
from distree.bundle.loading import load_bundle
from distree.errors import Problem
from distree.formatting import table
from distree.messages.codec import decode
from distree.messages.events import Event, EventKind
from distree.messages.result import Result
from distree.topics import Kind
from distree.transport import make_transport
from distree.transport.base import QuietListener, Received

SITE, DEVICE, PIPELINE = "bench", "cam", "camera"
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1e6
_EDGE_S = 20.0
"""No kill sooner after the start, after another kill, or before the end."""


class Watcher(QuietListener):
    """Keeps the results and the events of the camera, with the time when they came."""

    def __init__(self, port: int) -> None:
        self.answered: dict[str, bool] = {}
        """Whether the result of each request was late."""
        self.twice = 0
        self.answered_at: list[float] = []
        self.events: list[tuple[float, Event]] = []
        self._transport = make_transport(BrokerSettings(port=port), client_id="watcher", session=Session.NONE)
        wanted = [
            topics.of_origin(SITE, PIPELINE, Kind.RESULT, DEVICE),
            topics.device(SITE, DEVICE, Kind.EVENT),
        ]
        self._transport.open(self, [(topic, 1) for topic in wanted])
        self._transport.connect_now(10.0)

    def disconnected(self, why: Problem) -> None:
        raise SystemExit(f"the broker went away: {why}")

    def received(self, message: Received) -> None:
        self._transport.acknowledge(message.token)
        if topics.parse(message.topic).kind is Kind.EVENT:
            event = decode(Event, message.payload)
            if event.kind is EventKind.SOURCE:
                self.events.append((time.monotonic(), event))
            return
        result = decode(Result, message.payload)
        if result.final:
            self.twice += result.request in self.answered
            self.answered[result.request] = result.late
            self.answered_at.append(time.monotonic())

    def watch(self, until: float) -> None:
        while time.monotonic() < until:
            self._transport.poll(min(0.5, max(0.0, until - time.monotonic())))

    def close(self) -> None:
        self._transport.close()


def rss_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MB
    return 0.0


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ffmpeg_of(pid: int) -> int | None:
    """The ffmpeg that an agent runs at the moment."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "ffmpeg":
                    return int(child)
    return None


@contextlib.contextmanager
def agent(folder: Path, port: int, options: argparse.Namespace) -> Iterator[subprocess.Popen[bytes]]:
    stages = list(range(len(load_bundle(options.bundle).stages)))
    source = {
        "kind": "camera",
        "input": f"testsrc2=size={options.size}:rate={options.rate:g}",
        "input_options": ["-re", "-f", "lavfi"],
        "rate_hz": options.rate,
    }
    pipeline = {
        "name": PIPELINE, "bundle": options.bundle, "stages": stages,
        "origin": {"deadline_ms": options.deadline_ms, "source": source},
    }  # fmt: skip
    config = {"site": SITE, "device": DEVICE, "broker": {"port": port}, "pipelines": [pipeline]}
    (folder / "agent.yaml").write_text(yaml.safe_dump(config))
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "distree", "agent", "run", "-c", str(folder / "agent.yaml")]
        process = child_processes.spawn(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            child_processes.stop(process, 20.0)


def moments(seconds: float, kills: int, seed: int) -> list[float]:
    """Random moments within a run, apart from each other by `_EDGE_S` at least."""
    free = seconds - (kills + 1) * _EDGE_S
    if free < 0:
        raise SystemExit(f"{kills} kills need a longer run: give fewer --kills, or more --minutes")
    generator = random.Random(seed)
    chosen = sorted(generator.uniform(0, free) for _ in range(kills))
    return [at + (k + 1) * _EDGE_S for k, at in enumerate(chosen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--rate", type=float, default=10.0, help="frames per second, made and wanted")
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--bundle", default="fashion")
    parser.add_argument("--deadline-ms", type=float, default=500.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    seconds = 60 * options.minutes
    kills: list[tuple[float, float]] = []
    child_mb: list[float] = []
    with tempfile.TemporaryDirectory() as made, ManagedBroker(engine="mosquitto") as broker:
        folder, watcher = Path(made), Watcher(broker.port)
        with agent(folder, broker.port, options) as process:
            while not watcher.answered:
                if process.poll() is not None:
                    raise SystemExit((folder / "log").read_text())
                watcher.watch(time.monotonic() + 0.1)
            started_at = time.monotonic()
            agent_mb = 0.0
            cpu_before = cpu_s(process.pid)
            steps = [(at, True) for at in moments(seconds, options.kills, options.seed)]
            steps += [(min(60.0, seconds / 2), False)]
            for at, is_kill in sorted(steps):
                watcher.watch(started_at + at)
                child = ffmpeg_of(process.pid)
                if not is_kill:
                    agent_mb = rss_mb(process.pid)
                elif child is not None:
                    child_mb.append(rss_mb(child))
                    os.kill(child, signal.SIGKILL)
                    kills.append((at, time.monotonic()))
            watcher.watch(started_at + seconds)
            child = ffmpeg_of(process.pid)
            child_mb += [] if child is None else [rss_mb(child)]
            end_mb, agent_cpu_s = rss_mb(process.pid), cpu_s(process.pid) - cpu_before
            # Told to stop, it answers what it has accepted, and the watcher hears it.
            process.terminate()
            watcher.watch(time.monotonic() + 3.0)
        left = [] if child is None else [child] if Path(f"/proc/{child}").exists() else []
        watcher.close()
        log = (folder / "log").read_text()
    print_results(options, watcher, kills, log)
    print(
        f"memory, MB: agent {agent_mb:.1f} after {min(60.0, seconds / 2):.0f} s, {end_mb:.1f} at the end; "
        f"ffmpeg {min(child_mb):.1f} to {max(child_mb):.1f}"
    )
    print(f"CPU of the agent: {100 * agent_cpu_s / seconds:.1f} % of a core; ffmpeg left behind: {len(left)}")


def print_results(options: argparse.Namespace, watcher: Watcher, kills: list[tuple[float, float]], log: str) -> None:
    counts = re.search(r"([\d,]+) pictures? came: (\d+) taken, \d+ without motion, (\d+) replaced", log)
    came, taken, replaced = (int(count.replace(",", "")) for count in counts.groups()) if counts else (0, 0, 0)
    late = sum(watcher.answered.values())
    print(f"{options.minutes:g} minutes, {options.size} at {options.rate:g} frames/s, bundle {options.bundle}")
    print(
        f"frames: {came} came, {taken} taken, {replaced} dropped for newer ones; {len(watcher.answered)} answered, "
        f"{watcher.twice} twice, {late} late (deadline {options.deadline_ms:g} ms)\n"
    )
    rows = []
    ends = [at for _, at in kills[1:]] + [float("inf")]
    for (at, killed_at), until in zip(kills, ends, strict=True):
        told = [(when, event) for when, event in watcher.events if killed_at <= when < until]
        back = next((when for when, event in told if "works again" in event.what), float("inf"))
        answer = next((when for when in watcher.answered_at if when >= back), float("inf"))
        rows.append([f"{at:.1f}", f"{back - killed_at:.2f}", f"{answer - killed_at:.2f}", str(len(told))])
    print(table(["killed at, s", "works again after, s", "next answer after, s", "events"], rows) + "\n")


if __name__ == "__main__":
    main()
