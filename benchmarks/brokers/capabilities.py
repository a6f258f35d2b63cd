"""What a broker does, measured by plain clients: nothing of DistrEE's own transport is between."""

from __future__ import annotations

import secrets
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from paho.mqtt.enums import MQTTProtocolVersion

from benchmarks.brokers.client import V3, V5, Client, NoAnswerError

ABSENCE_S = 1.0
"""How long is waited for what should not come, or may not: brokers here answer within milliseconds."""

BURST = 500
ROUND_TRIPS = 250
REPEATS = 5
SIZES = (100_000, 500_000, 1_000_000, 1_900_000)
"""Payloads tried in turn. DistrEE keeps packets below 1 MiB where a broker does not state its limit."""

Names = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Bench:
    """A broker's address, the version of MQTT that is spoken, and topics that nobody used before."""

    address: tuple[str, int]
    version: MQTTProtocolVersion
    prefix: str

    def client(self, **how: object) -> Client:
        return Client(self.address, self.version, **how)  # type: ignore[arg-type]

    def topic(self, *parts: str) -> str:
        return "/".join((self.prefix, *parts))


def capabilities(host: str, port: int, mqtt: str | int = "auto") -> dict[str, str]:
    """Measure each fact; what goes wrong with one is its value."""
    address = host, port
    version, spoken = _version(address, mqtt)
    facts = {"MQTT": spoken}
    for name, measure in FACTS.items():
        bench = Bench(address, version, f"distree-brokers/{secrets.token_hex(4)}")
        try:
            facts[name] = measure(bench)
        except (NoAnswerError, OSError) as error:
            facts[name] = f"failed: {error}"
    return facts


def _version(address: tuple[str, int], mqtt: str | int) -> tuple[MQTTProtocolVersion, str]:
    if mqtt == "3.1.1":
        return V3, "3.1.1, as configured"
    try:
        with Client(address, V5):
            return V5, "5"
    except NoAnswerError as error:
        return V3, f"3.1.1 (to 5: {error})"


def round_trip(host: str, port: int, mqtt: str | int = "auto") -> float:
    """Median time, in the best of four parts, until another client has answered a small message, all at QoS 1, in ms.

    The broker sends the sender an acknowledgement, then the answer. Without TCP_NODELAY its system keeps the second
    back until the first is acknowledged, which the sender's system puts off for 40 ms where it has nothing to send.
    """
    bench = Bench((host, port), _version((host, port), mqtt)[0], f"distree-brokers/{secrets.token_hex(4)}")
    with bench.client() as other, bench.client() as client:
        other.subscribe(bench.topic("ask"))
        other.echo(bench.topic("answer"))
        client.subscribe(bench.topic("answer"))
        times = []
        for _ in range(ROUND_TRIPS):
            started_at = time.perf_counter()
            client.publish_soon(bench.topic("ask"), b"ping")
            if client.hear() is None:
                raise NoAnswerError("a message did not come")
            times.append(1e3 * (time.perf_counter() - started_at))
    # A connection's first packets are acknowledged at once. Of the others the best part: whatever else runs on this
    # machine passes, and what a broker causes stays.
    parts = [
        times[start : start + ROUND_TRIPS // 5] for start in range(ROUND_TRIPS // 5, ROUND_TRIPS, ROUND_TRIPS // 5)
    ]
    return min(map(statistics.median, parts))


# ---------------------------------------------------------------- retained messages


def _retained(bench: Bench, *filters: str) -> str:
    """Whether a later subscriber gets what was retained on two topics, and how often."""
    with bench.client() as sender:
        for board in ("a", "b"):
            sender.publish(bench.topic("member", board), board.encode(), retain=True)
    with bench.client() as reader:
        reader.subscribe(*(bench.topic(name) for name in filters))
        found = reader.hear_all()
    if not found:
        return "no"
    flagged = "" if all(message.retain for message in found) else ", not flagged as retained"
    counts = sorted(bytes(message.payload) for message in found)
    return ("yes" if counts == [b"a", b"b"] else f"{len(found)} of 2") + flagged


def retained_exact(bench: Bench) -> str:
    return _retained(bench, "member/a", "member/b")


def retained_plus(bench: Bench) -> str:
    return _retained(bench, "member/+")


def retained_hash(bench: Bench) -> str:
    return _retained(bench, "#")


def retained_again(bench: Bench) -> str:
    """Whether subscribing once more on the same connection gives the retained message once more."""
    with bench.client() as client:
        client.publish(bench.topic("state"), retain=True)
        client.subscribe(bench.topic("state"))
        client.hear(ABSENCE_S)
        client.subscribe(bench.topic("state"))
        return _yes(client.hear(ABSENCE_S))


def cleared(bench: Bench) -> str:
    """Whether an empty retained message clears, also in the eyes of who is subscribed."""
    with bench.client() as sender, bench.client() as watcher:
        sender.publish(bench.topic("state"), retain=True)
        watcher.subscribe(bench.topic("+"))
        watcher.hear(ABSENCE_S)
        sender.publish(bench.topic("state"), b"", retain=True)
        told = watcher.hear(ABSENCE_S)
        with bench.client() as late:
            late.subscribe(bench.topic("state"))
            left = late.hear(ABSENCE_S)
    if left is not None:
        return "no: an empty message is retained" if not left.payload else "no"
    return "yes" if told is not None and not told.payload else "yes, but subscribers are not told"


def unasked(bench: Bench) -> str:
    """How many retained messages come to a client that subscribes to nothing, while another client has subscribed."""
    with bench.client() as other:
        other.publish(bench.topic("state"), retain=True)
        other.subscribe(bench.topic("+"))
        with bench.client() as client:
            time.sleep(ABSENCE_S / 2)
            return "no" if not client.unasked else f"yes, {len(client.unasked)}"


# ---------------------------------------------------------------- wills and sessions


def will(bench: Bench) -> str:
    with bench.client() as watcher:
        watcher.subscribe(bench.topic("state"))
        bench.client(will=(bench.topic("state"), b"lost", False)).kill()
        return _yes(watcher.hear())


def will_retained(bench: Bench) -> str:
    bench.client(will=(bench.topic("state"), b"lost", True)).kill()
    time.sleep(0.5)
    with bench.client() as late:
        late.subscribe(bench.topic("state"))
        return _yes(late.hear())


def will_after_disconnect(bench: Bench) -> str:
    with bench.client() as watcher:
        watcher.subscribe(bench.topic("state"))
        bench.client(will=(bench.topic("state"), b"lost", False)).close()
        return _yes(watcher.hear(ABSENCE_S))


def will_of_a_predecessor(bench: Bench) -> str:
    """Whether a client that comes with the id of another ends that one, whose will is published."""
    name = f"brokers-{secrets.token_hex(4)}"
    with bench.client() as watcher:
        watcher.subscribe(bench.topic("state"))
        first = bench.client(client_id=name, will=(bench.topic("state"), b"lost", False))
        with bench.client(client_id=name):
            heard = _yes(watcher.hear(ABSENCE_S))
        first.close()
        return heard


def session(bench: Bench) -> str:
    """Whether a session keeps a message of QoS 1 for a subscriber that is away, and says that it is there."""
    name = f"brokers-{secrets.token_hex(4)}"
    with bench.client(client_id=name, keeps=True) as reader:
        reader.subscribe(bench.topic("input"))
    with bench.client() as sender:
        sender.publish(bench.topic("input"))
    with bench.client(client_id=name, keeps=True) as reader:
        heard = _yes(reader.hear(ABSENCE_S))
        return heard if reader.present or heard == "no" else f"{heard}, but does not say so"


# ---------------------------------------------------------------- subscriptions


def filters(bench: Bench, count: int) -> str:
    """Whether one SUBSCRIBE of many filters is granted, and all of them deliver."""
    names = [bench.topic(str(index), "+") for index in range(count)]
    with bench.client() as client:
        codes = client.subscribe(*names)
        refused = sum(code >= 128 for code in codes)
        for name in names:
            client.publish(name.replace("+", "a"))
        heard = len({message.topic for message in client.hear_all()})
    if len(codes) == count and not refused and heard == count:
        return "yes"
    return f"{count - refused} granted, {len(codes)} codes, {heard} deliver"


def eight_filters(bench: Bench) -> str:
    return filters(bench, 8)


def twenty_filters(bench: Bench) -> str:
    return filters(bench, 20)


def overlapping(bench: Bench) -> str:
    """How often a message comes that two filters of one client match."""
    with bench.client() as client:
        client.subscribe(bench.topic("stage", "+", "a"), bench.topic("stage", "0", "+"))
        client.publish(bench.topic("stage", "0", "a"))
        heard = len(client.hear_all())
        return {1: "once", 2: "twice"}.get(heard, f"{heard} times")


def own(bench: Bench) -> str:
    with bench.client() as client:
        client.subscribe(bench.topic("a"))
        client.publish(bench.topic("a"))
        return _yes(client.hear())


def no_local(bench: Bench) -> str:
    """Whether the option of MQTT 5 spares a client its own messages."""
    if bench.version != V5:
        return "-"
    with bench.client() as client:
        client.subscribe(bench.topic("a"), no_local=True)
        client.publish(bench.topic("a"))
        return "no" if client.hear(ABSENCE_S) else "yes"


def shared(bench: Bench) -> str:
    """Whether each of 20 messages goes to one of two members of a shared subscription."""
    with bench.client() as one, bench.client() as two, bench.client() as sender:
        for member in (one, two):
            codes = member.subscribe(f"$share/group/{bench.topic('work')}")
            if codes[0] >= 128:
                return f"refused (0x{codes[0]:02x})"
        for index in range(20):
            sender.publish(bench.topic("work"), str(index).encode())
        time.sleep(1.0)
        heard = one.heard.qsize(), two.heard.qsize()
    return (
        "yes"
        if sum(heard) == 20 and all(heard)
        else "no" + (f": {heard[0]} and {heard[1]} of 20" if any(heard) else "")
    )


# ---------------------------------------------------------------- publishing


def nobody_reads(bench: Bench) -> str:
    with bench.client() as client:
        return f"0x{client.publish(bench.topic('nobody')):02x}"


def qos_1(bench: Bench) -> str:
    """Whether a message published at QoS 1 comes at that, and one of QoS 0 as such."""
    with bench.client() as client:
        client.subscribe(bench.topic("a"))
        client.publish(bench.topic("a"), qos=1)
        first = client.hear()
        client.publish(bench.topic("a"), qos=0)
        second = client.hear()
    if first is None or first.qos != 1:
        return "no"
    return "yes" if second is not None and second.qos == 0 else "yes, even for messages published at QoS 0"


def burst(bench: Bench) -> str:
    """Whether all of a burst arrives in its order, and how fast."""
    with bench.client() as reader, bench.client() as sender:
        reader.subscribe(bench.topic("a"))
        started_at = time.perf_counter()
        for index in range(BURST):
            sender.publish_soon(bench.topic("a"), index.to_bytes(2, "big") + bytes(1022))
        heard = []
        while len(heard) < BURST and (message := reader.hear()) is not None:
            heard.append(int.from_bytes(message.payload[:2], "big"))
        spent_s = time.perf_counter() - started_at
    if sorted(heard) != list(range(BURST)):
        return f"{len(set(heard))} of {BURST}, {len(heard)} messages"
    return f"{'in order' if heard == sorted(heard) else 'out of order'}, {BURST / spent_s:.0f}/s"


def largest(bench: Bench) -> str:
    """The largest payload of those tried that comes back whole, and what the broker states of it."""
    with bench.client() as client:
        stated = getattr(client.answer, "MaximumPacketSize", None)
    passed, trouble = 0, ""
    for size in SIZES:
        try:
            with bench.client() as client:
                client.subscribe(bench.topic("a"))
                client.publish(bench.topic("a"), secrets.token_bytes(size))
                message = client.hear()
        except NoAnswerError as error:
            trouble = f", then {error}"
            break
        if message is None or len(message.payload) != size:
            trouble = ", then no delivery"
            break
        passed = size
    return f"{passed:,} bytes{trouble}" + (f"; states {stated:,}" if stated else "")


def _several(measure: Callable[[Bench], str]) -> Callable[[Bench], str]:
    """Measure what depends on who is faster some times over."""

    def measured(bench: Bench) -> str:
        found = [measure(replace(bench, prefix=f"{bench.prefix}-{index}")) for index in range(REPEATS)]
        counts = Counter(found).most_common()
        return found[0] if len(counts) == 1 else "; ".join(f"{value} ({count} of {REPEATS})" for value, count in counts)

    return measured


def _yes(message: object) -> str:
    return "no" if message is None else "yes"


FACTS: dict[str, Callable[[Bench], str]] = {
    "QoS 1": qos_1,
    "retained, exact topic": retained_exact,
    "retained, with +": retained_plus,
    "retained, with #": retained_hash,
    "retained, on a second subscription": retained_again,
    "empty message clears retained": cleared,
    "retained messages never subscribed to": unasked,
    "will of a killed client": _several(will),
    "will retained": _several(will_retained),
    "will after DISCONNECT": _several(will_after_disconnect),
    "will of a client replaced under its id": _several(will_of_a_predecessor),
    "session keeps QoS 1 messages": _several(session),
    "8 filters in one SUBSCRIBE": eight_filters,
    "20 filters in one SUBSCRIBE": twenty_filters,
    "two matching subscriptions: delivered": overlapping,
    "own messages delivered": own,
    "no-local": no_local,
    "$share": shared,
    "PUBACK without subscribers": nobody_reads,
    f"{BURST} sent at once": burst,
    "largest payload": largest,
}
"""The facts in the order of the table."""
