"""What was played, for people: a paragraph per fault as it is played, and docs/results/faults.md."""

from __future__ import annotations

import json
import os
import platform
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.chaos.ledger import GRACE_S, Account
from benchmarks.chaos.play import RATE_HZ, Played
from benchmarks.chaos.scene import CHAIN_THRESHOLDS, DEADLINE_S, ORIGINS

_WIDTH = 116
_REASONS = ("confident", "last", "fallback", "deadline", "shed")


@dataclass(frozen=True, slots=True)
class Machine:
    """On what is measured, and how busy it is before."""

    cores: int
    architecture: str
    python: str
    mosquitto: str
    load: float


def this_machine(mosquitto: str) -> Machine:
    """Return what is known of this machine; `mosquitto` is its version."""
    return Machine(
        cores=os.cpu_count() or 1,
        architecture=platform.machine(),
        python=platform.python_version(),
        mosquitto=mosquitto,
        load=os.getloadavg()[0],
    )


# ---------------------------------------------------------------- while it is played


def paragraph(played: Played) -> str:
    """Return a few lines about a fault."""
    if played.not_played:
        return f"{played.fault:<22} NOT PLAYED: {played.not_played}"
    lines = [f"{played.fault:<22} {'pass' if played.passed else 'FAILED'} ({played.seconds:.0f} s)"]
    for origin, account in played.accounts.items():
        lines += _wrapped(f"{origin}: {_figures(account)}", "    ")
    for said in played.said:
        lines += _wrapped(said, "    ")
    for failure in (*played.failures, *played.slow):
        lines += _wrapped(failure, "  ! ")
    return "\n".join(lines)


def _figures(account: Account) -> str:
    figures = {
        "offered": account.offered,
        "accepted": account.accepted,
        "labelled": account.labelled,
        "without a label": account.unlabelled,
        "shed": account.shed,
        "held": account.held,
        "forgotten": account.forgotten,
        "LOST": account.lost,
        "unheard": account.unheard,
        "twice, same": account.twice_same,
        "twice, other": account.twice_other,
        "wrong": account.wrong,
        "late": account.late,
    }
    shown = ", ".join(f"{name} {count}" for name, count in figures.items() if count)
    reasons = ", ".join(f"{count} {reason}" for reason, count in account.reasons.items())
    return f"{shown}; {reasons}; at most {account.latest_ms:.0f} ms late, recovery {_recovery(account)} s"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent="    ")


# ---------------------------------------------------------------- the page


def write(folder: Path, played: Sequence[Played], machine: Machine, seconds: float) -> None:
    """Write faults.json and faults.md."""
    about = {"date": time.strftime("%Y-%m-%d"), "seconds": seconds, "machine": asdict(machine)}
    faults = [{**asdict(one), "passed": one.passed} for one in played]
    (folder / "faults.json").write_text(json.dumps({**about, "faults": faults}, indent=1) + "\n")
    (folder / "faults.md").write_text(_page(played, machine, seconds))


def _page(played: Sequence[Played], machine: Machine, seconds: float) -> str:
    done = [one for one in played if one.accounts]
    accounts = [account for one in done for account in one.accounts.values()]
    total = _sum(accounts)
    parts = [
        "# Faults",
        _summary(played, total, machine, seconds),
        "## How it was measured",
        *_METHOD,
        "## What came of each fault",
        "*With a spool / without*; one number stands for both.",
        _table(done),
        "## Why an input has no answer",
        _explained(done),
        "## How inputs were answered",
        "Both origins together.",
        _reasons(done),
        "## What each fault is",
        _what(played),
        "## What is not covered",
        *_NOT_COVERED,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sum(accounts: Sequence[Account]) -> Account:
    total = Account()
    for account in accounts:
        for name in _SUMMED:
            setattr(total, name, getattr(total, name) + getattr(account, name))
    return total


_SUMMED = (
    "offered", "accepted", "labelled", "unlabelled", "shed", "held", "forgotten", "lost", "unheard", "twice_same",
    "twice_other", "wrong", "late",
)  # fmt: skip


def _summary(played: Sequence[Played], total: Account, machine: Machine, seconds: float) -> str:
    failed = [one for one in played if not one.passed]
    verdict = (
        "Every input is accounted for, and every label is the one that the whole network gives."
        if not failed
        else f"**Not as promised: {', '.join(one.fault for one in failed)}.**"
    )
    skipped = [f"{one.fault} ({one.not_played})" for one in played if one.not_played]
    lines = [
        f"`make chaos`, {time.strftime('%Y-%m-%d')}, {machine.architecture}, {machine.cores} cores, Python "
        f"{machine.python}, mosquitto {machine.mosquitto}, {seconds / 60:.0f} minutes. The load average was "
        f"{machine.load:.1f} when it began.",
        f"{len(played) - len(skipped)} faults were played on running sites. {verdict}",
        _markdown(
            ["inputs", "count"],
            [
                ["offered", f"{total.offered:,}"],
                ["answered with a label", f"{total.labelled:,}"],
                ["answered without a label: nothing could be computed in time", f"{total.unlabelled:,}"],
                ["answered `shed`", f"{total.shed:,}"],
                ["not answered: taken by an origin without a spool that was then killed", f"{total.held:,}"],
                ["not answered: acknowledged by the broker, and lost by it", f"{total.forgotten:,}"],
                ["not answered, without an explanation", f"{total.lost:,}"],
                ["answered with a wrong label", f"{total.wrong:,}"],
                ["answered twice, and differently", f"{total.twice_other:,}"],
                ["answered late", f"{total.late:,}"],
            ],
        ),
    ]
    if skipped:
        lines.append(f"Not played on this machine: {', '.join(skipped)}.")
    lines += [f"* **{one.fault}**: {failure}" for one in failed for failure in (*one.failures, *one.slow)]
    return "\n\n".join(lines)


_METHOD = (
    "Each fault is played on a site of its own: a real mosquitto and real agents, each in its own process. A chain "
    "has two origins with stage 0, one with `spool: true` and one without, a board for stage 1 and one for stage 2. "
    f"The bundle is `fashion` with the thresholds {CHAIN_THRESHOLDS[0]} and {CHAIN_THRESHOLDS[1]}, so that three of "
    "four inputs travel. Faults of a *twin* are played with two boards for stage 1; those of a *branch* or a "
    "*fuser* with the bundle `tiny-wide`, a board for each of its two branches, and one that fuses. The orchestrator "
    "runs where the fault concerns it.",
    f"Two streams of named inputs, {RATE_HZ:g} a second to each origin, are published at QoS 1 before, during and "
    "after the fault, until all answers have been good for a while. The deadline is "
    f"{DEADLINE_S:g} s. The origins reach the broker through a proxy that also records which inputs the broker "
    "delivered, which of them the origin acknowledged, and which results the broker acknowledged. The same proxy makes "
    "links bad.",
    "* *Offered*: the broker acknowledged the input to its publisher, and did not say that nobody subscribes.\n"
    "* *Accepted*: the origin acknowledged the input to the broker.\n"
    "* *Label*, *no label*, *shed*: what the first final result of the input says. One that was shed, because a board "
    "had too much to do, may have a label too. The input is *unanswered* if there is no final result.\n"
    "* *Twice*: there is more than one final result. *Same* means that they agree in label, class and exit.\n"
    "* *Wrong*: the class is not the one that the network, run in one process, gives at that exit with the same "
    "branches missing; or a confident answer left at another exit than the thresholds of its plan say (in a wide "
    "network a later exit is accepted if it reaches its threshold, because results do not say which branches were "
    "missing at exits before).\n"
    f"* *Late*: after the deadline by the origin's own clock, with {GRACE_S:g} s allowed for a busy machine. Only an "
    "origin that is itself paused may be late.\n"
    "* *Recovery*: the time from the end of the fault to the first answer from which on all answers are good. A good "
    "answer is heard by the subscriber within the deadline after its input was published, and is no substitute "
    "(`fallback`, `deadline`, `shed`, or with a branch missing). An input without an answer counts as a late one. The "
    "fault ends when it is undone: a process is started or continued, a link is good again. So recovery includes the "
    "start of an agent, which takes about a second, and working off what waited.",
    "At the end the books of both origins must be at rest and balance: as many inputs answered as accepted, none "
    "dropped. Every input must be answered, or have one of the explanations that the fault allows. Two answers may "
    "differ only if a killed origin had no spool, or if two agents have the name of the origin. Anything else is "
    "printed, and `make chaos` exits with status 1.",
)

_NOT_COVERED = (
    "All processes run on one machine and talk over its loopback, so there is no packet loss below TCP, no change of "
    "address and no real Wi-Fi. Faults come one at a time. Power cuts are played as `kill -9`, which does not lose "
    "what the kernel has yet to write. Clocks jump in boards and orchestrators (Python's clock functions are replaced "
    "there), not in the broker. Only mosquitto was used, without users and TLS; "
    "[other brokers](../brokers.md) were tried without faults. Inputs come by MQTT only: folders, cameras and Python "
    "programs have tests of their own.",
)

_Cell = Callable[[Account], str]


def _recovery(account: Account) -> str:
    return "never" if account.recovery_s is None else f"{account.recovery_s:.1f}"


_COLUMNS: tuple[tuple[str, _Cell], ...] = (
    ("offered", lambda account: f"{account.offered:,}"),
    ("accepted", lambda account: f"{account.accepted:,}"),
    ("label", lambda account: f"{account.labelled:,}"),
    ("no label", lambda account: f"{account.unlabelled:,}"),
    ("shed", lambda account: f"{account.shed:,}"),
    ("un&shy;answered", lambda account: f"{account.unanswered:,}"),
    ("twice, same", lambda account: f"{account.twice_same:,}"),
    ("twice, other", lambda account: f"{account.twice_other:,}"),
    ("wrong", lambda account: f"{account.wrong:,}"),
    ("late", lambda account: f"{account.late:,}"),
    ("recovery s", _recovery),
)


def _table(played: Sequence[Played]) -> str:
    rows = [
        [f"`{one.fault}`" + " **failed**" * (not one.passed), *(_pair(one, cell) for _, cell in _COLUMNS)]
        for one in played
    ]
    return _markdown(["fault", *(name for name, _ in _COLUMNS)], rows)


def _pair(played: Played, cell: _Cell) -> str:
    cells = [cell(played.accounts[origin]) for origin in ORIGINS if origin in played.accounts]
    return cells[0] if len(set(cells)) == 1 else " / ".join(cells)


def _explained(played: Sequence[Played]) -> str:
    columns: tuple[tuple[str, _Cell], ...] = (
        ("taken by a killed origin", lambda account: f"{account.held:,}"),
        ("lost by the broker", lambda account: f"{account.forgotten:,}"),
        ("no explanation", lambda account: f"{account.lost:,}"),
        ("not offered, since nobody subscribed", lambda account: f"{account.unheard:,}"),
    )
    rows = [
        [f"`{one.fault}`", *(_pair(one, cell) for _, cell in columns)]
        for one in played
        if any(account.unanswered or account.unheard for account in one.accounts.values())
    ]
    if not rows:
        return "Every input has an answer."
    return (
        "A broker that has lost its store knows no sessions. What is published before the origin is back reaches "
        "nobody, and the broker says so to publishers that use MQTT 5. These inputs, in the last column, were not "
        "published again.\n\n" + _markdown(["fault", *(name for name, _ in columns)], rows)
    )


def _reasons(played: Sequence[Played]) -> str:
    rows = []
    for one in played:
        counts = [sum(account.reasons.get(reason, 0) for account in one.accounts.values()) for reason in _REASONS]
        rows.append([f"`{one.fault}`", *(f"{count:,}" for count in counts)])
    return _markdown(["fault", *_REASONS], rows)


def _what(played: Sequence[Played]) -> str:
    rows = [[f"`{one.fault}`", one.what, "; ".join(one.said).replace("|", "\\|")] for one in played]
    return _markdown(["fault", "what is done", "also seen"], rows, align="---")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---:") -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + f"{align}|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
