"""What a split prints: its cuts, what exits save, and what to type next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from model_zoo.costs import Costs
from model_zoo.evaluation import Evaluation
from model_zoo.split.cuts import BOARD_MACS_PER_S, RADIO_BITS_PER_S, Cut, Cuts
from model_zoo.split.ending import Ending
from model_zoo.split.graph import Graph
from model_zoo.split.head_plan import HeadPlan
from model_zoo.split.thresholds import Row, margin, saved

FEW_INPUTS = 2_000


def describe(name: str, graph: Graph, ending: Ending) -> str:
    """Describe a network in one line."""
    makes = {"softmax": ", softmax", "sigmoid": ", sigmoid", "none": ""}[ending.kind]
    return (
        f"{name}: {len(graph.operators)} operators, {graph.macs / 1e6:.3f} MMACs, input {graph.input}, "
        f"{ending.classes} classes{makes}"
    )


def list_cuts(graph: Graph, cuts: Cuts, plans: dict[int, HeadPlan], pay: Sequence[Cut]) -> Iterator[str]:
    """List the legal cuts with their costs."""
    if not cuts.legal:
        yield "no legal cut: more than one tensor crosses every point"
        return
    heading = f"{'after':>5}  {'operator':<20}{'MMACs before':>16}  {'boundary':<24}{'bytes':>9}{'radio ms':>10}"
    yield f"{heading}{'head %':>8}"
    paying = {cut.after for cut in pay}
    for cut in cuts.legal:
        share = 100 * cut.macs / max(graph.macs, 1)
        head = 100 * plans[cut.after].macs / max(graph.macs, 1)
        note = "" if cut.after in paying else "  *"
        yield (
            f"{cut.after:>5}  {cut.operator:<20}{cut.macs / 1e6:>9.3f} {share:>4.0f} %  {cut.boundary!s:<24}"
            f"{cut.boundary.bytes:>9,}{1e3 * cut.radio_s:>10.2f}{head:>8.1f}{note}"
        )
    yield from _notes(graph, cuts, pay)


def _notes(graph: Graph, cuts: Cuts, pay: Sequence[Cut]) -> Iterator[str]:
    yield f"raw input: {graph.input.values:,} values; radio at {RADIO_BITS_PER_S / 1e6:.0f} Mbit/s"
    if len(pay) < len(cuts.legal):
        yield (
            "* saves nothing: the exit head and the hop cost more than the work left after the cut, on a board with "
            f"{BOARD_MACS_PER_S / 1e6:.0f} MMACs per second"
        )
    if cuts.crossed:
        yield f"{_points(len(cuts.crossed))} crossed by more than one tensor, as next to a skip connection"


def _points(count: int) -> str:
    return "1 other point is" if count == 1 else f"{count} other points are"


def savings(rows: Iterable[Row], costs: Costs, labelled: bool) -> Iterator[str]:
    """Tabulate what exits save for several allowed drops."""
    what = "accuracy drop" if labelled else "answers changed"
    yield f"{what:<16}{'with 99 % confidence':^28}  {'on average':^18}".rstrip()
    yield f"{'allowed':<16}{'saved %':>8}{'drop':>9}{'bound':>9}    {'saved %':>8}{'drop':>9}"
    for row in rows:
        bound, mean = row.bound, row.mean
        yield (
            f"{points_text(row.max_drop):<16}{100 * saved(bound, costs):>8.1f}{100 * bound.drop:>9.2f}"
            f"{100 * bound.drop_bound:>9.2f}    {100 * saved(mean, costs):>8.1f}{100 * mean.drop:>9.2f}"
        )
    yield "saved: share of the whole network's multiply-accumulates without exits, minus what the exit heads cost"


def points_text(drop: float) -> str:
    """Write a drop in accuracy, a fraction, in percentage points."""
    return f"{100 * drop:.3g} point{'' if drop == 0.01 else 's'}"


def few_inputs(inputs: int) -> str:
    """Say how wide the bounds are with so few inputs, and what the alternatives are."""
    wide = 100 * margin(0.04, inputs)
    return (
        f"only {inputs:,} inputs: if exits change 4 % of the answers, the bound is {wide:.1f} points above the drop. "
        "Four times as many inputs halve that margin. Or let the orchestrator find thresholds on live traffic: set "
        "goal: in orchestrator.yaml"
    )


def next_step(name: str) -> str:
    """Say what to type now."""
    return f"next: distree zoo show {name}, then distree init --bundle {name}"


SEEN = (
    "The network was trained on these inputs, so it does better on them than on new ones and exits look worse in "
    "comparison than they are: the thresholds are on the safe side and save less than they could."
)


def chosen_cuts(graph: Graph, cuts: Sequence[Cut], plans: dict[int, HeadPlan]) -> Iterator[str]:
    """Say where the network is cut."""
    for cut in cuts:
        yield (
            f"cut after operator {cut.after} ({cut.operator}), after {100 * cut.macs / max(graph.macs, 1):.0f} % of "
            f"the work: sends {cut.boundary.bytes:,} bytes; exit head: {plans[cut.after]}"
        )


def tested(source: str, evaluation: Evaluation) -> str:
    """Report the result on test inputs."""
    drop = evaluation.accuracy[-1] - evaluation.accuracy_at_thresholds
    share = 1.0 - evaluation.macs_per_input / evaluation.macs_no_early_exit_strict
    return (
        f"test on {source} ({evaluation.inputs:,} inputs, opened once): {100 * share:.1f} % of the compute saved, "
        f"accuracy drop {100 * drop:.2f} points (from {100 * evaluation.accuracy[-1]:.2f} % without exits)"
    )
