"""How the latency of a live pipeline follows a goal that is halved in mid-run.

Three agents, a broker and an orchestrator, all processes of their own. The board of the last stage is made slow: it is
stopped for most of each period, as a board is that has other things to do. The goal `latency_p95_ms` holds at first
though no input leaves early; then it is halved in orchestrator.yaml and the orchestrator restarted:

    python -m benchmarks.live --out docs/results

Latencies are those in the results, from the origin's acceptance to its answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from broker_config.managed import ManagedBroker
from distree import children, topics, wire
from distree.protocols import Received
from distree.topics import Kind
from distree.transport.paho import PahoTransport
from distree.types import BrokerSettings, Plan, Result

SITE, PIPELINE = "live", "fashion"
STOPPED_S, RUNNING_S = 0.06, 0.015
START_S = 60.0
BIN_S = 2.0


class Observer:
    """Keeps the results of the site with the seconds at which they came, and its plans."""

    def __init__(self, port: int) -> None:
        self.results: list[tuple[float, Result]] = []
        self.plans: list[tuple[float, Plan]] = []
        self.ready: set[str] = set()
        self.transport = PahoTransport(BrokerSettings(port=port), client_id="observer", receive_maximum=512)
        anyone = topics.of_origin(SITE, PIPELINE, Kind.RESULT, "+")
        states = topics.device(SITE, "+", Kind.STATE)
        self.transport.open(self, [(anyone, 1), (states, 1), (topics.plan(SITE, PIPELINE), 1)])
        self.transport.connect_now(10.0)

    def connected(self) -> None:
        """Do nothing: the subscriptions are the transport's."""

    def disconnected(self, why: str) -> None:
        """Give up: a broker that goes away spoils the run."""
        raise RuntimeError(f"the broker went away: {why}")

    def published(self, token: str) -> None:
        """Do nothing: nothing is published."""

    def received(self, message: Received) -> None:
        """Keep what came."""
        self.transport.acknowledge(message.token)
        now_s = time.monotonic()
        match topics.parse(message.topic).kind:
            case Kind.RESULT:
                self.results.append((now_s, wire.decode_result(message.payload)))
            case Kind.PLAN:
                self.plans.append((now_s, wire.decode_plan(message.payload)))
            case _:
                state = wire.decode_state(message.payload)
                if state.status.value == "ready":
                    self.ready.add(state.device)

    def watch(self, seconds: float) -> None:
        """Keep what comes for so long."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self.transport.poll(0.05)

    def until_ready(self, device: str) -> None:
        """Return once the device is ready; RuntimeError after START_S."""
        ends_at = time.monotonic() + START_S
        while device not in self.ready:
            if time.monotonic() > ends_at:
                raise RuntimeError(f"{device} did not become ready")
            self.transport.poll(0.05)


class Stack:
    """The processes of a run, in a folder of their own."""

    def __init__(self, folder: Path, port: int, args: argparse.Namespace) -> None:
        self._folder, self._port, self._args = folder, port, args
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: str, config: dict[str, Any]) -> subprocess.Popen[bytes]:
        """Start an agent or an orchestrator with this configuration."""
        path = self._folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"site": SITE, "broker": {"port": self._port}, **config}))
        with (self._folder / f"{name}.log").open("ab") as log:
            command_line = [sys.executable, "-m", "distree", command, "run", "-c", str(path)]
            self._processes[name] = children.spawn(command_line, stdout=log, stderr=log)
        return self._processes[name]

    def agent(self, device: str, stage: int, **origin: Any) -> subprocess.Popen[bytes]:
        """Start the agent of a stage."""
        pipeline = {"name": PIPELINE, "bundle": "fashion", "stages": [stage], **origin}
        state = str(self._folder / device)
        return self.start(
            device, "agent", {"device": device, "state_dir": state, "telemetry_s": 1.0, "pipelines": [pipeline]}
        )

    def orchestrator(self, goal_ms: float) -> None:
        """Start the orchestrator with this goal, after ending the one that runs."""
        if "orchestrator" in self._processes:
            children.stop(self._processes["orchestrator"], 10.0)
        goal = {"accuracy_drop": self._args.drop, "audit_rate": self._args.audit_rate, "latency_p95_ms": goal_ms}
        pipeline = {"name": PIPELINE, "bundle": "fashion", "goal": goal}
        self.start(
            "orchestrator",
            "orchestrator",
            {"store": {"path": str(self._folder / "store.db")}, "pipelines": [pipeline]},
        )

    def close(self) -> None:
        """End all processes."""
        for process in reversed(self._processes.values()):
            children.stop(process, 5.0)


@contextlib.contextmanager
def slowed(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let the process run for RUNNING_S of every RUNNING_S + STOPPED_S while the block runs."""
    ended = threading.Event()

    def turn() -> None:
        while not ended.is_set() and process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            ended.wait(STOPPED_S)
            process.send_signal(signal.SIGCONT)
            ended.wait(RUNNING_S)

    thread = threading.Thread(target=turn, name="slow")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and write live.json, live.md and live.png into --out."""
    args = _parse(argv)
    goals = (args.goal, args.goal / 2)
    with tempfile.TemporaryDirectory(prefix="distree-live-") as folder, ManagedBroker() as broker:
        observer = Observer(broker.port)
        stack = Stack(Path(folder), broker.port, args)
        try:
            report = _measure(stack, observer, goals, args)
        finally:
            stack.close()
            observer.transport.close()
    print(_markdown(report))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "live.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.out / "live.md").write_text(_markdown(report) + "\n\n![latency over time](live.png)\n")
        _draw(report, args.out / "live.png")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__.split("\n")[0])
    parser.add_argument("--goal", type=float, default=120.0, metavar="MS", help="the first goal (default: %(default)s)")
    parser.add_argument("--phase", type=float, default=60.0, metavar="S", help="of each goal (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=40.0, metavar="HZ", help="inputs (default: %(default)s)")
    parser.add_argument("--drop", default="2%", help="goal accuracy_drop (default: %(default)s)")
    parser.add_argument("--audit-rate", default="10%", help="share of inputs audited (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    return parser.parse_args(argv)


def _measure(stack: Stack, observer: Observer, goals: Sequence[float], args: argparse.Namespace) -> dict[str, Any]:
    stack.orchestrator(goals[0])
    stack.agent("middle", 1)
    last = stack.agent("last", 2)
    for device in ("middle", "last"):
        observer.until_ready(device)
    samples = Path(__file__).parents[1] / "model_zoo" / "samples" / "fashion.npz"
    source = {"kind": "replay", "path": str(samples), "rate_hz": args.rate, "repeat": True}
    stack.agent("camera", 0, origin={"source": source, "deadline_ms": 5000})
    observer.until_ready("camera")
    began, phases = time.monotonic(), []
    with slowed(last):
        for goal in goals:
            stack.orchestrator(goal)
            since = time.monotonic()
            observer.watch(args.phase)
            phases.append((goal, since, time.monotonic()))
    finals = [(at, result) for at, result in observer.results if result.final]
    return {
        "schema": "distree.live/1",
        "rate_hz": args.rate,
        "accuracy_drop": args.drop,
        "audit_rate": args.audit_rate,
        "slow_board": {"stopped_s": STOPPED_S, "running_s": RUNNING_S},
        "phases": [_phase(goal, (since, until), finals) for goal, since, until in phases],
        "bins": _bins(began, finals, phases),
        "plans": [
            {"at_s": at - began, "epoch": plan.epoch, "thresholds": plan.thresholds} for at, plan in observer.plans
        ],
    }


def _phase(goal: float, between: tuple[float, float], finals: list[tuple[float, Result]]) -> dict[str, Any]:
    """The figures of a phase, and of its second half, in which its goal has had time to be met."""
    since, until = between
    halves = {"whole": since, "second_half": (since + until) / 2}
    figures: dict[str, Any] = {"goal_ms": goal}
    for name, start in halves.items():
        results = [result for at, result in finals if start <= at < until]
        latencies = [1000 * result.latency_s for result in results]
        exits = np.bincount([result.exit for result in results if result.exit is not None], minlength=3)
        figures[name] = {
            "inputs": len(results),
            "p50_ms": round(float(np.percentile(latencies, 50)), 2),
            "p95_ms": round(float(np.percentile(latencies, 95)), 2),
            "exit_shares": [round(float(share), 4) for share in exits / exits.sum()],
        }
    return figures


def _bins(
    began: float, finals: list[tuple[float, Result]], phases: list[tuple[float, float, float]]
) -> list[dict[str, float]]:
    bins = []
    for start in np.arange(began, phases[-1][2] - BIN_S, BIN_S):
        latencies = [1000 * result.latency_s for at, result in finals if start <= at < start + BIN_S]
        goal = next(goal for goal, _, until in phases if start < until)
        if latencies:
            p95 = float(np.percentile(latencies, 95))
            bins.append({"at_s": float(start - began), "p95_ms": round(p95, 2), "goal_ms": goal})
    return bins


def _markdown(report: dict[str, Any]) -> str:
    slow = report["slow_board"]
    lines = [
        "# A latency goal halved in mid-run",
        "",
        f"Three agents of bundle fashion at {report['rate_hz']:g} inputs a second, accuracy_drop "
        f"{report['accuracy_drop']}, audit_rate {report['audit_rate']}. The board of the last stage runs for "
        f"{1000 * slow['running_s']:g} ms of every {1000 * (slow['running_s'] + slow['stopped_s']):g} ms.",
        "",
        "`python -m benchmarks.live --out docs/results` makes this anew.",
        "",
        "| goal p95 ms | part | inputs | p50 ms | p95 ms | exits 0 / 1 / 2 |",
        "|---|---|---|---|---|---|",
    ]
    for phase in report["phases"]:
        for part, name in (("whole", "whole"), ("second_half", "second half")):
            figures = phase[part]
            shares = " / ".join(f"{100 * share:.1f} %" for share in figures["exit_shares"])
            lines.append(
                f"| {phase['goal_ms']:g} | {name} | {figures['inputs']} | {figures['p50_ms']:.1f} | "
                f"{figures['p95_ms']:.1f} | {shares} |"
            )
    return "\n".join(lines)


def _draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    bins = report["bins"]
    times = [one["at_s"] for one in bins]
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    axes.step(times, [one["p95_ms"] for one in bins], where="post", label=f"p95 of {BIN_S:g} s")
    axes.step(times, [one["goal_ms"] for one in bins], where="post", color="black", linestyle="--", label="goal")
    axes.set_xlabel("seconds")
    axes.set_ylabel("latency (ms)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
