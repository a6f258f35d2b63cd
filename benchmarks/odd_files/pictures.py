"""Odd pictures, made of one array: uint8 (height, width, 1 or 3)."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from distree.tensors import Array

_ORIENTATION = 0x0112
_UPRIGHT = {
    1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
    7: "TRANSVERSE", 8: "ROTATE_270",
}  # fmt: skip
"""How a picture lies that EXIF's orientation puts upright again."""


def image_of(raw: Array) -> Image.Image:
    """Return an array as Pillow's image, of mode L or RGB."""
    return Image.fromarray(raw[..., 0] if raw.shape[2] == 1 else raw)


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    """Return an image as a file."""
    with io.BytesIO() as file:
        image.save(file, kind, **how)
        return file.getvalue()


def turned(image: Image.Image, orientation: int, kind: str = "PNG", **how: Any) -> bytes:
    """Return a file of the image lying as EXIF's `orientation` says."""
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    way = _UPRIGHT[orientation]
    return saved(image if way is None else image.transpose(Image.Transpose[way]), kind, exif=exif, **how)


def png(array: Array, colour: int, palette: bytes = b"", bits: int | None = None, size: Any = None) -> bytes:
    """Write a PNG file by its specification: what Pillow does not write. `colour` is the header's colour type."""
    height, width = size or array.shape[:2]
    depth = bits or 8 * array.itemsize
    rows = array.astype(array.dtype.newbyteorder(">")).reshape(array.shape[0], -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    chunks += [(b"PLTE", palette)] if palette else []
    chunks += [(b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def sixteen_bits(raw: Array) -> bytes:
    """Return a PNG file of 16 bits per channel."""
    return png(raw.astype(np.uint16) * 257, 0 if raw.shape[2] == 1 else 2)


def with_alpha(image: Image.Image, alpha: int | Array = 255) -> Image.Image:
    """Return an image with an alpha channel."""
    clear = image.convert("LA" if image.mode == "L" else "RGBA")
    shade = Image.new("L", image.size, alpha) if isinstance(alpha, int) else Image.fromarray(alpha)
    clear.putalpha(shade)
    return clear


def _wrong_crc(content: bytes) -> bytes:
    at = content.index(b"IDAT") + 4
    size = int.from_bytes(content[at - 8 : at - 4], "big")
    return content[: at + size] + bytes([content[at + size] ^ 0xFF]) + content[at + size + 1 :]


def _with_app1(jpeg: bytes, body: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


_BAD_THUMBNAIL = (
    b"Exif\0\0II*\0\x08\0\0\0"
    + struct.pack("<HHHIII", 1, _ORIENTATION, 3, 1, 1, 26)
    + struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 9_999, 0x0202, 4, 1, 77, 0)
)
"""EXIF data, upright, whose thumbnail lies beyond their end."""


@cache
def _huge() -> bytes:
    across = np.linspace(0, 255, 8000, dtype=np.uint8)
    return saved(Image.fromarray(np.broadcast_to(across, (6000, 8000))), "JPEG", quality=20)


@cache
def _bomb() -> bytes:
    return png(np.zeros((30_000, 3750), np.uint8), 0, bits=1, size=(30_000, 30_000))


def _ycck(image: Image.Image) -> bytes:
    """Return a JPEG file of YCCK as Photoshop writes it: Pillow writes CMYK, each value as its complement."""
    cyan, magenta, yellow, black = image.convert("CMYK").split()
    turned_over = [
        Image.fromarray(255 - np.asarray(one))
        for one in Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr").split()
    ]
    content = saved(Image.merge("CMYK", (*turned_over, black)), "JPEG", quality=95, subsampling=0)
    at = content.index(b"Adobe") + 11
    return content[:at] + b"\2" + content[at + 1 :]


def _ascii(raw: Array) -> bytes:
    height, width, channels = raw.shape
    values = "\n".join(" ".join(map(str, row)) for row in raw.reshape(height, -1).tolist())
    return f"P{2 if channels == 1 else 3}\n# a comment\n{width} {height}\n255\n{values}\n".encode()


def _bitmap_top_down(image: Image.Image) -> bytes:
    upside_down = image.convert("RGB").transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    content = bytearray(saved(upside_down, "BMP"))
    height = int.from_bytes(content[22:26], "little")
    content[22:26] = struct.pack("<i", -height)
    return bytes(content)


def _bitmap_core(raw: Array) -> bytes:
    """Write a bitmap of OS/2: its header has 12 bytes."""
    colours = np.repeat(raw, 3, axis=2) if raw.shape[2] == 1 else raw
    height, width = raw.shape[:2]
    padding = bytes(-3 * width % 4)
    rows = b"".join(row[:, ::-1].tobytes() + padding for row in colours[::-1])
    return (
        b"BM" + struct.pack("<IHHI", 26 + len(rows), 0, 0, 26) + struct.pack("<IHHHH", 12, width, height, 1, 24) + rows
    )


def pictures(raw: Array) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file."""
    image = image_of(raw)
    grey, colour = image.convert("L"), image.convert("RGB")
    other = Image.fromarray(255 - np.asarray(image))
    for orientation in range(1, 9):
        yield f"exif{orientation}.png", turned(image, orientation)
    yield "exif6.jpg", turned(image, 6, "JPEG", quality=95)
    yield "exif-thumbnail-damaged.jpg", _with_app1(saved(image, "JPEG", quality=95), _BAD_THUMBNAIL)
    yield "exif-damaged.jpg", _with_app1(saved(image, "JPEG", quality=95), b"Exif\0\0MM\0*\xff\xff\xff\xff")
    yield "grey16.png", png(np.asarray(grey).astype(np.uint16) * 257, 0)
    yield "rgb16.png", png(np.asarray(colour).astype(np.uint16) * 257, 2)
    yield "alpha16.png", png(np.asarray(with_alpha(colour)).astype(np.uint16) * 257, 6)
    yield "1-bit.png", saved(grey.convert("1"), "PNG")
    yield (
        "4-levels.png",
        png(
            np.packbits(
                np.unpackbits(np.asarray(grey)[:, : grey.width // 4 * 4, None], axis=2)[:, :, :2].reshape(
                    grey.height, -1
                ),
                axis=1,
            ),
            0,
            bits=2,
            size=(grey.height, grey.width // 4 * 4),
        ),
    )
    yield "palette.png", saved(colour.quantize(64), "PNG")
    yield "palette-transparent.png", saved(colour.quantize(64), "PNG", transparency=0)
    yield "alpha-opaque.png", saved(with_alpha(image), "PNG")
    yield "alpha-half.png", saved(with_alpha(image, 128), "PNG")
    yield "alpha-clear.png", saved(with_alpha(image, 0), "PNG")
    yield "la.png", saved(with_alpha(grey), "PNG")
    yield "key-colour.png", saved(grey, "PNG", transparency=0)
    yield "rgb.png", saved(colour, "PNG")
    yield "grey.png", saved(grey, "PNG")
    yield "interlaced.jpg", saved(colour, "JPEG", progressive=True, quality=95)
    yield "cmyk.jpg", saved(colour.convert("CMYK"), "JPEG", quality=95)
    yield "ycck.jpg", _ycck(colour)
    yield (
        "profile.jpg",
        saved(
            colour, "JPEG", quality=95, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        ),
    )
    yield "profile-damaged.png", saved(image, "PNG", icc_profile=b"no profile at all")
    yield "cut.jpg", saved(image, "JPEG", quality=95)[:-200]
    yield "cut.png", saved(image, "PNG")[:-100]
    yield "header-only.png", saved(image, "PNG")[:33]
    yield "crc.png", _wrong_crc(saved(image, "PNG"))
    yield "animated.gif", saved(image, "GIF", save_all=True, append_images=[other])
    yield "transparent.gif", saved(colour.quantize(64), "GIF", transparency=0)
    yield "animated.webp", saved(colour, "WEBP", save_all=True, append_images=[other.convert("RGB")], lossless=True)
    yield "animated.png", saved(image, "PNG", save_all=True, append_images=[other])
    yield "alpha.webp", saved(with_alpha(colour, 128), "WEBP", lossless=True)
    yield "lossy.webp", saved(colour, "WEBP", quality=80)
    yield "8-bit.bmp", saved(grey, "BMP")
    yield "24-bit.bmp", saved(colour, "BMP")
    yield "32-bit.bmp", saved(colour.convert("RGBA"), "BMP")
    yield "top-down.bmp", _bitmap_top_down(image)
    yield "os2.bmp", _bitmap_core(raw)
    yield "ascii.ppm", _ascii(raw)
    yield "binary.ppm", saved(image, "PPM")
    yield "bits.pbm", saved(grey.convert("1"), "PPM")
    yield "16-bit.pgm", b"P5 %d %d 65535\n" % grey.size + (np.asarray(grey).astype(">u2") * 257).tobytes()
    yield "floats.pfm", b"Pf\n%d %d\n-1.0\n" % grey.size + np.asarray(grey)[::-1].astype("<f4").tobytes()
    yield "1x1.png", saved(Image.new("RGB", (1, 1), (200, 30, 90)), "PNG")
    yield "wide.png", saved(image.resize((2000, 4)), "PNG")
    yield "tall.jpg", saved(image.resize((3, 900)), "JPEG")
    yield "48-megapixels.jpg", _huge()
    yield "bomb.png", _bomb()
    yield "photo.tiff", saved(image, "TIFF")
    yield "photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    yield "photo.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200)
    yield "photo.jxl", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200)
    yield "drawing.svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'
    yield "page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
