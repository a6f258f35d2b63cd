"""What is wrong is reported once."""

from __future__ import annotations

from orchestrator_samples import state

from distree.errors import RemoteProtocolError
from orchestrator.fleet import Fleet
from orchestrator.problems import (
    MAX_REPORTED,
    SHARED_ID_RETURNS,
    SHARED_ID_S,
    OngoingProblems,
    PersistentProblems,
    RefusedMessages,
    SharedIds,
)


def test_each_reason_of_a_topic_is_reported_once_and_every_refusal_counted():
    refused = RefusedMessages()
    lines = [refused.add(topic, RemoteProtocolError(reason, "why")) for topic in "aab" for reason in ("kind", "topic")]
    assert [line is not None for line in lines] == [True, True, False, False, True, True]
    assert refused.counts == {"kind": 3, "topic": 3}


def test_of_endlessly_many_topics_only_the_first_are_reported():
    refused = RefusedMessages()
    lines = [refused.add(str(k), RemoteProtocolError("kind", "why")) for k in range(MAX_REPORTED + 10)]
    assert sum(line is not None for line in lines) == MAX_REPORTED
    assert refused.counts["kind"] == MAX_REPORTED + 10
    # Nobody hides by them what is refused for another reason; and of 60 KB, no more is kept than is shown.
    line = refused.add("x" * 60_000, RemoteProtocolError("field", "why"))
    assert line is not None
    assert len(line) < 300
    assert max(len(topic) for topics in refused._reported.values() for topic in topics) <= 120


def test_a_problem_is_reported_when_it_begins_and_again_only_after_it_was_over():
    problems = OngoingProblems()
    reported = [problems.note("writing", problem) for problem in ("locked", "locked", "full", None, "full")]
    assert reported == ["writing: locked", None, "writing: full", None, "writing: full"]
    assert problems.note("reading", "full") == "reading: full"


def test_what_is_wrong_for_a_moment_is_not_reported_and_what_lasts_is_reported_once():
    problems = PersistentProblems()
    checks = [{1: "one"}, {2: "two"}, {2: "two, still"}, {2: "two", 3: "three"}, {3: "three"}, {}, {3: "three"}]
    assert [problems.note(check) for check in checks] == [[], [], ["two, still"], [], ["three"], [], []]
    assert problems.note({3: "three"}) == ["three"]


def in_turns(fleet, shared, times, start_s=0.0, every_s=1.0):
    """Have two runs speak in turns; return what is reported."""
    says = [(start_s + k * every_s, ("b1", "b2")[k % 2]) for k in range(times)]
    return [line for at_s, boot in says if (line := shared.note(at_s, fleet.saw_state(at_s, state(boot=boot))))]


def test_two_boards_with_one_id_are_reported_once_in_a_while():
    fleet, shared = Fleet({"fashion": 3}), SharedIds()
    assert in_turns(fleet, shared, SHARED_ID_RETURNS + 1) == []
    line = "two boards use the id a (boots b1, b2); give one of them another id"
    assert in_turns(fleet, shared, 200, start_s=10.0)[:1] == [line]
    assert in_turns(fleet, shared, 300, start_s=210.0) == []
    assert len(in_turns(fleet, shared, 300, start_s=SHARED_ID_S + 10.0)) == 1


def test_wills_that_come_late_are_no_second_board():
    fleet, shared = Fleet({"fashion": 3}), SharedIds()
    for k in range(100):
        for boot in (f"b{k + 1}", f"b{k}", f"b{k + 1}"):
            at_s = k * (SHARED_ID_S + 1.0)
            assert shared.note(at_s, fleet.saw_state(at_s, state(boot=boot))) is None
    assert fleet.get("a").returns == 199
