"""The spool: what an origin still owes, on disk, through crashes, damage and full disks."""

from __future__ import annotations

import errno
import os
from itertools import pairwise

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agent.spool import REMEMBERED, Spool
from distree import tensors
from distree.node import Accepted


def item(index, nbytes=16):
    array = np.full((1, nbytes), index % 100, np.int8)
    return Accepted(request=f"r{index}", name=f"image {index}", tensor=tensors.encode(array))


def plain(items):
    return [(x.request, x.name, x.tensor.dtype, x.tensor.shape, bytes(x.tensor.payload)) for x in items]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "p.spool"


def open_spool(path, **changes):
    spool = Spool(path, **changes)
    return spool, *spool.recover()


def test_nothing_is_recovered_where_nothing_was(path):
    spool, left, answered = open_spool(path)
    assert (left, answered) == ((), ())
    spool.close()


def test_what_was_accepted_and_not_answered_is_recovered(path):
    spool, *_ = open_spool(path)
    for index in range(10):
        spool.accepted(item(index))
    for index in (0, 3, 9):
        spool.answered(f"r{index}")
    # No close: the process died.
    _, left, answered = open_spool(path)
    assert plain(left) == plain([item(index) for index in (1, 2, 4, 5, 6, 7, 8)])
    assert answered == ("r0", "r3", "r9")


def test_recovering_twice_gives_the_same(path):
    spool, *_ = open_spool(path)
    spool.accepted(item(1))
    spool.accepted(item(2))
    spool.answered("r1")
    spool.close()
    for _ in range(3):
        spool, left, answered = open_spool(path)
        spool.close()
        assert (plain(left), answered) == (plain([item(2)]), ("r1",))


def test_an_answer_to_what_was_never_accepted_is_not_noted(path):
    spool, *_ = open_spool(path)
    spool.answered("unheard-of")
    assert path.read_bytes() == b""


def test_the_last_answered_requests_are_remembered_and_no_more(path):
    spool, *_ = open_spool(path)
    for index in range(REMEMBERED + 100):
        spool.accepted(item(index))
        spool.answered(f"r{index}")
    _, left, answered = open_spool(path)
    assert left == ()
    assert answered == tuple(f"r{index}" for index in range(100, REMEMBERED + 100))


def journal(path, count=6):
    """Write a journal; return (its bytes, the length after each record, what was open after each record)."""
    path.unlink(missing_ok=True)
    spool, *_ = open_spool(path)
    ends, after, open_items = [0], [[]], {}
    for index in range(count):
        spool.accepted(item(index))
        open_items[f"r{index}"] = item(index)
        ends.append(path.stat().st_size)
        after.append(plain(open_items.values()))
        if index % 2:
            spool.answered(f"r{index - 1}")
            del open_items[f"r{index - 1}"]
            ends.append(path.stat().st_size)
            after.append(plain(open_items.values()))
    spool.close()
    return path.read_bytes(), ends, after


def test_a_journal_cut_at_any_byte_keeps_all_records_before_the_cut(path):
    content, ends, after = journal(path)
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        spool, left, _ = open_spool(path)
        complete = sum(end <= cut for end in ends) - 1
        assert plain(left) == after[complete], cut
        # It goes on from there.
        spool.accepted(item(99))
        spool.close()
        assert plain(open_spool(path)[1]) == [*after[complete], *plain([item(99)])]


# 0xc1 is the one byte that msgpack never uses: whatever reads it knows of the damage.
def test_damage_at_a_record_boundary_keeps_all_records_before_it(path):
    content, ends, after = journal(path)
    for end, expected in zip(ends, after, strict=True):
        path.write_bytes(content[:end] + b"\xc1" + content[end:])
        assert plain(open_spool(path)[1]) == expected


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=200))
def test_garbage_is_never_fatal(path, garbage):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(garbage)
    spool, *_ = open_spool(path)
    spool.accepted(item(1))
    spool.close()
    assert plain(item(1) for _ in "x")[0] in plain(open_spool(path)[1])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbage_after_a_crash_costs_no_record_before_it(path, data):
    content, ends, after = journal(path)
    boundary = data.draw(st.integers(0, len(ends) - 1))
    # A garbage record may be a valid one of another request, or say that one is answered; the latter is left out.
    garbage = data.draw(st.binary(min_size=1, max_size=60).filter(lambda drawn: b"r" not in drawn))
    path.write_bytes(content[: ends[boundary]] + garbage)
    left = plain(open_spool(path)[1])
    assert left[: len(after[boundary])] == after[boundary]


def test_values_of_wrong_types_are_passed_over(path):
    path.parent.mkdir()
    records = [7, None, "x", {}, {"a": 1}, [], [1], [1, 2], [0, 3], [1, "a", "b", "int7", [1], b""], [1, 2, 3, 4, 5, 6]]
    path.write_bytes(b"".join(map(msgpack.packb, records)))
    _, left, answered = open_spool(path)
    assert (left, answered) == ((), ())


def test_the_journal_is_rewritten_before_it_outgrows_its_limit(path):
    limit_bytes = 20_000
    spool, *_ = open_spool(path, limit_bytes=limit_bytes)
    spool.accepted(item(0, 500))
    sizes = []
    for index in range(1, 500):
        spool.accepted(item(index, 500))
        spool.answered(f"r{index}")
        sizes.append(path.stat().st_size)
    # One input and one answer may come on top before the next rewriting.
    assert max(sizes) <= limit_bytes + 1000
    assert sum(later < earlier for earlier, later in pairwise(sizes)) > 5
    _, left, answered = open_spool(path)
    assert plain(left) == plain([item(0, 500)])
    assert answered[-1] == "r499"


def test_a_crash_while_rewriting_loses_nothing(path, monkeypatch):
    spool, *_ = open_spool(path, limit_bytes=1000)
    for index in range(5):
        spool.accepted(item(index, 400))
    # The new journal is half written when the power goes.
    path.with_suffix(".new").write_bytes(path.read_bytes()[:70])
    _, left, _ = open_spool(path)
    assert plain(left) == plain([item(index, 400) for index in range(5)])


def test_a_full_disk_is_logged_once_and_stops_nothing(path, monkeypatch, caplog):
    spool, *_ = open_spool(path)
    spool.accepted(item(1))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        for index in range(2, 20):
            spool.accepted(item(index))
            spool.answered(f"r{index}")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "No space left on device" in caplog.text
    assert "going on without it" in caplog.text
    spool.close()
    assert plain(open_spool(path)[1]) == plain([item(1)])


def test_a_disk_that_fails_in_rewriting_is_logged_once_too(path, monkeypatch, caplog):
    spool, *_ = open_spool(path, limit_bytes=100)
    for index in range(10):
        spool.accepted(item(index))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    for index in range(10):
        spool.answered(f"r{index}")
    assert len(caplog.records) == 1


def test_a_folder_that_cannot_be_made_is_logged_and_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    spool, left, _ = open_spool(tmp_path / "file" / "p.spool")
    spool.accepted(item(1))
    spool.answered("r1")
    spool.close()
    assert left == ()
    assert len(caplog.records) == 1


def test_a_record_cut_short_by_a_full_disk_does_not_hide_later_ones(path, monkeypatch):
    spool, *_ = open_spool(path)
    spool.accepted(item(1))
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, record: real(file, record[: len(record) // 2]))
        spool.accepted(item(2))
    for index in range(3, 6):
        spool.accepted(item(index))
    spool.close()
    recovered = {accepted.request for accepted in open_spool(path)[1]}
    assert {"r1", "r3", "r4", "r5"} <= recovered
