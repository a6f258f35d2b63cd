"""Two boards of a stage, one four times as slow as the other: how origins share the work out between them.

    python -m benchmarks.uneven --simulated

A thousand sparse origins, with an input each five to fifty seconds, and a busy one send all their inputs on to the two
boards. Traffic stays the same; the boards are as fast as it takes for a load of 30, 60 and 85 % of what both can do.
Of each policy of choosing a board it prints latencies, the share of the work that the slow board had, how busy both
were, how much work waited at them, and what was sent once more because origins took a board to be silent.

The policies: *quicker of two* is what origins do; the others are put in its place.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distree.formatting import table
from distree.messages.member import Member
from distree.messages.result import Result
from distree.node.routing import Router
from distree.strict_yaml import Share
from distree.thresholds import NEVER
from orchestrator.simulator.books import Books
from orchestrator.simulator.config import AgentsConfig, BoardsConfig, FleetConfig, SyntheticConfig, TrafficConfig
from orchestrator.simulator.report import report
from orchestrator.simulator.site import SimulatedSite
from orchestrator.simulator.traffic import load_table

LOADS = (0.3, 0.6, 0.85)
SPARSE, KINDS = 1000, 10
BUSY, BUSY_HZ = "busy", 20.0
SLOWER = 4.0
SAMPLE_S = 0.1

Choice = Callable[[Router, float, int, "int | None", Collection[str]], "Member | None"]


# ------------------------------------------------------------ policies


def two_draws(router: Router, now: float, stage: int, branch: int | None, avoid: Collection[str]) -> Member | None:
    """Draw twice, perhaps the same board, and take the quicker."""
    usable = router._usable(stage, branch, avoid)
    if not usable:
        return None
    one, other = (usable[int(router._random() * len(usable))] for _ in range(2))
    return one if router._expected_s(now, one, stage) <= router._expected_s(now, other, stage) else other


def weighted(router: Router, now: float, stage: int, branch: int | None, avoid: Collection[str]) -> Member | None:
    """Draw two different boards, and take each as often as the other is slow."""
    usable = router._usable(stage, branch, avoid)
    if len(usable) < 2:
        return usable[0] if usable else None
    one = int(router._random() * len(usable))
    other = int(router._random() * (len(usable) - 1))
    first, second = usable[one], usable[other + (other >= one)]
    first_s, second_s = router._expected_s(now, first, stage), router._expected_s(now, second, stage)
    both_s = first_s + second_s
    return first if router._random() * both_s <= second_s else second


def in_turn() -> Choice:
    """Return a policy that deals inputs out in turn, over all origins, as a broker does."""
    turns: dict[int, int] = {}

    def choose(router: Router, _now: float, stage: int, branch: int | None, avoid: Collection[str]) -> Member | None:
        usable = router._usable(stage, branch, avoid)
        turns[stage] = turn = turns.get(stage, -1) + 1
        return usable[turn % len(usable)] if usable else None

    return choose


CRITERIA: dict[str, Callable[[], Choice]] = {
    "quicker of two": lambda: Router._choose,
    "two draws": lambda: two_draws,
    "weighted": lambda: weighted,
    "in turn": in_turn,
}


@contextlib.contextmanager
def choosing(policy: str, answered: Callable[..., None]) -> Iterator[None]:
    """Have origins choose by a policy, and `answered` called with what is written down of results, in this block."""
    usual = Router._choose, Books.answered
    Router._choose = CRITERIA[policy]()  # type: ignore[method-assign, assignment]
    Books.answered = lambda *arguments: answered(*arguments)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Router._choose, Books.answered = usual  # type: ignore[method-assign]


# ------------------------------------------------------------ one simulation


def fleet(load: float, options: argparse.Namespace) -> FleetConfig:
    """Return the fleet whose boards have this load, with so many pairs of a fast board and a slow one."""
    rates, pairs = np.linspace(0.02, 0.2, KINDS), options.pairs
    total_hz = float(rates.sum()) * SPARSE / KINDS + BUSY_HZ
    fast_ms = 1e3 * load * pairs * (1 + 1 / SLOWER) / total_hz
    sparse = [
        BoardsConfig(
            name=f"sparse{kind}", count=SPARSE // KINDS, origin=True, rate_hz=float(rate), stages=(0,), stage_ms=(1.0,)
        )
        for kind, rate in enumerate(rates)
    ]
    return FleetConfig(
        seed=options.seed,
        duration_s=options.seconds,
        traffic=TrafficConfig(rate_hz=1.0, synthetic=SyntheticConfig(macs=(1e6, 2e6), ability=(0.8, 1.0), inputs=1000)),
        boards=(
            *sparse,
            BoardsConfig(name=BUSY, origin=True, rate_hz=BUSY_HZ, stages=(0,), stage_ms=(1.0,)),
            BoardsConfig(name="fast", count=pairs, stages=(1,), stage_ms=(fast_ms,), spread=Share(0.0)),
            BoardsConfig(name="slow", count=pairs, stages=(1,), stage_ms=(SLOWER * fast_ms,), spread=Share(0.0)),
        ),
        agents=AgentsConfig(deadline_ms=5000, min_retry_ms=options.min_retry_ms),
        thresholds=(NEVER,),
    )


class Watch:
    """What is seen of a site once it has warmed up: who was answered when, and what waits at the boards."""

    def __init__(self, site: SimulatedSite, warm_s: float) -> None:
        self.waiting: dict[str, list[int]] = {"fast": [], "slow": []}
        self.answers: list[tuple[str, float, str]] = []
        """Origin, latency in seconds and reason of each."""
        self._site, self._warm_s = site, warm_s
        site.events.at(warm_s, self._sample)

    def _sample(self) -> None:
        events, ends_at = self._site.events, self._site.config.duration_s
        for kind, seen in self.waiting.items():
            seen += [board.node.books()["waiting"] for board in self._site.boards[kind]]
        if events.now + SAMPLE_S < ends_at:
            events.at(events.now + SAMPLE_S, self._sample)

    def answered(self, books: Books, now: float, result: Result, deadline_s: float) -> None:
        """Write down an answer, for the books too."""
        if now >= self._warm_s and result.final:
            self.answers.append((result.origin, result.latency_s, result.reason))
        _ANSWERED(books, now, result, deadline_s)


_ANSWERED = Books.answered


def simulate(config: FleetConfig, policy: str, warm_s: float) -> dict[str, Any]:
    """Return what became of the traffic after a site has warmed up."""
    site = SimulatedSite(config, load_table(config.traffic, config.seed))
    watch = Watch(site, warm_s)
    with choosing(policy, watch.answered):
        site.run()
    latency_ms = 1e3 * np.array([latency_s for _, latency_s, _ in watch.answers])
    busy_ms = 1e3 * np.array([latency_s for name, latency_s, _ in watch.answers if name.startswith(BUSY)])
    seconds, pairs = config.duration_s - warm_s, len(site.boards["fast"])
    # The boards are told apart by how long they take.
    books, fast_s = site.books, (config.boards[-2].stage_ms or (0.0,))[0] / 1e3
    run_s, run_at, stage = np.array(books.run_s), np.array(books.run_at), np.array(books.run_stage)
    counts = (stage == 1) & (run_at >= warm_s) & (run_at < config.duration_s)
    fast_runs, slow_runs = run_s[counts & (run_s < 2 * fast_s)], run_s[counts & (run_s >= 2 * fast_s)]
    inputs = report(site)["inputs"]
    return {
        "policy": policy,
        **{f"p{share}_ms": float(np.percentile(latency_ms, share)) for share in (50, 95, 99)},
        "busy_p95_ms": float(np.percentile(busy_ms, 95)),
        "answers_per_s": sum(reason == "last" for _, _, reason in watch.answers) / seconds,
        "slow_share": len(slow_runs) / max(1, len(slow_runs) + len(fast_runs)),
        "fast_busy": float(fast_runs.sum()) / pairs / seconds,
        "slow_busy": float(slow_runs.sum()) / pairs / seconds,
        "waiting": {kind: [float(np.mean(seen)), float(np.max(seen))] for kind, seen in watch.waiting.items()},
        "sent_again": inputs["sent_once_more"] / max(1, inputs["accepted"]),
    }


# ------------------------------------------------------------ what is printed


def lines(load: float, rows: list[dict[str, Any]]) -> str:
    """Return the figures of one load as text."""
    head = [
        "POLICY", "P50 MS", "P95 MS", "P99 MS", "BUSY ONE'S P95", "ANSWERS/S", "SLOW ONE'S SHARE %", "FAST BUSY %",
        "SLOW BUSY %", "WAITING FAST", "WAITING SLOW", "SENT AGAIN %",
    ]  # fmt: skip
    body = [
        [
            row["policy"],
            *(f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms", "busy_p95_ms", "answers_per_s")),
            *(f"{100 * row[key]:.1f}" for key in ("slow_share", "fast_busy", "slow_busy")),
            *(f"{mean:.2f}, {most:.0f}" for mean, most in row["waiting"].values()),
            f"{100 * row['sent_again']:.2f}",
        ]
        for row in rows
    ]
    return f"load {100 * load:.0f} %\n{table(head, body)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated", action="store_true", required=True, help="under a simulated clock")
    parser.add_argument(
        "--policy", choices=sorted(CRITERIA), action="append", help="only this; may come more than once"
    )
    parser.add_argument("--pairs", type=int, default=1, help="pairs of a fast board and a slow one (default: 1)")
    parser.add_argument("--seconds", type=float, default=150.0, help="simulated time (default: 150)")
    parser.add_argument("--warm-s", type=float, default=30.0, help="what is not looked at (default: the first 30 s)")
    parser.add_argument("--min-retry-ms", type=float, default=100.0, help="as in agent.yaml (default: 100)")
    parser.add_argument("--load", type=float, action="append", help="only this share of what both boards can do")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    figures = {}
    for load in options.load or LOADS:
        config = fleet(load, options)
        rows = [simulate(config, policy, options.warm_s) for policy in options.policy or CRITERIA]
        figures[str(load)] = rows
        print(lines(load, rows), end="\n\n", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
