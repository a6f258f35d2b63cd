"""What a connection to the broker reads from files: the password, and what TLS needs."""

from __future__ import annotations

import socket
import ssl
import stat

from distree.broker_settings import BrokerSettings, TlsSettings
from distree.errors import CHECK_PATH, ConfigError, Problem
from distree.regular_files import read_regular

MAX_BYTES = 4 << 20
"""Longest file that is read. That of all usual certification authorities has some 200 KB."""


def read_password(settings: BrokerSettings) -> str | None:
    """Return the first line of the password file; ConfigError where it cannot be read."""
    if settings.password_file is None:
        return None
    try:
        lines = read_regular(settings.password_file, MAX_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        is_missing = isinstance(error, FileNotFoundError)
        remedy = "correct the path, or write the password into its first line" if is_missing else CHECK_PATH
        if isinstance(error, UnicodeDecodeError):
            remedy = "write the password into its first line, as UTF-8"
        raise ConfigError(f"broker.password_file {settings.password_file}: {reason(error)}", remedy) from error
    if not lines or not lines[0]:
        raise ConfigError(
            f"broker.password_file {settings.password_file}: the first line is empty", "write the password there"
        )
    return lines[0]


def exposed_files(settings: BrokerSettings) -> list[str]:
    """Return the names of those settings whose files hold a secret and may be read by every user of this machine."""
    secrets = {
        "broker.password_file": settings.password_file,
        "broker.tls.key_file": None if settings.tls is None else settings.tls.key_file,
    }
    return [name for name, path in secrets.items() if path is not None and path.stat().st_mode & stat.S_IROTH]


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return a context that verifies the broker's certificate and host name; ConfigError for an unusable file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies both
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_tls_files(context, tls)
    return context


def hear_objection(sock: socket.socket, wait_s: float) -> None:
    """Wait for what a broker may have against this end's certificate; ssl.SSLError says it.

    With TLS 1.3 a broker judges the certificate when the handshake is over for this end. A CONNECT that is under way by
    then is answered with a reset, which takes away the alert that says why.
    """
    before_s = sock.gettimeout()
    sock.settimeout(wait_s)
    try:
        sock.recv(1)  # a broker says nothing before CONNECT
    except (TimeoutError, ConnectionError):
        pass
    finally:
        sock.settimeout(before_s)


def load_tls_files(context: ssl.SSLContext, tls: TlsSettings) -> None:
    """Read the files again, as they may have been renewed; for connections from now on. ConfigError as above."""
    if tls.ca_file is None:
        context.load_default_certs()
    else:
        try:
            read_regular(tls.ca_file, MAX_BYTES)  # OpenSSL would wait for a pipe
            context.load_verify_locations(cafile=tls.ca_file)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(*_not_pem(error).at(f"broker.tls.ca_file {tls.ca_file}")) from error
    if tls.cert_file is None or tls.key_file is None:
        return
    for name, path in (("cert_file", tls.cert_file), ("key_file", tls.key_file)):
        try:
            read_regular(path, MAX_BYTES)
        except OSError as error:
            raise ConfigError(f"broker.tls.{name} {path}: {reason(error)}", CHECK_PATH) from error
    try:
        # Without a password of our own OpenSSL would ask for one on the terminal.
        context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(*_mismatched(tls, error).at(f"broker.tls.cert_file {tls.cert_file}")) from error


def _not_pem(error: Exception) -> Problem:
    if isinstance(error, ssl.SSLError | ValueError):
        return Problem("contains no PEM certificate", "name a file that contains one")
    return Problem(reason(error), CHECK_PATH)


def _mismatched(tls: TlsSettings, error: Exception) -> Problem:
    name = getattr(error, "reason", None) or ""
    if name == "KEY_VALUES_MISMATCH":
        return Problem(f"does not match the key in {tls.key_file}", "name a certificate and its own key")
    if "DECRYPT" in name or "PASSWORD" in name or b"ENCRYPTED" in read_regular(tls.key_file or "", MAX_BYTES):
        return Problem(f"the key in {tls.key_file} has a passphrase", "remove it: openssl pkey -in KEY -out NEW")
    return Problem(f"this or key_file {tls.key_file} is not PEM", "convert it with openssl")


def reason(error: Exception) -> str:
    """Return what an operating system error says, without its number and file, in lower case."""
    return (getattr(error, "strerror", None) or str(error)).lower()
