"""`distree broker init` and what follows it: secrets that only their owner reads, and a broker that obeys at once."""

from __future__ import annotations

import argparse
import json
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from broker_config import cli
from broker_config.access.dynamic_security import find_plugin
from broker_config.managed import find_mosquitto, free_port
from broker_config.site import control
from broker_config.site.broker import SiteBroker
from broker_config.site.config import SiteConfig, UserConfig, dump, load
from broker_config.site.folder import SiteFolder
from device_agent import config as agent_config
from distree.apps.cli import main
from distree.broker_settings import BrokerSettings, Session
from distree.client.subscription import Subscription
from distree.errors import BrokerError, ClosedError, ConfigError, Problem
from distree.signing import load_signing_key
from distree.transport import make_transport
from distree.transport.base import Received
from distree.transport.probe import HangUpError, ProbeClient
from orchestrator import config as orchestrator_config

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
needs_plugin = pytest.mark.skipif(find_plugin() is None, reason="mosquitto's dynamic security is not installed")

NOBODY_READS, NOT_AUTHORISED = 0x10, 0x87
RESULT = "distree/1/lab/pipeline/p/result/b2"
STATE = "distree/1/lab/device/{}/state"


def distree_broker(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args(arguments))


Init = Callable[..., Path]


@pytest.fixture
def init(tmp_path: Path) -> Init:
    def make(*options: str) -> Path:
        folder = tmp_path / "lab-broker"
        boards = ("--board", "cam1:origin,stage", "--board", "b1:stage")
        where = ("--host", "127.0.0.1", "--port", str(free_port()), "--folder", str(folder))
        assert distree_broker("init", "lab", *where, *boards, *options) == 0
        return folder

    return make


@pytest.fixture
def log_in() -> Iterator[Callable[[Path, str], ProbeClient]]:
    clients: list[ProbeClient] = []

    def make(folder: Path, name: str) -> ProbeClient:
        settings = control.settings_of(load(folder), folder / "users" / name, name)
        clients.append(control.log_in(settings, f"{name}-{len(clients)}", soon()))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def soon() -> float:
    return time.monotonic() + 20.0


def listens_to(client: ProbeClient, topic: str) -> bool:
    """Whether what a client publishes to itself comes back."""
    client.heard.clear()
    client.subscribe(topic, soon())
    client.publish(topic, b"", qos=1, until=soon())
    client.ping(soon())
    return any(message.topic == topic for message in client.heard)


def test_what_is_made(init: Init, capsys: pytest.CaptureFixture[str]) -> None:
    folder = init("--home-assistant", "--access", "files", "--user", "ann:labeller")
    told = capsys.readouterr().out
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {path.name: 0o600 for path in files}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*")) if path.is_dir()} == {0o700}
    names = [path.name for path in (folder / "users").iterdir()]
    assert sorted(names) == [
        "administrator", "ann", "b1", "cam1", "dashboard", "home-assistant", "orchestrator", "submitter",
    ]  # fmt: skip
    secrets = [(folder / "users" / name / f"{name}.secret").read_text().strip() for name in names]
    assert len(set(secrets)) == len(names)
    assert all(len(secret) >= 24 for secret in secrets)
    suffixes = [
        yaml.safe_load((folder / "users" / name / "broker.yaml").read_text())["broker"]["client_id_suffix"]
        for name in names
    ]
    assert len(set(suffixes)) == len(names)
    everything_else = [path.read_text() for path in files if path.suffix != ".secret"]
    assert not [secret for secret in secrets for text in everything_else if secret in text]
    assert not [secret for secret in secrets if secret in told]
    assert yaml.safe_load((folder / "users" / "cam1" / "broker.yaml").read_text())["broker"]["username"] == "cam1"
    assert f"copy {folder}/users/cam1/ to cam1" in told
    assert "clear text" in told


def test_secrets_are_not_overwritten_unless_forced(init: Init) -> None:
    folder = init("--access", "files")
    secret = folder / "users" / "cam1" / "cam1.secret"
    before = secret.read_text()
    with pytest.raises(ConfigError, match=r"has site.yaml.* already; .*--force"):
        init("--access", "files")
    assert secret.read_text() == before
    init("--access", "files", "--force")
    assert secret.read_text() != before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--board", "cam3"), "write it as NAME:ROLE"),
        (("--board", "cam3:stag"), "'stag' is not a role here; choose among origin"),
        (("--board", "Cam3:stage"), "not an id"),
        (("--board", "b1:stage"), "b1 given twice"),
        (("--board", "dashboard:stage"), "dashboard given twice"),
        (("--board", "b3:dashboard"), "'dashboard' is not a role here"),
        (("--user", "eva:stage"), "'stage' is not a role here"),
        (("--reads", "cam9=frigate/#"), "'cam9' is not a board"),
        (("--reads", "cam1=#"), "covers topics of DistrEE"),
        (("--program", "frigate=$CONTROL/#"), "a topic of the broker itself"),
        (("--home-assistant", "distree"), "not a discovery prefix"),
        (("--websockets", "0"), "websockets: 0 is out of range"),
        (("--host", "no host"), "neither a name nor an address"),
    ],
)
def test_what_init_refuses(init: Init, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        init(*options)
    assert not (tmp_path / "lab-broker").exists()


def test_site_yaml_is_read_as_it_was_written(tmp_path: Path) -> None:
    users = (
        UserConfig(name="cam1", roles=("origin", "stage"), reads=("frigate/+/+/snapshot",)),
        UserConfig(name="eva", roles=("submitter", "dashboard"), origins=("cam1",), pipelines=("fashion",)),
    )
    config = SiteConfig(
        site="lab", host="hub.lan", port=8883, login="certificates", tls=True, access="files", websockets=9001,
        discovery_prefix="homeassistant", users=users,
    )  # fmt: skip
    (tmp_path / "site.yaml").write_text(dump(config))
    assert load(tmp_path) == config


@needs_openssl
@needs_mosquitto
@needs_plugin
@pytest.mark.parametrize("login", [(), ("--tls",), ("--certificates",)], ids=["passwords", "tls", "certificates"])
def test_users_come_and_go_while_it_runs(init: Init, log_in: Callable[[Path, str], ProbeClient], login) -> None:
    folder = init(*login)
    with SiteBroker(folder, listen_on="127.0.0.1"):
        old = log_in(folder, "b1")
        assert listens_to(old, STATE.format("b1"))
        assert distree_broker("add", str(folder), "b2:stage") == 0
        assert listens_to(log_in(folder, "b2"), STATE.format("b2"))
        assert log_in(folder, "b2").publish(RESULT, b"", qos=1, until=soon()) == NOT_AUTHORISED
        assert distree_broker("change", str(folder), "b2:origin,stage") == 0
        origin = log_in(folder, "b2")
        judge = log_in(folder, "administrator")
        judge.subscribe(RESULT, soon())
        assert origin.publish(RESULT, b"", qos=1, until=soon()) == 0
        assert judge.listen(soon(), lambda: bool(judge.heard))
        kept = (folder / "users" / "b1").rename(folder / "b1")
        (folder / "users" / "b1").mkdir()  # what the command deletes
        assert distree_broker("remove", str(folder), "b1") == 0
        with pytest.raises(HangUpError):  # its session has ended
            old.ping(soon())
        kept.rename(folder / "users" / "b1")
        with pytest.raises((BrokerError, OSError)):  # TLS has many words for a certificate that is no good any more
            log_in(folder, "b1")
        assert log_in(folder, "cam1")
    # The plugin has written it down, and so has the folder.
    assert [user.name for user in load(folder).users if user.is_board] == ["cam1", "b2"]
    with SiteBroker(folder, listen_on="127.0.0.1"):
        assert listens_to(log_in(folder, "b2"), STATE.format("b2"))


@needs_openssl
@needs_mosquitto
@needs_plugin
@pytest.mark.parametrize("login", ["--tls", "--certificates"])
def test_a_new_secret_ends_sessions_with_the_old_one(
    init: Init, log_in: Callable[[Path, str], ProbeClient], login: str
) -> None:
    folder = init(login)
    own = folder / "users" / "b1"
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    with SiteBroker(folder, listen_on="127.0.0.1"):
        old = log_in(folder, "b1")
        assert distree_broker("rotate", str(folder), "b1") == 0
        with pytest.raises(HangUpError):
            old.ping(soon())
        assert listens_to(log_in(folder, "b1"), STATE.format("b1"))
        assert (own / "broker.yaml").read_bytes() == before["broker.yaml"]
        for name, content in before.items():
            (own / name).write_bytes(content)
        with pytest.raises((BrokerError, OSError)):  # TLS has many words for a certificate that is no good any more
            log_in(folder, "b1")
        assert log_in(folder, "cam1")


@needs_openssl
def test_the_authority_s_key_may_be_elsewhere_until_users_change(init: Init) -> None:
    folder = init("--certificates", "--access", "files")
    key = folder / "authority" / "ca.key"
    kept = key.rename(key.with_name("kept"))
    for change in (("add", "b2:stage"), ("rotate", "b1"), ("remove", "b1")):
        with pytest.raises(ConfigError, match=r"ca\.key is missing; put it back"):
            distree_broker(change[0], str(folder), change[1])
    kept.rename(key)
    assert distree_broker("remove", str(folder), "b1") == 0


@needs_mosquitto
@pytest.mark.parametrize("access", ["files", pytest.param("dynamic-security", marks=needs_plugin)])
def test_users_come_and_go_while_it_does_not_run(
    init: Init, log_in: Callable[[Path, str], ProbeClient], access: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = init("--access", access)
    old = (folder / "users" / "cam1" / "cam1.secret").read_text()
    for change in (("add", "b2:stage"), ("change", "b2:hub"), ("remove", "b1"), ("rotate", "cam1")):
        assert distree_broker(change[0], str(folder), change[1]) == 0
        assert "applies when it is started" in capsys.readouterr().out
    with SiteBroker(folder, listen_on="127.0.0.1"):
        for name in ("cam1", "b2"):
            assert listens_to(log_in(folder, name), STATE.format(name))
        (folder / "users" / "cam1" / "cam1.secret").write_text(old)
        with pytest.raises(BrokerError, match="refuses the user cam1"):
            log_in(folder, "cam1")
        hub = log_in(folder, "b2")
        assert hub.publish("distree/1/lab/pipeline/p/decision/b9/b2", b"", qos=1, until=soon()) in (0, NOBODY_READS)
    assert not (folder / "users" / "b1").exists()


@needs_mosquitto
def test_with_files_a_running_broker_is_told_and_the_limit_is_said(
    init: Init, log_in: Callable[[Path, str], ProbeClient], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = init("--access", "files")
    with SiteBroker(folder, listen_on="127.0.0.1"):
        capsys.readouterr()
        assert distree_broker("add", str(folder), "b2:stage") == 0
        assert "stays open" in capsys.readouterr().out
        until = soon()
        while True:  # it reads its files between two rounds of its loop
            try:
                assert listens_to(log_in(folder, "b2"), STATE.format("b2"))
                break
            except BrokerError:
                assert time.monotonic() < until
                time.sleep(0.05)


def test_what_changes_refuse(init: Init, tmp_path: Path) -> None:
    folder = init("--access", "files")
    for change, words in (
        (("add", str(folder), "b1:stage"), "'b1' is a user already"),
        (("add", str(folder), "b3:boss"), "'boss' is not a role"),
        (("change", str(folder), "b3:stage"), "'b3' is not a user"),
        (("remove", str(folder), "b3"), "'b3' is not a user of the site lab; choose among cam1"),
        (("remove", str(tmp_path), "b3"), "has no site.yaml"),
        (("run", str(folder), "--port", "1"), "leave the options out"),
    ):
        with pytest.raises(ConfigError, match=words):
            distree_broker(*change)


@needs_openssl
def test_the_dashboard_s_user_is_told_the_address_for_browsers(init: Init) -> None:
    users = init("--websockets", "9001") / "users"
    assert "distree dashboard --broker ws://127.0.0.1:9001\n" in (users / "dashboard" / "broker.yaml").read_text()
    assert "ws://" not in (users / "submitter" / "broker.yaml").read_text()
    users = init("--websockets", "9001", "--tls", "--force") / "users"
    said = (users / "dashboard" / "broker.yaml").read_text()
    assert "distree dashboard --broker wss://127.0.0.1:9001; the browser must trust ca.crt\n" in said


def test_a_folder_of_another_user_is_left_alone(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    """What root wrote into the folder of the user mosquitto, mosquitto could not read at its next start."""
    folder = init("--access", "files")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr("os.geteuid", lambda: folder.stat().st_uid + 1)
    for change in (("add", "b2:stage"), ("change", "b1:stage,origin"), ("rotate", "b1"), ("remove", "b1"), ("run",)):
        command, *user = change
        with pytest.raises(ConfigError, match=r"belongs to the user .*; run this as that user: sudo -u "):
            distree_broker(command, str(folder), *user)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_that_cannot_be_made_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    where = tmp_path / "file" / "lab-broker"
    assert main(["broker", "init", "lab", "--host", "hub", "--board", "b1:stage", "--folder", str(where)]) == 1
    assert capsys.readouterr().err == f"distree: {where}: not a directory; check the path and its permissions\n"


@needs_mosquitto
@needs_plugin
def test_who_may_not_publish_is_told_at_once(init: Init) -> None:
    folder = init()
    settings = control.settings_of(load(folder), folder / "users" / "dashboard", "dashboard")
    with SiteBroker(folder, listen_on="127.0.0.1"), Subscription[str](settings, [RESULT], lambda _: None) as link:
        link.publish("distree/1/lab/pipeline/p/input/cam1", b"x")
        with pytest.raises(ClosedError, match="refuses publishes on distree/1/lab/pipeline/p/input/cam1"):
            link.get(10.0)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"clients": [3], "roles": [3]}'])
def test_a_file_of_the_plugin_that_is_damaged_stops_a_change_before_it_begins(init: Init, content: str | None) -> None:
    folder = init("--access", "dynamic-security")
    path, site = folder / "dynamic-security.json", (folder / "site.yaml").read_text()
    whole = path.read_text()
    path.unlink()
    if content is not None:
        path.write_text(content)
    for change in (("add", "b2:stage"), ("change", "b1:origin"), ("rotate", "b1"), ("remove", "b1")):
        with pytest.raises((ConfigError, FileNotFoundError), match=r"dynamic-security\.json"):
            distree_broker(change[0], str(folder), change[1])
        assert (folder / "site.yaml").read_text() == site
    path.write_text(whole)
    assert distree_broker("add", str(folder), "b2:stage") == 0


def test_a_user_whose_folder_was_moved_away_gets_a_new_secret_in_a_new_one(init: Init) -> None:
    folder = init("--access", "files")
    shutil.rmtree(folder / "users" / "b1")
    assert distree_broker("rotate", str(folder), "b1") == 0
    assert sorted(path.name for path in (folder / "users" / "b1").iterdir()) == ["b1.secret", "broker.yaml"]


@needs_openssl
@needs_mosquitto
@needs_plugin
@pytest.mark.parametrize("form", [(), ("--certificates",), ("--access", "files")], ids=["", "certificates", "files"])
def test_nothing_is_retained_of_a_board_that_was_removed(init: Init, log_in: Callable[[Path, str], ProbeClient], form):
    folder = init(*form)
    member = "distree/1/lab/pipeline/p/member/0/{}"
    with SiteBroker(folder, listen_on="127.0.0.1"):
        for board in ("b1", "cam1"):
            client = log_in(folder, board)
            for topic in (STATE, STATE.replace("state", "meta"), member):
                assert client.publish(topic.format(board), b"{}", qos=1, until=soon(), retain=True) in (0, NOBODY_READS)
        assert distree_broker("remove", str(folder), "b1") == 0
        judge = log_in(folder, "administrator")
        judge.subscribe("distree/1/lab/#", soon())
        assert judge.listen(soon(), lambda: len(judge.heard) == 3)
        judge.ping(soon())
        assert {message.topic.rsplit("/")[-1 if "member" in message.topic else -2] for message in judge.heard} == {
            "cam1"
        }


def test_that_something_stays_of_a_board_that_is_removed_while_no_broker_runs_is_said(
    init: Init, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = init("--access", "files")
    assert distree_broker("remove", str(folder), "b1") == 0
    assert "go on showing b1; to avoid that, remove boards while the broker runs" in capsys.readouterr().out
    assert distree_broker("remove", str(folder), "dashboard") == 0
    assert "go on showing" not in capsys.readouterr().out


@needs_mosquitto
@needs_plugin
def test_an_administrator_s_secret_is_needed_while_it_runs(init: Init) -> None:
    folder = init()
    with SiteBroker(folder, listen_on="127.0.0.1"):
        (folder / "users" / "administrator" / "administrator.secret").unlink()
        with pytest.raises(ConfigError, match="no administrator's secret"):
            SiteFolder(folder).remove("b1")
    assert "b1" in [user.name for user in load(folder).users]


@needs_mosquitto
@needs_plugin
def test_the_answers_to_another_administrator_are_none_of_ours(
    init: Init, log_in: Callable[[Path, str], ProbeClient]
) -> None:
    folder = init()
    with SiteBroker(folder, listen_on="127.0.0.1"):
        other, done = log_in(folder, "administrator"), threading.Event()

        def fail_again_and_again() -> None:
            command = {"commands": [{"command": "getClient", "username": "nobody"}]}
            while not done.wait(0.001):
                other.publish("$CONTROL/dynamic-security/v1", json.dumps(command).encode(), qos=1, until=soon())

        thread = threading.Thread(target=fail_again_and_again)
        thread.start()
        try:
            for number in range(5):
                assert distree_broker("add", str(folder), f"new{number}:stage") == 0
        finally:
            done.set()
            thread.join()


class Silent:
    """Counts how often the connection was lost."""

    def __init__(self) -> None:
        self.lost: list[Problem] = []

    def connected(self) -> None: ...

    def disconnected(self, why: Problem) -> None:
        self.lost.append(why)

    def received(self, message: Received) -> None: ...

    def published(self, token: str) -> None: ...

    def given_up(self, token: str) -> None: ...

    def no_subscribers(self, topic: str, payload: bytes) -> None: ...


@needs_mosquitto
@pytest.mark.parametrize("has_suffix", [True, False])
def test_nobody_can_take_over_a_board_s_connection_by_its_id(
    init: Init, log_in: Callable[[Path, str], ProbeClient], has_suffix: bool
) -> None:
    """Without the suffix that broker.yaml has it works, on this broker and on most others."""
    folder = init()
    said = yaml.safe_load((folder / "users" / "cam1" / "broker.yaml").read_text())["broker"]
    settings = control.settings_of(load(folder), folder / "users" / "cam1", "cam1")
    settings = replace(settings, client_id_suffix=said["client_id_suffix"] if has_suffix else None)
    with SiteBroker(folder, listen_on="127.0.0.1"):
        listener = Silent()
        transport = make_transport(settings, client_id="distree_lab_cam1", session=Session.NONE)
        transport.open(listener, [])
        try:
            transport.connect_now(20.0)
            other = control.settings_of(load(folder), folder / "users" / "dashboard", "dashboard")
            control.log_in(other, "distree_lab_cam1", soon()).close()
            until = time.monotonic() + (1.0 if has_suffix else 20.0)
            while not listener.lost and time.monotonic() < until:
                transport.poll(0.05)
            assert bool(listener.lost) is not has_suffix
        finally:
            transport.close()


def test_a_suffix_that_no_broker_would_take() -> None:
    with pytest.raises(ConfigError, match="client_id_suffix: 'a/b' cannot end a client id"):
        BrokerSettings(client_id_suffix="a/b")


@needs_mosquitto
@needs_plugin
@needs_openssl
@pytest.mark.parametrize("login", ["--tls", "--certificates"])
def test_administrators_come_and_go(init: Init, log_in: Callable[[Path, str], ProbeClient], login: str) -> None:
    """The only one can get a new secret, but cannot go, or stop being one."""
    folder = init(login)
    with SiteBroker(folder, listen_on="127.0.0.1"):
        for change in (("rotate", "administrator"), ("rotate", "b1"), ("rotate", "administrator")):
            assert distree_broker(change[0], str(folder), change[1]) == 0
            assert log_in(folder, change[1])
        for change in (("remove", "administrator"), ("change", "administrator:dashboard")):
            with pytest.raises(ConfigError, match=r"nobody would be left.*add another administrator first"):
                distree_broker(change[0], str(folder), change[1])
        for change in (("add", "boss:administrator"), ("remove", "administrator"), ("rotate", "b1")):
            assert distree_broker(change[0], str(folder), change[1]) == 0
        assert log_in(folder, "boss")
        assert log_in(folder, "b1")


@needs_mosquitto
@needs_plugin
def test_a_change_that_was_cut_short_can_be_repeated(init: Init, log_in: Callable[[Path, str], ProbeClient]) -> None:
    folder = init()
    before = (folder / "site.yaml").read_text()
    with SiteBroker(folder, listen_on="127.0.0.1"):
        for change in (("add", "b2:stage"), ("remove", "b1")):
            assert distree_broker(change[0], str(folder), change[1]) == 0
            (folder / "site.yaml").write_text(before)  # the broker knows, and the folder does not
            assert distree_broker(change[0], str(folder), change[1]) == 0
            before = (folder / "site.yaml").read_text()
        assert listens_to(log_in(folder, "b2"), STATE.format("b2"))
    assert [user.name for user in load(folder).users if user.is_board] == ["cam1", "b2"]


def test_signed_sites_have_keys_that_fit_each_other(init: Init, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cryptography")
    folder = init("--signed", "--access", "files", "--user", "ann:labeller", "--user", "spare:orchestrator")
    assert distree_broker("add", str(folder), "b2:stage") == 0
    capsys.readouterr()
    assert distree_broker("add", str(folder), "bob:labeller") == 0
    told = capsys.readouterr().out
    users = folder / "users"
    plan = load_signing_key(users / "orchestrator" / "plan.key")
    assert load_signing_key(users / "spare" / "plan.key").public == plan.public
    labels = [load_signing_key(users / name / "label.key").public for name in ("ann", "bob")]
    assert f'set label_keys: ["{labels[0]}", "{labels[1]}"], and restart the orchestrator' in told
    assert sorted(path.parent.name for path in users.rglob("plan.key")) == ["orchestrator", "spare"]
    pipelines = [{"name": "fashion", "bundle": "fashion", "stages": [1]}]
    for board in ("cam1", "b1", "b2"):
        made = yaml.safe_load((users / board / "broker.yaml").read_text())
        path = users / board / "agent.yaml"
        path.write_text(yaml.safe_dump({"site": "lab", "device": board, "pipelines": pipelines, **made}))
        assert agent_config.load_agent_config(path).plan_keys == (plan.public,)
    path = users / "orchestrator" / "orchestrator.yaml"
    made = yaml.safe_load((users / "orchestrator" / "broker.yaml").read_text())
    path.write_text(yaml.safe_dump({"site": "lab", "pipelines": [{"name": "fashion", "bundle": "fashion"}], **made}))
    config = orchestrator_config.load_config(path)
    assert config.signing_key == users / "orchestrator" / "plan.key"
    assert config.label_keys == (labels[0],)
    assert "--signing-key label.key" in (users / "bob" / "broker.yaml").read_text()


def test_who_becomes_a_labeller_later_gets_a_key_too(init: Init, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cryptography")
    folder = init("--signed", "--access", "files", "--user", "ann:reader")
    assert not (folder / "users" / "ann" / "label.key").exists()
    assert distree_broker("change", str(folder), "ann:labeller") == 0
    public = load_signing_key(folder / "users" / "ann" / "label.key").public
    assert f'label_keys: ["{public}"]' in capsys.readouterr().out
    assert load(folder).user("ann").public_key == public
    # What it has, it keeps.
    assert distree_broker("change", str(folder), "ann:labeller,reader") == 0
    assert (
        load_signing_key(folder / "users" / "ann" / "label.key").public == public == load(folder).user("ann").public_key
    )


@pytest.mark.parametrize("access", ["files", pytest.param("dynamic-security", marks=needs_plugin)])
def test_who_signs_something_else_gets_another_key(init: Init, capsys: pytest.CaptureFixture[str], access: str) -> None:
    pytest.importorskip("cryptography")
    folder = init("--signed", "--access", access, "--user", "ann:labeller")
    ann = folder / "users" / "ann"
    plan = load(folder).user("orchestrator").public_key
    label = load(folder).user("ann").public_key
    suffix = yaml.safe_load((ann / "broker.yaml").read_text())["broker"]["client_id_suffix"]
    assert distree_broker("change", str(folder), "ann:orchestrator") == 0
    assert load(folder).public_keys("orchestrator") == (plan,), "a label's key signs no plans"
    assert load_signing_key(ann / "plan.key").public == plan
    assert not (ann / "label.key").exists()
    made = yaml.safe_load((ann / "broker.yaml").read_text())
    assert (made["signing_key"], made["broker"]["client_id_suffix"]) == ("plan.key", suffix)
    assert "nobody may publish labels now" in capsys.readouterr().out
    assert distree_broker("change", str(folder), "ann:labeller") == 0
    public = load_signing_key(ann / "label.key").public
    assert load(folder).public_keys("labeller") == (public,)
    assert public not in (plan, label)
    assert not (ann / "plan.key").exists()
    assert distree_broker("change", str(folder), "ann:reader") == 0
    assert sorted(path.name for path in ann.iterdir()) == ["ann.secret", "broker.yaml"]
    assert load(folder).user("ann").public_key is None
    assert "nobody may publish labels now" in capsys.readouterr().out


def test_boards_need_the_key_of_an_orchestrator_that_follows_the_last(
    init: Init, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography")
    folder = init("--signed", "--access", "files")
    assert distree_broker("remove", str(folder), "orchestrator") == 0
    assert "plan_keys" not in capsys.readouterr().out
    assert distree_broker("add", str(folder), "spare:orchestrator") == 0
    public = load_signing_key(folder / "users" / "spare" / "plan.key").public
    assert f'in each board\'s agent.yaml, set plan_keys: ["{public}"], and restart its agent' in capsys.readouterr().out


def test_an_orchestrator_is_not_added_without_the_key_of_the_others(init: Init) -> None:
    pytest.importorskip("cryptography")
    folder = init("--signed", "--access", "files")
    (folder / "users" / "orchestrator" / "plan.key").unlink()
    with pytest.raises(ConfigError, match="sign with the same key"):
        distree_broker("add", str(folder), "spare:orchestrator")
    assert [user.name for user in load(folder).users if "orchestrator" in user.roles] == ["orchestrator"]


def test_other_programs_keep_their_users_as_others_come_and_go(init: Init) -> None:
    folder = init("--access", "files", "--program", "frigate=frigate/#", "--program", "frigate=homeassistant/#")
    assert distree_broker("add", str(folder), "b2:stage") == 0
    assert distree_broker("add", str(folder), "zigbee:program", "--topic", "zigbee2mqtt/#") == 0
    assert load(folder).user("frigate").topics == ("frigate/#", "homeassistant/#")
    rules = (folder / "access").read_text()
    for topic in ("frigate/#", "homeassistant/#", "zigbee2mqtt/#"):
        assert f"topic readwrite {topic}\n" in rules
    with pytest.raises(ConfigError, match="needs some"):
        distree_broker("add", str(folder), "other:program")
