"""Inputs of all kinds on running origins: a file has one answer, by a folder, by `distree submit` and by MQTT."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from input_bundles import HOP, SAMPLES, csv, motion_bundle, motions, npy, sound_bundle, sounds, wav

from distree import topics
from distree.bundle.inputs import InputReader
from distree.bundle.preprocessing import Preprocessor
from distree.bundle.runtimes import make_runtime
from distree.topics import Kind

pytestmark = pytest.mark.any_broker

ORIGINS = {
    "folder": {"deadline_ms": 20000, "source": {"kind": "directory", "path": "inbox", "quiet_ms": 20}},
    "cam": {"deadline_ms": 20000, "source": {"kind": "mqtt"}, "thumbnails": {"max_rate_hz": 1000}},
}


def offline(bundle, raw):
    """The class and the exit of a raw input, by the bundle's own thresholds."""
    runtime, tensor = make_runtime(bundle), Preprocessor(bundle.manifest).tensor(raw)
    for k, limit in enumerate((*bundle.thresholds, 0.0)):
        output = runtime.run(k, tensor)
        logits = np.asarray(output.logits)
        odds = np.exp(logits - logits.max())
        if odds.max() / odds.sum() >= limit:
            return int(logits.argmax()), k
        tensor = output.features
    raise AssertionError


def start(site, bundle):
    site.bundle = str(bundle.path)
    (site.folder / "inbox").mkdir()
    for device, origin in ORIGINS.items():
        site.agent(device, [0, 1, 2], origin=origin)


def answers_of(site, name, content, count=1):
    """The answers to a file, by each way in: a list of (class, exit) per way."""
    before = len(site.watch.results)
    hidden = site.folder / "inbox" / f".{name}"
    hidden.write_bytes(content)
    hidden.rename(site.folder / "inbox" / name)
    site.watch.publish(topics.of_origin("test", "fashion", Kind.INPUT, "cam"), content)
    site.watch.until(lambda: len(site.watch.results) == before + 2 * count, f"answers to {name}")
    came = site.watch.results[before:]
    ways = [[result for result in came if result.origin == origin] for origin in ORIGINS]
    return [[(result.class_id, result.exit) for result in way] for way in (*ways, submitted(site, name, content))]


def submit(site, *paths):
    command = [
        sys.executable,
        "-m",
        "distree",
        "submit",
        "--broker",
        f"127.0.0.1:{site.broker.port}",
        "--timeout",
        "30",
    ]
    where = ["--site", "test", "--pipeline", "fashion", "--origin", "cam", *map(str, paths)]
    return subprocess.run([*command, *where], capture_output=True, text=True, timeout=60)


def submitted(site, name, content):
    path = site.folder / name
    path.write_bytes(content)
    before = len(site.watch.results)
    done = submit(site, path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    site.watch.until(lambda: len(site.watch.results) == before + len(lines), "the same answers")
    return site.watch.results[before:]


def test_sound_is_answered_alike_by_every_way_in(site, tmp_path):
    bundle = sound_bundle(tmp_path / "sound")
    start(site, bundle)
    for k, samples in enumerate(sounds(2)):
        expected = [[offline(bundle, samples)]] * 3
        for kind, content in (("wav", wav(samples)), ("npy", npy(samples)), ("raw", samples.tobytes())):
            assert answers_of(site, f"{k}.{kind}", content) == expected
    assert len({answer for samples in sounds(8) for answer in [offline(bundle, samples)]}) > 1
    site.watch.until(lambda: len(list((site.folder / "inbox" / "done").glob("*"))) == 6, "files in done/")
    assert not site.watch.dead


def test_a_recording_is_answered_window_by_window(site, tmp_path):
    bundle = sound_bundle(tmp_path / "sound")
    start(site, bundle)
    recording = sounds(3).ravel()
    starts = range(0, len(recording) - SAMPLES + 1, HOP)
    expected = [offline(bundle, recording[begin : begin + SAMPLES]) for begin in starts]
    assert answers_of(site, "long.wav", wav(recording), len(starts)) == [expected] * 3
    by_folder = [result for result in site.watch.results if result.origin == "folder"]
    assert [result.input for result in by_folder] == [f"long.wav@{begin / 16000:.10g}s" for begin in starts]
    assert [result.request.rpartition("~")[2] for result in by_folder] == [f"{k}/5" for k in range(1, 6)]
    site.watch.until(lambda: (site.folder / "inbox" / "done" / "long.wav").exists(), "the file in done/")


def test_motion_is_answered_alike_by_every_way_in(site, tmp_path):
    bundle = motion_bundle(tmp_path / "motion")
    start(site, bundle)
    for k, window in enumerate(motions(2)):
        expected = [[offline(bundle, window)]] * 3
        shuffled = csv(window, "gx,az,ax,ay")
        for name, content in (
            ("a.csv", csv(window)),
            ("b.csv", shuffled),
            ("c.npy", npy(window)),
            ("d.bin", window.tobytes()),
        ):
            assert answers_of(site, f"{k}{name}", content) == expected
    assert not site.watch.dead


def test_images_are_answered_alike_and_upright_by_every_way_in(site, bundle, images):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'distree[images]'")
    start(site, bundle)
    reader = InputReader(bundle.manifest.input, bundle.manifest.preprocess)
    for k, image in enumerate(images[:2]):
        picture = pillow.fromarray(image[..., 0]).resize((280, 280))
        exif = pillow.Exif()
        exif[0x0112] = 6
        with io.BytesIO() as upright, io.BytesIO() as turned:
            picture.save(upright, "PNG")
            picture.transpose(pillow.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
            expected = [[offline(bundle, reader.read(upright.getvalue()))]] * 3
            assert answers_of(site, f"{k}.png", upright.getvalue()) == expected
            assert answers_of(site, f"{k}t.png", turned.getvalue()) == expected


def test_what_is_no_input_is_refused_alike_by_every_way_in(site, bundle):
    start(site, bundle)
    refused = {
        "chw.npy": (npy(np.zeros((1, 28, 28), np.uint8)), "shape", "expected (28, 28, 1) uint8, received (1, 28, 28)"),
        "float.npy": (npy(np.zeros((28, 28, 1), np.float32)), "dtype", "expected uint8 (28, 28, 1), received float32"),
        "quarter.npy": (npy(np.zeros((14, 14, 1), np.float32)), "dtype", "expected uint8"),
        "a.wav": (wav(np.zeros(480)), "image", "expected an image file"),
        "a.csv": (b"x\n1\n2\n", "image", "expected an image file, 784 raw bytes or an .npy array"),
    }
    for number, (name, (content, reason, detail)) in enumerate(refused.items(), 1):
        (site.folder / "inbox" / name).write_bytes(content)
        site.watch.publish(topics.of_origin("test", "fashion", Kind.INPUT, "cam"), content)
        path = site.folder / name
        path.write_bytes(content)
        done = submit(site, path)
        assert done.returncode == 1
        assert detail in done.stderr
        site.watch.until(lambda n=number: len(site.watch.dead) == 2 * n, f"refusals of {name}")
        for letter in site.watch.dead[-2:]:
            assert letter.reason == reason
            assert detail in letter.detail
        assert {letter.input for letter in site.watch.dead[-2:]} == {name, ""}
    assert not site.watch.results
    site.watch.until(
        lambda: len(list((site.folder / "inbox" / "failed").glob("*"))) == len(refused), "files in failed/"
    )


def test_a_refused_name_may_be_used_again(site, bundle, images):
    start(site, bundle)
    (site.folder / "inbox" / "a.npy").write_bytes(npy(np.zeros((3, 3), np.uint8)))
    site.watch.until(lambda: (site.folder / "inbox" / "failed" / "a.npy").exists(), "the file in failed/")
    (site.folder / "inbox" / "a.npy").write_bytes(npy(images[0]))
    site.watch.until(lambda: len(site.watch.results) == 1, "an answer")


def test_topics_of_another_program_are_read_with_what_is_retained_there(site, bundle, images):
    """As Frigate publishes: pictures on topics of its own, retained; and Node-RED, in JSON."""
    topic = "frigate/door/person/snapshot"
    before, after, packed = (npy(image) for image in images[:3])
    site.watch.publish(topic, before, retain=True)
    site.watch.settle()
    source = {"kind": "mqtt", "topic": "frigate/+/+/snapshot", "retained": "take"}
    agent = site.agent("cam", [0, 1, 2], origin={"deadline_ms": 20000, "source": source})
    site.watch.until(lambda: len(site.watch.results) == 1, "the answer to what was retained")
    site.watch.publish(topic, after, retain=True)
    text = json.dumps({"camera": "yard", "image": base64.b64encode(packed).decode(), "request": "mine"})
    site.watch.publish("frigate/yard/car/snapshot", text.encode())
    site.watch.publish("frigate/yard/car/snapshot", b'{"camera": "yard", "score": 0.7}')
    site.watch.until(lambda: len(site.watch.results) == 3 and len(site.watch.dead) == 1, "answers and a refusal")
    assert [result.input for result in site.watch.results] == [topic, topic, "frigate/yard/car/snapshot"]
    assert site.watch.results[2].request == "mine"
    expected = [offline(bundle, image) for image in images[:3]]
    assert [(result.class_id, result.exit) for result in site.watch.results] == expected
    (letter,) = site.watch.dead
    assert (letter.topic, letter.reason) == ("frigate/yard/car/snapshot", "json")
    assert "no field of it is known to hold an input (its fields: camera, score)" in letter.detail
    if not site.broker.describe().startswith("mosquitto"):
        return  # the embedded broker delivers what is retained to new sessions only
    agent.terminate()
    agent.wait()
    site.agent("cam", [0, 1, 2], origin={"deadline_ms": 20000, "source": source})
    site.watch.until(lambda: len(site.watch.results) == 4, "the newest retained one, once after a restart")
    assert (site.watch.results[3].class_id, site.watch.results[3].exit) == expected[1]
