"""The way to the broker, step by step: name, port, encryption, login."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

from device_agent.doctor.checks import Check, CheckContext, Finding, failed, failure_from, ok
from distree.broker_settings import BrokerSettings
from distree.errors import BrokerError, Problem
from distree.printable import printable
from distree.transport import connect_errors, credentials
from distree.transport.connect_errors import REASONS
from distree.transport.probe import Connack, HangUpError, ProbeClient, Will

_UNSUPPORTED_PROTOCOL = 0x84
_REFUSED_LOGIN = {0x86: "Bad user name or password", 0x87: "Not authorized", 0x8C: "Bad authentication method"}
_BAD_CLIENT_ID = 0x85
_OBJECTION_S = 0.5
"""How long a broker may take to reject this board's certificate."""


def check_dns(context: CheckContext) -> Finding:
    """The broker's name has an address."""
    host = context.config.broker.host
    try:
        found = socket.getaddrinfo(host, context.config.broker.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        return failed(f"{host!r} cannot be resolved ({error})", "correct broker.host, or fix this machine's DNS")
    context.addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return ok(f"{host} resolves to {', '.join(context.addresses)}")


def check_tcp(context: CheckContext) -> Finding:
    """Something listens there."""
    settings = _settings(context)
    started_at = time.monotonic()
    try:
        _dial(settings, context.until()).close()
    except OSError as error:
        return failure_from(connect_errors.unreachable(settings, error))
    return ok(f"{settings.address} answers in {(time.monotonic() - started_at) * 1e3:.0f} ms")


def check_tls(context: CheckContext) -> Finding:
    """The broker proves who it is."""
    settings = _settings(context)
    if settings.tls is None:
        return ok("not configured, so anyone on the network can read the traffic", "set broker.tls if that matters")
    context.tls = credentials.tls_context(settings.tls)
    try:
        wrapped = _wrap(context, _dial(settings, context.until()))
        credentials.hear_objection(wrapped, _OBJECTION_S)
    except OSError as error:
        return failure_from(connect_errors.unreachable(settings, error))
    with wrapped:
        assert isinstance(wrapped, ssl.SSLSocket)  # noqa: S101 - what a context wraps
        certificate = wrapped.getpeercert() or {}
        until = certificate.get("notAfter")
        return ok(f"{wrapped.version()}, certificate for {settings.host}, valid until {until}")


def check_login(context: CheckContext) -> Finding:
    """The broker accepts this board's login."""
    settings = _settings(context)
    with session(context):
        who = "without a user name" if settings.username is None else "with user name and password"
        told = f"logged in {who}, MQTT {'5' if context.is_mqtt5 else '3.1.1'}"
    if exposed := credentials.exposed_files(settings):
        named = " and ".join(exposed)
        return ok(f"{told}; everybody on this machine may read {named}", "let only the agent's user read it: chmod 600")
    return ok(told)


@contextlib.contextmanager
def session(context: CheckContext) -> Iterator[ProbeClient]:
    """Log in for the length of a `with` block, under an id of its own: a running agent keeps its connection.

    Raises BrokerError for a broker that refuses this board, ConfigError for an unusable password file.
    """
    settings, until = _settings(context), context.until()
    password = credentials.read_password(settings)
    client_id = f"{context.config.client_id}-doctor-{uuid4().hex[:6]}"
    client, greeting = _greet(context, client_id, password, until)
    if greeting.code == _UNSUPPORTED_PROTOCOL and context.is_mqtt5:
        client.close()
        context.is_mqtt5 = False
        client, greeting = _greet(context, client_id, password, until)
    with contextlib.closing(client):
        if greeting.code:
            raise BrokerError(*_refusal(settings, client_id, greeting))
        context.greeting, context.logged_in = greeting, True
        yield client


def login_with_will(context: CheckContext, will: Will) -> int | None:
    """Log in with a will, and log out; return the broker's code, None where the connection ends without one.

    Only after a login without a will succeeded.
    """
    settings, until = _settings(context), context.until()
    client_id = f"{context.config.client_id}-doctor-{uuid4().hex[:6]}"
    with contextlib.closing(ProbeClient(_wrap(context, _dial(settings, until)), is_mqtt5=context.is_mqtt5)) as client:
        try:
            greeting = client.connect(client_id, settings.username, credentials.read_password(settings), until, will)
            if greeting.code == 0:
                client.ping(until)
        except (HangUpError, ssl.SSLError):
            return None
        return greeting.code


def _refusal(settings: BrokerSettings, client_id: str, greeting: Connack) -> Problem:
    reason = _REFUSED_LOGIN.get(greeting.code)
    if reason is not None:
        return connect_errors.refusal(settings, client_id, reason)
    if greeting.code == _BAD_CLIENT_ID:
        return Problem(
            f"the broker refuses the client id {client_id!r}", "allow ids that begin with distree_SITE_DEVICE"
        )
    word = REASONS.get(greeting.code, f"code {greeting.code}") + (
        f", {printable(greeting.why)}" if greeting.why else ""
    )
    return Problem(f"the broker refuses the connection ({word})", "check its log")


def _greet(context: CheckContext, client_id: str, password: str | None, until: float) -> tuple[ProbeClient, Connack]:
    """Connect and greet; a broker that hangs up on MQTT 5 counts as one that refuses the protocol."""
    settings = _settings(context)
    client = ProbeClient(_wrap(context, _dial(settings, until)), is_mqtt5=context.is_mqtt5)
    try:
        return client, client.connect(client_id, settings.username, password, until)
    except TimeoutError:
        client.close()
        address = settings.address
        raise BrokerError(*connect_errors.mute(address)) from None
    except (BrokerError, OSError) as error:
        client.close()
        if context.logged_in:
            raise BrokerError(*connect_errors.breaks_by_itself(settings)) from None
        if context.is_mqtt5 and not isinstance(error, ssl.SSLError):
            return client, Connack(code=_UNSUPPORTED_PROTOCOL)
        raise BrokerError(
            *connect_errors.no_mqtt(settings, error if isinstance(error, ssl.SSLError) else None)
        ) from None


def _dial(settings: BrokerSettings, until: float) -> socket.socket:
    left_s = max(0.01, until - time.monotonic())
    return socket.create_connection((settings.host, settings.port), timeout=left_s)


def _wrap(context: CheckContext, plain: socket.socket) -> socket.socket:
    """Encrypt a connection, if that is configured; closes it if that fails. BrokerError before TLS was checked."""
    if context.config.broker.tls is None:
        return plain
    if context.tls is None:
        plain.close()
        raise BrokerError(
            "broker.tls does not work, and a password is not sent without encryption", "fix what the check tls reports"
        )
    try:
        return context.tls.wrap_socket(plain, server_hostname=context.config.broker.host)
    except BaseException:
        plain.close()
        raise


def _settings(context: CheckContext) -> BrokerSettings:
    """Return the settings with the doctor's time limit, which messages mention."""
    return replace(context.config.broker, connect_timeout_s=min(context.timeout_s, 600.0))


CHECKS = (
    Check(name="dns", run=check_dns),
    Check(name="tcp", run=check_tcp, needs=("dns",)),
    Check(name="tls", run=check_tls, needs=("tcp",)),
    Check(name="login", run=check_login, needs=("tls",)),
)
