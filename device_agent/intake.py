"""Where the inputs of one pipeline come in.

An input takes three steps, and each has one verb. A source, or a program through `Origin`, *submits* it: an array, from
any thread. The intake *admits* it: its tensor, with the lock held. The pipeline's node *accepts* it, and from then on
answers it whatever happens, or *sheds* it where there is no room.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from device_agent.mailbox import Mailbox
from device_agent.pipeline import AgentPipeline
from device_agent.reporting import Reporting
from device_agent.sources import PullSource, PushSource
from device_agent.thumbnails import Thumbnails
from device_agent.worker_threads import WorkerThreads
from distree.errors import DistreeError, RemoteProtocolError
from distree.messages.events import EventKind, Severity, Thumbnail
from distree.messages.request import Tensor
from distree.node import Fuse, Run
from distree.tensors import Array
from distree.transport.base import Transport

if TYPE_CHECKING:
    from distree.bundle.inputs import InputReader

log = logging.getLogger(__name__)


class Intake:
    """The source of one pipeline, and the `InputSink` to which it submits.

    `wake_for` has the network's thread look at what is due by a time, in monotonic seconds, should it wait for longer;
    `on_fault` ends the agent.
    """

    def __init__(
        self,
        pipeline: AgentPipeline,
        transport: Transport,
        mailbox: Mailbox,
        reporting: Reporting,
        workers: WorkerThreads[tuple[AgentPipeline, Run | Fuse]],
        wake_for: Callable[[float], None],
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self.pipeline = pipeline
        self.preprocessor = pipeline.preprocessor
        self.state_dir = pipeline.state_dir
        self._transport = transport
        self._lock = transport.lock
        self._mailbox = mailbox
        self._reporting = reporting
        self._wake_for = wake_for
        self._on_fault = on_fault
        self._pull_source: PullSource | None = None
        self._source_thread: threading.Thread | None = None
        self._thumbnails: Thumbnails | None = None
        origin = pipeline.config.origin
        if origin is not None and origin.thumbnails is not None:
            self._thumbnails = Thumbnails(origin.thumbnails)
        self.run_jobs, self.wake = workers.run_jobs, transport.wake
        """Compute what submitted inputs lead to; have the agent see what has changed. See `InputSink`."""

    # ------------------------------------------------------------ the source

    def load(self, connection: Callable[[], Transport]) -> None:
        """Make the source, which may need a `connection` of its own."""
        pipeline = self.pipeline
        assert pipeline.config.origin is not None  # noqa: S101 - a pipeline without inputs has no intake
        made = pipeline.config.origin.source.make(self, pipeline.input_topic, connection)
        pipeline.source = made if isinstance(made, PushSource) else None
        self._pull_source = made if isinstance(made, PullSource) else None

    def start(self, stop: threading.Event) -> None:
        """Begin to take inputs, until `stop`."""
        if self._pull_source is not None:
            self._pull_source.start(time.monotonic())
        if self.pipeline.source is not None:
            name = f"source-{self.pipeline.config.name}"
            self._source_thread = threading.Thread(
                target=self._run_source, args=(self.pipeline.source, stop), name=name, daemon=True
            )
            self._source_thread.start()

    def _run_source(self, source: PushSource, stop: threading.Event) -> None:
        try:
            source.run(stop)
        except DistreeError as error:
            self.tell(EventKind.SOURCE, f"no more inputs: {error.what}", error.remedy, severity=Severity.ERROR)
        except Exception as error:  # noqa: BLE001 - a source must not end silently
            self._on_fault(error)

    @property
    def ready(self) -> bool:
        """Whether inputs that are offered from now on are accepted."""
        return self.pipeline.source is None or self.pipeline.source.ready

    def stop_pulling(self) -> None:
        """Ask for no more inputs that are at hand. Called with the lock held."""
        self._pull_source = None

    def join(self, timeout_s: float) -> None:
        """Wait for the source's thread to end."""
        if self._source_thread is not None:
            self._source_thread.join(timeout_s)

    def due_at(self) -> float:
        """When the next input of a pull source is due, if there is room for it; infinity if never."""
        source = self._pull_source
        return source.due_at() if source is not None and self.pipeline.node.room() > 0 else float("inf")

    def tick(self, now: float) -> None:
        """Submit the inputs that are due. Called with the lock held."""
        source = self._pull_source
        while source is not None and source.due_at() <= now and self.pipeline.node.room() > 0:
            self.submit(*source.next_input(now))

    # ------------------------------------------------------------ InputSink

    @property
    def reader(self) -> InputReader:
        """What reads files as inputs of the bundle."""
        return self.pipeline.reader

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until an input can be accepted without shedding another; False on time-out."""
        with self._lock:
            return self.pipeline.room.wait_for(lambda: self.pipeline.node.room() > 0, timeout_s)

    def submit(self, name: str, raw: Array, request: str | None = None) -> str:
        """Hand over an input; return its request id. RemoteProtocolError for a wrong dtype or shape, or another's id.

        The caller has it computed, by `run_jobs` or by waking the network's thread.
        """
        tensor = self.pipeline.to_tensor(raw)
        with self._lock:
            if request is not None:
                check_given_id(request, self.pipeline.node.settings.boot)
            request = self.admit(name, tensor, request)
        self.note_admitted(request, raw)
        return request

    def reject(
        self, name: str, error: RemoteProtocolError, payload: bytes, *, request: str = "", topic: str = ""
    ) -> None:
        """Tell and dead-letter something that is not a valid input."""
        topic = topic or self.pipeline.input_topic
        with self._lock:
            self._reporting.refuse_input(self.pipeline.config.name, topic, name, request, error, payload)

    def tell(
        self, kind: EventKind, what: str, remedy: str = "", *, severity: Severity = Severity.WARNING, like: str = ""
    ) -> None:
        """Log and publish an event of this pipeline's source."""
        with self._lock:
            self._reporting.tell(kind, what, remedy, severity=severity, like=like, pipeline=self.pipeline.config.name)

    # ------------------------------------------------------------ the steps of `submit`, for `Origin`

    def admit(self, name: str, tensor: Tensor, request: str | None) -> str:
        """Have the node accept an input, or shed it. Called with the lock held; then call `note_admitted` without."""
        request, effects = self.pipeline.accept(time.monotonic(), name, tensor, request)
        self._mailbox.perform(self.pipeline, effects)
        return request

    def note_admitted(self, request: str, raw: Array) -> None:
        """Publish a picture of an input, and have its deadline noticed. Pictures take time: best without the lock."""
        # Offline, nobody would see it.
        if self._thumbnails is not None and self._transport.online:
            png = self._thumbnails.make(time.monotonic(), raw)
            if png is not None:
                self._mailbox.publish_thumbnail(self.pipeline, Thumbnail(request=request, png=png))
        # A deadline that is nearer than what the network's thread waits for would be noticed too late.
        self._wake_for(self.pipeline.node.notify_at())


def check_given_id(request: str, boot: str) -> None:
    """Raise RemoteProtocolError if an id that somebody gave an input is one that this run of the agent gives itself.

    Whoever could use up the ids of inputs to come would have them dropped as duplicates.
    """
    if request.startswith(f"{boot}-"):
        raise RemoteProtocolError(
            "request",
            f"{request}: ids that begin with {boot}- are given by this board alone",
            "give the input another request id, or none",
        )
