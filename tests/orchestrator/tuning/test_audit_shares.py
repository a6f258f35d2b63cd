"""Which audits count: those that the traffic of their origin explains, within its share."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orchestrator_samples import origin

from orchestrator.tuning.audit_shares import (
    DRAW_FACTOR,
    DRAW_SLACK,
    HOLD_S,
    MAX_ACCOUNTS,
    MAX_HELD,
    SHARE_SLACK,
    AuditShares,
)
from orchestrator.tuning.samples import AuditedInput, Sample


def samples(name: str, count: int) -> list[Sample]:
    audit = AuditedInput(scores=(0.9, 0.9), predictions=(1, 1, 1))
    return [Sample(origin=name, request=f"{name}-{k}", missing=(), audit=audit) for k in range(count)]


def traffic(accepted: int, drawn: int):
    return replace(origin(), accepted=accepted, audits_drawn=drawn)


def counted(shares: AuditShares, name: str, count: int, until_s: float = HOLD_S) -> list[Sample]:
    shares.hold(name, samples(name, count), until_s)
    return shares.release(name)


def test_rows_wait_for_the_reports_that_cover_them_and_keep_their_order():
    shares = AuditShares()
    assert counted(shares, "cam1", 10) == []
    shares.reported("cam1", "b1", traffic(4, 4), 1.0)
    assert [sample.request for sample in shares.release("cam1")] == [f"cam1-{k}" for k in range(4)]
    shares.reported("cam1", "b1", traffic(400, 400), 1.0)
    assert [sample.request for sample in shares.release("cam1")] == [f"cam1-{k}" for k in range(4, 10)]
    assert shares.overdue(math.inf) == []


def test_rows_that_nothing_covers_are_refused_in_time_and_counted():
    shares = AuditShares()
    assert counted(shares, "cam1", 3, until_s=60.0) == []
    assert shares.overdue(59.0) == []
    (refused,) = shares.overdue(60.0)
    assert (refused.origin, refused.count, refused.error.reason) == ("cam1", 3, "traffic")
    assert "more audits of cam1 than the inputs that it reports explain, which is 0" in str(refused.error)
    assert shares.overdue(61.0) == []
    shares.reported("cam1", "b1", traffic(9, 9), 1.0)
    assert shares.release("cam1") == []


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5, 1.0])
def test_as_many_as_its_inputs_make_likely_and_no_more(rate):
    shares, accepted = AuditShares(), 10_000
    shares.reported("liar", "b1", traffic(accepted, 1 << 50), rate)
    assert len(counted(shares, "liar", MAX_HELD)) == min(MAX_HELD, round(min(1, DRAW_FACTOR * rate) * accepted + 20))


@given(st.integers(0, 10_000), st.integers(1, 20), st.sampled_from([0.01, 0.05, 0.2, 0.5, 1.0]))
def test_an_honest_origin_is_never_refused(seed, reports, rate):
    random, shares = np.random.default_rng(seed), AuditShares()
    accepted = drawn = count = 0
    for _ in range(reports):
        new = int(random.integers(0, 400))
        accepted, of_new = accepted + new, int(random.binomial(new, rate))
        drawn += of_new
        count += len(counted(shares, "cam1", of_new))
        shares.reported("cam1", "b1", traffic(accepted, drawn), rate)
        count += len(shares.release("cam1"))
    assert count == drawn


def test_inputs_count_once_however_often_and_in_whatever_order_they_are_reported():
    shares = AuditShares()
    for accepted in (50, 100, 20, 100, 100):
        shares.reported("cam1", "b1", traffic(accepted, accepted), 1.0)
    assert len(counted(shares, "cam1", 500)) == 100
    # The next run counts from 0 again.
    shares.reported("cam1", "b2", traffic(30, 30), 1.0)
    assert len(shares.release("cam1")) == 30


def test_a_former_share_of_audits_counts_while_boards_may_still_follow_it():
    shares = AuditShares()
    shares.reported("cam1", "b1", traffic(0, 0), 1.0)
    shares.reported("cam1", "b1", traffic(1000, 900), 0.05)
    assert len(counted(shares, "cam1", 900)) == 900


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
def test_no_origin_makes_up_more_than_its_share(share):
    shares = AuditShares(share)
    for name in ("liar", "cam1"):
        shares.reported(name, "b1", traffic(1_000_000, 1_000_000), 1.0)
    of_liar = len(counted(shares, "liar", 2000))
    assert of_liar == SHARE_SLACK, "alone, it gets no further"
    total = of_liar
    for _ in range(40):
        got = counted(shares, "cam1", 10)
        of_liar += sum(sample.origin == "liar" for sample in got)
        total += len(got)
        assert of_liar <= share * total + SHARE_SLACK
    if share >= 0.5:
        # The other one is not held up by it.
        assert total - of_liar == 400
    (refused,) = [one for one in shares.overdue(math.inf) if one.origin == "liar"]
    assert refused.error.reason == "share"
    assert f"more than {share:.0%}" in str(refused.error)


def test_one_that_waits_cannot_save_up_for_later():
    shares = AuditShares(0.5)
    for name in ("liar", "cam1", "cam2"):
        shares.reported(name, "b1", traffic(1_000_000, 1_000_000), 1.0)
    of_others = sum(len(counted(shares, name, 20)) for _ in range(20) for name in ("cam1", "cam2"))
    assert of_others == 800
    assert len(counted(shares, "liar", 2000)) == SHARE_SLACK


def test_what_waits_is_bounded_and_forged_names_push_out_none_at_work(monkeypatch):
    shares = AuditShares()
    assert counted(shares, "cam1", MAX_HELD + 5) == []
    (refused,) = shares.overdue(0.0)
    assert refused.count == 5
    monkeypatch.setattr("orchestrator.tuning.audit_shares.MAX_HELD_IN_ALL", MAX_HELD + 10)
    assert counted(shares, "cam2", 20) == []
    (refused,) = shares.overdue(0.0)
    assert (refused.origin, refused.count) == ("cam1", 10)
    for k in range(MAX_ACCOUNTS + 10):
        shares.reported(f"forged-{k}", "b1", traffic(1, 1), 1.0)
        if k % 1000 == 0:
            shares.reported("cam2", "b1", traffic(k // 1000, k // 1000), 1.0)
    assert len(shares.release("cam2")) == 10


def test_a_restart_goes_on_and_grants_nothing_twice():
    shares, other = AuditShares(), AuditShares()
    shares.reported("cam1", "b1", traffic(100, 100), 1.0)
    assert len(counted(shares, "cam1", 60)) == 60
    other.restore(shares.snapshot())
    other.reported("cam1", "b1", traffic(100, 100), 1.0)
    assert len(counted(other, "cam1", 60)) == 40
    assert DRAW_SLACK < 40
