"""Routing: which boards are to run the stages of a request, chosen by its origin.

An origin knows the boards that serve the pipeline, its *members*, and how they do from the outcomes that come back. Of
two members at random it takes the one that is expected to be quicker: the best of all would be the choice of every
origin at a time. One that was never measured is taken to be as quick as others: were it preferred, a thousand origins
would each try all boards, slow ones as often as quick ones, before they chose.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable

from distree.errors import SAME_BUNDLE, Problem
from distree.messages.events import EventKind, Severity
from distree.messages.member import Member
from distree.messages.request import Hop, RouteStop
from distree.node.effects import Output, Tell
from distree.node.members import MemberChange, Members
from distree.node.peer_estimates import WEIGHT, PeerEstimate
from distree.node.settings import NodeSettings

MAX_MISSES = 3
"""A board that nobody can stand in for is left out once it has been missed so often in a row."""

RESTART_S = 10.0
"""A stage whose last board went is waited for so long, in seconds: boards restart."""

SETTLE_S, CALLED_SETTLE_S = 0.5, 2.5
"""After a connect, the announcements of all members take so long, in seconds, to come in: those that the broker has
retained, and those that are called for."""

ABOUT_AS_QUICK = 1.1
"""Of two boards whose times differ by no more than this factor, chance decides: so all are tried now and then."""

MAX_VISITS = 256
"""Visits kept ready: boards choose what they say that they serve."""

_UNKNOWN = PeerEstimate()
"""A board of which nothing was measured."""

Route = tuple[RouteStop, ...]


class Router:
    """Chooses among `members`, and keeps out those that do not answer.

    `fuser` is the board that is to fuse wide stages, None for the origin itself. `chance` is where all that is left to
    chance comes from.
    """

    def __init__(self, settings: NodeSettings, fuser: str | None, members: Members, chance: random.Random) -> None:
        self._settings = settings
        self._me = settings.device
        self._fuser = fuser
        self._members = members
        self._random = chance.random
        self._peers: dict[str, PeerEstimate] = {}
        self._usual_s: dict[int, float] = {}
        """What a run of each stage took lately, on whatever board."""
        self._left_out: set[str] = set()
        self._moving: set[str] = set()
        """Those of them that stop, as they say: what is heard of them does not take them in again."""
        self.probe_at = math.inf
        """When `to_probe` is next worth a call; infinity while nobody is left out."""
        self._own = frozenset(k for k in settings.stages if not settings.width(k))
        self._last = settings.last
        self._needed = tuple(k for k in range(settings.last + 1) if k not in self._own and settings.travels(k))
        """Stages for which boards are chosen."""
        self._visits: dict[tuple[tuple[int, ...], int], range] = {}
        self._connected_at = -math.inf
        self.settles_at = -math.inf
        """When the announcements of all members have come in, after a connect."""
        self._told: dict[int, Problem] = {}

    def books(self) -> dict[str, int]:
        """How much of what is under way is booked on members."""
        return {"loads": sum(peer.under_way for peer in self._peers.values())}

    @property
    def left_out(self) -> int:
        """How many boards are left out, for they do not answer."""
        return len(self._left_out)

    # ------------------------------------------------------------ who is there

    def connected(self, now: float) -> None:
        """Note that this board is connected, so that what boards announce is about to come."""
        self._connected_at = now
        self.settles_at = now + CALLED_SETTLE_S

    def settle(self) -> None:
        """Note that the broker has retained announcements, so that none need be called for."""
        self.settles_at = min(self.settles_at, self._connected_at + SETTLE_S)

    def changed(self, change: MemberChange) -> None:
        """Note what became of a board: what the run before did is forgotten."""
        peer = self._peers.get(change.device)
        if change.ended or change.came:
            self._left_out.discard(change.device)
            self._moving.discard(change.device)
            if peer is not None:
                peer.reset()
        if change.listen == "end" and peer is not None and not peer.under_way:
            del self._peers[change.device]

    def knows(self, device: str) -> bool:
        """Whether a board has been chosen here, so that something is known of how it does."""
        return device in self._peers or device in self._left_out

    def moved(self, device: str) -> None:
        """A board says that it stops; its state, which says so too, may come later."""
        if self._members.get(device) is not None:
            self._left_out.add(device)
            self._moving.add(device)

    # ------------------------------------------------------------ the choice

    def route(
        self,
        now: float,
        stage: int,
        avoid: Collection[str] = (),
        *,
        proved: bool = False,
        settles_by: float = math.inf,
    ) -> Route | None:
        """Choose boards from a stage on, those in `avoid` only where there is no other; None if a stage has none.

        With `proved` those that have answered before come first: whoever may announce boards can make up any number.
        Branches that nobody serves are waited for soon after a connect, but not beyond `settles_by`.
        """
        settings, own, last = self._settings, self._own, self._last
        stops: list[RouteStop] = []
        while stage <= last:
            if settings.width(stage):
                stop = self._wide_stop(now, stage, avoid, proved, settles_by)
                if stop is None:
                    return None
                stops.append(stop)
                stage = settings.end_of_group(stage) + 1
            elif stage in own:
                stops.append(RouteStop(stage=stage, boards=(self._me,)))
                while stage in own:
                    stage += 1
            else:
                member = self._choose(now, stage, None, avoid, proved)
                if member is None:
                    return None
                stops.append(RouteStop(stage=stage, boards=(member.device,)))
                stage = self._visit(member, stage).stop
        return tuple(stops)

    def _visit(self, member: Member, stage: int) -> range:
        """Return the stages that a board runs at one visit: those in a row that it serves, up to an own one."""
        key = member.stages, stage
        known = self._visits.get(key)
        if known is not None:
            return known
        settings, after = self._settings, stage + 1
        if settings.width(stage):
            after = settings.end_of_group(stage) + 1
        else:
            while after in member.stages and after not in self._own and not settings.width(after):
                after += 1
        if len(self._visits) >= MAX_VISITS:
            self._visits.clear()
        visit = self._visits[key] = range(stage, after)
        return visit

    def _wide_stop(
        self, now: float, stage: int, avoid: Collection[str], proved: bool, settles_by: float
    ) -> RouteStop | None:
        """Return one board for each branch, as far as there are any.

        None where a branch is still waited for, or the board that is to fuse.
        """
        chosen, readers = [], 0
        for branch in range(self._settings.width(stage)):
            if branch == self._settings.branch and stage in self._settings.stages:
                chosen.append(self._me)
                readers += 1
                continue
            member = self._choose(now, stage, branch, avoid, proved)
            chosen.append("" if member is None else member.device)
            readers += len(self._members.of(stage, branch))
        boards = len([device for device in chosen if device])
        settles = now < min(self.settles_at, settles_by)
        if not boards or (settles and (boards < len(chosen) or not self._knows_fuser())):
            return None
        # Published once, it goes up once and down to all that read it; published to each, up and down once a board.
        return RouteStop(stage=stage, boards=tuple(chosen), together=1 + readers <= 2 * boards)

    def _choose(
        self, now: float, stage: int, branch: int | None, avoid: Collection[str], proved: bool
    ) -> Member | None:
        usable = self._usable(stage, branch, avoid)
        if proved:
            usable = tuple([one for one in usable if self._members.has_answered(one.device)]) or usable
        count = len(usable)
        if count < 2:
            return usable[0] if usable else None
        one = int(self._random() * count)
        other = int(self._random() * (count - 1))
        first, second = usable[one], usable[other + (other >= one)]
        other_s = self._expected_s(now, second, stage)
        return first if self._expected_s(now, first, stage) <= ABOUT_AS_QUICK * other_s else second

    def _usable(self, stage: int, branch: int | None = None, avoid: Collection[str] = ()) -> tuple[Member, ...]:
        """Return the members of a stage, or of a branch of it, that may be chosen."""
        usable = self._members.of(stage, branch)
        if self._left_out:
            usable = tuple([member for member in usable if member.device not in self._left_out])
        if avoid:
            usable = tuple([member for member in usable if member.device not in avoid]) or usable
        return usable

    def _expected_s(self, now: float, member: Member, stage: int) -> float:
        peer = self._peers.get(member.device, _UNKNOWN)
        return peer.expected_s(now, self._visit(member, stage), self._usual_s)

    def fuser(self) -> str:
        """Return the board that is to fuse: this one, while the one for that is not there or does not answer."""
        fuser = self._fuser
        return fuser if fuser is not None and self._is_usable(fuser) else self._me

    def _knows_fuser(self) -> bool:
        return self._fuser is None or self._fuser == self._me or self._members.get(self._fuser) is not None

    def holds(self, route: Route) -> bool:
        """Whether all boards of a route may still be chosen."""
        return all(self._is_usable(device) for stop in route for device in stop.boards if device)

    def _is_usable(self, device: str) -> bool:
        return device == self._me or (device not in self._left_out and self._members.get(device) is not None)

    # ------------------------------------------------------------ where there is none

    def lacks_boards(self) -> bool:
        """Whether a stage has no board that may be chosen."""
        return not all(self._is_served(k) for k in self._needed)

    def is_alone(self, now: float) -> bool:
        """Whether that is so although those boards that there are have announced themselves by now."""
        return now >= self.settles_at and self.lacks_boards()

    def awaits(self, now: float, stage: int) -> bool:
        """Whether it is worth waiting for the boards that are missing from a stage on: they went only now."""
        return all(self._is_served(k) or self._is_awaited(now, k) for k in self._needed if k >= stage)

    def _is_served(self, stage: int) -> bool:
        return stage in self._settings.stages or self._members.serve(stage, self._left_out)

    def _is_awaited(self, now: float, stage: int) -> bool:
        """Whether no board of a stage is there, which does not last for long."""
        last = max(self._members.went_at(stage), self._connected_at)
        return not self._members.serve(stage) and now < last + RESTART_S

    def unserved(self, now: float) -> list[Output]:
        """Say which stages nobody serves, each once until that changes."""
        outputs: list[Output] = []
        for stage in self._needed:
            is_well = self._is_served(stage) or self._is_awaited(now, stage)
            problem = None if is_well else self._problem(stage)
            known = self._told.pop(stage, None)
            if problem is not None:
                self._told[stage] = problem
                if problem != known:
                    outputs.append(Tell(kind=EventKind.BOARD, what=problem.what, remedy=problem.remedy))
            elif known is not None:
                outputs.append(_good_news(f"stage {stage} is served again"))
        return outputs

    def _problem(self, stage: int) -> Problem:
        if self._members.serve(stage):
            return Problem(f"no board answers for stage {stage}", "check the logs of the boards that serve it")
        revision = self._settings.revision
        others = [f"{member.device} has {', '.join(member.revisions)}" for member in self._members.others(stage)]
        if others:
            whose = ", ".join(others)
            return Problem(f"no board serves stage {stage} with bundle revision {revision} ({whose})", SAME_BUNDLE)
        return Problem(f"no board serves stage {stage}", "start one that does")

    # ------------------------------------------------------------ what is under way

    def load(self, route: Route, by: int) -> None:
        """Note that one more request is under way at the boards of a route, or one less."""
        for stop in route:
            for device in stop.boards:
                if device and device != self._me:
                    peer = self._peers.get(device) or self._peer(device)
                    peer.under_way += by
                    if not peer.under_way and device not in self._members:
                        del self._peers[device]  # it went while that was under way

    def _peer(self, device: str) -> PeerEstimate:
        peer = self._peers.get(device)
        if peer is None:
            peer = self._peers[device] = PeerEstimate()
        return peer

    def expected_s(self, now: float, route: Route) -> float:
        """Return how long the boards of a route would take, as far as that is known."""
        took_s, peers, end = 0.0, self._peers, self._settings.last + 1
        for stop in reversed(route):
            visit, end = range(stop.stage, end), stop.stage
            took_s += max(
                [peers[one].expected_s(now, visit, self._usual_s) for one in stop.boards if one in peers], default=0.0
            )
        return took_s

    def is_too_long(self, now: float, route: Route, left_s: float) -> bool:
        """Whether a board of a route has so much under way that an answer may not come in the time that is left."""
        took_s = 0.0
        for stop in route:
            for device in stop.boards:
                peer = self._peers.get(device)
                if peer is None or not peer.under_way:
                    continue
                member = self._members.get(device)
                if member is not None:
                    took_s = max(took_s, peer.worst_s(now, self._visit(member, stop.stage), self._usual_s))
        return took_s >= left_s

    # ------------------------------------------------------------ who answers

    def heard(self, now: float, device: str) -> list[Output]:
        """Note that a board has been heard."""
        peer = self._peers.get(device)
        if peer is None:
            return []
        peer.heard_at = now
        if device not in self._left_out or device in self._moving:
            peer.misses = 0
            return []
        self._left_out.discard(device)
        peer.reset()
        return [_good_news(f"{device} answers again")]

    def measured(self, now: float, hops: Iterable[Hop]) -> list[Output]:
        """Take in where the time of a request went: who has a part in it was heard."""
        outputs: list[Output] = []
        for hop in hops:
            peer = self._peers.get(hop.device)
            if peer is not None:
                peer.measured(now, hop)
                peer.heard_at, peer.misses = now, 0
                self._members.answered(hop.device)
                usual_s = self._usual_s.get(hop.stage, hop.compute_s)
                self._usual_s[hop.stage] = usual_s + (hop.compute_s - usual_s) / WEIGHT
                if hop.device in self._left_out:
                    outputs += self.heard(now, hop.device)
        return outputs

    def suspects(self, boards: Collection[str]) -> Collection[str]:
        """Return which boards of a route to blame if nothing is heard: those that never answered, if there are any.

        A made-up board takes what it is sent, and those behind it on the route never get it.
        """
        return [device for device in boards if not self._members.has_answered(device)] or boards

    def have_answered(self, boards: Iterable[str]) -> bool:
        """Whether all of these boards have answered before."""
        return all(self._members.has_answered(device) for device in boards)

    def silent(self, now: float, boards: Iterable[str], since: float, *, is_last: bool = False) -> list[Output]:
        """Note that boards did not answer in time what was sent at `since`.

        Who was heard since is not blamed. Who can be replaced is left out at once; the last one of a stage once it was
        missed a few times, or `is_last`: a repetition has gone unanswered.
        """
        outputs: list[Output] = []
        for device in boards:
            member = self._members.get(device)
            if member is None or device in self._left_out or device == self._me:
                continue
            peer = self._peer(device)
            if peer.heard_at >= since:
                continue
            peer.missed(now, since)
            # Without a branch an answer is worse: a last board of one is not given up because all of them were slow.
            is_out = peer.misses >= MAX_MISSES or (is_last and member.branch is None)
            if is_out or self._has_twin(member):
                self._leave_out(now, device)
                what = f"{device} does not answer, and is left out until it does"
                outputs.append(
                    Tell(kind=EventKind.BOARD, what=what, remedy="see whether it is busy, or look at its log")
                )
        return outputs

    def unreachable(self, now: float, device: str) -> list[Output]:
        """Note that nobody reads what is sent to a board: the broker says so."""
        if device in self._left_out or self._members.get(device) is None:
            return []
        self._leave_out(now, device)
        what = f"the broker reports that nobody reads messages to {device}, so it is left out until it answers"
        return [Tell(kind=EventKind.BOARD, what=what, remedy="see whether it runs, and look at its log")]

    def _leave_out(self, now: float, device: str) -> None:
        self._left_out.add(device)
        peer = self._peer(device)
        peer.probe_at = now + peer.probe_wait_s
        self.probe_at = min(self.probe_at, peer.probe_at)

    def _has_twin(self, member: Member) -> bool:
        """Whether other boards can run all that a board may be chosen for."""
        branches = {k: member.branch if self._settings.width(k) else None for k in member.stages if k in self._needed}
        return all(
            any(one.device != member.device for one in self._usable(k, branch)) for k, branch in branches.items()
        )

    # ------------------------------------------------------------ probes

    def to_probe(self, now: float) -> list[Member]:
        """Return the members that are to be probed now."""
        if now < self.probe_at:
            return []
        found = []
        for device in sorted(self._left_out):
            peer, member = self._peer(device), self._members.get(device)
            if member is None:
                # It is back once it says so itself.
                self._left_out.discard(device)
            elif peer.probe_at <= now:
                peer.probed(now)
                found.append(member)
        self.probe_at = min([self._peer(device).probe_at for device in self._left_out], default=math.inf)
        return found


def _good_news(what: str) -> Tell:
    return Tell(kind=EventKind.BOARD, what=what, severity=Severity.INFO)
