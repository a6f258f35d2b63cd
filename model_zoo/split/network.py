"""A whole network, opened and checked: it can be cut."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from pathlib import Path

from distree.errors import CHECK_PATH
from distree.regular_files import read_regular
from model_zoo.errors import SplitError
from model_zoo.split.cuts import Cut, Cuts, choose_cuts, cuts_after, find_cuts, paying_cuts
from model_zoo.split.ending import Ending, find_ending
from model_zoo.split.graph import Graph, read_graph
from model_zoo.split.head_plan import HeadPlan, plan_head
from model_zoo.split.refusals import check_network
from model_zoo.split.running import with_true_shapes
from model_zoo.split.schema import read_model
from model_zoo.split.supervision import Teller, limit_memory

MAX_BYTES = 256 << 20
_MEMORY = 2 << 30  # to read a file and run it once
_MEMORY_PER_BYTE = 8
_READ_S, _RUN_S = 60.0, 60.0
_DEFAULT_STAGES = 3


@dataclass(frozen=True, slots=True)
class Network:
    """A network's file, and what was found in it; `plans` has one head per cut, by the operator before the cut."""

    content: bytes
    sha256: str
    graph: Graph
    ending: Ending
    cuts: Cuts
    plans: dict[int, HeadPlan]

    @property
    def paying(self) -> tuple[Cut, ...]:
        """The cuts whose head and hop cost less than the work left after them."""
        return paying_cuts(self.cuts, self._head_macs)

    @property
    def _head_macs(self) -> dict[int, int]:
        return {after: plan.macs for after, plan in self.plans.items()}

    def chosen(self, stages: int | None, after: tuple[int, ...], *, anyway: bool) -> tuple[Cut, ...]:
        """Return the cuts after these operators, or the best ones for this many stages (by default 3, or 2).

        anyway: also allow cuts that save nothing. SplitError if there is no such cut.
        """
        if after:
            return cuts_after(self.cuts, after)
        usable = self.paying or (tuple(cut for cut in self.cuts.legal if cut.macs > 0) if anyway else ())
        if not self.cuts.legal:
            raise SplitError(
                "has no legal cut: more than one tensor crosses every point",
                "give a network with fewer skip connections",
            )
        if not usable:
            raise SplitError(
                "has no cut that saves anything: exit head and hop cost more than the work left after it",
                "compare the cuts with --list, or cut it anyway with --force",
            )
        wanted = stages or min(_DEFAULT_STAGES, len(usable) + 1)
        return choose_cuts(usable, self._head_macs, wanted)


def open_network(path: Path, hidden: int, tell: Teller) -> Network:
    """Read a .tflite file, run it once, and find its cuts; SplitError if it cannot be cut.

    hidden: width of the hidden layer of heads.
    """
    tell.phase("reading the network", _READ_S)
    content = _read(path)
    limit_memory(_MEMORY + _MEMORY_PER_BYTE * len(content))
    graph = read_graph(read_model(content))
    check_network(graph)
    tell.phase("running the network once", _RUN_S)
    graph = with_true_shapes(graph, content)
    check_network(graph)
    ending = find_ending(graph)
    cuts = find_cuts(graph, ending.logits.index)
    plans = {cut.after: plan_head(cut.boundary, ending.classes, hidden, graph.macs) for cut in cuts.legal}
    return Network(content, hashlib.sha256(content).hexdigest(), graph, ending, cuts, plans)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise SplitError("no such file" if not path.exists() else "is not a file", CHECK_PATH)
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise SplitError(
                f"is too large ({path.stat().st_size} bytes)", f"give a network of at most {MAX_BYTES >> 20} MiB"
            ) from None
        raise SplitError(f"cannot be read ({error.strerror})", CHECK_PATH) from None
