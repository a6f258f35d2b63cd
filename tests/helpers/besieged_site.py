"""A site that somebody attacks: on an open broker, or on one as `distree broker init` makes it.

Board `cam1` is the origin and has stage 0, `b1` has stages 1 and 2, and an orchestrator with a goal plans for them. With
so few audits as come of a test, early exits stay disabled: each input is answered by the last exit, or something was
forged. All are processes; attackers and users are plain connections.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import numpy as np
import yaml
from setup_broker import Mosquitto

from broker_config.access.dynamic_security import find_plugin
from broker_config.managed import free_port
from broker_config.site import control
from broker_config.site.broker import SiteBroker
from broker_config.site.config import SiteConfig, UserConfig
from broker_config.site.folder import SiteFolder, read_broker_yaml
from distree import topics
from distree.bundle.loading import load_bundle
from distree.messages.codec import decode, encode
from distree.messages.device import DeviceState, DeviceStatus
from distree.messages.plan import Plan, plan_hash
from distree.messages.request import InputMessage
from distree.messages.result import Result
from distree.messages.telemetry import Telemetry
from distree.thresholds import NEVER
from distree.topics import ROOT, Kind
from distree.transport.packets import Published
from distree.transport.probe import ProbeClient

SITE, PIPELINE = "lab", "fashion"
PATIENCE_S = 60.0
PLAN = topics.plan(SITE, PIPELINE)
INPUT = topics.of_origin(SITE, PIPELINE, Kind.INPUT, "cam1")
USERS = (
    UserConfig(name="cam1", roles=("origin", "stage")),
    UserConfig(name="b1", roles=("stage",)),
    # Whoever took these boards' keys is an insider.
    UserConfig(name="b9", roles=("stage",)),
    UserConfig(name="cam9", roles=("origin",)),
    UserConfig(name="orchestrator", roles=("orchestrator",)),
    UserConfig(name="dashboard", roles=("dashboard",)),
    UserConfig(name="submitter", roles=("submitter",)),
    UserConfig(name="administrator", roles=("administrator",)),
)


def soon() -> float:
    """When patience ends, by the monotonic clock."""
    return time.monotonic() + PATIENCE_S


class BesiegedSite:
    """The broker, the boards and the orchestrator; ends with `close`."""

    def __init__(self, folder: Path, images: np.ndarray, *, secured: bool) -> None:
        self.folder, self.secured = folder, secured
        self.bundle = load_bundle("fashion")
        self.asked = 0
        self._images = images
        self._labels: dict[int, str | None] = {}
        self._stack = contextlib.ExitStack()
        self.processes: dict[str, forked.Forked] = {}
        if secured:
            access = "files" if find_plugin() is None else "dynamic-security"
            self.config = SiteConfig(site=SITE, host="127.0.0.1", port=free_port(), access=access, users=USERS)
            place = SiteFolder(folder / "broker")
            place.create(self.config)
            self.port = self.config.port
            self._stack.enter_context(SiteBroker(place.path, listen_on="127.0.0.1", log=folder / "mosquitto.log"))
        else:
            self.port = self._stack.enter_context(Mosquitto(folder)).port

    # ------------------------------------------------------------ connections

    def user_folder(self, user: str) -> Path:
        """The files of a user of the secured broker."""
        return self.folder / "broker" / "users" / user

    def broker_of(self, user: str) -> dict[str, Any]:
        """What the user's configuration says of the broker."""
        return read_broker_yaml(self.user_folder(user))["broker"] if self.secured else {"port": self.port}

    def open(self, user: str, client_id: str) -> ProbeClient:
        """A connection of a user, on an open broker of anybody."""
        if self.secured:
            return control.log_in(control.settings_of(self.config, self.user_folder(user), user), client_id, soon())
        client = ProbeClient(socket.create_connection(("127.0.0.1", self.port)))
        assert client.connect(client_id, None, None, soon()).code == 0
        return client

    @contextlib.contextmanager
    def connected(self, user: str, *filters: str, client_id: str = "") -> Iterator[ProbeClient]:
        """A connection of a user that has asked for some topics, whatever the broker said to that."""
        client = self.open(user, client_id or f"{user}-{time.monotonic_ns()}")
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for name in filters:
                client.subscribe(name, soon())
            yield client
        finally:
            client.close()

    # ------------------------------------------------------------ processes

    def start(self) -> None:
        """Start all, learn which answers are right, and have the orchestrator's plan in force."""
        origin = {"deadline_ms": 30_000, "min_retry_ms": 4_000, "source": {"kind": "mqtt"}}
        self.start_board("b1", [1, 2])
        self.start_board("cam1", [0], origin=origin)
        # Proved by some 1,200 audits without a loss: more than the tests have inputs, and less than forgers send.
        goal = {"accuracy_drop": 0.003, "audit_rate": 0.01}
        pipeline = {"name": PIPELINE, "bundle": "fashion", "goal": goal, "origins": ["cam1"]}
        store = {"path": str(self.folder / "orchestrator.db")}
        self._start("orchestrator", "orchestrator", store=store, pipelines=[pipeline])
        with self.connected("administrator", f"{ROOT}/{SITE}/device/+/state") as admin:
            ready = lambda: {  # noqa: E731
                decode(DeviceState, said.payload).device
                for said in admin.heard
                if decode(DeviceState, said.payload).status is DeviceStatus.READY
            }
            assert admin.listen(soon(), lambda: ready() == {"cam1", "b1"}), self.log("cam1") + self.log("b1")
        self.until_planned()
        for number, answer in self.ask(len(self._images)).items():
            assert answer.reason == "last"
            self._labels[number % len(self._images)] = answer.label

    def start_board(self, device: str, stages: list[int], **more: Any) -> None:
        """Start an agent."""
        pipeline = {"name": PIPELINE, "bundle": "fashion", "stages": stages, **more}
        state_dir = str(self.folder / f"{device}.state")
        self._start("agent", device, device=device, state_dir=state_dir, telemetry_interval_s=0.2, pipelines=[pipeline])

    def _start(self, command: str, name: str, **config: Any) -> None:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"site": SITE, "broker": self.broker_of(name), **config}))
        self.processes[name] = forked.start([command, "run", "-c", str(path)], stderr=self.folder / f"{name}.log")

    def log(self, name: str) -> str:
        """What a process has logged so far."""
        return (self.folder / f"{name}.log").read_text()

    def orchestrator(self, *words: str) -> tuple[int, str]:
        """Run a command of the orchestrator; return its exit status and what it printed."""
        done = forked.run(["orchestrator", words[0], "-c", str(self.folder / "orchestrator.yaml"), *words[1:]])
        return done.returncode, done.stdout + done.stderr

    def close(self) -> None:
        """End all."""
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        self._stack.close()

    # ------------------------------------------------------------ inputs and answers

    def submit(self, client: ProbeClient, count: int) -> range:
        """Hand inputs to the origin; return their numbers."""
        numbers = range(self.asked, self.asked + count)
        self.asked += count
        for number in numbers:
            image = self._images[number % len(self._images)]
            message = InputMessage(request=f"r{number}", name=f"{number}", payload=image.tobytes())
            client.publish(INPUT, encode(message), qos=1, until=soon())
        return numbers

    @contextlib.contextmanager
    def submitted(self, count: int) -> Iterator[dict[int, Result]]:
        """Hand over inputs, do what is in the block, and have the final result of each by number at its end."""
        found: dict[int, Result] = {}
        with self.connected("submitter", f"{ROOT}/{SITE}/pipeline/+/result/cam1") as client:
            numbers = self.submit(client, count)
            yield found
            wanted = {f"r{number}" for number in numbers}

            def are_all_there() -> bool:
                for said in client.heard:
                    result = decode(Result, said.payload)
                    if result.final and result.request in wanted:
                        # One that is published twice, for its connection was lost, is the same.
                        assert found.setdefault(int(result.request[1:]), result) == result
                client.heard.clear()
                return len(found) == count

            assert client.listen(soon(), are_all_there), f"{count} answers: {self.log('cam1')}"

    def check(self, answers: dict[int, Result]) -> None:
        """All answers are what the network says."""
        wrong = self.wrong(answers)
        assert not wrong, f"{len(wrong)} of {len(answers)} answers are wrong, such as {wrong[0]}"

    def ask(self, count: int) -> dict[int, Result]:
        """Hand over inputs and return their final results by number."""
        with self.submitted(count) as found:
            pass
        return found

    def wrong(self, answers: dict[int, Result]) -> list[Result]:
        """Those answers that are not what the network says."""
        return [
            result
            for number, result in answers.items()
            if (result.label, result.reason) != (self._labels[number % len(self._images)], "last")
        ]

    # ------------------------------------------------------------ what must hold

    def planned(self, heard: list[Published]) -> tuple[Plan | None, dict[str, str]]:
        """The plan on its topic, and the hashes of those that boards follow, by what was heard."""
        plan, follow = None, {}
        for said in heard:
            kind = topics.parse(said.topic).kind
            with contextlib.suppress(Exception):  # what was forged is no message
                if kind is Kind.PLAN:
                    plan = decode(Plan, said.payload)
                elif kind is Kind.TELEMETRY:
                    report = decode(Telemetry, said.payload)
                    follow[report.device] = report.pipelines[0].plan_hash
        return plan, follow

    def until_planned(self) -> None:
        """Wait until the plan on its topic has no early exit, and both boards follow it."""
        with self.connected("administrator", PLAN, f"{ROOT}/{SITE}/device/+/telemetry") as admin:

            def is_planned() -> bool:
                plan, follow = self.planned(admin.heard)
                if plan is None or any(value < NEVER for value in plan.thresholds):
                    return False
                return all(follow.get(board) == plan_hash(plan) for board in ("cam1", "b1"))

            assert admin.listen(soon(), is_planned), (self.planned(admin.heard), self.log("orchestrator"))

    def until_members(self, count: int) -> None:
        """Wait until the origin knows so many boards for the later stages, and leaves none of them out."""
        with self.connected("administrator", topics.device(SITE, "cam1", Kind.TELEMETRY)) as admin:

            def is_so() -> bool:
                if not admin.heard:
                    return False
                origin = decode(Telemetry, admin.heard[-1].payload).pipelines[0].origin
                return origin is not None and (origin.members, origin.left_out) == (count, 0)

            assert admin.listen(soon(), is_so), f"the origin to know {count} boards"

    def check_unharmed(self) -> None:
        """All processes run, inputs are answered rightly, the orchestrator's plan is in force, and a new one is obeyed."""
        assert {name: process.poll() for name, process in self.processes.items()} == dict.fromkeys(self.processes)
        self.check(self.ask(len(self._labels)))
        self.until_planned()

    def check_obeyed(self) -> None:
        """A plan that the orchestrator publishes under a new number is in force on all boards: nobody is deaf."""
        # An alarm that is raised or taken back at this moment ends the command early, and it is given again.
        words = ("reset-plan", "--pipeline", PIPELINE, "--wait", "30")
        until_said(lambda: self.orchestrator(*words)[0] == 0, "a plan of the orchestrator in force on all boards")


def until_said(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that no connection tells of, such as a line in a log."""
    ends_at = soon()
    while not condition():
        assert time.monotonic() < ends_at, f"waited in vain for {what}"
        time.sleep(0.02)
