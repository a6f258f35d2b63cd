"""A million messages that mean no good, at all decoders: `python -m benchmarks.fuzz [--messages N] [--seed N]`.

Valid messages of every kind are made up from the declarations of their fields. Some are sent as they are, and must be
read as they were meant; most have bits flipped, bytes cut out, put in or exchanged, values replaced by others anywhere
inside, also in what travels packed. The rest are random bytes and nests. Whatever comes, a decoder returns a message,
which can be encoded again, or raises RemoteProtocolError; for anything else the bytes are printed, and 1 is returned.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgpack

from distree.errors import RemoteProtocolError
from distree.messages.codec import decode, encode
from distree.messages.forms import (
    Branches,
    Data,
    Flag,
    Form,
    Id,
    Items,
    Number,
    Packed,
    PackedItems,
    Part,
    Tally,
    Text,
    Whole,
    Word,
)
from distree.messages.layout import REQUIRED, layout_of
from distree.messages.limits import MAX_BRANCHES
from distree.messages.result import Result, Stamp
from distree.topics import Kind
from tools.json_schema import MESSAGES

STAMP = Stamp(time="2026-01-15T09:30:00.123+00:00", clock_synced=True)
IDS = string.ascii_lowercase + string.digits + "-"
LETTERS = string.ascii_letters + string.digits + " .,-äß✓😀"
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**53, 2**53 + 1, 2**63, -(2**63), 0.0, -0.0, 1.5, float("nan"), float("inf"),
    float("-inf"), 1e300, -1e301, "", "a", "A/b", "\x00", "\u202e", "x" * 65, "x" * 600, b"", b"12345678", b"\xc1", (),
    (1,), ((),), {}, {"a": 1}, {1: 2}, "confident", "int8",
)  # fmt: skip
"""What a field may be replaced by."""


class Maker:
    """Makes valid messages up, small ones as a rule."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def record(self, cls: type) -> Any:
        """Return a record with random fields; its fault, if it has one, is left to chance no more than a few times."""
        while True:
            given = {}
            for field in layout_of(cls).fields:
                if field.default is REQUIRED or self.rng.random() < 0.5:
                    is_none = field.nullable and self.rng.random() < 0.3
                    given[field.name] = None if is_none else self.value(field.form)
            made = cls(**given)
            if not (hasattr(made, "fault") and made.fault()):
                return made

    def value(self, form: Form) -> Any:
        """Return a random value of a form."""
        rng = self.rng
        match form:
            case Text():
                return "".join(
                    rng.choices(LETTERS, k=rng.choice((0, 1, rng.randint(0, min(form.most, 40)), form.most)))
                )
            case Id():
                return "".join(rng.choices(IDS, k=rng.choice((1, 4, 32))))
            case Whole():
                return rng.choice((form.least, form.most, rng.randint(form.least, min(form.most, form.least + 100))))
            case Number():
                return float(rng.choice((form.least, form.most, rng.uniform(form.least, min(form.most, 1.0)))))
            case Word():
                return rng.choice(list(form.words.values()))
            case Flag():
                return rng.random() < 0.5
            case Data():
                return form.start + rng.randbytes(max(form.least, min(form.most - len(form.start), rng.randint(0, 40))))
            case Branches():
                return tuple(sorted(rng.sample(range(MAX_BRANCHES), k=rng.randint(form.least, 4))))
            case Items():
                most = min(form.most, rng.choice((0, 1, 2, 3)))
                return tuple(self.value(form.item) for _ in range(max(form.least, most)))
            case Tally():
                return {word: self.value(form.count) for word in form.words if rng.random() < 0.5}
            case Part() | Packed():
                return self.record(form.cls)
            case PackedItems():
                return self.value(form.items)
        raise TypeError(f"{form!r}: cannot be made up")


class Fuzzer:
    """Spoils messages."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.maker = rng, Maker(rng)
        self.ways: tuple[Callable[[bytes, bool], bytes], ...] = (
            self.flipped, self.cut, self.spliced, self.replaced, self.replaced, self.replaced,
        )  # fmt: skip

    def flipped(self, payload: bytes, _is_json: bool) -> bytes:
        """Change some bytes."""
        changed = bytearray(payload)
        for _ in range(self.rng.choice((1, 1, 2, 8))):
            changed[self.rng.randrange(len(changed))] = self.rng.randrange(256)
        return bytes(changed)

    def cut(self, payload: bytes, _is_json: bool) -> bytes:
        """Leave some bytes out."""
        start = self.rng.randrange(len(payload))
        return payload[:start] + payload[self.rng.randint(start, len(payload)) :]

    def spliced(self, payload: bytes, _is_json: bool) -> bytes:
        """Put bytes in."""
        start = self.rng.randrange(len(payload))
        more = self.rng.choice(
            (self.rng.randbytes(self.rng.randint(1, 20)), payload, b"\x91" * 600, b"\xdd\xff\xff\xff\xff")
        )
        return payload[:start] + more + payload[start:]

    def replaced(self, payload: bytes, is_json: bool) -> bytes:
        """Replace a value by another, at any depth."""
        if is_json:
            return json.dumps(self._put(json.loads(payload)), default=str).encode()
        packed: bytes = msgpack.packb(self._put(msgpack.unpackb(payload)))
        return packed

    def _put(self, value: Any) -> Any:
        rng = self.rng
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = rng.choice(list(value))
            match rng.random():
                case chance if chance < 0.1:
                    return {name: part for name, part in value.items() if name != key}
                case chance if chance < 0.15:
                    return {**value, "later": rng.choice(ODD[:9])}
            return {**value, key: self._put(value[key])}
        if isinstance(value, list) and value and rng.random() < 0.8:
            place = rng.randrange(len(value))
            match rng.random():
                case chance if chance < 0.1:
                    return value[:place]
                case chance if chance < 0.2:
                    return [*value, rng.choice(ODD)]
            return [*value[:place], self._put(value[place]), *value[place + 1 :]]
        if isinstance(value, bytes) and value and rng.random() < 0.8:
            try:
                return msgpack.packb(self._put(msgpack.unpackb(value)))
            except (ValueError, msgpack.UnpackException):
                return rng.choice(ODD)
        return rng.choice(ODD)

    def junk(self) -> bytes:
        """Return bytes that never were a message."""
        rng = self.rng
        match rng.randrange(5):
            case 0:
                return rng.randbytes(rng.randint(0, 300))
            case 1:
                return rng.choice((b"\x91", b"\x81\xa1a", b"[", b'{"a":')) * rng.randint(1, 5000)
            case 2:
                return bytes([rng.randint(0x80, 0x9F)]) + rng.randbytes(rng.randint(0, 60))
            case 3:
                return json.dumps(rng.choice(ODD[:24]), default=str).encode()
        return rng.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb")) + rng.randbytes(4) + rng.randbytes(rng.randint(0, 20))


def run(messages: int, seed: int) -> int:
    """Throw so many messages; return the exit status."""
    rng = random.Random(seed)
    fuzzer, kinds = Fuzzer(rng), list(Kind)
    counts: dict[Kind, Counter[str]] = {kind: Counter() for kind in kinds}
    began_s, thrown = time.monotonic(), 0
    while thrown < messages:
        kind = kinds[thrown // 25 % len(kinds)]
        cls, is_json = MESSAGES[kind], layout_of(MESSAGES[kind]).is_json
        message = fuzzer.maker.record(cls)
        payload = encode(message, STAMP if cls is Result else None)
        read = decode(cls, payload)
        assert is_json or read == message, f"{kind}: {message} was read as {read}"
        spoiled = [rng.choice(fuzzer.ways)(payload, is_json) for _ in range(20)]
        for told in [*spoiled, *(fuzzer.junk() for _ in range(4)), payload]:
            thrown += 1
            try:
                again = decode(cls, told)
                encode(again, STAMP if cls is Result else None)
            except RemoteProtocolError as error:
                counts[kind][error.reason] += 1
            except BaseException as error:  # noqa: BLE001 - that there is none is what this shows
                print(f"{kind.value}: {type(error).__name__}: {error}\n{told.hex()}", file=sys.stderr)
                return 1
            else:
                counts[kind]["read"] += 1
    reasons = ("read", "size", "encoding", "version", "kind", "field")
    print(f"{'kind':14}" + "".join(f"{reason:>10}" for reason in reasons))
    for kind in kinds:
        print(f"{kind.value:14}" + "".join(f"{counts[kind][reason]:10,}" for reason in reasons))
    total = sum(counts.values(), Counter())
    print(f"{'all':14}" + "".join(f"{total[reason]:10,}" for reason in reasons))
    print(f"{thrown:,} messages in {time.monotonic() - began_s:.0f} s, seed {seed}: read, or refused as they should be")
    return 0


def main() -> None:
    """Read the options and throw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (default: %(default)s)")
    args = parser.parse_args()
    sys.exit(run(args.messages, args.seed))


if __name__ == "__main__":
    main()
