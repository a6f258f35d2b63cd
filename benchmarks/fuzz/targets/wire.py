"""What comes beside messages: topics, addresses, and the two MQTT packets that are parsed here and not by paho."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.fuzz.target import Form, Target, constant
from distree import topics
from distree.broker_address import parse_address
from distree.topics import Kind
from distree.transport.packets import frame, parse_puback, parse_publish, properties, puback, publish

_ADDRESSES = (
    b"mqtts://hub.local:8883", b"127.0.0.1:1883", b"[fe80::1%eth0]:1883", b"mqtt://[::1]", b"hub:1",
)  # fmt: skip
_NAMES = {
    "site": "lab", "device": "cam1", "pipeline": "p", "stage": 1, "to": "b1", "sender": "cam1", "origin": "cam1",
}  # fmt: skip
_SCHEMES = {"mqtt": 1883, "mqtts": 8883}


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda content: read(content.decode("utf-8", "surrogateescape"))


def _topics(_folder: Path) -> Sequence[Form]:
    names = [topics.build(kind, **_NAMES).encode() for kind in Kind]

    def address(text: str) -> object:
        return parse_address(text, "--broker", _SCHEMES)

    def a_filter(text: str) -> object:
        return topics.check_filter(text, "topic")

    def some(rng: random.Random) -> bytes:
        return rng.choice(names)

    def an_address(rng: random.Random) -> bytes:
        return rng.choice(_ADDRESSES)

    return [
        Form("topic", some, _text(topics.parse), "text"),
        Form("filter", constant(b"cameras/+/snapshot/#"), _text(a_filter), "text"),
        Form("id", constant(b"cam-1"), _text(lambda text: topics.check_id(text, "device")), "text"),
        Form("address", an_address, _text(address), "text"),
    ]


def _packets(_folder: Path) -> Sequence[Form]:
    with_properties = properties("application/json", 30.0)
    body = publish("distree/v1/lab/p/stage/1/b1/cam", b"x" * 40, mid=7, properties=with_properties)
    plain = publish("distree/v1/lab/p/stage/1/b1/cam", b"x" * 40, mid=None)

    def whole(content: bytes) -> object:
        found = frame(content, 0)
        return found and parse_publish(content[0], content[found[0] : found[1]], is_mqtt5=True)

    return [
        Form("PUBLISH of MQTT 5", constant(body), whole),
        Form("body of MQTT 5", constant(body[2:]), lambda content: parse_publish(0x32, content, is_mqtt5=True)),
        Form("body of MQTT 3", constant(plain[2:]), lambda content: parse_publish(0x30, content, is_mqtt5=False)),
        Form("PUBACK", constant(puback(300)[2:] + b"\x10"), parse_puback),
    ]


TOPICS = Target("topics", "messages", 8, _topics, 1)
PACKETS = Target("packets", "messages", 8, _packets, 4, refuses=(ValueError,))
