"""DistrEE's hop against gRPC, HTTP/1.1 and ZeroMQ: the same split, the same segments, interleaved in one run.

Stage 0 runs in the program that asks, stages 1 and 2 in another process; no input leaves early, so each one's features
(1,568 bytes) travel there and its answer travels back. What a peer lacks is part of the comparison: it has no deadline,
no custody, nothing that is sent again, no broker between the boards, and nobody else sees its answers. Besides:
`leaves`, DistrEE's inputs that are answered at the first exit, and `alone`, all stages in one program, which is what
computing takes.

Bytes are counted in connections of their own, through relays that keep what passes; times are without them.
`python -m benchmarks.peers --json peers.json`; gRPC and ZeroMQ need the extra `bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.hop import cpu_s, running
from benchmarks.peers import dissect, ways
from benchmarks.peers.tap import Tap
from broker_config.managed import ManagedBroker, free_port
from distree import child_processes
from distree.bundle.loading import find_bundle
from distree.thresholds import NEVER

NEEDS = {"grpc": "grpc", "zeromq": "zmq"}
"""Modules that a way needs beyond the base install."""

SETTLE_S = 0.3
"""Acknowledgements of the last input of a count arrive within this time."""


class Caller:
    """A program that asks one way; it ends with its standard input."""

    def __init__(self, way: str, port: int, bundle: Path, log: Path) -> None:
        self.way = way
        command = [sys.executable, "-m", "benchmarks.peers.ways", "ask", way, str(port), str(bundle)]
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                preexec_fn=functools.partial(child_processes.end_with_parent, os.getpid()),
            )
        self._log = log
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.way}: the program that asks ended:\n{self._log.read_text()[-2000:]}")
        return line

    def ask(self, inputs: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{inputs}\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def close(self) -> None:
        self._process.communicate()


class Bench:
    """The bundles, the broker, and how to start each side of a way."""

    def __init__(self, folder: Path, broker: ManagedBroker) -> None:
        self.broker = broker
        self._folder = folder
        self._travels, self._leaves = bundle(folder / "travels", NEVER), bundle(folder / "leaves", 0.0)

    @contextlib.contextmanager
    def server(self, way: str, port: int) -> Iterator[int]:
        """Run the other side of a way; its process id, or 0 where there is none. `port` is the broker's for DistrEE."""
        if way in ("leaves", "alone"):
            yield 0
            return
        if way == "distree":
            path = self._folder / f"agent-{port}.yaml"
            path.write_text(yaml.safe_dump(self._agent(port)))
            command = ["-m", "distree", "agent", "run", "-c", str(path)]
        else:
            command = ["-m", "benchmarks.peers.ways", "serve", way, str(port), str(self._travels)]
        with (self._folder / f"{way}.log").open("ab") as log:
            process = child_processes.spawn([sys.executable, *command], stderr=log)
        with running(process):
            if way == "http":
                _await_port(port)  # the others' libraries wait for their server by themselves
            yield process.pid

    def _agent(self, port: int) -> dict[str, Any]:
        return {
            "site": ways.SITE,
            "device": ways.SERVER,
            "broker": {"port": port},
            "state_dir": str(self._folder),
            "pipelines": [{"name": ways.PIPELINE, "bundle": str(self._travels), "stages": [1, 2]}],
        }

    @contextlib.contextmanager
    def caller(self, way: str, port: int) -> Iterator[Caller]:
        bundle = self._leaves if way == "leaves" else self._travels
        caller = Caller(way, port, bundle, self._folder / f"{way}.log")
        try:
            yield caller
        finally:
            caller.close()

    def port(self, way: str) -> int:
        return self.broker.port if way in ("distree", "leaves") else free_port()


def bundle(folder: Path, threshold: float) -> Path:
    """Copy the bundle, with one threshold for all exits."""
    shutil.copytree(find_bundle("fashion"), folder)
    manifest = yaml.safe_load((folder / "bundle.yaml").read_text())
    manifest["exits"]["thresholds"] = [threshold, threshold]
    (folder / "bundle.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return folder


def _await_port(port: int) -> None:
    import socket

    ends_at = time.monotonic() + ways.START_S
    while True:
        try:
            socket.create_connection((ways.HOST, port)).close()
            return
        except OSError:
            if time.monotonic() > ends_at:
                raise
            time.sleep(0.05)


# ---------------------------------------------------------------- times


def measure(bench: Bench, names: list[str], rounds: int, inputs: int) -> dict[str, dict[str, list[Any]]]:
    """Ask `inputs` a round each way in turn; return figures of each round by way."""
    found: dict[str, dict[str, list[Any]]] = {way: {} for way in names}
    with contextlib.ExitStack() as stack:
        callers, servers = {}, {}
        for way in names:
            port = bench.port(way)
            servers[way] = stack.enter_context(bench.server(way, port))
            callers[way] = stack.enter_context(bench.caller(way, port))
            callers[way].ask(inputs)  # not counted: caches, and what is loaded at first use
        expected: dict[bool, Any] = {}
        for number in range(rounds):
            for way in names[number % len(names) :] + names[: number % len(names)]:
                pids = (servers[way], bench.broker.pid if way in ("distree", "leaves") else 0)
                before = [cpu_s(pid) if pid else 0.0 for pid in pids]
                told = callers[way].ask(inputs)
                server_s, broker_s = (cpu_s(pid) - was if pid else 0.0 for pid, was in zip(pids, before, strict=True))
                if told["answers"] != expected.setdefault(way == "leaves", told["answers"]):
                    raise SystemExit(f"{way} answered differently from the others")
                for name, figure in {
                    "p50_ms": 1e3 * float(np.percentile(told["took_s"], 50)),
                    "p99_ms": 1e3 * float(np.percentile(told["took_s"], 99)),
                    "caller_us": 1e6 * told["cpu_s"] / inputs,
                    "server_us": 1e6 * server_s / inputs,
                    "broker_us": 1e6 * broker_s / inputs,
                }.items():
                    found[way].setdefault(name, []).append(figure)
    return found


def summary(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """Return medians of rounds (p50, p99), means (CPU, which ticks coarsely), and ratios of p50, round by round."""
    table: dict[str, dict[str, Any]] = {}
    for way, figures in found.items():
        row: dict[str, Any] = {name: statistics.median(figures[name]) for name in ("p50_ms", "p99_ms")}
        row |= {name: statistics.mean(figures[name]) for name in ("caller_us", "server_us", "broker_us")}
        ratios = [ours / theirs for ours, theirs in zip(found["distree"]["p50_ms"], figures["p50_ms"], strict=True)]
        row["distree_ratio"], row["ratio_min"], row["ratio_max"] = statistics.median(ratios), min(ratios), max(ratios)
        table[way] = row
    return table


# ---------------------------------------------------------------- bytes


def bytes_per_input(bench: Bench, way: str, inputs: int) -> dict[str, dict[str, float]]:
    """Return by direction, then by part, the bytes that an input costs; with DistrEE on both boards' connections."""
    port = bench.port(way)
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(Tap(port))
        here = stack.enter_context(Tap(port))
        stack.enter_context(bench.server(way, there.port if way == "distree" else port))
        caller = stack.enter_context(bench.caller(way, here.port))
        taps = {"caller": here} | ({"server": there} if way == "distree" else {})
        caller.ask(inputs)
        before = {name: _lengths(tap) for name, tap in taps.items()}
        caller.ask(inputs)
        after = {name: _lengths(tap) for name, tap in taps.items()}
        streams = {name: _streams(tap) for name, tap in taps.items()}
    peer = "broker" if way in ("distree", "leaves") else "server"
    counted: dict[str, dict[str, float]] = {}
    for name in taps:
        for direction, there_and_back in (("to_server", f"{name} → {peer}"), ("to_client", f"{peer} → {name}")):
            parts: Counter[str] = Counter()
            for i, stream in enumerate(streams[name]):
                start = before[name][i][direction] if i < len(before[name]) else 0
                parts += dissect.count(dissect.READERS[way], stream[direction], start, after[name][i][direction])
            counted[there_and_back] = {part: nbytes / inputs for part, nbytes in parts.items()}
    return counted


def _lengths(tap: Tap) -> list[dict[str, int]]:
    time.sleep(SETTLE_S)
    return [{name: len(stream) for name, stream in vars(one).items()} for one in tap.connections]


def _streams(tap: Tap) -> list[dict[str, bytes]]:
    return [{name: bytes(stream) for name, stream in vars(one).items()} for one in tap.connections]


def total(counted: dict[str, dict[str, float]]) -> float:
    return sum(sum(parts.values()) for parts in counted.values())


# ---------------------------------------------------------------- the command


def show(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"{report['broker']}; {report['rounds']} rounds of {report['inputs']} inputs, each way in turn"
    yield ""
    yield f"{'':<9}{'latency ms':>20}{'CPU µs per input':>26}{'bytes per':>11}   DistrEE's p50 by this one's"
    yield f"{'':<9}{'p50':>10}{'p99':>10}{'caller':>10}{'server':>8}{'broker':>8}{'input':>11}   (min to max of rounds)"
    for way, row in report["times"].items():
        ratio = f"{row['distree_ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        yield (
            f"{way:<9}{row['p50_ms']:>10.3f}{row['p99_ms']:>10.3f}{row['caller_us']:>10.0f}{row['server_us']:>8.0f}"
            f"{row['broker_us']:>8.0f}{total(report['bytes'].get(way, {})):>11,.0f}   {ratio}"
        )
    for way, counted in report["bytes"].items():
        yield ""
        yield f"where each byte of {way} goes: {total(counted):,.1f} per input"
        for direction, parts in counted.items():
            yield f"  {direction}: {sum(parts.values()):,.1f}"
            yield from _packets(parts)


def _packets(parts: dict[str, float]) -> Iterator[str]:
    """Yield a line a kind of packet, with what it consists of, the most first."""
    packets: dict[str, dict[str, float]] = {}
    for name, nbytes in parts.items():
        packet, _, part = name.partition(": ")
        packets.setdefault(packet, {})[part] = nbytes
    for packet, inside in packets.items():
        most_first = sorted(inside.items(), key=lambda item: -item[1])
        consists = ", ".join(f"{part} {nbytes:,.1f}" for part, nbytes in most_first if part)
        yield f"    {sum(inside.values()):>8,.1f}  {packet}" + (f": {consists}" if consists else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each way (default: %(default)s)")
    parser.add_argument("--inputs", type=int, default=400, help="inputs of a round (default: %(default)s)")
    parser.add_argument("--ways", nargs="+", choices=list(ways.ASK), default=list(ways.ASK), metavar="WAY")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # for all alike
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its byte code
    names = []
    for way in dict.fromkeys(["distree", *options.ways]):
        if way in NEEDS and importlib.util.find_spec(NEEDS[way]) is None:
            print(f"{way} is left out: pip install '.[bench]'", file=sys.stderr)
        else:
            names.append(way)
    with tempfile.TemporaryDirectory() as name, ManagedBroker(engine="mosquitto") as broker:
        bench = Bench(Path(name), broker)
        report = {
            "broker": broker.describe(),
            "rounds": options.rounds,
            "inputs": options.inputs,
            "times": summary(measure(bench, names, options.rounds, options.inputs)),
            "bytes": {way: bytes_per_input(bench, way, options.inputs) for way in names if way in dissect.READERS},
        }
    print("\n".join(show(report)))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
