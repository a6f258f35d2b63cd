from dataclasses import replace

import pytest
from orchestrator_samples import meta, state, telemetry

from distree.errors import SAME_BUNDLE
from orchestrator.coverage import NAMED, Gap, Holder, find_gaps, gap_text
from orchestrator.fleet import Fleet

CHAIN = (0, 0, 0)
OURS, THEIRS = "0123456789ab", "fedcba987654"


def board(name, *stages, revision=OURS, status="ready", origin=False, pipeline="fashion", branch=None):
    """A board as the fleet knows it."""
    fleet = Fleet({"fashion": 3, "other": 3})
    fleet.saw_meta(meta(device=name, stages=stages, revision=revision, origin=origin, name=pipeline, branch=branch))
    return fleet.saw_state(0.0, state(device=name, status=status))


def origin(name="cam", *stages, **roles):
    return board(name, *(stages or (0,)), origin=True, **roles)


def told(*devices, branches=CHAIN):
    return [gap_text(gap) for gap in find_gaps("fashion", branches, devices)]


def test_boards_of_one_revision_leave_no_gap():
    assert told(origin(), board("b1", 1, 2)) == []
    assert told(origin("cam", 0, 1, 2)) == []
    # One of each is enough.
    assert told(origin(), board("b1", 1, 2), board("b2", 1, 2, revision=THEIRS)) == []


def test_where_revisions_differ_it_is_said_which_and_what_to_do():
    assert told(origin(), board("b1", 1, revision=THEIRS), board("b2", 2)) == [
        f"no board serves stage 1 with bundle revision {OURS} (b1 has {THEIRS}); {SAME_BUNDLE}"
    ]


def test_each_origin_needs_its_own_revision():
    gaps = find_gaps("fashion", CHAIN, [origin("one"), origin("two", revision=THEIRS), board("b1", 1, 2)])
    held = (Holder(device="b1", revision=OURS),)
    assert gaps == tuple(
        Gap(stage=stage, branch=None, revision=THEIRS, origins=("two",), others=held) for stage in (1, 2)
    )


@pytest.mark.parametrize("status", ["lost", "draining", "disconnected", "init"])
def test_who_is_not_ready_serves_nothing_and_asks_for_nothing(status):
    assert told(origin(), board("b1", 1), board("b2", 2, status=status)) == [
        "no board serves stage 2; start one that does"
    ]
    assert told(origin(status=status)) == []


def test_a_stage_that_nobody_serves_is_one_gap_for_all_origins():
    gaps = find_gaps(
        "fashion", CHAIN, [origin("two", revision=THEIRS), origin("one"), board("b1", 1, 2, pipeline="other")]
    )
    assert [(gap.stage, gap.revision, gap.origins) for gap in gaps] == [
        (1, None, ("one", "two")),
        (2, None, ("one", "two")),
    ]


def test_without_an_origin_nothing_is_needed():
    assert told(board("b1", 1), board("b2", 1, revision=THEIRS)) == []
    assert told() == []
    assert told(origin(), branches=()) == []


def test_wide_stages_need_each_branch():
    boards = [board("b0", 0, 1, branch=0), board("b1", 0, 1, branch=1, revision=THEIRS)]
    wide = replace(telemetry().pipelines[0], revision=OURS)
    fuser = replace(origin("hub"), meta=meta(device="hub", stages=()), telemetry=telemetry(pipelines=(wide,)))
    assert told(fuser, *boards, branches=(2, 3)) == [
        f"no board serves stage 0 branch 1 with bundle revision {OURS} (b1 has {THEIRS}); {SAME_BUNDLE}",
        f"no board serves stage 1 branch 1 with bundle revision {OURS} (b1 has {THEIRS}); {SAME_BUNDLE}",
        "no board serves stage 1 branch 2; start one that does",
    ]
    # Before it has reported, its revision is not known, and only what no board serves is missing.
    assert told(replace(fuser, telemetry=None), *boards, branches=(2, 3)) == [
        "no board serves stage 1 branch 2; start one that does"
    ]


def test_a_line_stays_short_and_harmless():
    boards = [board(f"b{k}", 1, 2, revision="x\x1b") for k in range(NAMED + 5)]
    assert told(origin(), *boards)[0] == (
        f"no board serves stage 1 with bundle revision {OURS} (b0 has x\\x1b, b1 has x\\x1b, b2 has x\\x1b, 5 more have "
        "others); " + SAME_BUNDLE
    )
