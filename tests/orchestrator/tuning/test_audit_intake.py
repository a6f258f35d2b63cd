"""Which audit rows are believed, and how many count as lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orchestrator_samples import meta, origin, pipeline, wide_pipeline

from distree.errors import RemoteProtocolError
from distree.messages.audit import AuditRow
from orchestrator.fleet import Device
from orchestrator.tuning.audit_intake import MOST_LOST, Intake

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
BOARD = Device(device="a", boot="b1", meta=meta())


def row(sequence: int = 1, **changes: object) -> AuditRow:
    return replace(ROW, sequence=sequence, **changes)


def intake(make=pipeline) -> Intake:
    return Intake(replace(make(), labels=tuple("abcdefghij")))


def drawn(count: int, **changes: object):
    return replace(origin(), audits_drawn=count, **changes)


def test_rows_in_order_lose_nothing_and_gaps_are_lost():
    books = intake()
    assert [books.take(row(n), BOARD) for n in (5, 6, 7, 10, 11)] == [0, 0, 0, 2, 0]


def test_a_row_counts_once():
    books = intake()
    books.take(row(5), BOARD)
    for sequence in (5, 4, 1):
        with pytest.raises(RemoteProtocolError) as caught:
            books.take(row(sequence), BOARD)
        assert caught.value.reason == "old-sequence"


def test_what_an_earlier_run_of_the_agent_had_drawn_and_not_sent_is_lost():
    books = intake()
    books.take(row(5), BOARD)
    assert books.reported("a", "b1", drawn(8)) == 0
    reborn = replace(BOARD, boot="b2")
    # Three of the old run and the first one of the new run.
    assert books.take(row(2, boot="b2"), reborn) == 3 + 1
    assert books.take(row(3, boot="b2"), reborn) == 0


def test_the_first_report_of_a_new_run_tells_it_too():
    books = intake()
    books.take(row(5), BOARD)
    books.reported("a", "b1", drawn(9))
    assert books.reported("a", "b2", drawn(0)) == 4
    assert books.reported("a", "b2", drawn(1)) == 0
    assert books.take(row(1, boot="b2"), replace(BOARD, boot="b2")) == 0
    assert intake().reported("unknown", "b1", drawn(9)) == 0


def test_what_was_sent_while_nobody_listened_is_not_lost():
    books = intake()
    books.take(row(5), BOARD)
    books.away()
    assert books.take(row(60), BOARD) == 0
    assert books.take(row(62), BOARD) == 1
    books.reported("a", "b1", drawn(99))
    books.away()
    assert books.reported("a", "b2", drawn(0)) == 0


def test_a_restart_goes_on_and_counts_nothing_twice():
    books, other = intake(), intake()
    books.take(row(5), BOARD)
    other.restore(books.snapshot())
    with pytest.raises(RemoteProtocolError):
        other.take(row(5), BOARD)
    assert other.take(row(9), BOARD) == 0
    assert other.take(row(11), BOARD) == 1


def test_no_invented_number_goes_far():
    books = intake()
    books.take(row(1), BOARD)
    assert books.take(row(1 << 52), BOARD) == MOST_LOST
    books.reported("a", "b1", drawn(1 << 53))
    assert books.reported("a", "b2", drawn(0)) == MOST_LOST


@pytest.mark.parametrize(
    ("change", "device", "reason"),
    [
        ({}, None, "device"),
        ({}, replace(BOARD, meta=None), "device"),
        ({}, replace(BOARD, meta=meta(origin=False)), "device"),
        ({"boot": "other"}, BOARD, "boot"),
        ({"revision": "r2"}, BOARD, "revision"),
        ({"criterion": "margin"}, BOARD, "criterion"),
        ({"scores": (0.5,), "predictions": (0, 1)}, BOARD, "exits"),
        ({"predictions": (0, 10, 1)}, BOARD, "exits"),
        ({"scores": (0.5, 90.0)}, BOARD, "scores"),
        ({"scores": (-0.1, 0.5)}, BOARD, "scores"),
        ({"missing": (0,)}, BOARD, "missing"),
    ],
)
def test_what_is_not_believed(change, device, reason):
    books = intake()
    with pytest.raises(RemoteProtocolError) as caught:
        books.take(row(**change), device)
    assert caught.value.reason == reason
    assert books.take(row(3), BOARD) == 0


def test_a_run_that_is_heard_again_goes_on_where_it_stood():
    """A late will, a late report or a forged one makes another run the current one for a moment."""
    books = intake()
    other = replace(BOARD, boot="x", meta=None, earlier=(BOARD,))
    assert [books.take(row(n), BOARD) for n in (1, 2, 3)] == [0, 0, 0]
    books.reported("a", "b1", drawn(5))
    assert books.take(row(4), other) == 0
    assert books.reported("a", "x", drawn(0)) == 1  # What the run before had drawn and not sent.
    with pytest.raises(RemoteProtocolError, match="old-sequence"):
        books.take(row(5), other)  # It is counted already.
    assert books.take(row(6), BOARD) == 0
    assert books.take(row(8), BOARD) == 1


def test_rows_of_a_run_that_nobody_knows_are_not_believed():
    with pytest.raises(RemoteProtocolError, match="no run of a"):
        intake().take(row(boot="b3"), replace(BOARD, boot="b2", earlier=(BOARD,)))


def test_an_agent_of_several_pipelines_tells_them_apart_by_its_boot():
    books = intake()
    assert [books.take(row(n, boot="b11"), BOARD) for n in (1, 2)] == [0, 0]
    assert books.reported("a", "b1", drawn(2)) == 0


@pytest.mark.parametrize(
    ("missing", "believed"), [((), True), ((1,), True), ((0,), True), ((0, 1), False), ((2,), False)]
)
def test_sets_of_missing_branches(missing, believed):
    books = intake(wide_pipeline)
    if believed:
        assert books.take(row(missing=missing), BOARD) == 0
        return
    with pytest.raises(RemoteProtocolError) as caught:
        books.take(row(missing=missing), BOARD)
    assert caught.value.reason == "missing"


def test_a_chain_with_one_wide_stage_has_no_thresholds_for_missing_branches():
    books = Intake(replace(wide_pipeline(), branches=(0, 2, 2)))
    assert books.take(row(), BOARD) == 0
    with pytest.raises(RemoteProtocolError, match="missing"):
        books.take(row(2, missing=(1,)), BOARD)


@given(st.lists(st.tuples(st.sampled_from(["b1", "b2", "b3"]), st.integers(0, 40), st.booleans()), max_size=60))
def test_a_number_is_never_believed_twice_and_losses_are_never_negative(messages):
    books, believed = intake(), set()
    for boot, number, is_report in messages:
        if is_report:
            assert 0 <= books.reported("a", boot, drawn(number)) <= MOST_LOST
            continue
        try:
            lost = books.take(row(number, boot=boot), replace(BOARD, boot=boot))
        except RemoteProtocolError:
            continue
        assert 0 <= lost <= MOST_LOST
        assert (boot, number) not in believed
        believed.add((boot, number))
