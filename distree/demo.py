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
from distree.types import BrokerSettings, DeviceStatus, Result, StageTelemetry, Telemetry

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
REPORTS_S = 5.0
"""Longest wait for the boards' reports on all they did."""

ORDER_SEED = 20
"""Of the order in which test images are taken from a file that is sorted by class."""

_PUBLISH_OVERHEAD_BYTES = 13
"""Bytes of an MQTT 5 PUBLISH around topic and payload: header, lengths, packet id, message expiry."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree demo`."""
    parser.add_argument("--inputs", type=int, default=1000, metavar="N", help="how many samples (default: %(default)s)")
    parser.add_argument(
        "--bundle", default="fashion", help="bundle in the model zoo, or a folder (default: %(default)s)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help=".npz with arrays input and label, or of JPEG files with arrays jpeg, offset, label and is_test, of which "
        "the test images are taken in a fixed random order (default: the samples)",
    )
    parser.add_argument(
        "--mode",
        choices=["gated", "eager"],
        default="gated",
        help="of wide stages: branches wait to be told to go on, or go on until told to stop (default: %(default)s)",
    )
    parser.add_argument(
        "--fuser",
        choices=["origin", "board"],
        default="origin",
        help="of wide stages: who fuses the embeddings, the origin or a board of its own (default: %(default)s)",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One agent of the demo: what it serves."""

    device: str
    stages: tuple[int, ...] = ()
    branch: int | None = None
    fuses: bool = False
    is_origin: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """Who does what: a board for each plain stage, one for each branch of wide stages in a row, and an origin.

    The origin serves stage 0 if that is plain. It fuses, unless a board is there for that alone (`fuser`).
    """

    bundle: Bundle
    boards: tuple[Board, ...]
    groups: tuple[tuple[int, ...], ...]
    fuser: str | None
    is_eager: bool

    @property
    def origin(self) -> Board:
        """The board that the inputs enter at."""
        return next(board for board in self.boards if board.is_origin)

    def answers_at(self, k: int) -> str:
        """Who decides at exit `k`."""
        if self.bundle.stages[k].branches:
            return f"fused at {self.fuser or self.origin.device}"
        return next(board.device for board in self.boards if k in board.stages)

    def messages_of_all_hops(self) -> dict[str, int]:
        """Messages that reach boards for an input that makes every hop, by kind of hop."""
        counts = {"outcome": 1, "decision": 0}
        for k, branches in enumerate(self.bundle.branch_counts):
            counts[f"stage {k}"] = max(1, branches)
            counts[f"exit {k}"] = branches
        if not self.is_eager:
            counts["decision"] = sum(
                self.bundle.branch_counts[k] for group in self.groups for k in group if k != group[-1]
            )
        return counts


def plan_site(bundle: Bundle, *, fuser: str, mode: str) -> Site:
    """Place a bundle's stages on boards; ConfigError for a `fuser` where nothing is fused."""
    from device_agent.startup import wide_groups

    groups = wide_groups(bundle)
    if fuser == "board" and not groups:
        raise ConfigError(f"--fuser board: bundle {bundle.name} has no wide stage, so nothing is fused")
    boards: list[Board] = []
    if bundle.branch_counts[0]:
        boards.append(Board(device="origin", is_origin=True))
    for k, branches in enumerate(bundle.branch_counts):
        if not branches:
            boards.append(Board(device=f"board{k}", stages=(k,), is_origin=k == 0))
    for group in groups:
        name = "branch" if len(groups) == 1 else f"stage{group[0]}-branch"
        boards += [
            Board(device=f"{name}{b}", stages=tuple(group), branch=b) for b in range(bundle.branch_counts[group[0]])
        ]
    if fuser == "board":
        boards.append(Board(device="fuser", fuses=True))
    return Site(
        bundle=bundle,
        boards=tuple(boards),
        groups=tuple(map(tuple, groups)),
        fuser="fuser" if fuser == "board" else None,
        is_eager=mode == "eager",
    )


@dataclass(slots=True)
class Watch:
    """What the demo sees as an ordinary subscriber."""

    ready: set[str] = field(default_factory=set)
    results: dict[str, Result] = field(default_factory=dict)
    duplicates: int = 0
    late: int = 0
    branch_counts: tuple[int, ...] = ()
    """Branches of each stage: so many boards get a message to a wide one."""
    messages: Counter[str] = field(default_factory=Counter)
    traffic: Counter[str] = field(default_factory=Counter)
    telemetry: dict[str, Telemetry] = field(default_factory=dict)
    heard_at: float = 0.0
    first_at: float | None = None

    def take(self, message: Received) -> None:
        """Count one message by the kind of its topic."""
        address = topics.parse(message.topic)
        if address.kind is Kind.TELEMETRY:
            report = wire.decode_telemetry(message.payload)
            self.telemetry[report.device] = report
            return
        self.heard_at = time.monotonic()
        match address.kind:
            case Kind.STATE:
                self._take_state(message.payload)
            case Kind.RESULT:
                self._take_result(wire.decode_result(message.payload))
            case Kind.STAGE if address.stage is not None and address.stage < len(self.branch_counts):
                self._count(message, f"stage {address.stage}", max(1, self.branch_counts[address.stage]))
            case Kind.EXIT:
                self._count(message, f"exit {wire.decode_embedding(message.payload).stage}")
            case Kind.OUTCOME | Kind.DECISION:
                self._count(message, address.kind.value)

    def _count(self, message: Received, hop: str, boards: int = 1) -> None:
        """Count a message between boards that `boards` of them receive."""
        self.messages[hop] += boards
        self.traffic[hop] += boards * (len(message.payload) + len(message.topic) + _PUBLISH_OVERHEAD_BYTES)

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

    def bytes_without_exits(self, site: Site) -> float:
        """What the same messages would come to if every input made every hop."""
        counts = site.messages_of_all_hops()
        return sum(counts.get(hop, 0) * self.traffic[hop] / self.messages[hop] for hop in self.messages)

    def missing(self) -> Counter[int]:
        """How many answers came about without a branch, by branch."""
        return Counter(branch for result in self.results.values() for branch in result.missing)

    def stage_reports(self) -> Iterator[StageTelemetry]:
        """Give the last report of every board on each of its stages."""
        for report in self.telemetry.values():
            for part in report.pipelines:
                yield from part.stages


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
    """What is streamed: the file, how many of it, how many a second (None: all it can), and the true labels.

    `places` has, by the name of an input in results, its place in the data that it was taken from; `labels` the true
    class at each place.
    """

    path: Path
    count: int
    rate_hz: float | None
    places: dict[str, int]
    labels: Array

    def place(self, result: Result) -> int:
        """Return the place in the data of the input that was answered."""
        return self.places[result.input]

    def is_right(self, result: Result) -> bool:
        """Whether an answer is the true class."""
        return bool(result.class_id == self.labels[self.place(result)])


class Demo:
    """Starts everything, watches, and stops everything in the reverse order."""

    def __init__(self, plan: Site, samples: Samples, folder: Path, address: tuple[str, int], broker: str) -> None:
        self.plan = plan
        self.bundle = plan.bundle
        self.samples = samples
        self.folder = folder
        self.broker = broker
        self.site = f"demo-{uuid4().hex[:8]}"
        self.settings = BrokerSettings(host=address[0], port=address[1])
        self.devices = [board.device for board in plan.boards]
        self.watch = Watch(branch_counts=plan.bundle.branch_counts)
        self.wall_s = 0.0
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._killed: set[str] = set()
        self._transport = PahoTransport(self.settings, client_id=f"{self.site}-watch", clean=True, receive_maximum=256)

    def __enter__(self) -> Demo:
        site = f"{ROOT}/{self.site}"
        filters = ["device/+/state", f"pipeline/{PIPELINE}/result/+", f"pipeline/{PIPELINE}/stage/+"]
        filters.append(f"pipeline/{PIPELINE}/outcome/+")
        if self.bundle.is_wide:
            filters += [f"pipeline/{PIPELINE}/exit/+", f"pipeline/{PIPELINE}/decision/+", "device/+/telemetry"]
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
        origin = self.plan.origin
        others = [board for board in self.plan.boards if board is not origin]
        for board in others:
            self._spawn(board.device, ["agent", "run"], self._agent_config(board))
        self._await(lambda: {board.device for board in others} <= self.watch.ready, START_S, "agents to become ready")
        self._spawn(origin.device, ["agent", "run"], self._agent_config(origin))
        self._await(lambda: origin.device in self.watch.ready, START_S, "the origin to become ready")

    def _spawn(self, name: str, command: list[str], config: dict[str, Any]) -> None:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        with (self.folder / f"{name}.log").open("wb") as errors:
            argv = [sys.executable, "-m", "distree", *command, "-c", str(path)]
            self._processes.append((name, children.spawn(argv, stdout=errors, stderr=errors)))

    def _agent_config(self, board: Board) -> dict[str, Any]:
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
            "broker": {"host": self.settings.host, "port": self.settings.port},
            "state_dir": str(self.folder / board.device),
            "pipelines": [pipeline],
            **({"telemetry_s": TELEMETRY_S} if self.bundle.is_wide else {}),
        }

    def _origin_config(self) -> dict[str, Any]:
        source = {
            "kind": "replay",
            "path": str(self.samples.path.resolve()),
            "limit": self.samples.count,
            "rate_hz": self.samples.rate_hz,
        }
        origin = {
            "deadline_ms": DEADLINE_MS,
            "pending": 8,
            "silence_ms": 2000,
            "source": source,
            "mode": "eager" if self.plan.is_eager else "gated",
        }
        return origin if self.plan.fuser is None else {**origin, "fuser": self.plan.fuser}

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
        if self.bundle.is_wide:
            self._await_reports()

    def _await_reports(self) -> None:
        """Wait for a report of every board that was made after the last answer; boards that are gone owe none."""
        ends_at = time.monotonic() + REPORTS_S
        before = {device: report.sequence for device, report in self.watch.telemetry.items()}
        owing = self.watch.ready & before.keys()
        while owing and time.monotonic() < ends_at:
            self._transport.poll(0.1)
            # One more than the next: that may have been on its way already.
            owing = {device for device in owing if self.watch.telemetry[device].sequence < before[device] + 2}


def run(args: argparse.Namespace) -> int:
    """Carry out `distree demo`; 0 only if every input was answered."""
    bundle = load_bundle(args.bundle)
    plan = plan_site(bundle, fuser=args.fuser, mode=args.mode)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distree-demo-")))
        samples = _samples(bundle, args.data, args.inputs, args.rate, folder)
        address, broker = _broker(args, stack)
        print(f"broker: {broker}")
        demo = stack.enter_context(Demo(plan, samples, folder, address, broker))
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


def _samples(bundle: Bundle, data: Path | None, count: int, rate_hz: float, folder: Path) -> Samples:
    if not 0 <= rate_hz <= 100_000:
        raise ConfigError(f"--rate: expected 0 to 100000, received {rate_hz:g}")
    zoo = zoo_folder()
    path = data or (zoo.parent / "samples" / f"{bundle.name}.npz" if zoo else None)
    if path is None or not path.is_file():
        raise ConfigError(f"no samples for bundle {bundle.name} ({path}); give --data FILE.npz with input and label")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            is_jpeg = "jpeg" in arrays
            labels: Array = arrays["label"]
            names: Array = arrays["name"] if "name" in arrays else np.arange(len(labels))
    except Exception as error:  # noqa: BLE001 - of a file that is not an .npz numpy raises whatever it likes
        why = " ".join(str(error).split())
        raise ConfigError(f"{path}: {why}; an .npz file with arrays 'input' and 'label' is needed") from None
    if is_jpeg:
        return _jpeg_samples(path, count, rate_hz, folder)
    _check_count(count, len(labels), path)
    places = {wire.printable(str(name))[:256]: place for place, name in enumerate(names[:count])}
    if len(places) < count:
        raise ConfigError(f"{path}: two inputs have the same name; an answer could not be told from another")
    return Samples(path, count, rate_hz or None, places, labels)


def _jpeg_samples(path: Path, count: int, rate_hz: float, folder: Path) -> Samples:
    """Decode the test images of a file of JPEGs: `count` of them in a fixed random order, for it is sorted by class."""
    from model_zoo.data import load_jpeg_set

    images = load_jpeg_set(path, "test")
    _check_count(count, len(images), path)
    order = np.random.default_rng(ORDER_SEED).permutation(len(images))[:count]
    np.savez(folder / "inputs.npz", input=images.images[order], label=images.labels[order], name=order)
    places = {str(place): place for place in order.tolist()}
    return Samples(folder / "inputs.npz", count, rate_hz or None, places, images.labels)


def _check_count(count: int, there: int, path: Path) -> None:
    if not 0 < count <= there:
        raise ConfigError(f"--inputs: expected 1 to {there} (the samples in {path.name}), received {count}")


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
    who = [demo.plan.answers_at(k) for k in range(len(demo.bundle.stages))]
    width = max(11, *map(len, who))
    lines = [f"  exit  {'answered by':<{width}}   share   latency ms p50     p95   accuracy"]
    for k, answering in enumerate(who):
        here = [result for result in results if result.exit == k]
        if not here:
            lines.append(f"  {k:>4}  {answering:<{width}} {0:>5.1f} %")
            continue
        p50, p95 = np.percentile([result.latency_s * 1e3 for result in here], [50, 95])
        right = np.mean([demo.samples.is_right(result) for result in here])
        share = 100 * len(here) / len(results)
        lines.append(
            f"  {k:>4}  {answering:<{width}} {share:>5.1f} %   {p50:>14.2f} {p95:>7.2f}   {100 * right:>6.1f} %"
        )
    return lines


class Figures:
    """The demo's outcome, for people and as JSON."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._results = sorted(demo.watch.results.values(), key=demo.samples.place)
        self.answered = len(self._results)
        right = sum(demo.samples.is_right(result) for result in self._results)
        self.accuracy = right / max(1, self.answered)
        self._reasons = Counter(result.reason for result in self._results)
        latencies = [result.latency_s * 1e3 for result in self._results] or [0.0]
        self._latency_ms = dict(zip(("p50", "p95", "p99"), np.percentile(latencies, [50, 95, 99]), strict=True))

    def lines(self) -> list[str]:
        """Return the summary."""
        demo, watch = self._demo, self._demo.watch
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._reasons.most_common())
        spent, without = watch.bytes_per_input(), watch.bytes_without_exits(demo.plan)
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
            *(self._wide_lines() if demo.bundle.is_wide else []),
        ]

    def _wide_lines(self) -> list[str]:
        watch = self._demo.watch
        hops = sorted(hop for hop in watch.traffic if hop.startswith("exit ") or hop == "decision")
        shares = ", ".join(f"{hop} {watch.traffic[hop] / max(1, self.answered):,.0f}" for hop in hops)
        lines = [f"  of them embeddings and decisions: {shares or 'none'}"]
        missing = watch.missing()
        silent = ", ".join(f"branch {branch} in {missing[branch]}" for branch in sorted(missing))
        lines.append(f"answers without a branch: {silent or 'none'}")
        if self._demo.plan.is_eager:
            runs, wasted = self._branch_runs()
            lines.append(
                f"runs of branches that no answer needed: {wasted:,} of {runs:,} ({wasted / max(1, runs):.1%})"
            )
        return lines

    def _branch_runs(self) -> tuple[int, int]:
        """Return how many runs of branches there were, and how many of them no answer needed."""
        counts = self._demo.bundle.branch_counts
        reports = [report for report in self._demo.watch.stage_reports() if counts[report.stage]]
        return sum(report.forwarded for report in reports), sum(report.wasted for report in reports)

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
            "exit_share": [exits[k] / max(1, self.answered) for k in range(len(demo.bundle.stages))],
            "latency_ms": {name: float(value) for name, value in self._latency_ms.items()},
            "bytes_per_input": demo.watch.bytes_per_input(),
            "bytes_per_input_no_early_exit": demo.watch.bytes_without_exits(demo.plan),
            "wall_s": demo.wall_s,
            **(self._wide_json() if demo.bundle.is_wide else {}),
            "results": [
                {
                    "index": demo.samples.place(result),
                    "label": result.label,
                    "class_id": result.class_id,
                    "exit": result.exit,
                    "reason": result.reason,
                    "latency_ms": result.latency_s * 1e3,
                    **({"missing": list(result.missing)} if demo.bundle.is_wide else {}),
                }
                for result in self._results
            ],
        }

    def _wide_json(self) -> dict[str, Any]:
        demo, watch = self._demo, self._demo.watch
        runs, wasted = self._branch_runs()
        missing = watch.missing()
        return {
            "mode": "eager" if demo.plan.is_eager else "gated",
            "fuser": demo.plan.fuser or demo.plan.origin.device,
            "messages": dict(sorted(watch.messages.items())),
            "bytes": dict(sorted(watch.traffic.items())),
            "missing": [missing[branch] for branch in range(max(demo.bundle.branch_counts))],
            "branch_runs": runs,
            "wasted_runs": wasted,
        }
