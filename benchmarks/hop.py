"""The three-agent pipeline against the bare loop, interleaved in one run, on mosquitto.

Both stacks do the same work over the same hops: the origin runs stage 0 and sends features, two boards run the others,
the outcome returns to the origin, which publishes the result as JSON. No input leaves early, so each makes every hop.
Latency is measured at the origin, from the input to its answer, one input at a time; throughput is what a subscriber
of results counts with a window of inputs under way. `python -m benchmarks.hop --json hop.json`

With --secured the same agents are compared with themselves, on three brokers: one that is open, and two as
`distree broker init` makes them, with passwords, and with certificates (mutual TLS).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import yaml

from broker_config.managed import ManagedBroker, free_port
from broker_config.site.broker import SiteBroker
from broker_config.site.folder import read_broker_yaml
from distree import child_processes
from distree.bundle.loading import find_bundle

SAMPLES = find_bundle("fashion").parents[1] / "samples" / "fashion.npz"
TICKS = os.sysconf("SC_CLK_TCK")


class Observer:
    """Subscribes to what stacks say, as a dashboard would. `broker` is as in agent.yaml."""

    def __init__(self, broker: dict[str, Any]) -> None:
        self.ready: dict[str, float] = {}
        self.latencies_ms: list[float] = []
        self.times: list[float] = []
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.on_message = self._take
        if "username" in broker:
            self._client.username_pw_set(broker["username"], Path(broker["password_file"]).read_text().strip())
        if "tls" in broker:
            tls = broker["tls"]
            self._client.tls_set(tls["ca_file"], tls["cert_file"], tls["key_file"])
        self._client.connect("127.0.0.1", broker["port"])
        self._client.subscribe([("bare/ready/+", 1), ("bare/result", 0)])
        self._client.subscribe([("distree/1/bench/device/+/state", 1), ("distree/1/bench/pipeline/+/result/+", 0)])
        self._client.loop_start()

    def _take(self, _client: Any, _userdata: Any, message: Any) -> None:
        now = time.monotonic()
        if "/result" in message.topic:
            self.times.append(now)
            self.latencies_ms.append(json.loads(message.payload)["latency_ms"])
        elif b"ready" in message.payload:
            parts = message.topic.split("/")
            self.ready[f"bare{parts[-1]}" if parts[0] == "bare" else parts[-2]] = now
        else:
            self.ready.pop(message.topic.split("/")[-2], None)

    def begin(self) -> None:
        self.latencies_ms, self.times = [], []

    def await_(self, done: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
        ends_at = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > ends_at:
                raise SystemExit(f"waited {timeout_s:g} s in vain for {what}")
            time.sleep(0.005)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Stack:
    """How to start a stage of one stack, and what it is called; `broker_of` a user is as in agent.yaml."""

    def __init__(
        self,
        name: str,
        broker_of: Callable[[str], dict[str, Any]],
        bundle: Path,
        folder: Path,
        options: argparse.Namespace,
        observer: Observer | None = None,
    ) -> None:
        self.name, self.broker_of, self.bundle, self.options = name, broker_of, bundle, options
        self.observer = observer or Observer(broker_of("administrator"))
        self.folder = folder / name
        self.folder.mkdir()

    def device(self, k: int) -> str:
        return f"bare{k}" if self.name == "bare" else f"board{k}"

    def command(self, k: int, count: int, window: int) -> list[str]:
        if self.name == "bare":
            stream = [str(SAMPLES), str(count), str(window)] if k == 0 else []
            return [
                sys.executable,
                "-m",
                "benchmarks.bare",
                "127.0.0.1",
                str(self.broker_of("")["port"]),
                str(k),
                str(self.bundle),
                *stream,
            ]
        path = self.folder / f"board{k}-{window}.yaml"
        path.write_text(yaml.safe_dump(self._config(k, count, window)))
        return [sys.executable, "-m", "distree", "agent", "run", "-c", str(path)]

    def _config(self, k: int, count: int, window: int) -> dict[str, Any]:
        pipeline: dict[str, Any] = {"name": "fashion", "bundle": str(self.bundle), "stages": [k]}
        if k == 0:
            source = {
                "kind": "replay",
                "path": str(SAMPLES),
                "max_inputs": min(count, 1000),
                "repeat": count > 1000,
            }
            pipeline["origin"] = {
                "deadline_ms": 60000,
                "min_retry_ms": 10000,
                "max_pending": window,
                "source": source,
            }
        return {
            "site": "bench",
            "device": f"board{k}",
            "broker": self.broker_of(self.device(k)),
            "state_dir": str(self.folder),
            "codec": self.options.codec,
            "receive_maximum": self.options.receive_maximum,
            "pipelines": [pipeline],
        }

    def spawn(self, k: int, count: int = 0, window: int = 0) -> subprocess.Popen[bytes]:
        with (self.folder / f"{self.device(k)}.log").open("ab") as log:
            return child_processes.spawn(self.command(k, count, window), stderr=log)


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        # The bare loop has no clean end; killing both alike keeps a round's end out of the figures.
        process.kill()
        process.wait()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def one_round(stack: Stack, boards: list[int], count: int, window: int) -> dict[str, Any]:
    """Start an origin, let it stream `count` inputs, and measure."""
    observer = stack.observer
    observer.begin()
    spent = [cpu_s(pid) for pid in boards]
    with running(stack.spawn(0, count, window)) as origin:
        observer.await_(lambda: len(observer.times) >= count, f"{count} results of {stack.name}")
        spent = [cpu_s(pid) - before for pid, before in zip(boards, spent, strict=True)]
        origin_rss = rss_mb(origin.pid)
    settled = max(1, count // 10)
    times = observer.times[settled:count]
    return {
        "latency_ms": observer.latencies_ms[settled:count],
        "throughput_hz": (len(times) - 1) / (times[-1] - times[0]),
        "cpu_us_per_message": 1e6 * sum(spent) / len(boards) / count,
        "origin_rss_mb": origin_rss,
    }


def time_to_ready(stack: Stack) -> float:
    """Seconds from starting a board's process to its `ready` at a subscriber."""
    observer = stack.observer
    observer.ready.pop(stack.device(1), None)
    started_at = time.monotonic()
    with running(stack.spawn(1)):
        observer.await_(lambda: stack.device(1) in observer.ready, f"{stack.name} to be ready")
        return observer.ready[stack.device(1)] - started_at


def never_exits(folder: Path) -> Path:
    """Copy the bundle, with thresholds that no score reaches."""
    bundle = folder / "bundle"
    shutil.copytree(find_bundle("fashion"), bundle)
    manifest = yaml.safe_load((bundle / "bundle.yaml").read_text())
    manifest["exits"]["thresholds"] = ["never", "never"]
    (bundle / "bundle.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return bundle


@contextlib.contextmanager
def open_broker() -> Iterator[Callable[[str], dict[str, Any]]]:
    """A broker that lets everybody in."""
    with ManagedBroker(engine="mosquitto") as broker:
        yield lambda _user: {"port": broker.port}


@contextlib.contextmanager
def site_broker(folder: Path, *options: str) -> Iterator[Callable[[str], dict[str, Any]]]:
    """A broker as `distree broker init` makes it."""
    boards = [f"--board=board{k}:{'origin,' * (k == 0)}stage" for k in range(3)]
    where = ["--host", "127.0.0.1", "--port", str(free_port()), "--folder", str(folder)]
    command = [sys.executable, "-m", "distree", "broker", "init", "bench", *where, *boards, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with SiteBroker(folder, listen_on="127.0.0.1"):
        yield lambda user: read_broker_yaml(folder / "users" / user)["broker"]


def make_stacks(options: argparse.Namespace, folder: Path, exits: contextlib.ExitStack) -> list[Stack]:
    """Return what is compared; the last is what the others are compared with."""
    bundle = never_exits(folder)
    plain = exits.enter_context(open_broker())
    if not options.secured:
        ours = Stack("distree", plain, bundle, folder, options)
        stacks = [ours, Stack("bare", plain, bundle, folder, options, ours.observer)]
    else:
        brokers = {
            "certificates": exits.enter_context(site_broker(folder / "tls", "--certificates")),
            "passwords": exits.enter_context(site_broker(folder / "site")),
            "open": plain,
        }
        stacks = [Stack(name, broker_of, bundle, folder, options) for name, broker_of in brokers.items()]
    for observer in {id(stack.observer): stack.observer for stack in stacks}.values():
        exits.callback(observer.close)
    return stacks


def measure(options: argparse.Namespace) -> dict[str, Any]:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for all stacks alike
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its byte code
    rounds: dict[str, dict[str, list[Any]]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as exits:
        stacks = make_stacks(options, Path(name), exits)
        ready: dict[str, list[float]] = {stack.name: [] for stack in stacks}
        for _ in range(options.starts):
            for stack in stacks:
                ready[stack.name].append(time_to_ready(stack))
        with contextlib.ExitStack() as stack_of_processes:
            boards = {}
            for stack in stacks:
                processes = [stack_of_processes.enter_context(running(stack.spawn(k))) for k in (1, 2)]
                boards[stack.name] = [process.pid for process in processes]
                stack.observer.await_(lambda s=stack: {s.device(1), s.device(2)} <= s.observer.ready.keys(), "boards")
            for window, count, kind in [
                (1, options.latency_inputs, "latency"),
                (options.window, options.inputs, "load"),
            ]:
                for _ in range(options.rounds):
                    for stack in stacks:
                        figures = one_round(stack, boards[stack.name], count, window)
                        rounds.setdefault(kind, {}).setdefault(stack.name, []).append(figures)
            memory = {name: [rss_mb(pid) for pid in pids] for name, pids in boards.items()}
    return summary(rounds, ready, memory, options)


def summary(rounds: Any, ready: Any, memory: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds of each figure, and the ratios round by round (the stacks of a round ran back to back)."""
    figures = {
        "latency_p50_ms": ("latency", lambda one: float(np.percentile(one["latency_ms"], 50))),
        "latency_p99_ms": ("latency", lambda one: float(np.percentile(one["latency_ms"], 99))),
        "throughput_hz": ("load", lambda one: one["throughput_hz"]),
        "cpu_us_per_message": ("load", lambda one: one["cpu_us_per_message"]),
        "loaded_latency_p50_ms": ("load", lambda one: float(np.percentile(one["latency_ms"], 50))),
    }
    table = {
        name: compared({stack: [figure(one) for one in found] for stack, found in rounds[kind].items()})
        for name, (kind, figure) in figures.items()
    }
    table["resident_mb"] = compared(memory)
    table["time_to_ready_s"] = compared(ready)
    return {"options": vars(options) | {"json": None}, "figures": table}


def compared(found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return each stack's median, and its ratio to the last one: the median, least and greatest of the rounds."""
    *_, base = found.values()
    rows = {}
    for stack, values in found.items():
        ratios = [a / b for a, b in zip(values, base, strict=True)]
        rows[stack] = {
            "median": statistics.median(values),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default: %(default)s)")
    parser.add_argument("--inputs", type=int, default=3000, help="inputs of a throughput round (default: %(default)s)")
    parser.add_argument("--latency-inputs", type=int, default=1000, help="of a latency round (default: %(default)s)")
    parser.add_argument("--window", type=int, default=16, help="inputs under way for throughput (default: %(default)s)")
    parser.add_argument("--starts", type=int, default=7, help="starts (default: %(default)s)")
    parser.add_argument("--codec", choices=["raw", "zlib"], default="raw")
    parser.add_argument("--receive-maximum", type=int, default=16)
    parser.add_argument("--secured", action="store_true", help="compare agents on secured brokers and an open one")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    report = measure(options)
    print(f"medians of {options.rounds} rounds; in brackets the ratio to the last column, and its least and greatest")
    for name, stacks in report["figures"].items():
        cells = [
            f"{stack} {one['median']:.3f} ({one['ratio']:.3f}, {one['ratio_min']:.3f} to {one['ratio_max']:.3f})"
            for stack, one in list(stacks.items())[:-1]
        ]
        base, last = list(stacks.items())[-1]
        print(f"  {name:<22} {'  '.join(cells)}  {base} {last['median']:.3f}")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
