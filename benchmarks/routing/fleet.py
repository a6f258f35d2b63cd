"""A broker, agents of some checkout in processes of their own, and a stream of inputs whose results are kept.

Only configuration files, inputs and results (and the states of boards) are spoken here, so that agents of other
checkouts can be played with, whatever they say to each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import paho.mqtt.client as mqtt
import yaml
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from broker_config.managed import ManagedBroker
from distree import child_processes

HOST, SITE, PIPELINE = "127.0.0.1", "routes", "p"
ROOT = Path(__file__).parents[2]
PACED = Path(__file__).with_name("paced.py")
TINY_WIDE = ROOT / "tests" / "data" / "tiny-wide"
START_S = 60.0

Images = npt.NDArray[np.uint8]


class ShortfallError(Exception):
    """Something that a scenario cannot go on without did not come."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A final result; `at` is when it was heard, in monotonic seconds."""

    at: float
    origin: str
    reason: str
    attempt: int
    latency_ms: float
    missing: int
    boards: tuple[str, ...]
    """Who had a part in it, by stage."""


def fashion_images() -> Images:
    """Return the sample images of Fashion-MNIST."""
    with np.load(ROOT / "model_zoo" / "samples" / "fashion.npz") as arrays:
        found: Images = arrays["input"]
    return found


def tiny_images() -> Images:
    """Return noise that fits the tiny wide bundle."""
    return np.random.default_rng(7).integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)


def connect(port: int, name: str) -> mqtt.Client:
    """Return a client whose connection is served by a thread."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5)
    client.max_queued_messages_set(0)
    client.max_inflight_messages_set(1000)
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.ReceiveMaximum = 65535
    client.connect(HOST, port, clean_start=True, properties=properties)
    return client


class Ear:
    """Hears the final results, the states and the plans of the site; with `all_of_it` counts every message by kind."""

    def __init__(self, port: int, *, all_of_it: bool = False) -> None:
        self.lock = threading.Lock()
        self.answers: dict[str, Answer] = {}
        self.states: dict[str, str] = {}
        self.plans = 0
        self.kinds: Counter[str] = Counter()
        self.sys: dict[str, str] = {}
        self._client = connect(port, "ear-of-all" if all_of_it else "ear")
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = self._take
        self._client.loop_start()
        some = ("device/+/state", "pipeline/+/result/+", "pipeline/+/plan")
        wanted = ["#"] if all_of_it else [f"distree/1/{SITE}/{name}" for name in some]
        self._client.subscribe([*((name, 1) for name in wanted), ("$SYS/broker/#", 0)])
        if not subscribed.wait(10.0):
            raise ShortfallError("the ear cannot subscribe")

    def _take(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        now, parts = time.monotonic(), message.topic.split("/")
        with self.lock:
            if parts[0] == "$SYS":
                self.sys[message.topic.removeprefix("$SYS/broker/")] = message.payload.decode()
                return
            if len(parts) < 6:  # the claim of an orchestrator
                return
            kind = parts[5]
            if not message.retain:
                self.kinds[kind] += 1
            if kind == "result":
                self._take_result(now, json.loads(message.payload))
            elif kind == "plan":
                self.plans += 1
            elif kind == "state" and message.payload:
                self.states[parts[4]] = json.loads(message.payload)["state"]

    def _take_result(self, now: float, fields: dict[str, Any]) -> None:
        if fields["final"]:
            boards = [(hop["stage"], hop["device"]) for hop in fields["hops"]]
            self.answers[fields["request"]] = Answer(
                at=now,
                origin=fields["origin"],
                reason=fields["reason"],
                attempt=fields["attempt"],
                latency_ms=fields["latency_ms"],
                missing=len(fields.get("missing", ())),
                boards=tuple(device for _, device in sorted(boards)),
            )

    def until(self, condition: Callable[[], bool], what: str, patience_s: float = START_S) -> None:
        """Return once the condition holds, which is asked under the lock; ShortfallError if it does not in time."""
        ends_at = time.monotonic() + patience_s
        while True:
            with self.lock:
                if condition():
                    return
            if time.monotonic() > ends_at:
                raise ShortfallError(f"waited {patience_s:g} s in vain for {what}")
            time.sleep(0.01)

    def close(self) -> None:
        """End the connection."""
        self._client.disconnect()
        self._client.loop_stop()


class Stream:
    """Inputs of some origins, so many a second in all, in turn; when each was sent."""

    def __init__(self, port: int, origins: Sequence[str], images: Images, rate_hz: float, prefix: str = "r") -> None:
        self.sent: dict[str, float] = {}
        self._topics = [f"distree/1/{SITE}/pipeline/{PIPELINE}/input/{origin}" for origin in origins]
        self._images, self._rate_hz, self._prefix = images, rate_hz, prefix
        self._client = connect(port, f"stream-{prefix}")
        self._client.loop_start()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        index, began_at = 0, time.monotonic()
        while not self._stop.wait(max(0.0, began_at + index / self._rate_hz - time.monotonic())):
            name = f"{self._prefix}{index}"
            image = self._images[index % len(self._images)]
            fields = {"v": 1, "kind": "input", "request": name, "name": name, "payload": image.tobytes()}
            self.sent[name] = time.monotonic()
            self._client.publish(self._topics[index % len(self._topics)], msgpack.packb(fields), qos=1)
            index += 1

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()
        self._thread.join(10.0)
        # What was published last is with the broker before the connection ends.
        time.sleep(0.2)
        self._client.disconnect()
        self._client.loop_stop()


@dataclass(slots=True)
class Fleet:
    """A folder, a broker, and the processes of one checkout."""

    checkout: Path
    folder: Path
    broker: ManagedBroker
    bundle: str
    ear: Ear
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], config: dict[str, Any], pace_ms: float = 0.0) -> None:
        """Start `distree` with a configuration; a board each segment of which takes `pace_ms` at the least."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"site": SITE, "broker": {"port": self.broker.port}, **config}))
        environ = {**os.environ, "PYTHONPATH": str(self.checkout)}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = child_processes.spawn(
                [sys.executable, str(PACED), str(pace_ms), *command, "-c", str(path)],
                stdout=log,
                stderr=log,
                env=environ,
            )

    def board(
        self, device: str, stages: list[int], *, pace_ms: float = 0.0, keepalive_s: int = 15, **pipeline: Any
    ) -> None:
        """Start an agent; `pipeline` is what else stands in its pipeline's configuration."""
        part = {"name": PIPELINE, "bundle": self.bundle, "stages": stages, **pipeline}
        config = {
            "device": device,
            "state_dir": str(self.folder / device),
            "pipelines": [part],
            "broker": {"port": self.broker.port, "keepalive_s": keepalive_s},
        }
        self.start(device, ["agent", "run"], config, pace_ms)

    def origin(self, device: str, stages: list[int], **changes: Any) -> None:
        """Start an agent with inputs of its own."""
        own = {"deadline_ms": 2000, "max_pending": 1024, "source": {"kind": "mqtt"}, **changes}
        self.board(device, stages, origin=own)

    def ready(self, *devices: str) -> None:
        """Return once these boards are ready."""
        missing = lambda: [one for one in devices if self.ear.states.get(one) != "ready"]  # noqa: E731
        self.ear.until(lambda: not missing(), f"boards of {self.checkout}, logs in {self.folder}")

    def send_all_on(self, exits: int) -> None:
        """Have no exit but the last be sure of anything, by a plan that stays at the broker."""
        pipeline = {"name": PIPELINE, "bundle": self.bundle, "thresholds": ["never"] * exits}
        store = {"path": str(self.folder / "orchestrator.db")}
        self.start("orchestrator", ["orchestrator", "run"], {"store": store, "pipelines": [pipeline]})
        self.ear.until(lambda: self.ear.plans > 0, "a plan")
        child_processes.stop(self.processes.pop("orchestrator"), 10.0)

    def signal(self, device: str, number: signal.Signals) -> None:
        """Send a signal to a board's process; wait for the end of one that it ends."""
        self.processes[device].send_signal(number)
        if number is signal.SIGKILL:
            self.processes[device].wait()

    def close(self) -> None:
        """End everything."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.kill()
        for process in self.processes.values():
            process.wait()


@contextlib.contextmanager
def fleet(checkout: Path, bundle: str = "fashion") -> Iterator[Fleet]:
    """Give a fleet on a broker of its own, which keeps sessions and what is retained over its restart."""
    with tempfile.TemporaryDirectory(prefix="distree-routing-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "broker").mkdir()
        broker = stack.enter_context(ManagedBroker(engine="mosquitto", persistence=folder / "broker"))
        made = Fleet(checkout, folder, broker, bundle, Ear(broker.port))
        stack.callback(made.close)
        yield made
        made.ear.close()
