"""Pictures from a camera: which are taken, and what happens when the program that delivers them misbehaves."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_sink import LiveSink, is_gone, named, needs_ffmpeg, pids, python, running, until

from device_agent.linux import rss_bytes
from device_agent.sources import camera as camera_module
from device_agent.sources import supervision
from device_agent.sources.camera import CameraSourceConfig, MotionGate, difference, shrunk_grey
from device_agent.sources.frames import FrameReader, NewestFrame
from distree.bundle.loading import load_bundle
from distree.errors import ConfigError, RemoteProtocolError

ROOT = Path(__file__).parents[3]
FASHION = load_bundle("fashion", verify=()).manifest
CIFAR = load_bundle("cifar10-wide", verify=()).manifest
Image = pytest.importorskip("PIL.Image", reason="pictures are fitted by Pillow: pip install 'distree[images]'")

ALIVE = "k = 0\nwhile True:\n    picture(k % 200 + 1); k += 1; time.sleep(0.02)\n"


def config(**changes):
    return CameraSourceConfig(**{"kind": "camera", "rate_hz": 100, **changes})


@pytest.fixture
def sink():
    return LiveSink(FASHION)


@pytest.fixture
def start(sink, monkeypatch):
    """Start a camera; its retries come soon."""
    monkeypatch.setattr(supervision, "FIRST_RETRY_S", 0.05)
    with contextlib.ExitStack() as stack:

        def start(**changes):
            source = config(**changes).make(sink, "", None)
            stack.enter_context(running(source))
            return source

        yield start


# ---------------------------------------------------------------- out of bytes


def ppm(picture):
    height, width, channels = picture.shape
    return b"P%d\n%d %d\n255\n" % (6 if channels == 3 else 5, width, height) + picture.tobytes()


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])), max_size=5), st.data())
def test_pictures_of_any_size_come_whole_whatever_the_pieces(shapes, data):
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    content, found = b"".join(map(ppm, pictures)), []
    reader = FrameReader(found.append)
    completed = 0
    while content:
        size = data.draw(st.integers(1, len(content)))
        completed += reader.take(content[:size])
        content = content[size:]
    assert len(found) == len(pictures)
    assert all(np.array_equal(one, other) for one, other in zip(found, pictures, strict=True))
    assert completed <= len(found)


@pytest.mark.parametrize(
    "junk", [b"\x00", b"hello", b"P6 " * 20, b"P6\n0 0\n255\n", b"P6\n9999 9999\n255\n", b"P7\n" * 20]
)
def test_what_is_no_picture_is_refused_at_once(junk):
    with pytest.raises(RemoteProtocolError):
        FrameReader(lambda frame: None).take(junk)


def test_junk_in_one_piece_with_a_picture_costs_no_picture_and_is_refused_next():
    found = []
    reader = FrameReader(found.append)
    assert reader.take(ppm(np.zeros((2, 3, 3), np.uint8)) + b"hello")
    with pytest.raises(RemoteProtocolError, match="begins with 'hello'"):
        reader.take(b"")
    assert len(found) == 1


def test_the_newest_is_kept_and_what_it_replaces_counted():
    newest = NewestFrame()
    for value in range(5):
        newest.put(np.full((1, 1, 3), value, np.uint8))
    assert newest.take(0.0)[0, 0, 0] == 4
    assert newest.take(0.0) is None
    assert (newest.arrived, newest.replaced) == (5, 4)
    newest.put(np.zeros((1, 1, 3), np.uint8))
    newest.clear()
    newest.close()
    assert newest.is_over
    assert newest.replaced == 5


# ---------------------------------------------------------------- motion


def test_motion_is_a_share_of_the_whole_picture():
    still = np.zeros((480, 640, 3), np.uint8)
    moved = still.copy()
    moved[:, :64] = 128  # a tenth of the picture, by half of the range
    assert difference(shrunk_grey(moved), shrunk_grey(still)) == pytest.approx(0.05, abs=0.002)
    noisy = np.random.default_rng(1).normal(100, 5, (480, 640, 3)).astype(np.uint8)
    assert difference(shrunk_grey(noisy), shrunk_grey(np.full_like(noisy, 100))) < 0.005


def test_still_pictures_are_left_out_until_the_gap_is_long():
    gate = MotionGate(0.02, 60)
    one, other = np.zeros((6, 8, 3), np.uint8), np.full((6, 8, 3), 50, np.uint8)
    assert [gate.lets_through(one, 0.0), gate.lets_through(one, 1.0), gate.lets_through(other, 2.0)] == [
        True,
        False,
        True,
    ]
    assert not gate.lets_through(other, 61.9)
    assert gate.lets_through(other, 62.0)
    # It is compared with the last that was taken: what changes slowly adds up.
    slow = [gate.lets_through(np.full((6, 8, 3), 50 + k, np.uint8), 63.0 + k) for k in range(13)]
    assert slow.count(True) == 2


def test_a_camera_that_sees_nothing_move_submits_once(start, sink, tmp_path):
    source = start(command=python(tmp_path, "while True:\n    picture(9); time.sleep(0.01)\n"), motion=0.02)
    until(lambda: source.still > 20, "still pictures")
    assert len(sink.submitted) == 1


# ---------------------------------------------------------------- which are taken


def test_without_room_the_newest_waits_and_the_rest_is_counted(start, sink, tmp_path):
    sink.room.clear()
    source = start(command=python(tmp_path, ALIVE))
    until(lambda: source.newest.arrived >= 20, "pictures")
    assert not sink.submitted
    sink.room.set()
    until(lambda: sink.submitted, "the newest")
    assert int(sink.submitted[0][1][0, 0, 0]) >= 20
    assert source.newest.replaced >= 19


def test_the_rate_is_kept(start, sink, tmp_path):
    start(command=python(tmp_path, "while True:\n    picture(9); time.sleep(0.005)\n"), rate_hz=10)
    until(lambda: len(sink.submitted) >= 12, "pictures")
    # The first may have been late by a period.
    assert sink.times[11] - sink.times[0] >= 10 / 10


def test_a_board_that_was_away_does_not_catch_up():
    assert camera_module._next_due(10.0, 1.0, 10.3) == 11.0
    assert camera_module._next_due(10.0, 1.0, 17.3) == 18.3


def test_names_are_times_of_the_day(start, sink, tmp_path):
    start(command=python(tmp_path, ALIVE))
    until(lambda: sink.submitted, "a picture")
    assert time.strftime("%Y-") in sink.names()[0]
    assert sink.names()[0].endswith("Z")


# ---------------------------------------------------------------- what goes wrong


def test_a_program_that_dies_is_started_again_with_one_line_each(start, sink, tmp_path):
    start(command=python(tmp_path, "note()\nprint('\\x1b[31mlens fell off', file=sys.stderr)\n" + ALIVE))
    for count in (1, 2, 3):
        until(lambda count=count: len(pids(tmp_path)) == count and len(sink.lines("again")) == count - 1, "it")
        before = len(sink.submitted)
        until(lambda before=before: len(sink.submitted) > before, "pictures")
        if count < 3:
            os.kill(pids(tmp_path)[-1], signal.SIGKILL)
            until(lambda count=count: len(sink.lines("broke")) == count, "the line")
    assert sink.lines("broke") == [f"camera {sys.executable} broke down: killed by SIGKILL"] * 2
    assert len(sink.told) == 4
    assert all(is_gone(pid) for pid in pids(tmp_path)[:2])


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("picture(1)\nprint('first', file=sys.stderr)\nprint('lens fell off', file=sys.stderr)\nsys.exit(3)\n", "lens fell off"),
        ("picture(1)\nsys.exit(3)\n", "the program ended with status 3"),
        ("picture(1)\n", "the program ended"),
        ("picture(1)\nout.close()\nos.close(1)\ntime.sleep(600)\n", "the program closed its output"),
        ("picture(1)\nout.write(b'garbage'); out.flush()\ntime.sleep(600)\n", "its output is no picture in PPM (it begins with 'garbage')"),
        ("out.write(b'P6\\n1 1\\n255\\nrgbgarbage'); out.flush()\ntime.sleep(600)\n", "its output is no picture in PPM (it begins with 'garbage')"),
        ("picture(1)\nprint('x' * 100000, file=sys.stderr)\nsys.exit(1)\n", "x" * 199 + "…"),
    ],
)  # fmt: skip
def test_the_reason_is_what_the_program_says_or_how_it_ended(start, sink, tmp_path, script, reason):
    start(command=python(tmp_path, "note()\n" + script))
    until(lambda: sink.lines("broke"), "the line")
    what, remedy, _ = next(told for told in sink.told if "broke" in told[0])
    assert what == f"camera {sys.executable} broke down: {reason}"
    assert remedy
    until(lambda: len(pids(tmp_path)) >= 2 and is_gone(pids(tmp_path)[0]), "the next, and the end of the first")


def test_a_program_that_hangs_is_ended_even_if_it_does_not_want_to(start, sink, tmp_path):
    hangs = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote()\npicture(1)\ntime.sleep(600)\n"
    start(command=python(tmp_path, hangs), silence_s=0.3)
    until(lambda: len(pids(tmp_path)) >= 2, "the next")
    assert sink.lines("broke")[0].endswith("broke down: no picture for 0.3 s")
    until(lambda: is_gone(pids(tmp_path)[0]), "the end of the first")


def test_what_a_program_has_started_ends_with_it(start, sink, tmp_path):
    family = "if os.fork() == 0:\n    note(); time.sleep(600)\npicture(1)\ntime.sleep(600)\n"
    start(command=python(tmp_path, family), silence_s=0.3)
    until(lambda: len(pids(tmp_path)) >= 2, "the next")
    until(lambda: is_gone(pids(tmp_path)[0]), "the end of the grandchild")


@pytest.mark.parametrize(
    "script",
    [
        "picture(1)\nnote()\nwhile True:\n    os.write(2, b'trouble ' * 8192)\n",
        "picture(1)\nnote()\nwhile True:\n    os.write(2, b'trouble\\n' * 8192)\n",
        "note()\nwhile True:\n    os.write(1, b'\\xff' * 65536)\n",
        "note()\nwhile True:\n    os.write(1, b'P6\\n40 30\\n255\\n' + bytes(3600))\n",
    ],
    ids=["one long line of errors", "many lines of errors", "garbage", "pictures as fast as can be"],
)
def test_a_flood_takes_no_memory(start, sink, tmp_path, script):
    source = start(command=python(tmp_path, script), silence_s=60)
    until(lambda: pids(tmp_path), "the program")
    time.sleep(0.5)
    before = rss_bytes()
    time.sleep(1.5)
    assert rss_bytes() - before < 32 << 20
    assert len(sink.told) <= 1
    assert len(source.counts()) < 200


def test_a_camera_that_is_not_there_is_told_once_and_tried_again(start, sink, tmp_path):
    script = "note()\nprint('/dev/video0: No such file or directory', file=sys.stderr)\nsys.exit(1)\n"
    start(command=python(tmp_path, script))
    until(lambda: len(pids(tmp_path)) >= 4, "retries")
    (what, remedy, severity), *others = sink.told
    assert what == f"camera {sys.executable} does not work: /dev/video0: No such file or directory"
    assert (remedy, severity) == ("check that the camera is connected: ls /dev/video* shows what is", "error")
    assert not others


def test_a_program_that_is_not_installed(start, sink):
    start(command=("no-such-program",))
    until(lambda: sink.told, "the line")
    assert sink.told[0][:2] == (
        "camera no-such-program does not work: no-such-program is not installed",
        "install it, or correct its name in command",
    )


def test_retries_are_less_and_less_frequent(sink, tmp_path, monkeypatch):
    waits = []
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda timeout=None: waits.append(timeout) or len(waits) >= 9)
    source = config(command=("no-such-program",)).make(sink, "", None)
    source._supervision.run(stop, lambda: FrameReader(lambda frame: None))
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_fault_in_the_agent_is_not_waited_for(sink, tmp_path):
    """What an input leads to may fail: then the agent ends, whatever the camera does."""
    source = config(command=python(tmp_path, "note()\n" + ALIVE)).make(sink, "", None)
    sink.run_jobs = lambda: 1 / 0
    stop = threading.Event()
    with pytest.raises(ZeroDivisionError):
        source.run(stop)
    stop.set()
    until(lambda: is_gone(pids(tmp_path)[0]), "the end of the program")


def test_a_signal_without_a_name(start, sink, tmp_path):
    start(command=python(tmp_path, "picture(1)\nos.kill(os.getpid(), 40)\ntime.sleep(600)\n"))
    until(lambda: sink.lines("broke"), "the line")
    assert sink.lines("broke")[0].endswith("broke down: killed by signal 40")


def test_nothing_is_left_when_it_stops(sink, tmp_path):
    with running(config(command=python(tmp_path, "note()\n" + ALIVE)).make(sink, "", None)):
        until(lambda: sink.submitted, "a picture")
    assert is_gone(pids(tmp_path)[0])


AGENT = """
import sys, threading
sys.path[:0] = [{helpers!r}]
from live_sink import LiveSink
from device_agent.sources.camera import CameraSourceConfig
from distree.bundle.loading import load_bundle
source = CameraSourceConfig(kind="camera", **{changes!r}).make(LiveSink(load_bundle("fashion").manifest), "", None)
source.run(threading.Event())
"""


def test_a_program_dies_with_the_agent(tmp_path):
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.signal(signal.SIGPIPE, signal.SIG_IGN)\n"
    command = python(tmp_path, f"{stubborn}note()\npicture(1)\ntime.sleep(600)\n")
    script = AGENT.format(helpers=str(ROOT / "tests" / "helpers"), changes={"command": command})
    agent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        until(lambda: pids(tmp_path), "the program")
    finally:
        agent.kill()
        agent.wait()
    until(lambda: is_gone(pids(tmp_path)[0]), "its end", 5.0)


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "input: give either this or command"),
        ({"input": "x", "command": ("y",)}, "input: give either this or command"),
        ({"command": ("y",), "repeat": True}, "command: takes neither"),
        ({"input": "x", "rate_hz": 0}, "rate_hz: 0 is out of range"),
        ({"input": "x", "silence_s": -1}, "silence_s: -1 is out of range"),
    ],
)
def test_what_a_configuration_may_not_say(changes, words):
    with pytest.raises(ConfigError, match=words):
        CameraSourceConfig(kind="camera", **changes)


def test_only_a_file_is_taken_from_the_folder_of_the_configuration():
    folder = Path("/etc/distree")
    assert config(input="door.mp4").in_folder(folder).input == "/etc/distree/door.mp4"
    for name, options in (("/dev/video0", ()), ("rtsp://cam/1", ()), ("testsrc", ("-f", "lavfi"))):
        assert config(input=name, input_options=options).in_folder(folder).input == name
    assert config(input="/srv/door.mp4").read_files() == (Path("/srv/door.mp4"),)
    assert config(input="/dev/video0").read_files() == ()


def test_bundles_that_take_no_pictures():
    spoken = load_bundle("spoken-digits", verify=()).manifest
    (problem,) = config(input="/dev/video0").misfits(spoken)
    assert problem.what == "kind: a camera gives images, but inputs of the bundle are int16 (8000,)"
    assert not list(config(input="/dev/video0").misfits(FASHION))


def test_without_pillow_it_is_said_before(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (problem,) = config(input="/dev/video0").misfits(FASHION)
    assert problem.remedy == "run: pip install 'distree[images]'"


# ---------------------------------------------------------------- ffmpeg


def picture(width, height):
    """A picture with soft and hard edges, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / width, 255 * (np.sin(x / 3) + 1) / 2
    return np.stack([red, green, np.where((x + 2 * y) % 17 < 8, 220, 30)], axis=-1).astype(np.uint8)


def png(path, pixels):
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


@needs_ffmpeg
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("manifest", [FASHION, CIFAR], ids=["grey", "colour"])
@pytest.mark.parametrize("size", [(61, 40), (40, 90), (320, 240)], ids=str)
def test_a_picture_is_the_same_input_as_from_a_file(start, sink, tmp_path, manifest, resize, size):
    preprocess = dataclasses.replace(manifest.preprocess, resize=resize, background="white")
    sink.__init__(dataclasses.replace(manifest, preprocess=preprocess))
    content = png(tmp_path / "scene.png", picture(*size))
    start(input=str(tmp_path / "scene.png"), input_options=("-f", "image2", "-loop", "1", "-re"))
    until(lambda: sink.submitted, "the picture")
    assert np.array_equal(sink.submitted[0][1], sink.reader.read(content))


@pytest.mark.parametrize("manifest", [FASHION, CIFAR], ids=["grey", "colour"])
def test_a_grey_picture_is_the_same_input_as_from_a_file(start, sink, tmp_path, manifest):
    sink.__init__(manifest)
    grey = picture(50, 40)[..., :1]
    content = png(tmp_path / "scene.png", grey[..., 0])
    (tmp_path / "frame").write_bytes(ppm(grey))
    start(
        command=python(
            tmp_path, "out.write(open(sys.argv[1], 'rb').read()); out.flush()\ntime.sleep(600)\n", tmp_path / "frame"
        )
    )
    until(lambda: sink.submitted, "the picture")
    assert np.array_equal(sink.submitted[0][1], sink.reader.read(content))


@needs_ffmpeg
def test_a_large_picture_is_shrunk_first_and_nearly_the_same(start, sink, tmp_path, monkeypatch):
    sink.__init__(CIFAR)
    content = png(tmp_path / "scene.png", picture(1920, 1080))
    seen, put = [], NewestFrame.put
    monkeypatch.setattr(NewestFrame, "put", lambda newest, frame: seen.append(frame.shape) or put(newest, frame))
    start(input=str(tmp_path / "scene.png"), input_options=("-f", "image2", "-loop", "1", "-re"))
    until(lambda: seen and sink.submitted, "the picture")
    assert seen[0][0] * seen[0][1] <= 640 * 480
    assert abs(seen[0][1] / seen[0][0] - 16 / 9) < 0.01
    assert np.abs(sink.submitted[0][1].astype(int) - sink.reader.read(content)).mean() < 1.0


LAVFI = {"input": "testsrc=size=64x48:rate=25", "input_options": ("-re", "-f", "lavfi")}


@needs_ffmpeg
def test_a_killed_ffmpeg_is_back_within_five_seconds(sink):
    with running(config(**LAVFI).make(sink, "", None)):
        for count in range(1, 4):
            until(lambda count=count: sink.submitted and len(sink.lines("again")) == count - 1, "pictures")
            (pid,) = named("ffmpeg")
            os.kill(pid, signal.SIGKILL)
            killed_at = time.monotonic()
            until(lambda count=count: len(sink.lines("again")) == count, "its return", 5.0)
            assert time.monotonic() - killed_at < 5.0
            assert is_gone(pid)
        assert len(sink.lines("broke")) == 3
        assert len(sink.told) == 6
        (last,) = named("ffmpeg")
    assert is_gone(last)


@needs_ffmpeg
def test_a_camera_of_which_few_pictures_are_wanted_is_not_taken_for_silent(sink):
    with running(config(**LAVFI, rate_hz=0.05, silence_s=1).make(sink, "", None)):
        until(lambda: sink.submitted, "a picture")
        time.sleep(2.5)
    assert not sink.told
    assert len(sink.submitted) == 1


@needs_ffmpeg
def test_a_stopped_ffmpeg_is_noticed(sink):
    with running(config(**LAVFI, silence_s=1).make(sink, "", None)):
        until(lambda: sink.submitted, "a picture")
        (pid,) = named("ffmpeg")
        os.kill(pid, signal.SIGSTOP)
        until(lambda: sink.lines("again"), "its return")
        assert is_gone(pid)
        assert [line for line in sink.lines("broke") if line.endswith("no picture for 1 s")]


@needs_ffmpeg
def test_ffmpeg_dies_with_the_agent(tmp_path):
    changes = {**LAVFI, "rate_hz": 5}
    script = AGENT.format(helpers=str(ROOT / "tests" / "helpers"), changes=changes)
    agent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        until(lambda: named("ffmpeg", agent.pid), "ffmpeg")
        (pid,) = named("ffmpeg", agent.pid)
    finally:
        agent.kill()
        agent.wait()
    until(lambda: is_gone(pid), "its end", 5.0)


@needs_ffmpeg
def test_a_video_file_is_played_once_at_its_own_speed(sink, tmp_path, caplog):
    film = tmp_path / "film.mkv"
    make = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=2", "-c:v", "ffv1"]
    subprocess.run([*make, str(film)], check=True, timeout=60)
    caplog.set_level(logging.INFO)
    started_at = time.monotonic()
    with running(config(input=str(film)).make(sink, "", None)) as thread:
        thread.join(30)
        assert not thread.is_alive()
    assert time.monotonic() - started_at > 1.5
    assert 15 <= len(sink.submitted) <= 20
    assert not sink.told
    assert f"camera {film} has been read to its end" in caplog.text


@needs_ffmpeg
@pytest.mark.parametrize("url", ["rtsp://ann:geheim@127.0.0.1:9/live", "http://127.0.0.1:9/jpg?user=ann&pwd=geheim"])
def test_a_password_is_never_told(sink, caplog, url):
    caplog.set_level(logging.DEBUG)
    with running(config(input=url).make(sink, "", None)):
        until(lambda: sink.told, "the line")
    (told,) = sink.told
    assert "Connection refused" in told[0]
    assert "127.0.0.1:9" in told[0]
    assert "geheim" not in f"{told}{caplog.text}{config(input=url).name}"
    with pytest.raises(ConfigError) as refused:
        config(input=url).probe(FASHION, 5.0)
    assert "geheim" not in str(refused.value)


class MotionJpeg(http.server.BaseHTTPRequestHandler):
    """A camera in the network, which falls silent after some pictures without hanging up."""

    pictures = 20
    served: list[str] = []  # noqa: RUF012 - of one test

    def do_GET(self):
        if "Authorization" not in self.headers:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        self.served.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        with io.BytesIO() as file:
            Image.fromarray(picture(64, 48)).save(file, "JPEG")
            content = file.getvalue()
        with contextlib.suppress(OSError):
            for _ in range(self.pictures):
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
                self.wfile.write(head.encode() + content + b"\r\n")
                time.sleep(0.05)
            self.connection.settimeout(60)
            self.connection.recv(1)

    def log_message(self, *_):
        pass


@needs_ffmpeg
def test_a_network_camera_that_falls_silent_is_connected_to_again(sink):
    MotionJpeg.served.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), MotionJpeg)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://ann:geheim@127.0.0.1:{server.server_address[1]}/video"
        with running(config(input=url, silence_s=2).make(sink, "", None)):
            until(lambda: sink.lines("again"), "its return", 60)
        assert len(MotionJpeg.served) >= 2
        assert sink.lines("broke") == [
            f"camera http://127.0.0.1:{server.server_address[1]}/video broke down: no picture for 2 s"
        ]
    finally:
        server.shutdown()
        server.server_close()


@needs_ffmpeg
def test_what_a_trial_finds():
    found = config(**LAVFI).probe(FASHION, 10.0)
    assert "pictures of 64x48 pixels by ffmpeg " in found
    assert not named("ffmpeg")
    with pytest.raises(ConfigError) as refused:
        config(input="/dev/video99").probe(FASHION, 10.0)
    assert "No such file or directory" in refused.value.what
