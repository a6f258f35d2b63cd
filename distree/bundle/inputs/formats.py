"""What bytes are, by how they begin: so that a refusal can name it, and nothing is taken for raw values by its length.

Only beginnings of three bytes and more are listed, and of three only few, since raw values may begin with anything.
"""

from __future__ import annotations

import re

from distree.bundle.inputs.images import looks_like_image
from distree.bundle.inputs.tables import as_utf8
from distree.bundle.inputs.wav import looks_like_wav
from distree.bundle.inputs.wrapped import looks_like_base64, looks_like_json
from distree.bundle.npy import MAGIC
from distree.printable import quoted

_BEGINNINGS = (
    (b"PK\x03\x04", "a .zip or .npz archive"),
    (b"\x1f\x8b\x08", "a gzip file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"fLaC", "a FLAC file"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"%PDF", "a PDF file"),
    (b"%!PS", "a PostScript file"),
    (b"II*\0", "a TIFF file"),
    (b"MM\0*", "a TIFF file"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"8BPS", "a Photoshop file"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"FORM", "an AIFF file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x80\x04\x95", "a Python pickle"),
    (MAGIC, "an .npy array"),
)
_BRANDS = (
    ((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "a HEIC picture"),
    ((b"avif", b"avis"), "an AVIF picture"),
    ((b"M4A ",), "an MPEG-4 audio file"),
)
_MARKUP = (
    (re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|script)\b", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<svg\b", re.IGNORECASE), "an SVG drawing"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<\?xml\b"), "an XML file"),
)
_PLAIN = re.compile(rb"[\t\n\r\x20-\x7e]*")
_NUMBERS = re.compile(rb"(?=[^0-9]*[0-9])[0-9eE+.\-\"]*[,;\t\r\n ][0-9eE+.,;\-\"\t\r\n ]*")
_LETTERS = re.compile(rb"[A-Za-z]")
_SPACES = re.compile(rb"[\s]")
_SHOWN = 40


def known_format(content: bytes) -> str:
    r"""Return what bytes are, such as "a PDF file"; "" if their beginning says nothing.

    >>> known_format(b"%PDF-1.7"), known_format(b"\x00\x00\x00\x18ftypheic"), known_format(bytes(784))
    ('a PDF file', 'a HEIC picture', '')
    """
    for start, kind in _BEGINNINGS:
        if content.startswith(start):
            return kind
    if content[4:8] == b"ftyp":
        return next((kind for brands, kind in _BRANDS if content[8:12] in brands), "an MPEG-4 video")
    for pattern, kind in _MARKUP:
        if pattern.match(content[:256]):
            return kind
    if content[:4] == b"RIFF" and content[8:12] == b"AVI ":
        return "an AVI video"
    if looks_like_wav(content):
        return "a WAV file"
    if looks_like_image(content):
        return "an image file"
    if looks_like_json(content):
        return "JSON"
    if looks_like_base64(content):
        return "base64"
    return "text" if _NUMBERS.fullmatch(content) or _is_prose(content) else ""


def _is_prose(content: bytes) -> bool:
    """Whether bytes are text in words: no picture has mostly letters, some spaces, and nothing beyond ASCII."""
    if not content or _PLAIN.fullmatch(content) is None:
        return False
    letters, spaces = len(_LETTERS.findall(content)), len(_SPACES.findall(content))
    return 2 * letters >= len(content) and 20 * spaces >= len(content)


def described(content: bytes) -> str:
    """Say what was received, for a refusal.

    >>> described(b""), described(b"404 not found"), described(bytes(3))
    ('nothing (0 bytes)', "text of 13 bytes, '404 not found'", '3 bytes')
    """
    if not content:
        return "nothing (0 bytes)"
    kind = known_format(content)
    content = as_utf8(content).removeprefix(b"\xef\xbb\xbf")
    if (kind or "text") == "text" and _PLAIN.fullmatch(content[:65536]):
        return f"text of {_bytes(content)}, {quoted(content[: _SHOWN + 1].decode('latin-1').strip(), _SHOWN)}"
    return f"{kind} of {_bytes(content)}" if kind else _bytes(content)


def what_to_do(content: bytes, usual: str) -> str:
    """Return how to get an input out of what was received; `usual` is the form that is expected."""
    if not content:
        return "see that it is written to its end before it is handed over"
    kind = known_format(content)
    if kind in ("an HTML page", "text"):
        return "see what was saved or published in place of the input"
    if "archive" in kind or kind == "a gzip file":
        return "unpack it"
    return usual


def _bytes(content: bytes) -> str:
    return f"{len(content):,} byte{'s' if len(content) != 1 else ''}"
