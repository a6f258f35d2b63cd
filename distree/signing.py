"""Messages that are signed: Ed25519 (RFC 8032) over the bytes as they travel, with the package `cryptography`.

A message that can be signed has a field `signed`, which is written last and has 80 bytes, in hexadecimal where the
message is JSON:

    8 bytes   which key: the first of the SHA-256 of the public key
    8 bytes   the sequence, big-endian: grows with each message of a key, so that an older one is known as such
    64 bytes  the signature

Signed are the topic, a zero byte, and all bytes of the message before the signature. So there is no canonical form to
agree on, fields of a later version are signed, too, and a message is good for no other site, pipeline or purpose.

The package is needed only by those who sign or check; where it is missing, a ConfigError says how to install it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distree.errors import CHECK_PATH, ConfigError, RemoteProtocolError
from distree.messages.codec import encode
from distree.messages.layout import layout_of
from distree.messages.limits import MAX_SEQUENCE, SEAL_BYTES
from distree.record import record
from distree.regular_files import open_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PREFIX = "ed25519:"
"""What a public key begins with, as it stands in configurations; the rest is base64."""

PRIVATE_PREFIX = "distree-signing-key ed25519:"
"""What a file with a private key begins with."""

KEY_BYTES, ID_BYTES, SEQUENCE_BYTES, SIGNATURE_BYTES = 32, 8, 8, 64
_DOMAIN = b"distree signed message 1\0"
_MARK = b"\xa6signed\xc4" + bytes([SEAL_BYTES])
"""The key `signed` and the head of its value, in MessagePack."""

_JSON_MARK, _JSON_END = b'"signed":"', b'"}'

_REPLACE = "sign with a key that the reader has, or give the reader the public key of whoever signs"


@record
class Seal:
    """Who signed a message, and as which of all that it signed."""

    key: str
    sequence: int
    signature: bytes


class SigningKey:
    """A private key, with which messages are signed."""

    def __init__(self, secret: bytes) -> None:
        self._key: Ed25519PrivateKey = _ed25519().Ed25519PrivateKey.from_private_bytes(secret)
        raw = _serialization()
        self._public: bytes = self._key.public_key().public_bytes(raw.Encoding.Raw, raw.PublicFormat.Raw)
        self.id = _id_of(self._public)

    @property
    def public(self) -> str:
        """The public key, as readers' configurations have it."""
        return PREFIX + base64.b64encode(self._public).decode()

    def sign(self, topic: str, message: Any, sequence: int) -> bytes:
        """Return a message that has a field `signed` as bytes for a topic, signed as number `sequence`."""
        seal = self.id + sequence.to_bytes(SEQUENCE_BYTES, "big")
        is_text = layout_of(type(message)).is_json
        blank = bytes(SEAL_BYTES).hex() if is_text else bytes(SEAL_BYTES)
        payload = encode(replace(message, signed=blank))
        if is_text:
            head = payload[: -len(_JSON_END) - 2 * SEAL_BYTES] + seal.hex().encode()
            return head + self._signature(topic, head).hex().encode() + _JSON_END
        head = payload[:-SEAL_BYTES] + seal
        return head + self._signature(topic, head)

    def _signature(self, topic: str, head: bytes) -> bytes:
        signature: bytes = self._key.sign(_DOMAIN + topic.encode() + b"\0" + head)
        return signature


class PublicKeys:
    """The public keys of those who are believed. Raises ConfigError for one that is none."""

    def __init__(self, texts: Iterable[str]) -> None:
        public = _ed25519().Ed25519PublicKey
        keys = [public_bytes(text) for text in texts]
        self._keys: dict[bytes, Ed25519PublicKey] = {_id_of(key): public.from_public_bytes(key) for key in keys}

    def check(self, topic: str, payload: bytes) -> Seal:
        """Return the seal of a message from a topic; RemoteProtocolError (`signature`) if none of the keys made it."""
        from cryptography.exceptions import InvalidSignature

        head, seal, signature = _split(payload)
        key = self._keys.get(seal[:ID_BYTES])
        if key is None:
            raise RemoteProtocolError("signature", f"signed with another key, {seal[:ID_BYTES].hex()}", _REPLACE)
        try:
            key.verify(signature, _DOMAIN + topic.encode() + b"\0" + head)
        except InvalidSignature:
            raise RemoteProtocolError(
                "signature", "the signature does not fit: changed, or signed for another topic", _REPLACE
            ) from None
        sequence = int.from_bytes(seal[ID_BYTES:], "big")
        if sequence > MAX_SEQUENCE:
            raise RemoteProtocolError("signature", f"number {sequence} is out of range", _REPLACE)
        return Seal(key=seal[:ID_BYTES].hex(), sequence=sequence, signature=signature)


def _split(payload: bytes) -> tuple[bytes, bytes, bytes]:
    """Return what is signed, the key's id with the sequence, and the signature."""
    if payload.startswith(b"{"):
        end = len(payload) - len(_JSON_END)
        start = end - 2 * SEAL_BYTES
        is_signed = (
            payload.endswith(_JSON_END) and payload[max(0, start - len(_JSON_MARK)) : max(0, start)] == _JSON_MARK
        )
        try:
            seal = binascii.unhexlify(payload[start:end]) if is_signed else b""
        except ValueError:
            seal = b""
        head = payload[: end - 2 * SIGNATURE_BYTES]
    else:
        start = len(payload) - SEAL_BYTES
        is_signed = payload[max(0, start - len(_MARK)) : max(0, start)] == _MARK
        seal, head = payload[start:] if is_signed else b"", payload[:-SIGNATURE_BYTES]
    if len(seal) != SEAL_BYTES:
        raise RemoteProtocolError("signature", "not signed", _REPLACE)
    return head, seal[:-SIGNATURE_BYTES], seal[-SIGNATURE_BYTES:]


# ---------------------------------------------------------------- keys as text and as files


def public_bytes(text: str) -> bytes:
    """Return the bytes of a public key; ConfigError for a text that is none."""
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True) if text.startswith(PREFIX) else b""
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{text[:80]!r} is no public key", f"copy what 'distree orchestrator keys' prints: {PREFIX}…")
    return key


def check_public_keys(texts: Sequence[str], key: str) -> None:
    """Raise ConfigError, which names the `key` of a configuration, unless these can be used as public keys."""
    if not texts:
        return
    try:
        PublicKeys(texts)
    except ConfigError as error:
        raise ConfigError(*error.problem.at(key)) from None


def new_signing_key(path: Path) -> SigningKey:
    """Make a key and write it to a file that only its owner may read; ConfigError if there is one or it cannot be."""
    secret = os.urandom(KEY_BYTES)
    key = SigningKey(secret)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path}: exists already", "name another file, or use the key that is in it") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", CHECK_PATH) from None
    with os.fdopen(descriptor, "w", encoding="ascii") as out:
        out.write(PRIVATE_PREFIX + base64.b64encode(secret).decode() + "\n")
    return key


def load_signing_key(path: Path) -> SigningKey:
    """Read a file that `new_signing_key` wrote; ConfigError if it is none, or others may read it."""
    try:
        with open_regular(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(256).decode("ascii", "replace").strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", CHECK_PATH) from None
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{path}: others than its owner may read this private key", f"run: chmod 600 {path}")
    try:
        is_key = text.startswith(PRIVATE_PREFIX)
        secret = base64.b64decode(text.removeprefix(PRIVATE_PREFIX), validate=True) if is_key else b""
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise ConfigError(f"{path}: not a signing key", "make one: distree orchestrator keys --new FILE")
    return SigningKey(secret)


def _id_of(public: bytes) -> bytes:
    return hashlib.sha256(public).digest()[:ID_BYTES]


def _serialization() -> Any:
    from cryptography.hazmat.primitives import serialization

    return serialization


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ConfigError(
            "signatures need the package cryptography",
            "run: pip install 'distree[signed]', or apt install python3-cryptography",
        ) from None
    return ed25519
