"""What `distree orchestrator explain` shows, as text."""

from __future__ import annotations

from collections.abc import Sequence

from distree.formatting import ago, bar, branches_text, counted, percent, table, thresholds_text, why_text
from orchestrator.explain.view import (
    PLANS_SHOWN,
    Explanation,
    OriginAudits,
    PastPlan,
    PipelineReasons,
    SetReasons,
    StageFlow,
)
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.goal_control import FULL_QUEUE
from orchestrator.tuning.live_tuner import TunerExplanation
from orchestrator.tuning_view import TuningView

_ORIGINS_SHOWN = 10

_PLAN_HEAD = ("EPOCH", "AGE", "BY", "WHY", "THRESHOLDS", "AUDITED")
_ORIGIN_HEAD = ("ORIGIN", "KEPT", "LOST")
_FLOW_HEAD = ("STAGE", "REACH", "LEAVE", "", "EXPECTED")

_UNTUNED = "thresholds are not tuned: the pipeline has no goal"


def render(explanation: Explanation) -> str:
    """Return the explanation as plain text."""
    state = "orchestrator running" if explanation.running else "orchestrator NOT running on this machine"
    parts = [f"site {explanation.site}, store {explanation.store}; {state}"]
    return "\n\n".join([*parts, *map(_pipeline_text, explanation.pipelines)])


def _pipeline_text(reasons: PipelineReasons) -> str:
    if not reasons.plans:
        return f"pipeline {reasons.pipeline}: no plan yet"
    newest, tuning = reasons.plans[0], reasons.tuning
    why = why_text(newest.reason, newest.author)
    head = f"pipeline {reasons.pipeline}: {newest.criterion}, epoch {newest.epoch}, {why} {ago(newest.age_s)} ago"
    blocks = [[head, *(_goal_lines(tuning) if tuning is not None else [_UNTUNED])]]
    # Where no branch was ever missing, or there are none, there is nothing to tell apart.
    is_only = all(not one.missing for one in reasons.sets)
    heads = ["thresholds in force" if is_only else branches_text(one.missing) for one in reasons.sets]
    blocks += [_set_lines(head, one, tuning) for head, one in zip(heads, reasons.sets, strict=True)]
    if any(one.lost for one in reasons.origins):
        blocks.append(_lost_lines(reasons.origins))
    if reasons.flow:
        blocks.append(_flow_lines(reasons.flow, reasons.sets))
    blocks.append(_plan_lines(reasons.plans))
    return "\n\n".join("\n".join([first, *(f"  {line}" for line in rest)]) for first, *rest in blocks)


def _line(label: str, text: str) -> str:
    return f"{label:<10} {text}"


def _goal_lines(tuning: TuningView) -> list[str]:
    lines = [_line("goal", tuning.goal.text())]
    if tuning.trouble is not None:
        return [*lines, _line("tuning", str(tuning.trouble))]
    stands = tuning.explanation
    share = stands.lost / stands.audits if stands.audits else 0.0
    lost = f", {stands.lost:,} of them lost ({percent(share)}), each counted as a loss" if stands.lost else ""
    lines.append(_line("audits", f"{stands.audits:,} so far{lost}"))
    if stands.alarms:
        times = "once" if stands.alarms == 1 else counted(stands.alarms, "time")
        lines.append(
            _line("alarms", f"raised {times}, because losses had grown: all exits were closed and a new trial began")
        )
    for queue in stands.queues:
        pressure = f"{queue.goal} {queue.length:.3g} of {FULL_QUEUE:g} when last saved (0: the goal is met)"
        lines.append(_line("pressure", pressure))
    return lines


def _set_lines(head: str, reasons: SetReasons, tuning: TuningView | None) -> list[str]:
    vector = "early exits disabled" if reasons.in_force is None else thresholds_text(reasons.in_force)
    lines = [f"{head}: {vector}"]
    if reasons.tuner is not None and tuning is not None:
        lines += _tuner_lines(reasons.tuner, reasons.lost, tuning.goal)
        if reasons.choice is not None and reasons.choice < reasons.choices - 1:
            why = _why_not_further(tuning.goal)
            lines.append(_line("in force", f"step {reasons.choice} of {reasons.choices - 1} allowed: {why}"))
    effect = reasons.effect
    if effect is not None and effect.leave[-1] < 1.0:
        labelled = f", {effect.labelled:,} of them with labels" if effect.labelled else ""
        lines.append(
            _line(
                "in force",
                f"saves {percent(effect.saved)} of the multiply-accumulates and loses {percent(effect.loss)} on the "
                f"{counted(effect.audits, 'audit')} kept{labelled} (in-sample: they include those that chose it)",
            )
        )
    return lines


def _why_not_further(goal: Goal) -> str:
    names = ", ".join(goal.limits())
    return f"earlier exits are not needed for {names}" if names else "the next plan goes further"


def _tuner_lines(tuner: TunerExplanation, lost: int, goal: Goal) -> list[str]:
    lines = [_line("progress", tuner.progress), *(_line(remark.label, remark.text) for remark in tuner.remarks)]
    share = lost / tuner.audits if tuner.audits else 0.0
    if lost:
        of_audits = f"{lost:,} of these {counted(tuner.audits, 'audit')} ({percent(share)}), each counted as a loss"
        lines.append(_line("lost", of_audits))
    if share >= goal.accuracy_drop:
        lines.append(
            _line("", "TOO MANY ARE LOST: the goal allows a smaller share of losses, so nothing more can be proved")
        )
    return lines


def _lost_lines(origins: Sequence[OriginAudits]) -> list[str]:
    shown = [one for one in origins if one.lost][:_ORIGINS_SHOWN]
    rows = [[one.origin, str(one.kept), str(one.lost)] for one in shown]
    return [
        "lost audits, of those kept (they never arrived, or a board could not run them)",
        *table(_ORIGIN_HEAD, rows).splitlines(),
    ]


def _flow_lines(flow: Sequence[StageFlow], sets: Sequence[SetReasons]) -> list[str]:
    expected = next((one.effect.leave for one in sets if one.effect is not None and not one.missing), ())
    rows = []
    for k, stage in enumerate(flow):
        would = f"{100 * expected[k]:.1f}" if k < len(expected) else "-"
        rows.append([str(stage.stage), f"{100 * stage.reach:.1f}", f"{100 * stage.leave:.1f}", bar(stage.leave), would])
    return [
        "per 100 inputs answered since the agents started; EXPECTED: by the thresholds in force, on the audits kept",
        *table(_FLOW_HEAD, rows).splitlines(),
    ]


def _plan_lines(plans: Sequence[PastPlan]) -> list[str]:
    rows = [
        [
            str(plan.epoch),
            ago(plan.age_s),
            plan.author,
            plan.reason,
            thresholds_text(plan.thresholds),
            percent(plan.audit_rate),
        ]
        for plan in plans
    ]
    return [f"the latest decisions, at most {PLANS_SHOWN}", *table(_PLAN_HEAD, rows).splitlines()]
