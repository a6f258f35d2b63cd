"""The agent on armv7, under qemu-user, against the same agent on this machine: are the answers the same?

    make arm ARGS="--on fashion=model_zoo/samples/fashion.npz --out docs/results"

Real agents, all stages of a bundle, and a mosquitto on this machine, through which the inputs come and the answers go.
Fleets in turn: this machine's agents, armv7 ones, and a mixed one, whose origin is armv7 and which goes on here; and,
where Python is old enough for it, this machine's with the runtime that armv7l has, tflite-runtime, so that what comes
from the runtime and what from the processor can be told apart.
Each answers every input twice: with the bundle's thresholds, and with exits shut and every input audited, which tells
what each exit says of it. Agents run their self-test first, as they do on a board.

Runtimes round differently: where a score is within rounding of a threshold, or two classes are nearly as likely, an
answer may differ. 1 is returned where an input was not answered, or fewer than LEAST_EQUAL of the answers are the same.

qemu translates instructions, so times and memory under it say nothing of a board and are not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import armhf
from benchmarks.armhf import Userland
from broker_config.managed import ManagedBroker
from distree import child_processes, topics
from distree.broker_settings import BrokerSettings
from distree.bundle.loading import Bundle, load_bundle
from distree.errors import Problem
from distree.messages.audit import AuditRow
from distree.messages.codec import decode, encode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus
from distree.messages.events import DeadLetter
from distree.messages.plan import Plan
from distree.messages.request import InputMessage
from distree.messages.result import Result
from distree.messages.telemetry import Telemetry
from distree.thresholds import NEVER
from distree.topics import DELIVERY, Kind
from distree.transport import make_transport
from distree.transport.base import QuietListener, Received
from model_zoo.data import LabelledExamples, load_examples

SITE, PIPELINE, ORIGIN = "arm", "compared", "board0"
LEAST_EQUAL = 0.98
ORDER_SEED = 20
WINDOW = 16
PATIENCE_S = 120.0
"""Longest wait for the next answer, or for an agent to be ready: emulated boards are slow."""

ARM, HERE, MIXED, SAME_RUNTIME = "armv7l", "here", "mixed", "here, tflite-runtime"
COMPARED = ((SAME_RUNTIME, ARM), (HERE, ARM), (HERE, MIXED), (HERE, SAME_RUNTIME))
"""Fleets that are compared: the second against the first."""

LAST_PYTHON = (3, 11)
"""The last for which tflite-runtime has a wheel."""

PACKAGES = ("numpy", "msgpack", "PyYAML", "paho-mqtt", "tflite-runtime", "ai-edge-litert")
VERSIONS = f"""
import importlib.metadata, json, platform
told = dict(python=platform.python_version(), machine=platform.machine())
for name in {PACKAGES!r}:
    try:
        told[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(told))
"""


# ------------------------------------------------------------ a fleet


@dataclass
class Answers:
    """What a fleet said: the result of each input, what all exits said of it, and what the boards are."""

    results: dict[int, Result] = field(default_factory=dict)
    rows: dict[int, AuditRow] = field(default_factory=dict)
    boards: dict[str, DeviceMeta] = field(default_factory=dict)


class Client(QuietListener):
    """Submits inputs to the origin and keeps what the site says."""

    def __init__(self, port: int) -> None:
        self.results: dict[str, Result] = {}
        self.rows: dict[str, AuditRow] = {}
        self.boards: dict[str, DeviceMeta] = {}
        self.ready: set[str] = set()
        self.epochs: dict[str, int] = {}
        self.problems: list[str] = []
        self.transport = make_transport(BrokerSettings(port=port), client_id="arm-client", receive_maximum=512)
        kinds = (Kind.STATE, Kind.META, Kind.TELEMETRY, Kind.DEAD)
        wanted = [topics.device(SITE, "+", kind) for kind in kinds]
        wanted += [topics.of_origin(SITE, PIPELINE, kind, ORIGIN) for kind in (Kind.RESULT, Kind.AUDIT)]
        self.transport.open(self, [(topic, 1) for topic in wanted])
        self.transport.connect_now(10.0)

    def disconnected(self, why: Problem) -> None:
        """Give up: a broker that goes away spoils the run."""
        raise RuntimeError(f"the broker went away: {why}")

    def received(self, message: Received) -> None:
        """Keep what came."""
        self.transport.acknowledge(message.token)
        match topics.parse(message.topic).kind:
            case Kind.RESULT:
                result = decode(Result, message.payload)
                if result.request in self.results:
                    self.problems.append(f"{result.request} was answered twice")
                self.results[result.request] = result
            case Kind.AUDIT:
                row = decode(AuditRow, message.payload)
                self.rows[row.request] = row
            case Kind.META:
                meta = decode(DeviceMeta, message.payload)
                self.boards[meta.device] = meta
            case Kind.TELEMETRY:
                report = decode(Telemetry, message.payload)
                self.epochs[report.device] = report.pipelines[0].epoch
            case Kind.DEAD:
                self.problems.append(f"dead letter: {decode(DeadLetter, message.payload)}")
            case _:
                state = decode(DeviceState, message.payload)
                (self.ready.add if state.status == DeviceStatus.READY else self.ready.discard)(state.device)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Return once the condition holds; RuntimeError after PATIENCE_S."""
        ends_at = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > ends_at or self.problems:
                raise RuntimeError("; ".join(self.problems) or f"waited {PATIENCE_S:g} s for {what}")
            self.transport.poll(0.05)

    def publish(self, kind: Kind, topic: str, payload: bytes) -> None:
        """Publish as the protocol wants it for this kind."""
        self.transport.publish(topic, payload, qos=DELIVERY[kind].qos, retain=DELIVERY[kind].retain)

    def ask(self, name: str, images: LabelledExamples) -> list[str]:
        """Submit all images, WINDOW at a time; return their request ids once each is answered."""
        topic = topics.of_origin(SITE, PIPELINE, Kind.INPUT, ORIGIN)
        requests = [f"{name}-{index:x}" for index in range(len(images))]
        for index, request in enumerate(requests):
            floor = index - WINDOW
            self.until(lambda floor=floor: sum(r in self.results for r in requests[: floor + 1]) > floor, "an answer")
            message = InputMessage(request=request, name=str(index), payload=images.inputs[index].tobytes())
            self.publish(Kind.INPUT, topic, encode(message))
        self.until(lambda: all(request in self.results for request in requests), "the last answers")
        return requests


class Fleet:
    """The agents of a bundle: where each of them runs, and with which stages."""

    def __init__(self, name: str, bundle: Bundle, userland: Userland, folder: Path, python: str) -> None:
        self.name, self.bundle, self._userland, self._folder, self._python = name, bundle, userland, folder, python

    def pipelines(self) -> list[dict[str, Any]]:
        """One board for a chain, two in the mixed fleet; of wide stages, one for each branch."""
        counts = self.bundle.branch_counts
        every = list(range(len(counts)))
        branches = max(counts)
        if branches:
            plain = [k for k in every if not counts[k]]
            wide = [k for k in every if counts[k]]
            boards = [{"stages": sorted(wide + (plain if b == 0 else [])), "branch": b} for b in range(branches)]
        elif self.name == MIXED:
            boards = [{"stages": every[:1]}, {"stages": every[1:]}]
        else:
            boards = [{"stages": every}]
        common = {"name": PIPELINE, "bundle": self.bundle.name, "branch_timeout_ms": 60_000}
        origin = {"deadline_ms": 600_000, "min_retry_ms": 60_000, "source": {"kind": "mqtt"}}
        return [{**common, **board, **({"origin": origin} if k == 0 else {})} for k, board in enumerate(boards)]

    def is_arm(self, board: int) -> bool:
        """Whether a board of this fleet is emulated."""
        return self.name == ARM or (self.name == MIXED and board == 0)

    @contextlib.contextmanager
    def running(self, port: int) -> Iterator[list[str]]:
        """Start the agents; give their device ids. Ends them afterwards."""
        with contextlib.ExitStack() as stack:
            devices = []
            for board, pipeline in enumerate(self.pipelines()):
                devices.append(f"board{board}")
                config = {"site": SITE, "device": devices[-1], "broker": {"port": port}, "telemetry_interval_s": 1.0}
                process = self._start(board, {**config, "state_dir": "/tmp", "pipelines": [pipeline]})
                stack.callback(child_processes.stop, process, 20.0)
            yield devices

    def _start(self, board: int, config: dict[str, Any]) -> subprocess.Popen[bytes]:
        name = f"board{board}"
        arm = self.is_arm(board)
        path = (self._userland.root / "tmp" if arm else self._folder) / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        run = ("-m", "distree", "agent", "run", "-c")
        command = [self._python, *run, str(path)]
        if arm:
            command = self._userland.command(armhf.PYTHON, *run, f"/tmp/{path.name}")
        with (self._folder / f"{name}.log").open("ab") as log:
            return child_processes.spawn(command, stdout=log, stderr=log, env=armhf.ENVIRONMENT if arm else None)

    def log(self) -> str:
        """Return the last lines that the agents wrote."""
        return "\n".join(
            line for path in sorted(self._folder.glob("*.log")) for line in path.read_text().splitlines()[-5:]
        )


def answers(fleet: Fleet, images: LabelledExamples) -> Answers:
    """Have a fleet answer the images with the bundle's thresholds, then with exits shut and every one audited."""
    bundle = fleet.bundle
    with ManagedBroker(engine="mosquitto") as broker:
        client = Client(broker.port)
        with contextlib.closing(client.transport), fleet.running(broker.port) as devices:
            try:
                client.until(lambda: client.ready >= set(devices), "the agents")
                served = client.ask("served", images)
                plan = Plan(
                    pipeline=PIPELINE, epoch=1, model=bundle.name, revision=bundle.revision,
                    criterion=bundle.criterion, thresholds=(NEVER,) * (len(bundle.stages) - 1), audit_rate=1.0,
                )  # fmt: skip
                client.publish(Kind.PLAN, topics.plan(SITE, PIPELINE), encode(plan))
                client.until(lambda: all(client.epochs.get(device) == 1 for device in devices), "the plan")
                audited = client.ask("audited", images)
                client.until(lambda: all(request in client.rows for request in audited), "the audits")
            except RuntimeError as error:
                raise SystemExit(f"{fleet.name}: {error}\n{fleet.log()}") from None
    told = Answers(boards=client.boards)
    for index, (one, other) in enumerate(zip(served, audited, strict=True)):
        told.results[index], told.rows[index] = client.results[one], client.rows[other]
    return told


# ------------------------------------------------------------ what differs


def compare(bundle: Bundle, here: Answers, there: Answers) -> dict[str, Any]:
    """Compare two fleets' answers to the same inputs, and what their exits said."""
    indices = sorted(here.results)
    pairs = [(here.results[index], there.results[index]) for index in indices]
    rows = [(here.rows[index], there.rows[index]) for index in indices]
    scores = np.array([[one.scores, other.scores] for one, other in rows])  # (inputs, 2, exits but the last)
    classes = np.array([[one.predictions, other.predictions] for one, other in rows])
    away = np.abs(scores[:, 0] - scores[:, 1])
    same_exit = [(one, other) for one, other in pairs if one.exit == other.exit]
    unlike = [index for index in indices if _answer(here.results[index]) != _answer(there.results[index])]
    return {
        "inputs": len(indices),
        "equal_exits": len(same_exit),
        "equal_classes": sum(one.class_id == other.class_id for one, other in pairs),
        "equal_answers": len(indices) - len(unlike),
        "confidence_difference_max": max((abs(a.confidence - b.confidence) for a, b in same_exit), default=0.0),
        "exits": [
            {
                "equal_predictions": int((classes[:, 0, k] == classes[:, 1, k]).sum()),
                **({} if k == away.shape[1] else _spread(away[:, k], scores[..., k], bundle.thresholds[k])),
            }
            for k in range(classes.shape[2])
        ],
        "unlike": [_unlike(index, here, there) for index in unlike],
    }


def _answer(result: Result) -> tuple[int | None, int | None]:
    return result.exit, result.class_id


def _spread(away: Any, scores: Any, threshold: float) -> dict[str, Any]:
    leaves = scores >= threshold
    return {
        "score_difference_median": float(np.median(away)),
        "score_difference_p99": float(np.percentile(away, 99)),
        "score_difference_max": float(away.max()),
        "equal_decisions": int((leaves[:, 0] == leaves[:, 1]).sum()),
    }


def _unlike(index: int, here: Answers, there: Answers) -> dict[str, Any]:
    return {
        "input": index,
        "answers": [_answer(side.results[index]) for side in (here, there)],
        "scores": [side.rows[index].scores for side in (here, there)],
        "predictions": [side.rows[index].predictions for side in (here, there)],
    }


def accuracy(told: Answers, images: LabelledExamples) -> float:
    """Share of the inputs that were answered rightly with the bundle's thresholds."""
    return float(np.mean([told.results[index].class_id == label for index, label in enumerate(images.labels)]))


# ------------------------------------------------------------ the report


def same_runtime(userland: Userland) -> str | None:
    """Make an environment of this machine with the userland's runtime; return its python, None where there is none."""
    if sys.version_info[:2] > LAST_PYTHON:
        return None
    folder = userland.work / "same-runtime"
    python = str(folder / "bin" / "python")
    if not (folder / "made").exists():
        armhf.run([sys.executable, "-m", "venv", "--clear", str(folder)])
        needs = [*armhf.PYPI, "numpy<2", "msgpack", "pyyaml"]
        armhf.run([python, "-m", "pip", "install", "--quiet", *needs])
        (folder / "made").touch()
    (wheel,) = userland.wheels.glob("distree-*.whl")
    armhf.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)])
    return python


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run all fleets of all bundles."""
    userland = Userland(args.work, args.mirror)
    userland.prepare()
    pythons = {HERE: sys.executable, ARM: sys.executable, MIXED: sys.executable}
    versions = {ARM: userland.output(armhf.PYTHON, "-c", VERSIONS), HERE: armhf.run([sys.executable, "-c", VERSIONS])}
    other = same_runtime(userland)
    if other is not None:
        pythons[SAME_RUNTIME] = other
        versions[SAME_RUNTIME] = armhf.run([other, "-c", VERSIONS])
    return {
        "date": datetime.date.today().isoformat(),
        "schema": "distree.arm/1",
        "suite": armhf.SUITE,
        "qemu": armhf.run([armhf.QEMU, "--version"]).splitlines()[0],
        "versions": {name: json.loads(told) for name, told in versions.items()},
        "bundles": [_of_bundle(load_bundle(name), path, args.inputs, userland, pythons) for name, path in args.on],
    }


def _drawn(images: LabelledExamples, count: int | None) -> LabelledExamples:
    """Return so many images in a fixed random order: a file may be sorted by class."""
    order = np.random.default_rng(ORDER_SEED).permutation(len(images))[:count]
    return images.take(order)


def _of_bundle(
    bundle: Bundle, path: Path, count: int | None, userland: Userland, pythons: dict[str, str]
) -> dict[str, Any]:
    images = _drawn(load_examples(path).labelled(), count)
    told = {}
    for fleet, python in pythons.items():
        with tempfile.TemporaryDirectory(prefix="distree-arm-") as folder:
            told[fleet] = answers(Fleet(fleet, bundle, userland, Path(folder), python), images)
    return {
        "bundle": bundle.name,
        "revision": bundle.revision,
        "criterion": bundle.criterion,
        "thresholds": bundle.thresholds,
        "inputs": f"{len(images):,} of {images.source}",
        "runtimes": {
            fleet: [f"{board.machine}, {board.runtime}" for _, board in sorted(one.boards.items())]
            for fleet, one in told.items()
        },
        "accuracy": {fleet: accuracy(one, images) for fleet, one in told.items()},
        "compared": [
            {"fleet": fleet, "with": reference, **compare(bundle, told[reference], told[fleet])}
            for reference, fleet in COMPARED
            if reference in told and fleet in told
        ],
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    versions = report["versions"]
    lines = [
        "# The agent on 32-bit ARM, emulated",
        "",
        f"`make arm` ran agents in Debian {report['suite']}'s armhf userland under {report['qemu'].split(' (')[0]} on",
        f"{report['date']}, installed as docs/howto/raspberry-pi.md describes for armv7l. All boards passed their",
        "self-test at start, and every input was answered once. Speed and memory were not measured, because emulation",
        "says nothing about them, and no real ARM processor was used.",
        "",
        "With the same runtime, armv7l and x86-64 give the same answers. Between tflite-runtime and ai-edge-litert a",
        "few answers differ, on x86-64 too: some int8 values are rounded to the neighbouring step, and an input whose",
        "score is that close to a threshold leaves at another exit. The self-test allows for this by the bundle's",
        "`golden.tolerance` (in steps of the int8 outputs).",
        "",
        '`make arm` uses the samples of `fashion`. `ARGS="--on BUNDLE=FILE --inputs N"` adds other bundles with test',
        "data, and takes N random inputs of each.",
        "",
        f"| | {' | '.join(versions)} |",
        f"|---|{'---|' * len(versions)}",
    ]
    lines += [
        f"| {key} | {' | '.join(told.get(key, '') for told in versions.values())} |"
        for key in ("machine", "python", *PACKAGES)
    ]
    for one in report["bundles"]:
        lines += _bundle_lines(one)
    return "\n".join(lines) + "\n"


def _bundle_lines(one: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"## {one['bundle']} {one['revision']}",
        "",
        f"{one['inputs']}.",
        "",
        "| fleet | boards | accuracy |",
        "|---|---|---:|",
    ]
    for fleet, boards in one["runtimes"].items():
        lines.append(f"| {fleet} | {'; '.join(boards)} | {100 * one['accuracy'][fleet]:.2f} % |")
    lines += [
        "",
        "Answers with the bundle's thresholds:",
        "",
        "| compared | inputs | same exit and class | same exit | same class | largest difference of confidence |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for figures in one["compared"]:
        lines.append(
            f"| {_pair(figures)} | {figures['inputs']:,} | {figures['equal_answers']:,} | {figures['equal_exits']:,} | "
            f"{figures['equal_classes']:,} | {figures['confidence_difference_max']:.4f} |"
        )
    lines += [
        "",
        f"Answers of each exit ({one['criterion']}), with early exits disabled:",
        "",
        "| compared | exit | same class | same decision | median difference of score | 99th percentile | largest |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for figures in one["compared"]:
        for k, exit_ in enumerate(figures["exits"]):
            differences = [exit_.get(f"score_difference_{name}") for name in ("median", "p99", "max")]
            shown = " | ".join("" if value is None else f"{value:.4f}" for value in differences)
            decisions = exit_.get("equal_decisions", "")
            lines.append(f"| {_pair(figures)} | {k} | {exit_['equal_predictions']} | {decisions} | {shown} |")
    return lines


def _pair(figures: dict[str, Any]) -> str:
    return f"{figures['fleet']} with {figures['with']}"


def _on(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not BUNDLE=FILE")
    return name, Path(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and write arm.md and arm.json into --out."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.arm",
        description=__doc__.split("\n")[0],
        epilog="example: python -m benchmarks.arm --on fashion=model_zoo/samples/fashion.npz --inputs 100",
    )
    parser.add_argument(
        "--on", type=_on, action="append", required=True, metavar="BUNDLE=FILE", help="a bundle and its test inputs"
    )
    parser.add_argument("--inputs", type=int, metavar="N", help="of each file (default: all)")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/distree-arm"), help="kept (default: %(default)s)")
    parser.add_argument("--mirror", metavar="URL", help="Debian's mirror (default: this machine's)")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    args = parser.parse_args(argv)
    report = measure(args)
    text = markdown(report)
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "arm.md").write_text(text)
        (args.out / "arm.json").write_text(json.dumps(report, indent=1) + "\n")
    compared = [figures for one in report["bundles"] for figures in one["compared"]]
    return 0 if all(figures["equal_answers"] >= LEAST_EQUAL * figures["inputs"] for figures in compared) else 1


if __name__ == "__main__":
    sys.exit(main())
