"""What a live pipeline does when its goal changes, and when its images do.

Three agents, a broker and an orchestrator, all processes of their own:

    python -m benchmarks.live --out docs/results

*Goal*: the board of the last stage is made slow: it is stopped for most of each period, as a board is that has other
things to do. The goal `latency_p95_ms` holds at first though no input leaves early; then it is halved in
orchestrator.yaml and the orchestrator restarted. Latencies are those in the results, from the origin's acceptance to
its answer.

*Shift*: once exits are open the images are inverted, for which the first exit is sure of itself and wrong. How many
audits pass until the alarm, and how long after it does the last input leave early by the old thresholds?
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from broker_config.managed import ManagedBroker
from distree import child_processes, topics
from distree.broker_settings import BrokerSettings
from distree.errors import Problem
from distree.messages.codec import decode
from distree.messages.device import DeviceState
from distree.messages.plan import Plan
from distree.messages.result import Result
from distree.thresholds import NEVER, plain_thresholds
from distree.topics import Kind
from distree.transport import make_transport
from distree.transport.base import QuietListener, Received

SITE, PIPELINE = "live", "fashion"
STOPPED_S, RUNNING_S = 0.06, 0.015
LIMIT_S = 120.0
BIN_S = 2.0
TELEMETRY_S = 1.0
SHIFT_RATE_HZ, SHIFT_AUDIT_RATE = 100.0, "20%"
SAMPLES = Path(__file__).parents[1] / "model_zoo" / "samples" / "fashion.npz"


class Observer(QuietListener):
    """Keeps the results of the site with the seconds at which they came, and its plans."""

    def __init__(self, port: int) -> None:
        self.results: list[tuple[float, Result]] = []
        self.plans: list[tuple[float, Plan]] = []
        self.ready: set[str] = set()
        self.transport = make_transport(BrokerSettings(port=port), client_id="observer", receive_maximum=512)
        anyone = topics.of_origin(SITE, PIPELINE, Kind.RESULT, "+")
        states = topics.device(SITE, "+", Kind.STATE)
        self.transport.open(self, [(anyone, 1), (states, 1), (topics.plan(SITE, PIPELINE), 1)])
        self.transport.connect_now(10.0)

    def disconnected(self, why: Problem) -> None:
        """Give up: a broker that goes away spoils the run."""
        raise RuntimeError(f"the broker went away: {why}")

    def received(self, message: Received) -> None:
        """Keep what came."""
        self.transport.acknowledge(message.token)
        now_s = time.monotonic()
        match topics.parse(message.topic).kind:
            case Kind.RESULT:
                self.results.append((now_s, decode(Result, message.payload)))
            case Kind.PLAN:
                self.plans.append((now_s, decode(Plan, message.payload)))
            case _:
                state = decode(DeviceState, message.payload)
                if state.status.value == "ready":
                    self.ready.add(state.device)

    def watch(self, seconds: float) -> None:
        """Keep what comes for so long."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self.transport.poll(0.05)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Return once the condition holds; RuntimeError after LIMIT_S."""
        ends_at = time.monotonic() + LIMIT_S
        while not condition():
            if time.monotonic() > ends_at:
                raise RuntimeError(f"waited {LIMIT_S:g} s for {what}")
            self.transport.poll(0.05)


class Stack:
    """The processes of a run, in a folder of their own."""

    def __init__(self, folder: Path, port: int, args: argparse.Namespace) -> None:
        self.folder, self.args, self._port = folder, args, port
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: str, config: dict[str, Any]) -> subprocess.Popen[bytes]:
        """Start an agent or an orchestrator with this configuration."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"site": SITE, "broker": {"port": self._port}, **config}))
        with (self.folder / f"{name}.log").open("ab") as log:
            command_line = [sys.executable, "-m", "distree", command, "run", "-c", str(path)]
            self._processes[name] = child_processes.spawn(command_line, stdout=log, stderr=log)
        return self._processes[name]

    def agent(self, device: str, stage: int, **origin: Any) -> subprocess.Popen[bytes]:
        """Start the agent of a stage."""
        pipeline = {"name": PIPELINE, "bundle": "fashion", "stages": [stage], **origin}
        state = str(self.folder / device)
        return self.start(
            device,
            "agent",
            {"device": device, "state_dir": state, "telemetry_interval_s": TELEMETRY_S, "pipelines": [pipeline]},
        )

    def orchestrator(self, goal: dict[str, Any]) -> None:
        """Start the orchestrator with this goal, after ending the one that runs."""
        if "orchestrator" in self._processes:
            child_processes.stop(self._processes["orchestrator"], 10.0)
        pipeline = {"name": PIPELINE, "bundle": "fashion", "goal": {"accuracy_drop": self.args.drop, **goal}}
        self.start(
            "orchestrator",
            "orchestrator",
            {"store": {"path": str(self.folder / "store.db")}, "pipelines": [pipeline]},
        )

    def close(self) -> None:
        """End all processes."""
        for process in reversed(self._processes.values()):
            child_processes.stop(process, 5.0)


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
    report = {
        "date": datetime.date.today().isoformat(),
        "schema": "distree.live/1",
        "accuracy_drop": args.drop,
        "goal": _on_a_site(_follow_goal, args),
        "shift": [_on_a_site(_follow_shift, args) for _ in range(args.shifts)],
    }
    text = _markdown(report)
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "live.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.out / "live.md").write_text(text + "\n\n![latency over time](live.png)\n")
        _draw(report["goal"], args.out / "live.png")
    return 0


Scenario = Callable[[Stack, Observer], dict[str, Any]]


def _on_a_site(scenario: Scenario, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="distree-live-") as folder, ManagedBroker() as broker:
        observer = Observer(broker.port)
        stack = Stack(Path(folder), broker.port, args)
        try:
            return scenario(stack, observer)
        finally:
            stack.close()
            observer.transport.close()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__.split("\n")[0])
    parser.add_argument("--goal", type=float, default=120.0, metavar="MS", help="the first goal (default: %(default)s)")
    parser.add_argument("--phase", type=float, default=60.0, metavar="S", help="of each goal (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=40.0, metavar="HZ", help="inputs (default: %(default)s)")
    parser.add_argument("--drop", default="2%", help="goal accuracy_drop (default: %(default)s)")
    parser.add_argument("--audit-rate", default="10%", help="share of inputs audited (default: %(default)s)")
    parser.add_argument("--shifts", type=int, default=5, metavar="N", help="runs with a shift (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    return parser.parse_args(argv)


def _follow_goal(stack: Stack, observer: Observer) -> dict[str, Any]:
    args = stack.args
    goals = (args.goal, args.goal / 2)
    stack.orchestrator({"audit_rate": args.audit_rate, "latency_p95_ms": goals[0]})
    last = _boards(stack, observer)
    _camera(stack, observer, SAMPLES, args.rate, repeat=True)
    began, phases = time.monotonic(), []
    with slowed(last):
        for goal in goals:
            stack.orchestrator({"audit_rate": args.audit_rate, "latency_p95_ms": goal})
            since = time.monotonic()
            observer.watch(args.phase)
            phases.append((goal, since, time.monotonic()))
    finals = [(at, result) for at, result in observer.results if result.final]
    return {
        "rate_hz": args.rate,
        "audit_rate": args.audit_rate,
        "slow_board": {"stopped_s": STOPPED_S, "running_s": RUNNING_S},
        "phases": [_phase(goal, (since, until), finals) for goal, since, until in phases],
        "bins": _bins(began, finals, phases),
        "plans": [
            {"at_s": at - began, "epoch": plan.epoch, "thresholds": plain_thresholds(plan.thresholds)}
            for at, plan in observer.plans
        ],
    }


def _follow_shift(stack: Stack, observer: Observer) -> dict[str, Any]:
    with np.load(SAMPLES) as arrays:
        images, labels = arrays["input"], arrays["label"]
    path = stack.folder / "shifted.npz"
    np.savez(path, input=np.concatenate([images] * 4 + [255 - images] * 8), label=np.tile(labels, 12))
    stack.orchestrator({"audit_rate": SHIFT_AUDIT_RATE})
    _boards(stack, observer)
    _camera(stack, observer, path, SHIFT_RATE_HZ, repeat=False)
    normal = 4 * len(images)
    observer.until(lambda: sum(int(result.input) >= normal for _, result in observer.results) > 0, "inverted images")
    shifted_at_s = observer.results[-1][0]
    opened = observer.plans[-1][1]
    if not is_open(opened):
        raise RuntimeError(f"no exit was open when the images changed, after {normal} inputs")
    observer.until(lambda: not is_open(observer.plans[-1][1]), "the alarm")
    alarm_at_s, shut = next((at, plan) for at, plan in observer.plans if at > shifted_at_s and not is_open(plan))
    observer.watch(5.0)
    early = [at for at, result in observer.results if result.epoch < shut.epoch and result.reason == "confident"]
    inputs = sum(shifted_at_s <= at < alarm_at_s and result.final for at, result in observer.results)
    return {
        "rate_hz": SHIFT_RATE_HZ,
        "audit_rate": SHIFT_AUDIT_RATE,
        "inputs_until_alarm": inputs,
        "seconds_until_alarm": round(alarm_at_s - shifted_at_s, 3),
        "last_early_answer_after_alarm_s": round(max(0.0, max(early) - alarm_at_s), 3),
        "telemetry_s": TELEMETRY_S,
    }


def is_open(plan: Plan) -> bool:
    """Whether any input may leave early by this plan."""
    return min(plan.thresholds) < NEVER


def _boards(stack: Stack, observer: Observer) -> subprocess.Popen[bytes]:
    stack.agent("middle", 1)
    last = stack.agent("last", 2)
    for device in ("middle", "last"):
        observer.until(lambda device=device: device in observer.ready, device)
    return last


def _camera(stack: Stack, observer: Observer, path: Path, rate_hz: float, *, repeat: bool) -> None:
    source = {"kind": "replay", "path": str(path), "rate_hz": rate_hz, "repeat": repeat}
    stack.agent("camera", 0, origin={"source": source, "deadline_ms": 5000})
    observer.until(lambda: "camera" in observer.ready, "camera")


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
    goal, slow = report["goal"], report["goal"]["slow_board"]
    lines = [
        "# Tuning, live",
        "",
        "What a live pipeline does when its latency goal is halved, and when its images change: real agents with the "
        f"bundle `fashion`, a real broker and orchestrator, accuracy_drop {report['accuracy_drop']}. Written by "
        f"`python -m benchmarks.live --out docs/results` on {report['date']}.",
        "",
        "## A latency goal is halved",
        "",
        f"{goal['rate_hz']:g} inputs per second, audit_rate {goal['audit_rate']}. The board of the last stage is "
        f"slowed down: it runs for {1000 * slow['running_s']:g} ms in every "
        f"{1000 * (slow['running_s'] + slow['stopped_s']):g} ms.",
        "",
        "| p95 goal, ms | part | inputs | p50, ms | p95, ms | share of exits 0 / 1 / 2 |",
        "|---|---|---|---|---|---|",
    ]
    for phase in goal["phases"]:
        for part, name in (("whole", "whole"), ("second_half", "second half")):
            figures = phase[part]
            shares = " / ".join(f"{100 * share:.1f} %" for share in figures["exit_shares"])
            lines.append(
                f"| {phase['goal_ms']:g} | {name} | {figures['inputs']} | {figures['p50_ms']:.1f} | "
                f"{figures['p95_ms']:.1f} | {shares} |"
            )
    if report["shift"]:
        lines += _shift_lines(report["shift"])
    return "\n".join(lines)


def _shift_lines(runs: list[dict[str, Any]]) -> list[str]:
    one = runs[0]
    return [
        "",
        "## The images change",
        "",
        f"All images are inverted from some moment on. {one['rate_hz']:g} inputs per second, audit_rate "
        f"{one['audit_rate']}, telemetry every {one['telemetry_s']:g} s. The table gives the inputs and the time from "
        "the first inverted image to the alarm, and how long after the alarm the last early answer at the old "
        "thresholds was given:",
        "",
        "| run | inputs until the alarm | seconds until the alarm | last early answer, seconds after the alarm |",
        "|---|---|---|---|",
        *(
            f"| {number} | {run['inputs_until_alarm']} | {run['seconds_until_alarm']:.2f} | "
            f"{run['last_early_answer_after_alarm_s']:.3f} |"
            for number, run in enumerate(runs, 1)
        ),
    ]


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
