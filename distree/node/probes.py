"""Probes: whether boards that did not answer are back. They carry no input: nothing but zeros of the right shape."""

from __future__ import annotations

from dataclasses import dataclass, field

from distree import tensors
from distree.messages.member import Member
from distree.messages.request import Decision, Embedding, RequestContext, RouteStop, Rule, StageMessage
from distree.node.attempts import Attempts
from distree.node.effects import Output, Publish
from distree.node.job import NOTHING_YET
from distree.node.settings import NodeSettings

MAX_REMEMBERED = 64
"""Probes remembered; an answer may be late."""

BUDGET_S = 10.0
"""Longest time a probe may take, in seconds."""

FUSING_BUDGET_S = 1.0
"""As long as a board that fuses waits for branches that never come."""


@dataclass(slots=True)
class Probes:
    """The probes of one origin, by request: the context of each."""

    settings: NodeSettings
    attempts: Attempts
    _sent: dict[str, RequestContext] = field(default_factory=dict)

    def find(self, request: str) -> RequestContext | None:
        """Return the context of a probe, if it is one that is known."""
        return self._sent.get(request)

    def send(self, member: Member, rule: Rule) -> list[Output]:
        """Send a probe to a member: through the stages that it serves in a row, or to its fusion heads."""
        settings = self.settings
        stage = next((k for k in member.stages if settings.travels(k) and k <= settings.last), None)
        if stage is None:
            return self._to_fuser(member, rule)
        branch = member.branch if settings.width(stage) else None
        boards = (member.device,) if branch is None else ("",) * branch + (member.device,)
        route = (RouteStop(stage=stage, boards=boards),)
        context = self.attempts.background(rule, BUDGET_S, route, None if branch is None else settings.device)
        message = StageMessage(
            context=context, progress=NOTHING_YET, stage=stage, tensor=tensors.zeros(*settings.inputs[stage])
        )
        return self._published(context, Publish(message=message, to=member.device))

    def _to_fuser(self, member: Member, rule: Rule) -> list[Output]:
        """Send an embedding of nothing: whoever fuses gives up at once on branches that are on no route."""
        settings = self.settings
        stage = next((k for k in range(settings.last + 1) if settings.starts_group(k)), None)
        if stage is None:
            return []
        route = (RouteStop(stage=stage, boards=(settings.device,)),)
        context = self.attempts.background(rule, FUSING_BUDGET_S, route, member.device)
        message = Embedding(
            context=context,
            progress=NOTHING_YET,
            stage=stage,
            branch=0,
            device=settings.device,
            tensor=tensors.zeros(*settings.embeddings[stage][0]),
        )
        return self._published(context, Publish(message=message, to=member.device))

    def answered(self, message: Embedding) -> list[Output]:
        """A branch has answered a probe: it need not keep its features."""
        if self.settings.ends_group(message.stage):
            return []
        context = message.context
        stop = Decision(request=context.request, token=context.token, stage=message.stage, go=False)
        return [Publish(message=stop, to=message.device)]

    def _published(self, context: RequestContext, probe: Publish) -> list[Output]:
        self._sent[context.request] = context
        if len(self._sent) > MAX_REMEMBERED:
            del self._sent[next(iter(self._sent))]
        return [probe]
