"""Changes users and roles of a mosquitto that runs, by its dynamic security plugin."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from broker_config.site import user_passwords
from broker_config.site.config import SiteConfig
from distree.broker_settings import BrokerSettings, TlsSettings
from distree.errors import BrokerError, ConfigError, DistreeError
from distree.transport.credentials import hear_objection, read_password, reason, tls_context
from distree.transport.probe import REFUSED, HangUpError, ProbeClient

_REQUEST = "$CONTROL/dynamic-security/v1"
_RESPONSE = f"{_REQUEST}/response"
_HOST = "127.0.0.1"
_PATIENCE_S = 10.0
_OBJECTION_S = 0.1  # the broker runs on this machine


def _find_administrator(config: SiteConfig, users: Path, changed: str) -> str | None:
    """Return an administrator of whom this machine has the secret, None if there is none.

    It is another one than the user that is to be `changed`, if possible.
    """
    suffix = "secret" if config.login == "passwords" else "key"
    names = sorted((user.name for user in config.users if "administrator" in user.roles), key=changed.__eq__)
    return next((name for name in names if (users / name / f"{name}.{suffix}").exists()), None)


def administrator(config: SiteConfig, users: Path, changed: str) -> tuple[str, BrokerSettings]:
    """Return an administrator of whom this machine has the secret, and how it logs in; ConfigError if there is none."""
    name = _find_administrator(config, users, changed)
    if name is None:
        raise ConfigError(
            f"the broker on port {config.port} runs, and no administrator's secret is in {users}",
            "copy the folder of an administrator back, or stop the broker and try again",
        )
    settings = settings_of(config, users / name, name)
    if settings.password_file is not None:
        _settle_password(settings, users / name, name)
    return name, settings


def _settle_password(settings: BrokerSettings, folder: Path, name: str) -> None:
    """Have the folder name the password that the broker knows, if a command that gave it a new one was cut short."""
    prepared = user_passwords.next_one(folder, name)
    if prepared.exists():
        with contextlib.suppress(OSError, DistreeError):
            log_in(replace(settings, password_file=prepared), new_client_id(), time.monotonic() + _PATIENCE_S).close()
            user_passwords.put_in_force(folder, name)


def settings_of(config: SiteConfig, folder: Path, name: str) -> BrokerSettings:
    """Return how a user reaches the broker on this machine, with the files of its folder."""
    has_certificate = config.login == "certificates"
    tls = TlsSettings(
        ca_file=folder / "ca.crt",
        cert_file=folder / f"{name}.crt" if has_certificate else None,
        key_file=folder / f"{name}.key" if has_certificate else None,
    )
    return BrokerSettings(
        host=_HOST,
        port=config.port,
        username=None if has_certificate else name,
        password_file=None if has_certificate else user_passwords.in_force(folder, name),
        tls=tls if config.tls else None,
    )


def new_client_id() -> str:
    """Return an id for a connection that is made for one command."""
    return f"distree-control-{secrets.token_hex(4)}"


def log_in(settings: BrokerSettings, client_id: str, until: float) -> ProbeClient:
    """Return a connection; ConnectionRefusedError where nothing listens, BrokerError where the user is not let in."""
    try:
        sock = socket.create_connection((settings.host, settings.port), timeout=max(0.1, until - time.monotonic()))
    except TimeoutError as error:
        raise BrokerError(f"the broker on {settings.address} does not answer", "read its log") from error
    try:
        if settings.tls is not None:
            sock = tls_context(settings.tls).wrap_socket(sock, server_hostname=settings.host)
            hear_objection(sock, _OBJECTION_S)
        client = ProbeClient(sock)
        said = client.connect(client_id, settings.username, read_password(settings), until)
    except (ssl.SSLError, TimeoutError) as error:
        sock.close()
        raise BrokerError(
            f"the broker on {settings.address} does not let this user in ({reason(error)})",
            "check that it is the broker of this folder",
        ) from error
    except BaseException:
        sock.close()
        raise
    if said.code:
        client.close()
        raise BrokerError(
            f"the broker on {settings.address} refuses the user {settings.username or client_id}",
            "check that it is the broker of this folder; if it is, stop it, make a new secret for this user with "
            "`distree broker rotate`, and start it again",
        )
    return client


def _is_well(answer: dict[str, str]) -> bool:
    """Whether a command has been carried out, or there was nothing left to delete."""
    is_gone = answer["command"].startswith("delete") and answer.get("error", "").endswith("not found")
    return "error" not in answer or is_gone


def _answers(client: ProbeClient, ours: str) -> list[dict[str, str]]:
    """Return the broker's answers to our own commands; none before they have come."""
    heard = [json.loads(message.payload)["responses"] for message in client.heard if message.topic == _RESPONSE]
    return [one for answers in heard for one in answers if one.get("correlationData") == ours]


def _listens(port: int) -> bool:
    try:
        socket.create_connection((_HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def execute(config: SiteConfig, users: Path, commands: Iterable[dict[str, Any]], *, changed: str) -> bool:
    """Have the broker carry out commands about the user `changed`, as an administrator; return False where none runs.

    `users` is the folder of the users' secrets. BrokerError for a command that the broker refuses, or if it does not
    answer; ConfigError where one runs, and there is no administrator's secret.
    """
    until = time.monotonic() + _PATIENCE_S
    if not _listens(config.port):
        return False
    name, settings = administrator(config, users, changed)
    try:
        client = log_in(settings, new_client_id(), until)
    except ConnectionRefusedError:
        return False
    try:
        if client.subscribe(_RESPONSE, until) >= REFUSED:
            raise BrokerError(
                f"the broker on {settings.address} does not let {name} change its users",
                "check that mosquitto runs with the mosquitto.conf of this folder",
            )
        # All administrators read the answers to each other.
        ours = secrets.token_hex(8)
        wanted = [{**one, "correlationData": ours} for one in commands]
        client.publish(_REQUEST, json.dumps({"commands": wanted}).encode(), qos=1, until=until)
        if not client.listen(until, lambda: bool(_answers(client, ours))):
            raise BrokerError(f"the broker on {settings.address} does not answer", "read its log")
        answers = _answers(client, ours)
        if refused := [f"{one['command']}: {one['error']}" for one in answers if not _is_well(one)]:
            raise BrokerError(f"the broker refuses {'; '.join(refused)}", "read its log")
    except HangUpError:
        # Whoever changes itself is thrown off before the answer comes.
        if name != changed:
            raise
    finally:
        client.close()
    return True
