"""The spool: what an origin still owes, on disk, through crashes, damage and disks that fail."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thoroughness import often

from device_agent.spool import MAX_REMEMBERED, MAX_UNPUBLISHED, RETRY_S, Recovered, Spool
from distree import tensors
from distree.node import AcceptedInput

OFTEN = settings(max_examples=often(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Disk:
    """Stands in for os.write: fails, or takes a part only, while it is `full`."""

    def __init__(self, monkeypatch, error=errno.ENOSPC, takes=None):
        self.full = True
        self._error, self._takes = error, takes
        self._write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, file, content):
        if not self.full:
            return self._write(file, content)
        if self._takes is not None:
            return self._write(file, content[: int(len(content) * self._takes)])
        raise OSError(self._error, os.strerror(self._error))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "p.spool"


@pytest.fixture(autouse=True)
def told(monkeypatch):
    """What all spools of a test tell, in order."""
    notices = []
    tell = Spool._tell

    def note(spool, *args, **kwargs):
        tell(spool, *args, **kwargs)
        notices.append(spool.notices[-1])

    monkeypatch.setattr(Spool, "_tell", note)
    return notices


def item(index, nbytes=16):
    array = np.full((1, nbytes), index % 100, np.int8)
    return AcceptedInput(request=f"r{index}", name=f"image {index}", tensor=tensors.encode(array))


def answer(index):
    return b'{"request": "r%d"}' % index


def plain(items):
    return [(x.request, x.name, x.tensor.dtype, x.tensor.shape, bytes(x.tensor.payload)) for x in items]


def recovered(path):
    """What the next run would recover, which is then over."""
    spool = Spool(path)
    left = spool.recover()
    spool._close_file()
    return left


def open_spool(path, **changes):
    spool = Spool(path, **changes)
    return spool, spool.recover()


def left_in(path):
    """What the next run would recover; read from a copy, for this one's journal is its own."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy.spool")
        copy.write_bytes(path.read_bytes())
        return recovered(copy)


def levels(told):
    return [one.severity.name for one in told]


def text_of(told):
    return " ".join(f"{one.what}; {one.remedy}" for one in told)


# ---------------------------------------------------------------- what is recovered


def test_nothing_is_recovered_where_nothing_was(path):
    spool, found = open_spool(path)
    assert found == Recovered()
    spool.close()


def test_what_was_accepted_and_not_answered_is_recovered(path):
    spool, _ = open_spool(path)
    for index in range(10):
        spool.note_accepted(item(index))
    for index in (0, 3, 9):
        spool.note_published(f"r{index}")
    # No close: the process died.
    found = recovered(path)
    assert plain(found.open) == plain([item(index) for index in (1, 2, 4, 5, 6, 7, 8)])
    assert found.unpublished == ()
    assert found.answered == ("r0", "r3", "r9")


def test_an_answer_is_recovered_to_the_byte_until_the_broker_has_it(path):
    spool, _ = open_spool(path)
    for index in range(4):
        spool.note_accepted(item(index))
    payload = bytes(range(256))
    spool.note_answer("r1", payload)
    spool.note_answer("r2", answer(2))
    spool.note_published("r2")
    for _ in range(3):
        found = recovered(path)
        assert plain(found.open) == plain([item(0), item(3)])
        assert found.unpublished == (("r1", payload),)
        assert found.answered == ("r2",)


def test_an_answer_that_was_said_again_is_closed_like_any(path):
    spool, _ = open_spool(path)
    spool.note_accepted(item(1))
    spool.note_answer("r1", answer(1))
    spool, _ = open_spool(path)
    spool.note_published("r1")
    assert recovered(path) == Recovered(answered=("r1",))


def test_the_first_answer_stands(path):
    spool, _ = open_spool(path)
    spool.note_accepted(item(1))
    spool.note_answer("r1", b"first")
    spool.note_answer("r1", b"second")
    spool.note_accepted(item(1))
    assert recovered(path) == Recovered(unpublished=(("r1", b"first"),))


def test_a_rewritten_journal_holds_no_input_whose_answer_is_noted(path):
    spool, _ = open_spool(path)
    spool.note_accepted(item(1, 50_000))
    spool.note_answer("r1", answer(1))
    assert path.stat().st_size > 50_000
    found = recovered(path)
    assert found.unpublished == (("r1", answer(1)),)
    assert path.stat().st_size < 100


def test_recovering_twice_gives_the_same(path):
    spool, _ = open_spool(path)
    spool.note_accepted(item(1))
    spool.note_accepted(item(2))
    spool.note_published("r1")
    spool.close()
    for _ in range(3):
        spool, found = open_spool(path)
        spool.close()
        assert (plain(found.open), found.answered) == (plain([item(2)]), ("r1",))


def test_a_request_accepted_again_is_open_again(path):
    spool, _ = open_spool(path)
    for _ in range(2):
        spool.note_accepted(item(1))
        spool.note_published("r1")
    spool.note_accepted(item(1))
    found = recovered(path)
    assert (plain(found.open), found.answered) == (plain([item(1)]), ())


def test_the_end_of_what_was_never_accepted_is_not_noted(path):
    spool, _ = open_spool(path)
    spool.note_published("unheard-of")
    assert path.read_bytes() == b""


def test_names_that_are_no_text_are_kept(path):
    spool, _ = open_spool(path)
    odd = AcceptedInput(request="r", name="\udcff.png", tensor=item(1).tensor)
    spool.note_accepted(odd)
    assert plain(recovered(path).open) == plain([odd])


# ---------------------------------------------------------------- any order, killed at any byte

STEPS = st.lists(st.tuples(st.sampled_from(["accepted", "answering", "answered"]), st.integers(0, 4)), max_size=40)


class Model:
    """What must be recovered, in the simplest terms."""

    def __init__(self):
        self.open, self.unpublished, self.answered = {}, {}, []

    def step(self, event, index, payload):
        request = f"r{index}"
        if event == "answered":
            if self.open.pop(request, None) or self.unpublished.pop(request, None):
                self.answered.append(request)
        elif request not in self.unpublished:
            if event == "accepted":
                self.open[request] = item(index)
            else:
                self.open.pop(request, None)
                self.unpublished[request] = payload
            self.answered = [other for other in self.answered if other != request]

    def says(self):
        return plain(self.open.values()), tuple(self.unpublished.items()), tuple(self.answered)


def says(found):
    return plain(found.open), found.unpublished, found.answered


def do(spool, event, index, payload):
    if event == "accepted":
        spool.note_accepted(item(index))
    elif event == "answering":
        spool.note_answer(f"r{index}", payload)
    else:
        spool.note_published(f"r{index}")


def in_any_order(told):
    return sorted(told[0]), sorted(told[1]), told[2]


@OFTEN
@given(steps=STEPS, data=st.data(), limit_bytes=st.sampled_from([100, 400, 1 << 20]))
def test_a_kill_at_any_byte_of_any_course_leaves_what_the_records_before_it_say(path, steps, data, limit_bytes):
    path.unlink(missing_ok=True)
    spool, _ = open_spool(path, limit_bytes=limit_bytes)
    model, before, after = Model(), Model().says(), Model().says()
    earlier = path.stat()
    for count, (event, index) in enumerate(steps):
        earlier = path.stat()
        before = model.says()
        model.step(event, index, b"answer %d" % count)
        after = model.says()
        do(spool, event, index, b"answer %d" % count)
    spool._close_file()
    content = path.read_bytes()
    if path.stat().st_ino == earlier.st_ino and len(content) > earlier.st_size:
        # In the midst of the last record; a journal that is written anew is there as a whole or not at all.
        cut = data.draw(st.integers(earlier.st_size, len(content)), "cut")
        path.write_bytes(content[:cut])
        after = after if cut == len(content) else before
    assert in_any_order(says(recovered(path))) == in_any_order(after)
    # And so it stays.
    assert in_any_order(says(recovered(path))) == in_any_order(after)


@OFTEN
@given(lives=st.lists(STEPS, max_size=5))
def test_lives_that_end_by_kills_are_as_one(path, lives):
    path.unlink(missing_ok=True)
    model, count = Model(), 0
    for steps in lives:
        spool, found = open_spool(path, limit_bytes=300)
        assert in_any_order(says(found)) == in_any_order(model.says())
        for event, index in steps:
            count += 1
            model.step(event, index, b"answer %d" % count)
            do(spool, event, index, b"answer %d" % count)
        spool._close_file()


@OFTEN
@given(steps=STEPS, faults=st.lists(st.sampled_from([None, None, errno.ENOSPC, errno.EIO, 0.0, 0.5])))
def test_whatever_the_disk_does_nothing_raises_and_nothing_is_lost_once_it_works(path, steps, faults):
    path.unlink(missing_ok=True)
    clock, model, real = Clock(), Model(), os.write
    left = iter(faults)

    def write(file, content):
        fault = next(left, None)
        if isinstance(fault, float):
            return real(file, content[: int(len(content) * fault)])
        if fault is not None:
            raise OSError(fault, os.strerror(fault))
        return real(file, content)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "write", write)
        spool, _ = open_spool(path, clock=clock, limit_bytes=300)
        for count, (event, index) in enumerate(steps):
            clock.now += 1.0
            model.step(event, index, b"answer %d" % count)
            do(spool, event, index, b"answer %d" % count)
            held = len(model.open) + len(model.unpublished)
            assert 0 <= spool.unspooled <= held
            if spool.unspooled == 0 and spool._file is not None:
                assert in_any_order(says(left_in(path))) == in_any_order(model.says())
                spool.retry(clock.now + RETRY_S)
    clock.now += RETRY_S
    spool.retry(clock.now)
    assert spool.unspooled == 0
    spool._close_file()
    assert in_any_order(says(recovered(path))) == in_any_order(model.says())


# ---------------------------------------------------------------- damage


def journal(path, count=6):
    """Write a journal; return (its bytes, the length after each record, what was to be recovered after each)."""
    path.unlink(missing_ok=True)
    spool, _ = open_spool(path)
    model = Model()
    ends, after = [0], [model.says()]
    for index in range(count):
        steps = [("accepted", index)]
        if index % 2:
            steps += [("answering", index - 1)]
        if index % 4 == 3:
            steps += [("answered", index - 1)]
        for step in steps:
            do(spool, *step, answer(step[1]))
            model.step(*step, answer(step[1]))
            ends.append(path.stat().st_size)
            after.append(model.says())
    spool.close()
    return path.read_bytes(), ends, after


def test_a_journal_cut_at_any_byte_keeps_all_records_before_the_cut(path):
    content, ends, after = journal(path)
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        spool, found = open_spool(path)
        complete = sum(end <= cut for end in ends) - 1
        assert says(found) == after[complete], cut
        # It goes on from there.
        spool.note_accepted(item(99))
        spool.close()
        assert plain(recovered(path).open) == [*after[complete][0], *plain([item(99)])]


# 0xc1 is the one byte that msgpack never uses: whatever reads it knows of the damage.
def test_damage_at_a_record_boundary_keeps_all_records_before_it(path):
    content, ends, after = journal(path)
    for end, expected in zip(ends, after, strict=True):
        path.write_bytes(content[:end] + b"\xc1" + content[end:])
        assert says(recovered(path)) == expected


@OFTEN
@given(garbage=st.binary(max_size=200))
def test_garbage_is_never_fatal(path, garbage):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(garbage)
    spool, _ = open_spool(path)
    spool.note_accepted(item(1))
    spool.close()
    assert plain([item(1)])[0] in plain(recovered(path).open)


@OFTEN
@given(data=st.data())
def test_garbage_after_a_crash_costs_no_record_before_it(path, data):
    content, ends, after = journal(path)
    boundary = data.draw(st.integers(0, len(ends) - 1))
    # A garbage record may be a valid one of another request, or say that one is answered; the latter is left out.
    garbage = data.draw(st.binary(min_size=1, max_size=60).filter(lambda drawn: b"r" not in drawn))
    path.write_bytes(content[: ends[boundary]] + garbage)
    found = says(recovered(path))
    assert found[0][: len(after[boundary][0])] == after[boundary][0]
    assert found[1][: len(after[boundary][1])] == after[boundary][1]


def test_values_of_wrong_types_are_passed_over(path):
    path.parent.mkdir()
    records = [7, None, "x", {}, {"a": 1}, [], [1], [1, 2], [0, 3], [1, "a", "b", "int7", [1], b""], [1, 2, 3, 4, 5, 6]]
    records += [[2, "a"], [2, "a", "text"], [2, 1, b""], [3, "a", b""], [2, "a", b"", 1]]
    path.write_bytes(b"".join(map(msgpack.packb, records)))
    assert recovered(path) == Recovered()


@pytest.mark.parametrize(("make", "what"), [(os.mkfifo, "a pipe"), (os.mkdir, "a folder")])
def test_what_is_no_file_is_put_aside(path, make, what, told):
    path.parent.mkdir()
    make(path)
    spool, found = open_spool(path)
    assert found == Recovered()
    assert levels(told) == ["ERROR"]
    assert f"spool {path}: cannot be read (it is {what}, not a file)" in text_of(told)
    assert path.with_suffix(".unread").exists()
    spool.note_accepted(item(1))
    assert spool.unspooled == 0
    assert plain(left_in(path).open) == plain([item(1)])


# ---------------------------------------------------------------- bounds


def test_the_last_answered_requests_are_remembered_and_no_more(path):
    spool, _ = open_spool(path)
    for index in range(MAX_REMEMBERED + 100):
        spool.note_accepted(item(index))
        spool.note_answer(f"r{index}", answer(index))
        spool.note_published(f"r{index}")
    found = recovered(path)
    assert found == Recovered(answered=tuple(f"r{index}" for index in range(100, MAX_REMEMBERED + 100)))


def test_the_journal_is_rewritten_before_it_outgrows_its_limit(path):
    limit_bytes = 20_000
    spool, _ = open_spool(path, limit_bytes=limit_bytes)
    spool.note_accepted(item(0, 500))
    sizes = []
    for index in range(1, 500):
        spool.note_accepted(item(index, 500))
        spool.note_answer(f"r{index}", answer(index))
        spool.note_published(f"r{index}")
        sizes.append(path.stat().st_size)
    assert max(sizes) <= limit_bytes
    assert sum(later < earlier for earlier, later in pairwise(sizes)) > 5
    found = recovered(path)
    assert plain(found.open) == plain([item(0, 500)])
    assert found.answered[-1] == "r499"


def test_inputs_beyond_the_limit_are_not_written_again_with_each_answer(path, monkeypatch):
    spool, _ = open_spool(path, limit_bytes=1000)
    for index in range(100):
        spool.note_accepted(item(index, 1000))
    written, real = [], os.write
    monkeypatch.setattr(os, "write", lambda file, content: written.append(len(content)) or real(file, content))
    for index in range(50):
        spool.note_answer(f"r{index}", answer(index))
        spool.note_published(f"r{index}")
    assert sum(written) < 100_000


def test_answers_to_shed_inputs_are_kept_within_bounds(path):
    spool, _ = open_spool(path, limit_bytes=100_000)
    spool.note_accepted(item(0))
    spool.note_answer("r0", answer(0))
    sizes = set()
    for index in range(1, 3 * MAX_REMEMBERED):
        spool.note_answer(f"r{index}", answer(index))
        sizes.add(path.stat().st_size)
    assert max(sizes) <= 200_000
    found = recovered(path)
    # That of the input in custody was the oldest, and stays.
    kept = (0, *range(2 * MAX_REMEMBERED, 3 * MAX_REMEMBERED))
    assert found.unpublished == tuple((f"r{index}", answer(index)) for index in kept)


def test_starts_without_a_broker_do_not_add_up_without_end(path, told):
    for life in range(6):
        spool, _ = open_spool(path)
        for index in range(life * MAX_REMEMBERED, (life + 1) * MAX_REMEMBERED):
            spool.note_answer(f"r{index}", answer(index))
    found = recovered(path)
    assert len(found.unpublished) == MAX_UNPUBLISHED
    assert found.unpublished[-1] == (f"r{6 * MAX_REMEMBERED - 1}", answer(6 * MAX_REMEMBERED - 1))
    assert "1,024 answers of earlier runs will never be published" in text_of(told)


def test_a_crash_while_rewriting_loses_nothing(path):
    spool, _ = open_spool(path, limit_bytes=1000)
    for index in range(5):
        spool.note_accepted(item(index, 400))
    # The new journal is half written when the power goes.
    path.with_suffix(".new").write_bytes(path.read_bytes()[:70])
    found = recovered(path)
    assert plain(found.open) == plain([item(index, 400) for index in range(5)])


# ---------------------------------------------------------------- disks that fail


def test_an_outage_is_logged_once_and_its_end_too(path, clock, monkeypatch, told):
    spool, _ = open_spool(path, clock=clock)
    spool.note_accepted(item(1))
    disk = Disk(monkeypatch)
    for index in range(2, 20):
        spool.note_accepted(item(index))
        clock.now += 1.0
    assert spool.unspooled == 18
    assert levels(told) == ["ERROR"]
    for word in (
        str(path),
        "No space left on device",
        "a crash of this agent would now lose inputs",
        "free some space",
    ):
        assert word in text_of(told)
    disk.full = False
    assert plain(left_in(path).open) == plain([item(1)])
    clock.now += RETRY_S
    spool.note_accepted(item(20))
    assert spool.unspooled == 0
    assert levels(told) == ["ERROR", "INFO"]
    assert "works again after 21 s, with 20 inputs" in text_of(told)
    assert plain(left_in(path).open) == plain([item(index) for index in range(1, 21)])
    # The next outage is news again.
    disk.full = True
    spool.note_accepted(item(21))
    assert levels(told) == ["ERROR", "INFO", "ERROR"]


@pytest.mark.parametrize("event", ["accepted", "answered", "retry", "close"])
def test_whatever_comes_first_brings_all_to_a_disk_that_works_again(path, clock, monkeypatch, event):
    spool, _ = open_spool(path, clock=clock)
    disk = Disk(monkeypatch)
    for index in range(5):
        spool.note_accepted(item(index))
    spool.note_answer("r4", answer(4))
    spool.note_published("r0")
    assert spool.unspooled == 4
    disk.full = False
    clock.now += RETRY_S
    expected = [item(index) for index in (1, 2, 3)]
    if event == "accepted":
        spool.note_accepted(item(9))
        expected.append(item(9))
    elif event == "answered":
        spool.note_published("r1")
        del expected[0]
    elif event == "retry":
        spool.retry(clock.now)
    else:
        spool.close()
    assert spool.unspooled == 0
    found = left_in(path)
    assert plain(found.open) == plain(expected)
    assert found.unpublished == (("r4", answer(4)),)


def test_a_failing_disk_is_tried_every_few_seconds_and_no_more(path, clock, monkeypatch):
    spool, _ = open_spool(path, clock=clock)
    tries = []

    def write(_file, _content):
        tries.append(clock.now)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "write", write)
    clock.now += RETRY_S
    for index in range(1000):
        spool.note_accepted(item(index))
        spool.retry(clock.now)
        clock.now += 0.1
    # The append that failed, and a rewrite every three of a hundred seconds.
    assert 30 <= len(tries) <= 36


@pytest.mark.parametrize("takes", [0.0, 0.5, 0.99])
def test_a_short_write_is_a_failure(path, clock, monkeypatch, takes, told):
    spool, _ = open_spool(path, clock=clock)
    spool.note_accepted(item(1))
    disk = Disk(monkeypatch, takes=takes)
    spool.note_accepted(item(2))
    assert spool.unspooled == 1
    assert levels(told) == ["ERROR"]
    assert plain(left_in(path).open) == plain([item(1)])
    disk.full = False
    clock.now += RETRY_S
    spool.note_accepted(item(3))
    assert plain(left_in(path).open) == plain([item(1), item(2), item(3)])


def test_an_answer_that_could_not_be_noted_counts_too(path, clock, monkeypatch):
    spool, _ = open_spool(path, clock=clock)
    spool.note_accepted(item(1))
    Disk(monkeypatch)
    spool.note_answer("r1", answer(1))
    assert spool.unspooled == 1
    spool.note_published("r1")
    assert spool.unspooled == 0


def test_a_disk_that_fails_in_rewriting_leaves_the_old_journal(path, clock, monkeypatch, told):
    spool, _ = open_spool(path, limit_bytes=200, clock=clock)
    clock.now += RETRY_S
    for index in range(4):
        spool.note_accepted(item(index))
    Disk(monkeypatch)
    for index in range(4, 10):
        spool.note_accepted(item(index))
    assert levels(told) == ["ERROR"]
    assert not path.with_suffix(".new").exists()
    assert spool.unspooled == 6
    assert plain(left_in(path).open) == plain([item(index) for index in range(4)])


def unlinked(path):
    path.unlink()


def replaced(path):
    path.with_suffix(".other").write_bytes(path.read_bytes())
    path.with_suffix(".other").replace(path)


def truncated(path):
    path.write_bytes(b"")


def folder_gone(path):
    path.unlink()
    path.parent.rmdir()


@pytest.mark.parametrize("harm", [unlinked, replaced, truncated, folder_gone])
@pytest.mark.parametrize("by", ["accepted", "retry"])
def test_a_journal_that_others_touched_is_written_anew(path, clock, harm, by, told):
    spool, _ = open_spool(path, clock=clock)
    spool.note_accepted(item(1))
    clock.now += RETRY_S
    harm(path)
    if by == "accepted":
        spool.note_accepted(item(2))
    else:
        spool.retry(clock.now)
        spool.note_accepted(item(2))
    assert levels(told) == ["ERROR", "INFO"]
    assert spool.unspooled == 0
    assert plain(left_in(path).open) == plain([item(1), item(2)])


def test_a_journal_that_vanished_for_longer_counts_all_that_was_in_it(path, clock, told):
    spool, _ = open_spool(path, clock=clock)
    spool.note_accepted(item(1))
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("no folder")
    spool.note_accepted(item(2))
    assert spool.unspooled == 2
    assert "Not a directory" in text_of(told)
    path.parent.unlink()
    clock.now += RETRY_S
    spool.retry(clock.now)
    assert spool.unspooled == 0
    assert plain(left_in(path).open) == plain([item(1), item(2)])


def test_a_folder_that_cannot_be_made_is_logged_and_stops_nothing(tmp_path, told):
    (tmp_path / "file").write_text("")
    spool, found = open_spool(tmp_path / "file" / "p.spool")
    spool.note_accepted(item(1))
    assert spool.unspooled == 1
    spool.note_answer("r1", answer(1))
    spool.note_published("r1")
    assert spool.unspooled == 0
    spool.close()
    assert found == Recovered()
    assert levels(told) == ["ERROR"]
    assert "correct state_dir" in text_of(told)


def test_a_closed_spool_writes_nothing(path, clock):
    spool, _ = open_spool(path, clock=clock)
    spool.note_accepted(item(1))
    spool.close()
    before = path.stat()
    spool.note_accepted(item(2))
    spool.retry(clock.now + 100)
    spool.close()
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)


@contextlib.contextmanager
def mounted(folder, size):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system: run as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_that_is_emptied_again(tmp_path, clock, told):
    with mounted(tmp_path / "disk", "256k") as disk:
        path = disk / "state" / "p.spool"
        spool, _ = open_spool(path, clock=clock)
        spool.note_accepted(item(0, 10_000))
        with contextlib.suppress(OSError), (disk / "ballast").open("wb") as ballast:
            while True:
                ballast.write(b"x" * 4096)
                ballast.flush()
        for index in range(1, 11):
            spool.note_accepted(item(index, 10_000))
            clock.now += RETRY_S
        spool.note_answer("r10", answer(10))
        assert levels(told) == ["ERROR"]
        assert spool.unspooled >= 9
        assert plain(left_in(path).open)[0] == plain([item(0, 10_000)])[0]
        (disk / "ballast").unlink()
        clock.now += RETRY_S
        spool.retry(clock.now)
        assert levels(told) == ["ERROR", "INFO"]
        assert spool.unspooled == 0
        found = left_in(path)
        assert plain(found.open) == plain([item(index, 10_000) for index in range(10)])
        assert found.unpublished == (("r10", answer(10)),)
        spool.close()


def test_a_file_system_that_becomes_read_only(tmp_path, clock, told):
    with mounted(tmp_path / "disk", "1m") as disk:
        path = disk / "p.spool"
        spool, _ = open_spool(path, clock=clock)
        spool.note_accepted(item(1))
        spool.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        spool, found = open_spool(path, clock=clock)
        assert plain(found.open) == plain([item(1)])
        # It is on the disk, as it was.
        assert spool.unspooled == 0
        spool.note_accepted(item(2))
        assert spool.unspooled == 1
        assert "make the file system writable" in text_of(told)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        clock.now += RETRY_S
        spool.note_published("r1")
        assert spool.unspooled == 0
        assert levels(told) == ["ERROR", "INFO"]
        assert plain(left_in(path).open) == plain([item(2)])
        spool.close()


def test_a_limit_on_the_size_of_files(path, clock, told):
    spool, _ = open_spool(path, clock=clock)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        for index in range(4):
            spool.note_accepted(item(index, 900))
            clock.now += RETRY_S
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert levels(told) == ["ERROR"]
    assert spool.unspooled == 2
    spool.retry(clock.now)
    assert spool.unspooled == 0
    assert plain(left_in(path).open) == plain([item(index, 900) for index in range(4)])


# ---------------------------------------------------------------- answers alone


def test_where_inputs_are_kept_elsewhere_only_answers_are_kept(path):
    first = Spool(path, keeps_inputs=False)
    first.recover()
    for index in range(3):
        first.note_accepted(item(index))
    assert path.stat().st_size == 0
    first.note_answer("r0", answer(0))
    first.note_published("r0")
    first.note_answer("r1", answer(1))
    assert first.unspooled == 0
    left = Spool(path, keeps_inputs=False).recover()
    assert left == Recovered(unpublished=(("r1", answer(1)),), answered=("r0",))


def test_of_answers_alone_as_many_are_kept_as_are_owed(path):
    first = Spool(path, keeps_inputs=False)
    first.recover()
    for index in range(MAX_REMEMBERED + 10):
        first.note_accepted(item(index))
        first.note_answer(f"r{index}", answer(index))
    assert len(Spool(path, keeps_inputs=False).recover().unpublished) == MAX_REMEMBERED + 10
