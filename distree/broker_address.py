"""Addresses of brokers as people write them: [SCHEME://]HOST:PORT, parsed in this one place."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from distree.errors import ConfigError
from distree.printable import quoted
from distree.record import record

MQTT_PORTS: dict[str, int | None] = {"mqtt": 1883, "mqtts": 8883}
"""Schemes of MQTT over TCP, with the port that is meant where none is given; mqtts is MQTT over TLS."""

_HOST = re.compile(r"[^\s/@?#\\\[\]:%,;'\"<>]{1,253}")
_LOGIN = re.compile(r"^([a-z+]*://)?[^/]*@", re.IGNORECASE)
_ZONE = re.compile(r"[A-Za-z0-9_.~-]{1,15}")


@record
class BrokerAddress:
    """Where a broker is. `host` is a name or an address, of IPv6 without brackets; `scheme` is "" where none was given.

    >>> str(BrokerAddress(scheme="", host="::1", port=1883))
    '[::1]:1883'
    """

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """Return HOST:PORT as it is written."""
        return joined(self.host, self.port)


def joined(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets around an address of IPv6.

    >>> joined("hub", 1883), joined("fe80::1%eth0", 1883)
    ('hub:1883', '[fe80::1%eth0]:1883')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(
    text: str, what: str, schemes: Mapping[str, int | None] = MQTT_PORTS, *, needs_scheme: bool = False
) -> BrokerAddress:
    """Parse [SCHEME://]HOST:PORT; ConfigError naming `what`, which never repeats a password, for anything else.

    `schemes` are those allowed, with their default ports: the port may be left out after a scheme that has one. Spaces
    around it and a slash at its end are ignored.

    >>> [str(parse_address(text, "broker")) for text in ("hub:1884", "mqtt://hub", "mqtts://[::1]/")]
    ['hub:1884', 'hub:1883', '[::1]:8883']
    """
    scheme, separator, rest = text.strip().rpartition("://")
    urls = " or ".join(f"{name}://HOST:PORT" for name in schemes)
    expected = urls if urls and (separator or needs_scheme) else "HOST:PORT"
    if _LOGIN.match(text.strip()):
        raise ConfigError(
            f"{what}: expected {expected}, received an address with a login",
            "write only the address; the login goes into username and password_file",
        )
    scheme, rest = scheme.lower(), rest.removesuffix("/")
    wrong = f"{what}: expected {expected}, received {quoted(text)}"
    if separator and not rest.replace("/", ""):
        raise ConfigError(wrong, "add the name or address of the broker")
    if (separator or needs_scheme) and scheme not in schemes:
        names = " or ".join(f"{name}://" for name in schemes)
        raise ConfigError(wrong, f"begin it with {names}" if names else "remove what precedes the host")
    if "/" in rest or "?" in rest or "#" in rest:
        raise ConfigError(wrong, "remove what follows the port")
    if _is_ipv6(rest):
        raise ConfigError(wrong, f"put the address in brackets, as in {joined(rest, schemes.get(scheme) or 1883)}")
    host, port_text = _split(rest)
    if host_fault(host):
        raise ConfigError(wrong, "write, for example, 127.0.0.1:1883, hub.local:1883 or [::1]:1883")
    port = _port(port_text) if port_text else schemes.get(scheme)
    if port is None or port_text == "":
        example = f"{scheme}://{joined(host, 9001)}" if separator else joined(host, 1883)
        raise ConfigError(wrong, "choose a port from 1 to 65535" if port_text else f"add the port, as in {example}")
    return BrokerAddress(scheme=scheme, host=host, port=port)


def host_fault(host: str) -> str:
    """Return what to do about a host that is neither a name nor an address; "" for one that is.

    >>> host_fault("hub.local"), host_fault("fe80::1%eth0"), host_fault("[::1]")
    ('', '', "remove the brackets: '::1'")
    """
    if _HOST.fullmatch(host) or _is_ipv6(host):
        return ""
    if host.startswith("[") and host.endswith("]") and _is_ipv6(host[1:-1]):
        return f"remove the brackets: {quoted(host[1:-1])}"
    if "://" in host:
        return "remove the scheme, and write the port under `port`; for TLS write tls: {}"
    name, _, port = host.rpartition(":")
    if _HOST.fullmatch(name) and _port(port) is not None:
        return f"write host: {name} and port: {port}"
    return "write a name, such as hub.local, or an address"


def _split(rest: str) -> tuple[str, str | None]:
    """Split HOST[:PORT]; what stands in brackets has to be an address of IPv6."""
    if rest.startswith("["):
        inside, bracket, after = rest[1:].partition("]")
        inside = inside.replace("%25", "%", 1)  # as a zone is written in URLs
        is_right = bracket and _is_ipv6(inside) and (not after or after.startswith(":"))
        return (inside, after[1:] if after else None) if is_right else ("", None)
    host, colon, port = rest.rpartition(":")
    return (host, port) if colon else (rest, None)


def _is_ipv6(text: str) -> bool:
    address, percent, zone = text.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return not percent or _ZONE.fullmatch(zone) is not None


def _port(text: str) -> int | None:
    is_port = text.isascii() and text.isdigit() and len(text) < 7 and 0 < int(text) < 65536
    return int(text) if is_port else None
