"""Makes good bytes bad: bytes flipped, cut, put in and exchanged, lengths and numbers changed, values replaced."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgpack

from benchmarks.fuzz.target import Damage

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**53, 2**53 + 1, 2**63, -(2**63), 0.0, -0.0, 1.5, float("nan"), float("inf"),
    float("-inf"), 1e300, -1e301, "", "a", "A/b", "\x00", "\u202e", "x" * 65, "x" * 600, b"", b"12345678", b"\xc1", (),
    (1,), ((),), {}, {"a": 1}, {1: 2}, "confident", "int8",
)  # fmt: skip
"""What a value may be replaced by."""

_LENGTHS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 64) - 1)
_TEXTS = (
    b"999999999", b"-1", b"0", b"1e99", b"nan", b"18446744073709551616", b".inf", b"null", b"~", b"[", b"{", b"]",
    b": ", b"- ", b"&a ", b"*a", b"!!python/object:os.system ", b"? ", b"|", b"\t", b"\n\n", b"\x1b[2J",
    "\u202e".encode(), b"x" * 300, b"'", b'"', b"#", b"/../", b"/dev/zero", b"%", b"<<: ", b"1" * 5000,
)  # fmt: skip
_MORE = (
    b"\xff" * 8,
    b"\0" * 64,
    b"," * 50,
    b"\n" * 20,
    b"(" * 999,
    b"[" * 2000,
    b"\x91" * 600,
    b"\xdd\xff\xff\xff\xff",
)


class Mutator:
    """Damages bytes, reproducibly."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._of_bytes: tuple[Callable[[bytes], bytes], ...] = (
            self.flipped, self.flipped, self.ends, self.cut, self.left_out, self.spliced, self.length, self.length,
            self.number, self.swapped,
        )  # fmt: skip
        self._of_text: tuple[Callable[[bytes], bytes], ...] = (
            self.flipped, self.cut, self.left_out, self.line_out, self.spliced, self.number, self.word, self.word,
            self.swapped, self.lines_swapped,
        )  # fmt: skip

    def damaged(self, content: bytes, damage: Damage) -> bytes:
        """Damage something good in one way, or in several."""
        rng = self.rng
        if rng.random() < 0.01:
            return self.junk()
        if damage in ("packed", "json") and rng.random() < 0.5:
            return self.replaced(content, is_json=damage == "json")
        ways = self._of_text if damage in ("text", "json") else self._of_bytes
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            content = rng.choice(ways)(content) if content else content
        return content

    # ------------------------------------------------------------ bytes

    def flipped(self, content: bytes) -> bytes:
        """Change some bytes anywhere."""
        changed = bytearray(content)
        for _ in range(self.rng.choice((1, 1, 2, 8, 64))):
            changed[self.rng.randrange(len(changed))] = self.rng.randrange(256)
        return bytes(changed)

    def ends(self, content: bytes) -> bytes:
        """Change some bytes at the beginning, or at the end, where archives have their directory."""
        changed = bytearray(content)
        for _ in range(self.rng.choice((1, 2, 4))):
            near = self.rng.randrange(min(160, len(changed)))
            changed[near if self.rng.random() < 0.6 else -1 - near] = self.rng.choice(
                (0, 1, 0x7F, 0x80, 0xFF, self.rng.randrange(256))
            )
        return bytes(changed)

    def cut(self, content: bytes) -> bytes:
        """Keep only the beginning."""
        return content[: self.rng.randrange(len(content))]

    def left_out(self, content: bytes) -> bytes:
        """Leave some bytes out."""
        start = self.rng.randrange(len(content))
        return content[:start] + content[start + self.rng.randint(1, 200) :]

    def spliced(self, content: bytes) -> bytes:
        """Put bytes in: others, or some of its own."""
        start, other = self.rng.randrange(len(content) + 1), self.rng.randrange(len(content))
        more = self.rng.choice((self.rng.randbytes(20), content[other : other + 200], *_MORE))
        return content[:start] + more + content[start:]

    def length(self, content: bytes) -> bytes:
        """Overwrite a field of 1 to 8 bytes by a number that is odd for a length."""
        size = self.rng.choice((1, 2, 4, 4, 8))
        near = min(len(content), self.rng.choice((64, 400, len(content))))
        start = self.rng.randrange(near) if self.rng.random() < 0.8 else len(content) - 1 - self.rng.randrange(near)
        value = self.rng.choice(_LENGTHS) & ((1 << 8 * size) - 1)
        field = value.to_bytes(size, self.rng.choice(("little", "big")))
        return content[:start] + field + content[start + size :]

    def number(self, content: bytes) -> bytes:
        """Replace a digit, as of a shape in a header, by several."""
        places = [at for at, byte in enumerate(content[:4000]) if 0x30 <= byte <= 0x39]
        if not places:
            return self.flipped(content)
        at = self.rng.choice(places)
        return content[:at] + self.rng.choice(_TEXTS[:6]) + content[at + 1 :]

    def swapped(self, content: bytes) -> bytes:
        """Exchange two parts."""
        a, b = sorted((self.rng.randrange(len(content)), self.rng.randrange(len(content))))
        return content[b:] + content[a:b] + content[:a]

    # ------------------------------------------------------------ text

    def word(self, content: bytes) -> bytes:
        """Replace a word by something that means something to a parser."""
        words = content.split(b" ")
        words[self.rng.randrange(len(words))] = self.rng.choice(_TEXTS)
        return b" ".join(words)

    def line_out(self, content: bytes) -> bytes:
        """Leave a line out."""
        lines = content.split(b"\n")
        del lines[self.rng.randrange(len(lines))]
        return b"\n".join(lines)

    def lines_swapped(self, content: bytes) -> bytes:
        """Exchange two lines, or repeat one."""
        lines = content.split(b"\n")
        a, b = self.rng.randrange(len(lines)), self.rng.randrange(len(lines))
        lines[a], lines[b] = lines[b], lines[a] if self.rng.random() < 0.7 else lines[b]
        return b"\n".join(lines)

    # ------------------------------------------------------------ values

    def replaced(self, content: bytes, *, is_json: bool) -> bytes:
        """Replace a value by another, at any depth, also in what travels packed."""
        try:
            if is_json:
                return json.dumps(self._put(json.loads(content)), default=str).encode()
            packed: bytes = msgpack.packb(self._put(msgpack.unpackb(content, strict_map_key=False)))
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
            return self.flipped(content) if content else content
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
        """Return bytes that never were good."""
        rng = self.rng
        match rng.randrange(5):
            case 0:
                return rng.randbytes(rng.randint(0, 300))
            case 1:
                return rng.choice((b"\x91", b"\x81\xa1a", b"[", b'{"a":', b"- ", b"a: ")) * rng.randint(1, 5000)
            case 2:
                return bytes([rng.randint(0x80, 0x9F)]) + rng.randbytes(rng.randint(0, 60))
            case 3:
                return json.dumps(rng.choice(ODD[:24]), default=str).encode()
        return rng.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb")) + rng.randbytes(4) + rng.randbytes(rng.randint(0, 20))
