"""How far one computer goes: boards that it can simulate, and boards whose telemetry one orchestrator takes in.

    python -m benchmarks.scale --out docs/results

*simulation*: `distree simulate` of fleets of growing size for a minute of simulated time, single-threaded. Nine boards
of ten are origins with an input each five seconds; the others run the later stages; thresholds are tuned by the
orchestrator, to which each board reports every thirty seconds. Wall time and CPU time are of building and running it.

*members*: what the boards of such a fleet say of themselves, and what the broker hands on of it to origins, simulated:
when all start, when the broker has been away, and when ten of the boards that others choose start anew.

*orchestrator*: a real `distree orchestrator run` process, a real mosquitto, and the state, meta and telemetry of 1,000
boards, published by one client: each board reports every ten seconds, then every two, which is an agent's default. CPU
time and resident memory are the process's own, from /proc; what has arrived is counted in its store.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import yaml

from broker_config.managed import ManagedBroker
from distree import __version__, child_processes, topics
from distree.bundle.loading import find_bundle, load_bundle
from distree.messages.codec import encode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus, HeldStage
from distree.messages.telemetry import OriginTelemetry, PipelineTelemetry, StageTelemetry, Telemetry
from distree.topics import DELIVERY, Kind
from orchestrator.simulator.overrides import load_fleet
from orchestrator.simulator.report import report
from orchestrator.simulator.site import SimulatedSite
from orchestrator.simulator.traffic import load_table
from orchestrator.store.database import Store

SITE, PIPELINE = "scale", "fashion"
PARTS = ("simulation", "members", "orchestrator")
TICKS = os.sysconf("SC_CLK_TCK")

FLEET = """\
seed: 1
duration_s: 60
traffic: {rate_hz: 0.2, synthetic: {macs: [1.4e6, 4.4e6, 7.9e6]}}
boards:
  - {name: cam, count: 9000, origin: true, stages: [0], macs_per_s: 50e6}
  - {name: hub, count: 700, stages: [1], macs_per_s: 50e6}
  - {name: box, count: 300, stages: [2], macs_per_s: 50e6}
agents: {telemetry_interval_s: 30}
goal: {accuracy_drop: 1%}
"""


# ------------------------------------------------------------ simulation


def simulation(boards: int, folder: Path, duration_s: float) -> dict[str, Any]:
    """Simulate a fleet and say what it took."""
    path = folder / "fleet.yaml"
    path.write_text(FLEET)
    overrides = [f"boards.{name}.count={count}" for name, count in _counts(boards).items()]
    wall_at, cpu_at = time.perf_counter(), time.process_time()
    config = load_fleet(path, [*overrides, f"duration_s={duration_s:g}"])
    site = SimulatedSite(config, load_table(config.traffic, config.seed))
    site.run()
    wall_s, cpu_s = time.perf_counter() - wall_at, time.process_time() - cpu_at
    told = report(site)
    inputs = told["inputs"]
    if inputs["answered"] != inputs["accepted"] or inputs["answered_twice"]:
        raise SystemExit(f"not every input was answered once: {inputs}")
    return {
        "boards": told["boards"],
        "simulated_s": duration_s,
        "inputs": inputs["accepted"],
        "messages": sum(told["messages"].values()),
        "events": told["events"],
        "plans": len(told["plans"]),
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _counts(boards: int) -> dict[str, int]:
    return {"cam": boards * 9 // 10, "hub": boards * 7 // 100, "box": boards * 3 // 100}


def in_a_process(boards: int, duration_s: float) -> dict[str, Any]:
    """Return the figures of a simulation in a process of its own, whose memory is then its own too."""
    command = [sys.executable, "-m", "benchmarks.scale", "--one", str(boards), "--seconds", str(duration_s)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout))


# ------------------------------------------------------------ members

MEMBERS_CASES: dict[str, str | None] = {
    "all start": None,
    "the broker was away": "failures=[{kind: broker, at_s: 10, for_s: 1}]",
    "ten are killed and start anew": "failures=[{kind: boards, boards: hub, share: %g%%, at_s: 10, for_s: 1}]",
}


def members(boards: int, folder: Path) -> list[dict[str, Any]]:
    """Return what each case takes, beyond what the start does."""
    path, hubs = folder / "fleet.yaml", boards * 7 // 100
    path.write_text(FLEET)
    overrides = [f"boards.{name}.count={count}" for name, count in _counts(boards).items()]
    overrides += ["goal=null", "thresholds=[never, never]", "duration_s=20", "traffic.rate_hz=1e-9"]
    found: list[dict[str, Any]] = []
    for case, failure in MEMBERS_CASES.items():
        more = [] if failure is None else [failure % (1000 / hubs) if "%" in failure else failure]
        config = load_fleet(path, [*overrides, *more])
        site = SimulatedSite(config, load_table(config.traffic, config.seed))
        site.run()
        books = site.books
        row = {
            "messages": sum(books.messages.values()),
            "message_bytes": books.message_bytes,
            "deliveries": sum(books.deliveries.values()),
            "delivery_bytes": books.delivery_bytes,
            "subscriptions": books.subscriptions,
        }
        start = found[0] if found else dict.fromkeys(row, 0)
        found.append({"case": case, **{key: count - start[key] for key, count in row.items()}})
    return found


def members_lines(boards: int, rows: list[dict[str, Any]]) -> list[str]:
    return [
        "## Members",
        "",
        f"{boards:,} boards, nine of ten of them origins, which choose from the others. *Up* is what boards publish "
        "about themselves, *down* the copies that the broker delivers to origins. Only payloads are counted.",
        "",
        "| when | messages up | kB up | deliveries | MB down | subscriptions | kB down per origin |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {row['case']} | {row['messages']:,} | {row['message_bytes'] / 1e3:.0f} | {row['deliveries']:,} "
            f"| {row['delivery_bytes'] / 1e6:.1f} | {row['subscriptions']:,} "
            f"| {row['delivery_bytes'] / 1e3 / (boards * 9 // 10):.1f} |"
            for row in rows
        ),
    ]


# ------------------------------------------------------------ the orchestrator


class Boards:
    """The boards of a site as the broker sees them: `introduce` them, then have them report."""

    def __init__(self, count: int, port: int) -> None:
        self.sent = self.rows = 0
        """Reports, and what is to be in the store of them: a row of the stage, and one of the origin."""
        self._reports = [0] * count
        self._names = [f"board-{number}" for number in range(count)]
        self._bundle = load_bundle(find_bundle(PIPELINE))
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.max_inflight_messages_set(200)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def introduce(self) -> None:
        """Publish the retained state and meta of every board, and wait until the broker has them."""
        told = []
        for number, name in enumerate(self._names):
            state = DeviceState(device=name, boot="b0", status=DeviceStatus.READY)
            told.append(self._publish(name, Kind.STATE, encode(state)))
            told.append(self._publish(name, Kind.META, encode(self._meta(number, name))))
        for message in told:
            message.wait_for_publish(60.0)

    def report(self, period_s: float, duration_s: float) -> None:
        """Have each board report every `period_s` seconds, evenly spread, for `duration_s`."""
        begins_at, count = time.monotonic(), len(self._names)
        for turn in range(round(duration_s / period_s * count)):
            late_s = begins_at + turn * period_s / count - time.monotonic()
            if late_s > 0:
                time.sleep(late_s)
            number = turn % count
            report = self._telemetry(number)
            self.sent += 1
            self.rows += 2 if report.pipelines[0].origin is not None else 1
            self._publish(report.device, Kind.TELEMETRY, encode(report))

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _publish(self, name: str, kind: Kind, payload: bytes) -> mqtt.MQTTMessageInfo:
        how = DELIVERY[kind]
        return self._client.publish(topics.device(SITE, name, kind), payload, qos=how.qos, retain=how.retain)

    def _stage(self, number: int) -> int:
        """Return the stage of a board: eight of ten are origins, which run the first one."""
        return max(0, number % 10 - 7)

    def _meta(self, number: int, name: str) -> DeviceMeta:
        bundle, stage = self._bundle, self._stage(number)
        return DeviceMeta(
            device=name,
            boot="b0",
            version=__version__,
            python=platform.python_version(),
            runtime="none",
            machine=platform.machine(),
            memory_mb=512,
            stages=(HeldStage(pipeline=PIPELINE, stage=stage, model=bundle.name, revision=bundle.revision),),
            origins=(PIPELINE,) if stage == 0 else (),
        )

    def _telemetry(self, number: int) -> Telemetry:
        self._reports[number] += 1
        stage, inputs = self._stage(number), 50 * self._reports[number]
        part = StageTelemetry(
            stage=stage,
            received=inputs,
            exited=inputs // 2,
            forwarded=inputs - inputs // 2,
            shed=0,
            expired=0,
            failed=0,
            duplicate=0,
            waiting=number % 3,
            bytes_out=1800 * inputs,
            queue_s=0.002,
            compute_s=0.01,
        )
        origin = OriginTelemetry(
            accepted=inputs,
            answered=inputs,
            resent=0,
            late=0,
            pending=1,
            exits=(inputs // 2, 0, inputs - inputs // 2),
            reasons={"confident": inputs // 2, "last": inputs - inputs // 2},
            latency_p50_s=0.02,
            latency_p95_s=0.05,
            latency_max_s=0.1,
        )
        return Telemetry(
            device=self._names[number],
            boot="b0",
            sequence=self._reports[number],
            uptime_s=10.0 * self._reports[number],
            rss_bytes=30_000_000,
            dead_letters=0,
            offline_dropped=0,
            pipelines=(
                PipelineTelemetry(
                    pipeline=PIPELINE,
                    epoch=0,
                    plan_hash="0" * 16,
                    revision=self._bundle.revision,
                    stages=(part,),
                    origin=origin if stage == 0 else None,
                ),
            ),
        )


class Watch:
    """CPU time and resident memory of a process, over time."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mb(self) -> float:
        for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise SystemExit("the orchestrator has ended")

    def phase(self, name: str, action: Callable[[], None]) -> dict[str, Any]:
        """Return what the process used while `action` ran and until it had caught up."""
        cpu_at, wall_at = self.cpu_s(), time.monotonic()
        action()
        wall_s, cpu_s = time.monotonic() - wall_at, self.cpu_s() - cpu_at
        return {"phase": name, "wall_s": wall_s, "cpu_s": cpu_s, "cpu_share": cpu_s / wall_s, "rss_mb": self.rss_mb()}


@contextlib.contextmanager
def orchestrating(folder: Path, port: int) -> Iterator[tuple[Watch, Path]]:
    """Run an orchestrator with a goal until the block ends; give its watch and its store."""
    config, store = folder / "orchestrator.yaml", folder / "state.db"
    goal = {"accuracy_drop": "1%", "latency_p95_ms": 100}
    content: dict[str, Any] = {
        "site": SITE,
        "broker": {"port": port},
        "store": {"path": str(store)},
        "pipelines": [{"name": PIPELINE, "bundle": PIPELINE, "goal": goal}],
    }
    config.write_text(yaml.safe_dump(content))
    with (folder / "orchestrator.log").open("wb") as log:
        process = child_processes.spawn(
            [sys.executable, "-m", "distree", "orchestrator", "run", "-c", str(config)], stderr=log
        )
        try:
            time.sleep(3.0)  # what starting it costs is not asked here
            if process.poll() is not None:
                raise SystemExit((folder / "orchestrator.log").read_text())
            yield Watch(process.pid), store
        finally:
            child_processes.stop(process, 10.0)


def orchestrator(count: int, duration_s: float, folder: Path) -> dict[str, Any]:
    """Have `count` boards report to an orchestrator, and say what that took."""
    with ManagedBroker(engine="mosquitto") as broker:
        boards = Boards(count, broker.port)
        with orchestrating(folder, broker.port) as (watch, store):
            phases = [watch.phase("no boards", lambda: time.sleep(min(10.0, duration_s)))]

            def introduce() -> None:
                boards.introduce()
                until(lambda: stored(store)[0] == count, "the boards in the store")

            phases.append(watch.phase("state and meta of all boards", introduce))
            for period_s in (10.0, 2.0):
                before = boards.sent

                def telemetry(period_s: float = period_s) -> None:
                    boards.report(period_s, duration_s)

                phases.append(watch.phase(f"a report every {period_s:g} s", telemetry))
                phases[-1]["messages"] = boards.sent - before
                phases[-1]["cpu_us_per_message"] = 1e6 * phases[-1]["cpu_s"] / phases[-1]["messages"]
            until(lambda: stored(store)[1] == boards.rows, "the reports in the store", needed=False)
            known, rows = stored(store)
        described = broker.describe().partition(" on ")[0]
        boards.close()
    return {
        "boards": count,
        "broker": described,
        "reports_sent": boards.sent,
        "rows_expected": boards.rows,
        "rows_stored": rows,
        "boards_known": known,
        "phases": phases,
    }


def stored(path: Path) -> tuple[int, int]:
    """Return how many boards a store has, and how many rows of their reports."""
    with Store(path, read_only=True) as store:
        return len(store.devices()), store.history_length()


def until(done: Callable[[], bool], what: str, *, needed: bool = True, timeout_s: float = 30.0) -> None:
    ends_at = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > ends_at:
            if needed:
                raise SystemExit(f"waited {timeout_s:g} s in vain for {what}")
            return
        time.sleep(0.2)


# ------------------------------------------------------------ what is written


def lines(figures: dict[str, Any]) -> list[str]:
    """Return the figures as Markdown."""
    told = [
        "# Scale",
        "",
        f"`make scale`, {figures['date']}, {figures['machine']}. The load average was {figures['load_average']:.1f} "
        "when it began; if that is not near 0, wall times are pessimistic.",
    ]
    if figures["simulation"]:
        told += [
            "",
            "## Simulated boards",
            "",
            "Nine of ten boards have an input every five seconds, thresholds are tuned, and every board reports every "
            "thirty seconds. The simulator uses one thread.",
            "",
            "| boards | simulated s | inputs | messages | plans | CPU s | wall s | peak MB |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        told += [
            f"| {row['boards']:,} | {row['simulated_s']:g} | {row['inputs']:,} | {row['messages']:,} | {row['plans']} "
            f"| {row['cpu_s']:.1f} | {row['wall_s']:.1f} | {row['peak_rss_mb']:.0f} |"
            for row in figures["simulation"]
        ]
    if figures["members"]:
        told += ["", *members_lines(figures["members_boards"], figures["members"])]
    if figures["orchestrator"] is not None:
        told += ["", *orchestrator_lines(figures["orchestrator"])]
    return told


def orchestrator_lines(measured: dict[str, Any]) -> list[str]:
    rows = [
        f"| {row['phase']} | {row['wall_s']:.0f} | {row.get('messages', 0):,} | {row['cpu_s']:.2f} "
        f"| {100 * row['cpu_share']:.1f} | {row.get('cpu_us_per_message', 0):.0f} | {row['rss_mb']:.1f} |"
        for row in measured["phases"]
    ]
    return [
        "## A real orchestrator",
        "",
        f"{measured['boards']:,} boards report to one orchestrator over {measured['broker']}. In the end it knew "
        f"{measured['boards_known']:,} of them. {measured['reports_sent']:,} reports were sent, and "
        f"{measured['rows_stored']:,} of {measured['rows_expected']:,} rows were in the store (one per stage and one "
        "per origin in each report).",
        "",
        "| phase | seconds | reports | CPU s | CPU, % of a core | CPU µs per report | resident MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
        "![scale](scale.png)",
    ]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw what simulating takes against the number of boards, and what the orchestrator used."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(9.0, 3.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    rows = figures["simulation"]
    left.plot([row["boards"] for row in rows], [row["wall_s"] for row in rows], marker="o", label="wall")
    left.plot([row["boards"] for row in rows], [row["cpu_s"] for row in rows], marker="o", label="CPU")
    if rows:
        left.axhline(rows[-1]["simulated_s"], color="black", linestyle="--", linewidth=1, label="simulated time")
    left.set(xlabel="simulated boards", ylabel="seconds", title="distree simulate", ylim=(0, None))
    left.legend()
    phases = figures["orchestrator"]["phases"] if figures["orchestrator"] is not None else []
    names = [row["phase"] for row in phases]
    right.barh(names, [100 * row["cpu_share"] for row in phases])
    for place, row in enumerate(phases):
        right.annotate(f" {row['rss_mb']:.0f} MB", (100 * row["cpu_share"], place), va="center", fontsize=8)
    right.invert_yaxis()
    right.margins(x=0.2)
    boards = f" of {figures['orchestrator']['boards']:,} boards" if phases else ""
    right.set(xlabel="CPU, % of a core", title=f"orchestrator{boards}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="only this part")
    parser.add_argument("--short", action="store_true", help="a tenth of the boards and a few seconds, to try it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write scale.md, scale.json and scale.png")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        if options.one is not None:
            print(json.dumps(simulation(options.one, Path(name), options.seconds)))
            return
        figures = measure(options, Path(name))
    print("\n".join(lines(figures)))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scale.md").write_text("\n".join(lines(figures)) + "\n")
        (options.out / "scale.json").write_text(json.dumps(figures, indent=1) + "\n")
        draw(figures, options.out / "scale.png")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sizes, simulated_s = ((100, 300, 1000), 10.0) if options.short else ((1000, 3000, 10_000), 60.0)
    count, reporting_s = (100, 10.0) if options.short else (1000, 60.0)
    parts = PARTS if options.part is None else (options.part,)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "load_average": os.getloadavg()[0],
        "simulation": [in_a_process(size, simulated_s) for size in sizes] if "simulation" in parts else [],
        "members_boards": count,
        "members": members(count, folder) if "members" in parts else [],
        "orchestrator": orchestrator(count, reporting_s, folder) if "orchestrator" in parts else None,
    }


if __name__ == "__main__":
    main()
