"""Who leads, whatever is lost on the way."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import often

from orchestrator.leadership import (
    CLAIM_S,
    CONTEST_S,
    EMPTY_S,
    IGNORED_LOG_INTERVAL_S,
    LISTEN_S,
    MAX_CLAIMS,
    MAX_EMPTY,
    PATIENCE_S,
    RIVAL_S,
    UNRENEWED_S,
    Leadership,
    Role,
)


def leader(own: str = "b", now_s: float = 0.0) -> Leadership:
    made = Leadership(own)
    made.connected(now_s - LISTEN_S)
    assert made.step(now_s)
    return made


def test_a_leader_repeats_its_claim():
    one = leader()
    claims = [now_s for now_s in range(1, 21) if one.step(float(now_s))]
    assert claims == [5, 10, 15, 20]
    assert CLAIM_S == 5.0 < PATIENCE_S / 3


def test_nobody_leads_without_a_broker():
    one = leader()
    one.disconnected()
    assert (one.leads, one.step(99.0), one.role) == (False, False, Role.OFFLINE)


def test_the_claim_of_one_that_is_gone_is_no_obstacle():
    one = Leadership("b")
    one.connected(0.0)
    assert one.heard(0.1, "a", running=False) is None
    assert one.step(LISTEN_S)


def test_it_is_told_once_who_leads():
    one = Leadership("b")
    one.connected(0.0)
    lines = [one.heard(now_s, "a", running=True) for now_s in (0.1, 5.0, 10.0)]
    assert [line is not None for line in lines] == [True, False, False]
    assert "(a)" in lines[0]


def test_an_own_claim_that_comes_back_changes_nothing():
    one = leader("b")
    assert one.heard(1.0, "b", running=True) is None
    assert one.heard(1.0, "b", running=False) is None
    assert one.leads


def stood_by_s(one: Leadership, claims: dict[float, str], until_s: float, start_s: float = 0.0) -> float:
    """Let others claim at the given moments; return for how many seconds the one did not lead."""
    stood_by, now_s = 0.0, start_s
    while now_s < until_s:
        if now_s in claims:
            one.heard(now_s, claims[now_s], running=True)
        one.step(now_s)
        stood_by += 0.0 if one.leads else 0.5
        now_s += 0.5
    return stood_by


def test_a_claim_that_is_not_renewed_moves_no_leader_however_often_it_comes():
    one = leader()
    assert stood_by_s(one, dict.fromkeys(range(10, 1000, 26), "-"), 1000.0) == 0.0
    assert stood_by_s(leader(), {now_s: f"-{now_s}" for now_s in range(10, 1000)}, 1000.0) == 0.0


def test_who_claims_is_named_now_and_then_where_it_is_ignored():
    one = leader()
    lines = [one.heard(10.0 + now_s, "-", running=True) for now_s in range(0, 130, 13)]
    told = [line for line in lines if line is not None]
    assert len(told) == 2
    assert "ignored the claim of - on this site, for which this orchestrator (b) plans" in told[0]
    assert IGNORED_LOG_INTERVAL_S == 60.0


def test_a_claim_found_at_the_start_is_waited_for_no_longer_than_its_renewal_takes():
    one = Leadership("b")
    one.connected(0.0)
    assert stood_by_s(one, {0.0: "-"}, 100.0) == UNRENEWED_S
    assert one.take_notice() == "- no longer renews its claim on this site: this orchestrator takes over"
    assert one.take_notice() is None


def test_claims_that_come_to_nothing_are_given_way_to_a_few_times_only():
    """Each under another name, at each moment at which a claim may count: after a connect, and in a contest."""
    one = Leadership("b")
    one.connected(0.0)
    claims = {now_s / 2: f"-{now_s}" for now_s in range(4000)}
    assert stood_by_s(one, claims, 2000.0) <= MAX_EMPTY * (UNRENEWED_S + 1.0)
    one.disconnected()
    one.connected(2000.0)
    one.heard(2000.1, "-again", running=True)
    assert one.role is Role.LISTENING
    one.connected(2000.0 + EMPTY_S)
    one.heard(2000.1 + EMPTY_S, "-later", running=True)
    assert one.role is Role.STANDBY


def test_a_leader_gives_way_to_a_claim_that_is_kept_up_if_that_has_the_lower_id():
    for other, gives_way in (("a", True), ("c", False)):
        one = leader("b")
        renewed = {CONTEST_S + CLAIM_S * k: other for k in range(12)}
        assert stood_by_s(one, renewed, CONTEST_S + RIVAL_S) == 0.0
        stood_by_s(one, renewed, 60.0, CONTEST_S + RIVAL_S)
        assert (one.role is Role.STANDBY) is gives_way
        assert stood_by_s(one, {}, 200.0, 60.0) < PATIENCE_S


def test_of_two_that_begin_at_the_same_moment_one_gives_way_at_once():
    one = leader("b")
    assert one.heard(CONTEST_S / 2, "a", running=True) is not None
    assert not one.leads


def test_who_stands_by_follows_whom_its_leader_has_given_way_to():
    one = Leadership("b")
    one.connected(0.0)
    first = {CLAIM_S * k: "c" for k in range(5)}
    then = {1.0 + CLAIM_S * k: "a" for k in range(3, 40)}
    stood_by_s(one, first | then, 150.0)
    assert (one.role, one.leader) == (Role.STANDBY, "a")


def test_claims_that_are_remembered_are_bounded():
    one = leader()
    for k in range(10 * MAX_CLAIMS):
        one.heard(10.0, f"z{k}", running=True)
    assert len(one._claims) <= MAX_CLAIMS


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["deaf", "back", "wait", "gone"])), max_size=40),
    st.permutations(["a", "b", "c"]),
)
@settings(max_examples=often(200), deadline=None)
def test_after_a_while_of_quiet_exactly_one_leads(script, names):
    """Three orchestrators; claims reach all who are connected."""
    all_of_them = [Leadership(name) for name in names]
    deaf: set[str] = set()
    now_s = 0.0

    def turn() -> None:
        for one in all_of_them:
            if one.own not in deaf and one.step(now_s):
                tell(one.own, running=True)

    def tell(own: str, *, running: bool) -> None:
        for other in all_of_them:
            if other.own not in deaf:
                other.heard(now_s, own, running=running)

    for one in all_of_them:
        one.connected(now_s)
    for index, what in script:
        one = all_of_them[index]
        if what == "deaf" and one.own not in deaf:
            deaf.add(one.own)
            one.disconnected()
        elif what == "gone" and one.own not in deaf:
            deaf.add(one.own)
            one.disconnected()
            tell(one.own, running=False)
        elif what == "back" and one.own in deaf:
            deaf.discard(one.own)
            one.connected(now_s)
        now_s += 0.25
        turn()
    for one in all_of_them:
        if one.own in deaf:
            deaf.discard(one.own)
            one.connected(now_s)
    for _ in range(400):
        now_s += 0.25
        turn()
    assert sum(one.leads for one in all_of_them) == 1
