"""How many audits of each origin count: no more than its traffic explains, nor than its share. No I/O, no clock.

Whoever may write on the topic of an origin's audits can write as many rows as it likes, and rows without losses loosen
thresholds. So a row does not count because it came: it is held until the reports of its origin cover it, that is until

* the origin has reported that it drew so many inputs,
* it has accepted so many that drawing that many is likely, at the share of audits in force, and
* the origin stays within the largest share of the audits that one origin may make up.

What is not covered in time is refused. None of this looks at what a row says, so that which audits of an honest origin
count does not depend on how they turned out.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from distree.errors import RemoteProtocolError
from distree.messages.telemetry import OriginTelemetry
from distree.record import record
from orchestrator.tuning.samples import Sample

HOLD_S = 60.0
"""Shortest time for which a row waits for reports that cover it, in seconds; at least three periods of its origin."""

DRAW_FACTOR, DRAW_SLACK = 1.25, 20.0
"""An origin may have drawn this many times what its inputs let expect, and as many more: together at least 4.5 standard
deviations, however many inputs there are."""

SHARE_SLACK = 32.0
"""Most audits by which an origin may be ahead of its largest share, at the start and after others had more."""

MAX_HELD = 4096
"""Most audits of one origin that wait; with the usual reports every 2 s they are enough for 2,000 audits a second."""

MAX_HELD_IN_ALL = 32_768
MAX_ACCOUNTS = 10_000
MAX_RUNS = 8
REPORTS_BACK = 3
"""Reports for which a former share of audits is still counted with: a plan takes a moment to reach its origins."""


@record
class Unexplained:
    """Audits of an origin that were refused because nothing covered them."""

    origin: str
    error: RemoteProtocolError
    count: int


@dataclass(slots=True)
class _Account:
    """What an origin has reported, by run (inputs accepted, inputs drawn), and how many of its audits count."""

    runs: dict[str, tuple[int, int]] = field(default_factory=dict)
    drawn: int = 0
    expected: float = 0.0
    counted: int = 0
    ahead: float = SHARE_SLACK
    others_counted: int = 0
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=REPORTS_BACK))
    held: deque[tuple[float, Sample]] = field(default_factory=deque)

    @property
    def is_covered(self) -> bool:
        """Whether its reports cover one more audit."""
        return self.counted < min(self.drawn, self.expected + DRAW_SLACK)


class AuditShares:
    """The accounts of all origins of one pipeline.

    `largest_share` is the largest share of the audits that count which one origin may make up, above 0; at 1 there is
    no such limit.
    """

    def __init__(self, largest_share: float = 1.0) -> None:
        self._per_other = math.inf if largest_share >= 1.0 else largest_share / (1.0 - largest_share)
        self._share = largest_share
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._holding: dict[str, _Account] = {}
        self._refused: Counter[str] = Counter()
        self._counted = self._held = 0

    def reported(self, origin: str, boot: str, report: OriginTelemetry, audit_rate: float) -> None:
        """Note what an origin reports; `audit_rate` is the share of its inputs that it draws now."""
        account = self._account(origin)
        account.rates.append(audit_rate)
        accepted, drawn = account.runs.get(boot, (0, 0))
        # A report of an earlier time adds nothing.
        account.drawn += max(0, report.audits_drawn - drawn)
        account.expected += max(0, report.accepted - accepted) * min(1.0, DRAW_FACTOR * max(account.rates))
        account.runs[boot] = max(report.accepted, accepted), max(report.audits_drawn, drawn)
        while len(account.runs) > MAX_RUNS:
            del account.runs[next(iter(account.runs))]

    def hold(self, origin: str, samples: Sequence[Sample], until_s: float) -> None:
        """Have samples of an origin wait until they are covered, at most until a time.

        Those for which there is no room are refused.
        """
        account = self._account(origin)
        for sample in samples:
            if len(account.held) >= MAX_HELD:
                self._refused[origin] += 1
                continue
            account.held.append((until_s, sample))
            self._holding[origin] = account
            self._held += 1
            if self._held > MAX_HELD_IN_ALL:
                # Whoever has most waiting makes room for the others.
                biggest = max(self._holding, key=lambda name: len(self._holding[name].held))
                self._holding[biggest].held.pop()
                self._refused[biggest] += 1
                self._held -= 1

    def release(self, origin: str) -> list[Sample]:
        """Return the samples that count now, of an origin that has sent or reported, and of others as they follow."""
        released = self._release(origin)
        if released and self._per_other < math.inf:
            # What one has counted makes room for the others, and they for it.
            while more := [sample for name in tuple(self._holding) for sample in self._release(name)]:
                released += more
        return released

    def overdue(self, now_s: float) -> list[Unexplained]:
        """Refuse what has waited for too long; return all that was refused since the last call."""
        for name, account in tuple(self._holding.items()):
            while account.held and account.held[0][0] <= now_s:
                account.held.popleft()
                self._refused[name] += 1
                self._held -= 1
            if not account.held:
                del self._holding[name]
        refused = [
            Unexplained(origin=name, error=self._refusal(name, self._account(name)), count=count)
            for name, count in self._refused.items()
        ]
        self._refused.clear()
        return refused

    def _release(self, origin: str) -> list[Sample]:
        account = self._holding.get(origin)
        if account is None:
            return []
        released: list[Sample] = []
        while account.held and account.is_covered and self._is_within_share(account):
            released.append(account.held.popleft()[1])
            account.counted += 1
            account.ahead -= 1.0
            self._counted += 1
            self._held -= 1
        if not account.held:
            del self._holding[origin]
        return released

    def _is_within_share(self, account: _Account) -> bool:
        if self._per_other == math.inf:
            return True
        others = self._counted - account.counted
        account.ahead = min(SHARE_SLACK, account.ahead + (others - account.others_counted) * self._per_other)
        account.others_counted = others
        return account.ahead >= 1.0

    def _account(self, origin: str) -> _Account:
        account = self._accounts.get(origin)
        if account is None:
            account = self._accounts[origin] = _Account(others_counted=self._counted)
            if len(self._accounts) > MAX_ACCOUNTS:
                # Whoever makes up names pushes out those that were silent longest, and none that is at work.
                oldest = next(name for name in self._accounts if name != origin)
                waiting = len(self._accounts.pop(oldest).held)
                self._holding.pop(oldest, None)
                self._held -= waiting
        self._accounts.move_to_end(origin)
        return account

    def _refusal(self, origin: str, account: _Account) -> RemoteProtocolError:
        if account.is_covered:
            return RemoteProtocolError(
                "share",
                f"{origin} makes up more than {self._share:.0%} of the audits, which is the most that one origin may",
                "raise largest_share in orchestrator.yaml if its inputs are to count for more",
            )
        covered = int(min(account.drawn, account.expected + DRAW_SLACK))
        return RemoteProtocolError(
            "traffic",
            f"more audits of {origin} than the inputs that it reports explain, which is {covered} since it was first "
            "heard",
            "find out who publishes them; list the pipeline's origins in orchestrator.yaml",
        )

    def counted_origins(self) -> tuple[str, ...]:
        """Return the origins of which audits have counted."""
        return tuple(name for name, account in self._accounts.items() if account.counted)

    # ------------------------------------------------------------ restarts

    def snapshot(self) -> list[list[object]]:
        """Return plain data, for `restore`; what is held is not in it."""
        return [
            [name, account.drawn, account.expected, account.counted, [[boot, *run] for boot, run in runs.items()]]
            for name, account in self._accounts.items()
            for runs in [account.runs]
        ]

    def restore(self, data: Iterable[Sequence[object]]) -> None:
        """Go on where another one stood."""
        self._accounts, self._holding, self._held = OrderedDict(), {}, 0
        for name, drawn, expected, counted, runs in data:
            known = {str(boot): (int(accepted), int(of_run)) for boot, accepted, of_run in runs}  # type: ignore[attr-defined]
            self._accounts[str(name)] = _Account(
                runs=known, drawn=int(str(drawn)), expected=float(str(expected)), counted=int(str(counted))
            )
        self._counted = sum(account.counted for account in self._accounts.values())
        for account in self._accounts.values():
            account.others_counted = self._counted - account.counted
