"""What the demo shows: progress, the table of exits, the figures at the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

import numpy as np

from distree.apps.demo.fleet import Demo
from distree.formatting import counted
from distree.messages.result import Result


class Screen:
    """Progress and a table that is redrawn in place on a terminal; elsewhere one line per second."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._live = sys.stdout.isatty()
        self._drawn = 0
        self._printed_at = 0.0

    def show(self) -> None:
        """Draw the current state."""
        watch, count = self._demo.watch, self._demo.samples.count
        done = len(watch.results)
        if not self._live:
            if time.monotonic() - self._printed_at >= 1.0 and done < count:
                self._printed_at = time.monotonic()
                print(f"  {done} of {count} answered", flush=True)
            return
        bar = "█" * (30 * done // count)
        lines = [f"  {bar:░<30} {done} of {count} answered", *exit_table(self._demo)]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        print(up + "\n".join(f"\x1b[2K{line}" for line in lines), flush=True)
        self._drawn = len(lines)

    def end(self) -> None:
        """Remove the live table: the summary repeats it."""
        if self._live and self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="")


def exit_table(demo: Demo) -> list[str]:
    """Return the table of exits: where answered, share, latency and accuracy."""
    results = list(demo.watch.results.values())
    who = [demo.plan.answers_at(k) for k in range(len(demo.bundle.stages))]
    width = max(11, *map(len, who))
    accuracy = "" if demo.samples.labels is None else "   accuracy"
    lines = [f"  exit  {'answered by':<{width}}   share   latency ms p50     p95{accuracy}"]
    for k, answering in enumerate(who):
        here = [result for result in results if result.exit == k]
        if not here:
            lines.append(f"  {k:>4}  {answering:<{width}} {0:>5.1f} %")
            continue
        p50, p95 = np.percentile([result.latency_s * 1e3 for result in here], [50, 95])
        share = 100 * len(here) / len(results)
        right = ""
        if demo.samples.labels is not None:
            right = f"   {100 * np.mean([demo.samples.is_right(result) for result in here]):>6.1f} %"
        lines.append(f"  {k:>4}  {answering:<{width}} {share:>5.1f} %   {p50:>14.2f} {p95:>7.2f}{right}")
    return lines


def _branches(result: Result) -> list[dict[str, Any]]:
    return [{"branch": missing.branch, "device": missing.device} for missing in result.missing]


class Figures:
    """The demo's outcome, for people and as JSON."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._results = sorted(demo.watch.results.values(), key=demo.samples.place)
        self.answered = len(self._results)
        right = sum(demo.samples.is_right(result) for result in self._results)
        self.accuracy = None if demo.samples.labels is None else right / max(1, self.answered)
        self._reasons = Counter(result.reason for result in self._results)
        latencies = [result.latency_s * 1e3 for result in self._results] or [0.0]
        self._latency_ms = dict(zip(("p50", "p95", "p99"), np.percentile(latencies, [50, 95, 99]), strict=True))

    def lines(self) -> list[str]:
        """Return the summary."""
        demo, watch = self._demo, self._demo.watch
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._reasons.most_common())
        spent, without = watch.bytes_per_input(), watch.bytes_without_exits(demo.plan)
        return [
            f"{self.answered} of {demo.samples.count} answered in {demo.wall_s:.1f} s ({reasons}), "
            f"{counted(watch.duplicates, 'duplicate')}, {watch.late} late",
            f"{'' if self.accuracy is None else f'accuracy {100 * self.accuracy:.1f} %, '}"
            f"latency p50 {self._latency_ms['p50']:.2f} ms, p95 {self._latency_ms['p95']:.2f} ms",
            "",
            *exit_table(demo),
            "",
            f"bytes between boards per input: {spent:,.0f}, without early exit {without:,.0f}"
            + (f" ({100 * spent / without:.0f} %)" if without else ""),
            *(self._wide_lines() if demo.bundle.is_wide else []),
        ]

    def _wide_lines(self) -> list[str]:
        watch = self._demo.watch
        hops = sorted(hop for hop in watch.traffic if hop.startswith("exit ") or hop == "decision")
        shares = ", ".join(f"{hop} {watch.traffic[hop] / max(1, self.answered):,.0f}" for hop in hops)
        lines = [f"  of them embeddings and decisions: {shares or 'none'}"]
        missing = watch.missing()
        silent = ", ".join(f"branch {branch} in {missing[branch]}" for branch in sorted(missing))
        lines.append(f"answers without a branch: {silent or 'none'}")
        if self._demo.plan.is_eager:
            runs, wasted = map(sum, self._branch_runs())
            lines.append(
                f"runs of branches that no answer needed: {wasted:,} of {runs:,} ({wasted / max(1, runs):.1%})"
            )
        return lines

    def _branch_runs(self) -> tuple[list[int], list[int]]:
        """Return, per stage, how many runs of branches there were, and how many of them no answer needed."""
        counts = self._demo.bundle.branch_counts
        runs, wasted = [0] * len(counts), [0] * len(counts)
        for report in self._demo.watch.stage_reports():
            if counts[report.stage]:
                runs[report.stage] += report.forwarded
                wasted[report.stage] += report.wasted
        return runs, wasted

    def as_json(self) -> dict[str, Any]:
        """Return the figures and one entry per answer."""
        demo = self._demo
        exits = Counter(result.exit for result in self._results)
        return {
            "bundle": demo.bundle.name,
            "revision": demo.bundle.revision,
            "broker": demo.broker,
            "inputs": demo.samples.count,
            "answered": self.answered,
            "duplicates": demo.watch.duplicates,
            "late": demo.watch.late,
            "accuracy": self.accuracy,
            "reasons": dict(self._reasons),
            "exit_share": [exits[k] / max(1, self.answered) for k in range(len(demo.bundle.stages))],
            "latency_ms": {name: float(value) for name, value in self._latency_ms.items()},
            "bytes_per_input": demo.watch.bytes_per_input(),
            "bytes_per_input_no_early_exit": demo.watch.bytes_without_exits(demo.plan),
            "wall_s": demo.wall_s,
            **(self._wide_json() if demo.bundle.is_wide else {}),
            "results": [
                {
                    "index": demo.samples.place(result),
                    "label": result.label,
                    "class_id": result.class_id,
                    "exit": result.exit,
                    "reason": result.reason,
                    "latency_ms": result.latency_s * 1e3,
                    **({"missing": _branches(result)} if demo.bundle.is_wide else {}),
                }
                for result in self._results
            ],
        }

    def _wide_json(self) -> dict[str, Any]:
        demo, watch = self._demo, self._demo.watch
        runs, wasted = self._branch_runs()
        missing = watch.missing()
        return {
            "mode": "eager" if demo.plan.is_eager else "gated",
            "fuser": demo.plan.fuser or demo.plan.origin.device,
            "messages": dict(sorted(watch.messages.items())),
            "bytes": dict(sorted(watch.traffic.items())),
            "missing": [missing[branch] for branch in range(max(demo.bundle.branch_counts))],
            "branch_runs": runs,
            "wasted_runs": wasted,
        }
