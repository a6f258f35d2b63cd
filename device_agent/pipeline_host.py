"""What a pipeline may ask of its board."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from distree.errors import RemoteProtocolError
from distree.messages.events import Thumbnail
from distree.node import Effect

if TYPE_CHECKING:
    from device_agent.pipeline import Pipeline


class Board(Protocol):
    """The board's side. `lock` guards all nodes and the connection; each method says whether it is to be held."""

    lock: threading.RLock

    @property
    def online(self) -> bool:
        """Whether the broker is connected."""

    def owed_since(self) -> float:
        """Return since when the broker has owed an acknowledgement; infinity if it owes none. With the lock held."""

    def perform(self, pipeline: Pipeline, effects: Sequence[Effect]) -> None:
        """Carry out effects of the pipeline's node, in order. Called with the lock held."""

    def dead_letter(self, topic: str, error: RemoteProtocolError, payload: bytes) -> None:
        """Count and report something that arrived on `topic` and breaks the protocol. Called with the lock held."""

    def show(self, pipeline: Pipeline, thumbnail: Thumbnail) -> None:
        """Publish a picture of an input. Called with the lock or without."""

    def work(self) -> None:
        """Compute until no job is left, unless another thread is at it. Called without the lock."""

    def look(self) -> None:
        """See what the network has brought, without waiting. For the thread that computes, without the lock."""

    def deliver_results(self) -> None:
        """Hand final results to the program that runs this agent. Called without the lock."""

    def wake(self) -> None:
        """Have the network's thread see what is due. Called from any thread."""

    def wake_for(self, due_at: float) -> None:
        """Do so only if it would wait beyond `due_at`, in monotonic seconds."""

    def fault(self, error: BaseException) -> None:
        """End the agent: one of its threads has broken down."""
