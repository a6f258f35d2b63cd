"""`distree service`: the unit it writes, judged by systemd's own tools, and what an agent says to its manager."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forked
import pytest
import yaml
from setup_broker import PATIENCE_S, Mosquitto, users

from broker_config.managed import ManagedBroker, free_port
from device_agent import systemd
from device_agent.config import load_agent_config
from device_agent.credentials import with_service_credentials
from distree import child_processes
from distree.broker_settings import BrokerSettings, TlsSettings
from distree.errors import ConfigError
from distree.signing import SigningKey

ROOT = Path(__file__).resolve().parents[2]
UNIT = Path("etc/systemd/system/distree-agent.service")
LINK = Path("etc/systemd/system/multi-user.target.wants/distree-agent.service")


def board(folder: Path, **changes: Any) -> Path:
    pipelines = [{"name": "p", "bundle": "fashion", "stages": [0, 1, 2]}]
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump({"site": "lab", "device": "cam", "pipelines": pipelines, **changes}))
    return path


def origin(source: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"pipelines": [{"name": "p", "bundle": "fashion", "stages": [0], "origin": {"source": source, **changes}}]}


def render(path: Path, program: str = "/opt/distree/bin/distree") -> str:
    return systemd.render(path, load_agent_config(path), program)


def values(unit: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{key}=")]


def distree(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run(["service", *arguments])


# ---------------------------------------------------------------- the unit


def test_the_unit_is_what_systemd_understands_and_holds_for_hardened(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt install systemd")
    (tmp_path / "secret").write_text("s\n")
    inbox = tmp_path / "in box"
    inbox.mkdir()
    changes = origin({"kind": "directory", "path": str(inbox)})
    path = board(tmp_path, broker={"username": "ann", "password_file": "secret"}, **changes)
    unit = tmp_path / "distree-agent.service"
    unit.write_text(render(path, "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    analyze = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    said = subprocess.run(analyze, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= 2.0


def test_what_the_unit_says(tmp_path: Path) -> None:
    unit = render(board(tmp_path, shutdown_timeout_s=30))
    assert values(unit, "ExecStart") == [f"/opt/distree/bin/distree agent run -c {tmp_path}/agent.yaml"]
    for key, value in {
        "Type": "notify", "WatchdogSec": "30", "Restart": "always", "DynamicUser": "yes", "StateDirectory": "distree",
        "ProtectSystem": "strict", "TimeoutStopSec": "40", "TimeoutStartSec": "infinity", "StartLimitIntervalSec": "0",
    }.items():  # fmt: skip
        assert values(unit, key) == [value], key
    assert not values(unit, "LoadCredential")
    assert not values(unit, "ReadWritePaths")
    small, large = (
        int(values(text, "MemoryMax")[0].rstrip("M"))
        for text in (unit, render(board(tmp_path, inbox={"max_kib": 1 << 20})))
    )
    assert 100 < small < 256
    assert large - small >= 1024 * 1.5 - 16


def test_words_that_systemd_would_read_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / 'a "b" 100% $HOME'
    folder.mkdir()
    unit = render(board(folder))
    (line,) = values(unit, "ExecStart")
    assert line.endswith(f'-c "{tmp_path}/a \\"b\\" 100%% $$HOME/agent.yaml"')


def test_secrets_are_credentials(tmp_path: Path) -> None:
    broker = {"username": "a", "password_file": "pw", "tls": {"cert_file": "a.crt", "key_file": "a.key"}}
    unit = render(board(tmp_path, broker=broker))
    assert values(unit, "LoadCredential") == [
        f"broker-password:{tmp_path}/pw",
        f"broker-certificate:{tmp_path}/a.crt",
        f"broker-key:{tmp_path}/a.key",
    ]


def test_credentials_take_the_place_of_files(tmp_path: Path) -> None:
    settings = BrokerSettings(
        username="a", password_file=Path("/root/pw"), tls=TlsSettings(cert_file=Path("c"), key_file=Path("/root/k"))
    )
    assert with_service_credentials(settings, {}) == settings
    assert with_service_credentials(settings, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == settings
    for name in ("broker-password", "broker-certificate", "broker-key"):
        (tmp_path / name).write_text("x")
    found = with_service_credentials(settings, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert found.password_file == tmp_path / "broker-password"
    assert found.tls == TlsSettings(cert_file=tmp_path / "broker-certificate", key_file=tmp_path / "broker-key")
    assert with_service_credentials(BrokerSettings(), {"CREDENTIALS_DIRECTORY": str(tmp_path)}).tls is None


def test_folders_of_inputs_are_writable_and_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    unit = render(board(tmp_path, **origin({"kind": "directory", "path": str(inbox)})))
    assert values(unit, "ReadWritePaths") == [str(inbox)]
    assert values(unit, "SupplementaryGroups") == [inbox.group()]
    assert values(unit, "UMask") == ["0007"]
    with pytest.raises(
        ConfigError, match=r"state_dir .*: the service may write only below /var/lib/distree; remove state_dir"
    ):
        render(board(tmp_path, state_dir="mine", **origin({"kind": "mqtt"}, spool=True)))
    spooled = origin({"kind": "mqtt"}, spool=True)
    assert values(render(board(tmp_path, **spooled)), "ExecStart")[0].endswith(" --state-dir /var/lib/distree/state")
    # The numbers of signed plans are kept, too.
    pinned = board(tmp_path, plan_keys=[SigningKey(bytes(32)).public])
    assert values(render(pinned), "ExecStart")[0].endswith(" --state-dir /var/lib/distree/state")
    own = render(board(tmp_path, state_dir="/var/lib/distree/spool", **spooled))
    assert "--state-dir" not in own


@pytest.mark.parametrize(
    ("source", "bundle", "group", "devices"),
    [
        ({"kind": "camera", "input": "/dev/video0"}, "fashion", "video", ["char-video4linux rw"]),
        ({"kind": "microphone"}, "spoken-digits", "audio", ["char-alsa rw"]),
        ({"kind": "stream", "path": "/dev/ttyUSB7"}, "wrist-exercises", "dialout", ["char-ttyUSB rw"]),
        ({"kind": "camera", "input": "rtsp://cam/1"}, "fashion", None, []),
        (
            {"kind": "camera", "command": ["rpicam"]},
            "fashion",
            "video",
            ["char-video4linux rw", "char-media rw", "char-dma_heap rw"],
        ),
    ],
)
def test_devices_of_inputs_may_be_opened_and_no_others(
    tmp_path: Path, source: dict[str, Any], bundle: str, group: str | None, devices: list[str]
) -> None:
    pipelines = [{"name": "p", "bundle": bundle, "stages": [0], "origin": {"source": source}}]
    text = render(board(tmp_path, pipelines=pipelines), "/bin/true")
    assert values(text, "SupplementaryGroups") == ([group] if group else [])
    assert values(text, "DeviceAllow") == devices
    assert values(text, "DevicePolicy") == (["closed"] if devices else [])
    assert values(text, "PrivateDevices") == ([] if devices else ["yes"])
    assert values(text, "TasksMax") == ["256"]
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt install systemd")
    unit = tmp_path / "distree-agent.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    analyze = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    said = subprocess.run(analyze, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= 2.0


def test_what_programs_take_is_in_the_limit_of_memory(tmp_path: Path) -> None:
    without, with_camera = (
        int(values(render(board(tmp_path, **origin(source))), "MemoryMax")[0].rstrip("M"))
        for source in ({"kind": "python"}, {"kind": "camera", "input": "/dev/video0"})
    )
    assert with_camera - without >= 1.5 * 128


# ---------------------------------------------------------------- install, remove, status


def test_install_status_and_remove_in_an_image(tmp_path: Path) -> None:
    root, config = tmp_path / "image", board(tmp_path)
    where = ["--root", str(root), "-c", str(config), "--exec", "/opt/distree/bin/distree"]
    done = distree("status", *where)
    assert done.returncode == 1
    assert "not installed" in done.stdout
    done = distree("install", *where)
    assert done.returncode == 0, done.stderr
    assert (root / UNIT).read_text() == render(config)
    assert (root / UNIT).stat().st_mode & 0o777 == 0o644
    assert (root / LINK).resolve() == (root / UNIT).resolve()
    assert distree("install", *where).returncode == 0  # again
    done = distree("status", *where)
    assert done.returncode == 0, done.stdout
    assert "installed, enabled, up to date" in done.stdout
    board(tmp_path, shutdown_timeout_s=99)
    done = distree("status", *where)
    assert done.returncode == 1
    assert "out of date: run distree service install again" in done.stdout
    assert distree("remove", "--root", str(root)).returncode == 0
    assert [path for path in root.rglob("*") if not path.is_dir()] == []
    done = distree("remove", "--root", str(root))
    assert done.returncode == 0
    assert "does not exist" in done.stdout


def test_print_writes_the_unit_and_nothing_else(tmp_path: Path) -> None:
    config = board(tmp_path)
    done = distree("install", "-c", str(config), "--print", "--exec", "/opt/distree/bin/distree")
    assert (done.returncode, done.stdout) == (0, render(config)), done.stderr
    assert list(tmp_path.iterdir()) == [config]


def test_an_image_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "image").touch()
    done = distree("install", "-c", str(board(tmp_path)), "--root", str(tmp_path / "image"), "--exec", "/x")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def visible(path: Path, program: str = "/usr/bin/env") -> None:
    systemd._check_visible(path, load_agent_config(path), program)


def test_files_that_the_service_would_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_HIDDEN", (str(tmp_path),))
    with pytest.raises(
        ConfigError, match=r"agent.yaml: hidden from the service by systemd sandboxing; put it below /etc/distree"
    ):
        visible(board(tmp_path))
    # From here on the folder is one as /etc is.
    monkeypatch.setattr(systemd, "_HIDDEN", ("/root",))
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder.is_relative_to("/tmp/") and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o005)
    if not systemd._readable_by_all(board(tmp_path)):
        pytest.skip(f"the folders above {tmp_path} are closed to others")
    visible(board(tmp_path))
    with pytest.raises(
        ConfigError,
        match=r"/root/distree: hidden from the service by systemd sandboxing; install DistrEE into /opt/distree",
    ):
        visible(board(tmp_path), "/root/distree")
    replay = origin({"kind": "replay", "path": "/root/inputs.npz"})
    with pytest.raises(ConfigError, match=r"/root/inputs.npz: hidden from the service by systemd sandboxing"):
        visible(board(tmp_path, **replay))
    with pytest.raises(ConfigError, match=r"none.crt: the service's user cannot read it; chmod o\+rX"):
        visible(board(tmp_path, broker={"tls": {"ca_file": "none.crt"}}))
    with pytest.raises(ConfigError, match="secret: no such file"):
        visible(board(tmp_path, broker={"username": "a", "password_file": "secret"}))
    board(tmp_path).chmod(0o600)
    with pytest.raises(ConfigError, match=r"agent\.yaml: the service's user cannot read it"):
        visible(tmp_path / "agent.yaml")
    (tmp_path / "agent.yaml").unlink()
    with pytest.raises(
        ConfigError, match="not a folder that a group other than root may write; run: groupadd -f distree"
    ):
        visible(board(tmp_path, **origin({"kind": "directory", "path": "inbox"})))


# ---------------------------------------------------------------- what an agent says


class Manager:
    """The service manager's side of NOTIFY_SOCKET."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self.heard: list[str] = []

    def until(self, word: str, count: int = 1, patience_s: float = PATIENCE_S) -> bool:
        ends_at = time.monotonic() + patience_s
        while self.heard.count(word) < count:
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                return False
            self._socket.settimeout(left_s)
            try:
                self.heard.append(self._socket.recv(4096).decode())
            except TimeoutError:
                return False
        return True

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    made = Manager(tmp_path)
    yield made
    made.close()


def start(config: Path, manager: Manager, **environ: str) -> forked.Forked:
    told = {**os.environ, "NOTIFY_SOCKET": manager.address, **environ}
    return forked.start(["agent", "run", "-c", str(config)], env=told)


@pytest.mark.any_broker
def test_ready_when_connected_fed_while_it_works_and_stopping_when_told(tmp_path: Path, manager: Manager) -> None:
    port = free_port()
    process = start(board(tmp_path, broker={"port": port}), manager, WATCHDOG_USEC="400000")
    try:
        # Alive without a broker, but not ready.
        assert manager.until("WATCHDOG=1", 3)
        assert "READY=1" not in manager.heard
        with ManagedBroker(port):
            assert manager.until("READY=1")
            fed = manager.heard.count("WATCHDOG=1")
            assert manager.until("WATCHDOG=1", fed + 3)
            # A process that does not run does not feed.
            os.kill(process.pid, signal.SIGSTOP)
            manager.until("", patience_s=0.5)
            fed = manager.heard.count("WATCHDOG=1")
            assert not manager.until("WATCHDOG=1", fed + 1, patience_s=1.5)
            os.kill(process.pid, signal.SIGCONT)
            assert manager.until("WATCHDOG=1", fed + 1)
            process.send_signal(signal.SIGTERM)
            assert manager.until("STOPPING=1")
            assert process.wait(PATIENCE_S) == 0
        assert manager.heard.count("READY=1") == manager.heard.count("STOPPING=1") == 1
    finally:
        process.kill()
        process.wait()


@pytest.mark.any_broker
def test_an_interpreter_that_fails_its_test_is_never_ready(tmp_path: Path, manager: Manager) -> None:
    with ManagedBroker() as broker:
        fake = tmp_path / "site" / "ai_edge_litert"
        fake.mkdir(parents=True)
        (fake / "__init__.py").touch()
        (fake / "interpreter.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
        config = board(tmp_path, broker={"port": broker.port})
        path = f"{fake.parent}{os.pathsep}{ROOT}"
        process = child_processes.spawn(
            [sys.executable, "-m", "distree", "agent", "run", "-c", str(config)],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "NOTIFY_SOCKET": manager.address, "PYTHONPATH": path},
        )
        try:
            assert process.wait(PATIENCE_S) == 1
            assert not manager.until("READY=1", patience_s=0.2)
        finally:
            process.kill()
            process.wait()


def test_an_agent_takes_its_password_from_a_credential(tmp_path: Path, manager: Manager) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "broker-password").write_text("s3cret\n")
    with Mosquitto(tmp_path, users(tmp_path, ann="s3cret")) as broker:
        login = {"port": broker.port, "username": "ann", "password_file": "/nowhere/secret"}
        process = start(board(tmp_path, broker=login), manager, CREDENTIALS_DIRECTORY=str(credentials))
        try:
            assert manager.until("READY=1")
        finally:
            process.kill()
            process.wait()
