"""Agents in processes of their own, an observer that hears all they say, and those who publish inputs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import paho.mqtt.client as mqtt
import yaml
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY as FIRST_ONLY
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from distree import child_processes
from distree.messages.codec import encode

HOST = "127.0.0.1"
SITE = "chaos"
PIPELINE = "fashion"
ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "model_zoo" / "samples" / "fashion.npz"
TINY_WIDE = ROOT / "tests" / "data" / "tiny-wide"

READY_S = 30.0
RECONNECT_S = 0.02
"""paho says that it takes whole seconds, and takes fractions too."""

# Not resolved: a virtual environment's python is a link.
OWN_PYTHON = str(Path(sys.executable).absolute())
"""The python that runs this; agents that it runs are those of this checkout."""

_GRAVE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback", re.MULTILINE)

Images = npt.NDArray[np.uint8]


class ShortfallError(Exception):
    """Something that a scenario cannot go on without did not come."""


class CannotPlayError(Exception):
    """This machine lacks what a fault needs."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says of how to play."""

    python: str = OWN_PYTHON
    broker: str = "managed"
    inputs: int = 110_000
    kills: int = 100


def images() -> Images:
    """The 1,000 sample images of Fashion-MNIST, uint8 (n, 28, 28, 1)."""
    with np.load(SAMPLES) as arrays:
        found: Images = arrays["input"]
    return found


def tiny_images(count: int = 400) -> Images:
    """Inputs of the tiny wide bundle: noise, uint8 (n, 8, 8, 3)."""
    return np.random.default_rng(7).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def packed_input(request: str, image: Images) -> bytes:
    """Return a named input as the input topic takes it."""
    fields = {"v": 1, "kind": "input", "request": request, "name": request, "payload": image.tobytes()}
    packed: bytes = msgpack.packb(fields)
    return packed


def input_topic(origin: str, pipeline: str = PIPELINE) -> str:
    return f"distree/1/{SITE}/pipeline/{pipeline}/input/{origin}"


def stage_topic(stage: int, to: str, sender: str, pipeline: str = PIPELINE) -> str:
    return f"distree/1/{SITE}/pipeline/{pipeline}/stage/{stage}/{to}/{sender}"


# ---------------------------------------------------------------- whoever watches


@dataclass(frozen=True, slots=True)
class Answer:
    """A result, as far as scenarios look at it. `at` is when it was heard, in monotonic seconds."""

    at: float
    request: str
    name: str
    label: str | None
    class_id: int | None
    exit: int | None
    reason: str
    latency_ms: float
    origin: str
    epoch: int
    missing: tuple[int, ...]
    dated: str
    """When it was written by the origin's wall clock, ISO 8601."""

    @property
    def gist(self) -> tuple[str | None, int | None, int | None]:
        """What an answer says, whatever brought it about."""
        return self.label, self.class_id, self.exit


@dataclass(slots=True)
class Books:
    """What an origin says of its inputs, since its agent started."""

    sequence: int = -1
    boot: str = ""
    accepted: int = 0
    answered: int = 0
    pending: int = 0
    shed: int = 0
    dropped: int = 0

    @property
    def offered(self) -> int:
        return self.accepted + self.shed + self.dropped

    def figures(self) -> dict[str, int]:
        """Return what is reported of them."""
        names = ("offered", "accepted", "answered", "shed", "dropped", "pending")
        return {name: getattr(self, name) for name in names}


class Observer:
    """Subscribes to what a site says, by plain paho in a thread of its own, and keeps it. Read under `lock`."""

    def __init__(self, port: int, *, results: bool = True, qos: int = 1, pipeline: str = PIPELINE) -> None:
        self.lock = threading.Lock()
        self.finals: dict[str, list[Answer]] = defaultdict(list)
        """Final results by request, in the order of arrival."""
        self.by_name: dict[str, list[Answer]] = defaultdict(list)
        self.provisional = 0
        self.states: dict[str, str] = {}
        self.boots: dict[str, str] = {}
        self.boot_changes: Counter[str] = Counter()
        """How often another run of a device's agent spoke than the one before."""
        self.books: dict[str, Books] = {}
        self.dead: Counter[tuple[str, str]] = Counter()
        """Dead letters by device and reason."""
        self.sys: dict[str, tuple[float, str]] = {}
        self.failures: list[str] = []
        self.plans: dict[int, tuple[str, tuple[float, ...]]] = {}
        """Criterion and thresholds of each plan that was published, by its epoch."""
        # Dead letters come on a connection of their own: a flood of them is not to push results out at the broker.
        own = [(f"distree/1/{SITE}/device/+/{kind}", qos) for kind in ("state", "meta", "telemetry")]
        own += [("$SYS/broker/#", 0), (f"distree/1/{SITE}/pipeline/{pipeline}/plan", qos)]
        if results:
            own.append((f"distree/1/{SITE}/pipeline/{pipeline}/result/+", qos))
        self._clients = [
            self._connect(port, "chaos-observer", own),
            self._connect(port, "chaos-coroner", [(f"distree/1/{SITE}/device/+/dead", qos)]),
        ]

    def _connect(self, port: int, client_id: str, filters: list[tuple[str, int]]) -> mqtt.Client:
        subscribed = threading.Event()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id, protocol=mqtt.MQTTv5)

        def connected(*_: Any) -> None:
            client.subscribe(filters)

        client.on_connect = connected
        client.on_subscribe = lambda *_: subscribed.set()
        client.on_message = self._on_message
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = 65535
        # Back before any agent is, and with its session where the broker has kept it: no result goes by unheard.
        properties.SessionExpiryInterval = 3600
        client.reconnect_delay_set(RECONNECT_S, RECONNECT_S)  # type: ignore[arg-type]
        client.connect(HOST, port, clean_start=FIRST_ONLY, properties=properties)
        client.loop_start()
        if not subscribed.wait(10.0):
            raise ShortfallError("the observer cannot subscribe")
        return client

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        with self.lock:
            try:
                self._take(message.topic, bytes(message.payload))
            except (KeyError, ValueError, TypeError) as error:
                self.failures.append(f"{message.topic}: {error}")

    def _take(self, topic: str, payload: bytes) -> None:
        if topic.startswith("$SYS"):
            self.sys[topic.removeprefix("$SYS/broker/")] = time.monotonic(), payload.decode()
            return
        parts = topic.split("/")
        if "result" in parts:
            self._take_result(json.loads(payload))
        elif parts[-1] == "state" and payload:
            fields = json.loads(payload)
            self.boot_changes[parts[-2]] += self.boots.get(parts[-2]) != fields["boot"]
            self.states[parts[-2]], self.boots[parts[-2]] = fields["state"], fields["boot"]
        elif parts[-1] == "dead":
            self.dead[parts[-2], json.loads(payload)["reason"]] += 1
        elif parts[-1] == "plan" and payload:
            plan = msgpack.unpackb(payload)
            self.plans[plan["epoch"]] = plan["criterion"], tuple(plan["thresholds"])
        elif parts[-1] == "telemetry":
            self._take_telemetry(parts[-2], msgpack.unpackb(payload))

    def _take_result(self, fields: dict[str, Any]) -> None:
        if not fields["final"]:
            self.provisional += 1
            return
        answer = Answer(
            at=time.monotonic(),
            request=fields["request"],
            name=fields["input"],
            label=fields["label"],
            class_id=fields["class_id"],
            exit=fields["exit"],
            reason=fields["reason"],
            latency_ms=fields["latency_ms"],
            origin=fields["origin"],
            epoch=fields["epoch"],
            missing=tuple(sorted(part["branch"] for part in fields.get("missing", ()))),
            dated=fields["time"],
        )
        self.finals[answer.request].append(answer)
        self.by_name[answer.name].append(answer)

    def _take_telemetry(self, device: str, report: dict[str, Any]) -> None:
        for part in report["pipelines"]:
            if part["pipeline"] == PIPELINE and part["origin"] is not None:
                counts = part["origin"]
                names = ("accepted", "answered", "pending", "shed", "dropped")
                self.books[device] = Books(
                    report["sequence"], report["boot"], *(int(counts.get(name, 0)) for name in names)
                )

    def until(self, condition: Callable[[], bool], patience_s: float, every_s: float = 0.05) -> bool:
        """Wait until a condition holds, which is asked under the lock; False if it did not come true in time."""
        ends_at = time.monotonic() + patience_s
        while True:
            with self.lock:
                if condition():
                    return True
            if time.monotonic() > ends_at:
                return False
            time.sleep(every_s)

    def ready(self, *devices: str) -> bool:
        return all(self.states.get(device) == "ready" for device in devices)

    def labelled(self, requests: Iterable[str]) -> int:
        """How many of the requests have a final result with a label."""
        with self.lock:
            return sum(any(answer.label is not None for answer in self.finals.get(r, ())) for r in requests)

    def unanswered(self, requests: Iterable[str]) -> list[str]:
        """The requests without any final result."""
        with self.lock:
            return [request for request in requests if not self.finals.get(request)]

    def differing(self) -> list[str]:
        """The requests of which two final results say different things."""
        with self.lock:
            return [r for r, found in self.finals.items() if len({answer.gist for answer in found}) > 1]

    def reports_since(self, device: str, count: int = 2, patience_s: float = 15.0) -> bool:
        """Wait for so many further reports of a device, so that what they say is of after this call."""
        with self.lock:
            before = self.books.get(device, Books()).sequence
        return self.until(lambda: self.books.get(device, Books()).sequence >= before + count, patience_s)

    def broker_dropped(self, patience_s: float = 25.0) -> int:
        """What the broker says that it dropped in its life; it tells so every ten seconds."""
        asked_at = time.monotonic()
        self.until(lambda: self.sys.get("uptime", (0.0, ""))[0] > asked_at, patience_s)
        time.sleep(0.5)
        with self.lock:
            return int(self.sys.get("publish/messages/dropped", (0.0, "0"))[1])

    def close(self) -> None:
        for client in self._clients:
            client.disconnect()
            client.loop_stop()


# ---------------------------------------------------------------- whoever publishes


class Publisher:
    """Publishes by plain paho; a bounded number waits for the broker's word."""

    def __init__(self, port: int, window: int = 1000, name: str = "chaos-publisher") -> None:
        self.acknowledged: set[str] = set()
        self.published_at: dict[str, float] = {}
        """When each named input was first handed over, in monotonic seconds."""
        self.unheard: set[str] = set()
        """Acknowledged, but the broker said that nobody subscribes."""
        self._window = window
        self._mids: dict[int, str] = {}
        self._early: dict[int, bool] = {}
        self._open = 0
        self._changed = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5)
        self._client.max_inflight_messages_set(200)
        self._client.max_queued_messages_set(0)
        self._client.on_publish = self._on_publish
        self._client.reconnect_delay_set(RECONNECT_S, RECONNECT_S)  # type: ignore[arg-type]
        self._client.connect(HOST, port)
        self._client.loop_start()

    def _on_publish(self, _client: mqtt.Client, _data: object, mid: int, reason: Any, *_: Any) -> None:
        unheard = reason == "No matching subscribers"
        with self._changed:
            self._open -= 1
            if mid in self._mids:
                self._note(self._mids.pop(mid), unheard=unheard)
            else:
                self._early[mid] = unheard
            self._changed.notify_all()

    def _note(self, request: str, *, unheard: bool) -> None:
        self.acknowledged.add(request)
        if unheard:
            self.unheard.add(request)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, request: str = "") -> None:
        """Publish; at QoS 1, `request` is among `acknowledged` once the broker has it."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._open < self._window, 30.0):
                raise ShortfallError("the broker takes no more publishes")
            self._open += 1
        if request:
            self.published_at[request] = time.monotonic()
        # Without the lock: paho calls `_on_publish` with locks of its own held.
        mid = self._client.publish(topic, payload, qos=qos, retain=retain).mid
        with self._changed:
            if mid in self._early:
                self._note(request, unheard=self._early.pop(mid))
            else:
                self._mids[mid] = request

    def settle(self, patience_s: float = 60.0) -> None:
        """Wait until the broker has all of it."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._open == 0, patience_s):
                raise ShortfallError(f"the broker does not acknowledge {self._open} publishes")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Flow:
    """Publishes named inputs of one origin, at QoS 1 unless told otherwise; knows which it has published."""

    def __init__(self, publisher: Publisher, origin: str, pool: Images, pipeline: str = PIPELINE) -> None:
        self.requests: list[str] = []
        self.pool = pool
        self._publisher = publisher
        self._origin = origin
        self._pipeline = pipeline
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def send(self, count: int, prefix: str, *, rate_hz: float = 0.0, qos: int = 1) -> list[str]:
        """Publish `count` inputs, as fast as the broker takes them or so many a second; return their requests."""
        started_at = time.monotonic()
        sent = []
        for index in range(count):
            if rate_hz:
                time.sleep(max(0.0, started_at + index / rate_hz - time.monotonic()))
            sent.append(self._one(f"{prefix}-{index}", qos))
        return sent

    def _one(self, request: str, qos: int) -> str:
        image = self.pool[len(self.requests) % len(self.pool)]
        topic = input_topic(self._origin, self._pipeline)
        self.requests.append(request)
        self._publisher.publish(topic, packed_input(request, image), qos=qos, request=request)
        return request

    def start(self, prefix: str, rate_hz: float) -> None:
        """Publish at a rate, in a thread, until `stop`."""

        def run() -> None:
            index, started_at = 0, time.monotonic()
            while not self._stop.wait(max(0.0, started_at + index / rate_hz - time.monotonic())):
                self._one(f"{prefix}-{index}", 1)
                index += 1

        self._stop.clear()
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(40.0)


# ---------------------------------------------------------------- agents


def memory_kb(pid: int) -> dict[str, int]:
    """Return VmRSS and VmHWM of a process, in kibibytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}


@dataclass(slots=True)
class Site:
    """A folder, a broker's port, an observer, and the agents started there; ends them at its close."""

    port: int
    options: Options
    observer: Observer
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def configure(
        self,
        device: str,
        stages: Iterable[int] = (),
        *,
        origin: dict[str, Any] | None = None,
        port: int | None = None,
        bundle: str | Path = PIPELINE,
        branch: int | None = None,
        fuse: bool = False,
        more: Iterable[dict[str, Any]] = (),
        **changes: Any,
    ) -> Path:
        """Write a board's YAML. `port` is that of a proxy."""
        pipeline: dict[str, Any] = {"name": PIPELINE, "bundle": str(bundle), "stages": list(stages)}
        if origin is not None:
            pipeline["origin"] = origin
        if branch is not None:
            pipeline["branch"] = branch
        if fuse:
            pipeline["fuse"] = True
        config = {
            "site": SITE,
            "device": device,
            "broker": {"port": port or self.port, "keepalive_s": 5},
            "state_dir": str(self.folder / f"{device}-state"),
            "telemetry_interval_s": 0.5,
            "pipelines": [pipeline, *more],
            **changes,
        }
        path = self.folder / f"{device}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    def start(self, device: str, *, ready: bool = True) -> None:
        """Start a board's agent, which `configure` described; wait until it says that it is ready."""
        with self.observer.lock:
            boot = self.observer.boots.get(device)
        self.run(device, "agent", "run", "-c", str(self.folder / f"{device}.yaml"))
        if ready and not self.observer.until(
            lambda: self.observer.ready(device) and self.observer.boots[device] != boot, READY_S, 0.01
        ):
            raise ShortfallError(
                f"{device} is not ready after {READY_S:g} s; its log ends: {self.log(device)[-300:]!r}"
            )

    def run(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start `distree ARGUMENTS` in the site's folder; what it prints is appended to NAME.log there."""
        environ = {variable: value for variable, value in os.environ.items() if variable != "PYTHONPATH"}
        if self.options.python == OWN_PYTHON:
            environ["PYTHONPATH"] = str(ROOT)  # else another python runs the code that is installed there
        command = ["env", "-C", str(self.folder), self.options.python, "-m", "distree", *arguments]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = child_processes.spawn(
                command, stdout=log, stderr=log, env=environ | dict(environment or {})
            )

    def agent(self, device: str, stages: Iterable[int] = (), *, ready: bool = True, **changes: Any) -> None:
        """Configure and start."""
        self.configure(device, stages, **changes)
        self.start(device, ready=ready)

    def log(self, device: str) -> str:
        return (self.folder / f"{device}.log").read_text(errors="replace")

    def grave(self, device: str) -> list[str]:
        """The lines of an agent's log of level WARNING or above."""
        return [line for line in self.log(device).splitlines() if _GRAVE.search(line)]

    def kill(self, device: str) -> None:
        """End an agent as a power cut does."""
        self.processes[device].kill()
        self.processes[device].wait()

    def terminate(self, device: str, patience_s: float = 30.0) -> int:
        """Tell an agent to stop; return its exit status, ShortfallError if it does not end."""
        process = self.processes[device]
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise ShortfallError(f"{device} does not end within {patience_s:g} s of SIGTERM") from None

    def alive(self) -> list[str]:
        """The devices whose agents run."""
        return [device for device, process in self.processes.items() if process.poll() is None]

    def memory(self) -> dict[str, dict[str, int]]:
        return {device: memory_kb(self.processes[device].pid) for device in self.alive()}

    def plan(
        self, publisher: Publisher, thresholds: tuple[float, ...], bundle: str | Path = PIPELINE, epoch: int = 1
    ) -> None:
        """Publish a retained plan: these thresholds, by max softmax."""
        content = packed_plan(thresholds, bundle, epoch)
        publisher.publish(f"distree/1/{SITE}/pipeline/{PIPELINE}/plan", content, retain=True)
        publisher.settle()

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        for process in self.processes.values():
            process.wait()
        self.observer.close()


def packed_plan(thresholds: tuple[float, ...], bundle: str | Path = PIPELINE, epoch: int = 1) -> bytes:
    """Return a plan by max softmax."""
    from distree.bundle.loading import load_bundle
    from distree.messages.plan import Plan

    found = load_bundle(bundle, verify=())
    return encode(
        Plan(
            pipeline=PIPELINE,
            epoch=epoch,
            model=found.name,
            revision=found.revision,
            criterion="max_softmax",
            thresholds=thresholds,
        )
    )


@contextlib.contextmanager
def open_site(port: int, options: Options, **observing: Any) -> Iterator[Site]:
    """A site on the broker at `port`, in a temporary folder; ends its agents when left."""
    with tempfile.TemporaryDirectory(prefix="distree-chaos-") as folder:
        site = Site(port, options, Observer(port, **observing), Path(folder))
        try:
            yield site
        finally:
            site.close()


@contextlib.contextmanager
def closing_all(*things: Any) -> Iterator[None]:
    """Close each at the end."""
    try:
        yield
    finally:
        for thing in things:
            thing.close()
