"""What sources and the agent know about each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar, runtime_checkable

from distree.bundle.preprocessing import Preprocessor
from distree.errors import Problem, RemoteProtocolError
from distree.messages.events import EventKind, Severity
from distree.tensors import Array
from distree.transport.base import Transport

if TYPE_CHECKING:
    from distree.bundle.inputs import InputReader
    from distree.bundle.manifest import Manifest


Config = TypeVar("Config", bound="BaseSourceConfig")


class InputSink(Protocol):
    """The agent's side: takes inputs. Every method may be called from any thread, without the lock."""

    preprocessor: Preprocessor

    @property
    def reader(self) -> InputReader:
        """What reads files as inputs of the bundle."""

    @property
    def state_dir(self) -> Path:
        """A folder in which this source may keep what must survive a restart; there may be none yet."""

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until an input can be accepted without shedding another; False on time-out."""

    def submit(self, name: str, raw: Array, request: str | None = None) -> str:
        """Hand over an input of the manifest's dtype and shape; return its request id. Then call `run_jobs`.

        Raises RemoteProtocolError for a wrong dtype or shape, or values that are not finite.
        """

    def run_jobs(self) -> None:
        """Compute what submitted inputs lead to, unless another thread is at it."""

    def reject(
        self, name: str, error: RemoteProtocolError, payload: bytes, *, request: str = "", topic: str = ""
    ) -> None:
        """Tell people that something is not a valid input, and dead-letter it.

        `request` is the id that its sender gave it; `topic` is where it came from, unless that is the origin's own.
        """

    def tell(
        self, kind: EventKind, what: str, remedy: str = "", *, severity: Severity = Severity.WARNING, like: str = ""
    ) -> None:
        """Log something that people should know, and publish it as an event; at a bounded rate.

        Of events of one kind that are `like` each other one is told every few seconds, with how many were left out;
        by default those are alike whose text is the same.
        """

    def wake(self) -> None:
        """Have the agent see what has changed, such as a source's `ready`."""


@runtime_checkable
class PullSource(Protocol):
    """Inputs that are at hand whenever the agent wants one: called by its own threads, with the lock held."""

    def start(self, now: float) -> None:
        """Begin; `now` is in monotonic seconds."""

    def due_at(self) -> float:
        """When the next input is due; infinity if there is none."""

    def next_input(self, now: float) -> tuple[str, Array]:
        """Return the name and raw array of the input that is due."""


@runtime_checkable
class PushSource(Protocol):
    """Inputs that have to be waited for. A source runs in a thread of its own until `stop` is set."""

    ready: bool
    """Whether what is offered from now on is accepted: the agent reports itself ready no sooner."""

    def run(self, stop: threading.Event) -> None:
        """Submit inputs until there are no more, or until `stop`."""

    def note_answered(self, request: str) -> None:
        """The broker has the result of `request`. Called with the agent's lock held: be short."""


class BaseSourceConfig:
    """What agent.yaml says of a source, and what others must know of the source before there is one.

    Each kind is a record with a field `kind: Literal[...]`, which YAML names it by.
    """

    __slots__ = ()

    reads_input_topic: ClassVar[bool] = False
    """Whether inputs come on the origin's input topic, for which the source gets a connection of its own."""

    keeps_answers: ClassVar[bool] = False
    """Whether inputs stay where they are until they are answered, so that a crash loses none. Then their answers are
    kept until the broker has them, so that the same inputs, submitted again, get the same answers."""

    path_is: ClassVar[str] = ""
    """What `path_key` names, as `distree init` asks for it; "" where there is nothing to ask."""

    path_key: ClassVar[str] = "path"
    """The key that says where inputs come from."""

    path_example: ClassVar[str] = "inbox"
    """What `distree init` suggests for it."""

    path_may_be_left_out: ClassVar[bool] = False
    """Whether the key has a default that will do."""

    waiting_inputs: ClassVar[int] = 0
    """How many inputs of the bundle's shape may wait in the source."""

    runs_programs: ClassVar[bool] = False
    """Whether inputs come from a program or a device: it takes threads of its own, and the doctor tries it."""

    def make(self, sink: InputSink, topic: str, connection: Callable[[], Transport]) -> PushSource | PullSource | None:
        """Make the source; None where a program submits inputs by itself.

        `topic` is the origin's input topic, and `connection` makes the connection by which inputs on it come.
        """
        raise NotImplementedError

    def memory(self) -> dict[str, int]:
        """Return what the source may hold at most, in bytes, by what that is: `a file while it is read`."""
        return {}

    def disk_bytes(self) -> int:
        """Return the most that the source keeps in its `state_dir`, in bytes."""
        return 0

    def foreign_topics(self) -> tuple[str, ...]:
        """Return the topics, or filters, of other programs on which inputs come beside the origin's input topic."""
        return ()

    def longest_file(self) -> int:
        """Return the size of the largest file or message that is read, in bytes; 0 where the source reads arrays."""
        return 0

    def read_files(self) -> tuple[Path, ...]:
        """Return the files that the agent's user must be able to read."""
        return ()

    def shared_folders(self) -> tuple[Path, ...]:
        """Return the folders in which others put files, and which the agent's user must be able to write too."""
        return ()

    def in_folder(self: Config, folder: Path) -> Config:  # noqa: ARG002
        """Return the same with what may be a file's name taken from `folder`, where agent.yaml is."""
        return self

    def misfits(self, manifest: Manifest) -> Iterator[Problem]:  # noqa: ARG002
        """Say why the source cannot deliver inputs of a bundle, key by key: `rate_hz: …`."""
        return iter(())

    def probe(self, manifest: Manifest, timeout_s: float) -> str:  # noqa: ARG002
        """Try the source, and say what comes from it; "" where there is nothing to try.

        Raises ConfigError, after `timeout_s` at the latest, if nothing comes.
        """
        return ""

    def device_groups(self) -> tuple[str, ...]:
        """Return the groups that may open the devices that are read."""
        return ()

    def devices(self) -> tuple[str, ...]:
        """Return the devices that are read, as systemd's DeviceAllow names them, without the access."""
        return ()
