"""One reader for all ways in: what a file is, its content says, and what is not taken is refused with what is."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from test_wav import wav

from distree.bundle.inputs import InputReader
from distree.bundle.manifest import InputSpec, Preprocess, WindowRule
from distree.errors import RemoteProtocolError


def reader(dtype, shape, rate_hz=None, channels=(), **rules):
    return InputReader(
        InputSpec(dtype=dtype, shape=shape, rate_hz=rate_hz, channels=channels), Preprocess(layout="nhwc", **rules)
    )


def saved(array):
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def refused(made, content, reason, why):
    with pytest.raises(RemoteProtocolError, match=why) as caught:
        made.read_all(content)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- arrays and raw values

KINDS = [
    ("uint8", (6, 5, 3)),
    ("uint8", (4,)),
    ("int8", (7, 2, 1)),
    ("int16", (40,)),
    ("float32", (9, 3)),
    ("float16", (8,)),
]


@pytest.mark.parametrize(("dtype", "shape"), KINDS)
def test_raw_values_and_arrays_are_the_input(dtype, shape):
    made = reader(dtype, shape)
    array = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    assert made.nbytes == array.nbytes
    for content in (array.tobytes(), saved(array), saved(array.astype(array.dtype.newbyteorder(">")))):
        (found,) = made.read_all(content)
        np.testing.assert_array_equal(found.raw, array)
        assert (found.raw.dtype, found.at, found.label) == (array.dtype, "", None)


@pytest.mark.parametrize(("dtype", "shape"), KINDS)
def test_arrays_of_another_dtype_or_shape_are_refused_with_what_is_expected(dtype, shape):
    made = reader(dtype, shape)
    other = "float32" if dtype != "float32" else "int16"
    refused(made, saved(np.zeros(shape, other)), "dtype", rf"expected {dtype} \(.*\), received {other}")
    refused(made, saved(np.zeros((*shape, 1), dtype)), "shape", rf"expected \(.*\) {dtype}, received \(")


def test_an_array_of_as_many_bytes_but_channels_first_is_refused():
    made = reader("uint8", (6, 5, 3), range="0..1")
    refused(made, saved(np.zeros((3, 6, 5), np.uint8)), "shape", r"expected \(6, 5, 3\) uint8, received \(3, 6, 5\)")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", r"nothing \(0 bytes\)"), (b"hello", "text of 5 bytes, 'hello'"), (b"PK\x03\x04" + bytes(60), "a .zip or .npz archive of 64"),
        (b"fLaC....", "a FLAC file of 8 bytes"), (b"%PDF-1.7", "a PDF file"), (b"II*\0....", "a TIFF file"),
    ],
)  # fmt: skip
def test_what_is_nothing_of_these_is_refused_with_what_is_taken(content, told):
    made = reader("float32", (4, 3, 2), mean=(0.0,), std=(1.0,))
    refused(
        made, content, "size", rf"expected 96 raw bytes or an \.npy array \(float32 \(4, 3, 2\)\), received.*{told}"
    )
    refused(reader("int16", (7,), 8000.0), content, "size", rf"expected a WAV or CSV file, 14 raw bytes.*{told}")
    refused(reader("uint8", (7, 7, 1)), content, "image", rf"expected an image file, 49 raw bytes.*{told}")


def test_pictures_are_no_input_of_a_bundle_for_sound_nor_sounds_of_one_for_pictures():
    refused(reader("int16", (7,), 8000.0), b"\xff\xd8\xff" + bytes(60), "size", "received an image file")
    refused(reader("uint8", (6, 5, 3)), wav(bytes(20)), "image", "expected an image file, .* received a WAV file")
    refused(reader("int16", (7,)), wav(bytes(20)), "size", "expected a CSV file, .* received a WAV file")


# ---------------------------------------------------------------- sound

HALF = WindowRule(hop=2)


def sound(values, **options):
    return wav(np.asarray(values, "<i2").tobytes(), **options)


def test_a_wav_file_of_one_window_is_the_input():
    (found,) = reader("int16", (4,), 16000.0).read_all(sound([1, -2, 3, -4]))
    assert (found.raw.tolist(), found.raw.dtype, found.at) == ([1, -2, 3, -4], np.int16, "")
    (found,) = reader("float32", (4, 1), 16000.0).read_all(sound([16384, -32768, 0, 8192]))
    assert (found.raw[:, 0].tolist(), found.raw.shape) == ([0.5, -1.0, 0.0, 0.25], (4, 1))


def test_a_longer_one_is_its_windows_named_by_their_time():
    made = reader("int16", (4,), 16000.0, window=HALF)
    found = made.read_all(sound(range(9)))
    assert [item.raw.tolist() for item in found] == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    assert [item.named("a.wav") for item in found] == ["a.wav@0s", "a.wav@0.000125s", "a.wav@0.00025s"]
    assert found[1].named("x" * 300) == "x" * 246 + "@0.000125s"
    with pytest.raises(RemoteProtocolError, match="the recording has 3 windows, but only one is expected"):
        made.read(sound(range(9)))
    with pytest.raises(RemoteProtocolError, match="the recording has 3 windows, but at most 2 are read"):
        made.read_all(sound(range(9)), most=2)


def test_without_a_rule_longer_and_shorter_ones_are_refused_with_what_to_do():
    made = reader("int16", (4,), 16000.0)
    refused(
        made,
        sound(range(5)),
        "size",
        "the recording has 5 samples, more than a window, which has 4; cut it, or declare window: {hop",
    )
    refused(
        made,
        sound(range(3)),
        "size",
        "the recording has 3 samples, fewer than a window, which has 4; record more, or declare",
    )
    refused(made, sound([]), "size", "the recording has no samples; a window has 4; record it again")


def test_a_shorter_one_is_padded_where_that_is_declared():
    made = reader("int16", (4,), 16000.0, window=WindowRule(short="pad"))
    assert made.read(sound([7, 8])).tolist() == [7, 8, 0, 0]


def test_stereo_becomes_mono_by_the_mean_and_stays_stereo_where_that_is_taken():
    content = sound([10, 21, -32768, -32768, 32767, 32767, 0, 1], channels=2)
    assert reader("int16", (4,), 16000.0).read(content).tolist() == [16, -32768, 32767, 0]
    assert reader("int16", (4, 2), 16000.0).read(content).tolist() == [
        [10, 21],
        [-32768, -32768],
        [32767, 32767],
        [0, 1],
    ]
    refused(reader("int16", (4, 3), 16000.0), content, "wav", "2 channels, but the bundle expects 3")


def test_another_rate_is_told():
    made = reader("int16", (4,), 16000.0)
    refused(
        made,
        sound(range(4), rate=44100),
        "wav",
        "sampled at 44,100 Hz, but the bundle expects 16,000 Hz; convert it: ffmpeg",
    )


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_all_widths_are_the_same_input(width):
    values = np.array([-128, -3, 0, 127]) * 256
    data = b"".join(
        bytes([value // 256 + 128])
        if width == 1
        else int(value << (8 * width - 16)).to_bytes(width, "little", signed=True)
        for value in values.tolist()
    )
    assert reader("int16", (4,), 16000.0).read(wav(data, width)).tolist() == values.tolist()


# ---------------------------------------------------------------- tables

CSV = b"t (ms),az,ax,ay,label\n" + b"".join(b"%d,%d,%d,%d,walk\n" % (20 * k, k, 10 * k, 100 * k) for k in range(9))


def test_a_csv_window_is_the_input():
    made = reader("float32", (9, 3), 50.0)
    (found,) = made.read_all(CSV)
    assert found.raw[:3].tolist() == [[0, 0, 0], [1, 10, 100], [2, 20, 200]]
    assert (found.raw.dtype, found.raw.shape, found.at, found.label) == (np.float32, (9, 3), "", "walk")


def test_columns_are_found_by_name_where_channels_are_declared():
    made = reader("float32", (9, 2), 50.0, ("AX", "az (m/s^2)"))
    assert made.read(CSV)[:2].tolist() == [[0, 0], [10, 1]]
    refused(reader("float32", (9, 2), 50.0, ("ax", "gyro")), CSV, "table", r"no column gyro \(az, ax, ay\)")
    refused(
        reader("float32", (9, 2), 50.0), CSV, "table", r"3 columns of values \(az, ax, ay\), but the bundle expects 2"
    )


def test_a_longer_table_is_its_windows():
    made = reader("float32", (4, 3), 50.0, window=WindowRule(hop=4))
    found = made.read_all(CSV)
    assert [(item.raw[0, 0], item.at, item.label) for item in found] == [(0, "0s", "walk"), (4, "0.08s", "walk")]


def test_each_row_may_be_a_whole_window():
    made = reader("float32", (2, 3))
    found = made.read_all(b"f0,f1,f2,f3,f4,f5,label\n1,2,3,4,5,6,a\n7,8,9,10,11,12,b\n")
    assert [item.raw.tolist() for item in found] == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]
    assert [(item.label, item.at) for item in found] == [("a", "line 2"), ("b", "line 3")]


def test_integers_are_taken_from_whole_numbers_that_fit():
    made = reader("int16", (3,))
    assert made.read(b"x\n1\n-32768\n32767\n").tolist() == [1, -32768, 32767]
    refused(made, b"x\n1\n2\n0.5\n", "table", "line 2: values are not whole numbers in the range of int16")
    refused(made, b"x\n1\n2\n40000\n", "table", "values are not whole numbers")


@pytest.mark.parametrize("unit", ["t (s)", "t (ms)", "t (us)", "time", "timestamp"])
def test_the_rate_of_a_table_is_checked(unit):
    per_s = {"t (s)": 1, "t (ms)": 1000, "t (us)": 1_000_000}.get(unit, 1000)

    def table(rate):
        return f"{unit},x\n".encode() + b"".join(b"%f,1\n" % (k * per_s / rate) for k in range(5))

    made = reader("float32", (5,), 50.0)
    assert made.read(table(51)).tolist() == [1] * 5
    told = "sampled at 100 Hz" if unit in ("t (s)", "t (ms)", "t (us)") else "sampled every 10 units of its time column"
    refused(made, table(100), "table", rf"{told}, but the bundle expects 50 Hz; resample it")
    assert reader("float32", (5,)).read(table(100)).shape == (5,)


def test_a_table_as_long_as_the_raw_values_is_a_table():
    content = b"0.5\n0.25\n1.5\n2.0"
    assert len(content) == 16
    assert reader("float32", (4,)).read(content).tolist() == [0.5, 0.25, 1.5, 2.0]


def test_a_constant_window_whose_bytes_are_digits_is_raw_values():
    window = np.full(400, 0x3131, np.int16)
    np.testing.assert_array_equal(reader("int16", (400,)).read(window.tobytes()), window)


def padded(start):
    return (start + bytes(range(128, 256)) * 8)[:784]


OF_THE_RIGHT_LENGTH = {
    "JPEG": padded(b"\xff\xd8\xff\xe0"),
    "PNG": padded(b"\x89PNG\r\n\x1a\n"),
    "WAV": padded(b"RIFF\x08\x03\0\0WAVEfmt "),
    ".npy": padded(b"\x93NUMPY\x01\0"),
    "PDF": padded(b"%PDF-1.7\n"),
    "HEIC": padded(b"\0\0\0\x18ftypheic"),
    "TIFF": padded(b"II*\0"),
    "zip": padded(b"PK\x03\x04"),
    "JSON": (b'{"temperature": 21.5, "battery": 97, "note": "' + b"x" * 784)[:782] + b'"}',
    "HTML": (b"<!DOCTYPE html><html><head><title>404</title></head>" + b" " * 784)[:784],
    "prose": (b"The file that you asked for was not found on this server. " * 20)[:784],
    "a table": (b"0.25,1.5\n" * 100)[:784],
    "base64": (base64.b64encode(bytes(range(256)) * 3))[:784],
}


@pytest.mark.parametrize("kind", OF_THE_RIGHT_LENGTH)
def test_what_has_the_right_length_but_is_known_to_be_something_else_is_no_raw_values(kind):
    content = OF_THE_RIGHT_LENGTH[kind]
    assert len(content) == 784
    with pytest.raises(RemoteProtocolError) as caught:
        reader("uint8", (28, 28, 1)).read(content)
    assert caught.value.remedy


@pytest.mark.parametrize("value", range(256))
def test_flat_pictures_are_raw_values_whatever_their_value(value):
    made = reader("uint8", (28, 28, 1))
    assert (made.read(bytes([value]) * 784) == value).all()


def test_pictures_of_few_and_of_many_values_are_raw_values():
    made, rng = reader("uint8", (28, 28, 1)), np.random.default_rng(3)
    for low, high in ((32, 127), (40, 60), (60, 64), (0, 256), (97, 123), (91, 97)):
        for _ in range(50):
            picture = rng.integers(low, high, (28, 28, 1)).astype(np.uint8)
            picture[0, 0] = 200 if (low, high) == (97, 123) else picture[0, 0]
            np.testing.assert_array_equal(made.read(picture.tobytes()), picture)


def test_shipped_samples_are_raw_values_and_nothing_else():
    from distree.bundle.loading import find_bundle, load_bundle

    for name in ("fashion", "cifar10-wide", "spoken-digits", "wrist-exercises"):
        manifest = load_bundle(name, verify=()).manifest
        made = InputReader(manifest.input, manifest.preprocess)
        with np.load(find_bundle(name).parents[1] / "samples" / f"{name}.npz") as samples:
            for raw in samples["input"]:
                np.testing.assert_array_equal(made.read(raw.tobytes()), raw)


def test_bad_tables_are_refused_with_their_line():
    refused(reader("float32", (9, 3), 50.0), CSV.replace(b"40,2,", b"40,?,"), "table", "line 4: '.' in column 'az'")
