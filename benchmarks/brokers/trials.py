"""A chain and a wide site with two boards for each part, on one broker: are all inputs answered, and as evaluated?"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.brokers.client import V3, Client
from benchmarks.brokers.servers import Server
from benchmarks.chaos.expected import answers
from benchmarks.chaos.site import SAMPLES, TINY_WIDE, Images, tiny_images
from distree import child_processes
from distree.bundle.loading import load_bundle
from model_zoo.data import load_split

PIPELINE = "p"
READY_S = 40.0
"""Longest wait for boards to be ready: they share this machine, and import numpy for seconds."""

STALL_S = 15.0
"""Longest silence before a trial is given up."""

DEADLINE_MS = 5000
MIN_RETRY_MS = 1000
"""Both generous: what is tried is the broker, and not how many processes this machine can run at a time."""


@dataclass(frozen=True, slots=True)
class Board:
    """One agent."""

    device: str
    stages: tuple[int, ...] = ()
    branch: int | None = None
    is_origin: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """What is run: boards, the bundle they serve, and the inputs."""

    name: str
    bundle: Path | str
    boards: tuple[Board, ...]
    images: Images
    rate_hz: float

    @property
    def origin(self) -> Board:
        return next(board for board in self.boards if board.is_origin)


def chain(inputs: int, rate_hz: float) -> Trial:
    """Three stages of the bundle that ships: the camera's board has the first, two boards each have the others."""
    with np.load(SAMPLES) as arrays:
        images = arrays["input"]
    boards = (
        Board("b1a", (1,)),
        Board("b1b", (1,)),
        Board("b2a", (2,)),
        Board("b2b", (2,)),
        Board("cam", (0,), is_origin=True),
    )
    return Trial("chain", "fashion", boards, _so_many(images, inputs), rate_hz)


def wide(inputs: int, rate_hz: float, bundle: str | None = None, data: Path | None = None) -> Trial:
    """All branches of a wide bundle on two boards each; the origin fuses. The tests' tiny bundle if none is named."""
    chosen: Path | str = bundle or TINY_WIDE
    counts = load_bundle(chosen, verify=()).branch_counts
    stages = tuple(range(len(counts)))
    boards = tuple(Board(f"b{b}{twin}", stages, branch=b) for b in range(max(counts)) for twin in "ab")
    images = tiny_images(inputs) if data is None else _test_images(data)
    return Trial("wide", chosen, (*boards, Board("cam", is_origin=True)), _so_many(images, inputs), rate_hz)


def _test_images(data: Path) -> Images:
    return load_split(data, "test").inputs


def _so_many(images: Images, count: int) -> Images:
    """Take images from all over the file: it may be sorted."""
    order = np.random.default_rng(11).permutation(len(images))
    return images[np.resize(order, count)]


# ---------------------------------------------------------------- running one


@dataclass(slots=True)
class Run:
    """What was heard of a trial."""

    results: list[dict[str, Any]] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    dead: Counter[str] = field(default_factory=Counter)

    @property
    def finals(self) -> list[dict[str, Any]]:
        return [result for result in self.results if result["final"]]

    def take(self, topic: str, payload: bytes) -> None:
        parts = topic.split("/")
        if "result" in parts:
            self.results.append(json.loads(payload))
        elif parts[-1] == "state" and payload:
            self.states[parts[-2]] = json.loads(payload)["state"]
        elif parts[-1] == "dead":
            self.dead[json.loads(payload)["reason"]] += 1


class Stage:
    """The boards of a trial as processes, and a plain client that listens."""

    def __init__(self, trial: Trial, server: Server, mqtt: str | int, folder: Path) -> None:
        self.trial = trial
        self.run = Run()
        self._server = server
        self._mqtt = mqtt
        self._folder = folder
        self._site = f"brokers-{secrets.token_hex(3)}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # MQTT 3.1.1, which every broker has. Without wildcards for boards where they can be named.
        self._client = Client((server.host, server.port), V3)
        root = f"distree/1/{self._site}"
        for board in trial.boards:
            self._client.subscribe(*(f"{root}/device/{board.device}/{kind}" for kind in ("state", "dead")))
        self._client.subscribe(f"{root}/pipeline/{PIPELINE}/result/{trial.origin.device}")

    def start(self, board: Board) -> None:
        path = self._folder / f"{board.device}.yaml"
        path.write_text(yaml.safe_dump(self._config(board), sort_keys=False))
        argv = [sys.executable, "-m", "distree", "agent", "run", "-c", str(path)]
        with (self._folder / f"{board.device}.log").open("wb") as log:
            self._processes[board.device] = child_processes.spawn(argv, stdout=log, stderr=log)

    def _config(self, board: Board) -> dict[str, Any]:
        bundle = self.trial.bundle
        pipeline: dict[str, Any] = {"name": PIPELINE, "bundle": str(bundle), "stages": list(board.stages)}
        if board.branch is not None:
            pipeline["branch"] = board.branch
        if board.is_origin:
            pipeline["origin"] = self._origin()
            if load_bundle(bundle, verify=()).is_wide:
                pipeline["branch_timeout_ms"] = MIN_RETRY_MS
        return {
            "site": self._site,
            "device": board.device,
            "broker": {"host": self._server.host, "port": self._server.port, "mqtt_version": self._mqtt},
            "state_dir": str(self._folder / board.device),
            "pipelines": [pipeline],
        }

    def _origin(self) -> dict[str, Any]:
        path = self._folder / "inputs.npz"
        np.savez(path, input=self.trial.images)
        source = {"kind": "replay", "path": str(path), "rate_hz": self.trial.rate_hz}
        return {"deadline_ms": DEADLINE_MS, "min_retry_ms": MIN_RETRY_MS, "source": source}

    def listen(self, limit_s: float) -> bool:
        """Take what comes within so long; False if nothing came."""
        try:
            message = self._client.heard.get(timeout=limit_s)
        except queue.Empty:
            return False
        self.run.take(message.topic, message.payload)
        return True

    def await_ready(self, devices: set[str]) -> set[str]:
        """Wait until the boards are ready; return those that are not."""
        ends_at = time.monotonic() + READY_S
        while True:
            waiting = {device for device in devices if self.run.states.get(device) != "ready"}
            if not waiting or time.monotonic() > ends_at or self.ended():
                return waiting
            self.listen(0.2)

    def ended(self) -> dict[str, str]:
        """The last words of boards that ended by themselves."""
        return {
            device: (self.words(device) or ["no word"])[-1][:160]
            for device, process in self._processes.items()
            if process.poll() is not None
        }

    def words(self, device: str) -> list[str]:
        return (self._folder / f"{device}.log").read_text(errors="replace").strip().splitlines()

    def complaints(self) -> list[str]:
        """Return warnings and errors that boards wrote."""
        lines = (line for device in self._processes for line in self.words(device))
        return [line for line in lines if "WARNING" in line or "ERROR" in line or line.startswith("Traceback")]

    def close(self) -> None:
        processes = list(self._processes.values())
        if processes:
            # The origin was started last, and ends first: it answers what is pending while the others are there.
            child_processes.stop(processes.pop(), 5.0)
        for process in processes:
            process.terminate()
        for process in processes:
            child_processes.stop(process, 5.0)
        self._client.close()


@contextlib.contextmanager
def _stage(trial: Trial, server: Server, mqtt: str | int, folder: Path) -> Iterator[Stage]:
    stage = Stage(trial, server, mqtt, folder)
    try:
        yield stage
    finally:
        stage.close()


def play(trial: Trial, server: Server, mqtt: str | int, folder: Path) -> dict[str, Any]:
    """Run a trial on a broker and return its figures; `trouble` says why, where it did not come to an end."""
    folder.mkdir()
    expected = answers(trial.images, trial.bundle)
    with _stage(trial, server, mqtt, folder) as stage:
        others = {board.device for board in trial.boards if not board.is_origin}
        for board in trial.boards:
            if not board.is_origin:
                stage.start(board)
        waiting = stage.await_ready(others)
        trouble = f"not ready: {', '.join(sorted(waiting))}" if waiting else ""
        trouble += "".join(f"; {words}" for words in sorted(set(stage.ended().values())))
        if not trouble:
            stage.start(trial.origin)
            trouble = _answers(stage, len(trial.images))
        ended = stage.ended()
    figures = _figures(stage.run, expected)
    complaints = Counter(line.partition(" ")[2][:160] for line in stage.complaints())
    return {"trouble": trouble, **figures, "ended": ended, "complaints": dict(complaints.most_common(8))}


def _answers(stage: Stage, count: int) -> str:
    """Listen until all inputs are answered; what is amiss if they are not."""
    ends_at = time.monotonic() + READY_S
    while len(stage.run.finals) < count:
        if stage.listen(0.2):
            ends_at = max(ends_at, time.monotonic() + STALL_S) if not stage.run.results else time.monotonic() + STALL_S
        if stage.ended():
            return f"ended: {', '.join(sorted(stage.ended()))}"
        if time.monotonic() > ends_at:
            return "no more results"
    # A second result of the same input would be a fault.
    while stage.listen(0.5):
        pass
    return ""


def _figures(run: Run, expected: list[tuple[int, int]]) -> dict[str, Any]:
    finals = run.finals
    latencies = sorted(result["latency_ms"] for result in finals)
    return {
        "inputs": len(expected),
        "answered": len({result["request"] for result in finals}),
        "twice": len(finals) - len({result["request"] for result in finals}),
        "as_evaluated": sum(
            (result["class_id"], result["exit"]) == expected[int(result["input"])] for result in finals
        ),
        "exits": _counted(str(result["exit"]) for result in finals),
        "reasons": _counted(result["reason"] for result in finals),
        "provisional": len(run.results) - len(finals),
        "attempts_above_1": sum(result["attempt"] > 1 for result in finals),
        "missing": sum(bool(result.get("missing")) for result in finals),
        "boards": _counted(hop["device"] for result in finals for hop in result["hops"]),
        "p50_ms": round(statistics.median(latencies), 1) if latencies else None,
        "p95_ms": round(latencies[int(0.95 * (len(latencies) - 1))], 1) if latencies else None,
        "dead": dict(run.dead),
    }


def _counted(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
