"""Windows of samples from microphones and streams: which come, under which names, and what happens when samples are lost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pty
import shutil
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from input_bundles import HOP, SAMPLES, motion_bundle, sound_bundle
from live_sink import PATIENCE_S, LiveSink, is_gone, named, needs_ffmpeg, python, running, until

from device_agent.linux import rss_bytes
from device_agent.sources import supervision, windowed
from device_agent.sources.microphone import MicrophoneSourceConfig
from device_agent.sources.samples import CsvSamples, RawSamples
from device_agent.sources.stream import StreamSourceConfig
from device_agent.sources.windowed import level
from distree.bundle.inputs import InputReader
from distree.bundle.loading import find_bundle, load_bundle
from distree.bundle.manifest import WindowRule
from distree.bundle.windows import cut
from distree.errors import ConfigError

SPOKEN = load_bundle("spoken-digits", verify=()).manifest
needs_arecord = pytest.mark.skipif(
    shutil.which("arecord") is None, reason="arecord is not installed: apt install alsa-utils"
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return sound_bundle(tmp_path_factory.mktemp("sound") / "bundle").manifest


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    return motion_bundle(tmp_path_factory.mktemp("motion") / "bundle").manifest


def with_window(manifest, **changes):
    rule = dataclasses.replace(manifest.preprocess.window, **changes)
    return dataclasses.replace(manifest, preprocess=dataclasses.replace(manifest.preprocess, window=rule))


@pytest.fixture
def start(monkeypatch):
    """Start a stream of a bundle; its retries come soon."""
    monkeypatch.setattr(supervision, "FIRST_RETRY_S", 0.05)
    with contextlib.ExitStack() as stack:

        def start(manifest, **changes):
            sink = LiveSink(manifest)
            source = StreamSourceConfig(kind="stream", **changes).make(sink, "", None)
            source.thread = stack.enter_context(running(source))
            return sink, source

        yield start


def end(source):
    """Wait until a source has come to its end by itself."""
    source.thread.join(PATIENCE_S)
    assert not source.thread.is_alive()


def reader(manifest):
    return InputReader(manifest.input, manifest.preprocess)


def recording(count, seed=1):
    return np.random.default_rng(seed).integers(-20_000, 20_000, count).astype(np.int16)


def same(sink, expected):
    found = [raw for _, raw in sink.submitted]
    return len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def windows(samples, manifest):
    return [window.values for window in cut(samples, manifest.input.shape[0], manifest.preprocess.window)]


# ---------------------------------------------------------------- out of bytes


@given(st.lists(st.integers(0, 9), max_size=20), st.sampled_from(["s16le", "f32le"]))
def test_raw_samples_come_whole_whatever_the_pieces(motion, sizes, format_):
    given_ = (
        np.random.default_rng(1).integers(-99, 99, (sum(sizes) // 4, 4)).astype("<i2" if format_ == "s16le" else "<f4")
    )
    content = given_.tobytes()
    samples, found = RawSamples(format_, reader(motion)), []
    for size in [*sizes, len(content)]:
        found.append(samples.push(content[:size]))
        content = content[size:]
    expected = (given_ / 32768 if format_ == "s16le" else given_).astype(np.float32)
    assert np.array_equal(np.concatenate(found), expected)
    assert found[0].dtype == np.float32


def csv_samples(manifest, content, pieces=7):
    told = []
    samples = CsvSamples(reader(manifest), lambda what, remedy: told.append((what, remedy)))
    found = [samples.push(content[at : at + pieces]) for at in range(0, len(content), pieces)]
    return np.concatenate([*found, samples.end()]), told


@pytest.mark.parametrize("pieces", [1, 7, 100_000])
def test_lines_of_csv_by_name_in_any_order(motion, pieces):
    rows = np.arange(40, dtype=np.float32).reshape(10, 4)
    content = "time (ms),gx,az,ay,ax\r\n" + "".join(
        f"{k},{g},{z},{y},{x}\r\n" for k, (x, y, z, g) in enumerate(rows.tolist())
    )
    found, told = csv_samples(motion, content.encode(), pieces)
    assert np.array_equal(found, rows)
    assert not told


def test_lines_of_csv_without_a_header_and_without_a_last_line_end(motion):
    bare = dataclasses.replace(motion, input=dataclasses.replace(motion.input, channels=()))
    found, told = csv_samples(bare, b"1;2;3;4\n5,5;6;7;8")
    assert np.array_equal(found, np.array([[1, 2, 3, 4], [5.5, 6, 7, 8]], np.float32))
    assert not told


def test_bad_lines_are_left_out_and_told(motion):
    lines = [
        "3,4", "ax,ay,az,gx", "1,2,3,4", "", "hello", "1,2,3", "1,2,x,4", "1,2,nan,4", "x" * 9999, "5,6,7,8",
        "ax,ay,az,gx", "9,9,9,9", "boot v1.2, ready,,", "1,1,1,1",
    ]  # fmt: skip
    found, told = csv_samples(motion, "\n".join(lines).encode() + b"\n", 1000)
    assert found[:, 0].tolist() == [1, 5, 9, 1]
    whats = [what for what, _ in told]
    assert len(whats) == 6, whats
    assert whats[0].startswith("'hello': ")
    assert "it has 3 cells, but the first line has 4" in whats[1]
    assert whats[4] == "one longer than 4096 bytes"


def test_without_the_names_that_a_bundle_wants_it_is_told(motion):
    found, told = csv_samples(motion, b"1,2,3,4\n" * 3)
    assert not len(found)
    assert "no column ax, ay, az, gx" in told[0][0]
    assert told[0][1] == "name it in the header"


def test_a_line_without_end_takes_no_memory(motion):
    samples = CsvSamples(reader(motion), lambda *_: None)
    for _ in range(100):
        samples.push(b"1," * 100_000)
    assert len(samples._begun) <= 4096


# ---------------------------------------------------------------- windows of a stream


def test_a_file_gives_the_windows_that_a_recording_has(start, sound, tmp_path):
    samples = recording(SAMPLES + 30 * HOP + 17)
    (tmp_path / "sound.raw").write_bytes(samples.astype("<i2").tobytes())
    sink, source = start(sound, path=tmp_path / "sound.raw")
    end(source)
    assert same(sink, windows(samples, sound))
    assert sink.names()[:3] == ["0s", "0.015s", "0.03s"]
    assert not sink.told
    assert source.dropped == 0


def test_a_short_recording_is_padded_where_the_bundle_says_so(start, sound, tmp_path):
    samples = recording(100)
    (tmp_path / "short.raw").write_bytes(samples.tobytes())
    sink, source = start(with_window(sound, short="pad"), path=tmp_path / "short.raw")
    end(source)
    assert same(sink, [np.pad(samples, (0, SAMPLES - 100))])
    sink, source = start(sound, path=tmp_path / "short.raw")
    end(source)
    assert not sink.submitted


def test_a_hop_of_ones_own(start, sound, tmp_path):
    samples = recording(3 * SAMPLES)
    (tmp_path / "sound.raw").write_bytes(samples.tobytes())
    sink, source = start(sound, path=tmp_path / "sound.raw", hop=SAMPLES)
    end(source)
    assert same(sink, samples.reshape(3, SAMPLES))


def test_a_fifo_is_opened_without_a_writer_and_waits_for_the_next(start, sound, tmp_path):
    fifo, samples = tmp_path / "fifo", recording(2 * SAMPLES)
    os.mkfifo(fifo)
    sink, _ = start(sound, path=fifo, hop=SAMPLES)
    time.sleep(0.2)
    assert not sink.told
    for count in (1, 2):
        with fifo.open("wb") as file:
            file.write(samples.tobytes())
        until(lambda count=count: len(sink.submitted) == 2 * count, "the windows")
        until(lambda: sink.lines("its writer has closed it"), "the line")
    assert same(sink, [*samples.reshape(2, SAMPLES)] * 2)
    assert sink.names() == ["0s", "0.03s", "0.06s", "0.09s"]


def test_a_silent_fifo_is_told_and_kept_open(start, sound, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sink, _ = start(sound, path=fifo, silence_s=0.2)
    until(lambda: sink.lines("no sample for 0.2 s"), "the line")
    with fifo.open("wb") as file:
        file.write(recording(SAMPLES).tobytes())
        file.flush()
        until(lambda: sink.submitted, "the window")
    assert len(sink.lines("no sample")) == 1
    assert len(sink.lines("works again")) == 1


def test_a_serial_device_is_read_raw_and_survives_being_unplugged(start, motion, tmp_path):
    ours, theirs = pty.openpty()
    device = tmp_path / "ttyUSB0"
    device.symlink_to(os.ttyname(theirs))
    rows = np.arange(196 * 4, dtype=np.float32).reshape(196, 4)
    sink, _ = start(motion, path=device, baud=115200)
    text = "ax,ay,az,gx\n" + "".join(",".join(map(str, row)) + "\n" for row in rows.tolist())
    time.sleep(0.3)
    for at in range(0, len(text), 1000):
        os.write(ours, text[at : at + 1000].encode())
        time.sleep(0.01)
    until(lambda: sink.submitted, "the window")
    assert same(sink, [rows])
    # Nothing came back: a terminal would have echoed it.
    os.set_blocking(ours, False)
    with pytest.raises(BlockingIOError):
        os.read(ours, 1)
    os.close(theirs)
    os.close(ours)
    until(lambda: sink.lines("broke down"), "the line")


def test_speeds_that_there_are_not():
    with pytest.raises(ConfigError, match="baud: 115201 is not a speed of serial devices; choose one, such as 115200"):
        StreamSourceConfig(kind="stream", path="/dev/ttyUSB0", baud=115201)


def test_nothing_is_cut_across_a_gap(start, sound, tmp_path):
    """A program that dies in the middle of a window: the window is given up, and time goes on."""
    script = "note()\nout.write(bytes([len(open(sys.argv[1]).readlines())] * 2 * 720)); out.flush()\nsys.exit(1)\n"
    sink, _ = start(sound, command=python(tmp_path, script, tmp_path / "pids"), hop=SAMPLES)
    until(lambda: len(sink.submitted) >= 3, "windows")
    assert all(len(set(raw.tolist())) == 1 for _, raw in sink.submitted)
    assert sink.names()[:3] == ["0s", "0.045s", "0.09s"]


def test_too_many_windows_are_dropped_oldest_first_and_told(start, sound, tmp_path):
    script = "for k in range(40):\n    out.write(bytes([k + 1, 0] * 480)); out.flush()\ntime.sleep(600)\n"
    monkey = StreamSourceConfig(kind="stream", command=python(tmp_path, script), hop=SAMPLES)
    sink = LiveSink(sound)
    sink.room.clear()
    source = monkey.make(sink, "", None)
    with running(source):
        until(lambda: source.samples == 40 * SAMPLES, "the samples")
        assert not sink.submitted
        sink.room.set()
        until(lambda: len(sink.submitted) == windowed.WAITING, "what is left")
    kept = [int(raw[0]) for _, raw in sink.submitted]
    assert kept == list(range(41 - windowed.WAITING, 41))
    assert source.dropped == 40 - windowed.WAITING
    assert sink.told[-1][0].endswith(
        f": {40 - windowed.WAITING} windows dropped since the start, because inputs are not answered as fast as they come"
    )


def test_what_is_not_live_waits_and_ends(sound, tmp_path):
    script = "for k in range(40):\n    out.write(bytes([k + 1, 0] * 480)); out.flush()\n"
    sink = LiveSink(sound)
    sink.room.clear()
    source = StreamSourceConfig(kind="stream", command=python(tmp_path, script), hop=SAMPLES, live=False).make(
        sink, "", None
    )
    with running(source) as thread:
        time.sleep(0.5)
        sink.room.set()
        thread.join(30)
        assert not thread.is_alive()
    assert [int(raw[0]) for _, raw in sink.submitted] == list(range(1, 41))
    assert not sink.told


def test_a_flood_of_samples_takes_no_memory(start, sound, tmp_path):
    sink, source = start(sound, command=python(tmp_path, "while True:\n    os.write(1, bytes(65536))\n"))
    until(lambda: source.samples > 1_000_000, "samples")
    before = rss_bytes()
    time.sleep(1.0)
    sink.submitted.clear()
    assert rss_bytes() - before < 64 << 20
    assert source.dropped


def test_samples_that_are_no_numbers_are_rejected_by_name(start, motion, tmp_path):
    values = np.zeros((196, 4), "<f4")
    values[3, 1] = np.nan
    (tmp_path / "x.raw").write_bytes(values.tobytes())
    sink, _ = start(motion, path=tmp_path / "x.raw", format="f32le")
    until(lambda: sink.rejected, "the rejection")
    assert sink.rejected[0][0] == f"stream {tmp_path / 'x.raw'} at 0s"
    assert sink.rejected[0][1].reason == "value"


def test_bad_lines_are_told_together(motion, tmp_path):
    script = "out.write(b'ax,ay,az,gx\\n' + b'noise\\n' * 50_000); out.flush()\ntime.sleep(600)\n"
    sink = LiveSink(motion)
    source = StreamSourceConfig(kind="stream", command=python(tmp_path, script), format="csv").make(sink, "", None)
    with running(source):
        until(lambda: source.bad_lines == 50_000, "the lines")
        assert len(sink.told) <= 2
    assert 1 <= len(sink.told) <= 3
    what, remedy, _ = sink.told[-1]
    assert ": 50,000 lines left out since the start, the last because of 'noise': " in what
    assert remedy


# ---------------------------------------------------------------- configuration


def test_what_a_configuration_may_not_say(tmp_path):
    with pytest.raises(ConfigError, match="path: give either this or command"):
        StreamSourceConfig(kind="stream")
    with pytest.raises(ConfigError, match="path: give either this or command"):
        StreamSourceConfig(kind="stream", path=tmp_path, command=("x",))
    with pytest.raises(ConfigError, match="hop: 0 is out of range"):
        MicrophoneSourceConfig(kind="microphone", hop=0)


def test_bundles_that_do_not_fit(sound, motion):
    fashion = load_bundle("fashion", verify=()).manifest
    stream, microphone = StreamSourceConfig(kind="stream", command=("x",)), MicrophoneSourceConfig(kind="microphone")
    for source in (stream, microphone):
        (problem,) = source.misfits(fashion)
        assert problem.what.startswith("kind: a stream gives windows of samples, but inputs of the bundle are uint8")
        no_hop = dataclasses.replace(sound, preprocess=dataclasses.replace(sound.preprocess, window=WindowRule()))
        (problem,) = source.misfits(no_hop)
        assert problem.remedy == "set hop, in samples; 480 for windows that do not overlap"
        assert not list(dataclasses.replace(source, hop=100).misfits(no_hop))
        assert not list(source.misfits(sound))
    (problem,) = microphone.misfits(motion)
    assert "its input has channels ax, ay, az, gx" in problem.what
    assert not list(stream.misfits(motion))
    (problem,) = dataclasses.replace(stream, format="f32le").misfits(sound)
    assert problem.what == "format: f32le does not become the bundle's int16"


def test_how_loud_a_window_is():
    assert level(np.zeros(10, np.int16)) == 0
    assert level(np.full(10, -32768, np.int16)) == 1
    t = np.arange(8000) / 8000
    assert level(np.sin(2 * np.pi * 50 * t).astype(np.float32)) == pytest.approx(0.7071, abs=1e-3)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("[Errno 13] Permission denied", "add the agent's user to the group audio"),
        (
            "arecord: main:831: audio open error: Device or resource busy",
            "stop the other program that uses the microphone",
        ),
        ("rtsp://cam/1: Server returned 401 Unauthorized (authorization failed)", "user name and the password"),
        ("rtsp://cam/1: Server returned 404 Not Found", "check the path in the URL"),
        ("rtsp://cam/1: No route to host", "check that the microphone is switched on and can be reached"),
        ("no sample for 10 s", "check that the microphone is switched on and can be reached"),
        ("killed by SIGKILL", "see in dmesg whether memory ran out"),
        ("anything else", "run the program by hand to see what it says"),
    ],
)
def test_every_reason_has_a_remedy(reason, words):
    assert words in MicrophoneSourceConfig(kind="microphone").remedy_for(reason)


# ---------------------------------------------------------------- ffmpeg and arecord


def samples_of_bundle():
    with np.load(find_bundle("spoken-digits").parents[1] / "samples" / "spoken-digits.npz") as archive:
        return archive["input"]


def wav_of(samples, path):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


@needs_ffmpeg
def test_a_wav_file_through_ffmpeg_gives_the_windows_of_the_file(start, tmp_path):
    recordings = samples_of_bundle()
    path = wav_of(recordings.ravel(), tmp_path / "all.wav")
    command = ("ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-f", "s16le", "-")
    sink, source = start(SPOKEN, command=command, live=False)
    end(source)
    expected = [item.raw for item in sink.reader.read_all(path.read_bytes())]
    assert same(sink, expected)
    assert len(expected) == 2 * len(recordings) - 1


MICROPHONE = """
pcm.test {{ type file; slave.pcm "null"; file "/dev/null"; infile "{raw}"; format raw }}
"""


@pytest.fixture
def microphone(tmp_path, monkeypatch):
    """A microphone of ALSA that plays a file of samples, as fast as it can, and then nothing."""

    def microphone(samples):
        (tmp_path / "mic.raw").write_bytes(samples.astype("<i2").tobytes())
        (tmp_path / "asound.conf").write_text(MICROPHONE.format(raw=tmp_path / "mic.raw"))
        monkeypatch.setenv("ALSA_CONFIG_PATH", f"{tmp_path / 'asound.conf'}:/usr/share/alsa/alsa.conf")
        return "test"

    return microphone


@needs_arecord
def test_sound_from_arecord(microphone):
    samples = np.concatenate(
        [recording(8000, 1), np.zeros(8000, np.int16), recording(8000, 2), np.zeros(80_000, np.int16)]
    )
    sink = LiveSink(SPOKEN)
    config = MicrophoneSourceConfig(kind="microphone", device=microphone(samples), hop=8000, min_level=0.05)
    source = config.make(sink, "", None)
    with running(source):
        until(lambda: len(sink.submitted) >= 2, "the loud windows")
        (pid,) = named("arecord")
    assert is_gone(pid)
    assert np.array_equal(sink.submitted[0][1], samples[:8000])
    assert np.array_equal(sink.submitted[1][1], samples[16000:24000])
    assert sink.names()[:2] == ["0s", "2s"]
    assert source.quiet


@needs_ffmpeg
def test_sound_from_ffmpeg_where_there_is_no_arecord(microphone, monkeypatch):
    if not Path("/usr/share/alsa/alsa.conf").exists():
        pytest.skip("ALSA's configuration is not installed: apt install libasound2-data")
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "arecord" else which(name))
    samples = np.tile(recording(8000), 100)
    sink = LiveSink(SPOKEN)
    config = MicrophoneSourceConfig(kind="microphone", device=microphone(samples), hop=8000)
    with running(config.make(sink, "", None)):
        until(lambda: sink.submitted, "sound")
        assert named("ffmpeg")
    assert np.array_equal(sink.submitted[0][1], samples[:8000])


@needs_arecord
def test_a_microphone_that_is_not_there(monkeypatch):
    monkeypatch.setattr(supervision, "FIRST_RETRY_S", 0.05)
    sink = LiveSink(SPOKEN)
    config = MicrophoneSourceConfig(kind="microphone", device="plughw:7,0")
    with running(config.make(sink, "", None)):
        until(lambda: sink.told, "the line")
        time.sleep(0.5)
    (told,) = sink.told
    assert told[0].startswith("microphone plughw:7,0 does not work: ")
    assert told[1] == "check that the microphone is connected: arecord -l shows what is"
    with pytest.raises(ConfigError, match="audio open error"):
        config.probe(SPOKEN, 5.0)


def test_lost_sound_is_told(tmp_path, monkeypatch):
    """A program in arecord's place that says what arecord says when it was not read in time."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "arecord"
    program.write_text("#!/bin/sh\necho 'overrun!!! (at least 12.3 ms long)' >&2\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    sink = LiveSink(SPOKEN)
    with running(MicrophoneSourceConfig(kind="microphone").make(sink, "", None)):
        until(lambda: sink.told, "the line")
    assert sink.told[0][0] == "microphone default: sound was lost (overrun!!! (at least 12.3 ms long))"


@needs_arecord
def test_what_a_trial_of_a_microphone_finds(microphone):
    config = MicrophoneSourceConfig(kind="microphone", device=microphone(recording(80_000)))
    found = config.probe(SPOKEN, 10.0)
    assert "microphone test: " in found
    assert found.endswith("by arecord; the bundle is for 8,000")


def test_what_a_trial_of_a_stream_finds(sound, tmp_path):
    script = "while True:\n    out.write(bytes(3200)); out.flush(); time.sleep(0.1)\n"
    found = StreamSourceConfig(kind="stream", command=python(tmp_path, script)).probe(sound, 10.0)
    assert found.endswith("samples per second; the bundle is for 16,000")
    rate = float(found.split(" s, ")[1].split(" ")[0].replace(",", ""))
    assert 10_000 < rate < 17_000
    with pytest.raises(ConfigError) as refused:
        StreamSourceConfig(kind="stream", command=python(tmp_path, "sys.exit('no sensor')")).probe(sound, 10.0)
    assert refused.value.what == "no sensor"
