"""Why there is no connection to the broker: in one line, with what to do."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence

from distree import topics
from distree.broker_settings import BrokerSettings, TlsSettings
from distree.errors import ConfigError, RemoteProtocolError
from distree.topics import Kind
from distree.transport.credentials import reason
from distree.transport.hangups import HangupCause

REFUSED_LOGIN = ("Bad user name or password", "Not authorized", "Bad authentication method")

# OpenSSL's X509_V_ERR_*: Python has no names for them.
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_CA = frozenset({2, 18, 19, 20, 21, 24})
_REVOKED = 23
_OTHER_NAME = frozenset({62, 63, 64})


def unreachable(settings: BrokerSettings, error: Exception) -> str:
    """Say why the broker cannot be reached: no name, no answer, no trust, or what a file lacks."""
    address = f"{settings.host}:{settings.port}"
    if settings.tls is not None and isinstance(error, ssl.SSLError | ConnectionResetError):
        return _untrusted(settings, settings.tls, error)
    match error:
        case ConfigError():
            return str(error)
        case socket.gaierror():
            return f"cannot resolve {settings.host!r} of {address}: check broker.host and this machine's DNS"
        case ConnectionRefusedError():
            remedy = "start the broker, or correct its address (broker.host and broker.port, or --broker)"
            return f"nothing listens on {address}: {remedy}"
        case TimeoutError():
            seconds = settings.connect_timeout_s
            return f"{address} did not answer within {seconds:g} s: check the address, network and firewall"
        case _:
            return f"cannot reach {address} ({reason(error)}): check broker.host and the network"


def _untrusted(settings: BrokerSettings, tls: TlsSettings, error: Exception) -> str:
    """Say why TLS came to nothing."""
    address = f"{settings.host}:{settings.port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(settings, tls, error)
    name = getattr(error, "reason", None) or ""
    if "CERTIFICATE_REQUIRED" in name or (name == "SSLV3_ALERT_HANDSHAKE_FAILURE" and tls.cert_file is None):
        return f"{address} wants a certificate of this client: set broker.tls.cert_file and broker.tls.key_file"
    if name.startswith(("TLSV1_ALERT", "SSLV3_ALERT", "TLSV13_ALERT")):
        word = name.partition("ALERT_")[2].replace("_", " ").lower()
        if tls.cert_file is not None and ("certificate" in word or word == "unknown ca"):
            return f"{address} refuses the certificate in {tls.cert_file} ({word}): correct broker.tls.cert_file"
        return f"{address} refuses this client's TLS ({word}): check the broker's TLS versions and its log"
    return f"{address} speaks no TLS: correct broker.port (8883 is usual for TLS), or remove broker.tls"


def _unverified(settings: BrokerSettings, tls: TlsSettings, error: ssl.SSLCertVerificationError) -> str:
    where = f"the certificate of {settings.host}:{settings.port}"
    today = time.strftime("%Y-%m-%d", time.gmtime())
    match error.verify_code:
        case code if code == _EXPIRED:
            return f"{where} has expired: renew it, or mend this machine's clock, which says {today}"
        case code if code == _NOT_YET_VALID:
            return f"{where} is not valid yet: mend this machine's clock, which says {today}"
        case code if code in _OTHER_NAME:
            return f"{where} is not for the name {settings.host!r}: set broker.host to a name that it holds"
        case code if code in _UNKNOWN_CA and tls.ca_file is None:
            return f"{where} is of no authority that this system trusts: name its CA certificate in broker.tls.ca_file"
        case code if code in _UNKNOWN_CA:
            return f"{where} is of no authority in {tls.ca_file}: correct broker.tls.ca_file"
        case code if code == _REVOKED:
            return f"{where} was revoked: renew it"
        case _:
            return f"{where} is no good ({error.verify_message.lower()}): renew it, or correct broker.tls.ca_file"


def forked(settings: BrokerSettings) -> str:
    """Say that the connection belongs to another process."""
    return (
        f"this process was forked from the one that is connected to {settings.host}:{settings.port}: "
        "open a connection of its own after the fork"
    )


def no_mqtt(settings: BrokerSettings, error: Exception | None = None) -> str:
    """Say why a connection ended right after the greeting; `error` is what TLS said of it."""
    if error is not None and settings.tls is not None:
        return _untrusted(settings, settings.tls, error)
    hint = ", or does it want broker.tls?" if settings.tls is None else "?"
    if settings.tls is not None and settings.tls.cert_file is None:
        hint = ", or does it want a certificate of this client (broker.tls.cert_file)?"
    return f"{settings.host}:{settings.port} closes the connection when greeted with MQTT: is it a broker{hint}"


def refusal(settings: BrokerSettings, client_id: str, reason: str) -> str:
    """Say in one line why the broker refuses or ends the connection, and what to do."""
    address = f"{settings.host}:{settings.port}"
    match reason:
        case "Session taken over":
            return f"another client uses the id {client_id!r} on {address}: give each client an id of its own"
        case name if name in REFUSED_LOGIN and settings.username is None:
            return f"{address} wants a login ({name.lower()}): set broker.username and broker.password_file"
        case name if name in REFUSED_LOGIN:
            return (
                f"{address} refuses user {settings.username!r} ({name.lower()}): "
                "correct broker.username or the first line of broker.password_file"
            )
        case "Client identifier not valid":
            return f"{address} refuses the client id {client_id!r}: choose another"
        case _:
            return f"{address} ended the connection: {reason.lower()}"


# What a broker, or a proxy in between, does not let through. Every line is "what, and what is lost by it: remedy",
# and holds no other ": " or "; " after the remedy has begun.

_IN_BETWEEN = "a proxy or firewall in between"

LOSSES = {
    Kind.STATE: "nobody sees whether this board is there",
    Kind.META: "nobody sees what this board is",
    Kind.TELEMETRY: "nobody sees this board's counters and latencies",
    Kind.ECHO: "it is not found out whether the broker holds small messages back",
    Kind.DEAD: "nobody sees which messages this board refused",
    Kind.PLAN: "thresholds stay as they are",
    Kind.MEMBER: "no origin sends anything to this board",
    Kind.CALL: "boards are not asked what they serve where the broker has not kept it",
    Kind.STAGE: "inputs that would have to pass are answered at the local exit",
    Kind.INPUT: "inputs do not reach their origin",
    Kind.OUTCOME: "answers do not reach their origin, which answers at its local exit",
    Kind.RESULT: "nobody sees this board's results",
    Kind.EXIT: "answers are fused without this branch",
    Kind.DECISION: "branches are not told to stop or to go on",
    Kind.AUDIT: "thresholds are not tuned by this board's inputs",
    Kind.LABEL: "losses are not measured against labels",
    Kind.STATS: "Home Assistant sees no figures",
    Kind.THUMBNAIL: "the dashboard shows no pictures",
    Kind.ORCHESTRATOR: "two orchestrators may plan this site",
}
"""What is lost where nothing passes on topics of a kind."""


def _loss(topic: str) -> str:
    """Return what is lost where nothing passes on `topic`."""
    try:
        return LOSSES[topics.parse(topic).kind]
    except RemoteProtocolError:
        return "nobody hears what is sent there"


def breaks_by_itself(settings: BrokerSettings) -> str:
    """Say that the connection ended, and that nothing that was asked is to blame."""
    return (
        f"the connection to {settings.host}:{settings.port} breaks by itself: "
        "check the network and the broker's log, then ask again"
    )


def hangs_up_on_will(settings: BrokerSettings) -> str:
    """Say that a login is only answered without a will."""
    return (
        f"{settings.host}:{settings.port} hangs up on a login with a will, so nobody learns when this client dies: "
        f"allow wills in the broker, or in {_IN_BETWEEN}"
    )


def refuses_will(settings: BrokerSettings) -> str:
    """Say that a login with a will is refused, and one without is not."""
    return (
        f"{settings.host}:{settings.port} refuses a login with a will, so nobody learns when this client dies: "
        f"allow wills in the broker"
    )


def hangs_up_on_subscribe(settings: BrokerSettings, filters: Sequence[str]) -> str:
    """Say that a SUBSCRIBE ends the connection: of one filter, or of several that are taken one by one."""
    address = f"{settings.host}:{settings.port}"
    if len(filters) == 1:
        return (
            f"{address} hangs up on the subscription to {filters[0]}, so nothing is received from there: "
            f"allow it in the broker's ACL, or in {_IN_BETWEEN}"
        )
    return (
        f"{address} hangs up on a SUBSCRIBE with {len(filters)} filters (from {filters[0]} to {filters[-1]}), so "
        f"they are subscribed to a few at a time, which takes longer: allow as many in the broker, or in {_IN_BETWEEN}"
    )


def refuses_subscribe(settings: BrokerSettings, refused: Sequence[str]) -> str:
    """Say that filters are refused that this goes on without; each with the broker's reason."""
    more = f" and {len(refused) - 3:,} more" if len(refused) > 3 else ""
    return (
        f"{settings.host}:{settings.port} refuses the subscription to {', '.join(refused[:3])}{more}, so nothing is "
        f"received from there: allow it in the broker's ACL"
    )


def hangs_up(settings: BrokerSettings, verdict: HangupCause) -> str:
    """Say what was found to end the connection."""
    match verdict.why:
        case "topic":
            return hangs_up_on_publish(settings, verdict.topic, verdict.nbytes)
        case "size":
            return hangs_up_on_size(settings, verdict.nbytes, verdict.passed)
        case "retained":
            return hangs_up_on_retained(settings)
        case "qos":
            return hangs_up_on_qos(settings)


def hangs_up_on_publish(settings: BrokerSettings, topic: str, nbytes: int) -> str:
    """Say that a publish on `topic` ends the connection, whatever its size; `nbytes` is that of its payload."""
    return (
        f"{settings.host}:{settings.port} hangs up on publishes on {topic} ({nbytes:,} bytes), so {_loss(topic)}: "
        f"allow it in the broker's ACL, or in {_IN_BETWEEN}"
    )


def hangs_up_on_size(settings: BrokerSettings, nbytes: int, passed: int) -> str:
    """Say that a message of `nbytes` ends the connection on any topic; one of `passed` bytes went through."""
    return (
        f"{settings.host}:{settings.port} hangs up on messages of {nbytes:,} bytes ({passed:,} pass), so inputs that "
        f"would have to pass in larger ones are answered at the local exit: raise the limit of the broker (mosquitto's "
        f"max_packet_size and message_size_limit), or of {_IN_BETWEEN}"
    )


def hangs_up_on_retained(settings: BrokerSettings) -> str:
    """Say that a retained publish ends the connection."""
    return (
        f"{settings.host}:{settings.port} hangs up on retained messages, so whoever comes late sees nothing until the "
        f"next change: set mosquitto's retain_available true, or allow them in {_IN_BETWEEN}"
    )


def hangs_up_on_qos(settings: BrokerSettings) -> str:
    """Say that a publish at QoS 1 ends the connection."""
    return (
        f"{settings.host}:{settings.port} hangs up on publishes at QoS 1, so a lost connection loses results: "
        f"set mosquitto's max_qos 2, or allow QoS 1 in {_IN_BETWEEN}"
    )


def takes_no_retained(settings: BrokerSettings) -> str:
    """Say that the broker refuses retained messages: in its CONNACK, or by reason code 0x9A."""
    return (
        f"{settings.host}:{settings.port} takes no retained messages, so whoever comes late sees nothing until the "
        f"next change, and boards are called for: set mosquitto's retain_available true, or take a broker that retains"
    )


def takes_no_qos_1(settings: BrokerSettings) -> str:
    """Say that the broker refuses QoS 1: in its CONNACK, or by reason code 0x9B."""
    return (
        f"{settings.host}:{settings.port} takes publishes at QoS 0 alone, so a lost connection loses results: "
        f"set mosquitto's max_qos 2, or take a broker with QoS 1"
    )


def keeps_no_announcement(settings: BrokerSettings, topic_filter: str) -> str:
    """Say that what a board has announced, retained, did not come to it when it subscribed by a wildcard."""
    return (
        f"what this board announces is not there for whoever subscribes later at {settings.host}:{settings.port}, so "
        f"boards are called for instead, and dashboards see a board when it next says what it is: set mosquitto's "
        f"retain_available true, take a broker that hands what it retains to wildcard subscriptions, or allow this "
        f"user to read {topic_filter}"
    )


def tells_no_unread(settings: BrokerSettings, *, is_mqtt5: bool) -> str:
    """Say that the broker does not tell a sender that nobody reads its message."""
    address = f"{settings.host}:{settings.port}"
    why = (
        f"{address} does not say when nobody reads a message, or something there reads all messages"
        if is_mqtt5
        else f"{address} speaks MQTT 3.1.1 alone, which cannot say that nobody reads a message"
    )
    return (
        f"{why}, so a board that has stopped is noticed by its state or by its silence: take a broker with MQTT 5 that "
        f"says so, such as mosquitto 2"
    )


def holds_back(settings: BrokerSettings) -> str:
    """Say that the broker delays small messages, see `nagle`."""
    return (
        f"{settings.host}:{settings.port} holds back small messages by some 40 ms, as it leaves TCP_NODELAY off, so "
        f"answers of other boards are late: add set_tcp_nodelay true to mosquitto.conf (with RabbitMQ, "
        f"mqtt.tcp_listen_options.nodelay = true to rabbitmq.conf)"
    )


def too_large(settings: BrokerSettings, topic: str, nbytes: int, limit: int) -> str:
    """Say that a message is not sent: `nbytes` of payload in a packet beyond the `limit` that the broker named."""
    return (
        f"{nbytes:,} bytes on {topic} exceed the {limit:,} that {settings.host}:{settings.port} takes in a packet, so "
        f"{_loss(topic)}: raise the broker's limit to {_room(nbytes):,} or more (mosquitto's max_packet_size and "
        f"message_size_limit)"
    )


def _room(nbytes: int) -> int:
    """Return a limit that has room for a payload, its topic and its properties."""
    return nbytes + 256
