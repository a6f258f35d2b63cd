"""Inputs inside JSON, base64 and data URLs, as other programs publish them."""

from __future__ import annotations

import base64
import contextlib
import io
import json

import numpy as np
import pytest
from test_input_reader import reader, saved
from test_wav import wav

from distree.bundle.inputs.wrapped import MAX_JSON_BYTES, unwrap
from distree.errors import RemoteProtocolError

RAW = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
FILE = saved(RAW)
TEXT = base64.b64encode(FILE).decode()
PICTURE = reader("uint8", (3, 4, 1))


def packed(**fields):
    return json.dumps(fields).encode()


HOLDING = {
    "image": packed(image=TEXT),
    "a data URL": packed(image=f"data:application/octet-stream;base64,{TEXT}"),
    "beside other fields": packed(device="cam", timestamp=12, width=4, image=TEXT),
    "capitals": packed(Type="Step", Data=TEXT),
    "a longer name": packed(name="x.jpg", image_base64_string=TEXT),
    "an id before it": packed(image_id="abcd1234", image_data=TEXT),
    "two levels down": packed(payload={"payload": {"image": TEXT}}),
    "the likelier one": packed(data="not base64 !", image=TEXT),
    "without padding": packed(image=TEXT.rstrip("=")),
    "the alphabet of URLs": packed(image=base64.urlsafe_b64encode(FILE).decode()),
    "in lines": packed(image="\r\n".join(TEXT[at : at + 60] for at in range(0, len(TEXT), 60))),
    "raw values": packed(image=base64.b64encode(RAW.tobytes()).decode()),
    "a byte order mark": b"\xef\xbb\xbf" + packed(image=TEXT),
    "base64 alone": TEXT.encode(),
    "base64 in lines": base64.encodebytes(FILE),
    "a data URL alone": b"data:image/png;base64," + TEXT.encode() + b"\n",
}


@pytest.mark.parametrize("how", HOLDING)
def test_what_is_inside_is_the_input(how):
    np.testing.assert_array_equal(PICTURE.read(HOLDING[how]), RAW)


def test_a_picture_inside_is_read_as_from_its_file():
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    with io.BytesIO() as file:
        pillow.fromarray(RAW[..., 0]).save(file, "PNG")
        content = file.getvalue()
    for wrapped in (packed(image=base64.b64encode(content).decode()), base64.b64encode(content)):
        np.testing.assert_array_equal(PICTURE.read(wrapped), RAW)


def test_a_field_that_the_user_names():
    content = packed(before={"thumb": [{"x": 1}, {"b64": TEXT}]}, image="no input", **{"a.b": TEXT})
    for path in ("before.thumb.1.b64", "a.b"):
        np.testing.assert_array_equal(PICTURE.read_named(content, path).inputs[0].raw, RAW)
    with pytest.raises(RemoteProtocolError, match=r"no field 'thumb' \(its fields: before, image, a\.b\)"):
        PICTURE.read_named(content, "thumb")
    with pytest.raises(RemoteProtocolError, match="its field 'before' is an object"):
        PICTURE.read_named(content, "before")
    np.testing.assert_array_equal(PICTURE.read_named(FILE, "before").inputs[0].raw, RAW)


def test_name_and_request_id_come_with_it():
    found = PICTURE.read_named(packed(image=TEXT, name="shoe\n.png", request="r-1", id="always the same"))
    assert (found.name, found.request) == ("shoe\\n.png", "r-1")
    assert PICTURE.read_named(packed(image=TEXT, name=7, id="x")).request is None
    for wrong in ("", "x" * 65, "a\nb", 7):
        with pytest.raises(RemoteProtocolError, match="`request` is not a text of 1 to 64 characters"):
            PICTURE.read_named(packed(image=TEXT, request=wrong))


REFUSED = {
    "of another program": (packed(illuminance=12, battery=97), "no field of it is known to hold an input (its fields: illuminance, battery)"),
    "empty": (b"{}", "no field of it is known to hold an input (it has none)"),
    "not base64": (packed(image="http://hub/a.jpg"), "its field 'image' is not base64"),
    "a number": (packed(image=7), "no field of it is known"),
    "cut off": (packed(image=TEXT)[:-5], "damaged from character"),
    "too deep": (b'{"a":' * 100_000, "damaged somewhere, or cut off"),
    "no base64 in a data URL": (packed(image="data:image/svg+xml,%3Csvg"), "is a data URL without base64"),
    "numbers for a picture": (packed(values=[1, 2, 3]), "expected an image file, 12 raw bytes or an .npy array (uint8 (3, 4, 1)), received JSON"),
    "a wrong array": (packed(image=base64.b64encode(saved(np.zeros(3))).decode()), "expected uint8 (3, 4, 1), received float64"),
    "JSON in JSON": (packed(image=base64.b64encode(packed(image=TEXT)).decode()), "received JSON"),
    "no UTF-8": (b'{"image": "\xff\xfe"}', "damaged somewhere"),
    "rows without end": (b"[" + b"[]," * 200_000 + b"[]]", "more than 131,072 lists and objects"),
    "too much": (packed(image="A" * MAX_JSON_BYTES), "at most 2,097,152 are read"),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_what_is_no_input_says_so(how):
    content, why = REFUSED[how]
    with pytest.raises(RemoteProtocolError) as caught:
        PICTURE.read(content)
    assert why in caught.value.detail
    assert caught.value.remedy
    assert len(caught.value.detail) <= 320


# ---------------------------------------------------------------- numbers

MOTION = reader("float32", (4, 2), 100.0, ("x", "y"))
PLAIN = reader("float32", (4, 2))
ROWS = [[0.5, 1.0], [1.5, 2.0], [-3.0, 4e3], [0.0, 9.0]]
FLAT = [value for row in ROWS for value in row]


@pytest.mark.parametrize(
    "value",
    [ROWS, {"values": ROWS}, {"payload": {"interval_ms": 10, "values": ROWS}}, FLAT, [FLAT]],
)
def test_numbers_are_a_recording(value):
    np.testing.assert_array_equal(PLAIN.read(json.dumps(value).encode()), np.array(ROWS, np.float32))


def test_objects_name_the_columns_and_the_rules_are_those_of_tables():
    rows = [{"time_ms": 10 * k, "y": y, "label": "walk", "x": x} for k, (x, y) in enumerate(ROWS)]
    (found,) = MOTION.read_all(json.dumps(rows).encode())
    np.testing.assert_array_equal(found.raw, np.array(ROWS, np.float32))
    assert found.label == "walk"
    slow = [{**row, "time_ms": 50 * k} for k, row in enumerate(rows)]
    with pytest.raises(RemoteProtocolError, match="sampled at 20 Hz, but the bundle expects 100 Hz"):
        MOTION.read(json.dumps(slow).encode())


def test_one_channel_is_a_list():
    made = reader("int16", (5,))
    assert made.read(b"[1, -2, 3, 4, 5]").tolist() == [1, -2, 3, 4, 5]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([], "the list of numbers is empty"),
        ([[1, None]] * 4, "the list holds null where a number is expected"),
        ([[1, True]] * 4, "the list holds true or false"),
        ([[1, [2]]] * 4, "the list holds a list"),
        ([[1, float("nan")]] * 4, "'nan' in column '2' is not a finite number"),
        ([[1, 1e999]] * 4, "is not a finite number"),
        ([[1, 2]] * 3, "the recording has 3 samples, fewer than a window"),
        ([[1, 2], [3]], "it has 1 cells, but the first line has 2"),
        ([{"x": 1}, {"z": 1}], "the objects in the list have different fields"),
        (["a", "b"], "is not a finite number"),
    ],
)
def test_what_are_no_rows_say_so(value, why):
    with pytest.raises(RemoteProtocolError) as caught:
        PLAIN.read(json.dumps(value).encode())
    assert why in caught.value.detail
    assert caught.value.reason == "json"


def test_anything_else_is_not_touched():
    for content in (
        b"",
        b"hello",
        FILE,
        RAW.tobytes(),
        b"[section]\nx=1",
        b"{{ template }}",
        b"x,y\n1,2\n",
        wav(bytes(8)),
    ):
        assert unwrap(content) is None


def test_damaged_json_is_refused_or_read():
    rng = np.random.default_rng(2)
    whole = packed(device="cam", image=TEXT)
    for _ in range(500):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = rng.integers(0, 256)
        with contextlib.suppress(RemoteProtocolError):
            PICTURE.read_all(bytes(damaged))
