"""The files that `distree submit` is given, and what is sent of each: no more than the origin's bundle needs."""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from distree.bundle.inputs import InputReader
from distree.bundle.inputs.images import looks_like_image, shrink_image
from distree.bundle.windows import request_of
from distree.errors import CHECK_PATH, InputError, RemoteProtocolError
from distree.messages.limits import MAX_MESSAGE_BYTES
from distree.messages.request import InputMessage
from distree.printable import printable
from distree.record import record
from distree.regular_files import read_regular
from distree.tensors import Array

STDIN = "-"
MAX_FILE_BYTES = 64 << 20
MOST_BYTES = MAX_MESSAGE_BYTES - 1024
"""What a message has room for, beside its name and id."""

_PATTERN = frozenset("*?[")


@record
class GivenFile:
    """A file to send; without a path it is what comes on standard input."""

    name: str
    path: Path | None = None


@record
class Prepared:
    """What is sent for a file: one message, or one for each window; and what its sender should know, if anything."""

    messages: tuple[InputMessage, ...]
    note: str = ""


def given_files(arguments: Iterable[str]) -> Iterator[GivenFile | InputError]:
    """Yield the files that arguments name: files, folders, patterns such as `*.png`, and `-` for standard input.

    A folder stands for the files in it, in the order of their names, without hidden ones. A folder or a pattern with
    no file comes as an InputError.
    """
    for argument in arguments:
        path = Path(argument)
        if argument == STDIN:
            yield GivenFile(name="stdin")
        elif path.is_dir():
            yield from _several(argument, path.iterdir())
        elif _PATTERN & set(argument) and not path.exists():
            yield from _several(argument, Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        else:
            yield GivenFile(name=argument, path=path)


def _several(argument: str, paths: Iterable[Path]) -> Iterator[GivenFile | InputError]:
    found = sorted(path for path in paths if path.is_file() and not path.name.startswith("."))
    if not found:
        yield InputError(f"{printable(argument, 256)}: there are no files", "name files, or a folder that has some")
    for path in found:
        yield GivenFile(name=str(path), path=path)


def is_there(file: GivenFile | InputError) -> bool:
    """Whether there is anything to send, or something that cannot be read, which `read_file` tells of."""
    if isinstance(file, InputError):
        return False
    try:
        return file.path is None or file.path.exists()
    except OSError:  # such as a folder above it that this user may not enter
        return True


def missing(file: GivenFile | InputError) -> InputError:
    """Return what is wrong with a file that is not there."""
    if isinstance(file, InputError):
        return file
    return InputError(f"{printable(file.name, 256)}: cannot be read ({os.strerror(errno.ENOENT)})", CHECK_PATH)


def read_file(file: GivenFile) -> bytes:
    """Return the content of a file; InputError if it cannot be read or is too large."""
    try:
        if file.path is None:
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            content = read_regular(file.path, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{printable(file.name, 256)}: cannot be read ({why})", CHECK_PATH) from None
    if len(content) > MAX_FILE_BYTES:
        raise InputError(
            f"{printable(file.name, 256)}: it has more than {MAX_FILE_BYTES:,} bytes", "cut it into several files"
        )
    return content


def reads_images() -> bool:
    """Whether pictures can be decoded here."""
    return importlib.util.find_spec("PIL") is not None


def prepare(name: str, content: bytes, request: str, reader: InputReader | None) -> Prepared:
    """Return what to send for a file.

    With the bundle's `reader`, the origin makes of it exactly what it would make of the whole file: of one input the
    raw values are sent, if they are shorter, and a recording too long for one message is cut here. Without a reader, a
    file is sent as it is, or a picture that is too large smaller than it is.

    Raises RemoteProtocolError, as the origin would, for what the bundle does not take, and InputError for what does not
    fit into a message.
    """
    label = printable(name[-256:], 256)
    if reader is None:
        return _unread(label, content, request)
    found = reader.read_all(content)
    if len(found) == 1:
        payload = min(content, _saved(found[0].raw), key=len)
        if len(payload) > MOST_BYTES:
            raise _too_long(label, len(payload), "use a folder on the board instead (source: {kind: directory})")
        return Prepared(messages=(InputMessage(request=request, name=label, payload=payload),))
    if len(content) <= MOST_BYTES:
        return Prepared(messages=(InputMessage(request=request, name=label, payload=content),))
    windows = (
        InputMessage(request=request_of(request, number, len(found)), name=item.named(label), payload=_saved(item.raw))
        for number, item in enumerate(found, 1)
    )
    return Prepared(messages=tuple(windows))


def _unread(label: str, content: bytes, request: str) -> Prepared:
    if len(content) <= MOST_BYTES:
        return Prepared(messages=(InputMessage(request=request, name=label, payload=content),))
    if not looks_like_image(content):
        raise _too_long(label, len(content), "name its bundle with --bundle, so that it can be cut, or cut it yourself")
    picture, (width, height) = shrink_image(content, MOST_BYTES)
    return Prepared(
        messages=(InputMessage(request=request, name=label, payload=picture),),
        note=f"{label}: {len(content):,} bytes are too many for one message, so it is sent as a picture of "
        f"{width}x{height} pixels, which may change its answer; name its bundle with --bundle to prevent that",
    )


def _too_long(label: str, nbytes: int, remedy: str) -> InputError:
    return InputError(f"{label}: {nbytes:,} bytes do not fit into one message (at most {MOST_BYTES:,})", remedy)


def _saved(array: Array) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def problem_of(error: InputError | RemoteProtocolError, name: str) -> InputError:
    """Return what is wrong with a file, with its name."""
    if isinstance(error, InputError):
        return error
    return InputError(f"{printable(name[-256:], 256)}: {error.detail}", error.remedy)
