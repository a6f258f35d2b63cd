"""The certificate of a site's broker: renewed while it runs, for boards that notice nothing."""

from __future__ import annotations

import argparse
import shutil
import socket
import ssl
import time
from pathlib import Path

import pytest

from broker_config import cli
from broker_config.managed import find_mosquitto, free_port
from broker_config.site import certificates, control
from broker_config.site.broker import SiteBroker
from broker_config.site.config import load
from distree.apps.cli import main
from distree.errors import ConfigError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


def distree_broker(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args(arguments))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "lab-broker"


def init(folder: Path, *options: str) -> None:
    where = ("--host", "127.0.0.1", "--port", str(free_port()), "--folder", str(folder))
    assert distree_broker("init", "lab", *where, "--board", "b1:stage", *options) == 0


def until_shown(folder: Path, wanted: str) -> None:
    """Wait until the broker shows this certificate to everybody who connects, and it is valid for its address."""
    context = ssl.create_default_context(cafile=str(folder / "users" / "b1" / "ca.crt"))
    until = time.monotonic() + 20.0
    shown = ""
    while shown != wanted:
        assert time.monotonic() < until
        plain = socket.create_connection(("127.0.0.1", load(folder).port), timeout=10.0)
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            shown = ssl.DER_cert_to_PEM_cert(sock.getpeercert(binary_form=True) or b"")
        time.sleep(0.05)


@needs_mosquitto
@pytest.mark.parametrize("form", ["--tls", "--certificates"])
def test_a_broker_gets_a_new_certificate_while_it_runs(folder: Path, form: str, capsys: pytest.CaptureFixture) -> None:
    init(folder, form)
    kept = [(folder / "users" / "b1" / name).read_text() for name in ("ca.crt", "broker.yaml")]
    with SiteBroker(folder, listen_on="127.0.0.1"):
        settings = control.settings_of(load(folder), folder / "users" / "b1", "b1")
        client = control.log_in(settings, "b1-here", time.monotonic() + 20.0)
        until_shown(folder, (folder / "broker.crt").read_text())
        before = (folder / "broker.crt").read_text()
        assert distree_broker("renew", str(folder)) == 0
        assert (folder / "broker.crt").read_text() != before
        until_shown(folder, (folder / "broker.crt").read_text())
        client.ping(time.monotonic() + 20.0)  # who is connected stays so
        client.close()
    assert "the broker has taken over the change" in capsys.readouterr().out
    assert kept == [(folder / "users" / "b1" / name).read_text() for name in ("ca.crt", "broker.yaml")]
    assert distree_broker("renew", str(folder)) == 0
    assert "no broker runs here" in capsys.readouterr().out


def test_what_cannot_be_renewed(folder: Path) -> None:
    init(folder, "--access", "files")
    with pytest.raises(ConfigError, match=r"has no certificate, as it does not use TLS; .*init --tls"):
        distree_broker("renew", str(folder))


def test_a_certificate_that_cannot_be_made_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init(folder, "--tls", "--access", "files")
    before = [(folder / name).read_text() for name in ("broker.crt", "broker.key")]
    (folder / "authority" / "ca.key").rename(folder / "elsewhere")
    with pytest.raises(ConfigError, match=r"ca.key is missing; put it back"):
        distree_broker("renew", str(folder))
    (folder / "elsewhere").rename(folder / "authority" / "ca.key")
    monkeypatch.setattr(certificates, "DAYS", "never")  # openssl makes the key, and then fails
    with pytest.raises(ConfigError, match="openssl x509 failed"):
        distree_broker("renew", str(folder))
    assert before == [(folder / name).read_text() for name in ("broker.crt", "broker.key")]


@pytest.mark.parametrize("cut", [0, 40])
def test_half_a_certificate_replaces_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cut: int
) -> None:
    """On a full disk, openssl writes half a file and reports success."""
    init(folder, "--certificates", "--access", "files")
    before = {path: path.read_text() for path in folder.rglob("*.*") if path.suffix in (".crt", ".key", ".pem")}
    fake = tmp_path / "bin" / "openssl"
    fake.parent.mkdir()
    fake.write_text(
        f"""#!/bin/sh
{shutil.which("openssl")} "$@" || exit
while [ $# -gt 1 ]; do
    case "$1 $2" in "-out "*.crt.new) truncate --size={cut} "$2" ;; esac
    shift
done
"""
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    for command, *rest in (("renew",), ("add", "b2:stage")):
        assert main(["broker", command, str(folder), *rest]) == 1
        assert capsys.readouterr().err.endswith("no space left on device; free some space there, and try again\n")
    assert {path: path.read_text() for path in before} == before
    monkeypatch.undo()
    assert main(["broker", "add", str(folder), "b2:stage"]) == 0
