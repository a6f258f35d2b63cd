"""The origin: takes inputs into custody, sends them on, and answers each of them once, by its deadline."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from distree.errors import RemoteProtocolError
from distree.messages.request import Outcome, Progress, Reason, RequestContext, Rule, StageMessage, Tensor
from distree.messages.result import Result
from distree.messages.telemetry import OriginTelemetry
from distree.node.attempts import Attempts
from distree.node.audits import AUDIT_BUDGET_S, Audit, AuditBooks
from distree.node.circuits import Circuit, RoundTrip
from distree.node.custody import Closed, Custody, CustodyEvent, Entry
from distree.node.effects import Drop, Output, Publish, Send, Settled
from distree.node.exits import Plans
from distree.node.job import NOTHING_YET
from distree.node.probes import PROBE_BUDGET_S, Probes
from distree.node.settings import NodeSettings, OriginSettings
from distree.record import record

LATENCIES = 1024
"""Latencies kept per telemetry period; older ones of a busy period are left out."""


@record
class Accepted:
    """An input that its origin has accepted and not yet answered: what a spool keeps."""

    request: str
    name: str
    tensor: Tensor


class _Counters:
    def __init__(self, exits: int) -> None:
        self.accepted = self.answered = self.shed = self.dropped = self.resent = self.late = 0
        self.exits = [0] * exits
        self.reasons: dict[str, int] = {}
        self.latencies: deque[float] = deque(maxlen=LATENCIES)


class Origin:
    """The inputs for which this board answers.

    `settings` are those of the board, `own` those of its origin. `answered` names requests that an earlier run
    answered, so that the same again is dropped.
    """

    def __init__(self, settings: NodeSettings, own: OriginSettings, plans: Plans, answered: Sequence[str] = ()) -> None:
        self._settings = settings
        self._own = own
        self._plans = plans
        self._custody = Custody(RoundTrip(own.silence_floor_s))
        self._audits = AuditBooks(settings)
        self._probes = Probes()
        self._fuser_circuit = Circuit(limit=3)
        self._attempts = Attempts(settings, own, self._fuser_circuit)
        self._counters = _Counters(len(settings.inputs))
        self._is_local = 0 in settings.stages and settings.width(0) == 0
        """Whether this board can answer inputs at the first exit by itself."""
        self._custody.remember(answered)

    @property
    def pending(self) -> int:
        """Inputs in custody: accepted, and their result not yet acknowledged by the broker."""
        return len(self._custody.entries)

    def books(self) -> dict[str, int]:
        """How much is in each book, but for the bounded memories of what has ended."""
        return {**self._custody.books(), "audits": len(self._audits)}

    def holds(self, request: str) -> bool:
        """Whether `request` is in custody."""
        return request in self._custody.entries

    def room(self) -> int:
        """How many more inputs `accept` takes before it turns them away."""
        # While the boards beyond do not answer, this one answers alone: no need to wait for what is with them.
        local = self._custody.circuit.is_open and self._is_local
        return self._custody.room(self._own.pending_items, local=local)

    def is_wanted(self, request: str) -> bool | None:
        """Whether a request of this origin still needs an answer; None if it was never asked."""
        probed = self._probes.is_open(request)
        if probed is not None:
            return probed
        if self._audits.knows(request):
            return self._audits.is_open(request)
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
        if self._custody.room(self._own.pending_items, local=self._is_local) <= 0:
            if request is not None:
                self._custody.remember([request], name)
            result = self._result(context, name, "shed", NOTHING_YET, latency_s=0.0, final=True)
            return ident, [Publish(message=result, turned_away=True)]
        self._counters.accepted += 1
        audited = self._audits.draw(ident, self._plans.current.audit_rate)
        entry = Entry(
            name=name,
            accepted_at=now,
            deadline_at=now + budget_s,
            tensor=tensor,
            context=context,
            audited=audited,
            progress=replace(NOTHING_YET, trace=()) if audited else NOTHING_YET,
        )
        self._custody.open(entry)
        outputs: list[Output] = [_first(context, entry.progress, tensor)]
        if self._settings.is_wide and self._fuser_circuit.wants_probe(now):
            outputs.append(self._probe_fuser(now, entry))
        return ident, outputs

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
            return True, [Publish(message=message)]
        entry = self._custody.open_entry(message.context.request)
        if entry is None:
            return True, [Drop(request=message.context.request, reason="answered")]
        entry.progress = message.progress
        if entry.state == "here" and message.progress.guess is not None:
            left_s = message.context.budget_s - message.progress.spent_s
            if (self._custody.round_trip.mean_s or 0.0) >= left_s:
                self._custody.round_trip.fade()
                return False, self._answer(now, entry, "deadline")
            if self._custody.circuit.is_open or self._custody.away >= self._own.pending_items:
                return False, [*self._answer(now, entry, "fallback"), *self._probe(now, message)]
        self._custody.sent(entry, message, now)
        return True, [Publish(message=message)]

    def learned(self, request: str, progress: Progress) -> None:
        """Note the best guess so far, for the deadline."""
        entry = self._custody.open_entry(request)
        if entry is not None:
            entry.progress = progress

    def receive(self, now: float, outcome: Outcome) -> list[Output]:
        """Take an answer; RemoteProtocolError for one to what was never asked."""
        self._settings.check_guess(outcome.guess)
        is_complete = self._audits.is_complete(outcome.trace)
        if self._probes.is_open(outcome.request) is not None:
            return self._probed(now, outcome)
        if self._audits.knows(outcome.request):
            return self._audited(outcome, is_complete=is_complete)
        entry = self._custody.open_entry(outcome.request)
        if entry is None:
            return self._late(now, outcome)
        _attempt(outcome, entry.attempts)
        event: CustodyEvent = "answer"
        if entry.state == "away":
            event = "outcome"
            self._custody.heard(entry, now)
            self._fuser_heard(outcome)
            if outcome.reason == "fallback" and entry.context.attempt == 1 and entry.message is not None:
                # A board failed on it; another may share the stage, so the one repetition is spent at once.
                return self._resend(now, entry, entry.message)
        entry.progress = Progress(
            spent_s=outcome.spent_s,
            guess=outcome.guess or entry.progress.guess,
            memory=(),
            hops=outcome.hops,
            trace=outcome.trace if is_complete else None,
        )
        entry.missing = outcome.missing
        return self._answer(now, entry, outcome.reason, event)

    def _fuser_heard(self, outcome: Outcome) -> None:
        if any(hop.device == self._own.fuser for hop in outcome.hops):
            self._fuser_circuit.answered()

    def _late(self, now: float, outcome: Outcome) -> list[Output]:
        closed: Closed | None = self._custody.remembered(outcome.request)
        if closed is None:
            raise RemoteProtocolError("request", f"{outcome.request} was never asked here")
        context = _attempt(outcome, closed.attempts)
        self._counters.late += 1
        latency_s = 0.0 if closed.accepted_at is None else now - closed.accepted_at
        progress = replace(NOTHING_YET, guess=outcome.guess, hops=outcome.hops)
        late = self._result(
            context, closed.name, outcome.reason, progress, outcome.missing, latency_s=latency_s, final=False
        )
        return [Publish(message=late)]

    def refused(self, now: float, message: StageMessage) -> list[Output]:
        """The transport will never deliver features of an own input: answer with what there is."""
        entry = self._custody.open_entry(message.context.request)
        return [] if entry is None else self._answer(now, entry, "fallback")

    # ------------------------------------------------------------ answers

    def _answer(self, now: float, entry: Entry, reason: Reason, event: CustodyEvent = "answer") -> list[Output]:
        """Publish the one final result of a request and settle the books, but for the broker's acknowledgement."""
        self._custody.move(entry, event)
        counters, guess, latency_s = self._counters, entry.progress.guess, now - entry.accepted_at
        counters.answered += 1
        counters.latencies.append(latency_s)
        counters.reasons[reason] = counters.reasons.get(reason, 0) + 1
        if guess is not None:
            counters.exits[guess.exit] += 1
        result = self._result(
            entry.context, entry.name, reason, entry.progress, entry.missing, latency_s=latency_s, final=True
        )
        outputs: list[Output] = [Publish(message=result, settles=entry.request)]
        if self._settings.is_wide:
            outputs.append(Settled(request=entry.request))
        return [*outputs, *self._audit(now, entry, reason)] if entry.audited else outputs

    def _result(
        self,
        context: RequestContext,
        name: str,
        reason: Reason,
        progress: Progress,
        missing: tuple[int, ...] = (),
        *,
        latency_s: float,
        final: bool,
    ) -> Result:
        settings, guess = self._settings, progress.guess
        return Result(
            request=context.request,
            site=settings.site,
            pipeline=settings.pipeline,
            origin=settings.device,
            input=name,
            label=None if guess is None else settings.labels[guess.class_id],
            class_id=None if guess is None else guess.class_id,
            confidence=0.0 if guess is None else guess.confidence,
            exit=None if guess is None else guess.exit,
            reason=reason,
            final=final,
            late=not final,
            attempt=context.attempt,
            latency_s=latency_s,
            epoch=context.rule.epoch,
            model=settings.model,
            revision=settings.revision,
            hops=progress.hops,
            missing=missing,
        )

    def published(self, request: str) -> bool:
        """The broker has the result of `request`; True if its entry was closed by this."""
        return self._custody.close(request)

    # ------------------------------------------------------------ audits

    def _audit(self, now: float, entry: Entry, reason: Reason) -> list[Output]:
        """Find out what all exits say of an input that was drawn, now that it is answered."""
        rule, trace = entry.context.rule, entry.progress.trace
        if reason == "last" and self._audits.is_complete(trace):
            row = self._audits.row(entry.request, rule, trace, entry.missing, entry.progress.hops)
            return [Publish(message=row)]
        context = self._attempts.unasked(rule, AUDIT_BUDGET_S)
        audit = Audit(context=context, of=entry.request, tensor=entry.tensor, due_at=now + AUDIT_BUDGET_S)
        if not self._audits.open(audit):
            return [Publish(message=self._audits.lost_row(entry.request, rule))]
        return [_first(context, replace(NOTHING_YET, trace=()), entry.tensor)]

    def _audited(self, outcome: Outcome, *, is_complete: bool) -> list[Output]:
        """An audit has come to its end, or to nothing."""
        audit = self._audits.find(outcome.request)
        if audit is None:
            return [Drop(request=outcome.request, reason="late")]
        _attempt(outcome, (audit.context,))
        self._audits.close(outcome.request)
        if not is_complete:
            return self._audit_lost(audit)
        row = self._audits.row(audit.of, audit.context.rule, outcome.trace, outcome.missing, outcome.hops)
        return [Publish(message=row)]

    def _audit_lost(self, audit: Audit) -> list[Output]:
        row = self._audits.lost_row(audit.of, audit.context.rule)
        return [Publish(message=row), Settled(request=audit.context.request)]

    def give_up_audits(self) -> list[Output]:
        """End all audits under way as lost: this board is about to stop."""
        outputs: list[Output] = []
        while (audit := self._audits.pop()) is not None:
            outputs += self._audit_lost(audit)
        return outputs

    # ------------------------------------------------------------ probes

    def _probe(self, now: float, message: StageMessage) -> list[Output]:
        """Send a copy of what was answered here instead, if it is time to see whether the boards beyond are back."""
        if not self._custody.circuit.wants_probe(now):
            return []
        context = self._probe_context(now, message.context.rule, message.context.fuser)
        progress = replace(message.progress, spent_s=0.0, hops=(), trace=None)
        return [Publish(message=replace(message, context=context, progress=progress))]

    def _probe_fuser(self, now: float, entry: Entry) -> Send:
        """Send a copy of an input by way of the board that fused before it fell silent."""
        context = self._probe_context(now, entry.context.rule, self._own.fuser)
        return _first(context, NOTHING_YET, entry.tensor)

    def _probe_context(self, now: float, rule: Rule, fuser: str | None) -> RequestContext:
        context = self._attempts.unasked(rule, PROBE_BUDGET_S, fuser=fuser)
        self._probes.open(now, context)
        return context

    def _probed(self, now: float, outcome: Outcome) -> list[Output]:
        """A probe came back: it proves something if it went all the way, and in time for an answer."""
        _attempt(outcome, (self._probes.context(outcome.request),))
        took_s = self._probes.close(now, outcome.request)
        if outcome.reason == "last" and took_s is not None and took_s <= self._own.deadline_s:
            self._custody.circuit.answered()
            self._fuser_heard(outcome)
        return []

    # ------------------------------------------------------------ the connection, and time

    def reconnected(self) -> None:
        """This board is connected again: what went unanswered may have been its own connection's fault."""
        self._custody.circuit.answered()

    def next_due(self) -> float:
        """When `tick` is next worth a call; infinity if never."""
        return min(self._custody.agenda.next_due(), self._audits.next_due())

    def tick(self, now: float) -> list[Output]:
        """Do what is due: deadlines, silent hops, audits that took too long."""
        outputs: list[Output] = []
        while (entry := self._custody.pop_due(now)) is not None:
            outputs += self._due(now, entry)
        while (audit := self._audits.pop_due(now)) is not None:
            outputs += self._audit_lost(audit)
        return outputs

    def _due(self, now: float, entry: Entry) -> list[Output]:
        if now < entry.deadline_at:
            if entry.context.attempt == 1 and entry.message is not None:
                return self._resend(now, entry, entry.message)
            self._custody.unheard(entry, now)
            return []
        reason = self._custody.reason_of_silence(entry)
        if entry.state == "away":
            self._custody.circuit.failed(now)
        return self._answer(now, entry, reason, "deadline")

    def _resend(self, now: float, entry: Entry, message: StageMessage) -> list[Output]:
        before = entry.context
        if before.fuser not in (None, self._settings.device):
            # The board that fuses may be what fell silent.
            self._fuser_circuit.failed(now)
        context = self._attempts.next(before)
        spent_s = min(before.budget_s, now - entry.accepted_at)
        again = replace(message, context=context, progress=replace(message.progress, spent_s=spent_s))
        self._counters.resent += 1
        self._custody.resent(entry, again, now)
        return [Publish(message=again)]

    def snapshot(self) -> tuple[Accepted, ...]:
        """Return the inputs that are not yet answered."""
        return tuple(
            Accepted(request=entry.request, name=entry.name, tensor=entry.tensor)
            for entry in self._custody.entries.values()
            if entry.state != "answered"
        )

    def telemetry(self) -> OriginTelemetry:
        """Report the counters since boot and the latencies since the last report."""
        counters, ordered = self._counters, sorted(self._counters.latencies)
        counters.latencies.clear()
        return OriginTelemetry(
            accepted=counters.accepted,
            answered=counters.answered,
            shed=counters.shed,
            dropped=counters.dropped,
            resent=counters.resent,
            late=counters.late,
            pending=len(self._custody.entries),
            exits=tuple(counters.exits),
            reasons=dict(counters.reasons),
            latency_p50_s=_quantile(ordered, 0.50),
            latency_p95_s=_quantile(ordered, 0.95),
            latency_max_s=_quantile(ordered, 1.0),
            audits_drawn=self._audits.drawn,
            audits_lost=self._audits.lost,
        )


def _first(context: RequestContext, progress: Progress, tensor: Tensor) -> Send:
    """Return an input on its way to the first stage."""
    return Send(message=StageMessage(context=context, progress=progress, stage=0, tensor=tensor))


def _attempt(outcome: Outcome, attempts: Sequence[RequestContext]) -> RequestContext:
    """Return the attempt that an outcome answers; RemoteProtocolError("token") if it is none of these."""
    for context in attempts:
        if context.token == outcome.token:
            return context
    raise RemoteProtocolError(
        "token", f"{outcome.request}: answers no attempt of this run, but one before a restart, or is forged"
    )


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
