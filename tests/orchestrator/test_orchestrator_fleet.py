import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orchestrator_samples import HASH, fusion, meta, origin, stage, state, telemetry

from distree.errors import RemoteProtocolError
from distree.messages.device import DeviceMeta, DeviceState
from distree.messages.telemetry import PipelineTelemetry
from orchestrator.fleet import RUNS_REMEMBERED, Fleet, is_behind, is_silent, origin_boots, report_of, serves

EXITS = {"fashion": 3}


def refused(call, *args, **kwargs):
    with pytest.raises(RemoteProtocolError) as caught:
        call(*args, **kwargs)
    return caught.value.reason


def test_a_device_is_known_by_its_state_its_description_and_its_reports():
    fleet = Fleet(EXITS)
    fleet.saw_state(0.0, state())
    fleet.saw_meta(meta())
    device = fleet.saw_telemetry(5.0, telemetry(epoch=4))
    assert (device.status.value, device.heard_at_s) == ("ready", 5.0)
    assert serves(device, "fashion")
    assert not serves(device, "other")
    assert report_of(device, "fashion").epoch == 4
    assert report_of(device, "other") is None


def test_retained_state_is_no_sign_of_life():
    assert Fleet(EXITS).saw_state(0.0, state(), retained=True).heard_at_s is None


@pytest.mark.parametrize("sequence", [0, 6, 7])
def test_an_old_or_repeated_report_is_refused(sequence):
    fleet = Fleet(EXITS)
    fleet.saw_telemetry(0.0, telemetry(sequence=7))
    assert refused(fleet.saw_telemetry, 1.0, telemetry(sequence=sequence)) == "old-sequence"


def test_a_will_that_comes_after_the_next_birth_is_mended_and_costs_nothing_that_is_known():
    fleet = Fleet(EXITS)
    fleet.saw_state(0.0, state(boot="b1"))
    fleet.saw_state(1.0, state(boot="b2"))
    fleet.saw_meta(meta(boot="b2"))
    born = fleet.saw_telemetry(1.0, telemetry(boot="b2", sequence=7))
    late = fleet.saw_state(2.0, state(boot="b1", status="lost"))
    assert (late.boot, late.status.value, late.meta, late.telemetry) == ("b1", "lost", None, None)
    mended = fleet.saw_state(3.0, state(boot="b2"))
    assert (mended.boot, mended.status, mended.meta, mended.telemetry) == ("b2", born.status, born.meta, born.telemetry)
    assert [run.boot for run in mended.earlier] == ["b1"]
    assert mended.returns == 2
    assert fleet.saw_state(4.0, state(boot="b3")).returns == 2  # A restart is none.


def test_whoever_forges_a_boot_locks_nobody_out():
    fleet, numbers = Fleet(EXITS), itertools.count(1 << 40)

    def say(one):
        match one:
            case DeviceState():
                return fleet.saw_state(0.0, one)
            case DeviceMeta():
                return fleet.saw_meta(one)
        return fleet.saw_telemetry(0.0, one)

    for one in (state(), meta(), telemetry(sequence=5)):
        say(one)
    for sequence in range(6, 20):
        for one in (state(boot="x"), meta(boot="x"), telemetry(boot="x", sequence=next(numbers))):
            assert say(one).boot == "x"
        real = say(telemetry(sequence=sequence))
        assert (real.boot, real.meta, real.telemetry.sequence) == ("b1", meta(), sequence)


def test_a_late_report_of_an_earlier_run_replaces_nothing_newer():
    fleet = Fleet(EXITS)
    fleet.saw_telemetry(0.0, telemetry(boot="b1", sequence=50))
    fleet.saw_telemetry(1.0, telemetry(boot="b2", sequence=3))
    assert refused(fleet.saw_telemetry, 2.0, telemetry(boot="b1", sequence=50)) == "old-sequence"
    assert (fleet.get("a").boot, fleet.get("a").returns) == ("b2", 0)
    assert fleet.saw_telemetry(2.0, telemetry(boot="b1", sequence=51)).boot == "b1"
    assert refused(fleet.saw_telemetry, 3.0, telemetry(boot="b2", sequence=3)) == "old-sequence"
    assert fleet.saw_telemetry(4.0, telemetry(boot="b2", sequence=4)).telemetry.sequence == 4


def test_a_new_boot_begins_with_nothing_of_the_former():
    fleet = Fleet(EXITS)
    fleet.saw_meta(meta(boot="b1"))
    fleet.saw_telemetry(0.0, telemetry(boot="b1", sequence=50))
    device = fleet.saw_state(1.0, state(boot="b2"))
    assert (device.meta, device.telemetry) == (None, None)
    assert fleet.saw_telemetry(2.0, telemetry(boot="b2", sequence=0)).telemetry.sequence == 0


def test_boots_and_devices_are_bounded():
    fleet = Fleet(EXITS, limit=2)
    for k in range(3 * RUNS_REMEMBERED):
        fleet.saw_state(0.0, state(boot=f"b{k}"))
    assert len(fleet.get("a").earlier) == RUNS_REMEMBERED
    assert not any(run.earlier for run in fleet.get("a").earlier)
    fleet.saw_state(0.0, state(device="b"))
    fleet.saw_state(0.0, state(device="c"))
    assert fleet.take_pushed_out() == ["a"]
    assert fleet.forget("b")
    assert not fleet.forget("b")
    fleet.saw_state(0.0, state(device="d"))
    assert (len(fleet), fleet.take_pushed_out()) == (2, [])


def test_boards_that_work_keep_their_places_however_many_are_made_up():
    fleet = Fleet(EXITS, limit=100, reserved=["listed"])
    fleet.saw_state(0.0, state(device="listed"))
    for name in ("a", "b"):
        fleet.saw_meta(meta(device=name))
        fleet.saw_telemetry(0.0, telemetry(device=name))
    for k in range(1000):
        fleet.saw_state(1.0 + k, state(device=f"forged-{k}"))
    assert len(fleet) == 101
    assert all(fleet.get(name) is not None for name in ("listed", "a", "b"))
    assert len(fleet.take_pushed_out()) == 1003 - 101
    # Forged reports push out the ones that were silent longest.
    for k in range(500):
        fleet.saw_telemetry(2000.0 + k, telemetry(device=f"forged-{k}"))
        fleet.saw_telemetry(2000.0 + k, telemetry(device="a", sequence=2 + k))
    assert fleet.get("a").meta is not None
    assert fleet.get("b") is None
    # A board that comes late finds a place.
    assert fleet.saw_state(3000.0, state(device="late")) is fleet.get("late")


def test_a_board_is_forgotten_by_its_silence_and_not_by_its_name():
    fleet = Fleet(EXITS, limit=3)
    for name in "abc":
        fleet.saw_state(0.0, state(device=name))
    fleet.saw_state(1.0, state(device="a"))
    fleet.saw_state(2.0, state(device="d"))
    assert fleet.take_pushed_out() == ["b"]


def test_only_configured_pipelines_stages_and_exits_are_kept():
    fleet = Fleet(EXITS)
    parts = tuple(
        PipelineTelemetry(
            pipeline=name,
            epoch=1,
            plan_hash=HASH,
            revision="r",
            stages=(stage(0), stage(0, received=7), stage(2), stage(3), stage(1 << 40)),
            origin=origin(exits=range(30)),
            fusions=(fusion(1), fusion(1, fused=9), fusion(2), fusion(3)),
        )
        for name in ("fashion", "fashion", "other")
    )
    (part,) = fleet.saw_telemetry(0.0, telemetry(pipelines=parts)).telemetry.pipelines
    assert [(s.stage, s.received) for s in part.stages] == [(0, 7), (2, 100)]
    assert part.origin.exits == (0, 1, 2)
    assert [(f.stage, f.fused) for f in part.fusions] == [(1, 9), (2, 100)]
    assert fleet.saw_meta(meta(stages=(0, 0, 2, 9))).meta.stages == meta(stages=(0, 2)).stages
    kept = fleet.saw_meta(meta(name="other", fuser=True)).meta
    assert (kept.stages, kept.origins, kept.fusers) == ((), (), ())


def test_a_board_that_only_fuses_serves_its_pipeline():
    device = Fleet(EXITS).saw_meta(meta(stages=(), origin=False, fuser=True))
    assert device.meta.fusers == ("fashion",)
    assert serves(device, "fashion")
    assert not serves(Fleet(EXITS).saw_meta(meta(stages=(), origin=False)), "fashion")


def test_silence_is_measured_in_the_devices_own_periods_and_told_once():
    fleet = Fleet(EXITS)
    fleet.saw_state(0.0, state())
    fleet.saw_telemetry(0.0, telemetry(sequence=1, uptime_s=2.0))
    fleet.saw_telemetry(2.0, telemetry(sequence=2, uptime_s=4.0))
    assert fleet.get("a").period_s == 2.0
    assert fleet.silence(8.0) == (set(), set())
    assert fleet.silence(8.1) == ({"a"}, set())
    assert fleet.silence(9.0) == (set(), set())
    fleet.saw_telemetry(9.5, telemetry(sequence=3, uptime_s=11.0))
    assert fleet.silence(9.6) == (set(), {"a"})
    fleet.saw_state(9.7, state(status="disconnected"))
    assert fleet.silence(1e6) == (set(), set())


def test_a_board_that_only_the_broker_remembers_is_silent_after_the_longest_time():
    fleet = Fleet(EXITS)
    fleet.saw_state(10.0, state(), retained=True)
    fleet.saw_state(500.0, state(), retained=True)
    assert fleet.silence(10.0 + 900.0) == (set(), set())
    assert fleet.silence(10.0 + 900.1) == ({"a"}, set())
    fleet.saw_telemetry(1000.0, telemetry())
    assert fleet.silence(1000.1) == (set(), {"a"})


def test_runs_in_which_a_board_is_an_origin_are_remembered():
    fleet = Fleet(EXITS)
    assert origin_boots(fleet.get("a"), "fashion") == ()
    fleet.saw_meta(meta(boot="b1"))
    fleet.saw_meta(meta(boot="b2", origin=False))
    fleet.saw_state(0.0, state(boot="b3"))
    assert origin_boots(fleet.get("a"), "fashion") == ("b1",)
    fleet.saw_meta(meta(boot="b3"))
    assert origin_boots(fleet.get("a"), "fashion") == ("b3", "b1")
    assert origin_boots(fleet.get("a"), "other") == ()


def test_a_strange_uptime_makes_no_strange_period():
    fleet = Fleet(EXITS)
    fleet.saw_telemetry(0.0, telemetry(sequence=1, uptime_s=1e308))
    assert fleet.saw_telemetry(0.0, telemetry(sequence=2, uptime_s=0.0)).period_s == 1.0
    assert fleet.saw_telemetry(0.0, telemetry(sequence=3, uptime_s=1e308)).period_s == 300.0
    assert is_silent(fleet.saw_state(0.0, state()), 900.1)
    assert not is_silent(fleet.get("a"), 900.0)


def test_behind_are_the_ready_devices_of_the_pipeline_that_do_not_follow():
    fleet = Fleet(EXITS)
    for name, status, follows in (("a", "ready", "x"), ("b", "ready", HASH), ("c", "lost", "x"), ("d", "ready", None)):
        fleet.saw_state(0.0, state(device=name, status=status))
        fleet.saw_meta(meta(device=name))
        if follows is not None:
            # Whatever the number: it may be that of another plan.
            fleet.saw_telemetry(0.0, telemetry(device=name, epoch=999, follows=follows))
    assert [device.device for device in fleet if is_behind(device, "fashion", HASH)] == ["a", "d"]
    assert not any(is_behind(device, "other", HASH) for device in fleet)


@given(st.lists(st.tuples(st.sampled_from("123"), st.integers(0, 5), st.booleans()), max_size=40))
def test_in_any_order_of_messages_the_last_boot_is_current_and_the_sequence_of_each_only_grows(messages):
    fleet, last, boots = Fleet(EXITS), {}, []
    for boot, sequence, is_state in messages:
        try:
            if is_state:
                device = fleet.saw_state(0.0, state(boot=boot))
            else:
                device = fleet.saw_telemetry(0.0, telemetry(boot=boot, sequence=sequence))
        except RemoteProtocolError:
            assert not is_state
            assert sequence <= last[boot]
            continue
        assert device.boot == boot
        if not is_state:
            assert sequence > last.get(boot, -1)
            last[boot] = sequence
        assert (device.telemetry.sequence if device.telemetry else -1) == last.get(boot, -1)
        boots += [boot] if boots[-1:] != [boot] else []
        assert device.returns == len(boots) - len(set(boots))
