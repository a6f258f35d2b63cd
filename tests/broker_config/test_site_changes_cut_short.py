"""Commands that change a broker's folder, stopped half-way or run at the same time: nobody is left half a user."""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import os
import pwd
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import thoroughness

from broker_config import cli
from broker_config.access.dynamic_security import find_plugin
from broker_config.managed import find_mosquitto, free_port
from broker_config.site import control, private_files
from broker_config.site.broker import SiteBroker
from broker_config.site.config import load
from broker_config.site.private_files import locked
from distree.apps.cli import main
from distree.errors import BrokerError, ConfigError

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
needs_plugin = pytest.mark.skipif(find_plugin() is None, reason="mosquitto's dynamic security is not installed")

STEPS: list[tuple[Any, str]] = [
    (os, "open"), (os, "kill"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"),
    (shutil, "copy"), (shutil, "rmtree"), (subprocess, "run"), (socket, "create_connection"),
]  # fmt: skip
"""All by which a command changes something, or has it changed."""


def distree_broker(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args(arguments))


def init(folder: Path, *options: str, port: int | None = None) -> None:
    where = ("--host", "127.0.0.1", "--port", str(port or free_port()), "--folder", str(folder))
    boards = ("--board", "cam1:origin,stage", "--board", "b1:stage")
    assert distree_broker("init", "lab", *where, *boards, *options) == 0


def _counted(real: Callable[..., Any], done: Iterator[int], interrupted_at: int) -> Callable[..., Any]:
    def step(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is threading.main_thread() and next(done) == interrupted_at:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    return step


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def is_cut_short(before_step: int, *arguments: str) -> bool:
    """Run a command that is interrupted before one of its steps; False if it has fewer steps."""
    done = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        for place, name in STEPS:
            patch.setattr(place, name, _counted(getattr(place, name), done, before_step))
        try:
            distree_broker(*arguments)
        except KeyboardInterrupt:
            return True
    return False


def repeat(*arguments: str) -> None:
    """Run a command again, which may find that all has been done."""
    with contextlib.suppress(ConfigError):
        distree_broker(*arguments)


def who_logs_in(folder: Path, names: Sequence[str]) -> list[str]:
    """Return those who get into the broker with what is in their folders."""
    found = []
    for name in names:
        if not (folder / "users" / name).exists():
            continue
        with contextlib.suppress(BrokerError):
            settings = control.settings_of(load(folder), folder / "users" / name, name)
            control.log_in(settings, f"test-{name}", time.monotonic() + 20.0).close()
            found.append(name)
    return found


def users_of(folder: Path) -> list[str]:
    return [user.name for user in load(folder).users]


EVERYBODY = ["cam1", "b1", "orchestrator", "dashboard", "submitter", "administrator"]


PLUGIN = pytest.param((), marks=needs_plugin, id="plugin")
FILES = pytest.param(("--access", "files"), id="files")
CERTIFICATES = pytest.param(("--certificates",), marks=[needs_plugin, needs_openssl], id="certificates")


@needs_mosquitto
@pytest.mark.parametrize(
    ("form", "change", "user"),
    [
        pytest.param(*form.values, change, user, marks=form.marks, id=f"{form.id}-{change}")
        for form, change, user in (
            (PLUGIN, "add", "{}:submitter"),
            (PLUGIN, "remove", "{}"),
            (PLUGIN, "rotate", "administrator"),
            (PLUGIN, "change", "b1:hub"),
            (FILES, "add", "{}:submitter"),
            (FILES, "remove", "{}"),
            (CERTIFICATES, "remove", "{}"),
            (CERTIFICATES, "rotate", "administrator"),
        )
    ],
)
def test_whatever_was_cut_short_while_a_broker_runs_is_made_good_by_repeating_it(
    tmp_path: Path, form: tuple[str, ...], change: str, user: str
) -> None:
    folder = tmp_path / "lab-broker"
    init(folder, *form)
    with SiteBroker(folder, listen_on="127.0.0.1"):
        for step in itertools.count(1, 1 if thoroughness.is_thorough() else 3):
            name = f"n{step}"
            if change == "remove":
                distree_broker("add", str(folder), f"{name}:submitter")
            if not is_cut_short(step, change, str(folder), user.format(name)):
                break
            repeat(change, str(folder), user.format(name))
            known = users_of(folder)
            assert set(EVERYBODY) <= set(known)
            assert (name in known) == (change == "add"), step
            there = who_logs_in(folder, ["b1", "administrator", name])
            assert there == ["b1", "administrator", *([name] if change == "add" else [])], step
        assert step > 5


@needs_mosquitto
@needs_plugin
def test_what_the_broker_retains_of_a_board_is_gone_even_if_removing_it_was_cut_short(tmp_path: Path) -> None:
    folder, topic = tmp_path / "lab-broker", "distree/1/lab/device/b1/state"
    init(folder)
    with SiteBroker(folder, listen_on="127.0.0.1"):
        _, settings = control.administrator(load(folder), folder / "users", "b1")
        until = time.monotonic() + 20.0
        client = control.log_in(settings, "test", until)
        client.publish(topic, b"{}", qos=1, retain=True, until=until)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("broker_config.site.retained.find_retained", interrupted)
            with pytest.raises(KeyboardInterrupt):
                distree_broker("remove", str(folder), "b1")
        assert distree_broker("remove", str(folder), "b1") == 0
        client.subscribe(topic, until)
        client.ping(until)
        assert client.heard == []
        client.close()
    assert "b1" not in users_of(folder)


@needs_mosquitto
@pytest.mark.parametrize("access", ["files", pytest.param("dynamic-security", marks=needs_plugin)])
@pytest.mark.parametrize("change", [("add", "b2:stage"), ("remove", "b1"), ("rotate", "b1")])
def test_what_was_cut_short_while_no_broker_runs_keeps_nobody_else_out(
    tmp_path: Path, access: str, change: tuple[str, str]
) -> None:
    folder, copy = tmp_path / "lab-broker", tmp_path / "copy"
    init(folder, "--access", access)
    shutil.copytree(folder, copy)
    others = [name for name in EVERYBODY if name != "b1"]
    for step in itertools.count(2, 4 if thoroughness.is_thorough() else 7):
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
        if not is_cut_short(step, change[0], str(folder), change[1]):
            break
        with SiteBroker(folder, listen_on="127.0.0.1"):
            assert who_logs_in(folder, others) == others, step
        repeat(change[0], str(folder), change[1])
        with SiteBroker(folder, listen_on="127.0.0.1"):
            assert ("b1" in who_logs_in(folder, ["b1"])) == (change[0] != "remove"), step
            assert ("b2" in who_logs_in(folder, ["b2"])) == (change[0] == "add"), step
    assert step > 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("change", [("add", "b2:stage"), ("remove", "b1"), ("rotate", "b1"), ("change", "b1:origin")])
def test_a_full_disk_is_said_in_a_line_that_names_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    number: int,
) -> None:
    folder = tmp_path / "lab-broker"
    init(folder, "--access", "files")

    def full(_file: int) -> None:
        raise OSError(number, os.strerror(number))  # without a name, as the system says it

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(["broker", change[0], str(folder), change[1]]) == 1
    told = capsys.readouterr().err
    assert re.fullmatch(rf"distree: {folder}/\S+: .*; free some space there, and try again\n", told)
    assert main(["broker", change[0], str(folder), change[1]]) == 0


def test_an_init_that_was_cut_short_says_what_to_do(tmp_path: Path) -> None:
    folder, port = tmp_path / "lab-broker", free_port()
    where = ("--host", "127.0.0.1", "--port", str(port), "--folder", str(folder), "--access", "files")
    assert is_cut_short(20, "init", "lab", *where, "--board", "b1:stage")
    with pytest.raises(ConfigError, match=r"no site.yaml: it was not made to the end; make everything .* with --force"):
        init(folder, "--access", "files")
    with pytest.raises(ConfigError, match=r"has no site.yaml"):
        distree_broker("add", str(folder), "b2:stage")
    init(folder, "--access", "files", "--force")
    assert users_of(folder) == EVERYBODY


@pytest.mark.parametrize("access", ["files", pytest.param("dynamic-security", marks=needs_plugin)])
def test_none_of_several_commands_at_once_is_forgotten(tmp_path: Path, access: str) -> None:
    folder = tmp_path / "lab-broker"
    init(folder, "--access", access)
    names = [f"n{number}" for number in range(6)]
    threads = [threading.Thread(target=distree_broker, args=("add", str(folder), f"{name}:stage")) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(users_of(folder)) == sorted([*EVERYBODY, *names])
    known = (folder / ("passwords" if access == "files" else "dynamic-security.json")).read_text()
    assert all(name in known for name in names)


@needs_mosquitto
def test_who_changes_a_folder_is_waited_for_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lab-broker"
    init(folder, "--access", "files")
    monkeypatch.setattr(private_files, "LOCK_PATIENCE_S", 0.2)
    with locked(folder):
        for command in (("remove", "b1"), ("rotate", "b1"), ("change", "b1:origin"), ("add", "b2:stage")):
            with pytest.raises(ConfigError, match=r"still being changed by another `distree broker`.*try again"):
                distree_broker(command[0], str(folder), *command[1:])
        with pytest.raises(ConfigError, match="still being changed"):
            init(folder, "--access", "files", "--force")
        with pytest.raises(ConfigError, match="still being changed"):
            SiteBroker(folder, listen_on="127.0.0.1").start()
    assert users_of(folder) == EVERYBODY
    assert distree_broker("remove", str(folder), "b1") == 0


@pytest.fixture
def somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of another user, as `su` and some service managers leave it."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "nobody")


@pytest.mark.usefixtures("somebody_else")
def test_mosquitto_goes_on_as_the_user_who_made_the_folder_whatever_the_environment_says(tmp_path: Path) -> None:
    init(tmp_path / "lab-broker", "--access", "files")
    name = pwd.getpwuid(os.geteuid()).pw_name
    assert f"\nuser {name}\n" in (tmp_path / "lab-broker" / "mosquitto.conf").read_text()


@needs_mosquitto
def test_a_user_without_a_name_can_have_a_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(pwd, "getpwuid", no_name)
        init(tmp_path / "lab-broker", "--access", "files")
    assert "\nuser " not in (tmp_path / "lab-broker" / "mosquitto.conf").read_text()


def test_a_folder_of_another_user_is_not_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lab-broker"
    init(folder, "--access", "files")
    before = (folder / "passwords").read_text()
    monkeypatch.setattr("os.geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(ConfigError, match=r"belongs to the user .*; run this as that user"):
        init(folder, "--access", "files", "--force")
    assert (folder / "passwords").read_text() == before
