"""All decoders of messages, and the check of those that are signed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.fuzz.made_messages import STAMP, Maker
from benchmarks.fuzz.target import Form, Target
from distree import topics
from distree.messages.codec import decode, encode
from distree.messages.layout import layout_of
from distree.messages.limits import MAX_DECODE_BYTES
from distree.messages.plan import Plan
from distree.messages.result import Result
from distree.messages.site import Claim
from distree.signing import PublicKeys, SigningKey
from distree.topics import Kind
from tools.json_schema import MESSAGES as KINDS

_MOST_MIB = MAX_DECODE_BYTES >> 20


def _beside(cls: type) -> object:
    return STAMP if cls is Result else None


def _decoder(cls: type) -> Callable[[bytes], object]:
    def read(payload: bytes) -> object:
        message = decode(cls, payload)
        encode(message, _beside(cls))  # whatever was taken can be sent on
        return message

    return read


def _maker(cls: type) -> Callable[[random.Random], bytes]:
    def fresh(rng: random.Random) -> bytes:
        message = Maker(rng).record(cls)
        payload = encode(message, _beside(cls))
        read = decode(cls, payload)
        # JSON is rounded for people.
        assert layout_of(cls).is_json or read == message, f"{message} was read as {read}"
        return payload

    return fresh


def _messages(_folder: Path) -> Sequence[Form]:
    return [
        Form(kind.value, _maker(cls), _decoder(cls), "json" if layout_of(cls).is_json else "packed")
        for kind, cls in KINDS.items()
    ]


_KEY = SigningKey(bytes(range(32)))


def _signed(_folder: Path) -> Sequence[Form]:
    keys = PublicKeys([_KEY.public])
    forms = []
    for cls, topic, damage in (
        (Plan, topics.plan("lab", "p"), "packed"),
        (Claim, topics.build(Kind.ORCHESTRATOR, site="lab"), "json"),
    ):

        def read(payload: bytes, cls: type = cls, topic: str = topic) -> object:
            seal = keys.check(topic, payload)
            return seal, decode(cls, payload)

        def fresh(rng: random.Random, cls: type = cls, topic: str = topic) -> bytes:
            return _KEY.sign(topic, Maker(rng).record(cls), rng.randrange(1 << 53))

        forms.append(Form(f"signed {cls.__name__.lower()}", fresh, read, damage))  # type: ignore[arg-type]
    return forms


MESSAGES = Target("messages", "messages", 60, _messages, _MOST_MIB)
SIGNED = Target("signed", "messages", 5, _signed, _MOST_MIB)
