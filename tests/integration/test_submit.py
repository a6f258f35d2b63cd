"""`distree submit` on real origins: what is refused is said at once, and costs nothing but itself."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from input_bundles import npy, sound_bundle, sounds, wav
from setup_broker import Mosquitto

from distree import topics
from distree.messages.codec import encode
from distree.messages.device import DeviceState, DeviceStatus
from distree.topics import Kind

pytestmark = pytest.mark.any_broker

MQTT = {"deadline_ms": 20000, "source": {"kind": "mqtt"}}
QUICK_S = 8.0
"""Far less than the time-out: what is refused at once does not wait for it."""


def submit(site, *files, pipeline="fashion", origin="cam", timeout=60, given=None, options=(), env=None):
    where = ["--broker", f"127.0.0.1:{site.broker.port}", "--site", "test", "--pipeline", pipeline, "--origin", origin]
    return subprocess.run(
        [sys.executable, "-m", "distree", "submit", *where, "--timeout", str(timeout), *options, *map(os.fspath, files)],
        capture_output=True, timeout=120, input=given, cwd=site.folder, env={**os.environ, **(env or {})}, check=False,
    )  # fmt: skip


def results(done):
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def errors(done):
    return done.stderr.decode().splitlines()


def picture(kind, size, mode="RGB", **how):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'distree[images]'")
    with io.BytesIO() as file:
        tile = pillow.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)).convert(mode)
        tile.resize(size).save(file, kind, **how)
        return file.getvalue()


def disguise(site):
    """Have the origin look as if it were of another version, so that its bundle is not looked for here."""
    site.watch.until(lambda: "cam" in site.watch.metas, "the description")
    other = dataclasses.replace(site.watch.metas["cam"], version="another")
    site.watch.publish(topics.device("test", "cam", Kind.META), encode(other), retain=True)
    site.watch.settle()


def test_bad_files_cost_only_themselves_and_say_why(site, images):
    site.agent("cam", [0, 1, 2], origin=MQTT)
    folder = site.folder / "mixed"
    folder.mkdir()
    (folder / "0 good.npy").write_bytes(npy(images[0]))
    (folder / "1 float.npy").write_bytes(npy(images[1].astype(np.float32)))
    (folder / "2 page.jpg").write_bytes(b"<html><body>404</body></html>")
    (folder / "3 cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "4 gööd\n*.npy").write_bytes(npy(images[2]))
    (folder / os.fsdecode(b"5 \xff.npy")).write_bytes(npy(images[3]))
    (folder / ".hidden").write_bytes(b"x")
    (folder / "sub").mkdir()
    done = submit(site, folder, "none.npy", "mixed/0*", "*.none", "-", given=npy(images[4]))
    assert done.returncode == 1, done.stderr
    names = sorted(result["input"] for result in results(done))
    assert names == sorted([
        f"{folder}/0 good.npy", f"{folder}/4 g\\xf6\\xf6d\\n*.npy", f"{folder}/5 \\udcff.npy", "mixed/0 good.npy", "stdin",
    ])  # fmt: skip
    lines = errors(done)
    for name, why in {
        "1 float.npy": "expected uint8 (28, 28, 1), received float32",
        "2 page.jpg": "received an HTML page of 29 bytes",
        "3 cut.png": "are not a readable image",
        "none.npy": "cannot be read (No such file or directory)",
        "*.none": "there are no files",
    }.items():
        assert sum(name in line and why in line for line in lines) == 1, lines
    assert lines[-1] == "distree: 5 of 10 files answered, 5 refused"


def test_what_the_origin_refuses_is_said_at_once(site, images):
    """As where this machine does not have the bundle: the origin's refusal comes back, and nothing waits for it."""
    site.agent("cam", [0, 1, 2], origin=MQTT)
    disguise(site)
    (site.folder / "bad.npy").write_bytes(npy(images[0].astype(np.float32)))
    (site.folder / "good.npy").write_bytes(npy(images[0]))
    began = time.monotonic()
    done = submit(site, "bad.npy", "good.npy")
    assert time.monotonic() - began < QUICK_S + 2
    assert done.returncode == 1
    assert [result["input"] for result in results(done)] == ["good.npy"]
    assert errors(done)[0].startswith("distree: bad.npy: expected uint8 (28, 28, 1), received float32; convert it")
    site.watch.until(lambda: bool(site.watch.dead), "the dead letter")
    (letter,) = site.watch.dead
    assert (letter.input, letter.request != "") == ("bad.npy", True)
    # The log tells it once.
    assert site.log("cam").count("expected uint8 (28, 28, 1), received float32") == 1


def test_an_origin_that_is_not_there_or_takes_no_files_is_said_before_anything_is_sent(site, images):
    site.agent("cam", [0, 1, 2], origin=MQTT)
    site.agent("folder", [], origin={"source": {"kind": "directory", "path": "inbox"}})
    site.agent("board", [0])
    (site.folder / "a.npy").write_bytes(npy(images[0]))
    began = time.monotonic()
    for options, status, why in (
        ({"origin": "board"}, 2, "this board is not an origin of pipeline 'fashion'; correct --pipeline or --origin"),
        ({"origin": "cam", "pipeline": "other"}, 2, "not an origin of pipeline 'other', but of fashion"),
        ({"origin": "folder"}, 2, "come from the source directory, not by MQTT"),
    ):
        done = submit(site, "a.npy", **options)
        assert (done.returncode, done.stdout) == (status, b""), done.stderr
        assert why in done.stderr.decode()
    site.watch.publish(
        topics.device("test", "gone", Kind.STATE),
        encode(DeviceState(device="gone", boot="b", status=DeviceStatus.LOST)), retain=True,
    )  # fmt: skip
    site.watch.settle()
    done = submit(site, "a.npy", origin="gone")
    assert done.returncode == 1
    assert "the board 'gone' of site 'test' is not running: its state is lost" in done.stderr.decode()
    assert time.monotonic() - began < 4 * QUICK_S


def test_a_wrong_name_is_said_at_once_where_the_broker_knows_that_nobody_reads_it(site, images):
    (site.folder / "a.npy").write_bytes(npy(images[0]))
    done = submit(site, "a.npy", origin="nobody", timeout=2)
    assert done.returncode == 1
    said = done.stderr.decode()
    if site.watch.transport.reports_no_subscribers:
        assert "nobody reads distree/1/test/pipeline/fashion/input/nobody" in said
    else:
        assert "1 file got no answer within 2 s (a.npy)" in said


def test_large_pictures_are_sent_as_small_as_the_bundle_needs(site, bundle):
    site.agent("cam", [0, 1, 2], origin=MQTT)
    large = picture("PNG", (1024, 700), compress_level=0)
    assert len(large) > 1 << 20
    huge = picture("JPEG", (8000, 6000), quality=30)
    small = picture("PNG", (280, 191), compress_level=0)
    for name, content in (("large.png", large), ("48mp.jpg", huge), ("small.png", small)):
        (site.folder / name).write_bytes(content)
    done = submit(site, "large.png", "48mp.jpg", "small.png")
    assert (done.returncode, done.stderr) == (0, b"")
    from distree.bundle.inputs import InputReader

    reader = InputReader(bundle.manifest.input, bundle.manifest.preprocess)
    direct = {}
    for name, content in (("large.png", large), ("48mp.jpg", huge), ("small.png", small)):
        site.submit(f"r-{name}", f"r-{name}", reader.read(content))
        site.watch.until(lambda n=name: f"r-{n}" in site.watch.final(), name)
        direct[name] = site.watch.final()[f"r-{name}"]
    for result in results(done):
        same = direct[result["input"]]
        assert (result["label"], result["confidence"]) == (same.label, same.confidence)


def test_without_the_bundle_only_what_is_too_large_is_made_smaller_and_that_is_said(site):
    site.agent("cam", [0, 1, 2], origin=MQTT)
    (site.folder / "large.png").write_bytes(picture("PNG", (1024, 700), compress_level=0))
    (site.folder / "small.png").write_bytes(picture("PNG", (100, 70)))
    (site.folder / "long.wav").write_bytes(wav(np.zeros(600_000, np.int16)))
    disguise(site)
    done = submit(site, "large.png", "small.png", "long.wav")
    assert done.returncode == 1
    assert {result["input"] for result in results(done)} == {"large.png", "small.png"}
    lines = errors(done)
    assert "sent as a picture of 1024x700 pixels" in lines[0] or "sent as a picture of" in lines[0]
    assert "may change its answer" in lines[0]
    assert "long.wav: 1,200,044 bytes do not fit into one message" in lines[1]
    done = submit(site, "large.png", options=["--bundle", "fashion"])
    assert (done.returncode, done.stderr) == (0, b"")
    done = submit(site, "large.png", options=["--bundle", "cifar10-wide"])
    assert done.returncode == 2
    assert b"--bundle cifar10-wide: it is cifar10-wide" in done.stderr


def test_a_recording_too_long_for_a_message_is_sent_window_by_window(site, tmp_path):
    bundle = sound_bundle(tmp_path / "sound")
    site.bundle = str(bundle.path)
    site.agent("cam", [0, 1, 2], origin=MQTT)
    long = np.resize(sounds(8).ravel(), 240 * 900)
    assert len(wav(long)) < 1 << 20
    stereo = np.repeat(np.stack([long, long, long], axis=1), 1, axis=0)
    with io.BytesIO() as file:
        import wave

        with wave.open(file, "wb") as writer:
            writer.setnchannels(3)
            writer.setsampwidth(2)
            writer.setframerate(16_000)
            writer.writeframes(stereo.astype("<i2").tobytes())
        content = file.getvalue()
    assert len(content) > 1 << 20
    (site.folder / "long.wav").write_bytes(content)
    done = submit(site, "long.wav", options=["--bundle", str(bundle.path)])
    assert (done.returncode, done.stderr) == (0, b"")
    found = results(done)
    assert len(found) == 899
    assert {result["request"].rpartition("~")[2] for result in found} == {f"{k}/899" for k in range(1, 900)}
    assert "long.wav@0.015s" in {result["input"] for result in found}


def test_a_file_over_the_brokers_limit_is_named(site_on, images, tmp_path):
    with Mosquitto(tmp_path, "max_packet_size 20000") as broker:
        site = site_on(broker)
        site.agent("cam", [0, 1, 2], origin=MQTT)
        disguise(site)
        (site.folder / "large.png").write_bytes(picture("PNG", (200, 200), compress_level=0))
        (site.folder / "good.npy").write_bytes(npy(images[0]))
        done = submit(site, "large.png", "good.npy")
        assert done.returncode == 1
        assert [result["input"] for result in results(done)] == ["good.npy"]
        assert errors(done)[0].startswith("distree: large.png: a message of ")
        assert "exceeds the packet limit" in errors(done)[0]
