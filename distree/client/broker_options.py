"""Where the broker is, as commands and programs are told it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from distree import topics
from distree.broker_address import parse_address
from distree.broker_settings import BrokerSettings, TlsSettings
from distree.errors import ConfigError


def add_broker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the broker is, and which site is meant."""
    parser.add_argument(
        "--broker",
        default="127.0.0.1:1883",
        metavar="HOST:PORT",
        help="or mqtts://HOST:PORT for TLS (default: %(default)s)",
    )
    parser.add_argument("--username", help="user name on the broker")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="file whose first line is the password")
    parser.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="CA certificates to verify the broker with (default: the system's)"
    )
    parser.add_argument("--cert-file", type=Path, metavar="FILE", help="client certificate, if the broker requires one")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="key of the client certificate")
    parser.add_argument("--site", required=True, help="site id, as in agent.yaml")


def broker_settings(args: argparse.Namespace) -> BrokerSettings:
    """Read the options of `add_broker_arguments`; ConfigError for an invalid address or site, or incomplete TLS."""
    topics.check_id(args.site, "--site")
    address = parse_address(args.broker, "--broker")
    return BrokerSettings(
        host=address.host,
        port=address.port,
        username=args.username,
        password_file=args.password_file,
        tls=_tls(args, address.scheme),
    )


def _tls(args: argparse.Namespace, scheme: str) -> TlsSettings | None:
    if scheme != "mqtts":
        if args.ca_file or args.cert_file or args.key_file:
            raise ConfigError(f"--broker {args.broker}: certificates are for TLS only", "write mqtts://HOST:PORT")
        return None
    if (args.cert_file is None) != (args.key_file is None):
        raise ConfigError("--cert-file and --key-file: only one is given", "give both or none")
    return TlsSettings(ca_file=args.ca_file, cert_file=args.cert_file, key_file=args.key_file)


def broker_at(
    broker: str | BrokerSettings, username: str | None = None, password_file: Path | str | None = None
) -> BrokerSettings:
    """Return the settings for `mqtt://HOST[:PORT]`, `mqtts://HOST[:PORT]` (TLS) or `HOST:PORT`.

    With mqtts the broker is verified with the system's CA certificates; settings come back as they are, except for the
    login.

    >>> broker_at("mqtt://hub").host, broker_at("mqtts://hub").port, broker_at("hub:1884").port
    ('hub', 8883, 1884)
    """
    if isinstance(broker, str):
        address = parse_address(broker, "broker")
        tls = TlsSettings() if address.scheme == "mqtts" else None
        broker = BrokerSettings(host=address.host, port=address.port, tls=tls)
    if username is not None:
        broker = replace(broker, username=username)
    return broker if password_file is None else replace(broker, password_file=Path(password_file))
