"""Cameras and streams with real agents and a real broker: answers, events, and what is left when an agent is killed."""

from __future__ import annotations

import os
import signal
import time
import wave

import numpy as np
import pytest
from live_sink import is_gone, named, needs_ffmpeg, until

from distree.bundle.loading import load_bundle
from distree.exits_taken import exits_taken
from distree.messages.codec import decode
from distree.messages.events import Event, EventKind, Severity
from distree.topics import Kind, parse
from model_zoo.data import load_examples, shipped_samples
from model_zoo.evaluation import collect_logits, score_exits, thresholds_in_force

pytestmark = pytest.mark.any_broker


def evaluated(bundle, examples):
    """(label, exit) of each input, as `distree zoo evaluate` computes them."""
    scored = score_exits(collect_logits(bundle, examples), bundle.manifest.exits.criterion, bundle.criterion_parameters)
    taken = exits_taken(scored.scores, thresholds_in_force(bundle))
    return [(bundle.labels[scored.classes[k, exit_]], int(exit_)) for k, exit_ in enumerate(taken)]


@needs_ffmpeg
def test_recordings_in_a_stream_are_answered_as_they_are_evaluated(site, tmp_path):
    bundle = load_bundle("spoken-digits")
    examples = load_examples(shipped_samples("spoken-digits"))
    with wave.open(str(tmp_path / "all.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.concatenate(examples.inputs).astype("<i2").tobytes())
    site.bundle = "spoken-digits"
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(tmp_path / "all.wav"), "-f", "s16le", "-"]
    source = {"kind": "stream", "command": command, "hop": 8000, "live": False}
    stages = list(range(len(bundle.stages)))
    site.agent("mic", stages, origin={"deadline_ms": 60_000, "source": source})
    count = len(examples)
    site.watch.until(lambda: len(site.watch.final()) == count, "the answers")
    answers = {result.input: (result.label, result.exit) for result in site.watch.final().values()}
    assert [answers[f"{k}s"] for k in range(count)] == evaluated(bundle, examples)


@needs_ffmpeg
def test_a_killed_ffmpeg_is_an_event_and_dies_with_a_killed_agent(site):
    pytest.importorskip("PIL", reason="pictures are fitted by Pillow: pip install 'distree[images]'")
    events, received = [], site.watch.received

    def keep(message):
        if parse(message.topic).kind is Kind.EVENT:
            events.append(decode(Event, message.payload))
        received(message)

    site.watch.received = keep
    source = {
        "kind": "camera",
        "input": "testsrc=size=64x48:rate=10",
        "input_options": ["-re", "-f", "lavfi"],
        "rate_hz": 10,
    }
    agent = site.agent("cam", [0, 1, 2], origin={"deadline_ms": 20_000, "source": source})
    site.watch.until(lambda: len(site.watch.final()) >= 5, "answers")
    (pid,) = named("ffmpeg", agent.pid)
    os.kill(pid, signal.SIGKILL)
    site.watch.until(lambda: len(events) == 2, "both events")
    assert [(event.kind, event.severity) for event in events] == [
        (EventKind.SOURCE, Severity.WARNING),
        (EventKind.SOURCE, Severity.INFO),
    ]
    assert events[0].what == "camera testsrc=size=64x48:rate=10 broke down: killed by SIGKILL"
    assert events[1].what.startswith("camera testsrc=size=64x48:rate=10 works again, after ")
    known = len(site.watch.final())
    site.watch.until(lambda: len(site.watch.final()) >= known + 5, "answers again")
    (pid,) = named("ffmpeg", agent.pid)
    assert len(site.watch.results) == len(site.watch.final())
    site.kill("cam")
    killed_at = time.monotonic()
    until(lambda: is_gone(pid), "the end of ffmpeg", 5.0)
    assert time.monotonic() - killed_at < 5.0


@needs_ffmpeg
def test_a_stopped_agent_leaves_no_ffmpeg(site):
    pytest.importorskip("PIL", reason="pictures are fitted by Pillow: pip install 'distree[images]'")
    source = {
        "kind": "camera",
        "input": "testsrc=size=64x48:rate=10",
        "input_options": ["-re", "-f", "lavfi"],
        "rate_hz": 10,
    }
    agent = site.agent("cam", [0, 1, 2], origin={"deadline_ms": 20_000, "source": source})
    site.watch.until(lambda: len(site.watch.final()) >= 3, "answers")
    (pid,) = named("ffmpeg", agent.pid)
    agent.terminate()
    assert agent.wait(30) == 0
    assert is_gone(pid)
    assert " pictures came: " in site.log("cam")
