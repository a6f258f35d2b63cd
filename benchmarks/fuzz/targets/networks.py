"""Networks and segments, .tflite: read in child processes, as the product does, since the interpreter can crash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.fuzz.target import Form, Target, constant, from_file
from benchmarks.fuzz.targets.bundles import copied, read_anyway
from device_agent.selftest import self_test
from distree.bundle.loading import load_bundle
from distree.bundle.runtimes.tflite import load_interpreter
from model_zoo.split.network import open_network
from model_zoo.split.schema import load_schema
from model_zoo.split.supervision import Teller, supervise
from model_zoo.verification import check_golden

_TINY = Path(__file__).parents[3] / "tests/data"
_SECONDS = 20.0


class _Quiet:
    """A screen on which nothing is shown."""

    def print(self, text: str) -> None:
        """Show nothing."""

    def line(self, text: str) -> None:
        """Show nothing."""

    def bar(self, what: str, done: int, total: int) -> None:
        """Show nothing."""


def _networks(folder: Path) -> Sequence[Form]:
    from ai_edge_litert import interpreter  # noqa: F401 - before a child is forked for each

    load_schema()
    path = folder / "network.tflite"

    def cut(tell: Teller) -> None:
        open_network(path, 16, tell)

    def read() -> None:
        supervise(cut, str(path), _Quiet())

    names = ("tiny-mixed/stage3.tflite", "tiny-wide/stage2.branch0.tflite")
    return [Form(name, constant((_TINY / name).read_bytes()), from_file(path, read)) for name in names]


def _segments(folder: Path) -> Sequence[Form]:
    load_interpreter()  # before a child is forked for each

    def verify(where: Path) -> None:
        bundle = load_bundle(where)

        def check(tell: Teller) -> None:
            tell.phase("running the golden vectors", _SECONDS)
            check_golden(bundle)

        supervise(check, bundle.name, _Quiet())

    def serve(where: Path) -> None:
        self_test(load_bundle(where), [0], 1, _SECONDS)

    forms = []
    for name, read in (("verified", verify), ("served", serve)):
        copy = copied(_TINY / "tiny-mixed", folder / name)
        segment = copy / "stage0.tflite"
        content = segment.read_bytes()
        forms.append(Form(f"a segment that is {name}", constant(content), read_anyway(segment, read)))
    return forms


NETWORKS = Target("networks", "files", 5, _networks, 2300, in_child=True)
SEGMENTS = Target("segments", "files", 1, _segments, 256, in_child=True)
