"""The account of one origin's inputs under a fault: each is counted once, and what nothing explains is a failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.chaos.expected import Plans, WholeNetwork
from benchmarks.chaos.site import Answer
from benchmarks.chaos.tap import Tap

FULL = ("confident", "last")
"""Reasons of answers that the network gave as it was meant to, rather than a substitute."""

GRACE_S = 0.25
"""How much later than the deadline an answer may come on a busy machine before it is called late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excuses:
    """What a fault explains.

    `origin_dies`: what an origin without a spool had taken may be gone, or be answered anew. `origin_stands_still`: it
    may be late by its own clock. `origin_is_double`: two agents may answer the same input, each as well as it can.
    `broker_forgets`: what the broker acknowledged may be gone, or come again.
    """

    origin_dies: bool = False
    origin_stands_still: bool = False
    origin_is_double: bool = False
    broker_forgets: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of one origin's inputs, in the order in which they were published.

    `published_at` are monotonic seconds, by request; `acknowledged` the requests that the broker took, `unheard` those
    of which it said that nobody subscribes; `finals` the final results heard, by request; `ended_at` when the fault
    ended.
    """

    requests: Sequence[str]
    published_at: Mapping[str, float]
    acknowledged: frozenset[str]
    unheard: frozenset[str]
    finals: Mapping[str, Sequence[Answer]]
    tap: Tap
    plans: Plans
    network: WholeNetwork
    deadline_s: float
    ended_at: float


@dataclass(slots=True)
class Account:
    """Counts of inputs; `failures` is what nothing explains, `slow` what was not in time.

    `offered` = `labelled` + `unlabelled` + `shed` + `held` + `forgotten` + `lost`, if the books balance. `labelled`,
    `unlabelled` and `shed` are by the first final answer, and so are `reasons`; what is shed may have a label. `held`:
    taken by an origin without a spool that was then killed. `forgotten`: the broker acknowledged them, or their
    results, and lost them. `lost`: no answer and no explanation. `unheard` are not among the offered: the broker told
    their publisher that nobody subscribed, and they reached nobody. `twice_same` and `twice_other`: more than one final
    answer. `wrong`: not what the whole network says. `late`: after the deadline, by the origin's own clock, and
    `latest_ms` by how much at most. `recovery_s`: see `recovery`.
    """

    offered: int = 0
    unheard: int = 0
    accepted: int = 0
    labelled: int = 0
    unlabelled: int = 0
    shed: int = 0
    held: int = 0
    forgotten: int = 0
    lost: int = 0
    twice_same: int = 0
    twice_other: int = 0
    wrong: int = 0
    late: int = 0
    latest_ms: float = 0.0
    recovery_s: float | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    @property
    def unanswered(self) -> int:
        return self.held + self.forgotten + self.lost


def settle(seen: Evidence, excuses: Excuses, *, spool: bool) -> Account:
    """Close the books of one origin."""
    account, found, slow = Account(), _Failures(), _Failures()
    unheard = seen.unheard - seen.tap.delivered.keys()
    account.unheard = sum(request in unheard for request in seen.requests)
    account.offered = sum(request in seen.acknowledged for request in seen.requests) - account.unheard
    if account.unheard and not excuses.broker_forgets:
        found.add("not queued by the broker for the origin", *(r for r in seen.requests if r in unheard))
    if not seen.acknowledged.issuperset(seen.requests):
        found.add("not acknowledged by the broker", *(r for r in seen.requests if r not in seen.acknowledged))
    account.accepted = sum(request in seen.tap.taken for request in seen.requests)
    reasons: Counter[str] = Counter()
    for index, request in enumerate(seen.requests):
        answers = seen.finals.get(request, ())
        if not answers:
            if request in seen.acknowledged - unheard:
                _miss(account, found, request, seen, excuses, spool=spool)
            continue
        reasons[answers[0].reason] += 1
        _count(account, answers[0])
        if len(answers) > 1:
            excused = excuses.origin_is_double or (excuses.origin_dies and not spool)
            _repeat(account, found, request, answers, excused=excused)
        for answer in answers:
            _judge(account, found, index % len(seen.network), answer, seen)
    account.reasons = dict(reasons.most_common())
    account.recovery_s = recovery(seen)
    if account.late and not excuses.origin_stands_still:
        slow.add(f"late by the origin's own clock, by up to {account.latest_ms:.0f} ms", count=account.late)
    if account.recovery_s is None:
        slow.add("not recovered: after the last answer that was late or a substitute came none that was neither")
    told = account.labelled + account.unlabelled + account.shed + account.unanswered
    if told != account.offered:
        found.add(f"offered {account.offered}, accounted for {told}")
    account.failures, account.slow = found.lines(), slow.lines()
    return account


def recovery(seen: Evidence) -> float | None:
    """Return the seconds from the fault's end to the first answer after which all answers are full and in time.

    In time is by who hears it: from the publishing of an input to the hearing of its first final answer. An input
    without an answer counts as one that was late, at the moment of its deadline. 0 if the last answer that was not as
    it must be came before the fault's end; None if no good answer followed it.
    """
    events = []
    for request in seen.requests:
        due_at = seen.published_at[request] + seen.deadline_s + GRACE_S
        answers = seen.finals.get(request)
        if not answers:
            events.append((due_at, False))
            continue
        first = answers[0]
        events.append((first.at, first.at <= due_at and first.reason in FULL and not first.missing))
    first_good: float | None = None
    for at, is_good in sorted(events):
        if not is_good:
            first_good = None
        elif first_good is None:
            first_good = at
    return None if first_good is None else max(0.0, first_good - seen.ended_at)


class _Failures:
    """Counts failures of a kind, with the first few requests as examples."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, list[str]]] = {}

    def add(self, what: str, *requests: str, count: int = 0) -> None:
        number, examples = self._found.get(what, (0, []))
        self._found[what] = number + (count or len(requests)), [*examples, *requests][:3]

    def lines(self) -> list[str]:
        return [
            (f"{count} " if count else "") + what + (f", such as {', '.join(examples)}" if examples else "")
            for what, (count, examples) in self._found.items()
        ]


def _miss(account: Account, found: _Failures, request: str, seen: Evidence, excuses: Excuses, *, spool: bool) -> None:
    """Explain an input without an answer."""
    tap = seen.tap
    if request in tap.answered:
        if excuses.broker_forgets:
            account.forgotten += 1
            return
        what = "answered to the broker, but never heard"
    elif request in tap.taken:
        if excuses.origin_dies and not spool and tap.taken[request] < seen.ended_at:
            account.held += 1
            return
        what = "taken by the origin and never answered"
    elif excuses.broker_forgets:
        account.forgotten += 1
        return
    else:
        what = "delivered and not taken" if request in tap.delivered else "never delivered to the origin"
    account.lost += 1
    found.add(f"LOST: {what}", request)


def _count(account: Account, answer: Answer) -> None:
    if answer.reason == "shed":
        account.shed += 1
    elif answer.label is None:
        account.unlabelled += 1
    else:
        account.labelled += 1


def _repeat(account: Account, found: _Failures, request: str, answers: Sequence[Answer], *, excused: bool) -> None:
    if len({answer.gist for answer in answers}) == 1:
        account.twice_same += 1
        return
    account.twice_other += 1
    if not excused:
        found.add("answered twice, and differently", request)


def _judge(account: Account, found: _Failures, index: int, answer: Answer, seen: Evidence) -> None:
    late_ms = answer.latency_ms - 1000 * seen.deadline_s
    account.late += late_ms > 1000 * GRACE_S
    account.latest_ms = max(account.latest_ms, late_ms)
    if answer.label is None:
        return
    fault = seen.network.fault(index, answer, seen.plans)
    if fault:
        account.wrong += 1
        found.add(f"WRONG: {fault}", answer.request)
