"""`distree doctor` where something is really wrong: a broker, a file, another agent; and where nothing is."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import yaml
from setup_broker import PATIENCE_S, Certificates, Mosquitto, users

from broker_config.managed import ManagedBroker, free_port, has_embedded
from device_agent.addresses import publications, subscriptions, unheard
from device_agent.agent import Agent
from device_agent.config import AgentConfig, load_agent_config
from device_agent.doctor import clock, runtime
from device_agent.doctor.checks import Check, CheckContext, Finding, ok, run_checks
from device_agent.doctor.cli import CHECKS
from device_agent.doctor.disconnects import NOBODY
from device_agent.preflight import load_bundles
from distree import child_processes, topics
from distree.bundle.loading import find_bundle
from distree.messages.codec import PROBE, decode
from distree.messages.device import DeviceMeta, DeviceState, HeldStage
from distree.messages.telemetry import Telemetry
from distree.topics import Kind
from distree.transport.probe import ProbeClient

ROOT = Path(__file__).resolve().parents[3]
WIDE, MIXED = (ROOT / "tests" / "data" / name for name in ("tiny-wide", "tiny-mixed"))
ORIGIN = {"source": {"kind": "mqtt"}}


def board(folder: Path, port: int = 1, device: str = "cam", **changes: Any) -> Path:
    """Write the agent.yaml of a board that is origin and has stage 0 of fashion, but for `changes`."""
    pipeline = {"name": "p", "bundle": "fashion", "stages": [0], "origin": ORIGIN}
    for key in ("bundle", "stages", "origin", "branch", "fuse"):
        if key in changes:
            pipeline[key] = changes.pop(key)
    broker = {"port": port, **changes.pop("broker", {})}
    text = yaml.safe_dump(
        {
            "site": "lab",
            "device": device,
            "telemetry_interval_s": 0.2,
            "broker": broker,
            "pipelines": [{key: value for key, value in pipeline.items() if value is not None}],
            **changes,
        }
    )
    path = folder / f"{device}.yaml"
    path.write_text(text)
    return path


def doctor(path: Path, *names: str, timeout_s: float = 20.0) -> dict[str, Finding]:
    """Run the named checks, or all, in their order; those left out count as passed."""
    context = CheckContext(config=load_agent_config(path), timeout_s=timeout_s)
    if not {"bundle", "python"} & set(names) and names:
        context.bundles = load_bundles(context.config)
    chosen = [check for check in CHECKS if not names or check.name in names]
    return {result.check: result.finding for result in run_checks(context, chosen, lambda _: None)}


def fails(finding: Finding, words: str, remedy: str) -> None:
    assert finding.status == "failed", finding
    assert words in finding.text
    assert remedy in finding.remedy


def distree(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run(arguments)


@contextlib.contextmanager
def agent(path: Path, before: Callable[[], object] | None = None) -> Iterator[Any]:
    """A real agent, ready; `before` as for `forked.start`."""
    log = path.with_suffix(".log")
    log.unlink(missing_ok=True)
    process = forked.start(["agent", "run", "-c", str(path)], stderr=log, before=before)
    try:
        until = time.monotonic() + PATIENCE_S
        while "is ready" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def listener(port: int, *filters: str) -> Iterator[ProbeClient]:
    client = ProbeClient(socket.create_connection(("127.0.0.1", port), PATIENCE_S))
    assert client.connect(f"listener-{id(client)}", None, None, time.monotonic() + PATIENCE_S).code == 0
    for each in filters:
        assert client.subscribe(each, time.monotonic() + PATIENCE_S) < 0x80
    try:
        yield client
    finally:
        client.close()


def rules_of(config: AgentConfig, metas: Sequence[DeviceMeta] = ()) -> list[str]:
    """Return mosquitto's rules for what the doctor tries, whatever the boards are called that were not heard."""
    bundles = load_bundles(config)
    to_others = [topic.replace(NOBODY, "+") for topic in unheard(config, bundles, metas, NOBODY)]
    rules = [f"topic read {sub.filter}" for sub in subscriptions(config, bundles)]
    if any(pipeline.origin for pipeline in config.pipelines):
        rules.append(f"topic read {topics.device(config.site, '+', Kind.STATE)}")
    return rules + [f"topic write {topic}" for topic in (*publications(config, bundles, metas), *to_others)]


def described(device: str, *stages: int, origins: tuple[str, ...] = ()) -> DeviceMeta:
    """Return what a board would say of itself that holds stages of pipeline p."""
    held = tuple(HeldStage(pipeline="p", stage=k, model="m", revision="r") for k in stages)
    return DeviceMeta(
        device=device, boot="a", version="0", python="3", runtime="", machine="", memory_mb=1, stages=held,
        origins=origins,
    )  # fmt: skip


# ---------------------------------------------------------------- when all is well


def test_a_board_with_login_tls_and_rules_of_its_own_is_well(tmp_path: Path) -> None:
    """The rules name exactly the topics that the doctor tries: no more is asked for, and no more is needed."""
    certificates = Certificates(tmp_path / "ca")
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    acl = tmp_path / "acl"
    config = load_agent_config(board(tmp_path, 1))
    # To see whether the broker holds small messages back, the doctor sends itself some.
    itself = f"topic write {topics.stage('lab', 'p', 0, 'cam', 'cam')}"
    acl.write_text("\n".join(["user ann-the-user", *rules_of(config), itself]) + "\n")
    acl.chmod(0o600)
    lines = [*certificates.listener(), users(tmp_path, **{"ann-the-user": "s3cret"}), f"acl_file {acl}"]
    with Mosquitto(tmp_path, *lines) as broker:
        login = {"username": "ann-the-user", "password_file": str(secret), "tls": {"ca_file": str(certificates.ca)}}
        path = board(tmp_path, broker.port, broker=login)
        report = tmp_path / "report.txt"
        done = distree("doctor", "-c", str(path), "--json", "--report", str(report))
        assert done.returncode == 0, done.stdout
        found = json.loads(done.stdout)
        assert found["schema"] == "distree.doctor/1"
        assert (found["ok"], found["device"]) == (True, "cam")
        assert [entry["check"] for entry in found["checks"]] == [check.name for check in CHECKS]
        statuses = {entry["check"]: entry["status"] for entry in found["checks"]}
        assert {name for name, status in statuses.items() if status != "ok"} <= {"clock"}
        shown = report.read_text()
        for word in ("ann-the-user", "s3cret", str(secret)):
            assert word not in shown
        for word in ("==== agent.yaml ====", "device: cam", '"check": "acl"', "paho-mqtt", "username: '[removed]'"):
            assert word in shown


def test_lines_for_people(tmp_path: Path) -> None:
    port = free_port()
    done = distree("doctor", "-c", str(board(tmp_path, port)))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("FAILED  tcp"))
    assert f"nothing listens on 127.0.0.1:{port}" in lines[at]
    assert (
        lines[at + 1].strip() == "→ start the broker, or correct its address (broker.host and broker.port, or --broker)"
    )
    assert "skipped login          needs tls" in lines
    assert lines[-1] == "failed: tcp"


def test_a_live_site_is_not_disturbed(tmp_path: Path) -> None:
    """Neither the boards nor what else listens: nobody but agents hears of anything, and they take no notice."""
    with Mosquitto(tmp_path) as broker, listener(broker.port, "distree/#") as all_heard:
        path = board(tmp_path, broker.port)
        with agent(path), agent(board(tmp_path, broker.port, "b1", stages=[1, 2], origin=None)):
            found = doctor(path, "acl", "max-packet", "client-id")
            assert {finding.status for finding in found.values()} == {"ok"}, found
            assert "the agent on this machine" in found["client-id"].text
            # A telemetry from after it all: what was said before has come in by then.
            count = len(all_heard.heard)
            reports = {topics.device("lab", name, Kind.TELEMETRY) for name in ("cam", "b1")}
            all_heard.listen(
                time.monotonic() + PATIENCE_S,
                lambda: all(sum(m.topic == topic for m in all_heard.heard[count:]) >= 3 for topic in reports),
            )
            heard = [(topics.parse(message.topic).kind, message) for message in all_heard.heard]
            assert {kind for kind, message in heard if message.payload == PROBE} <= {
                Kind.OUTCOME,
                Kind.INPUT,
                Kind.STAGE,
                Kind.CALL,
            }
            assert not [message for kind, message in heard if kind is Kind.DEAD]
            assert all(
                decode(Telemetry, message.payload).dead_letters == 0
                for kind, message in heard
                if kind is Kind.TELEMETRY
            )
            states = [decode(DeviceState, m.payload).status.value for kind, m in heard if kind is Kind.STATE]
            assert set(states) == {"ready"}


def test_rules_made_of_what_the_doctor_tries_are_enough_for_the_agents(tmp_path: Path) -> None:
    """Two boards that may do just that answer an input that goes through both."""
    acl, secret = tmp_path / "acl", tmp_path / "secret"
    secret.write_text("s3cret\n")
    boards = {"cam": {"stages": [0]}, "b1": {"stages": [1, 2], "origin": None}}
    metas = [described("cam", 0, origins=("p",)), described("b1", 1, 2)]
    rules: list[str] = []
    for name, changes in boards.items():
        rules += [f"user {name}", *rules_of(load_agent_config(board(tmp_path, 1, name, **changes)), metas)]
    acl.write_text("\n".join([*rules, "user ops", "topic readwrite distree/#"]) + "\n")
    acl.chmod(0o600)
    passwords = users(tmp_path, cam="s3cret", b1="s3cret", ops="s3cret")
    with Mosquitto(tmp_path, passwords, f"acl_file {acl}") as broker, contextlib.ExitStack() as stack:
        for name, changes in boards.items():
            login = {"username": name, "password_file": str(secret)}
            stack.enter_context(agent(board(tmp_path, broker.port, name, broker=login, **changes)))
        image = tmp_path / "image.npy"
        samples = np.load(find_bundle("fashion").parents[1] / "samples" / "fashion.npz")["input"]
        # Of these images about one in ten goes on to the other board.
        names = []
        for index, sample in enumerate(samples[:60]):
            names.append(str(image.with_name(f"{index}.npy")))
            np.save(names[-1], sample)
        where = ["--broker", f"127.0.0.1:{broker.port}", "--username", "ops", "--password-file", str(secret)]
        done = distree(
            "submit", *where, "--site", "lab", "--pipeline", "p", "--origin", "cam", "--timeout", "30", *names
        )
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert {answer["reason"] for answer in answers} == {"confident", "last"}
        assert {hop["device"] for answer in answers for hop in answer["hops"]} == {"cam", "b1"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stages": [1, 2], "origin": None},
        {"stages": [], "origin": {"source": {"kind": "python"}}},
        {"bundle": str(WIDE), "stages": [0, 1, 2], "branch": 1, "origin": None},
        {"bundle": str(WIDE), "stages": [], "origin": ORIGIN},
        {"bundle": str(MIXED), "stages": [0, 1, 2, 3], "branch": 2, "fuse": True, "origin": None},
    ],
)
def test_what_is_tried_for_reading_is_what_the_agent_subscribes_to(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = load_agent_config(board(tmp_path, 1, **changes))
    mailbox = Agent(config).mailbox
    # Its own announcements it reads once they are made.
    subscribed = {name for name, _ in mailbox.subscriptions()} | {mailbox.echoes.filter}
    # Inputs come by a connection of their own.
    subscribed |= {
        topics.of_origin("lab", part.name, Kind.INPUT, "cam")
        for part in config.pipelines
        if part.origin is not None and part.origin.source.kind == "mqtt"
    }
    found = subscriptions(config, load_bundles(config))
    assert {sub.filter for sub in found} == subscribed
    assert found[0].kind is Kind.STATE


def test_what_is_tried_for_writing_in_a_wide_pipeline(tmp_path: Path) -> None:
    def kinds(meta: list[DeviceMeta], **changes: Any) -> set[str]:
        config = load_agent_config(board(tmp_path, 1, **changes))
        prefix = "distree/1/lab/pipeline/p/"
        return {
            t.removeprefix(prefix) for t in publications(config, load_bundles(config), meta) if t.startswith(prefix)
        }

    def meta(device: str, **what: Any) -> DeviceMeta:
        return DeviceMeta(
            device=device, boot="a", version="0", python="3", runtime="", machine="", memory_mb=1,
            **{"stages": (), "origins": (), **what},
        )  # fmt: skip

    held = tuple(HeldStage(pipeline="p", stage=k, model="m", revision="r", branch=0) for k in range(3))
    others = [meta("hub", origins=("p",), fusers=("p",)), meta("b0", stages=held), meta("other", origins=("q",))]
    branch = {"bundle": str(WIDE), "stages": [0, 1, 2], "branch": 1, "origin": None}
    assert kinds(others, **branch) == {"exit/hub/cam", "outcome/hub/cam", "member/0/cam"}
    origin = {"stage/0/b0/cam", "stage/0/all/cam", "decision/b0/cam", "result/cam", "audit/cam", "call/cam"}
    assert kinds(others, bundle=str(WIDE), stages=[], origin=ORIGIN) == origin
    # Whether the board that is to fuse is back, an origin asks by an embedding of nothing.
    fused = kinds(others, bundle=str(WIDE), stages=[], origin={**ORIGIN, "fuser": "hub"})
    assert fused == {*origin, "exit/hub/cam"}
    assert kinds([], bundle=str(MIXED), stages=[0], origin=None) == {"stage/1/all/cam", "member/0/cam"}
    hub = described("b3", 3)
    assert kinds([hub], bundle=str(MIXED), stages=[], fuse=True, origin=None) == {"stage/3/b3/cam", "member/1/cam"}


# ---------------------------------------------------------------- Python, bundle, machine


def test_an_interpreter_that_crashes_as_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "ai_edge_litert"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "interpreter.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    found = doctor(board(tmp_path), "python")["python"]
    fails(found, "the interpreter crashes while it is loaded (SIGILL)", "pip install")


def test_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ai_edge_litert", "tflite_runtime"):
        package = tmp_path / "site" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('not for this machine')")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    found = doctor(board(tmp_path), "python")["python"]
    fails(found, "no TFLite runtime can be loaded", "pip install 'ai-edge-litert==2.3.*' 'numpy', or ")
    monkeypatch.setattr(runtime, "machine", lambda: "riscv64")
    fails(
        doctor(board(tmp_path), "python")["python"],
        "no wheel of a TFLite runtime is published for it",
        "use Python 3.10 to 3.14 on x86_64",
    )


def test_wheels_of_pythons_and_machines() -> None:
    def names(python: tuple[int, int], arch: str) -> list[str]:
        return [wheel.package.partition("==")[0] for wheel in runtime.wheels_for(python, arch)]

    assert names((3, 11), "armv7l") == ["tflite-runtime"]
    assert names((3, 12), "armv7l") == names((3, 9), "riscv64") == []
    assert names((3, 13), "aarch64") == ["ai-edge-litert"]


def copy_of_fashion(folder: Path) -> Path:
    return Path(shutil.copytree(find_bundle("fashion"), folder / "copy"))


def test_a_damaged_bundle_and_what_is_then_skipped(tmp_path: Path) -> None:
    copy = copy_of_fashion(tmp_path)
    with (copy / "stage0.tflite").open("ab") as file:
        file.write(b"x")
    found = doctor(board(tmp_path, free_port(), bundle=str(copy)))
    fails(
        found["bundle"],
        "stage0.tflite: its SHA-256 differs from the manifest's",
        "copy the whole bundle to this board again",
    )
    for name in ("self-test", "memory"):
        assert (found[name].status, found[name].text) == ("skipped", "needs bundle")
    assert (found["acl"].status, found["acl"].text) == ("skipped", "needs login, bundle")
    assert found["python"].status == found["dns"].status == "ok"


def test_wrong_answers_of_the_interpreter(tmp_path: Path) -> None:
    copy = copy_of_fashion(tmp_path)
    with np.load(copy / "golden.npz") as arrays:
        golden = dict(arrays)
    golden["stage0_logits"] = golden["stage0_logits"] ^ np.int8(40)
    packed = io.BytesIO()
    np.savez(packed, **golden)
    (copy / "golden.npz").write_bytes(packed.getvalue())
    manifest = yaml.safe_load((copy / "bundle.yaml").read_text())
    manifest["golden"]["sha256"] = hashlib.sha256(packed.getvalue()).hexdigest()
    (copy / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    found = doctor(board(tmp_path, bundle=str(copy)), "bundle", "self-test")
    assert found["bundle"].status == "ok"
    fails(found["self-test"], "stage 0 is off by", "install another version")


def test_more_memory_than_there_is(tmp_path: Path) -> None:
    found = doctor(board(tmp_path, inbox={"max_kib": 1 << 30}), "memory")["memory"]
    fails(found, "most of it is for inbox of p", "lower inbox.max_kib")


def test_disks(tmp_path: Path) -> None:
    spooled = {"source": {"kind": "mqtt"}, "spool": True}
    assert doctor(board(tmp_path, origin=spooled, state_dir=str(tmp_path)), "disk")["disk"].status == "ok"
    (tmp_path / "file").touch()
    found = doctor(board(tmp_path, origin=spooled, state_dir=str(tmp_path / "file" / "state")), "disk")["disk"]
    fails(found, "is not a folder", "correct state_dir")
    found = doctor(board(tmp_path, origin=spooled, state_dir="/proc/1/state"), "disk")["disk"]
    assert found.status == "failed"


def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system: run as root")
    try:
        spooled = {"source": {"kind": "mqtt"}, "spool": True}
        found = doctor(board(tmp_path, origin=spooled, state_dir=str(small / "state")), "disk")["disk"]
        fails(found, "spools may take 8 MiB", "free some space, or correct state_dir")
    finally:
        subprocess.run(["umount", str(small)], check=True)


# ---------------------------------------------------------------- network and login


def test_a_name_without_an_address(tmp_path: Path) -> None:
    found = doctor(board(tmp_path, broker={"host": "no-such-host.invalid"}), "dns", "tcp", "login")
    fails(found["dns"], "'no-such-host.invalid' cannot be resolved", "correct broker.host")
    assert found["tcp"].status == "skipped"


def test_certificates_that_are_no_good(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "ca")
    tls = {"tls": {"ca_file": str(certificates.ca)}}
    lines = certificates.listener("old", start="20200101000000Z", end="20210101000000Z")
    with Mosquitto(tmp_path, *lines) as broker:
        found = doctor(board(tmp_path, broker.port, broker=tls), "tcp", "tls", "login", "acl")
        assert found["tcp"].status == "ok"
        fails(found["tls"], "has expired", "if distree made the broker), or correct this machine's clock")
        assert found["login"].status == found["acl"].status == "skipped"
    other = Certificates(tmp_path / "other")
    with Mosquitto(tmp_path, *other.listener()) as broker:
        fails(
            doctor(board(tmp_path, broker.port, broker=tls), "tls")["tls"],
            "was not issued by the authority in",
            "broker.tls.ca_file",
        )
    with Mosquitto(tmp_path) as broker:
        fails(
            doctor(board(tmp_path, broker.port, broker=tls), "tls")["tls"], "does not speak TLS", "correct broker.port"
        )
    found = doctor(board(tmp_path, 1, broker={"tls": {"ca_file": "none"}}), "tls")["tls"]
    fails(found, "ca_file", "check the path and its permissions")
    assert found.text.endswith("none: no such file or directory")


def test_no_password_goes_out_before_tls_is_in_order(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(1.0)
                        with contextlib.suppress(TimeoutError):
                            heard.append(connection.recv(4096))

        threading.Thread(target=listen, daemon=True).start()
        broker = {"username": "ann", "password_file": str(tmp_path / "secret"), "tls": {"ca_file": "none"}}
        found = doctor(board(tmp_path, port, broker=broker), timeout_s=3.0)
        assert found["tls"].status == "failed"
        assert found["login"].status == "skipped"
        # Each of these would log in by itself.
        for name in ("login", "clock", "acl", "client-id"):
            doctor(board(tmp_path, port, broker=broker), name, timeout_s=3.0)
        server.shutdown(socket.SHUT_RDWR)
    assert not [words for words in heard if b"hunter2" in words or b"MQTT" in words]


def test_logins_that_are_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("s3cret\n")
    bad.write_text("wrong\n")
    with Mosquitto(tmp_path, users(tmp_path, ann="s3cret")) as broker:

        def login(**how: str) -> Finding:
            return doctor(board(tmp_path, broker.port, broker=how), "login")["login"]

        good.chmod(0o640)
        assert login(username="ann", password_file=str(good)).text == "logged in with user name and password, MQTT 5"
        good.chmod(0o644)
        exposed = login(username="ann", password_file=str(good))
        assert exposed.text.endswith("; everybody on this machine may read broker.password_file")
        assert (exposed.status, exposed.remedy) == ("ok", "let only the agent's user read it: chmod 600")
        fails(login(username="ann", password_file=str(bad)), "refuses user 'ann'", "first line of broker.password_file")
        fails(login(), "requires a login", "set broker.username and broker.password_file")
        fails(login(username="ann", password_file="none"), "none: no such file", "write the password into")


def test_what_listens_but_is_no_broker(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        started_at = time.monotonic()
        found = doctor(board(tmp_path, deaf.getsockname()[1]), "tcp", "login", "acl", timeout_s=0.5)
        assert time.monotonic() - started_at < 20
    assert found["tcp"].status == "ok"
    fails(found["login"], "does not answer MQTT", "check that it is an MQTT broker")
    assert found["acl"].status == "skipped"


# ---------------------------------------------------------------- clock


def publish_results(port: int, made_at: datetime, stop: str) -> subprocess.Popen[bytes]:
    """Publish results of another board with a time in them, again and again."""
    program = (
        "import socket, sys, time; from distree.transport.probe import ProbeClient\n"
        "c = ProbeClient(socket.create_connection(('127.0.0.1', int(sys.argv[1]))))\n"
        "c.connect('other', None, None, time.monotonic() + 30)\n"
        "while True:\n"
        "    topic = 'distree/1/lab/pipeline/p/result/other'\n"
        "    c.withhold(topic, sys.argv[2].encode(), time.monotonic() + 30); c.release(topic, time.monotonic() + 30)\n"
        "    time.sleep(0.05)\n"
    )
    result = json.dumps({"origin": "other", "clock_synced": True, "time": made_at.isoformat()})
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return child_processes.spawn([sys.executable, "-c", program, str(port), result], env=environ)


@pytest.mark.parametrize("ahead_s", [-3600, 3600])
def test_a_clock_that_is_not_another_boards(tmp_path: Path, ahead_s: int) -> None:
    with Mosquitto(tmp_path) as broker:
        process = publish_results(broker.port, datetime.now(timezone.utc) + timedelta(seconds=ahead_s), "")
        try:
            path = board(tmp_path, broker.port)
            until = time.monotonic() + PATIENCE_S
            while (found := doctor(path, "login", "clock")["clock"]).status != "failed" and time.monotonic() < until:
                pass  # the other board may not be up yet
        finally:
            process.kill()
            process.wait()
    fails(found, "off another board's clock, which is synchronised by NTP", "timesyncd")
    assert ("+36" if ahead_s < 0 else "-3") in found.text or "-36" in found.text


def test_a_clock_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "EARLIEST_BELIEVABLE", time.time() + 1e6)
    fails(doctor(board(tmp_path), "clock")["clock"], "which is implausible", "set it")


def test_a_clock_without_a_broker_says_what_is_not_known(tmp_path: Path) -> None:
    found = doctor(board(tmp_path, free_port()), "login", "clock")["clock"]
    assert found.status in ("ok", "unknown")
    assert "no other board's result arrived" in found.text


# ---------------------------------------------------------------- ACL, sizes, names


@pytest.mark.parametrize(
    ("rules", "words", "remedy"),
    [
        (
            ["topic readwrite distree/1/lab/device/cam/+", "topic readwrite distree/1/lab/pipeline/p/+/+",
             "topic read distree/1/lab/pipeline/p/stage/0/cam/+", "topic write distree/1/lab/pipeline/p/stage/+/+/cam",
             "topic read distree/1/lab/pipeline/p/outcome/cam/+", "topic write distree/1/lab/pipeline/p/outcome/+/cam",
             "topic readwrite distree/1/lab/pipeline/p/member/+/cam"],
            "", "",
        ),
        (
            ["topic readwrite distree/1/lab/device/cam/+", "topic readwrite distree/1/lab/pipeline/p/stage/#",
             "topic readwrite distree/1/lab/pipeline/p/outcome/#", "topic readwrite distree/1/lab/pipeline/p/call/#"],
            "may not publish on distree/1/lab/pipeline/p/member/0/cam (not authorized); "
            "may not publish on distree/1/lab/pipeline/p/result/cam (not authorized); "
            "may not publish on distree/1/lab/pipeline/p/audit/cam (not authorized)",
            "in the broker's ACL: topic write distree/1/lab/pipeline/p/member/0/cam, "
            "topic write distree/1/lab/pipeline/p/result/cam, topic write distree/1/lab/pipeline/p/audit/cam",
        ),
        (
            ["topic readwrite distree/1/lab/device/cam/+", "topic readwrite distree/1/lab/pipeline/p/result/+",
             "topic write distree/1/lab/pipeline/p/#"],
            "receives nothing from distree/1/lab/pipeline/p/call/+; "
            "receives nothing from distree/1/lab/pipeline/p/stage/0/cam/+; "
            "receives nothing from distree/1/lab/pipeline/p/outcome/cam/+",
            "topic read distree/1/lab/pipeline/p/stage/0/cam/+, topic read distree/1/lab/pipeline/p/outcome/cam/+",
        ),
    ],
)  # fmt: skip
def test_acl(tmp_path: Path, rules: list[str], words: str, remedy: str) -> None:
    acl = tmp_path / "acl"
    acl.write_text("\n".join(rules) + "\n")
    acl.chmod(0o600)
    with Mosquitto(tmp_path, "allow_anonymous true", f"acl_file {acl}") as broker:
        found = doctor(board(tmp_path, broker.port), "acl")["acl"]
    if words:
        fails(found, words, remedy)
    else:
        assert found.status == "ok", found


@pytest.mark.parametrize("may_read", [True, False])
def test_acl_for_a_topic_of_another_program(tmp_path: Path, may_read: bool) -> None:
    """Nothing is published there to see whether it arrives: others would read it."""
    source = {"kind": "mqtt", "topic": "frigate/+/+/snapshot"}
    path = board(tmp_path, 1, stages=[0, 1, 2], origin={"source": source})
    rules = rules_of(load_agent_config(path))
    assert "topic read frigate/+/+/snapshot" in rules
    acl = tmp_path / "acl"
    acl.write_text("\n".join(rule for rule in rules if may_read or "frigate" not in rule) + "\ntopic read other/#\n")
    acl.chmod(0o600)
    with Mosquitto(tmp_path, "allow_anonymous true", f"acl_file {acl}") as broker:
        path = board(tmp_path, broker.port, stages=[0, 1, 2], origin={"source": source})
        with listener(broker.port, "frigate/#", "other/#") as client:
            found = doctor(path, "acl")["acl"]
            client.listen(time.monotonic() + 0.3)
            assert not client.heard
    assert found.status == "ok", found
    assert "was not tried on" in found.text
    assert "frigate/+/+/snapshot" in found.text


@pytest.mark.parametrize(
    ("rule", "status", "words"),
    [
        ("topic write distree/1/lab/pipeline/p/outcome/+/cam", "ok", "may publish on 8 topics"),
        (
            "topic write distree/1/lab/pipeline/p/outcome/hub/cam",
            "unknown",
            "it sends on distree/1/lab/pipeline/p/outcome/+/cam",
        ),
        ("", "unknown", "no board is known yet to which it sends on distree/1/lab/pipeline/p/outcome/+/cam"),
    ],
)
def test_acl_to_send_to_boards_that_are_not_heard(tmp_path: Path, rule: str, status: str, words: str) -> None:
    acl = tmp_path / "acl"
    path = board(tmp_path, stages=[1], origin=None)
    rules = [line for line in rules_of(load_agent_config(path)) if "/outcome/+" not in line]
    acl.write_text("\n".join([*rules, rule]) + "\n")
    acl.chmod(0o600)
    with Mosquitto(tmp_path, "allow_anonymous true", f"acl_file {acl}") as broker:
        found = doctor(board(tmp_path, broker.port, stages=[1], origin=None), "acl")["acl"]
    assert found.status == status, found
    assert words in found.text


def test_a_board_that_is_heard_of_one_pipeline_is_not_heard_of_another(tmp_path: Path) -> None:
    pipelines = [{"name": name, "bundle": "fashion", "stages": [1]} for name in ("p", "q")]
    config = load_agent_config(board(tmp_path, pipelines=pipelines))
    others = [described("hub", origins=("p",)), described("b2", 2)]
    assert unheard(config, load_bundles(config), others, NOBODY) == [
        "distree/1/lab/pipeline/q/stage/2/doctor-nobody/cam",
        "distree/1/lab/pipeline/q/outcome/doctor-nobody/cam",
    ]


def test_many_topics_do_not_exceed_what_the_broker_lets_be_under_way(tmp_path: Path) -> None:
    pipelines = [{"name": f"p{i}", "bundle": "fashion", "stages": [1], "origin": ORIGIN} for i in range(12)]
    with Mosquitto(tmp_path, "max_inflight_messages 3") as broker:
        found = doctor(board(tmp_path, broker.port, pipelines=pipelines), "acl")["acl"]
    assert found.status == "ok", found
    assert "may publish on 77 topics and subscribe to 86" in found.text


@pytest.mark.parametrize("line", ["max_packet_size 2000", "message_size_limit 2000"])
def test_a_broker_that_takes_no_large_messages(tmp_path: Path, line: str) -> None:
    with Mosquitto(tmp_path, line) as broker:
        found = doctor(board(tmp_path, broker.port), "login", "acl", "max-packet")
    assert found["acl"].status == "ok", found
    fails(
        found["max-packet"],
        "5,664 bytes on distree/1/lab/pipeline/p/stage/1/doctor-nobody/cam",
        "raise the broker's limit to 5,920 or more",
    )


def test_a_broker_of_mqtt_3_1_1_leaves_open_what_it_cannot_say(tmp_path: Path) -> None:
    if not has_embedded():
        pytest.skip("the embedded broker is not installed: pip install 'distree[broker]'")
    with ManagedBroker(engine="embedded") as broker:
        found = doctor(board(tmp_path, broker.port), "login", "acl", "max-packet", "client-id")
    assert found["login"].text.endswith("MQTT 3.1.1")
    assert found["acl"].status == found["max-packet"].status == "unknown", found
    assert "mosquitto 2" in found["max-packet"].remedy
    assert found["client-id"].status == "ok"


ELSEWHERE = partial(exec, "import device_agent.presence as presence; presence.announce = lambda *_: None")
"""An agent that does not show on this machine, as one on another board does not."""


def test_a_name_that_another_board_uses(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        path = board(tmp_path, broker.port)
        assert doctor(path, "client-id")["client-id"].text == "distree_lab_cam is free"
        with agent(path, ELSEWHERE) as process:
            found = doctor(path, "client-id")["client-id"]
            fails(found, "an agent named cam runs on another machine (Python 3", "another device id")
            assert process.poll() is None
            os.kill(process.pid, signal.SIGSTOP)
            found = doctor(path, "client-id")["client-id"]
            os.kill(process.pid, signal.SIGCONT)
            assert found.status == "unknown"
            assert "cam has the state ready, but is silent" in found.text
            # It was never pushed off.
            assert "connected again" not in path.with_suffix(".log").read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        assert doctor(path, "client-id")["client-id"].text == "distree_lab_cam is free (disconnected)"


def test_an_agent_that_ends_and_starts_over_and_over_is_no_stranger(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        path = board(tmp_path, broker.port)
        stop = threading.Event()

        def restart() -> None:
            while not stop.is_set():
                with agent(path):
                    stop.wait(0.5)

        thread = threading.Thread(target=restart)
        thread.start()
        try:
            found = doctor(board(tmp_path, broker.port, telemetry_interval_s=0.9), "client-id")["client-id"]
        finally:
            stop.set()
            thread.join()
        assert "on another machine" not in found.text, found


def test_two_agents_of_one_name_on_one_machine(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        path = board(tmp_path, broker.port)
        (tmp_path / "again").mkdir()
        with agent(path), agent(board(tmp_path / "again", broker.port)):
            fails(doctor(path, "client-id")["client-id"], "2 agents named cam run on this machine", "stop all but one")


# ---------------------------------------------------------------- the doctor itself


def test_nothing_hangs_and_nothing_breaks_the_rest(tmp_path: Path) -> None:
    def hang(_context: CheckContext) -> Finding:
        time.sleep(3600)
        return ok("never")

    def break_down(_context: CheckContext) -> Finding:
        raise ZeroDivisionError("oh")

    checks = (
        Check(name="hangs", run=hang),
        Check(name="breaks", run=break_down),
        Check(name="rests-on-it", run=hang, needs=("hangs",)),
        Check(name="fine", run=lambda _: ok("yes")),
    )
    context = CheckContext(config=load_agent_config(board(tmp_path)), timeout_s=0.1)
    told: list[str] = []
    started_at = time.monotonic()
    results = run_checks(context, checks, lambda result: told.append(result.check))
    assert time.monotonic() - started_at < 20
    assert told == [check.name for check in checks]
    assert [result.finding.status for result in results] == ["failed", "failed", "skipped", "ok"]
    assert "ZeroDivisionError: oh" in results[1].finding.text


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "1e9"])
def test_time_outs_that_cannot_be(tmp_path: Path, timeout: str) -> None:
    done = distree("doctor", "-c", str(board(tmp_path)), f"--timeout={timeout}")
    assert done.returncode == 2
    assert "is out of range; choose more than 0" in done.stderr
