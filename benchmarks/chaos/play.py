"""Plays one fault: a site, a stream, the fault in the midst of it, and the account of all inputs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos.books import at_rest
from benchmarks.chaos.ledger import FULL, GRACE_S, Account, Evidence, Excuses, settle
from benchmarks.chaos.scene import CHAIN, DEADLINE_S, ORIGINS, Scene, Setting, open_scene
from benchmarks.chaos.site import CannotPlayError, Observer, Options

RATE_HZ = 50.0
"""Inputs per second of each origin."""

MAX_HOLD_S = 8.0
GOOD_FOR_S = 1.5
"""The stream ends once all answers have been full and in time for so long."""

RECOVERY_LIMIT_S = 40.0
REST_LIMIT_S = 60.0
DRAIN_QUIET_S = 3 * DEADLINE_S
"""What has no answer after so long without any has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault of the matrix. `what` is a sentence for the page; `play` does it to a scene and undoes it."""

    name: str
    what: str
    play: Callable[[Scene], None]
    setting: Setting = CHAIN
    excuses: Excuses = field(default_factory=Excuses)


@dataclass(frozen=True, slots=True)
class Tempo:
    """How an input stream of `inputs`, over both origins, is spread: before, during and after the fault."""

    inputs: int

    @property
    def stream_s(self) -> float:
        return self.inputs / (RATE_HZ * len(ORIGINS))

    @property
    def before_s(self) -> float:
        return 0.12 * self.stream_s

    @property
    def hold_s(self) -> float:
        return min(MAX_HOLD_S, 0.3 * self.stream_s)

    @property
    def after_s(self) -> float:
        return self.stream_s - self.before_s - self.hold_s


@dataclass(slots=True)
class Played:
    """What came of a fault: an account per origin, or why it could not be played.

    `failures` are inputs lost, wrong or unaccounted for, and whatever else must not be; `slow` is what was not in time.
    """

    fault: str
    what: str
    accounts: dict[str, Account] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    not_played: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.failures and not self.slow


def play(fault: Fault, tempo: Tempo, options: Options) -> Played:
    """Play a fault and account for every input."""
    played, started_at = Played(fault.name, fault.what), time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="distree-chaos-") as folder,
            open_scene(fault.setting, tempo.hold_s, options, Path(folder)) as scene,
        ):
            _stream(scene, fault, tempo)
            _account(scene, fault, played)
    except CannotPlayError as error:
        played.not_played = str(error)
    except Exception as error:  # noqa: BLE001 - one fault that cannot be finished shall not cost the others
        played.failures.append(f"not finished: {type(error).__name__}: {error}")
    played.seconds = time.monotonic() - started_at
    return played


def _stream(scene: Scene, fault: Fault, tempo: Tempo) -> None:
    for origin, flow in scene.flows.items():
        flow.start(origin, RATE_HZ)
    time.sleep(tempo.before_s)
    scene.began_at = time.monotonic()
    fault.play(scene)
    scene.ended_at = time.monotonic()
    time.sleep(tempo.after_s)
    scene.observer.until(lambda: _is_good(scene), RECOVERY_LIMIT_S, 0.2)
    for flow in scene.flows.values():
        flow.stop()
    scene.publisher.settle()
    _drain(scene.observer, [request for flow in scene.flows.values() for request in flow.requests])


def _drain(observer: Observer, requests: list[str]) -> None:
    """Wait until all are answered, or nothing has been heard for a while."""
    heard, heard_at = -1, time.monotonic()
    while time.monotonic() < heard_at + DRAIN_QUIET_S:
        with observer.lock:
            answered = sum(bool(observer.finals.get(request)) for request in requests)
        if answered == len(requests):
            return
        if answered > heard:
            heard, heard_at = answered, time.monotonic()
        time.sleep(0.2)


def _is_good(scene: Scene) -> bool:
    """Whether all inputs that were published in a while, but for the last moment, have good answers."""
    now, observer = time.monotonic(), scene.observer
    for flow in scene.flows.values():
        for request in reversed(flow.requests):
            published_at = scene.publisher.published_at.get(request, now)
            if published_at < now - GOOD_FOR_S - DEADLINE_S:
                break
            answers = observer.finals.get(request)
            if not answers:
                if published_at < now - DEADLINE_S:
                    return False
                continue
            in_time = answers[0].at - published_at <= DEADLINE_S + GRACE_S
            if not in_time or answers[0].reason not in FULL or answers[0].missing:
                return False
    return True


def _account(scene: Scene, fault: Fault, played: Played) -> None:
    observer = scene.observer
    with ThreadPoolExecutor() as threads:
        resting = {origin: threads.submit(at_rest, observer, origin, REST_LIMIT_S) for origin in ORIGINS}
    for origin, spool in ORIGINS.items():
        flow = scene.flows[origin]
        books, rested = resting[origin].result()
        with observer.lock:
            finals = {request: tuple(observer.finals.get(request, ())) for request in flow.requests}
            plans = dict(observer.plans)
        evidence = Evidence(
            requests=tuple(flow.requests),
            published_at=scene.publisher.published_at,
            acknowledged=frozenset(scene.publisher.acknowledged),
            unheard=frozenset(scene.publisher.unheard),
            finals=finals,
            tap=scene.taps[origin],
            plans=plans,
            network=scene.network,
            deadline_s=DEADLINE_S,
            ended_at=scene.ended_at,
        )
        account = played.accounts[origin] = settle(evidence, fault.excuses, spool=spool)
        if not rested:
            account.failures.append(f"its books do not come to rest: {books.pending} pending")
        if books.accepted != books.answered or books.dropped:
            account.failures.append(f"its books do not balance: {books.figures()}")
        played.failures += [f"{origin}: {failure}" for failure in account.failures]
        played.slow += [f"{origin}: {what}" for what in account.slow]
    missing = [name for name in scene.devices if name not in scene.site.alive()]
    if missing:
        played.failures.append(f"ended and not started again: {', '.join(missing)}")
    if observer.failures:
        played.failures.append(f"messages that cannot be read: {observer.failures[:3]}")
    dead = dict(observer.dead)
    if dead:
        told = ", ".join(f"{count} of {who} ({why})" for (who, why), count in dead.items())
        played.said.append(f"dead letters: {told}")
    played.said += scene.said
    played.failures += scene.failures
