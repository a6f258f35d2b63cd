"""Which audit rows are believed, and how many count as lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from audit_samples import tuned, tuned_wide
from hypothesis import given
from hypothesis import strategies as st
from orchestrator_samples import origin

from distree.errors import RemoteProtocolError
from distree.messages.audit import AuditRow
from orchestrator.fleet import RUNS_REMEMBERED
from orchestrator.tuning.audit_intake import MAX_LOST, MAX_RUNS, AuditIntake

ROW = AuditRow(
    request="r-1",
    origin="a",
    boot="b1",
    sequence=1,
    revision="r1",
    epoch=1,
    criterion="max_softmax",
    scores=(0.5, 0.6),
    predictions=(0, 1, 1),
)
BOOTS = ("b1",)
"""Runs of the origin that are known."""


def row(sequence: int = 1, **changes: object) -> AuditRow:
    return replace(ROW, sequence=sequence, **changes)


def intake(make=tuned, **changes) -> AuditIntake:
    return AuditIntake(replace(make().tuned, labels=tuple("abcdefghij"), **changes))


def drawn(count: int, **changes: object):
    return replace(origin(), audits_drawn=count, **changes)


def test_rows_in_order_lose_nothing_and_gaps_are_lost():
    books = intake()
    assert [books.take(row(n), BOOTS) for n in (5, 6, 7, 10, 11)] == [0, 0, 0, 2, 0]


def test_a_row_counts_once():
    books = intake()
    books.take(row(5), BOOTS)
    for sequence in (5, 4, 1):
        with pytest.raises(RemoteProtocolError) as caught:
            books.take(row(sequence), BOOTS)
        assert caught.value.reason == "old-sequence"


def test_what_an_earlier_run_of_the_agent_had_drawn_and_not_sent_is_lost():
    books = intake()
    books.take(row(5), BOOTS)
    assert books.reported("a", "b1", drawn(8)) == 0
    reborn = ("b2", "b1")
    # Three of the old run and the first one of the new run.
    assert books.take(row(2, boot="b2"), reborn) == 3 + 1
    assert books.take(row(3, boot="b2"), reborn) == 0


def test_the_first_report_of_a_new_run_tells_it_too():
    books = intake()
    books.take(row(5), BOOTS)
    books.reported("a", "b1", drawn(9))
    assert books.reported("a", "b2", drawn(0)) == 4
    assert books.reported("a", "b2", drawn(1)) == 0
    assert books.take(row(1, boot="b2"), ("b2", "b1")) == 0
    assert intake().reported("unknown", "b1", drawn(9)) == 0


def test_what_was_sent_while_nobody_listened_is_not_lost():
    books = intake()
    books.take(row(5), BOOTS)
    books.away()
    assert books.take(row(60), BOOTS) == 0
    assert books.take(row(62), BOOTS) == 1
    books.reported("a", "b1", drawn(99))
    books.away()
    assert books.reported("a", "b2", drawn(0)) == 0


def test_a_restart_goes_on_and_counts_nothing_twice():
    books, other = intake(), intake()
    books.take(row(5), BOOTS)
    other.restore(books.snapshot())
    with pytest.raises(RemoteProtocolError):
        other.take(row(5), BOOTS)
    assert other.take(row(9), BOOTS) == 0
    assert other.take(row(11), BOOTS) == 1


def test_no_invented_number_goes_far():
    books = intake()
    books.take(row(1), BOOTS)
    assert books.take(row(1 << 52), BOOTS) == MAX_LOST
    books.reported("a", "b1", drawn(1 << 53))
    assert books.reported("a", "b2", drawn(0)) == MAX_LOST


@pytest.mark.parametrize(
    ("change", "boots", "reason"),
    [
        ({}, (), "device"),
        ({"boot": "other"}, BOOTS, "boot"),
        ({"revision": "r2"}, BOOTS, "revision"),
        ({"criterion": "margin"}, BOOTS, "criterion"),
        ({"scores": (0.5,), "predictions": (0, 1)}, BOOTS, "exits"),
        ({"predictions": (0, 10, 1)}, BOOTS, "exits"),
        ({"scores": (0.5, 90.0)}, BOOTS, "scores"),
        ({"scores": (-0.1, 0.5)}, BOOTS, "scores"),
        ({"missing": (0,)}, BOOTS, "missing"),
    ],
)
def test_what_is_not_believed(change, boots, reason):
    books = intake()
    with pytest.raises(RemoteProtocolError) as caught:
        books.take(row(**change), boots)
    assert caught.value.reason == reason
    assert books.take(row(3), BOOTS) == 0


def test_a_run_that_is_heard_again_goes_on_where_it_stood():
    """A late will, a late report or a forged one makes another run the current one for a moment."""
    books = intake()
    assert [books.take(row(n), BOOTS) for n in (1, 2, 3)] == [0, 0, 0]
    books.reported("a", "b1", drawn(5))
    assert books.take(row(4), BOOTS) == 0
    assert books.reported("a", "x", drawn(0)) == 1  # What the run before had drawn and not sent.
    with pytest.raises(RemoteProtocolError, match="old-sequence"):
        books.take(row(5), BOOTS)  # It is counted already.
    assert books.take(row(6), BOOTS) == 0
    assert books.take(row(8), BOOTS) == 1


def test_rows_of_a_run_that_nobody_knows_are_not_believed():
    with pytest.raises(RemoteProtocolError, match="not a known run of a"):
        intake().take(row(boot="b3"), ("b2", "b1"))


def test_an_agent_of_several_pipelines_tells_them_apart_by_its_boot():
    books = intake()
    assert [books.take(row(n, boot="b11"), BOOTS) for n in (1, 2)] == [0, 0]
    assert books.reported("a", "b1", drawn(2)) == 0


@pytest.mark.parametrize(
    ("missing", "believed"), [((), True), ((1,), True), ((0,), True), ((0, 1), False), ((2,), False)]
)
def test_sets_of_missing_branches(missing, believed):
    books = intake(tuned_wide)
    if believed:
        assert books.take(row(missing=missing), BOOTS) == 0
        return
    with pytest.raises(RemoteProtocolError) as caught:
        books.take(row(missing=missing), BOOTS)
    assert caught.value.reason == "missing"


def test_a_chain_with_one_wide_stage_has_no_thresholds_for_missing_branches():
    books = intake(tuned_wide, branches=(0, 2, 2))
    assert books.take(row(), BOOTS) == 0
    with pytest.raises(RemoteProtocolError, match="missing"):
        books.take(row(2, missing=(1,)), BOOTS)


@given(st.lists(st.tuples(st.sampled_from(["b1", "b2", "b3"]), st.integers(0, 40), st.booleans()), max_size=60))
def test_a_number_is_never_believed_twice_and_losses_are_never_negative(messages):
    books, believed = intake(), set()
    for boot, number, is_report in messages:
        if is_report:
            assert 0 <= books.reported("a", boot, drawn(number)) <= MAX_LOST
            continue
        try:
            lost = books.take(row(number, boot=boot), (boot,))
        except RemoteProtocolError:
            continue
        assert 0 <= lost <= MAX_LOST
        assert (boot, number) not in believed
        believed.add((boot, number))


def test_more_runs_are_counted_than_the_fleet_remembers():
    assert MAX_RUNS > RUNS_REMEMBERED + 1
