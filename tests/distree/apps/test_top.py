"""`distree top`: figures out of reports, pictures that fit a terminal, and the command on a real broker and a real tty."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace

import pytest
from memory_transport import MemoryBroker
from message_samples import EVENT
from orchestrator_samples import HASH, SITE, meta, origin, plan, send, stage, state, telemetry

from broker_config.managed import ManagedBroker
from distree import child_processes, topics
from distree.apps.cli import main
from distree.apps.top.live import Live
from distree.broker_settings import BrokerSettings, Session
from distree.messages.codec import encode
from distree.messages.plan import plan_hash
from distree.messages.site import Claim
from distree.messages.telemetry import PipelineTelemetry
from distree.thresholds import NEVER
from distree.topics import Kind
from distree.transport import make_transport

pytestmark = pytest.mark.any_broker

needs_rich = pytest.mark.skipif(
    importlib.util.find_spec("rich") is None, reason="rich is not installed: pip install 'distree[top]'"
)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Peer:
    def __init__(self, transport):
        self.transport = transport
        transport.open(self, [])
        transport.connect_now(10.0)

    def connected(self): ...
    def disconnected(self, why): ...
    def received(self, message): ...
    def published(self, token): ...

    def given_up(self, token):
        pass

    def no_subscribers(self, topic, payload):
        pass

    def say(self, *messages):
        for message in messages:
            send(self.transport, message)

    def raw(self, topic, payload, retain=False):
        with self.transport.lock:
            self.transport.publish(topic, payload, qos=1, retain=retain)


class Scene:
    """A broker in memory, a peer that speaks for boards, and what `distree top` knows."""

    def __init__(self):
        broker, self.clock = MemoryBroker(), Clock()
        self.peer = Peer(broker.transport("peer"))
        self.transport = broker.transport("top")
        self.live = Live(SITE, self.transport, clock=self.clock)
        self.transport.open(self.live, self.live.subscriptions())
        self.transport.connect_now(1.0)

    def frame(self):
        for _ in range(5):
            self.transport.poll(0.0)
        return self.live.frame()


@pytest.fixture
def scene():
    return Scene()


def report(sequence, *, device="a", exits=(70, 20, 10), ran=100, epoch=3, follows=HASH, **changes):
    made = origin(exits=exits) if changes.pop("is_origin", True) else None
    if made is not None:
        made = replace(made, answered=sum(exits))
    stages = (replace(stage(), exited=ran // 2, forwarded=ran - ran // 2, waiting=4),)
    part = PipelineTelemetry(
        pipeline="fashion", epoch=epoch, plan_hash=follows, revision="r1", stages=stages, origin=made
    )
    return telemetry(device=device, sequence=sequence, pipelines=(part,), **changes)


def test_rates_and_shares_are_of_the_time_between_two_reports(scene):
    scene.peer.say(state(), meta(), report(1))
    (row,) = scene.frame().boards
    assert (row.rates.runs_hz, row.rates.answers_hz, row.rates.early_share) == (10.0, 10.0, 0.9)
    scene.peer.say(report(2, exits=(75, 20, 15), ran=130))
    (row,) = scene.frame().boards
    assert (row.rates.runs_hz, row.rates.answers_hz, row.rates.early_share) == (3.0, 1.0, 0.5)
    assert (row.board.waiting, row.rates.pending, row.rates.latency_p95_s, row.board.rss_bytes) == (
        4,
        1,
        0.009,
        30_000_000,
    )
    assert row.board.serves == "fashion:0,origin"
    # Started anew, a board is counted from its start.
    scene.peer.say(state(boot="b2"), report(1, exits=(4, 0, 0), ran=8, boot="b2", uptime_s=4.0))
    (row,) = scene.frame().boards
    assert (row.rates.runs_hz, row.rates.answers_hz, row.rates.early_share) == (2.0, 1.0, 1.0)


def test_pipelines_have_thresholds_and_what_all_origins_answered(scene):
    wanted = plan(epoch=3, thresholds=(0.9, NEVER))
    scene.peer.say(wanted, state(), meta(), report(1, follows=plan_hash(wanted)), state(device="b"), meta(device="b"))
    scene.peer.say(report(1, device="b", exits=(10, 40, 50), epoch=2))
    (row,) = scene.frame().pipelines
    assert row.others == 1
    assert (row.criterion, row.thresholds, row.epochs) == ("max_softmax", "0.9 never", (2, 3))
    assert row.shares == (0.4, 0.3, 0.3)
    assert (row.answers_hz, row.latency_p95_s) == (20.0, 0.009)
    scene.peer.raw(topics.plan(SITE, "fashion"), b"", retain=True)
    (row,) = scene.frame().pipelines
    assert row.thresholds is None


def test_boards_that_need_a_look_come_first_and_removed_ones_go(scene):
    scene.peer.say(*(state(device=name) for name in "abc"), state(device="d", status="lost"))
    scene.peer.say(*(report(1, device=name) for name in "abc"))
    frame = scene.frame()
    assert [row.board.device for row in frame.boards] == ["d", "a", "b", "c"]
    scene.clock.now += 1000.0
    scene.peer.say(report(2, device="a"), report(2, device="b"))
    frame = scene.frame()
    assert [(row.board.device, row.board.is_silent) for row in frame.boards][:2] == [("c", True), ("d", False)]
    scene.peer.raw(topics.device(SITE, "d", Kind.STATE), b"", retain=True)
    assert "d" not in [row.board.device for row in scene.frame().boards]


def test_who_speaks_for_another_is_counted_and_not_believed(scene):
    scene.peer.raw(topics.device(SITE, "a", Kind.STATE), encode(state(device="b")))
    scene.peer.raw(topics.device(SITE, "a", Kind.TELEMETRY), encode(report(1, device="b")))
    scene.peer.raw(topics.device(SITE, "a", Kind.META), b"\xff")
    scene.peer.raw(topics.plan(SITE, "other"), encode(plan()))
    frame = scene.frame()
    assert (frame.boards, frame.pipelines, frame.refused) == ((), (), 4)


def test_events_are_shown_with_their_age_and_only_the_last_are_kept(scene):
    told = encode(EVENT)
    scene.peer.raw(topics.device(SITE, "cam1", Kind.EVENT), told)
    scene.peer.raw(topics.device(SITE, "b1", Kind.EVENT), told)  # speaks for another board
    scene.frame()
    scene.clock.now += 7.0
    frame = scene.frame()
    assert [(shown.age_s, shown.event.what) for shown in frame.events] == [(7.0, EVENT.what)]
    assert frame.refused == 1
    for k in range(30):
        scene.peer.raw(topics.site_event(SITE), encode(replace(EVENT, what=f"event {k}")))
    assert [shown.event.what for shown in scene.frame().events] == [f"event {k}" for k in range(10, 30)]


@needs_rich
@pytest.mark.parametrize("height", [12, 24, None])
def test_the_last_events_are_drawn_below_the_boards(scene, height):
    for k in range(30):
        scene.peer.raw(topics.site_event(SITE), encode(replace(EVENT, what=f"event {k}")))
    lines = drawn(scene.frame(), height=height).splitlines()
    assert len(lines) <= (height or 100)
    assert "event 29; plug it in" in lines[-1]
    assert all(len(line) <= 80 for line in lines)


def test_complete_is_when_all_ready_boards_have_reported(scene):
    assert not scene.live.is_complete()
    scene.peer.say(state(), state(device="b"), state(device="c", status="lost"), report(1))
    scene.frame()
    assert not scene.live.is_complete()
    scene.peer.say(report(1, device="b"))
    scene.frame()
    assert scene.live.is_complete()


# ---------------------------------------------------------------- pictures


def drawn(frame, width=80, height=None):
    from rich.console import Console

    from distree.apps.top.screen import draw

    out = io.StringIO()
    Console(file=out, width=width, height=height or 24).print(draw(frame, width=width, height=height))
    return out.getvalue()


@needs_rich
@pytest.mark.parametrize("boards", [0, 1, 3, 200])
def test_a_picture_fits_its_terminal_and_no_figure_is_cut(scene, boards):
    scene.peer.raw(topics.orchestrator(SITE), encode(Claim(orchestrator="o1", running=True)), retain=True)
    wanted = plan(epoch=3, thresholds=(0.123456, 0.8))
    scene.peer.say(wanted)
    for k in range(boards):
        name = f"board-of-a-long-name-{k}"
        wide = meta(device=name, stages=(0, 1, 2), name="a-pipeline-of-a-long-name")
        scene.peer.say(
            state(device=name), wide, report(1, device=name, exits=(700_000, 20, 100_000), follows=plan_hash(wanted))
        )
    frame = scene.frame()
    assert len(frame.boards) == boards
    lines = drawn(frame, height=24).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    noun = "board" if boards == 1 else "boards"
    assert f"site lab: {boards:,} of {boards:,} {noun} ready, orchestrator running" in lines[0]
    text = "\n".join(lines)
    if boards:
        row = next(line for line in lines if line.startswith("board-of-a-"))
        assert row.split()[-8:] == ["10.0", "4", "80002.0", "1", "88%", "4.0", "9.0", "30"]
        assert "max_softmax 0.123456 0.8" in text
        assert "87.5% 0.0025% 12.5%" in text
    else:
        assert "no board of site lab has been heard from yet" in text
    assert ("more; a taller terminal shows them" in text) == (boards == 200)
    assert drawn(frame).count("board-of-a") == boards


@needs_rich
def test_only_rows_that_are_shown_are_made(scene, monkeypatch):
    """A site may have ten thousand boards, or somebody who says so."""
    from distree.apps.top import screen

    made = []
    cells = screen._board_cells
    monkeypatch.setattr(screen, "_board_cells", lambda row: made.append(row) or cells(row))
    for k in range(200):
        scene.peer.say(state(device=f"b{k}"))
    drawn(scene.frame(), height=24)
    assert 10 < len(made) < 24


@needs_rich
def test_what_peers_say_is_no_markup(scene):
    scene.peer.say(state(), report(1), plan(epoch=3, criterion="[red]x[/red]\\"))
    shown = drawn(scene.frame())
    assert "[red]x[/red]\\" in shown
    assert "3 (1 other)" in shown


# ---------------------------------------------------------------- the command


@pytest.fixture
def broker():
    with ManagedBroker() as running:
        yield running


@pytest.fixture
def boards(broker):
    """Two boards that report every now and then, as long as the test polls."""
    peer = Peer(make_transport(BrokerSettings(port=broker.port), client_id="boards", session=Session.NONE))
    peer.say(state(), meta(), state(device="b"), meta(device="b", origin=False), plan(epoch=3))
    peer.transport.poll(0.1)
    yield peer
    peer.transport.close()


def reporting(peer, sequence):
    """At any two of these reports, the boards did 10 runs and answers a second."""
    exits = tuple(count * sequence for count in (70, 20, 10))
    peer.say(report(sequence, exits=exits, ran=100 * sequence))
    peer.say(report(sequence, device="b", ran=100 * sequence, is_origin=False))
    peer.transport.poll(0.05)


@needs_rich
def test_once_prints_one_picture_for_scripts(broker, boards):
    words = ["top", "--broker", f"127.0.0.1:{broker.port}", "--site", SITE, "--once", "--wait", "60"]
    environment = {**os.environ, "COLUMNS": "80"}
    process = child_processes.spawn(
        [sys.executable, "-m", "distree", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    ends_at, sequence = time.monotonic() + 60, 0
    while process.poll() is None and time.monotonic() < ends_at:
        sequence += 1
        reporting(boards, sequence)
    out, err = process.communicate(timeout=30)
    text = out.decode()
    assert (process.returncode, err) == (0, b"")
    assert "\x1b" not in text
    assert "site lab: 2 of 2 boards ready, no orchestrator" in text
    assert re.search(r"^fashion +3 +10\.0 +9\.0 +70% 20% 10% +max_softmax 0\.9 0\.8", text, re.MULTILINE)
    assert re.search(r"^b +ready +fashion:0 +10\.0 +4 +- +- +- +- +- +30", text, re.MULTILINE)


@needs_rich
def test_once_without_any_board_ends_with_status_1(broker, capsys):
    words = ["top", "--broker", f"127.0.0.1:{broker.port}", "--site", "empty", "--once", "--wait", "0.5"]
    assert main(words) == 1
    assert "no board of site empty has been heard from yet" in capsys.readouterr().out


@needs_rich
def test_it_follows_in_a_terminal_of_80_by_24_until_ctrl_c(broker, boards):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    argv = [sys.executable, "-m", "distree", "top", "--broker", f"127.0.0.1:{broker.port}", "--site", SITE]
    process = child_processes.spawn(argv, stdout=slave, stderr=slave, env={**environment, "TERM": "xterm-256color"})
    os.close(slave)
    try:
        seen, sequence, ends_at = "", 0, time.monotonic() + 60
        while "70% 20% 10%" not in seen or "fashion:0,origin" not in seen:
            assert process.poll() is None, seen
            assert time.monotonic() < ends_at, seen
            sequence += 1
            reporting(boards, sequence)
            if select.select([master], [], [], 0.1)[0]:
                seen += os.read(master, 65536).decode()
        process.send_signal(signal.SIGINT)
        ends_at = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < ends_at:
            with contextlib.suppress(OSError):  # the other end is closed
                if select.select([master], [], [], 0.1)[0]:
                    seen += os.read(master, 65536).decode()
        assert process.wait(10) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
    assert "Traceback" not in seen
    # Each picture begins with the cursor at home.
    for picture in seen.split("\x1b[H"):
        lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", picture).replace("\r", "").split("\n")
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80


def test_without_rich_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    assert main(["top", "--site", "lab"]) == 2
    assert capsys.readouterr().err == "distree: distree top needs the package rich; run: pip install 'distree[top]'\n"
