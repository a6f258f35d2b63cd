"""What an agent takes on a board: disk, memory, time to start, threads, wake-ups while it has nothing to do.

A new virtual environment gets the base install from this checkout. In it, by turns, start Python with numpy, the
runtime and the first segment of `fashion` loaded and run once, which is the least that could do the work, and an agent
that serves the same stage as an origin. The agent is ready when a subscriber of mosquitto hears so, after its
self-test. Memory is read after both have run the segment once. `python -m benchmarks.footprint --out docs/results`
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from broker_config.managed import ManagedBroker
from distree import child_processes, topics
from distree.broker_settings import BrokerSettings, Session
from distree.bundle.loading import find_bundle
from distree.errors import Problem
from distree.messages.codec import decode, encode
from distree.messages.device import DeviceState, DeviceStatus
from distree.messages.request import InputMessage
from distree.topics import DELIVERY, Kind
from distree.transport import make_transport
from distree.transport.base import QuietListener, Received
from model_zoo.data import load_examples

ROOT = Path(__file__).parents[1]
BUNDLE = find_bundle("fashion")
SAMPLES = ROOT / "model_zoo" / "samples" / "fashion.npz"
SITE, DEVICE = "footprint", "board"
PATIENCE_S = 60.0
_INSTALL_LIMIT_S = 600.0

BARE = """
import sys, time
import numpy as np
try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
taken = interpreter.get_input_details()[0]
interpreter.set_tensor(taken["index"], np.zeros(taken["shape"], taken["dtype"]))
interpreter.invoke()
print("ready", flush=True)
time.sleep(3600)
"""
SIZES = """
import importlib.metadata, json
print(json.dumps({
    d.metadata["Name"]: sum(p.stat().st_size for f in d.files or () if (p := d.locate_file(f)).is_file())
    for d in importlib.metadata.distributions()
}))
"""


# ------------------------------------------------------------ the install


def base_install(folder: Path) -> tuple[Path, dict[str, int]]:
    """Install this checkout without extras into a new environment; return its python and each package's bytes."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _output(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(ROOT))
    sizes: dict[str, int] = json.loads(_output(str(python), "-c", SIZES))
    return python, {name: size for name, size in sizes.items() if name not in ("pip", "setuptools")}


def _output(*command: str) -> str:
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=_INSTALL_LIMIT_S, env=_environment()
    ).stdout


def _environment() -> dict[str, str]:
    # The environment's own copy is to run, not the checkout.
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


# ------------------------------------------------------------ what the kernel counts


def memory_mb(pid: int) -> dict[str, float]:
    """Resident memory in MB: all of it, and what no other process has mapped."""
    kilobytes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        kilobytes[name.rstrip(":")] = int(value)
    own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"resident_mb": kilobytes["Rss"] * 1024 / 1e6, "own_mb": own * 1024 / 1e6}


def thread_count(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def idle(pid: int, seconds: float) -> dict[str, float]:
    """Wake-ups a second and CPU in percent of a core, over so many seconds, of all threads."""
    before, started_at = _activity(pid), time.monotonic()
    time.sleep(seconds)
    after, passed = _activity(pid), time.monotonic() - started_at
    return {"wakeups_hz": (after[0] - before[0]) / passed, "cpu_percent": 100 * (after[1] - before[1]) / 1e9 / passed}


def _activity(pid: int) -> tuple[int, int]:
    """Return how often threads went to wait of themselves, and nanoseconds computed."""
    waits = nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                waits += int(line.split()[1])
        nanoseconds += int((task / "schedstat").read_text().split()[0])
    return waits, nanoseconds


# ------------------------------------------------------------ the two processes


class Subscriber(QuietListener):
    """Hears when the agent is ready, and its answer to one input."""

    def __init__(self, port: int) -> None:
        self.ready_at: float | None = None
        self.is_answered = False
        self._transport = make_transport(BrokerSettings(port=port), client_id="footprint", session=Session.NONE)
        states = topics.device(SITE, DEVICE, Kind.STATE)
        results = topics.of_origin(SITE, "fashion", Kind.RESULT, DEVICE)
        self._transport.open(self, [(states, 1), (results, 1)])
        self._transport.connect_now(10.0)

    def disconnected(self, why: Problem) -> None:
        """Give up: a broker that goes away spoils the run."""
        raise SystemExit(f"the broker went away: {why}")

    def received(self, message: Received) -> None:
        """Note when it came."""
        self._transport.acknowledge(message.token)
        if topics.parse(message.topic).kind is Kind.RESULT:
            self.is_answered = True
        elif message.payload and decode(DeviceState, message.payload).status == DeviceStatus.READY:
            self.ready_at = time.monotonic()

    def ask(self, tensor: Any) -> None:
        """Have one input answered."""
        message = InputMessage(request="r-0", name="0", payload=tensor.tobytes())
        topic = topics.of_origin(SITE, "fashion", Kind.INPUT, DEVICE)
        self._transport.publish(topic, encode(message), qos=DELIVERY[Kind.INPUT].qos, retain=False)
        self.until("is_answered", "the answer")

    def until(self, name: str, what: str) -> None:
        """Return once the attribute is set."""
        ends_at = time.monotonic() + PATIENCE_S
        while not getattr(self, name):
            if time.monotonic() > ends_at:
                raise SystemExit(f"waited {PATIENCE_S:g} s in vain for {what}")
            self._transport.poll(0.02)

    def close(self) -> None:
        self._transport.close()


@contextlib.contextmanager
def bare(python: Path) -> Iterator[tuple[int, float]]:
    """Start the bare process; give its pid and seconds to ready."""
    segment = BUNDLE / yaml.safe_load((BUNDLE / "bundle.yaml").read_text())["stages"][0]["segment"]
    started_at = time.monotonic()
    process = child_processes.spawn([str(python), "-c", BARE, str(segment)], stdout=subprocess.PIPE, env=_environment())
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise SystemExit("the bare process ended before it was ready")
        yield process.pid, time.monotonic() - started_at
    finally:
        child_processes.stop(process, 10.0)


@contextlib.contextmanager
def agent(python: Path, port: int, folder: Path, tensor: Any) -> Iterator[tuple[int, float]]:
    """Start an agent, and have it answer one input; give its pid and seconds to ready."""
    origin = {"deadline_ms": 60_000, "source": {"kind": "mqtt"}}
    pipeline = {"name": "fashion", "bundle": "fashion", "stages": [0], "origin": origin}
    config = {"site": SITE, "device": DEVICE, "broker": {"port": port}, "state_dir": str(folder)}
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump({**config, "pipelines": [pipeline]}))
    subscriber = Subscriber(port)
    started_at = time.monotonic()
    with (folder / "agent.log").open("ab") as log:
        process = child_processes.spawn(
            [str(python), "-m", "distree", "agent", "run", "-c", str(path)], stderr=log, env=_environment()
        )
    try:
        subscriber.until("ready_at", "the agent")
        assert subscriber.ready_at is not None
        ready_s = subscriber.ready_at - started_at
        subscriber.ask(tensor)
        subscriber.close()
        yield process.pid, ready_s
    finally:
        child_processes.stop(process, 20.0)


# ------------------------------------------------------------ the figures


def measure(rounds: int, idle_s: float) -> dict[str, Any]:
    """Install, and run both by turns; the last round is watched while idle."""
    images = load_examples(SAMPLES).labelled()
    seen: dict[str, list[dict[str, float]]] = {"bare": [], "agent": []}
    with tempfile.TemporaryDirectory(prefix="distree-footprint-") as name:
        python, sizes = base_install(Path(name) / "venv")
        with ManagedBroker(engine="mosquitto") as broker:
            # The first start compiles and fills the page cache; it is not counted.
            for turn in range(rounds + 1):
                for which in seen:
                    started = bare(python) if which == "bare" else agent(python, broker.port, Path(name), _easy(images))
                    with started as (pid, ready_s):
                        row = {"ready_s": ready_s, **memory_mb(pid), "threads": float(thread_count(pid))}
                        if turn == rounds:
                            row |= idle(pid, idle_s)
                    if turn:
                        seen[which].append(row)
        versions = json.loads(_output(str(python), "-c", _VERSIONS))
    today = datetime.date.today().isoformat()
    return {
        "date": today,
        "schema": "distree.footprint/1",
        "versions": versions,
        "bytes": sizes,
        "idle_s": idle_s,
        "rounds": seen,
    }


_VERSIONS = """
import importlib.metadata, json, platform
names = ("numpy", "msgpack", "PyYAML", "paho-mqtt", "ai-edge-litert", "tflite-runtime")
told = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
print(json.dumps({"python": platform.python_version(), **{n: told[n] for n in names if n in told}}))
"""


def _easy(images: Any) -> Any:
    """Return an input that leaves at the first exit: there is no other board."""
    return np.ascontiguousarray(images.inputs[0])


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    seen, sizes = report["rounds"], report["bytes"]
    total = sum(sizes.values())
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        "# Footprint of an agent",
        "",
        f"`make footprint`, {report['date']}, on {platform.machine()} with {os.cpu_count()} cores:",
        f"{versions}.",
        f"Medians of {len(seen['bare'])} alternating rounds. *Bare* is Python with numpy, the runtime and the first",
        "segment of `fashion`, after running it once. The *agent* serves that stage as an origin, has passed its",
        "self-test, has subscribed at a mosquitto, and has answered one input.",
        "",
        "| | bare | agent | ratio (min to max of rounds) |",
        "|---|---:|---:|---:|",
    ]
    for key, what, digits in (
        ("ready_s", "time to ready, s", 3),
        ("resident_mb", "resident memory, MB", 1),
        ("own_mb", "of that, not shared with other processes, MB", 1),
        ("threads", "threads", 0),
    ):
        one, other = ([row[key] for row in seen[which]] for which in ("bare", "agent"))
        ratios = [b / a for a, b in zip(one, other, strict=True)]
        lines.append(
            f"| {what} | {statistics.median(one):.{digits}f} | {statistics.median(other):.{digits}f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    last = seen["agent"][-1]
    lines += [
        "",
        f"Over {report['idle_s']:g} s, an idle agent woke up {last['wakeups_hz']:.1f} times per second and used",
        f"{last['cpu_percent']:.2f} % of a core.",
        "",
        f"The base installation takes {total / 1e6:.1f} MB of disk, not counting Python itself:",
        "",
        "| package | MB |",
        "|---|---:|",
        *(f"| {name} | {size / 1e6:.1f} |" for name, size in sorted(sizes.items(), key=lambda one: -one[1])),
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and write footprint.md and footprint.json into --out."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.footprint",
        description=__doc__.split("\n")[0],
        epilog="example: python -m benchmarks.footprint --rounds 3",
    )
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="default: %(default)s")
    parser.add_argument("--idle", type=float, default=30.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    args = parser.parse_args(argv)
    report = measure(args.rounds, args.idle)
    text = markdown(report)
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "footprint.md").write_text(text)
        (args.out / "footprint.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
