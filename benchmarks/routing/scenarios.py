"""What happens to boards, and what is counted of it."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.routing.fleet import TINY_WIDE, Answer, Ear, Fleet, Stream, fashion_images, fleet, tiny_images

RATE_HZ = 60.0
WARM_S = 4.0
PACE_MS = 5.0
"""What a segment takes on boards that are alike."""

PAUSE_S = 20.0
QUICK_MS, SLOW_MS = 10.0, 40.0
UNEVEN_HZ = (30.0, 60.0, 100.0, 150.0)
ORIGINS, BOARDS_OF_A_STAGE = 10, 10
SETTLE_S = 20.0
"""After a restart of the broker its own figures are read so late."""

Row = dict[str, "float | int | str"]


@dataclass(frozen=True, slots=True)
class Options:
    """Which agents to play with, and how long a fault is looked at."""

    checkout: Path
    seconds: float


def figures(stream: Stream, ear: Ear, fault_at: float | None = None) -> Row:
    """Count what became of the inputs of a stream."""
    answers: dict[str, Answer] = {name: ear.answers[name] for name in stream.sent if name in ear.answers}
    repeated = [stream.sent[name] for name, answer in answers.items() if answer.attempt > 1]
    late = [stream.sent[name] for name, answer in answers.items() if answer.reason in ("fallback", "deadline", "shed")]
    latencies = [answer.latency_ms for answer in answers.values()] or [0.0]
    row: Row = {
        "offered": len(stream.sent),
        "unanswered": len(stream.sent) - len(answers),
        "repeated": len(repeated),
        "fallback": len(late),
        "missing": sum(answer.missing > 0 for answer in answers.values()),
        "p50_ms": float(np.percentile(latencies, 50)),
        "p95_ms": float(np.percentile(latencies, 95)),
    }
    if fault_at is not None:
        # When the input was sent that was the last one to be hit.
        lacking = [stream.sent[name] for name, answer in answers.items() if answer.missing]
        for name, hit in (("last_repeated_s", repeated), ("last_fallback_s", late), ("last_missing_s", lacking)):
            row[name] = max(hit) - fault_at if hit else "-"
    return row


def _await_answers(stream: Stream, ear: Ear, patience_s: float = 15.0) -> None:
    stream.stop()
    ends_at = time.monotonic() + patience_s
    while time.monotonic() < ends_at and any(name not in ear.answers for name in stream.sent):
        time.sleep(0.05)


def _strike(here: Fleet, board: str, how: str, seconds: float) -> float:
    """Do something to a board, and wait until the time is up; return when it was done."""
    at = time.monotonic()
    if how == "paused":
        here.signal(board, signal.SIGSTOP)
        time.sleep(min(PAUSE_S, 2 * seconds / 3))
        here.signal(board, signal.SIGCONT)
    else:
        here.signal(board, signal.SIGTERM if how == "stopped" else signal.SIGKILL)
    time.sleep(max(0.0, at + seconds - time.monotonic()))
    return at


def chain(how: str, options: Options) -> list[Row]:
    """Two boards have stage 1, and one of them goes."""
    with fleet(options.checkout) as here:
        here.send_all_on(2)
        for board in ("a", "b"):
            here.board(board, [1], pace_ms=PACE_MS, keepalive_s=5)
        here.board("last", [2], pace_ms=PACE_MS)
        here.ready("a", "b", "last")
        here.origin("cam", [0])
        here.ready("cam")
        stream = Stream(here.broker.port, ["cam"], fashion_images(), RATE_HZ)
        time.sleep(WARM_S)
        at = _strike(here, "a", how, options.seconds)
        _await_answers(stream, here.ear)
        return [figures(stream, here.ear, at)]


def wide(how: str, options: Options) -> list[Row]:
    """Two boards have a branch, and one of them goes."""
    with fleet(options.checkout, str(TINY_WIDE)) as here:
        for board, branch in (("b0", 0), ("b1", 1), ("twin", 1)):
            here.board(board, [0, 1, 2], branch=branch, pace_ms=PACE_MS, keepalive_s=5)
        here.ready("b0", "b1", "twin")
        here.origin("cam", [])
        here.ready("cam")
        stream = Stream(here.broker.port, ["cam"], tiny_images(), RATE_HZ)
        time.sleep(WARM_S)
        at = _strike(here, "twin", how, options.seconds)
        _await_answers(stream, here.ear)
        return [figures(stream, here.ear, at)]


def restart(how: str, options: Options) -> list[Row]:
    """The only board of stage 2 ends and is started anew at once; inputs have ten seconds."""
    with fleet(options.checkout) as here:
        here.send_all_on(2)
        here.board("first", [1], pace_ms=PACE_MS)
        here.board("only", [2], pace_ms=PACE_MS)
        here.ready("first", "only")
        here.origin("cam", [0], deadline_ms=10_000)
        here.ready("cam")
        stream = Stream(here.broker.port, ["cam"], fashion_images(), RATE_HZ)
        time.sleep(WARM_S)
        at = time.monotonic()
        here.signal("only", signal.SIGTERM if how == "stopped" else signal.SIGKILL)
        here.processes["only"].wait(20.0)
        here.board("only", [2], pace_ms=PACE_MS)
        time.sleep(max(0.0, at + options.seconds - time.monotonic()))
        _await_answers(stream, here.ear)
        return [figures(stream, here.ear, at)]


def uneven(options: Options) -> list[Row]:
    """Two boards have stage 1, and one needs four times as long as the other."""
    rows = []
    for rate_hz in UNEVEN_HZ:
        with fleet(options.checkout) as here:
            here.send_all_on(2)
            here.board("quick", [1], pace_ms=QUICK_MS)
            here.board("slow", [1], pace_ms=SLOW_MS)
            here.board("last", [2])
            here.ready("quick", "slow", "last")
            here.origin("cam", [0])
            here.ready("cam")
            warm = Stream(here.broker.port, ["cam"], fashion_images(), rate_hz, "w")
            time.sleep(WARM_S)
            warm.stop()
            began_at = time.monotonic()
            stream = Stream(here.broker.port, ["cam"], fashion_images(), rate_hz)
            time.sleep(options.seconds / 3)
            _await_answers(stream, here.ear)
            answers = [here.ear.answers[name] for name in stream.sent if name in here.ear.answers]
            done = [answer for answer in answers if answer.reason == "last"]
            took_s = max([answer.at for answer in done], default=time.monotonic()) - began_at
            by_slow = sum("slow" in answer.boards for answer in done)
            rows.append(
                {
                    "offered_hz": rate_hz,
                    **figures(stream, here.ear),
                    "served_hz": len(done) / took_s,
                    "by_slow_%": 100 * by_slow / max(1, len(done)),
                }
            )
    return rows


def broker(options: Options) -> list[Row]:
    """The broker of thirty boards, ten of them origins, is ended and started anew."""
    with fleet(options.checkout) as here:
        here.send_all_on(2)
        boards = [f"s{stage}-{k}" for stage in (1, 2) for k in range(BOARDS_OF_A_STAGE)]
        for board in boards:
            here.board(board, [int(board[1])])
        here.ready(*boards)
        origins = [f"cam{k}" for k in range(ORIGINS)]
        for origin in origins:
            here.origin(origin, [0])
        here.ready(*origins)
        before = Stream(here.broker.port, origins, fashion_images(), 2.0 * ORIGINS)
        time.sleep(WARM_S)
        here.ear.until(lambda: _travelled(here.ear, before) == set(origins), "answers of all origins")
        before.stop()
        here.ear.close()
        here.broker.stop()
        time.sleep(2.0)
        here.broker.start()
        began_at = time.monotonic()
        here.ear, counter = Ear(here.broker.port), Ear(here.broker.port, all_of_it=True)
        after = Stream(here.broker.port, origins, fashion_images(), 2.0 * ORIGINS, "after")
        here.ear.until(lambda: _travelled(here.ear, after) == set(origins), "answers of all origins", 120.0)
        recovered_s = time.monotonic() - began_at
        time.sleep(max(0.0, began_at + SETTLE_S - time.monotonic()))
        with counter.lock:
            kinds, told = dict(counter.kinds), dict(counter.sys)
        _await_answers(after, here.ear)
        counter.close()
        work = sum(kinds.get(kind, 0) for kind in ("stage", "outcome", "result", "input"))
        return [
            {
                "recovered_s": recovered_s,
                "seen_in_20_s": sum(kinds.values()),
                "of_inputs": work,
                "of_boards": sum(kinds.values()) - work,
                "packets_in": told.get("messages/received", "?"),
                "packets_out": told.get("messages/sent", "?"),
                **figures(after, here.ear),
            }
        ]


def _travelled(ear: Ear, stream: Stream) -> set[str]:
    """Return the origins of which an input of this stream went all the way."""
    answers = [ear.answers[name] for name in list(stream.sent) if name in ear.answers]
    return {answer.origin for answer in answers if answer.reason == "last"}


SCENARIOS: dict[str, Callable[[Options], list[Row]]] = {
    **{f"chain-{how}": functools.partial(chain, how) for how in ("stopped", "killed", "paused")},
    **{f"wide-{how}": functools.partial(wide, how) for how in ("stopped", "killed", "paused")},
    **{f"restart-{how}": functools.partial(restart, how) for how in ("stopped", "killed")},
    "uneven": uneven,
    "broker": broker,
}
