"""The way to the broker, step by step: name, port, encryption, login."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

from device_agent.doctor.checks import Finding, Visit, failed, ok, told
from distree.broker_settings import BrokerSettings
from distree.errors import BrokerError
from distree.transport import connect_errors, credentials
from distree.transport.probe import NAMES, Connack, HangUpError, ProbeClient, Will

_UNSUPPORTED_PROTOCOL = 0x84
_REFUSED_LOGIN = {0x86: "Bad user name or password", 0x87: "Not authorized", 0x8C: "Bad authentication method"}
_BAD_CLIENT_ID = 0x85


def check_dns(visit: Visit) -> Finding:
    """The broker's name has an address."""
    host = visit.config.broker.host
    try:
        found = socket.getaddrinfo(host, visit.config.broker.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        return failed(f"{host!r} cannot be resolved ({error})", "correct broker.host, or mend this machine's DNS")
    visit.addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return ok(f"{host} is {', '.join(visit.addresses)}")


def check_tcp(visit: Visit) -> Finding:
    """Something listens there."""
    settings = _patient(visit)
    started_at = time.monotonic()
    try:
        _dial(settings, visit.until()).close()
    except OSError as error:
        return told(connect_errors.unreachable(settings, error))
    return ok(f"{settings.host}:{settings.port} answers in {(time.monotonic() - started_at) * 1e3:.0f} ms")


def check_tls(visit: Visit) -> Finding:
    """The broker proves who it is."""
    settings = _patient(visit)
    if settings.tls is None:
        return ok("not asked for: whoever is on the network can read along; see broker.tls")
    visit.tls = credentials.tls_context(settings.tls)
    try:
        wrapped = _wrap(visit, _dial(settings, visit.until()))
    except OSError as error:
        return told(connect_errors.unreachable(settings, error))
    with wrapped:
        assert isinstance(wrapped, ssl.SSLSocket)  # noqa: S101 - what a context wraps
        certificate = wrapped.getpeercert() or {}
        until = certificate.get("notAfter")
        return ok(f"{wrapped.version()}, the certificate is for {settings.host}, and valid until {until}")


def check_login(visit: Visit) -> Finding:
    """The broker lets this board in."""
    settings = _patient(visit)
    with session(visit):
        who = "without a user name" if settings.username is None else "with its user name"
        return ok(f"let in {who}, MQTT {'5' if visit.five else '3.1.1'}")


@contextlib.contextmanager
def session(visit: Visit) -> Iterator[ProbeClient]:
    """Log in for the length of a `with` block, under an id of its own: a running agent keeps its connection.

    Raises BrokerError for a broker that does not let this board in, ConfigError for a bad password file.
    """
    settings, until = _patient(visit), visit.until()
    password = credentials.read_password(settings)
    client_id = f"{visit.config.client_id}-doctor-{uuid4().hex[:6]}"
    client, greeting = _greet(visit, client_id, password, until)
    if greeting.code == _UNSUPPORTED_PROTOCOL and visit.five:
        client.close()
        visit.five = False
        client, greeting = _greet(visit, client_id, password, until)
    with contextlib.closing(client):
        if greeting.code:
            raise BrokerError(_refusal(settings, client_id, greeting))
        visit.greeting, visit.let_in = greeting, True
        yield client


def greet_with(visit: Visit, will: Will) -> int | None:
    """Log in with a will, and log out; return the broker's code, None where the connection ends without one.

    Only after a login without a will succeeded.
    """
    settings, until = _patient(visit), visit.until()
    client_id = f"{visit.config.client_id}-doctor-{uuid4().hex[:6]}"
    with contextlib.closing(ProbeClient(_wrap(visit, _dial(settings, until)), is_mqtt5=visit.five)) as client:
        try:
            greeting = client.connect(client_id, settings.username, credentials.read_password(settings), until, will)
            if greeting.code == 0:
                client.ping(until)
        except (HangUpError, ssl.SSLError):
            return None
        return greeting.code


def _refusal(settings: BrokerSettings, client_id: str, greeting: Connack) -> str:
    reason = _REFUSED_LOGIN.get(greeting.code)
    if reason is not None:
        return connect_errors.refusal(settings, client_id, reason)
    if greeting.code == _BAD_CLIENT_ID:
        return f"the broker refuses the client id {client_id!r}: allow ids that begin with distree_SITE_DEVICE"
    word = NAMES.get(greeting.code, f"code {greeting.code}") + (f", {greeting.why}" if greeting.why else "")
    return f"the broker refuses the connection ({word}): see its log"


def _greet(visit: Visit, client_id: str, password: str | None, until: float) -> tuple[ProbeClient, Connack]:
    """Connect and greet; a broker that hangs up on MQTT 5 counts as one that refuses the protocol."""
    settings = _patient(visit)
    client = ProbeClient(_wrap(visit, _dial(settings, until)), is_mqtt5=visit.five)
    try:
        return client, client.connect(client_id, settings.username, password, until)
    except TimeoutError:
        client.close()
        address = f"{settings.host}:{settings.port}"
        raise BrokerError(f"{address} takes connections but does not answer MQTT: is it a broker?") from None
    except (BrokerError, OSError) as error:
        client.close()
        if visit.let_in:
            raise BrokerError(connect_errors.breaks_by_itself(settings)) from None
        if visit.five and not isinstance(error, ssl.SSLError):
            return client, Connack(code=_UNSUPPORTED_PROTOCOL)
        raise BrokerError(
            connect_errors.no_mqtt(settings, error if isinstance(error, ssl.SSLError) else None)
        ) from None


def _dial(settings: BrokerSettings, until: float) -> socket.socket:
    left_s = max(0.01, until - time.monotonic())
    return socket.create_connection((settings.host, settings.port), timeout=left_s)


def _wrap(visit: Visit, plain: socket.socket) -> socket.socket:
    """Encrypt a connection, if that is asked for; closes it where that fails. BrokerError before TLS was checked."""
    if visit.config.broker.tls is None:
        return plain
    if visit.tls is None:
        plain.close()
        raise BrokerError("broker.tls is not in order, and a password is not sent without it: see the check tls")
    try:
        return visit.tls.wrap_socket(plain, server_hostname=visit.config.broker.host)
    except BaseException:
        plain.close()
        raise


def _patient(visit: Visit) -> BrokerSettings:
    """Return the settings with the doctor's patience, for the words of messages."""
    return replace(visit.config.broker, connect_timeout_s=min(visit.timeout_s, 600.0))
