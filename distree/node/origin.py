"""The origin: takes inputs into custody, sends them to boards of its choice, and answers each of them once, in time."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from distree.errors import RESTRICT, RemoteProtocolError
from distree.messages.device import DeviceState
from distree.messages.member import Member
from distree.messages.request import (
    Decision,
    Embedding,
    Outcome,
    Progress,
    Reason,
    RequestContext,
    StageMessage,
    Tensor,
)
from distree.messages.telemetry import OriginTelemetry
from distree.node.answers import board_of_branch, result_of
from distree.node.attempts import Attempts
from distree.node.background import BackgroundRequests, first
from distree.node.counters import OriginCounters
from distree.node.custody import ClosedEntry, Custody, CustodyEntry, CustodyEvent
from distree.node.dispatch import Dispatcher
from distree.node.effects import Drop, Listen, Output, Publish, RequestClosed
from distree.node.exits import Plans
from distree.node.job import NOTHING_YET, TRACED
from distree.node.members import MemberChange, Members
from distree.node.round_trip import RoundTrip
from distree.node.routing import Router
from distree.node.settings import NodeSettings, OriginSettings
from distree.record import record


@record
class AcceptedInput:
    """An input that its origin has accepted and not yet answered: what a spool keeps."""

    request: str
    name: str
    tensor: Tensor


class OriginWorker:
    """The inputs for which this board answers.

    `settings` are those of the board, `own` those of its origin. `answered` names requests that an earlier run
    answered, so that the same again is dropped. `members` are the boards to choose from.
    """

    def __init__(
        self,
        settings: NodeSettings,
        own: OriginSettings,
        plans: Plans,
        members: Members,
        chance: random.Random,
        answered: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._own = own
        self._plans = plans
        self._members = members
        self._router = Router(settings, own.fuser, members, chance)
        self._attempts = Attempts(settings, own, self._router)
        self._custody = Custody(RoundTrip(own.min_retry_s))
        self._dispatcher = Dispatcher(settings, self._custody, self._router, self._attempts)
        self._background = BackgroundRequests(settings, plans, self._attempts, self._router)
        self._counters = OriginCounters(len(settings.inputs))
        self._is_local = 0 in settings.stages and settings.width(0) == 0
        """Whether this board can answer inputs at the first exit by itself."""
        self._is_alone = False
        """Whether a stage has no board that may be chosen, and not only because this one has just connected."""
        self._custody.remember(answered)

    @property
    def pending(self) -> int:
        """Inputs in custody: accepted, and their result not yet acknowledged by the broker."""
        return len(self._custody.entries)

    def books(self) -> dict[str, int]:
        """How much is in each book, but for the bounded memories of what has ended."""
        return {**self._custody.books(), **self._router.books(), "audits": len(self._background.audits)}

    def holds(self, request: str) -> bool:
        """Whether `request` is in custody."""
        return request in self._custody.entries

    def room(self) -> int:
        """How many more inputs `accept` takes before it turns them away."""
        # While the boards beyond do not answer, this one answers alone: no need to wait for what is with them.
        return self._custody.room(self._own.max_pending, local=self._is_local and self._is_alone)

    def is_wanted(self, request: str) -> bool | None:
        """Whether a request of this origin still needs an answer; None if it was never asked."""
        if (is_wanted := self._background.is_wanted(request)) is not None:
            return is_wanted
        if self._custody.open_entry(request) is not None:
            return True
        return None if self._custody.remembered(request) is None else False

    # ------------------------------------------------------------ inputs

    def accept(
        self, now: float, name: str, tensor: Tensor, *, deadline_s: float | None, request: str | None, attempt: int
    ) -> tuple[str, list[Output]]:
        """Take an input into custody, or turn it away; return its request id. See `StageNode.accept`."""
        budget_s = self._own.deadline_s if deadline_s is None else deadline_s
        ident = request or self._attempts.request_id()
        if self._custody.remembered(ident) is not None:
            return ident, [Drop(request=ident, reason="duplicate")]
        context = self._attempts.first(ident, self._plans.rule, budget_s, attempt=attempt)
        if self._custody.room(self._own.max_pending, local=self._is_local) <= 0:
            if request is not None:
                self._custody.remember([request], name)
            result = result_of(self._settings, context, name, "shed", NOTHING_YET, latency_s=0.0, final=True)
            return ident, [Publish(message=result, turned_away=True)]
        self._counters.accepted += 1
        audited = self._background.audits.draw(ident, self._plans.current.audit_rate)
        entry = CustodyEntry(
            name=name,
            accepted_at=now,
            deadline_at=now + budget_s,
            tensor=tensor,
            context=context,
            audited=audited,
            progress=TRACED if audited else NOTHING_YET,
        )
        self._custody.open(entry)
        return ident, [first(context, entry.progress, tensor)]

    def turned_away(self, *, told: bool) -> None:
        """Count an input that was turned away: its result is with the broker, or was dropped."""
        self._counters.shed += told
        self._counters.dropped += not told

    # ------------------------------------------------------------ on its way

    def send(self, now: float, message: StageMessage) -> tuple[bool, list[Output]]:
        """Send features of an own input to other boards, and expect an outcome; or answer it here instead.

        Returns whether the input is still on its way, and what is to be done.
        """
        if message.context.audit:
            return True, self._background.send(now, message)
        entry = self._custody.open_entry(message.context.request)
        if entry is None:
            return True, [Drop(request=message.context.request, reason="answered")]
        entry.progress = message.progress
        can_answer = entry.state == "here" and message.progress.guess is not None
        left_s = message.context.budget_s - message.progress.spent_s
        if can_answer:
            if (self._custody.round_trip.mean_s or 0.0) >= left_s:
                self._custody.round_trip.fade()
                return False, self._answer(now, entry, "deadline")
            if self._custody.away >= self._own.max_pending:
                return False, self._answer(now, entry, "fallback")
        route = self._dispatcher.route_for(now, entry, message)
        if route is not None:
            if can_answer and self._router.is_too_long(now, route, left_s):
                # What would come too late would keep what comes after it from being in time.
                return False, self._answer(now, entry, "deadline")
            return True, self._dispatcher.send(now, entry, message, route)
        if can_answer and not self._router.awaits(now, message.stage):
            return False, [*self._answer(now, entry, "fallback"), *self._check_boards(now)]
        self._dispatcher.hold(now, entry, message)
        self._is_alone = self._router.is_alone(now)
        return True, []

    def update_guess(self, request: str, progress: Progress) -> None:
        """Note the best guess so far, for the deadline."""
        entry = self._custody.open_entry(request)
        if entry is not None:
            entry.progress = progress

    # ------------------------------------------------------------ what boards say

    def receive(self, now: float, outcome: Outcome, sender: str) -> list[Output]:
        """Take what another board says of a request; RemoteProtocolError for one that was never asked.

        `sender` is the board that says it.
        """
        self._settings.check_guess(outcome.guess)
        is_complete = self._background.audits.is_complete(outcome.trace)
        background = self._background.receive(outcome, is_complete=is_complete, find_attempt=self._asked, sender=sender)
        if background is not None:
            if outcome.reason == "moved":
                return background
            devices = dict.fromkeys((sender, *(hop.device for hop in outcome.hops)))
            return [*background, *self._resume(now, self._heard_of(now, devices))]
        entry = self._custody.open_entry(outcome.request)
        if entry is None:
            return self._late(now, outcome, sender)
        context = self._asked(outcome, entry.attempts, sender)
        told = self._heard(now, outcome, sender)
        outputs: list[Output] = []
        is_current = context is entry.context and entry.state == "away"
        if outcome.reason == "moved" or outcome.reason == "unreachable":
            outputs += self._turned_back(now, outcome, sender)
            if is_current:
                outputs += self._dispatcher.send_again(now, entry)
            return [*outputs, *self._resume(now, told)]
        event: CustodyEvent = "answer"
        if entry.state != "here":
            event = "outcome"
            self._custody.heard(entry, now)
            if outcome.reason == "fallback" and is_current and not entry.is_repeated:
                # A board failed on it; another may serve the stage, so the one repetition is spent at once.
                self._custody.silent(entry, is_telling=True)
                return [*self._dispatcher.send_again(now, entry, (sender,)), *self._resume(now, told)]
        if outcome.guess is not None and outcome.guess.missing:
            outputs += self._missed(now, entry, context, outcome.guess.missing)
        entry.progress = Progress(
            spent_s=outcome.spent_s,
            guess=outcome.guess or entry.progress.guess,
            memory=(),
            hops=outcome.hops,
            trace=outcome.trace if is_complete else None,
        )
        return [*self._answer(now, entry, outcome.reason, event), *outputs, *self._resume(now, told)]

    def _asked(self, outcome: Outcome, attempts: Sequence[RequestContext], sender: str) -> RequestContext:
        """Return the attempt that an outcome answers; RemoteProtocolError if it is none of these, or not its to say."""
        for context in attempts:
            if context.token == outcome.token:
                break
        else:
            raise RemoteProtocolError(
                "token", f"{outcome.request}: answers an attempt from before a restart, or is forged", RESTRICT
            )
        if sender != self._settings.device and not context.names(sender):
            raise RemoteProtocolError("sender", f"{outcome.request}: {sender} is not on its route", RESTRICT)
        if outcome.reason == "unreachable" and not context.names(outcome.board or ""):
            raise RemoteProtocolError("board", f"{outcome.request}: {outcome.board} is not on its route", RESTRICT)
        return context

    def _heard(self, now: float, outcome: Outcome, sender: str) -> list[Output]:
        """Note who has a part in an outcome, and how long it took them."""
        if outcome.reason == "moved":
            return []
        return self._router.measured(now, outcome.hops) + self._router.heard(now, sender)

    def _heard_of(self, now: float, devices: Iterable[str]) -> list[Output]:
        """Note that boards were heard, in something that is no measure of them."""
        return [tell for device in devices for tell in self._router.heard(now, device)]

    def _resume(self, now: float, told: list[Output]) -> list[Output]:
        """Send what was held to boards that answer again, as `told` says of them."""
        return [*told, *self._dispatcher.send_held(now), *self._check_boards(now)] if told else []

    def _check_boards(self, now: float) -> list[Output]:
        """See whether this board is left alone, and say which stages nobody serves."""
        self._is_alone = self._router.is_alone(now)
        return self._router.unserved(now)

    def _turned_back(self, now: float, outcome: Outcome, sender: str) -> list[Output]:
        """A board did not take a request, or could not pass it on."""
        if outcome.reason == "moved":
            self._router.moved(sender)
            return []
        return self._router.unreachable(now, outcome.board or "")

    def _missed(
        self, now: float, entry: CustodyEntry, context: RequestContext, missing: tuple[int, ...]
    ) -> list[Output]:
        """Boards whose branches were not heard, though others of the same stage were."""
        boards = [board_of_branch(self._settings, context, branch) for branch in missing]
        return self._router.silent(now, filter(None, boards), entry.sent_at)

    def embedded(self, now: float, message: Embedding) -> tuple[bool, list[Output]]:
        """Note that a branch was heard; return whether it answers a probe, and is not to be fused."""
        heard = self._heard_of(now, (message.device,))
        probed = self._background.embedded(message)
        return probed is not None, [*(probed or ()), *self._resume(now, heard)]

    def decided(self, now: float, decision: Decision, sender: str) -> list[Output] | None:
        """Take a decision that answers a probe of a board that fuses; None for any other."""
        if not self._background.is_probe(decision.request, decision.token):
            return None
        return self._resume(now, self._heard_of(now, (sender,)))

    def unreachable(self, now: float, message: StageMessage | Embedding, boards: Sequence[str]) -> list[Output]:
        """The broker says that nobody reads what this board has just sent to others, of an own request."""
        outputs = [tell for device in boards for tell in self._router.unreachable(now, device)]
        entry = self._custody.open_entry(message.context.request)
        if entry is None or entry.state != "away" or entry.context.token != message.context.token:
            return outputs
        return [*outputs, *self._dispatcher.send_again(now, entry)]

    def _late(self, now: float, outcome: Outcome, sender: str) -> list[Output]:
        closed: ClosedEntry | None = self._custody.remembered(outcome.request)
        if closed is None:
            raise RemoteProtocolError("request", f"request {outcome.request} is not known here", RESTRICT)
        context = self._asked(outcome, closed.attempts, sender)
        outputs = self._resume(now, self._heard(now, outcome, sender))
        if outcome.reason == "moved" or outcome.reason == "unreachable":
            return outputs
        self._counters.late += 1
        latency_s = 0.0 if closed.accepted_at is None else now - closed.accepted_at
        progress = replace(NOTHING_YET, guess=outcome.guess, hops=outcome.hops)
        late = result_of(
            self._settings,
            context,
            closed.name,
            outcome.reason,
            progress,
            latency_s=latency_s,
            final=False,
        )
        return [*outputs, Publish(message=late)]

    def refused(self, now: float, message: StageMessage) -> list[Output]:
        """The transport will never deliver features of an own input: answer with what there is."""
        entry = self._custody.open_entry(message.context.request)
        return [] if entry is None else self._answer(now, entry, "fallback")

    # ------------------------------------------------------------ which boards there are

    def announced(self, now: float, member: Member, stage: int, *, is_live: bool) -> list[Output]:
        """Take what a board says that it serves; one that says so now is heard, too."""
        if not is_live:
            self._router.settle()
        outputs = self._changed(now, self._members.announced(now, member, stage, is_live=is_live))
        return [*outputs, *self._resume(now, self._heard_of(now, (member.device,)))] if is_live else outputs

    def withdrawn(self, now: float, device: str, stage: int) -> list[Output]:
        """Take it that a board serves a stage no longer."""
        return self._changed(now, self._members.withdrawn(now, device, stage))

    def state_changed(self, now: float, state: DeviceState) -> list[Output]:
        """Take the state of a board that has announced itself."""
        return self._changed(now, self._members.state_changed(now, state))

    def _changed(self, now: float, change: MemberChange) -> list[Output]:
        outputs = [] if change.pushed_out is None else self._changed(now, change.pushed_out)
        if change.listen:
            outputs.append(Listen(device=change.device, on=change.listen == "begin"))
        return [*outputs, *self.changed(now, change)]

    def changed(self, now: float, change: MemberChange) -> list[Output]:
        """Do what follows from what became of a board: where others keep the books on members, they say so here."""
        outputs = self._dispatcher.board_gone(now, change.device) if change.ended else []
        self._router.changed(change)
        if change.came:
            outputs += self._dispatcher.send_held(now)
            outputs += self._check_boards(now)
        return outputs

    def depends_on(self, device: str) -> bool:
        """Whether it matters here what becomes of a board."""
        return self._custody.away > 0 or self._router.knows(device)

    @property
    def lacks_boards(self) -> bool:
        """Whether a stage has no board that may be chosen."""
        return self._router.lacks_boards()

    # ------------------------------------------------------------ answers

    def _answer(self, now: float, entry: CustodyEntry, reason: Reason, event: CustodyEvent = "answer") -> list[Output]:
        """Publish the one final result of a request and settle the books, but for the broker's acknowledgement."""
        self._dispatcher.release(entry)
        self._custody.move(entry, event)
        guess, latency_s = entry.progress.guess, now - entry.accepted_at
        self._counters.answer(latency_s, reason, None if guess is None else guess.exit)
        said = entry.context, entry.name, reason, entry.progress
        result = result_of(self._settings, *said, latency_s=latency_s, final=True)
        outputs: list[Output] = [Publish(message=result, settles=entry.request)]
        if self._settings.is_wide:
            outputs.append(RequestClosed(request=entry.request))
        return [*outputs, *self._background.audit(now, entry, reason)] if entry.audited else outputs

    def published(self, request: str) -> bool:
        """The broker has the result of `request`; True if its entry was closed by this."""
        return self._custody.close(request)

    def give_up_audits(self) -> list[Output]:
        """End all audits under way as lost: this board is about to stop."""
        return self._background.give_up()

    # ------------------------------------------------------------ the connection, and time

    def connected(self, now: float) -> None:
        """This board has connected, for the first time or again."""
        self._router.connected(now)

    def next_due(self) -> float:
        """When `tick` is next worth a call; infinity if never."""
        due, background = self._custody.agenda.next_due(), self._background.next_due()
        return due if due < background else background

    def tick(self, now: float, owed_since: float) -> list[Output]:
        """Do what is due: deadlines, silences, audits that took too long, probes.

        `owed_since` is since when the broker has owed this board an acknowledgement: if that is for half as long as a
        board has been silent, or longer, the silence may be this board's own.
        """
        outputs: list[Output] = []
        while (entry := self._custody.pop_due(now)) is not None:
            outputs += self._due(now, entry, is_doubtful=owed_since <= (entry.sent_at + now) / 2)
        return [*outputs, *self._background.tick(now)]

    def _due(self, now: float, entry: CustodyEntry, *, is_doubtful: bool) -> list[Output]:
        if now < entry.deadline_at:
            if entry.state == "held":
                self._is_alone = self._router.is_alone(now)
                return self._dispatcher.send_again(now, entry)
            if is_doubtful:
                self._custody.wait(entry, now + self._own.min_retry_s)
                return []
            outputs = self._dispatcher.silent(now, entry)
            self._is_alone = self._router.is_alone(now)
            return outputs
        outputs = []
        if entry.state == "away" and not is_doubtful:
            suspects = self._router.suspects(self._dispatcher.boards_of(entry))
            outputs = self._router.silent(now, suspects, entry.sent_at, is_last=entry.is_repeated)
        elif entry.state == "held":
            outputs = self._check_boards(now)
        return [*self._answer(now, entry, self._custody.reason_of_silence(entry), "deadline"), *outputs]

    def snapshot(self) -> tuple[AcceptedInput, ...]:
        """Return the inputs that are not yet answered."""
        return tuple(
            AcceptedInput(request=entry.request, name=entry.name, tensor=entry.tensor)
            for entry in self._custody.entries.values()
            if entry.state != "answered"
        )

    def telemetry(self) -> OriginTelemetry:
        """Report the counters since boot and the latencies since the last report."""
        audits = self._background.audits
        return replace(
            self._counters.report(),
            resent=self._dispatcher.resent,
            pending=len(self._custody.entries),
            audits_drawn=audits.drawn,
            audits_lost=audits.lost,
            members=self._members.present,
            left_out=self._router.left_out,
        )
