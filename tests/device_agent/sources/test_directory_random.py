"""Writers that do anything at any time, and an agent that is killed at any time: whatever happens, no picture is torn,
lost or put away unread, and each is answered or counted.
"""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from folder_source import QUIET_S, SHAPE, Folder
from thoroughness import often

NAMES = ("a.npy", "b.npy", "c.npy")


def numbered(number):
    """A picture that says which it is, in its first and in its last bytes."""
    array = np.zeros(SHAPE, np.uint8)
    array.flat[:4] = array.flat[-4:] = np.frombuffer(number.to_bytes(4, "little"), np.uint8)
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def number_of(raw):
    """Which picture an input is; fails for one that is torn."""
    first, last = (int.from_bytes(part.tobytes(), "little") for part in (raw.flat[:4], raw.flat[-4:]))
    assert first == last, "torn"
    return first


class World:
    """A folder, its writers, and what they have finished."""

    def __init__(self, root, seed, *, kills):
        self.chance = random.Random(seed)
        self.kills = kills
        self.folder = Folder(root)
        self.folder.start()
        self.count = 0
        self.open = {}
        self.newest = {}
        self.finished = set()
        self.submitted = set()
        self.removed_unread = 0

    def see(self):
        """Take note of what was submitted since, none of it torn."""
        for _, raw, _ in self.folder.sink.submitted:
            self.submitted.add(number_of(raw))

    def step(self):
        name = self.chance.choice(NAMES)
        acts = [self.write, self.begin, self.go_on, self.finish, self.replace, self.answer, self.pass_time, self.room]
        acts += [self.turn] * 4 + ([self.kill] if self.kills else [self.remove])
        self.chance.choice(acts)(name)
        self.see()

    def fresh(self):
        self.count += 1
        return self.count, numbered(self.count)

    def done(self, name, number):
        self.finished.add(number)
        self.newest[name] = number

    def write(self, name):
        if name not in self.open:
            number, content = self.fresh()
            (self.folder.path / name).write_bytes(content)
            self.done(name, number)

    def replace(self, name):
        if name not in self.open:
            number, content = self.fresh()
            self.folder.put(name, content)
            self.done(name, number)

    def begin(self, name):
        if name not in self.open:
            number, content = self.fresh()
            file = (self.folder.path / name).open("wb", buffering=0)
            self.newest.pop(name, None)
            file.write(content[:400])
            self.open[name] = file, number, content[400:]

    def go_on(self, name):
        if name in self.open:
            file, number, rest = self.open[name]
            file.write(rest[:50])
            self.open[name] = file, number, rest[50:]

    def finish(self, name):
        if name in self.open:
            file, number, rest = self.open.pop(name)
            file.write(rest)
            file.close()
            self.done(name, number)

    def remove(self, name):
        if name not in self.open and (self.folder.path / name).exists():
            self.turn(name)
            self.see()
            if (self.folder.path / name).exists():
                self.removed_unread += self.newest.pop(name) not in self.submitted
                (self.folder.path / name).unlink()

    def answer(self, _name):
        waiting = [request for _, _, request in self.folder.sink.submitted if request in self.folder.source._files]
        self.folder.answer(*self.chance.sample(waiting, len(waiting) // 2), "unknown")

    def pass_time(self, _name):
        self.folder.pass_time(self.chance.choice((0.2, 2.0, 12.0)))

    def room(self, _name):
        self.folder.sink.room = self.chance.choice((0, 1, 5))
        self.folder.turn()

    def turn(self, _name):
        self.folder.turn()

    def kill(self, _name):
        if self.chance.random() < 0.3:
            for name in tuple(self.open):
                self.finish(name)  # of those who write, a new run could not know
            self.folder.start()

    def settle(self):
        """All writers finish, and there is room for all."""
        for name in tuple(self.open):
            self.finish(name)
        self.folder.sink.room = 1000
        self.folder.pass_time(20 + QUIET_S)
        self.see()
        self.folder.answer()
        self.folder.pass_time(2)


@pytest.mark.parametrize("seed", range(often(40)))
@pytest.mark.parametrize("kills", [False, True], ids=["one run", "kills"])
def test_whatever_writers_do_each_picture_is_answered_or_counted(tmp_path, seed, kills):
    world = World(tmp_path, seed, kills=kills)
    for _ in range(120):
        world.step()
    world.settle()
    folder = world.folder
    assert folder.sink.rejected == []
    assert folder.names() == [], "the newest of each name is answered and put away"
    assert set(world.newest.values()) <= world.submitted
    assert world.submitted <= world.finished
    kept = {number_of(np.load(folder.path / "done" / name)) for name in folder.names("done")}
    assert kept <= world.submitted
    if not kills:
        assert len(world.finished) == len(world.submitted) + folder.source.overwritten + world.removed_unread
