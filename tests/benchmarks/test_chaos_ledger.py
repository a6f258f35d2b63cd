"""The account that `make chaos` gives of inputs: what is lost, wrong, late or answered twice does not pass unnoticed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.chaos.expected import WholeNetwork
from benchmarks.chaos.ledger import GRACE_S, Evidence, Excuses, recovery, settle
from benchmarks.chaos.site import Answer, images
from benchmarks.chaos.tap import Tap

COUNT = 6
DEADLINE_S = 2.0
ENDED_AT = 3.5
PLANS = {1: ("max_softmax", (0.9999, 0.97))}


@pytest.fixture(scope="module")
def network():
    return WholeNetwork(images()[:COUNT])


@pytest.fixture
def seen(network):
    """All is well: input `rK` is published in second K and answered at once."""
    tap, finals = Tap(), {}
    for index, (class_id, exit) in enumerate(network.answers(PLANS[1][1])):
        request = f"r{index}"
        tap.delivered[request] = tap.taken[request] = tap.answered[request] = float(index)
        finals[request] = (answer(network, index, class_id, exit),)
    requests = tuple(finals)
    return Evidence(
        requests=requests,
        published_at={request: float(index) for index, request in enumerate(requests)},
        acknowledged=frozenset(requests),
        unheard=frozenset(),
        finals=finals,
        tap=tap,
        plans=PLANS,
        network=network,
        deadline_s=DEADLINE_S,
        ended_at=ENDED_AT,
    )


def answer(network, index, class_id, exit, **changes):
    given = {
        "at": index + 0.1, "request": f"r{index}", "name": "", "label": network.bundle.labels[class_id],
        "class_id": class_id, "exit": exit, "reason": "last" if exit == 2 else "confident", "latency_ms": 100.0,
        "origin": "cam", "epoch": 1, "missing": (), "dated": "",
    }  # fmt: skip
    return Answer(**{**given, **changes})


def changed(seen, request, **changes):
    """The same, but for the first answer to one request."""
    first, *more = seen.finals[request]
    return replace(seen, finals={**seen.finals, request: (replace(first, **changes), *more)})


def without(seen, request):
    return replace(seen, finals={**seen.finals, request: ()})


def failures(seen, excuses=None, *, spool=True):
    account = settle(seen, excuses or Excuses(), spool=spool)
    return [*account.failures, *account.slow]


def test_books_that_balance(seen):
    account = settle(seen, Excuses(), spool=True)
    assert account.failures == account.slow == []
    assert (account.offered, account.accepted, account.labelled, account.unanswered) == (COUNT, COUNT, COUNT, 0)
    assert sum(account.reasons.values()) == COUNT
    assert account.recovery_s == 0.0


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ((), "never delivered to the origin"),
        (("delivered",), "delivered and not taken"),
        (("delivered", "taken"), "taken by the origin and never answered"),
        (("delivered", "taken", "answered"), "answered to the broker, but never heard"),
    ],
)
def test_an_input_without_an_answer_is_lost(seen, known, said):
    for name in {"delivered", "taken", "answered"}.difference(known):
        del getattr(seen.tap, name)["r1"]
    account = settle(without(seen, "r1"), Excuses(), spool=True)
    assert account.lost == account.unanswered == 1
    assert account.failures == [f"1 LOST: {said}, such as r1"]


def test_only_an_origin_without_a_spool_may_take_inputs_into_its_grave(seen):
    del seen.tap.answered["r1"], seen.tap.answered["r5"]
    excuses = Excuses(origin_dies=True)
    account = settle(without(seen, "r1"), excuses, spool=False)
    assert (account.held, account.lost, account.failures) == (1, 0, [])
    assert settle(without(seen, "r1"), excuses, spool=True).lost == 1
    # What it took after the fault it did not hold when it died.
    assert settle(without(seen, "r5"), excuses, spool=False).lost == 1


def test_a_broker_that_forgets_explains_what_it_had(seen):
    del seen.tap.taken["r1"], seen.tap.answered["r1"]
    account = settle(without(seen, "r1"), Excuses(broker_forgets=True), spool=True)
    assert (account.forgotten, account.lost, account.failures) == (1, 0, [])
    # What the origin has taken is the origin's affair, whatever the broker forgets.
    seen.tap.taken["r1"] = 1.0
    assert settle(without(seen, "r1"), Excuses(broker_forgets=True), spool=True).lost == 1


def test_what_nobody_subscribed_to_was_not_offered(seen):
    for times in (seen.tap.delivered, seen.tap.taken, seen.tap.answered):
        del times["r1"]
    unheard = replace(without(seen, "r1"), unheard=frozenset({"r1"}))
    account = settle(unheard, Excuses(broker_forgets=True), spool=True)
    assert (account.offered, account.unheard, account.failures) == (COUNT - 1, 1, [])
    assert failures(unheard) == ["1 not queued by the broker for the origin, such as r1"]


def test_what_the_broker_never_acknowledged_is_told(seen):
    assert failures(replace(seen, acknowledged=seen.acknowledged - {"r1"}))[0] == (
        "1 not acknowledged by the broker, such as r1"
    )


def test_a_wrong_label_is_told(seen, network):
    wrong = changed(seen, "r1", class_id=(seen.finals["r1"][0].class_id + 1) % 10)
    account = settle(wrong, Excuses(), spool=True)
    assert account.wrong == 1
    assert "WRONG: class" in account.failures[0]


def test_an_answer_of_another_exit_or_plan_is_told(seen, network):
    exit = seen.finals["r1"][0].exit
    other = (exit + 1) % 3
    class_id = int(network.scored().classes[1, other])
    moved = changed(seen, "r1", exit=other, class_id=class_id)
    assert f"left at exit {other}, plan 1 takes exit {exit}" in failures(moved)[0]
    # A substitute may come from any exit.
    assert not settle(changed(moved, "r1", reason="fallback"), Excuses(), spool=True).wrong
    assert "plan 7, which nobody published" in failures(changed(seen, "r1", epoch=7))[0]


def test_two_answers_must_agree(seen):
    twice = replace(seen, finals={**seen.finals, "r1": seen.finals["r1"] * 2})
    account = settle(twice, Excuses(), spool=True)
    assert (account.twice_same, account.twice_other, account.failures) == (1, 0, [])
    first = seen.finals["r1"][0]
    other = replace(first, exit=None, class_id=None, label=None, reason="deadline")
    differ = replace(seen, finals={**seen.finals, "r1": (first, other)})
    assert failures(differ) == ["1 answered twice, and differently, such as r1"]
    excuses = Excuses(origin_dies=True)
    assert failures(differ, excuses, spool=False) == []
    assert failures(differ, excuses, spool=True) == ["1 answered twice, and differently, such as r1"]
    assert failures(differ, Excuses(origin_is_double=True), spool=True) == []


def test_only_an_origin_that_stands_still_may_be_late(seen):
    late = changed(seen, "r1", latency_ms=1000 * (DEADLINE_S + GRACE_S) + 50)
    assert failures(late) == [f"1 late by the origin's own clock, by up to {1000 * GRACE_S + 50:.0f} ms"]
    account = settle(late, Excuses(origin_stands_still=True), spool=True)
    assert (account.late, account.slow) == (1, [])


def test_recovery_ends_with_the_first_answer_after_which_all_are_good(seen):
    assert recovery(changed(seen, "r4", reason="fallback")) == pytest.approx(5.1 - ENDED_AT)
    assert recovery(changed(seen, "r1", reason="fallback")) == 0.0
    assert recovery(changed(seen, "r4", missing=(0,))) == pytest.approx(5.1 - ENDED_AT)
    # Late is by who hears it: r3 comes after r5.
    assert recovery(changed(seen, "r3", at=5.3)) is None
    # An answer that never came was due when its deadline was over.
    assert recovery(without(seen, "r2")) == pytest.approx(5.1 - ENDED_AT)
    assert failures(changed(seen, "r5", reason="fallback")) == [
        "not recovered: after the last answer that was late or a substitute came none that was neither"
    ]
