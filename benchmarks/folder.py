"""What becomes of the files of a folder: of a name that is overwritten all the time, and of an agent that is killed.

    python -m benchmarks.folder overwrite
    python -m benchmarks.folder kills

*overwrite*: a camera writes all its pictures under one name, ten a second for a minute, and the broker is killed in the
middle and stays away for 20 s. Twice: the file is opened, truncated and written; a new file is renamed over it.
*kills*: 5,000 files lie in the folder, and the agent is killed (SIGKILL) at twenty random moments and started again.

Real mosquitto, one agent with all stages of `fashion` in a process of its own. A picture is told by its request id,
which is made of its name, its bytes and its date; this computes the same ids, and compares them with the results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from broker_config.managed import ManagedBroker
from device_agent.sources.directory.identity import request_id
from distree import child_processes, topics
from distree.broker_settings import BrokerSettings, Session
from distree.errors import Problem
from distree.topics import Kind
from distree.transport import make_transport
from distree.transport.base import QuietListener, Received

SITE, PIPELINE, DEVICE = "bench", "fashion", "cam"
NAME = "frame.npy"
DEADLINE_S = 1.0
PATIENCE_S = 60.0


class Observer(QuietListener):
    """Keeps the final results, as they came, and what the agent tells of overwritten files. Survives the broker."""

    def __init__(self, port: int) -> None:
        self.results: dict[str, list[tuple[float, bytes]]] = {}
        self.overwritten = 0
        self.events: list[str] = []
        self.transport = make_transport(
            BrokerSettings(port=port), client_id="observer", receive_maximum=512, session=Session.DURABLE
        )
        self.transport.open(
            self,
            [
                (topics.of_origin(SITE, PIPELINE, Kind.RESULT, "+"), 1),
                (topics.device(SITE, DEVICE, Kind.EVENT), 1),
            ],
        )
        self.transport.connect_now(10.0)

    def disconnected(self, why: Problem) -> None:
        """Come back: the broker keeps what comes meanwhile."""

    def received(self, message: Received) -> None:
        """Keep what came."""
        self.transport.acknowledge(message.token)
        found = json.loads(message.payload)
        if topics.parse(message.topic).kind is Kind.EVENT:
            self.events.append(found["what"])
            if (count := re.search(r"(\d+) since the start", found["what"])) is not None:
                self.overwritten = int(count[1])
        elif found["final"]:
            self.results.setdefault(found["request"], []).append((time.monotonic(), message.payload))

    def until(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
        """Return whether the condition holds in time."""
        ends_at = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > ends_at:
                return False
            self.transport.poll(0.01)
        return True

    def watch(self, seconds: float) -> None:
        """Take in what comes for so long."""
        self.until(lambda: False, seconds)


class Stand:
    """A broker, an observer, and an agent with a folder; all in a folder of their own."""

    def __init__(self, folder: Path, poll_s: float = 0.2, quiet_s: float = 1.0) -> None:
        self.folder = folder
        self.inbox = folder / "inbox"
        self.inbox.mkdir()
        self.broker = ManagedBroker(engine="mosquitto", persistence=folder / "broker")
        self.broker.start()
        self.observer = Observer(self.broker.port)
        # A broker that is stopped saves its sessions: from now on it keeps what comes while the observer is away.
        self.broker.stop()
        self.broker.start()
        self.observer.transport.connect_now(10.0)
        source = {"kind": "directory", "path": "inbox", "poll_interval_ms": poll_s * 1e3, "quiet_ms": quiet_s * 1e3}
        config: dict[str, Any] = {
            "site": SITE,
            "device": DEVICE,
            "broker": {"port": self.broker.port},
            "pipelines": [
                {
                    "name": PIPELINE,
                    "bundle": "fashion",
                    "stages": [0, 1, 2],
                    "origin": {"deadline_ms": DEADLINE_S * 1e3, "source": source},
                }
            ],
        }
        (folder / "agent.yaml").write_text(yaml.safe_dump(config))
        self._agent: subprocess.Popen[bytes] | None = None

    def start_agent(self) -> None:
        """Start the agent; it need not be ready on return."""
        command = [sys.executable, "-m", "distree", "agent", "run", "-c", str(self.folder / "agent.yaml")]
        with (self.folder / "agent.log").open("ab") as log:
            self._agent = child_processes.spawn(command, stdout=log, stderr=log)

    def kill_agent(self) -> None:
        """End the agent as a power cut would."""
        assert self._agent is not None
        self._agent.kill()
        self._agent.wait()

    def kill_broker(self) -> None:
        """End the broker as a power cut would."""
        os.kill(self.broker.pid, signal.SIGKILL)
        self.observer.until(lambda: not self.broker.running)

    def close(self) -> None:
        """End everything."""
        if self._agent is not None:
            child_processes.stop(self._agent, 10.0)
        self.observer.transport.close()
        self.broker.stop()


@contextlib.contextmanager
def stand(**options: Any) -> Iterator[Stand]:
    """A stand in a temporary folder."""
    with (
        tempfile.TemporaryDirectory(prefix="distree-folder-") as folder,
        contextlib.closing(Stand(Path(folder), **options)) as made,
    ):
        yield made


def pictures(count: int) -> list[bytes]:
    """Return the content of so many .npy files, each different from all others."""
    made = []
    for number, image in enumerate(np.random.default_rng(1).integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)):
        image[0, :4, 0] = np.frombuffer(number.to_bytes(4, "little"), np.uint8)
        made.append(npy(image))
    return made


def npy(image: np.ndarray) -> bytes:
    """Return an image as the content of an .npy file."""
    header = np.lib.format.header_data_from_array_1_0(image)
    head = repr(header).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + image.tobytes()


# ---------------------------------------------------------------- one name, overwritten


@dataclass
class Overwritten:
    """What became of the pictures of one name."""

    written: int = 0
    answered: int = 0
    overwritten: int = 0
    """As the agent counts."""
    unexplained: int = 0
    """Neither answered nor counted."""
    twice: int = 0
    twice_differently: int = 0
    """Of these, those whose final results differ in a byte. The same bytes can come again: the broker was killed after
    it had passed a result on and before it acknowledged it."""
    moved_unread: int = 0
    last_answered: bool = False
    latencies_s: list[float] = field(default_factory=list)
    """From the close or the rename of a picture to its result, for those written while the broker was there."""
    after_outage_s: float = 0.0
    """From the broker's return to the result of the picture that was the newest then, or of a newer one."""


class Camera:
    """Overwrites one name in a thread of its own; `taken` has (request id, when it was finished) of each picture."""

    def __init__(self, folder: Path, *, rename: bool, rate_hz: float, seconds: float) -> None:
        self.taken: list[tuple[str, float]] = []
        self._path = folder / NAME
        self._rename = rename
        self._period_s = 1 / rate_hz
        self._pictures = pictures(round(rate_hz * seconds))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether all pictures are taken."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        due_at = time.monotonic()
        for content in self._pictures:
            due_at += self._period_s
            time.sleep(max(0.0, due_at - time.monotonic()))
            self.taken.append((self._write(content), time.monotonic()))

    def _write(self, content: bytes) -> str:
        path = self._path.with_suffix(".tmp") if self._rename else self._path
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            changed_ns = os.fstat(file.fileno()).st_mtime_ns
        if self._rename:
            path.rename(self._path)
        return request_id(NAME, content, changed_ns)


def overwrite(
    bench: Stand, *, rename: bool, seconds: float = 60.0, outage_s: float = 20.0, rate_hz: float = 10.0
) -> Overwritten:
    """Overwrite one name for so long, with an outage of the broker in the middle."""
    observer = bench.observer
    bench.start_agent()
    first = bench.inbox / "first.npy"
    first.write_bytes(pictures(1)[0])
    if not observer.until(lambda: bool(observer.results)):
        raise RuntimeError((bench.folder / "agent.log").read_text())
    observer.results.clear()
    camera = Camera(bench.inbox, rename=rename, rate_hz=rate_hz, seconds=seconds)
    observer.watch((seconds - outage_s) / 2)
    down_at = time.monotonic()
    if outage_s:
        bench.kill_broker()
        observer.watch(outage_s)
        bench.broker.start()
        up_at = time.monotonic()
    else:
        up_at = down_at
    newest = len(camera.taken) - 1
    observer.until(lambda: any(request in observer.results for request, _ in camera.taken[newest:]))
    back_s = time.monotonic() - up_at
    observer.until(lambda: camera.is_done, seconds + PATIENCE_S)
    observer.until(lambda: camera.taken[-1][0] in observer.results, 10.0)
    observer.until(lambda: len(observer.results) + observer.overwritten >= len(camera.taken), 8.0)
    observer.watch(0.5)
    found = Overwritten(written=len(camera.taken), overwritten=observer.overwritten, after_outage_s=back_s)
    found.last_answered = camera.taken[-1][0] in observer.results
    found.answered = sum(request in observer.results for request, _ in camera.taken)
    found.unexplained = found.written - found.answered - found.overwritten
    again = [results for results in observer.results.values() if len(results) > 1]
    found.twice = len(again)
    found.twice_differently = sum(len({payload for _, payload in results}) > 1 for results in again)
    for request, at in camera.taken:
        if request in observer.results and not down_at - DEADLINE_S < at < up_at + back_s:
            found.latencies_s.append(observer.results[request][0][0] - at)
    first_id = _id_of(bench.inbox / "done" / "first.npy", "first.npy")
    ids = {_id_of(path, NAME) for path in (bench.inbox / "done").glob("frame*")} - {first_id}
    found.moved_unread = len(ids - observer.results.keys())
    return found


def _id_of(path: Path, name: str) -> str:
    return request_id(name, path.read_bytes(), path.stat().st_mtime_ns)


# ---------------------------------------------------------------- an agent that is killed


@dataclass
class Killed:
    """What became of the files of a folder whose agent was killed."""

    files: int = 0
    answered: int = 0
    lost: int = 0
    """Files that are in neither the folder nor done/, or have no result."""
    twice: int = 0
    twice_differently: int = 0
    """Files whose final results differ in a byte."""
    left: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    """From each start of the agent to its first new result."""
    seconds: float = 0.0


def kills(bench: Stand, count: int = 5000, times: int = 20, seed: int = 1) -> Killed:
    """Kill the agent so often while it answers so many files."""
    observer, chance = bench.observer, random.Random(seed)
    ids = {}
    for number, content in enumerate(pictures(count)):
        path = bench.inbox / f"{number:05}.npy"
        path.write_bytes(content)
        ids[path.name] = request_id(path.name, content, path.stat().st_mtime_ns)
    found = Killed(files=count)
    began_at = time.monotonic()
    moments = sorted(chance.sample(range(count // 50, count), times))
    for moment in (*moments, count):
        before, started_at = len(observer.results), time.monotonic()
        bench.start_agent()
        if not observer.until(lambda before=before: len(observer.results) > min(before, count - 1)):  # type: ignore[misc]
            raise RuntimeError((bench.folder / "agent.log").read_text())
        found.recoveries_s.append(time.monotonic() - started_at)
        if moment < count:
            observer.until(lambda moment=moment: len(observer.results) >= moment)  # type: ignore[misc]
            observer.watch(chance.uniform(0.0, 0.05))
            bench.kill_agent()
    observer.until(lambda: len(observer.results) >= count)
    observer.until(lambda: len(list((bench.inbox / "done").iterdir())) >= count)
    found.seconds = time.monotonic() - began_at
    done = {path.name for path in (bench.inbox / "done").iterdir()}
    left = {path.name for path in bench.inbox.glob("*.npy")}
    found.left = len(left)
    found.answered = sum(request in observer.results for request in ids.values())
    found.lost = sum(name not in done | left or ids[name] not in observer.results for name in ids)
    again = [results for results in observer.results.values() if len(results) > 1]
    found.twice = len(again)
    found.twice_differently = sum(len({payload for _, payload in results}) > 1 for results in again)
    return found


# ---------------------------------------------------------------- tables


def percentiles(values: list[float]) -> str:
    """Return median, 95th percentile and maximum, in ms."""
    if not values:
        return "—"
    return " / ".join(f"{1e3 * float(value):.0f}" for value in (*np.percentile(values, (50, 95)), max(values)))


def table(rows: list[tuple[str, ...]]) -> str:
    """Return rows as a table in Markdown; the first is the head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join((head, "|" + "---|" * len(rows[0]), *body))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("overwrite", "kills"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--outage", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.what == "kills":
        with stand() as bench:
            killed = kills(bench, args.files, args.kills, args.seed)
        print(
            table(
                [
                    ("", f"{args.files} files, {args.kills} kills"),
                    ("answered", str(killed.answered)),
                    ("lost", str(killed.lost)),
                    ("still in the folder", str(killed.left)),
                    ("final results published twice", str(killed.twice)),
                    ("of these, not the same bytes", str(killed.twice_differently)),
                    ("start to first new result, ms p50 / p95 / most", percentiles(killed.recoveries_s)),
                    ("seconds in all", f"{killed.seconds:.1f}"),
                ]
            )
        )
        return
    columns = []
    for rename in (False, True):
        with stand() as bench:
            columns.append(
                overwrite(bench, rename=rename, seconds=args.seconds, outage_s=args.outage, rate_hz=args.rate)
            )
    rows: list[tuple[str, ...]] = [("", "written in place", "renamed into place")]
    for what, show in (
        ("pictures written", lambda one: str(one.written)),
        ("answered", lambda one: str(one.answered)),
        ("overwritten unread, as the agent counts", lambda one: str(one.overwritten)),
        ("unexplained", lambda one: str(one.unexplained)),
        ("answered twice", lambda one: str(one.twice)),
        ("of these, not the same bytes", lambda one: str(one.twice_differently)),
        ("moved unread", lambda one: str(one.moved_unread)),
        ("last picture answered", lambda one: "yes" if one.last_answered else "NO"),
        ("finished to result, ms p50 / p95 / most", lambda one: percentiles(one.latencies_s)),
        (f"later than {DEADLINE_S:g} s", lambda one: str(sum(value > DEADLINE_S for value in one.latencies_s))),
        ("broker back to newest picture's result, s", lambda one: f"{one.after_outage_s:.2f}"),
    ):
        rows.append((what, *map(show, columns)))
    print(table(rows))


if __name__ == "__main__":
    main()
