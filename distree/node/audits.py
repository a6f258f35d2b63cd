"""Audits: inputs drawn by lot, of which all exits are asked, so that a tuner learns what early answers cost.

An input is drawn before anything is known of it, by a keyed hash of its request id. It is answered as any other. If
it went through to the last exit, what the exits said comes home with the answer; else its origin sends it through
the pipeline once more, as an *audit* under a request id of its own: at low priority, without exits and without a
result. Either way one `AuditRow` follows. An audit that is lost has a row too, for it must count as a loss: otherwise
inputs on which boards fail would look like inputs on which early answers are right.

Pure state, like the custody of which this is the counterpart: no clock and no I/O.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distree.errors import SAME_BUNDLE, RemoteProtocolError
from distree.messages.audit import AuditRow
from distree.messages.request import Hop, Reading, RequestContext, Rule, Tensor, Trace
from distree.node.settings import NodeSettings

AUDIT_BUDGET_S = 30.0
"""Longest time an audit may take, in seconds: it waits wherever there is live work."""

MAX_OPEN = 32
"""Audits under way at a time; each keeps its input tensor."""

MAX_ENDED = 1024
"""Ended audits remembered, to tell a late outcome from one of an unknown request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAudit:
    """An audit under way: `of` is the request that was drawn, and whose rule the audit's own context has."""

    context: RequestContext
    of: str
    tensor: Tensor
    due_at: float


class AuditBooks:
    """The audits of one origin, and the rows that come of them, numbered without gaps."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._key = settings.secret[: hashlib.blake2b.MAX_KEY_SIZE]
        self._open: OrderedDict[str, OpenAudit] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self.drawn = self.lost = self.sequence = 0

    def __len__(self) -> int:
        return len(self._open)

    def draw(self, request: str, rate: float) -> bool:
        """Return whether a request is drawn, counting it if so; `rate` is the share of all that are."""
        if rate <= 0.0:
            return False
        digest = hashlib.blake2b(request.encode(), digest_size=8, key=self._key).digest()
        drawn = int.from_bytes(digest, "big") < rate * 2.0**64
        self.drawn += drawn
        return drawn

    # ------------------------------------------------------------ the life of an audit

    def is_open(self, request: str) -> bool:
        """Whether an audit of this id is under way."""
        return request in self._open

    def knows(self, request: str) -> bool:
        """Whether an audit of this id is under way or was."""
        return request in self._open or request in self._ended

    def find(self, request: str) -> OpenAudit | None:
        """Return the audit of this id, if it is under way."""
        return self._open.get(request)

    def open(self, audit: OpenAudit) -> bool:
        """Note an audit as under way; False if there are too many already."""
        if len(self._open) >= MAX_OPEN:
            return False
        self._open[audit.context.request] = audit
        return True

    def routed(self, context: RequestContext) -> None:
        """Note the route that an audit takes: only boards on it may answer."""
        request = context.request
        self._open[request] = replace(self._open[request], context=context)

    def close(self, request: str) -> OpenAudit | None:
        """End an audit and return it; None if it has ended before."""
        audit = self._open.pop(request, None)
        if audit is not None:
            self._ended[request] = None
            if len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)
        return audit

    def next_due(self) -> float:
        """When the oldest audit under way is lost; infinity if there is none."""
        # All have the same budget, so they are due in the order in which they began.
        return next(iter(self._open.values())).due_at if self._open else float("inf")

    def pop_due(self, now: float) -> OpenAudit | None:
        """End and return an audit whose time is over, or None."""
        return self.close(next(iter(self._open))) if self.next_due() <= now else None

    def pop(self) -> OpenAudit | None:
        """End and return the oldest audit, or None."""
        return self.close(next(iter(self._open))) if self._open else None

    # ------------------------------------------------------------ rows

    def is_complete(self, trace: Sequence[Reading] | None) -> bool:
        """Whether a trace has a reading of each exit; RemoteProtocolError for one that this bundle cannot give."""
        if trace is None:
            return False
        classes, exits = len(self._settings.labels), self._settings.last + 1
        if len(trace) > exits or any(part.class_id >= classes for part in trace):
            raise RemoteProtocolError(
                "trace",
                f"{len(trace)} readings received, which do not fit {exits} exits and {classes} classes",
                SAME_BUNDLE,
            )
        return len(trace) == exits

    def row(
        self, request: str, rule: Rule, trace: Trace, missing: tuple[int, ...] = (), hops: tuple[Hop, ...] = ()
    ) -> AuditRow:
        """Return the row of a request whose trace is complete."""
        assert trace is not None  # noqa: S101 - the caller has looked
        scores, predictions = tuple(said.score for said in trace[:-1]), tuple(said.class_id for said in trace)
        return self._row(request, rule, scores, predictions, missing, hops)

    def lost_row(self, request: str, rule: Rule) -> AuditRow:
        """Return the row of a request of which the exits will never be known."""
        self.lost += 1
        return self._row(request, rule)

    def _row(
        self,
        request: str,
        rule: Rule,
        scores: tuple[float, ...] = (),
        predictions: tuple[int, ...] = (),
        missing: tuple[int, ...] = (),
        hops: tuple[Hop, ...] = (),
    ) -> AuditRow:
        self.sequence += 1
        return AuditRow(
            request=request,
            origin=self._settings.device,
            boot=self._settings.boot,
            sequence=self.sequence,
            revision=self._settings.revision,
            epoch=rule.epoch,
            criterion=rule.criterion,
            scores=scores,
            predictions=predictions,
            missing=missing,
            hops=hops,
        )
