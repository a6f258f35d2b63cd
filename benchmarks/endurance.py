"""An hour at 50 inputs per second: memory of every process, and bytes written: `python -m benchmarks.endurance`.

A site as users run it: mosquitto with persistence, a chain of three agents whose origin has a spool, an orchestrator
that tunes for 1 % of accuracy, and `distree results`. Resident memory (VmRSS) is read every five seconds. Compared are
the medians of half a minute each, after five minutes and at the end; exit status 1 if a process grew by more than 2 %,
an input was not answered, or one was answered twice with another answer. Bytes written are those that a process caused
to be sent to the disk (`write_bytes` of /proc/PID/io), from the fifth minute on.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.chaos.site import (
    HOST,
    PIPELINE,
    SITE,
    Flow,
    Options,
    Publisher,
    Site,
    closing_all,
    images,
    memory_kb,
    open_site,
)
from broker_config.managed import ManagedBroker
from distree import child_processes
from distree.formatting import counted

SETTLED_S = 300.0
WINDOW_S = 30.0
SAMPLE_S = 5.0
MOST_GROWTH = 0.02
ORIGIN = {"deadline_ms": 5000, "spool": True, "source": {"kind": "mqtt"}}


@dataclass
class Watched:
    """A process: its memory over time, and what it had written when the first five minutes were over."""

    pid: int
    kb: list[tuple[float, int]] = field(default_factory=list)
    written_before: int = 0

    def sample(self, at_s: float) -> None:
        self.kb.append((at_s, memory_kb(self.pid)["VmRSS"]))

    def between(self, start_s: float, end_s: float) -> float:
        """Return the median of its memory in that time, in KiB."""
        return statistics.median(kb for at_s, kb in self.kb if start_s <= at_s <= end_s)

    @property
    def written(self) -> int:
        """Bytes that it has had written to disks so far."""
        lines = Path(f"/proc/{self.pid}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def spawn(site: Site, name: str, *command: str) -> subprocess.Popen[bytes]:
    """Start a command of `distree`, which ends with the site."""
    with (site.folder / f"{name}.log").open("ab") as log:
        words = [sys.executable, "-m", "distree", *command]
        site.processes[name] = child_processes.spawn(words, stdout=log, stderr=log)
    return site.processes[name]


def start(site: Site) -> None:
    """Start all but the broker."""
    settings = {"telemetry_interval_s": 2.0, "broker": {"port": site.port}}
    site.agent("mid", [1], **settings)
    site.agent("last", [2], **settings)
    site.agent("cam", [0], origin=ORIGIN, **settings)
    config = site.folder / "orchestrator.yaml"
    broker = {"port": site.port}
    pipeline = {"name": PIPELINE, "bundle": "fashion", "goal": {"accuracy_drop": 0.01}}
    config.write_text(
        yaml.safe_dump({"site": SITE, "broker": broker, "store": {"path": "store.db"}, "pipelines": [pipeline]})
    )
    spawn(site, "orchestrator", "orchestrator", "run", "-c", str(config))
    spawn(site, "results", "results", "--broker", f"{HOST}:{site.port}", "--site", SITE)


def run(minutes: float, rate_hz: float) -> int:
    """Play it; print the table; return the exit status."""
    with (
        tempfile.TemporaryDirectory(prefix="distree-endurance-") as folder,
        ManagedBroker(engine="mosquitto", persistence=Path(folder)) as broker,
        open_site(broker.port, Options()) as site,
    ):
        start(site)
        watched = {"mosquitto": Watched(broker.pid)}
        watched |= {name: Watched(process.pid) for name, process in site.processes.items()}
        publisher = Publisher(broker.port)
        with closing_all(publisher):
            flow = Flow(publisher, "cam", images())
            flow.start("e", rate_hz)
            began_at, sent_before = time.monotonic(), 0
            while (at_s := time.monotonic() - began_at) < minutes * 60:
                for one in watched.values():
                    one.sample(at_s)
                    if at_s < SETTLED_S:
                        one.written_before = one.written
                if at_s < SETTLED_S:
                    sent_before = len(flow.requests)
                time.sleep(SAMPLE_S - (time.monotonic() - began_at) % SAMPLE_S)
            flow.stop()
            publisher.settle()
            observer = site.observer
            observer.until(lambda: all(observer.finals.get(request) for request in flow.requests), 30.0, 0.2)
            unanswered, differing = observer.unanswered(flow.requests), observer.differing()
            return report(watched, len(flow.requests), sent_before, len(unanswered), len(differing), minutes * 60)


def report(
    watched: dict[str, Watched], sent: int, sent_before: int, unanswered: int, differing: int, seconds: float
) -> int:
    """Print what was measured; return the exit status."""
    print(
        f"{counted(sent, 'input')} in {seconds / 60:g} minutes: {unanswered} unanswered, {differing} answered twice "
        "with another answer\n"
    )
    print(f"{'process':<14}{'MB after 5 min':>16}{'MB at the end':>16}{'growth, %':>12}{'bytes written per input':>26}")
    grown = []
    for name, one in watched.items():
        first = one.between(SETTLED_S, SETTLED_S + WINDOW_S)
        last = one.between(seconds - WINDOW_S, seconds)
        growth = last / first - 1
        written = (one.written - one.written_before) / max(1, sent - sent_before)
        print(f"{name:<14}{first / 1024:>16.2f}{last / 1024:>16.2f}{100 * growth:>12.2f}{written:>26.0f}")
        if growth > MOST_GROWTH:
            grown.append(name)
    if grown:
        print(f"\ngrew by more than {MOST_GROWTH:.0%}: {', '.join(grown)}")
    return 1 if grown or unanswered or differing else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long, at least 6 (default: %(default)g)")
    parser.add_argument(
        "--rate", type=float, default=50.0, metavar="HZ", help="inputs per second (default: %(default)g)"
    )
    args = parser.parse_args()
    if args.minutes < 6:
        parser.error("--minutes: memory is compared with that after five minutes; choose at least 6")
    return run(args.minutes, args.rate)


if __name__ == "__main__":
    sys.exit(main())
