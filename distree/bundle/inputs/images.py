"""From an image file to a raw input, by stated rules that do not depend on who wrote the file.

The first picture of an animation is used. A picture whose EXIF data say how to turn it is turned. Transparent parts
show the background. Of 16-bit values the upper 8 bits count. CMYK becomes RGB without a colour profile; colour
becomes grey by ITU-R 601-2 (0.299 R + 0.587 G + 0.114 B). Then it is fitted: see `fit`.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from distree.errors import RemoteProtocolError
from distree.tensors import Array

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGE_BYTES = 64 << 20
"""Most memory to decode an image: 16 million pixels in colour, half as many with transparency or turned,
and fewer of a WebP. A JPEG that is much larger than the input is decoded at an eighth of its size.
"""

MAX_PIXELS = 80_000_000
"""The most pixels of any image, since decoding takes time too."""

IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")
"""What peers may send. Pillow knows many more: old ones, little tested, and one that starts Ghostscript."""

_AS_THEY_ARE = ("L", "RGB")
"""Modes of Pillow that are shrunk first and then converted, which takes less memory."""

_ONE_BYTE = ("1", "L", "P")
"""Modes that take one byte per pixel; others take four."""

_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112  # EXIF's tag; 5 to 8 lie on their side
_BITMAP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


def looks_like_image(content: bytes) -> bool:
    """Whether bytes begin as a file of one of `IMAGE_FORMATS` does.

    >>> looks_like_image(b"P5 2 2 255 abcd"), looks_like_image(b"P5Q5")
    (True, False)
    """
    if content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")):
        return True
    if content[:4] == b"RIFF":
        return content[8:12] == b"WEBP"
    if content[:2] == b"BM":
        return int.from_bytes(content[14:18], "little") in _BITMAP_HEADERS
    return content[:1] == b"P" and content[1:2] in b"123456fF" and content[2:3].isspace()


def read_image(content: bytes, shape: tuple[int, ...], resize: str, background: str) -> Array:
    """Decode, turn, convert and fit an image: uint8 of `shape`, (height, width, 1 or 3).

    Raises RemoteProtocolError("image") if it cannot be decoded, is too large, or Pillow is not installed.
    """
    try:
        # Pillow is an extra and takes long to import: only boards that receive image files pay for it.
        from PIL import Image
    except ImportError:
        raise RemoteProtocolError("image", "image files need Pillow", "run: pip install 'distree[images]'") from None
    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            decoded = _upright(image, (width, height), mode)
            opaque = _opaque(decoded, mode, background)
            return np.asarray(fit(opaque, (width, height), resize, background).convert(mode), np.uint8).reshape(shape)
    except RemoteProtocolError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises many kinds for damaged images; none may end a board
        raise _unreadable(content, error) from None


_WHY = (
    (("cannot identify", "bad magic", "not a ", "unknown", "unsupported", "unrecognized"), "its header is damaged"),
    (("checksum", "crc", "broken png"), "a checksum is wrong"),
    (("truncated", "cut", "not enough", "unpack", "eof", "end of file", "no more", "premature"), "it is cut off"),
    (("decompression bomb", "memory", "too large"), "it has more pixels than are read"),
)
"""By what Pillow's exceptions say, which is meant for programmers and names its own objects."""


def _unreadable(content: bytes, error: Exception) -> RemoteProtocolError:
    what = f"{len(content):,} bytes are not a readable image: {_why(error)}"
    return RemoteProtocolError("image", what, "save it again, as a JPEG or a PNG")


def _why(error: Exception) -> str:
    said = f"{type(error).__name__} {error}".lower()
    return next((why for words, why in _WHY if any(word in said for word in words)), "it is damaged")


def shrink_image(content: bytes, most_bytes: int) -> tuple[bytes, tuple[int, int]]:
    """Return an image as a PNG file of at most `most_bytes`, made smaller, and its size (width, height).

    It is turned upright, and keeps its aspect and its transparency. Raises RemoteProtocolError("image") as `read_image`
    does, and if no size is small enough.
    """
    try:
        from PIL import Image
    except ImportError:
        raise RemoteProtocolError("image", "image files need Pillow", "run: pip install 'distree[images]'") from None
    for side in _SMALLER:
        try:
            with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image, io.BytesIO() as file:
                picture = _upright(image, (side // 2, side // 2), "RGB")
                is_clear = picture.mode in _WITH_ALPHA or "transparency" in picture.info
                picture = picture.convert("RGBA") if is_clear else _opaque(picture, "RGB", "black")
                picture.thumbnail((side, side), Image.Resampling.BILINEAR)
                picture.save(file, "PNG")
                if file.tell() <= most_bytes:
                    return file.getvalue(), picture.size
        except RemoteProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - as in `read_image`
            raise _unreadable(content, error) from None
    raise RemoteProtocolError("image", f"it does not fit into {most_bytes:,} bytes", "shrink it first")


_SMALLER = (1024, 724, 512, 362, 256, 128)
"""Longer sides, in pixels, of what a picture is made into for a message; the first that fits is taken."""


def fit_picture(picture: Array, shape: tuple[int, ...], resize: str, background: str) -> Array:
    """Convert and fit a decoded picture, uint8 (height, width, 1 or 3), as `read_image` does with that of a file.

    Returns uint8 of `shape`. Raises ImportError without Pillow.
    """
    from PIL import Image

    height, width, channels = shape
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    fitted = fit(image, (width, height), resize, background)
    return np.asarray(fitted.convert("L" if channels == 1 else "RGB"), np.uint8).reshape(shape)


def fit(image: Image, size: tuple[int, int], resize: str, background: str) -> Image:
    """Resize an image (modes L and RGB) to `size`, (width, height), bilinear.

    `crop` cuts the largest part of the right aspect out of the middle, `pad` keeps all of it and adds bars, `stretch`
    changes the aspect.
    """
    from PIL import Image

    if image.size == size:
        return image
    width, height = size
    across, down = image.width / width, image.height / height
    if resize == "pad" and across != down:
        scale = max(across, down)
        inner = (max(1, round(image.width / scale)), max(1, round(image.height / scale)))
        canvas = Image.new(image.mode, size, background)
        canvas.paste(
            image.resize(inner, Image.Resampling.BILINEAR), ((width - inner[0]) // 2, (height - inner[1]) // 2)
        )
        return canvas
    box = None
    if resize == "crop" and across != down:
        scale = min(across, down)
        left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
        box = (left, top, image.width - left, image.height - top)
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def _upright(image: Image, size: tuple[int, int], mode: str) -> Image:
    """Decode an image, of which only the header is read, and turn it as its EXIF data say."""
    from PIL import Image

    is_jpeg = image.format == "JPEG"
    full = image.size
    if is_jpeg:
        # Decoded to an eighth of its size at most, or in grey, for less time and memory; either side may be the long
        # one.
        image.draft(mode, (2 * max(size), 2 * max(size)))
    is_progressive = bool(image.info.get("progressive") or image.info.get("progression"))
    check_size(image.size, image.mode, mode, image.format or "", full=full, is_progressive=is_progressive)
    turned = _TURNS.get(_orientation(image))
    if turned is None:
        return image
    check_size(image.size, image.mode, mode, image.format or "", full=full, copies=2, is_progressive=is_progressive)
    return image.transpose(Image.Transpose[turned])


_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
"""What puts an image upright, by EXIF's orientation."""


def _orientation(image: Image) -> Any:
    with contextlib.suppress(Exception):  # damaged EXIF data turn nothing
        return image.getexif().get(_ORIENTATION, 1)
    return 1


def _opaque(image: Image, mode: str, background: str) -> Image:
    """Return an image of mode L or RGB."""
    from PIL import Image

    if image.mode in _SIXTEEN_BITS:
        upper = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        return Image.fromarray(upper.astype(np.uint8))
    if image.mode == "F":
        raise RemoteProtocolError("image", "the image has floating-point values", "save it with 8 bits per channel")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        seen = image.convert("RGBA")
        canvas = Image.new("RGB", seen.size, background)
        canvas.paste(seen, mask=seen)
        return canvas
    return image if image.mode in _AS_THEY_ARE else image.convert(mode)


def check_size(
    size: tuple[int, int],
    mode: str,
    target: str,
    kind: str = "",
    *,
    full: tuple[int, int] | None = None,
    copies: int = 1,
    is_progressive: bool = False,
) -> None:
    """Refuse an image that would take too much memory, before it is decoded; modes are Pillow's.

    `size` is (width, height) as decoded, `full` as stored, if a JPEG is decoded smaller; `copies` are in memory at
    once.
    """
    per_pixel = copies * (1 if mode in _ONE_BYTE else 4)
    if mode not in _AS_THEY_ARE:
        per_pixel += 1 if target == "L" else 4
    if kind == "WEBP":
        per_pixel += 8  # its decoder keeps two canvases of its own
    width, height = size
    needed, (stored_width, stored_height) = width * height * per_pixel, full or size
    stored = stored_width * stored_height
    if is_progressive:
        needed += stored * 6  # coefficients of the whole image, two bytes each in up to three planes
        per_pixel += 6
    if needed > MAX_IMAGE_BYTES or stored > MAX_PIXELS:
        most = min(MAX_IMAGE_BYTES // per_pixel, MAX_PIXELS) / 1e6
        raise RemoteProtocolError(
            "image",
            f"{stored_width}x{stored_height} pixels are too many; at most {most:.0f} million are read",
            "shrink it first",
        )
