"""The dispatcher: sends what is in custody to boards, holds it while there is none, and sends it again where it must.

Once more after a silence, which may be anybody's fault: a request has one such repetition. As often as it takes, within
bounds, where it is known that a board did not take it: that one has gone, moved or cannot be reached.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from distree.messages.request import StageMessage
from distree.node.attempts import Attempts
from distree.node.custody import Custody, CustodyEntry
from distree.node.effects import Output, RequestClosed, forward
from distree.node.routing import SETTLE_S, Route, Router
from distree.node.settings import NodeSettings

MAX_SENDINGS = 8
"""A request is sent no more often than this, however many boards go while it is with them."""


class Dispatcher:
    """Moves the entries of `custody` along the routes that `router` chooses; `resent` counts what was sent again."""

    def __init__(self, settings: NodeSettings, custody: Custody, router: Router, attempts: Attempts) -> None:
        self._settings = settings
        self._custody = custody
        self._router = router
        self._attempts = attempts
        self.resent = 0

    def route_for(self, now: float, entry: CustodyEntry, message: StageMessage) -> Route | None:
        """Return what is left of the route that features came by, or a new one; None if there is none."""
        left = _left(message)
        if left and self._router.holds(left):
            return left
        return self._router.route(now, message.stage, settles_by=_half_way(entry))

    def send(self, now: float, entry: CustodyEntry, message: StageMessage, route: Route) -> list[Output]:
        """Send features on by a route."""
        self.release(entry)
        context = message.context
        if context.route[-len(route) :] != route:
            context = self._attempts.routed(context, route)
            message = StageMessage(
                context=context, progress=message.progress, stage=message.stage, tensor=message.tensor
            )
        entry.context = context
        self._router.load(route, 1)
        self._custody.sent(entry, message, now)
        return forward(message)

    def hold(self, now: float, entry: CustodyEntry, message: StageMessage) -> None:
        """Keep features until there is a board for them."""
        self.release(entry)
        self._custody.hold(entry, message)
        if now < self._router.settles_at:
            # By then all boards that there are have said so, and those will have to do; it may be sooner than it seems.
            half_way = _half_way(entry)
            by = min(self._router.settles_at, now + SETTLE_S)
            self._custody.wait(entry, min(by, half_way) if now < half_way else by)

    def release(self, entry: CustodyEntry) -> None:
        """Note that an entry is with boards no longer, if it was."""
        if entry.state == "away" and entry.message is not None:
            self._router.load(_left(entry.message), -1)

    def send_again(
        self, now: float, entry: CustodyEntry, avoid: Collection[str] = (), *, is_repetition: bool = False
    ) -> list[Output]:
        """Send again what is with boards, or held, to those that may be chosen now; hold it where there are none.

        A repetition is fused by this board, as the one that fuses may be what fell silent. What a board has had before
        goes to one that is known to answer, if there is one.
        """
        message = entry.message
        if message is None or entry.context.attempt >= MAX_SENDINGS:
            self._custody.wait(entry, entry.deadline_at)
            return []
        # What is at work on the attempt before is to stop, unless it may yet answer.
        stops = self._settings.is_wide and not is_repetition
        outputs: list[Output] = [RequestClosed(request=entry.request)] if stops else []
        proved = bool(entry.context.route)
        route = self._router.route(now, message.stage, avoid, proved=proved, settles_by=_half_way(entry))
        if route is None:
            self.hold(now, entry, message)
            return outputs
        spent_s = min(entry.context.budget_s, now - entry.accepted_at)
        message = replace(message, progress=replace(message.progress, spent_s=spent_s))
        if not entry.context.route:
            return [*outputs, *self.send(now, entry, message, route)]
        self.release(entry)
        context = self._attempts.next(entry.context, route, fuses_here=is_repetition)
        anew = replace(message, context=context)
        self.resent += 1
        self._router.load(route, 1)
        self._custody.resent(entry, anew, now)
        return [*outputs, *forward(anew)]

    def silent(self, now: float, entry: CustodyEntry) -> list[Output]:
        """Nothing was heard of an entry in time: repeat it by another route, or wait if that was done before."""
        # A board that is slower than the others is not silent yet.
        until = entry.sent_at + 2 * self._router.expected_s(now, _left(entry.message) if entry.message else ())
        if now < until:
            self._custody.wait(entry, until)
            return []
        boards = self.boards_of(entry)
        suspects = self._router.suspects(boards)
        outputs = self._router.silent(now, suspects, entry.sent_at, is_last=entry.is_repeated)
        if entry.is_repeated:
            self._custody.wait(entry, entry.deadline_at)
            return outputs
        # Boards that never answered may be made up: their silence says nothing of how long the others take.
        self._custody.silent(entry, is_telling=self._router.have_answered(boards))
        return [*outputs, *self.send_again(now, entry, boards, is_repetition=True)]

    def board_gone(self, now: float, device: str) -> list[Output]:
        """A run of a board is over: send again what was with it."""
        outputs: list[Output] = []
        for entry in self._custody.beyond():
            if entry.state == "away" and device in self.boards_of(entry):
                outputs += self.send_again(now, entry)
        return outputs

    def send_held(self, now: float) -> list[Output]:
        """A board has come: send what was held for one."""
        outputs: list[Output] = []
        for entry in self._custody.beyond():
            if entry.state == "held":
                outputs += self.send_again(now, entry)
        return outputs

    def boards_of(self, entry: CustodyEntry) -> Collection[str]:
        """Return the boards that an entry is with, and the one that fuses for them: not those that it comes from."""
        message = entry.message
        if message is None:
            return ()
        left, fuser = _left(message), message.context.fuser
        boards = [device for stop in left for device in stop.boards if device]
        if fuser is not None and any(self._settings.width(stop.stage) for stop in left):
            boards.append(fuser)
        return dict.fromkeys(boards)  # each once, in order


def _half_way(entry: CustodyEntry) -> float:
    """Return when half of the time of an input is over: then it goes to those boards that there are."""
    return (entry.accepted_at + entry.deadline_at) / 2


def _left(message: StageMessage) -> Route:
    """Return what features have before them of their route."""
    route = message.context.route
    if not route or route[0].stage >= message.stage:
        return route
    return tuple([stop for stop in route if stop.stage >= message.stage])
