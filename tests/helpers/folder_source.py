"""A source of files that is stepped by hand: a sink that answers when told, and a clock that only tests advance."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np

from device_agent.sources.directory import DirectorySource, DirectorySourceConfig
from device_agent.sources.directory.put_away import SETTLE_S
from distree.bundle.inputs import InputReader
from distree.bundle.loading import load_bundle
from distree.bundle.preprocessing import Preprocessor
from distree.messages.events import EventKind, Severity

SHAPE = (28, 28, 1)

QUIET_S = 1.6
"""More than the tests' `quiet_ms`, with the looks before and after."""


def picture(value: int = 0) -> bytes:
    """The content of an .npy file: an input of `fashion`, all of one value."""
    with io.BytesIO() as file:
        np.save(file, np.full(SHAPE, value, np.uint8))
        return file.getvalue()


class Told:
    """Keeps what is told as `InputSink.tell` does: (kind, what, remedy, severity)."""

    def __init__(self):
        self.events = []

    def __call__(self, kind, what, remedy="", *, severity=Severity.WARNING, like=""):
        assert isinstance(kind, EventKind)
        assert remedy or severity is Severity.INFO
        self.events.append((kind, what, remedy, severity))

    def lines(self, word):
        """Those that contain a word."""
        return [what for _, what, _, _ in self.events if word in what]


class Sink:
    """Takes inputs as an agent does, and has as much `room` as it is told."""

    def __init__(self, state_dir: Path, manifest=None):
        manifest = manifest or load_bundle("fashion", verify=()).manifest
        self.preprocessor = Preprocessor(manifest)
        self.reader = InputReader(manifest.input, manifest.preprocess)
        self.state_dir = state_dir
        self.room = 1000
        self.submitted = []
        self.rejected = []
        self.tell = Told()
        self.on_submit = lambda request: None

    def wait_for_room(self, timeout_s):
        return self.room > 0

    def submit(self, name, raw, request=None):
        self.preprocessor.tensor(raw)  # raises for a wrong dtype or shape
        self.on_submit(request)
        self.submitted.append((name, raw, request))
        self.room -= 1
        return request

    def run_jobs(self):
        pass

    def reject(self, name, error, payload):
        assert error.remedy
        self.rejected.append((name, error.reason, error.detail))

    def wake(self):
        pass

    def names(self):
        return [name for name, _, _ in self.submitted]

    def values(self):
        """What the submitted pictures are full of."""
        return [int(raw.flat[0]) for _, raw, _ in self.submitted]


class Clock:
    """Monotonic seconds that pass only in `sleep`."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Folder:
    """A folder, and the runs of a source on it, one after the other, that share journal and clock."""

    def __init__(self, root: Path, manifest=None):
        self.path = root / "in"
        self.path.mkdir()
        self.state_dir = root / "state"
        self.manifest = manifest
        self.clock = Clock()
        self.stop = threading.Event()
        self.source: DirectorySource | None = None
        self.sink: Sink | None = None

    def start(self, **config) -> Folder:
        """Start a run, after killing the one before: nothing of it is closed or written."""
        self.sink = Sink(self.state_dir, self.manifest)
        settings = {"quiet_ms": 1000, "poll_interval_ms": 200, **config}
        made = DirectorySourceConfig(kind="directory", path=self.path, **settings)
        self.source = DirectorySource(made, self.sink, self.clock)
        self.source.begin()
        self.turn()
        return self

    def turn(self) -> None:
        """Do all that is due now, and a moment later."""
        for _ in range(2):
            while self.source.turn(self.stop):
                if self.sink.room <= 0:
                    break
            self.clock.sleep(SETTLE_S)

    def pass_time(self, seconds: float) -> None:
        """Let time pass in steps of polls."""
        for _ in range(round(seconds / 0.2)):
            self.clock.sleep(0.2 - 2 * SETTLE_S)
            self.turn()

    def answer(self, *requests: str) -> None:
        """Have the broker take results: of these requests, by default of all that were submitted."""
        for request in requests or [request for _, _, request in self.sink.submitted]:
            self.source.note_answered(request)
        self.turn()

    def put(self, name: str, content: bytes = b"") -> Path:
        """Move a finished file here."""
        hidden = self.path / ".coming"
        hidden.write_bytes(content or picture())
        return hidden.rename(self.path / name)

    def names(self, *subfolder: str) -> list[str]:
        """The files that are there, sorted."""
        where = self.path.joinpath(*subfolder)
        return sorted(path.name for path in where.iterdir() if not path.is_dir()) if where.is_dir() else []
