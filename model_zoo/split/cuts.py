"""Where a network can be cut, what each cut costs, and which cuts to take.

A cut is legal where exactly one tensor crosses it, counting tensors that depend on the input and are still needed.
If several cross, as on both sides of a skip connection, they would all have to be sent.

Which to take: before any exit is trained, the share of inputs that leave by a cut is assumed to equal the share of the
work before it. Under this assumption, the cuts with the least expected cost are taken, counting their heads and hops.
Among cuts with the same work before them, that is the one with the fewest bytes. The cost of a hop is the number of
multiply-accumulates that a small board computes while its radio sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distree.formatting import counted
from distree.messages.limits import MAX_MESSAGE_BYTES, MAX_PACKED_BYTES, MAX_RANK
from model_zoo.errors import SplitError
from model_zoo.split.graph import Graph, TensorInfo, operator_macs
from model_zoo.split.refusals import BOUNDARY_DTYPES

RADIO_BITS_PER_S = 50e6
"""Throughput of Wi-Fi on a 65 Mbit/s link, the slowest that today's boards with one antenna have."""

BOARD_MACS_PER_S = 500e6
"""Throughput of one small core."""

MAX_STAGES = 8
MAX_BOUNDARY_BYTES = MAX_MESSAGE_BYTES - MAX_PACKED_BYTES

_Way = tuple[float, "tuple[Cut, ...]"]
"""An expected cost, and the cuts that lead to it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A legal cut after the operator `after`.

    boundary: the tensor that crosses it. macs: multiply-accumulates before it. left: those after it.
    """

    after: int
    operator: str
    boundary: TensorInfo
    macs: int
    left: int

    @property
    def radio_s(self) -> float:
        """Seconds that it takes to send the boundary by radio."""
        return 8 * self.boundary.bytes / RADIO_BITS_PER_S

    @property
    def hop_macs(self) -> float:
        """What a board could compute in that time."""
        return self.radio_s * BOARD_MACS_PER_S


@dataclass(frozen=True, slots=True)
class Cuts:
    """The legal cuts in order, and the tensors that cross every other point of the graph."""

    legal: tuple[Cut, ...]
    crossed: dict[int, tuple[TensorInfo, ...]]

    def nearest(self, after: int) -> tuple[Cut, ...]:
        """Return the legal cuts just before and just after a point, if there are any."""
        before = [cut for cut in self.legal if cut.after < after]
        behind = [cut for cut in self.legal if cut.after > after]
        return (*before[-1:], *behind[:1])


def find_cuts(graph: Graph, end: int) -> Cuts:
    """Find the legal cuts of a graph whose logits are the tensor `end`."""
    legal: list[Cut] = []
    crossed: dict[int, tuple[TensorInfo, ...]] = {}
    live, last_use = graph.live(), _last_uses(graph, end)
    made_at = {tensor: operator.index for operator in graph.operators for tensor in operator.outputs}
    whole = graph.macs
    macs = 0
    for operator in graph.operators:
        macs += operator_macs(graph, operator)
        point = operator.index
        crossing = tuple(
            graph.tensors[tensor]
            for tensor in sorted(live)
            if made_at.get(tensor, -1) <= point < last_use.get(tensor, -1)
        )
        if not crossing or not live.intersection(operator.outputs):
            continue
        if not can_travel(crossing):
            crossed[point] = crossing
        elif crossing[0].index in operator.outputs:
            legal.append(Cut(point, operator.name, crossing[0], macs, whole - macs))
    return Cuts(tuple(legal), crossed)


def can_travel(crossing: Sequence[TensorInfo]) -> bool:
    """Whether what crosses a point is one tensor that boards can send each other."""
    if len(crossing) != 1 or crossing[0].dtype not in BOUNDARY_DTYPES or len(crossing[0].shape) > MAX_RANK:
        return False
    meant = crossing[0].dtype == "float32" or crossing[0].scale > 0.0
    return meant and crossing[0].bytes <= MAX_BOUNDARY_BYTES


def _last_uses(graph: Graph, end: int) -> dict[int, int]:
    """Return, for every tensor, the last operator that reads it, among those on which `end` depends."""
    needed = {end}
    last_use: dict[int, int] = {}
    for operator in reversed(graph.operators):
        if needed.intersection(operator.outputs):
            needed.update(operator.inputs)
            for tensor in operator.inputs:
                last_use.setdefault(tensor, operator.index)
    return last_use


def cuts_after(cuts: Cuts, operators: Iterable[int]) -> tuple[Cut, ...]:
    """Return the cuts after these operators; SplitError, naming the nearest legal ones, if one is not legal."""
    legal = {cut.after: cut for cut in cuts.legal}
    wanted = sorted(set(operators))
    for after in wanted:
        if after not in legal:
            raise SplitError(f"--after {after}: {_why_not(cuts, after)}", _nearest(cuts, after))
    if not 1 <= len(wanted) < MAX_STAGES:
        raise SplitError(f"--after: {len(wanted)} cuts", f"name 1 to {MAX_STAGES - 1} operators")
    return tuple(legal[after] for after in wanted)


def _why_not(cuts: Cuts, after: int) -> str:
    crossing = cuts.crossed.get(after, ())
    if len(crossing) > 1:
        names = ", ".join(str(tensor) for tensor in crossing[:3])
        return f"{len(crossing)} tensors cross there ({names}), as next to a skip connection, but only one can be sent"
    if crossing:
        return (
            f"{crossing[0]} crosses there, but only {', '.join(BOUNDARY_DTYPES)} of at most {MAX_BOUNDARY_BYTES:,} "
            "bytes can be sent"
        )
    return "the network has no such point before its scores"


def _nearest(cuts: Cuts, after: int) -> str:
    near = " or ".join(f"after {cut.after}" for cut in cuts.nearest(after))
    return (
        f"cut {near}, which {'is' if near.count('after') == 1 else 'are'} nearest"
        if near
        else "give another network: this one has no legal cut"
    )


def paying_cuts(cuts: Cuts, head_macs: dict[int, int]) -> tuple[Cut, ...]:
    """Return the cuts whose head and hop cost less than what is left after them."""
    return tuple(cut for cut in cuts.legal if cut.macs > 0 and head_macs[cut.after] + cut.hop_macs < cut.left)


def choose_cuts(cuts: Sequence[Cut], head_macs: dict[int, int], stages: int) -> tuple[Cut, ...]:
    """Return the `stages` - 1 cuts with the least expected cost; the module's docstring says how it is computed.

    head_macs: multiply-accumulates of the head after each cut. Raises SplitError for more stages than there are cuts.
    """
    if not 2 <= stages <= MAX_STAGES:
        raise SplitError(f"--stages: {stages} is out of range", f"choose 2 to {MAX_STAGES}")
    if len(cuts) < stages - 1:
        raise SplitError(
            f"--stages {stages}: needs {counted(stages - 1, 'cut')}, but only {len(cuts)} would pay off",
            "ask for fewer stages, or name the cuts with --after",
        )
    # best[i]: the least expected cost up to and with cut i as the last one so far, and the cuts that give it.
    best: list[_Way] = [(_reached(None, cut, head_macs), (cut,)) for cut in cuts]
    for _ in range(stages - 2):
        best = [_extended(best, cut, head_macs) for cut in cuts]
    totals = [(cost + _share_left(way[-1]) * (way[-1].hop_macs + way[-1].left), way) for cost, way in best if way]
    return min(totals, key=lambda found: (found[0], [cut.boundary.bytes for cut in found[1]]))[1]


def _extended(best: Sequence[_Way], cut: Cut, head_macs: dict[int, int]) -> _Way:
    """Return the best way to a cut via any cut before it; an infinite cost if there is none."""
    ways = [
        (cost + _reached(way[-1], cut, head_macs), (*way, cut)) for cost, way in best if way and way[-1].macs < cut.macs
    ]
    return min(ways, key=lambda found: found[0], default=(float("inf"), ()))


def _reached(before: Cut | None, cut: Cut, head_macs: dict[int, int]) -> float:
    """Return the expected cost of the stage that ends in a cut: the hop to it, its work, and its head."""
    head = head_macs[cut.after]
    if before is None:
        return cut.macs + head
    return _share_left(before) * (before.hop_macs + cut.macs - before.macs + head)


def _share_left(cut: Cut) -> float:
    """Return the share of inputs that go on after a cut, by the assumption above."""
    return cut.left / max(cut.macs + cut.left, 1)
