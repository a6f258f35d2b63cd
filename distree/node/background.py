"""What an origin sends of its own accord, and nobody waits for: audits, and probes of boards that are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from distree.messages.request import (
    Embedding,
    Guess,
    Outcome,
    Progress,
    Reason,
    RequestContext,
    StageMessage,
    Tensor,
)
from distree.node.attempts import Attempts
from distree.node.audits import AUDIT_BUDGET_S, AuditBooks, OpenAudit
from distree.node.custody import CustodyEntry
from distree.node.effects import Drop, Output, Publish, RequestClosed, Send, forward
from distree.node.exits import Plans
from distree.node.job import TRACED
from distree.node.probes import Probes
from distree.node.routing import Router
from distree.node.settings import NodeSettings

FindAttempt = Callable[[Outcome, Sequence[RequestContext], str], RequestContext]
"""Returns which of some attempts an outcome answers, and who may say so."""


class BackgroundRequests:
    """The audits and the probes of one origin. Neither blames a board for its silence."""

    def __init__(self, settings: NodeSettings, plans: Plans, attempts: Attempts, router: Router) -> None:
        self.audits = AuditBooks(settings)
        self._plans = plans
        self._attempts = attempts
        self._router = router
        self._probes = Probes(settings, attempts)

    def is_wanted(self, request: str) -> bool | None:
        """Whether an audit of this id is under way; None if there never was one. A probe always is."""
        if self._probes.find(request) is not None:
            return True
        return self.audits.is_open(request) if self.audits.knows(request) else None

    def next_due(self) -> float:
        """When `tick` is next worth a call; infinity if never."""
        due, probe_at = self.audits.next_due(), self._router.probe_at
        return due if due < probe_at else probe_at

    def tick(self, now: float) -> list[Output]:
        """Give up audits that took too long, and probe boards that are left out."""
        outputs: list[Output] = []
        while (audit := self.audits.pop_due(now)) is not None:
            outputs += self._lost(audit)
        for member in self._router.to_probe(now):
            outputs += self._probes.send(member, self._plans.rule)
        return outputs

    # ------------------------------------------------------------ audits

    def audit(self, now: float, entry: CustodyEntry, reason: Reason) -> list[Output]:
        """Find out what all exits say of an input that was drawn, now that it is answered."""
        rule, trace = entry.context.rule, entry.progress.trace
        if reason == "last" and self.audits.is_complete(trace):
            row = self.audits.row(entry.request, rule, trace, _missing_at(entry.progress.guess), entry.progress.hops)
            return [Publish(message=row)]
        context = self._attempts.background(rule, AUDIT_BUDGET_S)
        audit = OpenAudit(context=context, of=entry.request, tensor=entry.tensor, due_at=now + AUDIT_BUDGET_S)
        if not self.audits.open(audit):
            return [Publish(message=self.audits.lost_row(entry.request, rule))]
        return [first(context, TRACED, entry.tensor)]

    def send(self, now: float, message: StageMessage) -> list[Output]:
        """Send an audit on: to boards that answer, or not at all."""
        context, audit = message.context, self.audits.find(message.context.request)
        if audit is None:
            return [Drop(request=context.request, reason="late")]
        if context.stop_at(message.stage) is None:
            route = self._router.route(now, message.stage)
            if route is None:
                self.audits.close(context.request)
                return self._lost(audit)
            message = replace(message, context=self._attempts.routed(context, route))
            self.audits.routed(message.context)
        return forward(message)

    def give_up(self) -> list[Output]:
        """End all audits under way as lost: this board is about to stop."""
        outputs: list[Output] = []
        while (audit := self.audits.pop()) is not None:
            outputs += self._lost(audit)
        return outputs

    def _lost(self, audit: OpenAudit) -> list[Output]:
        row = self.audits.lost_row(audit.of, audit.context.rule)
        return [Publish(message=row), RequestClosed(request=audit.context.request)]

    # ------------------------------------------------------------ what comes back

    def receive(
        self, outcome: Outcome, *, is_complete: bool, find_attempt: FindAttempt, sender: str
    ) -> list[Output] | None:
        """Take the outcome of an audit or a probe; None for one of neither."""
        probe = self._probes.find(outcome.request)
        if probe is not None:
            find_attempt(outcome, (probe,), sender)
            return []
        if not self.audits.knows(outcome.request):
            return None
        audit = self.audits.find(outcome.request)
        if audit is None:
            return [Drop(request=outcome.request, reason="late")]
        find_attempt(outcome, (audit.context,), sender)
        self.audits.close(outcome.request)
        if not is_complete:
            return self._lost(audit)
        row = self.audits.row(audit.of, audit.context.rule, outcome.trace, _missing_at(outcome.guess), outcome.hops)
        return [Publish(message=row)]

    def embedded(self, message: Embedding) -> list[Output] | None:
        """Take an embedding that answers a probe; None for any other."""
        context = message.context
        return self._probes.answered(message) if self.is_probe(context.request, context.token) else None

    def is_probe(self, request: str, token: bytes) -> bool:
        """Whether a request is a probe, and the token its own."""
        probe = self._probes.find(request)
        return probe is not None and probe.token == token


def first(context: RequestContext, progress: Progress, tensor: Tensor) -> Send:
    """Return an input on its way to the first stage."""
    return Send(message=StageMessage(context=context, progress=progress, stage=0, tensor=tensor))


def _missing_at(guess: Guess | None) -> tuple[int, ...]:
    return () if guess is None else guess.missing
