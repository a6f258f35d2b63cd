"""What sources and the agent know of each other."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from distree.bundle.preprocessing import Preprocessor
from distree.tensors import Array

if TYPE_CHECKING:
    from distree.bundle.inputs import InputReader


class Inlet(Protocol):
    """The agent's side: takes inputs. Every method may be called from any thread, without the lock."""

    preprocessor: Preprocessor

    @property
    def reader(self) -> InputReader:
        """What reads files as inputs of the bundle."""

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until an input can be accepted without shedding another; False on time-out."""

    def accept(self, name: str, raw: Array, request: str | None = None) -> str:
        """Accept an input of the manifest's dtype and shape; return its request id. Then call `work`.

        Raises RemoteProtocolError for a wrong dtype or shape, or values that are not finite.
        """

    def work(self) -> None:
        """Compute what accepted inputs bring, unless another thread is at it."""

    def reject(self, name: str, reason: str, detail: str, payload: bytes) -> None:
        """Dead-letter something that is no input."""

    def wake(self) -> None:
        """Have the agent see what has changed, a source's `ready` say."""


@runtime_checkable
class Feed(Protocol):
    """Inputs that are at hand whenever the agent wants one: asked by its own threads, with the lock held."""

    def start(self, now: float) -> None:
        """Begin; `now` is in monotonic seconds."""

    def due_at(self) -> float:
        """When the next input is due; infinity if there is none."""

    def next_input(self, now: float) -> tuple[str, Array]:
        """Return the name and raw array of the input that is due."""


@runtime_checkable
class Source(Protocol):
    """Inputs that have to be waited for. A source runs in a thread of its own until `stop` is set."""

    ready: bool
    """Whether what is offered from now on is taken: the agent says that it is ready no sooner."""

    def run(self, stop: threading.Event) -> None:
        """Hand inputs over until there are no more, or until `stop`."""

    def note_answered(self, request: str) -> None:
        """The broker has the result of `request`. Called with the agent's lock held: be short."""
