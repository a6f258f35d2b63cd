"""Fusing: gathers the embeddings of a wide stage's branches, and decides at its exit whether everyone stops.

One *gathering* per attempt of a request:

    gathering ── fusing ── gathering (the next exit) ── … ── ended

A branch that has not been heard `branch_timeout_s` after the first one is left out, its embedding masked. One for which
the route names no board is not waited for at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from distree import criteria, tensors
from distree.criteria.base import ExitEvidence
from distree.errors import RESTRICT, SAME_BUNDLE, RemoteProtocolError
from distree.messages.request import Decision, Embedding, Guess, Hop, Outcome, Progress, Reason, StageMessage
from distree.messages.telemetry import FusionTelemetry
from distree.node.effects import Drop, Fuse, GuessUpdate, Output, Send
from distree.node.exits import CriterionCache, Plans, too_late
from distree.node.gathering import FusionCounters, Gathering, Key
from distree.node.round_trip import RoundTrip
from distree.node.settings import NodeSettings
from distree.node.timers import Agenda
from distree.segments import SegmentOutput

MAX_ENDED = 1024
"""Ended gatherings remembered, to tell a late embedding from one of an unknown request."""

SET_FUSE = "set fuse: true on this board, or correct origin.fuser of that one"
"""The remedy where an origin names a board that does not fuse for others."""


class Fuser:
    """The board that fuses: gatherings by attempt."""

    def __init__(self, settings: NodeSettings, criteria: CriterionCache, plans: Plans, keys: Iterator[int]) -> None:
        self._settings = settings
        self._criteria = criteria
        self._plans = plans
        self._keys = keys
        self._gatherings: OrderedDict[Key, Gathering] = OrderedDict()
        self._ended: OrderedDict[Key, None] = OrderedDict()
        self._agenda: Agenda[Key] = Agenda()
        self._fusing: dict[int, Gathering] = {}
        # From the word to go on to the next exit's embedding.
        self._step = RoundTrip(settings.branch_timeout_s)
        wide = [k for k in range(len(settings.inputs)) if settings.width(k) > 0]
        self._counters = {k: FusionCounters(settings.width(k)) for k in wide}
        self._audit_counters = {k: FusionCounters(settings.width(k)) for k in wide}

    @property
    def has_work(self) -> bool:
        """Whether anything is gathered."""
        return bool(self._gatherings)

    def books(self) -> dict[str, int]:
        """How much is in each book, but for the bounded memories of what has ended."""
        return {"gatherings": len(self._gatherings), "fusing": len(self._fusing), "fusion_times": len(self._agenda)}

    # ------------------------------------------------------------ embeddings in

    def receive(self, now: float, message: Embedding, *, is_wanted: bool | None) -> list[Output]:
        """Take an embedding; RemoteProtocolError for one that does not belong here.

        `is_wanted` says of a request of this board's own whether it still needs an answer, None if it was never asked;
        True for those of others.
        """
        self._check(message)
        key = (message.context.token, self._settings.group_of(message.stage))
        gathering = self._gatherings.get(key)
        if gathering is None:
            if is_wanted is None:
                raise RemoteProtocolError("request", f"request {message.context.request} is not known here", RESTRICT)
            if key in self._ended or not is_wanted:
                return self._too_late(message, go=False)
            if not self._settings.starts_group(message.stage):
                raise RemoteProtocolError(
                    "request", f"{message.context.request}: nothing arrived for it at an earlier exit", RESTRICT
                )
            gathering, outputs = self._open(now, message)
            if gathering.state == "ended":  # by what was pushed out for it: its own first attempt
                return [*outputs, *self._too_late(message, go=False)]
            return [*outputs, *self._take(now, gathering, message)]
        gathering.boards[message.branch] = message.device
        if message.stage < gathering.stage:
            # It missed a decision to go on; it may still catch up.
            return self._too_late(message, go=True)
        if message.stage > gathering.stage:
            gathering.ahead[message.stage, message.branch] = message
            return []
        return self._take(now, gathering, message)

    def knows(self, message: Embedding) -> bool:
        """Whether an attempt is gathered here, or has been."""
        key = (message.context.token, self._settings.group_of(message.stage))
        return key in self._gatherings or key in self._ended

    def _check(self, message: Embedding) -> None:
        settings, context = self._settings, message.context
        if context.fuser != settings.device or not (settings.fuses or context.origin == settings.device):
            raise RemoteProtocolError("fuser", f"this board does not fuse for {context.origin}", SET_FUSE)
        settings.check_revision(context.revision)
        if message.branch >= settings.width(message.stage):
            raise RemoteProtocolError("branch", f"stage {message.stage} has no branch {message.branch}", SAME_BUNDLE)
        stop = context.stop_at(settings.group_of(message.stage))
        if stop is None or stop.boards[message.branch : message.branch + 1] != (message.device,):
            raise RemoteProtocolError("route", f"{context.request}: {message.device} is not on its route", RESTRICT)
        self._criteria.check(context.rule)
        dtype, shape = settings.embeddings[message.stage][message.branch]
        # Unpacked here, so that a payload that does not fit is reported as its sender's fault.
        tensors.decode(message.tensor, dtype=dtype, shape=shape)
        settings.check_guess(message.progress.guess)

    def _too_late(self, message: Embedding, *, go: bool) -> list[Output]:
        context = message.context
        self._count(message.stage, audit=context.audit).late += 1
        outputs: list[Output] = [Drop(request=context.request, reason="late")]
        if self._settings.ends_group(message.stage) or (go and context.eager):
            return outputs
        decision = Decision(request=context.request, token=context.token, stage=message.stage, go=go)
        return [*outputs, Send(message=decision, to=message.device)]

    def _count(self, stage: int, *, audit: bool) -> FusionCounters:
        """Return the counters of a stage: audits are not to be mistaken for traffic."""
        return (self._audit_counters if audit else self._counters)[stage]

    def _open(self, now: float, message: Embedding) -> tuple[Gathering, list[Output]]:
        gathering = Gathering.of(message, now)
        self._gatherings[gathering.key] = gathering
        outputs: list[Output] = []
        while len(self._gatherings) > self._settings.inbox_max_messages:
            oldest = next(iter(self._gatherings.values()))
            audit = next((one for one in self._gatherings.values() if one.context.audit), oldest)
            outputs += self._give_up(now, audit, "shed")
        return gathering, outputs

    def _take(self, now: float, gathering: Gathering, message: Embedding) -> list[Output]:
        branch, is_audit = message.branch, gathering.context.audit
        if gathering.state == "fusing":
            # Left out, but its board learns of the decision like the others.
            if branch not in gathering.heard:
                self._count(gathering.stage, audit=is_audit).late += 1
            return []
        if not gathering.heard:
            # Audits wait where there is live work: a branch that lets them wait is not gone.
            patience_s = gathering.left(now) if is_audit else self._settings.branch_timeout_s
            self._agenda.set(gathering.key, now + patience_s)
            if gathering.since and not is_audit:
                self._step.sample(now - gathering.since)
        if branch not in gathering.heard:
            gathering.heard[branch] = message.tensor
            gathering.add_hops(*message.progress.hops[-1:])
        is_complete = all(awaited in gathering.heard for awaited in self._awaited(gathering))
        return [self._fuse(now, gathering)] if is_complete else []

    def _awaited(self, gathering: Gathering) -> list[int]:
        """Return the branches that are worth waiting for."""
        if not self._settings.starts_group(gathering.stage):
            # Those that were silent so far have nothing to go on from.
            return list(gathering.boards)
        stop = gathering.context.stop_at(gathering.stage)
        return [] if stop is None else [branch for branch, device in enumerate(stop.boards) if device]

    # ------------------------------------------------------------ fusing

    def _fuse(self, now: float, gathering: Gathering) -> Fuse:
        gathering.move("fuse")
        self._agenda.drop(gathering.key)
        gathering.since = now
        width = self._settings.width(gathering.stage)
        counters = self._count(gathering.stage, audit=gathering.context.audit)
        missing = tuple(branch for branch in range(width) if branch not in gathering.heard)
        if gathering.missing not in (None, missing):
            # No thresholds are meant for exits of which some have heard more branches than others.
            gathering.trace = None
        gathering.missing = missing
        for branch in missing:
            counters.missing[branch] += 1
        key = next(self._keys)
        self._fusing[key] = gathering
        embeddings = tuple(gathering.heard.get(branch) for branch in range(width))
        return Fuse(key=key, stage=gathering.stage, embeddings=embeddings)

    def is_fusing(self, key: int) -> bool:
        """Whether `key` is that of a Fuse under way."""
        return key in self._fusing

    def completed(self, now: float, key: int, output: SegmentOutput, took_s: float) -> list[Output]:
        """The fusion head that Fuse(key) asked for gave `output` after `took_s` seconds of computing."""
        gathering = self._fusing.pop(key)
        if gathering.state == "ended":
            return []
        counters, stage = self._count(gathering.stage, audit=gathering.context.audit), gathering.stage
        counters.fused += 1
        queue_s = max(0.0, now - gathering.since - took_s)
        gathering.add_hops(Hop(device=self._settings.device, stage=stage, queue_s=queue_s, compute_s=took_s))
        class_id, confidence = criteria.confidence(output.logits)
        missing = gathering.missing or ()
        gathering.guess = Guess(exit=stage, class_id=class_id, confidence=confidence, missing=missing)
        outputs: list[Output] = []
        if gathering.context.origin == self._settings.device:
            outputs.append(GuessUpdate(request=gathering.context.request, progress=gathering.progress(now)))
        reason = self._decide(now, gathering, output, gathering.guess)
        if reason is not None:
            counters.exited += 1
            gathering.move("exit")
            return [*outputs, *self._end(now, gathering, reason)]
        counters.forwarded += 1
        if not self._settings.ends_group(stage):
            return [*outputs, *self._go_on(now, gathering)]
        gathering.move("forward")
        self._forget(gathering)
        assert output.features is not None  # noqa: S101 - a bundle is checked when it is loaded
        if gathering.missing:
            # A plain exit misses nobody, and its answer would have all exits taken for such.
            gathering.trace = None
        message = StageMessage(
            context=gathering.context,
            progress=gathering.progress(now),
            stage=stage + 1,
            tensor=tensors.encode(output.features, self._settings.codec),
        )
        return [*outputs, Send(message=message)]

    def _decide(self, now: float, gathering: Gathering, output: SegmentOutput, guess: Guess) -> Reason | None:
        stage, rule = gathering.stage, gathering.context.rule
        if stage == self._settings.last:
            gathering.add_reading(0.0, guess.class_id)
            return "last"
        evidence = ExitEvidence(
            logits=output.logits,
            confidence=guess.confidence,
            exit=stage,
            embeddings=output.embeddings,
            memory=gathering.memory,
            left_s=gathering.left(now),
            rest_s=self._step.mean_s or 0.0,
        )
        score = self._criteria.of(rule.criterion).score(evidence)
        gathering.memory = score.memory
        gathering.add_reading(score.value, guess.class_id)
        if gathering.context.audit:
            return None
        if score.value >= self._plans.threshold(rule, stage, guess.missing):
            return "confident"
        if too_late(evidence):
            self._step.fade()
            return "deadline"
        return None

    def _go_on(self, now: float, gathering: Gathering) -> list[Output]:
        stage, is_audit = gathering.stage, gathering.context.audit
        gathering.move("go")
        gathering.stage += 1
        gathering.heard, gathering.since = {}, now
        left_s = gathering.left(now)
        self._agenda.set(gathering.key, now + (left_s if is_audit else self._step.timeout_s(left_s)))
        outputs: list[Output] = []
        if not gathering.context.eager:
            outputs += gathering.tell(stage, go=True)
        for branch in list(gathering.boards):
            early = gathering.ahead.pop((gathering.stage, branch), None)
            if early is not None and gathering.state == "gathering":
                outputs += self._take(now, gathering, early)
        return outputs

    def failed(self, now: float, key: int, error: str) -> list[Output]:
        """The fusion head that Fuse(key) asked for raised an error."""
        gathering = self._fusing.pop(key)
        if gathering.state == "ended":
            return []
        self._count(gathering.stage, audit=gathering.context.audit).failed += 1
        gathering.move("fail")
        return [*self._end(now, gathering, "fallback"), Drop(request=gathering.context.request, reason=error)]

    # ------------------------------------------------------------ ends

    def _end(self, now: float, gathering: Gathering, reason: Reason) -> list[Output]:
        """Answer a request and stop its branches: people wait for the answer, the branches can."""
        stops = self._stop(gathering)
        return [Send(message=_outcome(gathering, reason, now), to=gathering.context.origin), *stops]

    def _stop(self, gathering: Gathering) -> list[Output]:
        self._forget(gathering)
        return [] if self._settings.ends_group(gathering.stage) else gathering.tell(gathering.stage, go=False)

    def _forget(self, gathering: Gathering) -> None:
        self._gatherings.pop(gathering.key, None)
        self._agenda.drop(gathering.key)
        self._ended[gathering.key] = None
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def _give_up(self, now: float, gathering: Gathering, reason: Reason) -> list[Output]:
        gathering.move("expire")
        self._count(gathering.stage, audit=gathering.context.audit).expired += 1
        return [*self._end(now, gathering, reason), Drop(request=gathering.context.request, reason="expired")]

    def request_closed(self, request: str) -> list[Output]:
        """An own request has been answered: stop what is still at work on it."""
        outputs: list[Output] = []
        for gathering in [one for one in self._gatherings.values() if one.context.request == request]:
            gathering.move("expire")
            outputs += self._stop(gathering)
        return outputs

    # ------------------------------------------------------------ time

    def next_due(self) -> float:
        """When `tick` is next worth a call; infinity when nothing is gathered."""
        return self._agenda.next_due()

    def tick(self, now: float) -> list[Output]:
        """Fuse without the branches whose time is up; give up where none of them was heard."""
        outputs: list[Output] = []
        while (key := self._agenda.pop(now)) is not None:
            gathering = self._gatherings[key]
            if gathering.heard:
                outputs.append(self._fuse(now, gathering))
            else:
                outputs += self._give_up(now, gathering, "fallback")
        return outputs

    # ------------------------------------------------------------ telemetry

    def telemetry(self) -> tuple[FusionTelemetry, ...]:
        """Report the counters of every wide stage since boot."""
        return tuple(
            counters.report(stage, audited=self._audit_counters[stage].fused)
            for stage, counters in self._counters.items()
        )


def _outcome(gathering: Gathering, reason: Reason, now: float) -> Outcome:
    progress: Progress = gathering.progress(now)
    return Outcome(
        request=gathering.context.request,
        token=gathering.context.token,
        reason=reason,
        guess=progress.guess,
        spent_s=progress.spent_s,
        hops=progress.hops,
        trace=progress.trace if reason == "last" else None,
    )
