"""What people read about a tuned pipeline is what its tuner knows, whether or not a service runs."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from audit_samples import LOST, stream
from orchestrator_samples import WIDE, meta, origin, state, telemetry, write_config

from distree.apps.cli import main
from distree.formatting import thresholds_text
from distree.messages.plan import MaskedThresholds
from distree.thresholds import NEVER
from orchestrator.config import load_config
from orchestrator.explain.text import render
from orchestrator.explain.view import read_explanation, to_json
from orchestrator.fleet import Fleet
from orchestrator.pipeline_spec import load_spec
from orchestrator.site_view import device_row
from orchestrator.store.database import Store
from orchestrator.store.records import AuditSample, Batch, PlanRow, TuningRow
from orchestrator.tuning.pipeline_tuning import PipelineTuning
from orchestrator.tuning.replay import load_recording
from orchestrator.tuning.samples import AuditedInput, Sample, losses_of
from orchestrator.tuning.tuners import TUNERS
from orchestrator.tuning_view import read_tuning


def figures_of(tuner):
    return {figure.name: figure.value for figure in tuner.figures}


GOAL = ", goal: {accuracy_drop: 5%, audit_rate: 10%}"
AUDITS = stream(1500, seed=3)


def command(*words):
    return main(["orchestrator", *map(str, words)])


class Memory:
    """A store as a service leaves it, and the tuning that the service had."""

    def __init__(self, path):
        self.config = load_config(path)
        self.path = path
        (self.configured,) = self.config.pipelines
        self.pipeline = load_spec(self.configured)
        self.tuning = PipelineTuning(self.pipeline.tuned)
        self.epoch = 0

    def learn(self, audits, *, missing=(), name="cam", saved=False):
        samples = [
            Sample(origin=name, request=f"r-{k}", missing=() if audit.lost else missing, audit=audit)
            for k, audit in enumerate(audits)
        ]
        for sample in samples:
            self.tuning.apply(sample)
        rows = tuple(AuditSample(pipeline="fashion", sample=sample, at=1000.0) for sample in samples)
        with Store(self.config.store.path) as store:
            store.save(Batch(samples=rows))
            if saved:
                store.save(Batch(tunings=(TuningRow(pipeline="fashion", state=self.tuning.snapshot()),)))
        return self

    def plan(self, at=1000.0):
        with Store(self.config.store.path) as store:
            plan = self.tuning.plan(self.pipeline.plan)
            return store.append_plan(PlanRow(plan=plan, at=at))

    def report(self, exits=(60, 30, 10)):
        fleet = Fleet({"fashion": 3})
        fleet.saw_state(0.0, state())
        fleet.saw_meta(meta())
        report = telemetry()
        (part,) = report.pipelines
        changed = replace(part, origin=origin(exits))
        device = fleet.saw_telemetry(0.0, telemetry(pipelines=(changed,)))
        with Store(self.config.store.path) as store:
            store.save(Batch(devices=(device_row(device, heard_at=1000.0, seen_at=1000.0),)))

    def explain(self):
        (reasons,) = read_explanation(self.config, self.config.pipelines, now=1060.0).pipelines
        return reasons

    def text(self):
        return render(read_explanation(self.config, self.config.pipelines, now=1060.0))


@pytest.fixture
def memory(tmp_path):
    return Memory(write_config(tmp_path, extra=GOAL))


@pytest.fixture
def wide(tmp_path):
    path = tmp_path / "wide.yaml"
    path.write_text(f"site: lab\nstore: {{path: o.db}}\npipelines: [{{name: fashion, bundle: {WIDE}{GOAL}}}]\n")
    return Memory(path)


# ---------------------------------------------------------------- what the tuner knows


@pytest.mark.parametrize("kept", [0, 1, 399, 400, 401, 800])
def test_a_tuning_is_restored_from_its_state_and_what_came_later(memory, kept):
    memory.learn(AUDITS[:kept], saved=bool(kept)).learn(AUDITS[kept:800])
    with Store(memory.config.store.path, read_only=True) as store:
        view = read_tuning(store, memory.configured)
    assert view.explanation == memory.tuning.explain()
    assert view.explanation.audits == 800


def test_before_there_is_a_path_it_says_how_many_audits_are_wanted(memory):
    memory.learn(AUDITS[:322]).plan()
    (reasons,) = memory.explain().sets
    assert reasons.tuner.gathering == 78
    text = memory.text()
    assert "trial 1: gathering audits for a path, 78 more needed" in text
    assert "until then every input goes to the last exit" in text
    assert "thresholds in force: never never" in text
    assert "in-sample" not in text  # nobody leaves: nothing is saved


def test_the_evidence_is_what_the_bets_have_come_to(memory):
    memory.learn(AUDITS, saved=True).plan()
    (reasons,) = memory.explain().sets
    tuner, figures = memory.tuning.tuners[()], figures_of(reasons.tuner)
    path = np.array(tuner.path)
    losses = np.mean([losses_of(audit, path) for audit in AUDITS[-tuner.audits :]], axis=0)
    here = int(figures["certified"])
    assert 0 < here < figures["steps"]
    assert figures["mean_loss"] == pytest.approx(losses[here])
    assert figures["next_mean_loss"] == pytest.approx(losses[here + 1])
    assert figures["next_audits"] == tuner.to_next()
    assert reasons.in_force == reasons.tuner.thresholds
    assert (reasons.choice, reasons.choices) == (here, here + 1)
    (said,) = [remark.text for remark in reasons.tuner.remarks if remark.label == "next"]
    assert said.startswith(f"{thresholds_text(tuner.path[here + 1])}: mean loss ")


def test_a_step_is_certified_when_its_wealth_is_what_was_said_to_be_needed(memory):
    memory.learn(AUDITS[:600]).plan()
    sure, tuner = AuditedInput(scores=(1.0, 1.0), predictions=(1, 1, 1)), memory.tuning.tuners[()]
    certified = len(tuner.choices)
    while tuner.to_next() > 3:
        memory.learn([sure] * (tuner.to_next() // 2))
    assert len(tuner.choices) == certified
    while len(tuner.choices) == certified:
        figures = figures_of(memory.explain().sets[0].tuner)
        memory.learn([sure])
    # No bet wins more than this with one audit.
    assert figures["wealth_needed"] / 1.05 <= figures["next_wealth"] < figures["wealth_needed"]


def test_what_the_thresholds_save_and_lose_on_the_audits_kept(memory):
    memory.learn(AUDITS, saved=True).plan()
    (reasons,) = memory.explain().sets
    cost, wrong, left = 0.0, 0, [0, 0, 0]
    for audit in AUDITS:
        reached = [k for k, (s, t) in enumerate(zip(audit.scores, reasons.in_force, strict=True)) if s >= t]
        leaves = reached[0] if reached else 2
        left[leaves] += 1
        cost += memory.pipeline.costs[leaves]
        wrong += audit.predictions[leaves] != audit.predictions[-1]
    assert reasons.effect.audits == len(AUDITS)
    assert reasons.effect.saved == pytest.approx(1 - cost / memory.pipeline.costs[-1] / len(AUDITS))
    assert reasons.effect.loss == pytest.approx(wrong / len(AUDITS))
    assert reasons.effect.leave == pytest.approx([count / len(AUDITS) for count in left])
    assert "in-sample" in memory.text()


def test_lost_audits_are_told_by_origin_and_of_the_trial(memory):
    memory.learn(AUDITS[:450]).learn([LOST] * 3, name="attic").learn([LOST] * 10, name="shed").learn(AUDITS[450:500])
    memory.plan()
    reasons = memory.explain()
    assert [(line.origin, line.kept, line.lost) for line in reasons.origins] == [
        ("shed", 10, 10), ("attic", 3, 3), ("cam", 500, 0),
    ]  # fmt: skip
    assert reasons.tuning.explanation.lost == 13
    assert reasons.sets[0].lost == 13
    text = memory.text()
    assert "513 so far, 13 of them lost (2.53%)" in text
    # Of the trial they are above 5 %, though of all audits they are not.
    assert "13 of these 113 audits (11.5%)" in text
    assert "TOO MANY ARE LOST" in text
    assert ["shed", "10", "10"] in [row.split() for row in text.splitlines()]


def test_an_alarm_is_told_and_the_trial_that_it_began(memory):
    memory.learn(AUDITS, saved=True).plan(at=900.0)
    memory.learn([AuditedInput(scores=audit.scores, predictions=(1, 2, 3)) for audit in stream(400, seed=5)])
    memory.plan(at=1000.0)
    assert memory.tuning.tuners[()].alarms == 1
    text = memory.text()
    assert "raised once, because losses had grown: all exits were closed and a new trial began" in text
    assert "trial 2: " in text
    rows = [row.split() for row in text.splitlines()]
    assert any(row[:4] == ["2", "60", "s", "tuner"] and row[-3:] == ["never", "never", "100%"] for row in rows)
    (first,) = [row for row in rows if row[:3] == ["1", "3", "min"]]
    assert "never" not in first


def test_the_level_of_later_trials_is_stricter_and_told_as_the_tuner_has_it(memory):
    memory.learn(AUDITS)
    memory.learn([AuditedInput(scores=audit.scores, predictions=(1, 2, 3)) for audit in stream(400, seed=5)])
    memory.learn(stream(1000, seed=6), saved=True).plan()
    figures = figures_of(memory.explain().sets[0].tuner)
    assert figures["trial"] > 1
    assert figures["wealth_needed"] == pytest.approx(1 / memory.tuning.tuners[()]._level)


def test_goals_of_the_boards_are_told_with_how_hard_they_press(tmp_path):
    goal = ", goal: {accuracy_drop: 5%, latency_p95_ms: 40}"
    memory = Memory(write_config(tmp_path, extra=goal)).learn(AUDITS[:1000])
    memory.tuning.control.queues["latency_p95_ms"] = 2.5
    memory.learn(AUDITS[1000:1300], saved=True).plan()
    (reasons,) = memory.explain().sets
    assert (reasons.choice, reasons.in_force) == (0, (NEVER, NEVER))  # nothing was measured yet
    assert reasons.choices > 1
    text = memory.text()
    assert "confidence and latency_p95_ms of at most 40" in text
    assert "latency_p95_ms 2.5 of 10 when last saved" in text
    assert re.search(r"step 0 of \d+ allowed: earlier exits are not needed for latency_p95_ms", text)


# ---------------------------------------------------------------- sets of missing branches


def test_each_set_of_missing_branches_is_told_by_itself(wide):
    wide.learn(AUDITS, saved=True).learn(AUDITS[:500], missing=(1,)).learn([LOST]).learn(
        AUDITS[:7], missing=(0,)
    ).plan()
    reasons = wide.explain()
    assert [line.missing for line in reasons.sets] == [(), (0,), (1,)]
    everyone, first, second = reasons.sets
    assert (everyone.effect.audits, first.tuner.gathering, second.tuner.audits) == (1500, 393, 101)
    assert second.lost == 1
    text = wide.text()
    assert "no branch missing: " in text
    assert "branch 0 missing: never never" in text
    assert "branch 1 missing: " in text


# ---------------------------------------------------------------- what else is shown


def test_flow_of_the_inputs_answered_beside_what_the_audits_let_expect(memory):
    memory.report(exits=(60, 30, 10))
    memory.learn(AUDITS, saved=True).plan()
    flow = memory.explain().flow
    assert [stage.reach for stage in flow] == pytest.approx([1.0, 0.4, 0.1])
    assert [stage.leave for stage in flow] == pytest.approx([0.6, 0.3, 0.1])
    rows = [row.split() for row in memory.text().splitlines()]
    expected = memory.explain().sets[0].effect.leave
    assert ["1", "40.0", "30.0", "######..............", f"{100 * expected[1]:.1f}"] in rows


def test_the_last_ten_decisions_the_newest_first_with_who_made_them_and_why(memory):
    with Store(memory.config.store.path) as store:
        for number in range(1, 14):
            plan = replace(
                memory.pipeline.plan, thresholds=(number / 100, 0.5), reason="set by hand", author="alice@lab"
            )
            store.append_plan(PlanRow(plan=plan, at=1000.0 + number))
        # What is numbered anew, or tells other times, is the same decision.
        store.append_plan(PlanRow(plan=replace(plan, epoch=1, rest_s=(0.1, 0.1)), at=1050.0, is_reset=True))
    lines = memory.learn([]).explain().plans
    assert [line.epoch for line in lines] == [1, *range(12, 3, -1)]
    assert (lines[0].age_s, lines[0].reason, lines[0].author) == (47.0, "set by hand", "alice@lab")
    assert "pipeline fashion: max_softmax, epoch 1, set by hand, by alice@lab 47 s ago" in memory.text()
    rows = [line.split() for line in memory.text().splitlines()]
    assert ["12", "48", "s", "alice@lab", "set", "by", "hand", "0.12", "0.5", "100%"] in rows


def test_without_a_goal_it_says_so(tmp_path):
    config = load_config(write_config(tmp_path))
    with Store(config.store.path) as store:
        plan = load_spec(config.pipelines[0]).plan
        masked = (MaskedThresholds(missing=(1,), thresholds=(0.7, 0.6)),)
        store.append_plan(PlanRow(plan=replace(plan, masked=masked), at=0.0))
    text = render(read_explanation(config, config.pipelines, now=60.0))
    assert "thresholds are not tuned" in text
    assert "no branch missing: 0.9 0.8" in text
    assert "branch 1 missing: 0.7 0.6" in text


def test_before_the_first_plan_it_says_so(memory):
    memory.learn([])
    assert "pipeline fashion: no plan yet" in memory.text()


def test_as_json_it_is_valid_and_has_the_same(memory, capsys):
    memory.report()
    memory.learn(AUDITS[:450]).plan()
    assert command("explain", "-c", memory.path, "--pipeline", "fashion", "--json") == 0

    def no(constant):
        raise AssertionError(constant)

    shown = json.loads(capsys.readouterr().out, parse_constant=no)
    assert shown["schema"] == "distree.orchestrator-explain/1"
    (pipeline,) = shown["pipelines"]
    assert pipeline["tuning"]["goal"]["accuracy_drop"] == 0.05
    assert pipeline["sets"][0]["in_force"] == ["never", "never"]
    assert pipeline["tuning"]["audits"] == 450
    assert pipeline["sets"][0]["tuner"]["audits"] == 50
    assert pipeline["sets"][0]["tuner"]["figures"]["trial"] == 1
    assert pipeline["plans"][0]["audit_rate"] == 1.0


# ---------------------------------------------------------------- what is kept is of something else


def test_an_edited_goal_is_told_and_plans_and_flow_are_still_shown(memory):
    memory.report()
    memory.learn(AUDITS, saved=True).plan()
    memory.path.write_text(memory.path.read_text().replace("5%", "4%"))
    edited = Memory(memory.path)
    text = edited.text()
    assert "the store has another tuning, so the orchestrator starts this one from scratch" in text
    assert "the latest decisions" in text
    assert "per 100 inputs" in text
    assert edited.explain().tuning.explanation.sets == ()


def test_audits_of_an_earlier_tuning_are_not_counted_to_this_one(memory):
    two_exits = [AuditedInput(scores=(0.5,), predictions=(1, 1))] * 20
    memory.learn([])
    with Store(memory.config.store.path) as store:
        old = [Sample(origin="cam", request="r", missing=(), audit=audit) for audit in two_exits]
        store.save(Batch(samples=tuple(AuditSample(pipeline="fashion", sample=sample, at=1.0) for sample in old)))
        store.save(Batch(tunings=(TuningRow(pipeline="fashion", state=memory.tuning.snapshot()),)))
    memory.learn(AUDITS[:500]).plan()
    assert memory.explain().sets[0].effect.audits == 500


@pytest.mark.parametrize("words", [("status",), ("explain",), ("status", "--json"), ("explain", "--json")])
def test_a_store_of_an_earlier_version_is_shown_without_its_tuning(memory, capsys, words):
    memory.report()
    memory.learn(AUDITS[:10]).plan()
    with sqlite3.connect(memory.config.store.path) as connection:
        connection.execute("DROP TABLE tuning")
    assert command(words[0], "-c", memory.path, *words[1:]) == 0
    assert "no such table: tuning" in capsys.readouterr().out


def test_a_store_that_is_missing_and_a_pipeline_that_is_unknown_are_one_clear_line(memory, capsys):
    assert command("explain", "-c", memory.path) == 1
    assert "no store yet" in capsys.readouterr().err
    assert command("explain", "-c", memory.path, "--pipeline", "other") == 2
    assert "--pipeline other: not in the configuration; name one of fashion" in capsys.readouterr().err


# ---------------------------------------------------------------- status


def test_status_tells_in_one_line_how_the_tuning_stands(memory, capsys):
    memory.learn(AUDITS, saved=True).learn([LOST]).plan()
    tuner = memory.tuning.tuners[()]
    assert command("status", "-c", memory.path) == 0
    out = capsys.readouterr().out
    (line,) = [row for row in out.splitlines() if row.startswith("  tuning ")]
    assert "accuracy drop of at most 5% with 95% confidence" in line
    assert f"trial 1: {len(tuner.choices) - 1} of {len(tuner.path) - 1} steps certified on 1,101 audits" in line
    assert f"the next needs about {tuner.to_next()} more audits without a loss" in line
    assert "1,501 audits so far; 0 alarms" in line


def test_status_tells_of_missing_branches_where_to_look(wide, capsys):
    wide.learn(AUDITS[:10]).learn(AUDITS[:10], missing=(1,)).plan()
    assert command("status", "-c", wide.path) == 0
    out = capsys.readouterr().out
    assert "1 more for missing branches, see 'distree orchestrator explain'" in out
    assert "  plan     max_softmax never never" in out


# ---------------------------------------------------------------- recordings


def test_exported_audits_are_a_recording_that_tune_replays(memory, tmp_path, capsys):
    memory.learn(AUDITS[:700]).learn([LOST] * 5).learn(AUDITS[700:900])
    path = tmp_path / "audits.npz"
    assert command("audits", "-c", memory.path, "--pipeline", "fashion", "--export", path) == 0
    assert "900 audits of fashion, no branch missing; left out: 5 lost and 0" in capsys.readouterr().out
    recording = load_recording(path)
    assert recording.audits == tuple(AUDITS[:900])
    assert recording.costs == memory.pipeline.costs
    with np.load(path) as arrays:
        assert arrays["score"].shape == (900, 3)
        assert not arrays["score"][:, -1].any()
    assert main(["tune", "--replay", str(path), "--accuracy-drop", "5%"]) == 0
    assert "900 audits" in capsys.readouterr().out


def test_labels_are_exported_where_all_audits_have_them(memory, tmp_path):
    path = tmp_path / "audits.npz"
    words = ("audits", "-c", memory.path, "--pipeline", "fashion", "--export", path)
    labelled = [AuditedInput(audit.scores, audit.predictions, label=k % 7) for k, audit in enumerate(AUDITS[:50])]
    memory.learn(labelled)
    assert command(*words) == 0
    assert load_recording(path).audits == tuple(labelled)
    memory.learn(AUDITS[50:60])
    assert command(*words) == 0
    assert {audit.label for audit in load_recording(path).audits} == {None}


def test_those_without_some_branches_are_exported_by_themselves(wide, tmp_path, capsys):
    wide.learn(AUDITS[:50]).learn(AUDITS[50:80], missing=(1,)).learn([LOST])
    path = tmp_path / "audits.npz"
    words = ("audits", "-c", wide.path, "--pipeline", "fashion", "--export", path)
    assert command(*words, "--missing", "1") == 0
    assert "30 audits of fashion, branch 1 missing; left out: 1 lost and 50" in capsys.readouterr().out
    assert load_recording(path).audits == tuple(AUDITS[50:80])
    assert command(*words, "--missing", "0") == 1
    assert "no audit of fashion with branch 0 missing is kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--missing", "one"), "--missing one: not a list of branches; separate numbers by commas"),
        (("--export", "/nowhere/a.npz"), "--export /nowhere/a.npz: "),
    ],
)
def test_what_does_not_fit_is_refused(memory, tmp_path, capsys, words, told):
    memory.learn(AUDITS[:5])
    given = ("audits", "-c", memory.path, "--pipeline", "fashion", "--export", tmp_path / "a.npz")
    assert command(*given, *words) == 2
    assert told in capsys.readouterr().err


def test_a_pipeline_without_a_goal_has_no_audits(tmp_path, capsys):
    path = write_config(tmp_path)
    assert command("audits", "-c", path, "--pipeline", "fashion", "--export", tmp_path / "a.npz") == 2
    assert "has no goal" in capsys.readouterr().err


@pytest.mark.parametrize("name", TUNERS)
@pytest.mark.parametrize("kept", [0, 300, 900])
def test_every_tuner_is_explained_as_a_service_would_restore_it(tmp_path, capsys, name, kept):
    memory = Memory(write_config(tmp_path, extra=f", goal: {{accuracy_drop: 5%, tuner: {name}}}"))
    memory.learn(AUDITS[:kept], saved=True).learn([*AUDITS[kept:1000], LOST]).plan()
    with Store(memory.config.store.path, read_only=True) as store:
        assert read_tuning(store, memory.configured).explanation == memory.tuning.explain()
    said = memory.tuning.tuners[()].explain()
    for words in (("explain",), ("status",)):
        assert command(*words, "-c", memory.path) == 0
        text = capsys.readouterr().out
        assert said.progress in text
        assert ("without a guarantee" in text) == (not TUNERS[name].has_guarantee)
        assert command(*words, "--json", "-c", memory.path) == 0
        shown = json.loads(capsys.readouterr().out)["pipelines"][0]
        assert shown["tuning"]["goal"]["tuner"] == name
    text = memory.text()
    assert all(remark.text in text for remark in said.remarks)


def test_json_of_all_pipelines_never_holds_infinities(memory):
    memory.learn([*AUDITS[:420], LOST]).plan()
    assert "Infinity" not in to_json(read_explanation(memory.config, memory.config.pipelines))
