"""Spells of trouble: told when they begin and when they are over."""

from dataclasses import replace

from message_samples import TELEMETRY

from device_agent.spells import QUIET_S, Spells
from distree.messages.events import EventKind, Severity

REPORT = TELEMETRY.pipelines[0]


def report(*, shed=0, dropped=0, early=0, answered=0, stage_shed=0):
    origin = replace(
        REPORT.origin, shed=shed, dropped=dropped, answered=answered, reasons={"fallback": early, "last": answered}
    )
    return replace(REPORT, origin=origin, stages=(replace(REPORT.stages[0], shed=stage_shed),))


def test_nothing_is_told_while_all_is_well():
    spells = Spells()
    assert [spells.note(now, report(answered=now * 10)) for now in range(5)] == [[]] * 5


def test_a_burst_is_told_when_it_begins_and_when_it_is_over_with_how_many_it_cost():
    spells = Spells()
    assert spells.note(0.0, report()) == []
    (begins,) = spells.note(2.0, report(shed=3))
    assert (begins.kind, begins.severity) == (EventKind.SHED, Severity.WARNING)
    assert begins.what == "inputs are turned away because there is no room for them"
    assert begins.remedy
    assert spells.note(4.0, report(shed=9, dropped=1)) == []
    assert spells.note(4.0 + QUIET_S - 0.1, report(shed=9, dropped=1)) == []
    (over,) = spells.note(4.0 + QUIET_S, report(shed=9, dropped=1))
    assert over.severity is Severity.INFO
    assert "(10 inputs in 3 s)" in over.what
    assert spells.note(20.0, report(shed=9, dropped=1)) == []
    assert len(spells.note(22.0, report(shed=10, dropped=1))) == 1


def test_answers_are_in_full_again_only_once_some_are():
    spells = Spells()
    (begins,) = spells.note(0.0, report(early=4, answered=4))
    assert begins.kind is EventKind.FALLBACK
    # Nothing comes in: nobody can say that it is over.
    assert spells.note(100.0, report(early=4, answered=4)) == []
    (over,) = spells.note(102.0, report(early=4, answered=9))
    assert over.what.startswith("inputs are answered in full again; some were not (4 inputs")


def test_a_stage_that_cannot_keep_up_is_told_by_its_number():
    (told,) = Spells().note(0.0, report(stage_shed=2))
    assert told.what.startswith(f"stage {REPORT.stages[0].stage}: more arrives than this board can compute")
