"""Who leads, whatever is lost on the way."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import often

from orchestrator.leadership import CLAIM_S, LISTEN_S, PATIENCE_S, Leadership, Role


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
