"""Events apart from requests: a message that was rejected, a small picture for dashboards."""

from __future__ import annotations

from distree.messages.fields import count, data, declared, ident, text
from distree.messages.limits import MAX_THUMBNAIL_BYTES


@declared(schema="distree.dead/1")
class DeadLetter:
    """A message that broke the protocol: what, where it arrived, how to fix it, and its first bytes in hexadecimal."""

    device: str = ident("Id of the board.")
    topic: str = text("Topic on which the message arrived.", most=512)
    reason: str = text("Which rule the message broke.")
    detail: str = text("What was wrong with the message.", most=512)
    remedy: str = text("How to fix it; empty where nothing can be done.", most=512)
    payload_bytes: int = count("Size of the message in bytes.", unit="bytes")
    head_hex: str = text("First bytes of the message in hexadecimal.", most=128)


@declared(kind="thumbnail")
class Thumbnail:
    """A small picture of the input `request`, as a PNG file, for dashboards; never retained, lost without harm.

    The decoder checks only the signature, not whether the picture behind it is complete.
    """

    request: str = text("Id of the request.")
    png: bytes = data(
        "The picture as a PNG file.", most=MAX_THUMBNAIL_BYTES, start=b"\x89PNG\r\n\x1a\n", what="a PNG file"
    )
