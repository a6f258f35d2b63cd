"""Why there is no connection to the broker, and what a broker does not support: each as a `Problem`."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from typing import Literal

from distree import topics
from distree.broker_settings import BrokerSettings, TlsSettings
from distree.errors import ConfigError, Problem, RemoteProtocolError
from distree.topics import Kind
from distree.transport.credentials import reason
from distree.transport.hangups import HangupCause

GaveUp = Literal["malformed", "silent"]
"""Why this side ended a connection: the broker sent what is not MQTT, or did not answer a ping."""

REFUSED_LOGIN = ("Bad user name or password", "Not authorized", "Bad authentication method")

_IN_BETWEEN = "any proxy or firewall in between"

REASONS = {
    0x80: "unspecified error",
    0x83: "refused by the broker's own rules",
    0x84: "unsupported protocol version",
    0x85: "client identifier not valid",
    0x86: "bad user name or password",
    0x87: "not authorized",
    0x88: "server unavailable",
    0x89: "server busy",
    0x8A: "banned",
    0x8E: "session taken over",
    0x8F: "topic filter invalid",
    0x90: "topic name invalid",
    0x95: "packet too large",
    0x97: "quota exceeded",
    0x99: "payload format invalid",
    0x9A: "retain not supported",
    0x9B: "QoS not supported",
    0x9E: "shared subscriptions not supported",
    0xA2: "wildcard subscriptions not supported",
}
"""What MQTT 5's reason codes mean."""

_CHECK_LOG = "check the broker's log"
_LESS = "raise the limit in the broker, or have clients send less"
_REMEDIES = {
    "unspecified error": _CHECK_LOG,
    "refused by the broker's own rules": _CHECK_LOG,
    "topic name invalid": f"{_CHECK_LOG}, and check {_IN_BETWEEN}",
    "payload format invalid": f"{_CHECK_LOG}, and check {_IN_BETWEEN}",
    "packet too large": "raise the broker's limit (mosquitto's max_packet_size and message_size_limit)",
    "quota exceeded": _LESS,
    "message rate too high": _LESS,
    "connection rate exceeded": _LESS,
    "receive maximum exceeded": f"update the broker, and check {_IN_BETWEEN}",
    "use another server": "set broker.host to the server that is to be used instead",
    "server moved": "set broker.host to the server that is to be used instead",
}
"""What helps against a refusal, by its reason in small letters; everything else is a matter of rights or configuration.
"""

# OpenSSL's X509_V_ERR_*: Python has no names for them.
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_CA = frozenset({2, 18, 19, 20, 21, 24})
_REVOKED = 23
_OTHER_NAME = frozenset({62, 63, 64})


def unreachable(settings: BrokerSettings, error: Exception) -> Problem:
    """Say why the broker cannot be reached: its name, the network, TLS, or a file that TLS or the login needs."""
    address = settings.address
    if settings.tls is not None and isinstance(error, ssl.SSLError | ConnectionResetError):
        return _untrusted(settings, settings.tls, error)
    match error:
        case ConfigError():
            return error.problem
        case socket.gaierror():
            return Problem(f"cannot resolve {settings.host!r} of {address}", "check broker.host and this machine's DNS")
        case ConnectionRefusedError():
            return Problem(
                f"nothing listens on {address}",
                "start the broker, or correct its address (broker.host and broker.port, or --broker)",
            )
        case TimeoutError():
            return Problem(
                f"{address} did not answer within {settings.connect_timeout_s:g} s",
                "check the address, the network and the firewall",
            )
        case _:
            return Problem(f"cannot reach {address} ({reason(error)})", "check broker.host and the network")


def unanswered(address: str, timeout_s: float) -> Problem:
    """Say that a broker has not answered yet, and that nothing else is known."""
    return Problem(f"{address} did not answer within {timeout_s:g} s", "check the address, the network and the broker")


def _untrusted(settings: BrokerSettings, tls: TlsSettings, error: Exception) -> Problem:
    """Say why TLS could not be set up."""
    address = settings.address
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(settings, tls, error)
    name = getattr(error, "reason", None) or ""
    if "CERTIFICATE_REQUIRED" in name or (name == "SSLV3_ALERT_HANDSHAKE_FAILURE" and tls.cert_file is None):
        return Problem(f"{address} requires a client certificate", "set broker.tls.cert_file and broker.tls.key_file")
    if name.startswith(("TLSV1_ALERT", "SSLV3_ALERT", "TLSV13_ALERT")):
        word = name.partition("ALERT_")[2].replace("_", " ").lower()
        if tls.cert_file is not None and ("certificate" in word or word == "unknown ca"):
            return Problem(
                f"{address} rejects the certificate in {tls.cert_file} ({word})",
                "correct broker.tls.cert_file, or have a new one made (`distree broker rotate`)",
            )
        return Problem(f"{address} rejects the TLS handshake ({word})", "check the broker's TLS versions and its log")
    return Problem(f"{address} does not speak TLS", "correct broker.port (8883 is usual for TLS), or remove broker.tls")


def _unverified(settings: BrokerSettings, tls: TlsSettings, error: ssl.SSLCertVerificationError) -> Problem:
    where = f"the certificate of {settings.address}"
    clock = f"this machine's clock, which says {time.strftime('%Y-%m-%d', time.gmtime())}"
    match error.verify_code:
        case code if code == _EXPIRED:
            remedy = f"renew it (`distree broker renew`, if distree made the broker), or correct {clock}"
            return Problem(f"{where} has expired", remedy)
        case code if code == _NOT_YET_VALID:
            return Problem(f"{where} is not valid yet", f"correct {clock}")
        case code if code in _OTHER_NAME:
            return Problem(
                f"{where} is not valid for the name {settings.host!r}", "set broker.host to a name in the certificate"
            )
        case code if code in _UNKNOWN_CA and tls.ca_file is None:
            return Problem(
                f"{where} was issued by an authority that this system does not trust",
                "set broker.tls.ca_file to the CA certificate",
            )
        case code if code in _UNKNOWN_CA:
            return Problem(f"{where} was not issued by the authority in {tls.ca_file}", "correct broker.tls.ca_file")
        case code if code == _REVOKED:
            return Problem(f"{where} was revoked", "renew it")
        case _:
            return Problem(
                f"{where} cannot be verified ({error.verify_message.lower()})",
                "renew it, or correct broker.tls.ca_file",
            )


def forked(settings: BrokerSettings) -> Problem:
    """Say that the connection belongs to another process."""
    return Problem(
        f"this process was forked from the one that is connected to {settings.address}",
        "open a new connection after the fork",
    )


def no_mqtt(settings: BrokerSettings, ended_by: Exception | GaveUp | None = None) -> Problem:
    """Say why the connection ended right after CONNECT: `ended_by` what TLS reported, or since this side gave up."""
    if isinstance(ended_by, Exception) and settings.tls is not None:
        return _untrusted(settings, settings.tls, ended_by)
    hint = ", and set broker.tls (or write mqtts://HOST:PORT) if it requires TLS" if settings.tls is None else ""
    if settings.tls is not None and settings.tls.cert_file is None:
        hint = ", and set broker.tls.cert_file (or --cert-file) if it requires a client certificate"
    elif settings.tls is not None:
        # Where the connection ends before the broker's alert is read, as it may with TLS 1.3, the reason is lost.
        hint = f", and that it has not revoked the certificate in {settings.tls.cert_file}"
    does = "closes the connection without answering MQTT"
    if ended_by == "malformed":
        does = "answers with something other than MQTT"
    return Problem(
        f"{settings.address} {does}",
        f"check that it is an MQTT broker, and not its port for websockets{hint}",
    )


def mute(address: str) -> Problem:
    """Say that something takes connections and then never answers."""
    return Problem(f"{address} accepts connections but does not answer MQTT", "check that it is an MQTT broker")


def refusal(settings: BrokerSettings, client_id: str, reason: str) -> Problem:
    """Say why the broker refuses or ends the connection; `reason` is MQTT 5's name of the reason code."""
    address = settings.address
    match reason:
        case "Session taken over":
            return Problem(
                f"another client is using the id {client_id!r} on {address}", "give each client an id of its own"
            )
        case name if name in REFUSED_LOGIN and settings.username is None:
            return Problem(
                f"{address} requires a login ({name.lower()})", "set broker.username and broker.password_file"
            )
        case name if name in REFUSED_LOGIN:
            return Problem(
                f"{address} refuses user {settings.username!r} ({name.lower()})",
                "correct broker.username or the first line of broker.password_file",
            )
        case "Client identifier not valid":
            return Problem(f"{address} refuses the client id {client_id!r}", "choose another one")
        case _:
            name = reason.lower()
            return Problem(f"{address} ended the connection ({name})", _REMEDIES.get(name, _CHECK_LOG))


def lost(address: str, client_id: str, *, at_once: bool) -> Problem:
    """Say that an established connection ended, without a reason from the broker."""
    what = f"{address} or the network closed the connection"
    if at_once:  # mosquitto 2.0 gives no reason
        return Problem(what, f"if this keeps happening, make sure that no other client uses the id {client_id!r}")
    return Problem(what, "check the network and the broker's log if this keeps happening")


def gave_up(settings: BrokerSettings, why: GaveUp) -> Problem:
    """Say that this side ended an established connection."""
    if why == "silent":
        return Problem(
            f"{settings.address} has stopped answering, so the connection was closed",
            "check the network and the broker",
        )
    return Problem(
        f"{settings.address} sent a packet that is not valid MQTT, so the connection was closed",
        f"update the broker, and check {_IN_BETWEEN}",
    )


def lost_while_subscribing(address: str, topic_filter: str) -> Problem:
    """Say that the connection ended after a SUBSCRIBE and before its answer."""
    return Problem(
        f"{address} closed the connection on the subscription to {topic_filter}",
        "check the broker's log and its ACL",
    )


# Whatever a broker, or a proxy in between, does not let through: what, and what is lost by it.

_ALLOW_IN_ACL = f"allow it in the broker's ACL, and in {_IN_BETWEEN}"

LOSSES = {
    Kind.STATE: "nobody can see whether this board is online",
    Kind.META: "nobody can see this board's description",
    Kind.TELEMETRY: "nobody can see this board's counters and latencies",
    Kind.ECHO: "a broker that delays small messages goes undetected",
    Kind.DEAD: "nobody can see which messages this board rejected",
    Kind.EVENT: "nobody is told what happens to this board",
    Kind.SITE_EVENT: "nobody is told which boards are lost",
    Kind.PLAN: "thresholds stay as they are",
    Kind.MEMBER: "origins send nothing to this board",
    Kind.CALL: "boards whose announcements the broker has not retained are not found",
    Kind.STAGE: "inputs that need a later stage are answered at the local exit",
    Kind.INPUT: "inputs do not reach their origin",
    Kind.OUTCOME: "answers do not reach their origin, which falls back to its local exit",
    Kind.RESULT: "nobody can see this board's results",
    Kind.EXIT: "answers are fused without this branch",
    Kind.DECISION: "branches are never told whether to stop or go on",
    Kind.AUDIT: "thresholds are not tuned on this board's inputs",
    Kind.LABEL: "accuracy is not measured against labels",
    Kind.STATS: "Home Assistant gets no figures",
    Kind.THUMBNAIL: "the dashboard shows no pictures",
    Kind.ORCHESTRATOR: "two orchestrators may plan this site at once",
}
"""What is lost where nothing gets through on topics of a kind."""


def _loss(topic: str) -> str:
    """Return what is lost where nothing gets through on `topic`."""
    try:
        return LOSSES[topics.parse(topic).kind]
    except RemoteProtocolError:
        return "nobody receives what is sent there"


def breaks_by_itself(settings: BrokerSettings) -> Problem:
    """Say that the connection ended, and that no request is to blame."""
    return Problem(
        f"the connection to {settings.address} keeps breaking for no visible reason",
        "check the network and the broker's log, then try again",
    )


def hangs_up_on_will(settings: BrokerSettings) -> Problem:
    """Say that the broker answers a login only without a will."""
    return Problem(
        f"{settings.address} hangs up on a login with a will message, so nobody notices when this client dies",
        f"allow will messages in the broker, and in {_IN_BETWEEN}",
    )


def refuses_will(settings: BrokerSettings) -> Problem:
    """Say that a login with a will is refused, and one without is not."""
    return Problem(
        f"{settings.address} refuses a login with a will message, so nobody notices when this client dies",
        "allow will messages in the broker",
    )


def hangs_up_on_subscribe(settings: BrokerSettings, filters: Sequence[str]) -> Problem:
    """Say that a SUBSCRIBE ends the connection: one with a single filter, or one with several that work one by one."""
    address = settings.address
    if len(filters) == 1:
        return Problem(
            f"{address} hangs up on the subscription to {filters[0]}, so nothing is received from there",
            _ALLOW_IN_ACL,
        )
    return Problem(
        f"{address} hangs up on a SUBSCRIBE with {len(filters)} filters (from {filters[0]} to "
        f"{filters[-1]}), so subscribing takes several smaller packets, and longer",
        f"allow as many filters per packet in the broker, and in {_IN_BETWEEN}",
    )


def refuses_needed_subscribe(address: str, refused: Sequence[str]) -> Problem:
    """Say that filters are refused without which there is nothing to do; each with the broker's reason."""
    return Problem(f"{address} refuses the subscription to {', '.join(refused)}", _allow_reading(refused))


def _allow_reading(refused: Sequence[str]) -> str:
    """Return the remedy where filters are refused, each with the broker's reason."""
    if all("wildcard" in text.lower() for text in refused):
        return "allow wildcard subscriptions in the broker, or use another broker"
    return "allow this user to read there in the broker's ACL"


def refuses_subscribe(settings: BrokerSettings, refused: Sequence[str]) -> Problem:
    """Say that filters are refused that this goes on without; each with the broker's reason."""
    more = f" and {len(refused) - 3:,} more" if len(refused) > 3 else ""
    return Problem(
        f"{settings.address} refuses the subscription to {', '.join(refused[:3])}{more}, so nothing is received "
        "from there",
        _allow_reading(refused),
    )


def refuses_publish(address: str, topic: str, code: int) -> Problem:
    """Say that the broker refused a publish, with a reason code of MQTT 5."""
    name = REASONS.get(code, f"code {code}")
    return Problem(
        f"{address} refuses publishes on {topic} ({name}), so {_loss(topic)}",
        _REMEDIES.get(name, "allow this user to write there in the broker's ACL"),
    )


def acknowledges_nothing(settings: BrokerSettings, after_s: float) -> Problem:
    """Say that publishes at QoS 1 arrive, since the connection is alive, and are not acknowledged."""
    return Problem(
        f"{settings.address} has acknowledged no publish for {after_s:g} s, so the connection was closed",
        f"check the broker's log, and {_IN_BETWEEN}",
    )


def floods(settings: BrokerSettings, nbytes: int) -> Problem:
    """Say that more came than is kept before the subscriptions were answered."""
    return Problem(
        f"{settings.address} sent more than {nbytes:,} bytes of messages before it answered the subscriptions",
        "remove retained messages that nobody needs from the broker, and check its log",
    )


def ignored_too_large(topic: str, nbytes: int, limit: int) -> Problem:
    """Say that a received message was skipped; peers choose topics, so that one may be anything."""
    return Problem(
        f"ignored a message of {nbytes:,} bytes on {topic}: the limit is {limit:,}",
        "find out who publishes it, and forbid it in the broker's ACL",
    )


def hangs_up(settings: BrokerSettings, cause: HangupCause) -> Problem:
    """Say what was found to end the connection."""
    match cause.why:
        case "topic":
            return hangs_up_on_publish(settings, cause.topic, cause.nbytes)
        case "size":
            return hangs_up_on_size(settings, cause.nbytes, cause.passed)
        case "retained":
            return hangs_up_on_retained(settings)
        case "qos":
            return hangs_up_on_qos(settings)


def hangs_up_on_publish(settings: BrokerSettings, topic: str, nbytes: int) -> Problem:
    """Say that a publish on `topic` ends the connection, whatever its size; `nbytes` is that of its payload."""
    return Problem(
        f"{settings.address} hangs up on publishes on {topic} ({nbytes:,} bytes), so {_loss(topic)}",
        _ALLOW_IN_ACL,
    )


def hangs_up_on_size(settings: BrokerSettings, nbytes: int, passed: int) -> Problem:
    """Say that a message of `nbytes` ends the connection on any topic; one of `passed` bytes went through."""
    return Problem(
        f"{settings.address} hangs up on messages of {nbytes:,} bytes ({passed:,} get through), so "
        "inputs that need larger ones are answered at the local exit",
        f"raise the limit of the broker (mosquitto's max_packet_size and message_size_limit), and of {_IN_BETWEEN}",
    )


def hangs_up_on_retained(settings: BrokerSettings) -> Problem:
    """Say that a retained publish ends the connection."""
    return Problem(
        f"{settings.address} hangs up on retained messages, so anyone who connects later sees nothing "
        "until the next change",
        f"set mosquitto's retain_available true, and allow retained messages in {_IN_BETWEEN}",
    )


def hangs_up_on_qos(settings: BrokerSettings) -> Problem:
    """Say that a publish at QoS 1 ends the connection."""
    return Problem(
        f"{settings.address} hangs up on publishes at QoS 1, so a lost connection loses results",
        f"set mosquitto's max_qos 2, and allow QoS 1 in {_IN_BETWEEN}",
    )


def takes_no_retained(settings: BrokerSettings) -> Problem:
    """Say that the broker refuses retained messages: in its CONNACK, or by reason code 0x9A."""
    return Problem(
        f"{settings.address} does not support retained messages, so anyone who connects later sees nothing until "
        "the next change, and boards have to be asked what they serve",
        "set mosquitto's retain_available true, or use a broker that supports retained messages",
    )


def takes_no_qos_1(settings: BrokerSettings) -> Problem:
    """Say that the broker refuses QoS 1: in its CONNACK, or by reason code 0x9B."""
    return Problem(
        f"{settings.address} accepts publishes at QoS 0 only, so a lost connection loses results",
        "set mosquitto's max_qos 2, or use a broker that supports QoS 1",
    )


def keeps_no_announcement(settings: BrokerSettings, topic_filter: str) -> Problem:
    """Say that what a board has announced, retained, did not come to it when it subscribed by a wildcard."""
    return Problem(
        f"{settings.address} does not deliver what this board announces to later subscribers, so boards have to be "
        "asked what they serve, and dashboards see a board only when it next describes itself",
        "set mosquitto's retain_available true, use a broker that delivers retained messages to wildcard "
        f"subscriptions, or allow this user to read {topic_filter}",
    )


def tells_no_unread(settings: BrokerSettings, *, is_mqtt5: bool) -> Problem:
    """Say that the broker does not tell a sender that nobody reads its message."""
    address = settings.address
    why = (
        f"{address} does not report messages that nobody reads, or some client there reads all messages"
        if is_mqtt5
        else f"{address} speaks MQTT 3.1.1 only, which cannot report messages that nobody reads"
    )
    return Problem(
        f"{why}, so a board that has stopped is noticed only by its state or its silence",
        "use an MQTT 5 broker that reports them, such as mosquitto 2",
    )


def holds_back(settings: BrokerSettings) -> Problem:
    """Say that the broker delays small messages, see `nagle`."""
    return Problem(
        f"{settings.address} delays small messages by some 40 ms because it leaves TCP_NODELAY off, so answers "
        "from other boards arrive late",
        "add set_tcp_nodelay true to mosquitto.conf (with RabbitMQ, mqtt.tcp_listen_options.nodelay = true to "
        "rabbitmq.conf)",
    )


def raise_limit(nbytes: int) -> str:
    """Return the remedy for a broker whose limit is too low for a message of `nbytes`."""
    return f"raise the broker's limit to {_room(nbytes):,} or more (mosquitto's max_packet_size and message_size_limit)"


def too_large(settings: BrokerSettings, topic: str, nbytes: int, limit: int) -> Problem:
    """Say that a message is not sent: `nbytes` of payload in a packet beyond the `limit` that the broker named."""
    return Problem(
        f"a message of {nbytes:,} bytes on {topic} exceeds the packet limit of {settings.address}, {limit:,} bytes, "
        f"so {_loss(topic)}",
        raise_limit(nbytes),
    )


def _room(nbytes: int) -> int:
    """Return a limit that has room for a payload, its topic and its properties."""
    return nbytes + 256
