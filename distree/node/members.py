"""Members: the boards that serve a pipeline, as they announce it, and whether they are there.

An announcement counts while the state of its board is `ready` and of the same run. Two boards of one name only take
turns here: the state that came last holds.

Whoever may publish announcements can make up any number of boards. When there are too many, the one that announced
itself longest ago is forgotten, and before it those that never answered a request: boards that work stay.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from itertools import islice
from typing import Literal

from distree.messages.device import DeviceState, DeviceStatus
from distree.messages.member import Member
from distree.record import record

MAX_MEMBERS = 4096
"""Boards of a pipeline on which books are kept."""

_ALIVE = (DeviceStatus.READY, DeviceStatus.DRAINING)

OTHERS_NAMED = 4
"""Boards with another bundle that are named at most, see `Members.others`."""

Slot = tuple[int, "int | None"]
"""A stage, and the branch of it where it is wide: who is in one team can stand in for each other."""

_Place = tuple[Slot, bool]
"""A slot that a board serves, and whether it has the right bundle to be chosen there."""


@record
class MemberChange:
    """What became of a board by something that was heard of it.

    `ended` says that a run of it is over, with all that was under way there; `came` that one is there to be chosen, and
    `listen` whether its state is to be listened to from now on, or no longer. `pushed_out` is what became of another
    board, which was forgotten to make room for this one.
    """

    device: str
    ended: bool = False
    came: bool = False
    listen: Literal["begin", "end", ""] = ""
    pushed_out: MemberChange | None = None


class _Board:
    __slots__ = ("boot", "member", "number", "places", "stages", "status")

    def __init__(self, number: int) -> None:
        self.number = number
        """How many boards were known before."""
        self.places: frozenset[_Place] = frozenset()
        self.member: Member | None = None
        self.stages: set[int] = set()
        """Those at which requests may come to it."""
        self.boot = ""
        self.status: DeviceStatus | None = None

    @property
    def present(self) -> str:
        """The id of its run while it may be chosen; else ""."""
        member = self.member
        is_present = self.status is DeviceStatus.READY and member is not None and member.boot == self.boot
        return self.boot if is_present and self.stages else ""

    @property
    def life(self) -> str:
        """The id of its run while that goes on, be it to finish what is under way; "" once it is over, or unknown."""
        return self.boot if self.status in _ALIVE else ""


class Members:
    """The members of one pipeline that can run one revision of its bundle, by what they serve.

    Nothing here is of one origin alone, so that those of a simulated site share one. Whoever may publish announcements
    may publish thousands a second, so what an announcement costs does not depend on how many boards there are.
    """

    def __init__(self, revision: str) -> None:
        self._revision = revision
        self._boards: dict[str, _Board] = {}
        # Those that may be forgotten, the one that announced itself longest ago first.
        self._unproved: dict[str, None] = {}
        self._proved: dict[str, None] = {}
        self._at: dict[_Place, dict[str, Member]] = {}
        """Who is there, by place and device."""
        self._slots: dict[Slot, tuple[Member, ...]] = {}
        """What `of` has found, until it changes."""
        self._numbers = 0
        self._went_at: dict[int, float] = {}
        self.present = 0
        """How many boards are there."""

    def __len__(self) -> int:
        return len(self._boards)

    def __contains__(self, device: str) -> bool:
        """Whether a board has announced itself, be it there or not."""
        return device in self._boards

    # ------------------------------------------------------------ what is heard

    def announced(self, now: float, member: Member, stage: int, *, is_live: bool) -> MemberChange:
        """Take what a board says that it serves, on the topic of a stage; where there are too many, another one goes.

        One that comes live proves that the board is there, whatever the broker has kept of its state.
        """
        device = member.device
        board, pushed_out = self._boards.get(device), None
        is_new = board is None
        if board is None:
            if len(self._boards) >= MAX_MEMBERS:
                pushed_out = self._forget(now, next(iter(self._unproved or self._proved)))
            board = self._boards[device] = _Board(self._numbers)
            self._numbers += 1
        book = self._proved if device in self._proved else self._unproved
        book.pop(device, None)
        book[device] = None
        before = board.present, board.life
        if stage not in board.stages or board.member != member:
            board.member = member
            board.stages.add(stage)
        if is_live and board.boot != member.boot:
            board.boot, board.status = member.boot, DeviceStatus.READY
        change = self._change(now, device, board, before, listen="begin" if is_new else "")
        return change if pushed_out is None else replace(change, pushed_out=pushed_out)

    def answered(self, device: str) -> None:
        """Note that a board has answered a request: it works, and others are forgotten before it."""
        if device in self._unproved:
            del self._unproved[device]
            self._proved[device] = None

    def withdrawn(self, now: float, device: str, stage: int) -> MemberChange:
        """Take it that a board serves a stage no longer."""
        board = self._boards.get(device)
        if board is None or stage not in board.stages:
            return MemberChange(device=device)
        if board.stages == {stage}:
            return self._forget(now, device)
        before = board.present, board.life
        board.stages.discard(stage)
        self._went_at[stage] = now
        return self._change(now, device, board, before)

    def _forget(self, now: float, device: str) -> MemberChange:
        board = self._boards.pop(device)
        self._unproved.pop(device, None)
        self._proved.pop(device, None)
        self._move(device, board, frozenset())
        self._went_at |= dict.fromkeys(board.stages, now)
        self.present -= bool(board.present)
        return MemberChange(device=device, ended=True, listen="end")

    def state_changed(self, now: float, state: DeviceState) -> MemberChange:
        """Take the state of a board."""
        board = self._boards.get(state.device)
        if board is None:
            return MemberChange(device=state.device)
        if state.boot != board.boot and board.life and state.status not in _ALIVE:
            # The last word of an earlier run, or of another board of that name: it says nothing about this one.
            return MemberChange(device=state.device)
        before = board.present, board.life
        board.boot, board.status = state.boot, state.status
        return self._change(now, state.device, board, before)

    def _change(
        self, now: float, device: str, board: _Board, before: tuple[str, str], listen: Literal["begin", "end", ""] = ""
    ) -> MemberChange:
        (was_present, was_alive), present = before, board.present
        self._move(device, board, self._places(board))
        if present != was_present:
            self.present += bool(present) - bool(was_present)
            if was_present:
                for stage in board.stages:
                    self._went_at[stage] = now
        return MemberChange(
            device=device,
            ended=bool(was_alive) and was_alive != board.life,
            came=bool(present) and present != was_present,
            listen=listen,
        )

    def _places(self, board: _Board) -> frozenset[_Place]:
        """Return where a board is, as things are now."""
        member = board.member
        if member is None or not board.present:
            return frozenset()
        is_right = self._revision in member.revisions
        branches = {None, member.branch}
        return frozenset(
            ((stage, branch), is_right) for stage in board.stages if stage in member.stages for branch in branches
        )

    def _move(self, device: str, board: _Board, places: frozenset[_Place]) -> None:
        """Note where a board is from now on."""
        for place in board.places - places:
            del self._at[place][device]
            self._slots.pop(place[0], None)
        for place in places:
            there = self._at.setdefault(place, {})
            if board.member is not None and there.get(device) is not board.member:
                there[device] = board.member
                self._slots.pop(place[0], None)
        board.places = places

    # ------------------------------------------------------------ what is known

    def has_answered(self, device: str) -> bool:
        """Whether a board has answered a request since it first announced itself."""
        return device in self._proved

    def of(self, stage: int, branch: int | None = None) -> tuple[Member, ...]:
        """Return those that are there and serve a stage, or a branch of it."""
        slot = stage, branch
        found = self._slots.get(slot)
        if found is None:
            there = self._at.get((slot, True), {})
            by_age = sorted(there, key=lambda device: self._boards[device].number)
            found = self._slots[slot] = tuple([there[device] for device in by_age])
        return found

    def serve(self, stage: int, besides: Collection[str] = ()) -> bool:
        """Whether somebody is there who serves a stage, besides these."""
        return any(device not in besides for device in self._at.get(((stage, None), True), ()))

    def get(self, device: str) -> Member | None:
        """Return what a board serves, if it is there and can run the bundle."""
        board = self._boards.get(device)
        if board is None or not board.present or board.member is None or self._revision not in board.member.revisions:
            return None
        return board.member

    def went_at(self, stage: int) -> float:
        """Return when a board of a stage last went; minus infinity if none ever did."""
        return self._went_at.get(stage, -math.inf)

    def others(self, stage: int) -> list[Member]:
        """Return a few of those that are there and serve a stage, but have another bundle."""
        return list(islice(self._at.get(((stage, None), False), {}).values(), OTHERS_NAMED))
