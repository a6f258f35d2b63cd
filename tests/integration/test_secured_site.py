"""A whole site on a broker as `distree broker init` makes it: everything needed works, and nothing is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import yaml
from forked import Forked
from thoroughness import is_thorough

from broker_config.access.dynamic_security import find_plugin
from broker_config.managed import find_mosquitto, free_port
from broker_config.site import control
from broker_config.site.config import load
from broker_config.site.folder import read_broker_yaml
from distree import child_processes, topics
from distree.messages.codec import decode
from distree.messages.device import DeviceState, DeviceStatus
from distree.topics import ROOT, Kind

pytestmark = [
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]

SITE, PIPELINE = "lab", "fashion"
PATIENCE_S = 90.0
FORMS = {
    "dynamic security, passwords": ("--access", "dynamic-security"),
    "access file, certificates, signed": ("--access", "files", "--certificates", "--signed"),
}


class Secured:
    """A folder of `distree broker init`, its broker, and what runs on it."""

    def __init__(self, folder: Path, boards: dict[str, str], options: tuple[str, ...]) -> None:
        self.folder = folder
        self.broker_folder = folder / "lab-broker"
        done = forked.run(
            [
                *("broker", "init", SITE, "--host", "127.0.0.1", "--port", str(free_port()), "--home-assistant"),
                *(f"--board={name}:{roles}" for name, roles in boards.items()),
                *("--user", "ann:labeller", "--folder", str(self.broker_folder), *options),
            ]
        )
        assert done.returncode == 0, done.stderr
        # As it is, by mosquitto itself, which with -v says what it denies.
        self.log = folder / "mosquitto.log"
        program = find_mosquitto()
        assert program is not None
        with self.log.open("wb") as log:
            command = [program, "-v", "-c", str(self.broker_folder / "mosquitto.conf")]
            self.broker = child_processes.spawn(command, stdout=log, stderr=log)
        self.running: list[Forked] = []
        self.config = load(self.broker_folder)

    def settings_of(self, user: str) -> dict[str, Any]:
        """What the user's broker.yaml says, with the paths of its files."""
        return read_broker_yaml(self.broker_folder / "users" / user)

    def options_of(self, user: str) -> list[str]:
        """The options of a command that broker.yaml shows, with the paths of its files."""
        folder = self.broker_folder / "users" / user
        line = (folder / "broker.yaml").read_text().splitlines()[1]
        words = line.removeprefix("# ").split()
        return [str(folder / word) if (folder / word).is_file() else word for word in words] + ["--site", SITE]

    def listen(self, user: str, client_id: str, *filters: str) -> Any:
        """A connection of a user that has subscribed."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                settings = control.settings_of(self.config, self.broker_folder / "users" / user, user)
                client = control.log_in(settings, client_id, until)
                break
            except ConnectionRefusedError:
                assert self.broker.poll() is None, self.log.read_text()
                assert time.monotonic() < until
                time.sleep(0.05)
        for name in filters:
            client.subscribe(name, until)
        return client

    def write(self, name: str, config: dict[str, Any]) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"site": SITE, **self.settings_of(name), **config}, sort_keys=False))
        return str(path)

    def agent(self, device: str, stages: list[int], bundle: str = "fashion", **more: Any) -> str:
        pipeline = {"name": PIPELINE, "bundle": bundle, "stages": stages, **more}
        state_dir = str(self.folder / f"{device}.state")
        return self.write(device, {"device": device, "state_dir": state_dir, "pipelines": [pipeline]})

    def start(self, name: str, *command: str) -> None:
        self.running.append(forked.start(command, stderr=self.folder / f"{name}.log"))

    def close(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait(30)
        child_processes.stop(self.broker, 5.0)


@pytest.fixture(params=[*FORMS] if is_thorough() else [*FORMS][1:])
def secured(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Secured]:
    if "dynamic" in request.param and find_plugin() is None:
        pytest.skip("mosquitto's dynamic security plugin is not installed")
    boards = {"cam1": "origin,stage", "b1": "stage", "b2": "stage"}
    with contextlib.closing(Secured(tmp_path, boards, FORMS[request.param])) as made:
        yield made


@pytest.fixture
def secured_wide(tmp_path: Path) -> Iterator[Secured]:
    if find_plugin() is None:
        pytest.skip("mosquitto's dynamic security plugin is not installed")
    boards = {"cam1": "origin,fuser", "cam2": "origin,fuser", "b1": "branch", "b2": "branch", "hub": "hub"}
    with contextlib.closing(Secured(tmp_path, boards, ("--certificates",))) as made:
        yield made


def wait_for(client: Any, condition: Callable[[], bool], what: str) -> None:
    assert client.listen(time.monotonic() + PATIENCE_S, condition), f"waited in vain for {what}"


def ready(admin: Any) -> set[str]:
    """The boards that have said that they are ready."""
    said = [decode(DeviceState, m.payload) for m in admin.heard if m.topic.endswith("/state") and m.payload]
    return {state.device for state in said if state.status is DeviceStatus.READY}


def check_that_nothing_was_refused(secured: Secured, admin: Any, configs: dict[str, str]) -> None:
    """The doctor finds nothing on any board, and neither logs nor dead letters tell of a refusal."""
    for name, path in configs.items():
        doctor = forked.run(["doctor", "-c", path])
        assert doctor.returncode == 0, f"{name}: {doctor.stdout}{doctor.stderr}"
        assert "all checks passed" in doctor.stdout, f"{name}: {doctor.stdout}"
    admin.ping(time.monotonic() + PATIENCE_S)
    assert [m for m in admin.heard if m.topic.endswith("/dead")] == []
    refused = [
        line
        for log in secured.folder.glob("*.log")
        if log != secured.log
        for line in log.read_text().splitlines()
        if "not authori" in line.lower() or "refuse" in line.lower()
    ]
    assert refused == []
    # The doctor also tries what a board need not do: whether it reads what is addressed to it, by sending it that.
    denied = [line for line in secured.log.read_text().splitlines() if "denied" in line.lower()]
    assert [line for line in denied if "-doctor-" not in line] == []


def test_a_whole_site_works_and_nothing_is_refused(secured: Secured, images: np.ndarray) -> None:
    admin = secured.listen("administrator", "administrator", f"{ROOT}/{SITE}/#")
    configs = {
        "cam1": secured.agent("cam1", [0], origin={"source": {"kind": "mqtt"}, "deadline_ms": 20000, "thumbnails": {}}),
        "b1": secured.agent("b1", [1]),
        "b2": secured.agent("b2", [2]),
    }
    goal = {"accuracy_drop": 0.02, "audit_rate": 1.0, "labels_wait_s": 300}
    secured.start("orchestrator", "orchestrator", "run", "-c", secured.write("orchestrator", {
        "store": {"path": str(secured.folder / "orchestrator.db")},
        "home_assistant": {"prefix": "homeassistant"},
        "pipelines": [{"name": PIPELINE, "bundle": "fashion", "goal": goal}],
    }))  # fmt: skip
    for name, path in configs.items():
        secured.start(name, "agent", "run", "-c", path)

    wait_for(admin, lambda: ready(admin) == set(configs), "the boards")
    wait_for(admin, lambda: any(m.topic.endswith("/plan") for m in admin.heard), "a plan")

    # Home Assistant and a dashboard read along, each as its own user.
    home = secured.listen("home-assistant", "home", "homeassistant/#", topics.every(Kind.STATS, SITE))
    home.publish("homeassistant/status", b"online", qos=1, until=time.monotonic() + PATIENCE_S)
    dashboard = secured.listen(
        "dashboard", "dashboard", *(topics.every(kind, SITE) for kind in (Kind.RESULT, Kind.STATE, Kind.THUMBNAIL))
    )
    results = subprocess.Popen(
        [sys.executable, "-m", "distree", "results", *secured.options_of("dashboard"), "--count", "12",
         "--timeout", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(2.0)  # `results` has no way to say that it listens

    paths = []
    for number, image in enumerate(images[:12]):
        path = secured.folder / f"{number}.npy"
        np.save(path, image)
        paths.append(str(path))
    submit = ["submit", *secured.options_of("submitter"), "--pipeline", PIPELINE, "--origin", "cam1"]
    done = forked.run([*submit, "--timeout", "60", *paths])
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(paths)
    assert {hop["device"] for answer in answers for hop in answer["hops"]} == set(configs)

    read, errors = results.communicate(timeout=PATIENCE_S)
    assert len(read.splitlines()) == len(paths), errors
    truth = [f"{answer['request']}={answer['label']}" for answer in answers]
    told = forked.run(["label", *secured.options_of("ann"), "--pipeline", PIPELINE, *truth])
    assert (told.returncode, told.stdout) == (0, f"{len(truth)} labels published\n"), told.stderr
    orchestrator = str(secured.folder / "orchestrator.yaml")
    export = ["orchestrator", "audits", "-c", orchestrator, "--pipeline", PIPELINE]
    recording = secured.folder / "audits.npz"

    def are_labelled() -> bool:
        # Where nothing is stored yet, there is no recording.
        recording.unlink(missing_ok=True)
        forked.run([*export, "--export", str(recording)])
        return recording.exists() and len(np.load(recording).get("label", ())) > 0

    wait_for(admin, are_labelled, "audits with labels")
    wait_for(dashboard, lambda: any("/thumbnail/" in m.topic for m in dashboard.heard), "a thumbnail")
    wait_for(home, lambda: any(m.topic.endswith("/config") and b"cam1" in m.payload for m in home.heard), "discovery")
    wait_for(home, lambda: any("/stats/" in m.topic for m in home.heard), "figures of the origin")
    wait_for(admin, lambda: any("/audit/cam1" in m.topic for m in admin.heard), "an audit")

    check_that_nothing_was_refused(secured, admin, configs)
    for client in (admin, home, dashboard):
        client.close()


@pytest.mark.skipif(not is_thorough(), reason="the demo does much of it; this is for make test-thorough")
def test_wide_stages_work_and_nothing_is_refused(secured_wide: Secured, tiny_images: np.ndarray) -> None:
    """Two branches, an origin that fuses for itself, and one for which another board fuses."""
    site, bundle = secured_wide, str(Path(__file__).parents[1] / "data" / "tiny-wide")
    admin = site.listen("administrator", "administrator", f"{ROOT}/{SITE}/device/#")
    origin = {"source": {"kind": "mqtt"}, "deadline_ms": 20000}
    configs = {
        "cam1": site.agent("cam1", [], bundle, origin=origin),
        "cam2": site.agent("cam2", [], bundle, origin={**origin, "fuser": "hub"}),
        "b1": site.agent("b1", [0, 1, 2], bundle, branch=0),
        "b2": site.agent("b2", [0, 1, 2], bundle, branch=1),
        "hub": site.agent("hub", [], bundle, fuse=True),
    }
    for name, path in configs.items():
        site.start(name, "agent", "run", "-c", path)
    wait_for(admin, lambda: ready(admin) == set(configs), "the boards")
    paths = []
    for number, image in enumerate(tiny_images[:8]):
        np.save(site.folder / f"{number}.npy", image)
        paths.append(str(site.folder / f"{number}.npy"))
    for name in ("cam1", "cam2"):
        submit = ["submit", *site.options_of("submitter"), "--pipeline", PIPELINE, "--origin", name]
        done = forked.run([*submit, "--timeout", "60", *paths])
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(answers) == len(paths)
        assert {answer["reason"] for answer in answers} <= {"confident", "last"}
    check_that_nothing_was_refused(site, admin, configs)
    admin.close()


@pytest.mark.parametrize(
    "options",
    [("--inputs", "60"), ("--inputs", "20", "--bundle", "cifar10-wide", "--fuser", "board")],
    ids=["chain", "wide"],
)
def test_the_demo_on_a_secured_broker(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = forked.run(["demo", "--secure", *options, "--json", str(tmp_path / "demo.json")])
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["answered"] == figures["inputs"] == int(options[1])
    assert {answer["reason"] for answer in figures["results"]} <= {"confident", "last"}  # no board was missed
    assert "each with a password and rules of its own" in figures["broker"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--broker", "127.0.0.1:1"), "--secure: only for the broker that the demo starts; leave out --broker"),
        (("--engine", "embedded"), "--secure: the embedded broker has no users; run: apt install mosquitto"),
    ],
)
def test_what_a_secured_demo_refuses(options: tuple[str, ...], words: str) -> None:
    done = forked.run(["demo", "--secure", *options])
    assert done.returncode == 2
    assert words in done.stderr
