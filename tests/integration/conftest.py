"""Real brokers, real agents in processes of their own, and a subscriber that watches them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import yaml
from forked import Forked

from broker_config.managed import ManagedBroker
from distree import topics
from distree.broker_settings import BrokerSettings, Session
from distree.bundle.loading import Bundle, find_bundle, load_bundle
from distree.errors import Problem, RemoteProtocolError
from distree.messages.codec import decode, encode
from distree.messages.device import DeviceMeta, DeviceState
from distree.messages.events import DeadLetter
from distree.messages.plan import MaskedThresholds, Plan
from distree.messages.request import InputMessage, StageMessage
from distree.messages.result import Result
from distree.messages.telemetry import FusionTelemetry, StageTelemetry, Telemetry
from distree.topics import ROOT, Kind
from distree.transport import make_transport
from distree.transport.base import Received

PATIENCE_S = 60.0
SITE = "test"
PIPELINE = "fashion"


class Watcher:
    """Subscribes to all of the site and keeps what it hears. Driven by `until`, in the test's own thread."""

    def __init__(self, port: int, client_id: str = "watcher") -> None:
        settings = BrokerSettings(port=port)
        self.transport = make_transport(settings, client_id=client_id, receive_maximum=512, session=Session.DURABLE)
        self.results: list[Result] = []
        self.raw_results: list[dict[str, Any]] = []
        self.dead: list[DeadLetter] = []
        self.telemetry: dict[str, Telemetry] = {}
        self.metas: dict[str, DeviceMeta] = {}
        self.states: dict[str, str] = {}
        self.history: list[tuple[str, str]] = []
        self.sent: list[StageMessage] = []
        """What went to stages, from `follow` on."""
        self.transport.open(
            self,
            [
                (f"{ROOT}/{SITE}/device/+/+", 1),
                (f"{ROOT}/{SITE}/pipeline/+/result/+", 1),
            ],
        )
        self.transport.connect_now(10.0)

    def connected(self) -> None:
        pass

    def disconnected(self, why: Problem) -> None:
        pass

    def published(self, token: str) -> None:
        pass

    def given_up(self, token: str) -> None:
        pass

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        pass

    def received(self, message: Received) -> None:
        self.transport.acknowledge(message.token)
        address = topics.parse(message.topic)
        match address.kind:
            case Kind.RESULT:
                self.results.append(decode(Result, message.payload))
                self.raw_results.append(json.loads(message.payload))
            case Kind.DEAD:
                self.dead.append(decode(DeadLetter, message.payload))
            case Kind.TELEMETRY:
                self.telemetry[address.device] = decode(Telemetry, message.payload)
            case Kind.META:
                self.metas[address.device] = decode(DeviceMeta, message.payload)
            case Kind.STAGE:
                self.sent.append(decode(StageMessage, message.payload))
            case Kind.STATE:
                with contextlib.suppress(RemoteProtocolError):
                    state = decode(DeviceState, message.payload)
                    self.states[state.device] = state.status.value
                    self.history.append((state.device, state.status.value))

    def follow(self) -> None:
        """Listen to what goes to stages, too."""
        with self.transport.lock:
            self.transport.subscribe([(topics.every(Kind.STAGE, SITE), 1)])

    def until(self, condition: Callable[[], bool], what: str = "", patience_s: float = PATIENCE_S) -> None:
        ends_at = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < ends_at, f"waited in vain for {what or condition}"
            self.transport.poll(0.02)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        with self.transport.lock:
            self.transport.publish(topic, payload, qos=1, retain=retain)

    def settle(self) -> None:
        """Return once all that was published before has reached the broker."""
        self.until(lambda: self.transport.idle, "the broker")

    def final(self) -> dict[str, Result]:
        return {result.input: result for result in self.results if result.final}

    def stages(self, device: str) -> dict[int, StageTelemetry]:
        """The device's last report on its stages of its first pipeline; {} before the first."""
        report = self.telemetry.get(device)
        return {} if report is None else {part.stage: part for part in report.pipelines[0].stages}

    def fusions(self, device: str) -> dict[int, FusionTelemetry]:
        """The device's last report on what it fused of its first pipeline; {} before the first."""
        report = self.telemetry.get(device)
        return {} if report is None else {part.stage: part for part in report.pipelines[0].fusions}

    def until_reported(self, *devices: str) -> None:
        """Return once each device has reported on all that it did before this call."""
        before = {device: self.telemetry[device].sequence if device in self.telemetry else 0 for device in devices}
        # Not the next one, which may be on its way already.
        self.until(
            lambda: all(d in self.telemetry and self.telemetry[d].sequence >= before[d] + 2 for d in devices),
            f"reports of {', '.join(devices)}",
        )


class Site:
    """A broker, a folder, and the agents started on them."""

    def __init__(self, folder: Path, broker: ManagedBroker) -> None:
        self.folder = folder
        self.broker = broker
        self.bundle = "fashion"
        """What the agents serve: a name in the model zoo, or a folder."""
        self.watch = Watcher(broker.port)
        self.processes: dict[str, Forked | subprocess.Popen[bytes]] = {}

    def agent_config(self, device: str, stages: list[int], **changes: Any) -> Path:
        extra = changes.pop("pipelines", [])
        pipeline: dict[str, Any] = {"name": PIPELINE, "bundle": self.bundle, "stages": stages}
        for key in ("origin", "branch", "fuse", "branch_timeout_ms"):
            if key in changes:
                pipeline[key] = changes.pop(key)
        config = {
            "site": SITE,
            "device": device,
            "broker": {"port": self.broker.port, "keepalive_s": 5},
            "state_dir": str(self.folder / device),
            "telemetry_interval_s": 0.2,
            "pipelines": [pipeline, *extra],
            **changes,
        }
        path = self.folder / f"{device}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    def start(self, name: str, *command: str) -> Forked:
        process = self.processes[name] = forked.start(command, stderr=self.folder / f"{name}.log")
        return process

    def agent(self, device: str, stages: list[int], *, ready: bool = True, **changes: Any) -> Forked:
        process = self.start(device, "agent", "run", "-c", str(self.agent_config(device, stages, **changes)))
        if ready:
            self.watch.states.pop(device, None)

            self.until_ready(device)
        return process

    def until_ready(self, device: str) -> None:
        """Wait for a board that was started to be ready; fail with its log as soon as its process has ended."""

        def is_ready() -> bool:
            assert self.processes[device].poll() is None, self.log(device)
            return self.watch.states.get(device) == "ready"

        self.watch.until(is_ready, device)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def submit(self, request: str, name: str, image: np.ndarray, origin: str = "cam") -> None:
        message = InputMessage(request=request, name=name, payload=image.tobytes())
        self.watch.publish(topics.of_origin(SITE, PIPELINE, Kind.INPUT, origin), encode(message))

    def plan(
        self,
        bundle: Bundle,
        epoch: int,
        thresholds: tuple[float, ...],
        criterion: str = "max_softmax",
        masked: tuple[MaskedThresholds, ...] = (),
    ) -> None:
        plan = Plan(
            pipeline=PIPELINE,
            epoch=epoch,
            model=bundle.name,
            revision=bundle.revision,
            criterion=criterion,
            thresholds=thresholds,
            masked=masked,
        )
        self.watch.publish(topics.plan(SITE, PIPELINE), encode(plan), retain=True)

    def kill(self, name: str) -> None:
        """End a process as a power cut does."""
        process = self.processes[name]
        process.kill()
        process.wait()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        self.watch.transport.close()


@pytest.fixture
def site_on(tmp_path: Path) -> Iterator[Callable[[ManagedBroker], Site]]:
    """Makes a site on a broker that the test itself runs."""
    with contextlib.ExitStack() as stack:

        def make(broker: ManagedBroker) -> Site:
            return stack.enter_context(contextlib.closing(Site(tmp_path, broker)))

        yield make


@pytest.fixture
def site(site_on: Callable[[ManagedBroker], Site]) -> Iterator[Site]:
    """A site of its own, on mosquitto or else on the embedded broker."""
    with ManagedBroker() as broker:
        site = site_on(broker)
        yield site
        site.close()


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return load_bundle("fashion")


@pytest.fixture(scope="session")
def samples_path() -> Path:
    return find_bundle("fashion").parents[1] / "samples" / "fashion.npz"


@pytest.fixture(scope="session")
def images(samples_path: Path) -> np.ndarray:
    with np.load(samples_path) as arrays:
        return arrays["input"]


DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def tiny_wide() -> Bundle:
    """Three wide stages of two branches."""
    return load_bundle(DATA / "tiny-wide")


@pytest.fixture(scope="session")
def tiny_mixed() -> Bundle:
    """A plain stage, two wide ones of three branches, and a plain one."""
    return load_bundle(DATA / "tiny-mixed")


@pytest.fixture(scope="session")
def tiny_images() -> np.ndarray:
    """Inputs of both tiny bundles."""
    return np.random.default_rng(7).integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory, tiny_images: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "inputs.npz"
    np.savez(path, input=tiny_images, label=np.arange(len(tiny_images)) % 4)
    return path
