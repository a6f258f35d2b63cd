"""Networks of others, cut at every legal place: cuts, bytes, inputs on which stages differ from the whole, and time.

Each `.tflite` file is opened as `distree zoo split` opens it, in a child process. Every legal cut, by itself, and all
of them together are compared with the whole network on random inputs, with XNNPACK and without. A file that cannot be
cut is listed with the line that says why. `python -m benchmarks.split_networks FOLDER_OR_FILE …`
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

from model_zoo.errors import SplitError
from model_zoo.split.cutting import cut_segment
from model_zoo.split.network import Network, open_network
from model_zoo.split.proof import Link, prove, random_tensors
from model_zoo.split.supervision import Teller, limit_memory, most_memory, supervise


def chain(network: Network, places: Sequence[int]) -> list[Link]:
    """Cut the network at these tensors."""
    ends = [network.graph.inputs[0], *places, network.graph.outputs[0]]
    return [Link(cut_segment(network.graph, start, end)) for start, end in itertools.pairwise(ends)]


class Screen:
    """Keeps what the child process printed."""

    def __init__(self) -> None:
        self.printed: list[str] = []

    def print(self, text: str) -> None:
        """Keep a line of results."""
        self.printed.append(text)

    def line(self, text: str) -> None:
        """Ignore how the work goes on."""

    def bar(self, what: str, done: int, total: int) -> None:
        """Ignore how the work goes on."""


def measure(path: Path, inputs: int, tell: Teller) -> None:
    """Tell a row of the table about a file; SplitError if it cannot be cut."""
    network = open_network(path, 128, tell)
    limit_memory(most_memory())
    cuts = network.cuts.legal
    tell.phase("comparing", None)
    places = [cut.boundary.index for cut in cuts]
    mismatches, compared = 0, 0
    for chosen in [] if not places else [places, *([place] for place in places)]:
        proof = prove(network.content, chain(network, chosen), random_tensors(network.graph.input, inputs, seed=1))
        mismatches += proof.mismatches
        compared += proof.inputs
    paying = {cut.after for cut in network.paying}
    best = min((cut for cut in cuts if cut.after in paying), key=lambda cut: cut.boundary.bytes, default=None)
    fewest = "none pays" if best is None else f"{best.boundary.bytes:,} at {100 * best.macs / network.graph.macs:.0f} %"
    operators, macs = len(network.graph.operators), network.graph.macs / 1e6
    tell.print(f"{operators} | {macs:.2f} | {len(cuts)} ({len(paying)}) | {fewest} | {compared:,} | {mismatches}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER_OR_FILE")
    parser.add_argument("--inputs", type=int, default=100, help="of each way of cutting (default: %(default)s)")
    args = parser.parse_args()
    files = [file for path in args.paths for file in (sorted(path.rglob("*.tflite")) if path.is_dir() else [path])]
    print(
        "| file | operators | MMACs | legal cuts (that pay) | fewest bytes of one that pays | compared | differ | s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for file in files:
        screen, began = Screen(), time.monotonic()
        try:
            supervise(lambda tell, file=file: measure(file, args.inputs, tell), file.name, screen)
            told = screen.printed[-1]
        except SplitError as error:
            told = f"refused: {error.what.removeprefix(f'{file.name}: ')}; {error.remedy} | | | | | "
        print(f"| {file.name} | {told} | {time.monotonic() - began:.1f} |", flush=True)


if __name__ == "__main__":
    main()
