"""The roll of a simulated site: which boards have announced what, and what it costs to keep origins informed.

On a real site each origin keeps its own record of the boards that it hears of. Here all share one, which changes when a
message reaches the broker, and an origin hears of it one link later, if it deals with the board: thousands of records,
each with a thousand boards, would say the same. Messages are counted as they would be, and take time on narrow links.
Where the broker retains nothing, origins do not know the same, and each keeps its own record.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias

from distree.messages.device import DeviceState
from distree.messages.member import Member
from distree.node import Effect, StageNode
from distree.node.members import MemberChange, Members
from orchestrator.simulator.books import Books
from orchestrator.simulator.events import Events
from orchestrator.simulator.network import BrokerSession

Word: TypeAlias = "Callable[[StageNode, float], list[Effect]]"
"""A call that tells a node something, at some time."""


class Origin(Protocol):
    """A board that chooses from the roll."""

    name: str
    node: StageNode
    session: BrokerSession

    def learn(self, word: Word) -> None:
        """The node is told something."""


class Called(Protocol):
    """A board that can be asked what it serves."""

    session: BrokerSession

    def called(self, caller: str) -> None:
        """The request has arrived."""


@dataclass(slots=True)
class _Retained:
    """What the broker retains for an audience: the number of announcements and boards, their bytes, and the first."""

    announcements: int = 0
    boards: int = 0
    nbytes: int = 0
    first: Word | None = None


@dataclass(slots=True)
class _Audience:
    """Origins that need boards for the same stages; `online` are those that the broker considers connected."""

    needs: frozenset[int]
    online: dict[str, Origin] = field(default_factory=dict)
    is_narrow: bool = False
    """Whether what they are told takes time on their links."""
    retained: _Retained = field(default_factory=_Retained)


class Roll:
    """What the broker passes on of members.

    `members` is the record that all origins share; None if each has its own. `needs` has the stages for which origins
    choose boards, one set per kind of origins.
    """

    def __init__(self, events: Events, books: Books, members: Members | None, needs: Iterable[frozenset[int]]) -> None:
        self.members = members
        self._events = events
        self._books = books
        self._audiences = {stages: _Audience(stages) for stages in needs}
        self._serve: dict[str, tuple[int, ...]] = {}
        """The stages for which some origins need a board that has announced itself."""
        self._state_bytes = 0

    # ------------------------------------------------------------ origins come and go

    def connected(self, origin: Origin, needs: frozenset[int]) -> None:
        """An origin has subscribed to what boards announce that serve certain stages: it gets what is retained."""
        audience, books = self._audiences[needs], self._books
        audience.online[origin.name] = origin
        audience.is_narrow |= origin.session.link.is_narrow
        retained = audience.retained
        if self.members is None or retained.first is None:
            return
        # At the very start there are no states yet.
        state_bytes = retained.boards * self._state_bytes
        books.delivered("member", retained.announcements, retained.nbytes)
        books.delivered("state", retained.boards if state_bytes else 0, state_bytes)
        books.subscriptions += retained.boards
        at_board = origin.session.link.down(self._events.now, retained.nbytes + state_bytes)
        # The shared record has all of it already; one call says that there is something.
        self._events.at(at_board, origin.learn, retained.first)

    def gone(self, origin: Origin, needs: frozenset[int]) -> None:
        """An origin is no longer connected."""
        self._audiences[needs].online.pop(origin.name, None)

    # ------------------------------------------------------------ what boards say

    def announced(self, member: Member, stages: Iterable[int], nbytes: int) -> None:
        """A board has said what it serves."""
        audiences = self._audiences.values()
        serves = tuple([stage for stage in stages if any(stage in audience.needs for audience in audiences)])
        is_new, self._serve[member.device] = member.device not in self._serve, serves
        for stage in serves:
            concerned = [audience for audience in audiences if stage in audience.needs]
            self._tell("member", nbytes, concerned, member.device, self._entered(member, stage))
        if is_new:
            for audience in self._listening(member.device):
                self._books.subscriptions += len(audience.online)
                self._retain(audience.retained, member, audience.needs.intersection(serves), nbytes)

    def _retain(self, retained: _Retained, member: Member, stages: Collection[int], nbytes: int) -> None:
        retained.boards += 1
        retained.announcements += len(stages)
        retained.nbytes += len(stages) * nbytes
        retained.first = retained.first or _announced(member, min(stages), is_live=False)

    def _entered(self, member: Member, stage: int) -> Word | None:
        """Enter an announcement into the shared record; return what origins that deal with the board are told."""
        if self.members is None:
            return _announced(member, stage, is_live=True)
        change = self.members.announced(self._events.now, member, stage, is_live=True)
        if change.pushed_out is not None:
            # Whoever had work at the board that made room for this one finds out by its silence.
            self._books.refused["members"] += 1
        return _changed(change)

    def state_changed(self, state: DeviceState, nbytes: int) -> None:
        """A board has published its state, or its will has."""
        self._state_bytes = nbytes
        audiences = self._listening(state.device)
        if self.members is None:
            word: Word | None = partial(StageNode.state_changed, state=state)
        else:
            word = _changed(self.members.state_changed(self._events.now, state))
        self._tell("state", nbytes, audiences, state.device, word)

    def _listening(self, device: str) -> list[_Audience]:
        serves = self._serve.get(device)
        return [one for one in self._audiences.values() if one.needs.intersection(serves)] if serves else []

    def called(self, caller: str, nbytes: int, boards: Iterable[Called]) -> None:
        """A board has asked all others to announce again what they serve."""
        online = [board for board in boards if board.session.is_online]
        self._books.delivered("call", len(online), len(online) * nbytes)
        for board in online:
            self._events.at(board.session.link.down(self._events.now, nbytes), board.called, caller)

    def _tell(self, kind: str, nbytes: int, audiences: Iterable[_Audience], device: str, word: Word | None) -> None:
        """Pass on what a board published, and tell the origins that deal with it."""
        now, is_shared = self._events.now, self.members is not None
        for audience in audiences:
            self._books.delivered(kind, len(audience.online), len(audience.online) * nbytes)
            if word is None and not audience.is_narrow:
                continue
            for origin in audience.online.values():
                link = origin.session.link
                if word is not None and (not is_shared or origin.node.depends_on(device)):
                    self._events.at(link.down(now, nbytes), origin.learn, word)
                elif link.is_narrow:
                    link.down(now, nbytes)


def _announced(member: Member, stage: int, *, is_live: bool) -> Word:
    return partial(StageNode.announced, member=member, stage=stage, is_live=is_live)


def _changed(change: MemberChange) -> Word | None:
    return partial(StageNode.changed, change=change) if change.ended or change.came else None
