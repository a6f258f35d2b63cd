"""`distree demo`: the whole system on one machine, as separate processes, answering real images."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import yaml

from distree import children, topics, wire
from distree.bundle import Bundle, load_bundle, zoo_folder
from distree.errors import BrokerError, ConfigError, DistreeError, RemoteProtocolError
from distree.protocols import Array, Received
from distree.results import split_address
from distree.topics import ROOT, Kind
from distree.transport.paho import PahoTransport
from distree.types import BrokerSettings, DeviceStatus, Result

PIPELINE = "demo"
START_S = 60.0
"""Longest wait for an agent to become ready: the slowest boards import numpy for seconds."""

STALL_S = 30.0
"""Longest silence before the demo gives up."""

DEADLINE_MS = 10_000
"""Generous, so that what is shown is the exit policy and not this machine's load."""

_PUBLISH_OVERHEAD_BYTES = 13
"""Bytes of an MQTT 5 PUBLISH around topic and payload: header, lengths, packet id, message expiry."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree demo`."""
    parser.add_argument("--inputs", type=int, default=1000, metavar="N", help="how many samples (default: %(default)s)")
    parser.add_argument(
        "--bundle", default="fashion", help="bundle in the model zoo, or a folder (default: %(default)s)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help=".npz with arrays input and label (default: the samples)"
    )
    parser.add_argument(
        "--broker",
        default="auto",
        metavar="auto|HOST:PORT",
        help="start one, or use this one (default: %(default)s)",
    )
    parser.add_argument(
        "--engine", choices=["auto", "mosquitto", "embedded"], default="auto", help="which one to start"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=250.0,
        metavar="HZ",
        help="inputs a second, 0 for all it can (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and every answer")
    parser.epilog = "example: distree demo --inputs 200 --json demo.json"


@dataclass(slots=True)
class Watch:
    """What the demo sees as an ordinary subscriber."""

    ready: set[str] = field(default_factory=set)
    results: dict[str, Result] = field(default_factory=dict)
    duplicates: int = 0
    late: int = 0
    messages: Counter[str] = field(default_factory=Counter)
    traffic: Counter[str] = field(default_factory=Counter)
    heard_at: float = 0.0
    first_at: float | None = None

    def take(self, message: Received) -> None:
        """Count one message by the kind of its topic."""
        address = topics.parse(message.topic)
        self.heard_at = time.monotonic()
        match address.kind:
            case Kind.STATE:
                self._take_state(message.payload)
            case Kind.RESULT:
                self._take_result(wire.decode_result(message.payload))
            case Kind.STAGE | Kind.OUTCOME:
                hop = f"stage {address.stage}" if address.kind is Kind.STAGE else "outcome"
                self.messages[hop] += 1
                self.traffic[hop] += len(message.payload) + len(message.topic) + _PUBLISH_OVERHEAD_BYTES

    def _take_state(self, payload: bytes) -> None:
        state = wire.decode_state(payload)
        (self.ready.add if state.status is DeviceStatus.READY else self.ready.discard)(state.device)

    def _take_result(self, result: Result) -> None:
        self.first_at = self.first_at or time.monotonic()
        if not result.final:
            self.late += 1
        elif result.input in self.results:
            self.duplicates += 1
        else:
            self.results[result.input] = result

    def bytes_per_input(self) -> float:
        """Mean bytes between boards for one input, envelopes and topics counted."""
        return sum(self.traffic.values()) / max(1, len(self.results))

    def bytes_without_exits(self) -> float:
        """What the same messages would come to if every input made every hop."""
        return sum(self.traffic[hop] / self.messages[hop] for hop in self.messages)


class _Listener:
    def __init__(self, transport: PahoTransport, watch: Watch) -> None:
        self._transport = transport
        self._watch = watch

    def connected(self) -> None:
        pass

    def disconnected(self, why: str) -> None:
        print(f"demo: {why}", file=sys.stderr)

    def published(self, token: str) -> None:
        pass

    def received(self, message: Received) -> None:
        self._transport.acknowledge(message.token)
        with contextlib.suppress(RemoteProtocolError):
            self._watch.take(message)


@dataclass(frozen=True, slots=True)
class Samples:
    """What is streamed: the file, how many of it, how many a second (None: all it can), and the true labels."""

    path: Path
    count: int
    rate_hz: float | None
    labels: Array


class Demo:
    """Starts everything, watches, and stops everything in the reverse order."""

    def __init__(self, bundle: Bundle, samples: Samples, folder: Path, address: tuple[str, int], broker: str) -> None:
        self.bundle = bundle
        self.samples = samples
        self.folder = folder
        self.broker = broker
        self.site = f"demo-{uuid4().hex[:8]}"
        self.settings = BrokerSettings(host=address[0], port=address[1])
        self.devices = [f"board{k}" for k in range(len(bundle.stages))]
        self.watch = Watch()
        self.wall_s = 0.0
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._transport = PahoTransport(self.settings, client_id=f"{self.site}-watch", clean=True, receive_maximum=256)

    def __enter__(self) -> Demo:
        site = f"{ROOT}/{self.site}"
        filters = ["device/+/state", f"pipeline/{PIPELINE}/result/+", f"pipeline/{PIPELINE}/stage/+"]
        filters.append(f"pipeline/{PIPELINE}/outcome/+")
        self._transport.open(_Listener(self._transport, self.watch), [(f"{site}/{name}", 1) for name in filters])
        self._transport.connect_now(10.0)
        return self

    def __exit__(self, *_: object) -> None:
        processes = [process for _, process in reversed(self._processes)]
        if processes:
            # The origin by itself: it answers what is pending while the boards it waits for are still there.
            children.stop(processes[0], 5.0)
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            children.stop(process, 5.0)
        self._forget_retained()
        self._transport.close()

    def _forget_retained(self) -> None:
        """Leave nothing of the demo on a broker that was there before."""
        if not self._transport.online:
            return
        names = [topics.device(self.site, device, kind) for device in self.devices for kind in (Kind.STATE, Kind.META)]
        with self._transport.lock:
            for name in (*names, topics.plan(self.site, PIPELINE)):
                self._transport.publish(name, b"", qos=1, retain=True)

    def start(self) -> None:
        """Start orchestrator and agents; the origin last, so that every input finds the other stages ready."""
        self._spawn("orchestrator", ["orchestrator", "run"], self._orchestrator_config())
        later = self.devices[1:]
        for k, device in enumerate(later, start=1):
            self._spawn(device, ["agent", "run"], self._agent_config(k))
        self._await(lambda: set(later) <= self.watch.ready, START_S, "agents to become ready")
        self._spawn(self.devices[0], ["agent", "run"], self._agent_config(0))
        self._await(lambda: self.devices[0] in self.watch.ready, START_S, "the origin to become ready")

    def _spawn(self, name: str, command: list[str], config: dict[str, Any]) -> None:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        with (self.folder / f"{name}.log").open("wb") as errors:
            argv = [sys.executable, "-m", "distree", *command, "-c", str(path)]
            self._processes.append((name, children.spawn(argv, stdout=errors, stderr=errors)))

    def _agent_config(self, k: int) -> dict[str, Any]:
        pipeline: dict[str, Any] = {
            "name": PIPELINE,
            "bundle": str(self.bundle.path.resolve()),
            "stages": [k],
        }
        if k == 0:
            source = {
                "kind": "replay",
                "path": str(self.samples.path.resolve()),
                "limit": self.samples.count,
                "rate_hz": self.samples.rate_hz,
            }
            pipeline["origin"] = {
                "deadline_ms": DEADLINE_MS,
                "pending": 8,
                "silence_ms": 2000,
                "source": source,
            }
        return {
            "site": self.site,
            "device": self.devices[k],
            "broker": {"host": self.settings.host, "port": self.settings.port},
            "state_dir": str(self.folder / self.devices[k]),
            "pipelines": [pipeline],
        }

    def _orchestrator_config(self) -> dict[str, Any]:
        return {
            "site": self.site,
            "broker": {"host": self.settings.host, "port": self.settings.port},
            "store": {"path": str(self.folder / "orchestrator.db")},
            "pipelines": [{"name": PIPELINE, "bundle": str(self.bundle.path.resolve())}],
        }

    def _await(self, done: Any, timeout_s: float, what: str) -> None:
        ends_at = time.monotonic() + timeout_s
        while not done():
            self._transport.poll(0.1)
            self._check_processes()
            if time.monotonic() > ends_at:
                raise BrokerError(f"waited {timeout_s:g} s in vain for {what}")

    def _check_processes(self) -> None:
        for name, process in self._processes:
            if process.poll() is not None:
                lines = (self.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
                raise DistreeError(
                    f"{name} ended with status {process.returncode}: {lines[-1] if lines else 'no word'}"
                )

    def stream(self) -> Iterator[None]:
        """Poll until every sample is answered, or nothing came for STALL_S; yields about five times a second."""
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
        self.wall_s = time.monotonic() - (self.watch.first_at or time.monotonic())
        # What the boards still tell each other about answered inputs is part of the bytes.
        for _ in range(3):
            self._transport.poll(0.1)


def run(args: argparse.Namespace) -> int:
    """Carry out `distree demo`; 0 only if every input was answered."""
    bundle = load_bundle(args.bundle)
    samples = _samples(bundle, args.data, args.inputs, args.rate)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distree-demo-")))
        address, broker = _broker(args, stack)
        print(f"broker: {broker}")
        demo = stack.enter_context(Demo(bundle, samples, folder, address, broker))
        print(f"starting an orchestrator and {len(demo.devices)} agents for bundle {bundle.name} {bundle.revision} …")
        demo.start()
        screen = Screen(demo)
        for _ in demo.stream():
            screen.show()
        screen.end()
        figures = Figures(demo)
    print("\n".join(figures.lines()))
    if args.json is not None:
        _write_json(args.json, figures)
    return 0 if figures.answered == samples.count else 1


def _write_json(path: Path, figures: Figures) -> None:
    try:
        path.write_text(json.dumps(figures.as_json(), indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written: {error.strerror or error}") from None


def _samples(bundle: Bundle, data: Path | None, count: int, rate_hz: float) -> Samples:
    if not 0 <= rate_hz <= 100_000:
        raise ConfigError(f"--rate: expected 0 to 100000, received {rate_hz:g}")
    zoo = zoo_folder()
    path = data or (zoo.parent / "samples" / f"{bundle.name}.npz" if zoo else None)
    if path is None or not path.is_file():
        raise ConfigError(f"no samples for bundle {bundle.name} ({path}); give --data FILE.npz with input and label")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            labels: Array = arrays["label"]
    except Exception as error:  # noqa: BLE001 - of a file that is not an .npz numpy raises whatever it likes
        why = " ".join(str(error).split())
        raise ConfigError(f"{path}: {why}; an .npz file with arrays 'input' and 'label' is needed") from None
    if not 0 < count <= len(labels):
        raise ConfigError(f"--inputs: expected 1 to {len(labels)} (the samples in {path.name}), received {count}")
    return Samples(path, count, rate_hz or None, labels[:count])


def _broker(args: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[tuple[str, int], str]:
    if args.broker != "auto":
        return split_address(args.broker), f"the one at {args.broker}"
    from broker_config.managed import ManagedBroker

    managed = stack.enter_context(ManagedBroker(engine=args.engine))
    return (managed.host, managed.port), managed.describe()


class Screen:
    """Progress and a table that is redrawn in place on a terminal; elsewhere one line a second."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._live = sys.stdout.isatty()
        self._drawn = 0
        self._printed_at = 0.0

    def show(self) -> None:
        """Draw the state of things."""
        watch, count = self._demo.watch, self._demo.samples.count
        done = len(watch.results)
        if not self._live:
            if time.monotonic() - self._printed_at >= 1.0 and done < count:
                self._printed_at = time.monotonic()
                print(f"  {done} of {count} answered", flush=True)
            return
        bar = "█" * (30 * done // count)
        lines = [f"  {bar:░<30} {done} of {count} answered", *exit_table(self._demo)]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        print(up + "\n".join(f"\x1b[2K{line}" for line in lines), flush=True)
        self._drawn = len(lines)

    def end(self) -> None:
        """Take the live table away: the summary repeats it."""
        if self._live and self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="")


def exit_table(demo: Demo) -> list[str]:
    """Return the table of exits: where answered, share, latency and accuracy."""
    results = list(demo.watch.results.values())
    lines = ["  exit  answered by   share   latency ms p50     p95   accuracy"]
    for k, device in enumerate(demo.devices):
        here = [result for result in results if result.exit == k]
        if not here:
            lines.append(f"  {k:>4}  {device:<11} {0:>5.1f} %")
            continue
        p50, p95 = np.percentile([result.latency_s * 1e3 for result in here], [50, 95])
        right = np.mean([result.class_id == demo.samples.labels[int(result.input)] for result in here])
        share = 100 * len(here) / len(results)
        lines.append(f"  {k:>4}  {device:<11} {share:>5.1f} %   {p50:>14.2f} {p95:>7.2f}   {100 * right:>6.1f} %")
    return lines


class Figures:
    """The demo's outcome, for people and as JSON."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._results = sorted(demo.watch.results.values(), key=lambda result: int(result.input))
        self.answered = len(self._results)
        labels = demo.samples.labels
        right = sum(result.class_id == labels[int(result.input)] for result in self._results)
        self.accuracy = right / max(1, self.answered)
        self._reasons = Counter(result.reason for result in self._results)
        latencies = [result.latency_s * 1e3 for result in self._results] or [0.0]
        self._latency_ms = dict(zip(("p50", "p95", "p99"), np.percentile(latencies, [50, 95, 99]), strict=True))

    def lines(self) -> list[str]:
        """Return the summary."""
        demo, watch = self._demo, self._demo.watch
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._reasons.most_common())
        spent, without = watch.bytes_per_input(), watch.bytes_without_exits()
        return [
            f"{self.answered} of {demo.samples.count} answered in {demo.wall_s:.1f} s ({reasons}), "
            f"{watch.duplicates} duplicates, {watch.late} late",
            f"accuracy {100 * self.accuracy:.1f} %, latency p50 {self._latency_ms['p50']:.2f} ms, "
            f"p95 {self._latency_ms['p95']:.2f} ms",
            "",
            *exit_table(demo),
            "",
            f"bytes between boards per input: {spent:,.0f}, without early exit {without:,.0f}"
            + (f" ({100 * spent / without:.0f} %)" if without else ""),
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the figures and one entry per answer."""
        demo = self._demo
        exits = Counter(result.exit for result in self._results)
        return {
            "bundle": demo.bundle.name,
            "revision": demo.bundle.revision,
            "broker": demo.broker,
            "inputs": demo.samples.count,
            "answered": self.answered,
            "duplicates": demo.watch.duplicates,
            "late": demo.watch.late,
            "accuracy": self.accuracy,
            "reasons": dict(self._reasons),
            "exit_share": [exits[k] / max(1, self.answered) for k in range(len(demo.devices))],
            "latency_ms": {name: float(value) for name, value in self._latency_ms.items()},
            "bytes_per_input": demo.watch.bytes_per_input(),
            "bytes_per_input_no_early_exit": demo.watch.bytes_without_exits(),
            "wall_s": demo.wall_s,
            "results": [
                {
                    "index": int(result.input),
                    "label": result.label,
                    "class_id": result.class_id,
                    "exit": result.exit,
                    "reason": result.reason,
                    "latency_ms": result.latency_s * 1e3,
                }
                for result in self._results
            ],
        }
