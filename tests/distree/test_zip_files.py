"""Zip files from anywhere: small tables of contents, two ways of compression, entries within bounds."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile

import pytest

from distree.zip_files import open_zip, read_entry


def packed(entries, method=zipfile.ZIP_DEFLATED, comment=b""):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.comment = comment
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("comment", [b"", b"a comment", b"x" * 65_535])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_usual_archives_are_opened(comment, method):
    content = packed([("a", b"one"), ("b", b"two" * 9)], method, comment)
    with open_zip(io.BytesIO(content), 2) as archive:
        assert [read_entry(archive, entry, 27) for entry in archive.infolist()] == [b"one", b"two" * 9]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_without_a_limit_on_what_comes_out_is_refused(method):
    with pytest.raises(zipfile.BadZipFile, match="compressed by method"):
        open_zip(io.BytesIO(packed([("a", bytes(1 << 20))], method)), 2)


def test_too_many_entries_are_refused_before_objects_are_made_of_them():
    content = packed([(f"{k}", b"") for k in range(20_000)])
    tracemalloc.start()
    try:
        with pytest.raises(zipfile.BadZipFile, match="more than 100 entries"):
            open_zip(io.BytesIO(content), 100)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(zipfile.BadZipFile, match="more than 19,999 entries"):
        open_zip(io.BytesIO(content), 19_999)


def test_a_table_of_contents_of_the_long_form_is_measured_too():
    content = bytearray(packed([("a", b"one")]))
    end = content.rfind(b"PK\x05\x06")
    table = int.from_bytes(content[end + 16 : end + 20], "little")
    size = end - table
    long_end = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, table)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    longer = bytes(content[:end]) + long_end + locator + bytes(content[end:])
    with open_zip(io.BytesIO(longer), 1) as archive:
        assert read_entry(archive, archive.infolist()[0], 3) == b"one"
    bad = longer.replace(struct.pack("<QQ", size, table), struct.pack("<QQ", 1 << 33, 0))
    with pytest.raises(zipfile.BadZipFile, match="room for more than 1 entries"):
        open_zip(io.BytesIO(bad), 1)


def test_a_bomb_is_read_no_further_than_allowed():
    content = packed([("bomb", bytes(64 << 20))])
    assert len(content) < 100_000
    with open_zip(io.BytesIO(content), 1) as archive:
        tracemalloc.start()
        try:
            with pytest.raises(OSError, match="longer than 1,048,576 bytes"):
                read_entry(archive, archive.infolist()[0], 1 << 20)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x05\x06", b"text" * 30, packed([("a", b"b")])[:-10]],
    ids=["empty", "its end's mark alone", "text", "cut off"],
)
def test_anything_else_is_refused(content):
    with pytest.raises(zipfile.BadZipFile):
        open_zip(io.BytesIO(content), 9)
