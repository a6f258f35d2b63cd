"""Deliveries: which stage messages are at work on this board, and which were; a redelivery is harmless."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from distree import tensors
from distree.errors import SAME_BUNDLE, RemoteProtocolError
from distree.messages.request import StageMessage
from distree.node.effects import Acknowledge, Drop, Output
from distree.node.job import Delivered, Job
from distree.node.settings import NodeSettings

MAX_SEEN = 1024
"""Deliveries remembered, to make a redelivery harmless."""


class Deliveries:
    """Takes stage messages from the network, each once."""

    def __init__(self, settings: NodeSettings, keys: Iterator[int]) -> None:
        self._settings = settings
        self._keys = keys
        self._input_bytes = [tensors.nbytes(dtype, shape) for dtype, shape in settings.inputs]
        self._at_work: dict[Delivered, Job] = {}
        self._seen: OrderedDict[Delivered, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._at_work)

    def check(self, message: StageMessage) -> None:
        """Raise RemoteProtocolError for a message that does not fit this board's bundle."""
        settings, context, tensor = self._settings, message.context, message.tensor
        settings.check_revision(context.revision)
        dtype, shape = settings.inputs[message.stage]
        if tensor.dtype != dtype:
            raise RemoteProtocolError("dtype", f"expected {dtype}, received {tensor.dtype}", SAME_BUNDLE)
        if tensor.shape != shape:
            raise RemoteProtocolError("shape", f"expected {shape}, received {tensor.shape}", SAME_BUNDLE)
        nbytes = self._input_bytes[message.stage]
        if tensor.codec == "raw" and len(tensor.payload) != nbytes:
            raise RemoteProtocolError("size", f"expected {nbytes} bytes, received {len(tensor.payload)}", SAME_BUNDLE)
        settings.check_guess(message.progress.guess)

    def knows(self, message: StageMessage) -> bool:
        """Whether a message is at work, or has been."""
        identity = message.context.token, message.stage
        return identity in self._at_work or identity in self._seen

    def repeated(self, message: StageMessage, delivery: object) -> list[Output] | None:
        """Return what comes of a message that is at work or has been; None for a new one."""
        identity: Delivered = (message.context.token, message.stage)
        known = self._at_work.get(identity)
        if known is not None:
            # Redelivered while still at work. After a reconnect only the newest delivery can be acknowledged, and the
            # earlier one no longer matters; a broker that delivers twice waits for both.
            if known.context.audit:
                return [Acknowledge(delivery=delivery)]
            earlier, known.delivery = known.delivery, delivery
            return [Acknowledge(delivery=earlier)]
        if identity in self._seen:
            return [Drop(request=message.context.request, reason="duplicate"), Acknowledge(delivery=delivery)]
        return None

    def job(self, now: float, message: StageMessage) -> Job:
        """Return the job of a message from this board itself."""
        return Job(
            key=next(self._keys),
            context=message.context,
            progress=message.progress,
            stage=message.stage,
            delivered=(message.context.token, message.stage),
            tensor=message.tensor,
            delivery=None,
            arrived_at=now,
        )

    def begin(self, now: float, message: StageMessage, delivery: object) -> tuple[Job, list[Output]]:
        """Return the job of a new message from the network, and what is to be done beside it.

        An audit is acknowledged at once: it may wait for long, and what the broker has not got back counts against
        what it sends.
        """
        job = self.job(now, message)
        self._at_work[job.delivered] = job
        if job.context.audit:
            return job, [Acknowledge(delivery=delivery)]
        job.delivery = delivery
        return job, []

    def end(self, job: Job) -> list[Output]:
        """Remember a job as done with; acknowledge its delivery, if that has not been done before."""
        if self._at_work.pop(job.delivered, None) is None:
            return []
        self._seen[job.delivered] = None
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return [] if job.context.audit else [Acknowledge(delivery=job.delivery)]
