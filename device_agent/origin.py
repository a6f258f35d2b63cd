"""An origin inside a user's own program."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from device_agent.agent import Agent
from device_agent.config import AgentConfig, AgentPipelineConfig, OriginConfig, load_agent_config
from device_agent.intake import Intake
from device_agent.sources.python import PythonSourceConfig
from distree.broker_settings import BrokerSettings
from distree.client.broker_options import broker_at
from distree.client.lifetime import Lifetime
from distree.errors import (
    BrokerError,
    ClosedError,
    ConfigError,
    DistreeError,
    InputError,
    OverloadError,
    Problem,
    RemoteProtocolError,
)
from distree.messages.request import Tensor
from distree.messages.result import Result
from distree.printable import printable
from distree.tensors import Array
from distree.transport import connect_errors

STOP_S = 10.0
"""What stopping may take beyond `shutdown_timeout_s`: threads, the last report, the broker's acknowledgements."""


class Origin(Lifetime):
    """A board's agent in the background of a user's program, which hands it inputs and gets results as futures.

        with Origin("fashion", site="lab", device="cam1", pipeline="fashion", stages=[0]) as origin:
            print(origin.submit(image).result().label)

    `bundle` is a name in the model zoo or a folder; `stages` are those that this board runs itself (none: other boards
    run them all), `broker` is `mqtt://HOST:PORT`, `HOST:PORT` or settings. Each accepted input is answered within
    `deadline_s` seconds, by this board alone if need be; at most `max_pending` are under way. `spool` keeps accepted
    inputs in `state_dir` until the broker has their results, so that the next run answers what a crash left.
    `from_yaml` and `from_config` support everything else that an agent can do.

    It runs between entering and leaving `with` or `async with`, once. Entering tests and loads the interpreter and
    waits up to `connect_timeout_s` seconds for the broker; 0 starts without it. Leaving answers what is pending, within
    the configuration's `shutdown_timeout_s` (10 s). No future is left pending: whatever was not answered by then gets a
    ClosedError.

    Raises ConfigError, BundleError, RuntimeUnavailableError, and BrokerError when the broker is not reached.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        site: str,
        device: str,
        pipeline: str,
        stages: Sequence[int] = (),
        broker: str | BrokerSettings = "mqtt://127.0.0.1",
        username: str | None = None,
        password_file: Path | str | None = None,
        deadline_s: float = 1.0,
        max_pending: int = 64,
        spool: bool = False,
        state_dir: Path | str = "state",
        connect_timeout_s: float = 10.0,
    ) -> None:
        origin = OriginConfig(
            source=PythonSourceConfig(kind="python"), deadline_ms=deadline_s * 1e3, max_pending=max_pending, spool=spool
        )
        part = AgentPipelineConfig(name=pipeline, bundle=str(bundle), stages=tuple(stages), origin=origin)
        settings = broker_at(broker, username, password_file)
        self._begin(
            AgentConfig(site=site, device=device, broker=settings, pipelines=(part,), state_dir=Path(state_dir)),
            connect_timeout_s,
        )

    @classmethod
    def from_yaml(cls, path: Path | str, *, connect_timeout_s: float = 10.0) -> Origin:
        """Make an origin from an agent.yaml with exactly one pipeline of `source: {kind: python}`."""
        return cls.from_config(load_agent_config(Path(path)), connect_timeout_s=connect_timeout_s)

    @classmethod
    def from_config(cls, config: AgentConfig, *, connect_timeout_s: float = 10.0) -> Origin:
        """Make an origin from a loaded configuration with exactly one pipeline of `source: {kind: python}`."""
        made = cls.__new__(cls)
        made._begin(config, connect_timeout_s)
        return made

    def _begin(self, config: AgentConfig, connect_timeout_s: float) -> None:
        self._config = config
        self._index = _python_pipeline(config)
        self._connect_timeout_s = connect_timeout_s
        self._agent: Agent | None = None
        self._intake: Intake | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._is_open = False
        self._futures: dict[str, Future[Result]] = {}
        self._count = itertools.count(1)

    # ------------------------------------------------------------ life

    def _open(self) -> None:
        if self._agent is not None:
            raise ClosedError("this Origin has been used before", "make a new one")
        self._agent = agent = Agent(self._config)
        self._intake = next(one for one in agent.intakes if one.pipeline.index == self._index)
        agent.mailbox.on_result = self._deliver
        agent.on_hang = agent.abandon  # the agent must not end the program
        try:
            agent.prepare()
        except BaseException:
            for pipeline in agent.pipelines:
                pipeline.close()
            raise
        self._is_open = True
        self._thread = threading.Thread(target=self._serve, args=(agent,), name="distree-agent", daemon=True)
        self._thread.start()
        ends_at = time.monotonic() + self._connect_timeout_s
        while self._is_open and (left_s := ends_at - time.monotonic()) > 0:
            if agent.wait_ready(min(left_s, 0.1)):
                return
        if self._is_open and not self._connect_timeout_s:
            return
        self.close()
        if isinstance(self._failure, DistreeError):
            raise self._failure
        late = connect_errors.unanswered(self._config.broker.address, self._connect_timeout_s)
        raise BrokerError(*(agent.transport.last_error or late))

    def _serve(self, agent: Agent) -> None:
        """Run the agent; whatever ends it, nobody waits for it any more."""
        try:
            if agent.run():
                self._failure = ClosedError("the agent failed", "read its log, and report this as a bug")
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            self._failure = error
        self._shut(agent)
        why = _why_closed(self._failure) or Problem(
            f"this Origin was closed, and there was no answer within {self._config.shutdown_timeout_s:g} s",
            "submit it again",
        )
        while self._futures:
            request, future = self._futures.popitem()
            if future.set_running_or_notify_cancel():
                future.set_exception(ClosedError(*why.at(f"input {request} has no answer")))

    def _shut(self, agent: Agent) -> None:
        with agent.transport.lock:
            self._is_open = False
            for pipeline in agent.pipelines:
                pipeline.room.notify_all()

    def close(self) -> None:
        """Answer what is pending within `shutdown_timeout_s`, and stop. Any thread may call it, more than once."""
        agent, thread = self._agent, self._thread
        if agent is None or thread is None or self._is_forked:
            return
        self._shut(agent)
        agent.stop()
        thread.join(self._config.shutdown_timeout_s + STOP_S)

    # ------------------------------------------------------------ inputs

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an input, without a batch dimension; for images (height, width, channels)."""
        return self._entered()[1].preprocessor.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Dtype of an input; uint8 for images, from 0 to 255."""
        return self._entered()[1].preprocessor.dtype

    @property
    def pending(self) -> int:
        """Inputs that this program has submitted and that are not yet answered."""
        return len(self._futures)

    def decode(self, payload: bytes) -> Array:
        """Return the array to submit for the content of a file: an image, a WAV or CSV file, an .npy array, raw bytes.

        Raises InputError for what the bundle does not take, for a recording of several windows, and where images need
        `pip install 'distree[images]'`.
        """
        try:
            return self._entered()[1].reader.read(payload)
        except RemoteProtocolError as error:
            raise InputError(f"input: {error.detail}", error.remedy) from None

    def decode_windows(self, payload: bytes) -> list[Array]:
        """Return the arrays to submit for a recording: its windows, in order, cut as the bundle says.

        Raises InputError as `decode` does.
        """
        try:
            return [found.raw for found in self._entered()[1].reader.read_all(payload)]
        except RemoteProtocolError as error:
            raise InputError(f"input: {error.detail}", error.remedy) from None

    def submit(self, array: Array, name: str = "", *, timeout_s: float | None = None) -> Future[Result]:
        """Submit one input of `shape` and `dtype`; the future gets its final Result by the deadline.

        The array is read before this returns. The result carries `name` as `input`. While `max_pending` inputs are
        unanswered it waits for room, `timeout_s` seconds at most (None: the deadline; 0: not at all). Any thread may
        call it. If inference is quick, the first segment runs in the calling thread: waking another would take longer.
        Done-callbacks run in the agent's threads, or in one that submits: keep them short; in one, this never waits.

        Raises InputError for another dtype or shape, OverloadError without room, ClosedError outside of `with`.
        """
        agent, intake = self._entered()
        pipeline = intake.pipeline
        tensor = self._to_tensor(array)
        with agent.transport.lock:
            if self._is_open and pipeline.node.room() <= 0:
                waits_s = 0.0 if agent.workers.is_current() else self._patience_s(timeout_s)
                pipeline.room.wait_for(lambda: not self._is_open or pipeline.node.room() > 0, waits_s)
            if (admitted := self._admit(name, tensor)) is None:
                raise self._overload()
        if agent.workers.is_quick():
            self._run_jobs(agent)
        else:
            self._wake_workers(agent)
        return self._future_of(admitted, array)

    async def submit_async(self, array: Array, name: str = "", *, timeout_s: float | None = None) -> Result:
        """Submit one input and return its final Result; like `submit`, but without blocking the event loop.

        One coroutine from input to answer, so that a task is an input under way: `asyncio.gather` and task groups work,
        and a task that is cancelled gives up its place in the queue, or its answer.
        """
        agent, intake = self._entered()
        room = intake.pipeline.room
        tensor = self._to_tensor(array)
        ends_at = time.monotonic() + self._patience_s(timeout_s)
        while True:
            with agent.transport.lock:
                if (admitted := self._admit(name, tensor)) is not None:
                    break
                waiter = room.join()
            if not await room.wait(waiter, max(0.0, ends_at - time.monotonic())):
                raise self._overload()
        self._wake_workers(agent)
        return await asyncio.wrap_future(self._future_of(admitted, array))

    def _entered(self) -> tuple[Agent, Intake]:
        if self._agent is None or self._intake is None:
            raise ClosedError("this Origin has not been entered", "use it in a with block")
        self._check_process()
        return self._agent, self._intake

    def _to_tensor(self, array: Array) -> Tensor:
        _, intake = self._entered()
        pipeline, received = intake.pipeline, type(array).__name__
        if isinstance(array, np.ndarray):
            try:
                return pipeline.to_tensor(array)
            except RemoteProtocolError as error:
                if error.reason == "value":
                    raise InputError(f"input: {error.detail}", error.remedy) from None
                received = f"{array.dtype} {array.shape}"
        raise InputError(
            f"input: bundle {pipeline.bundle.name} takes an array {self.dtype} {self.shape}, received {received}",
            "convert it, or use decode for encoded images",
        )

    def _admit(self, name: str, tensor: Tensor) -> tuple[str, Future[Result]] | None:
        """Admit an input; None if there is no room for it. Called with the lock held."""
        agent, intake = self._entered()
        if not self._is_open:
            raise ClosedError(*(_why_closed(self._failure) or Problem("this Origin is closed", "make a new one")))
        if intake.pipeline.node.room() <= 0:
            return None
        # The id is chosen here, so that the future is known before the answer can arrive.
        request = f"{agent.boot}-py-{next(self._count):x}"
        future = self._futures[request] = Future()
        intake.admit(printable(name, 256), tensor, request)
        return request, future

    def _run_jobs(self, agent: Agent) -> None:
        try:
            agent.workers.run_jobs()
        except Exception as error:  # noqa: BLE001 - as in a thread of the agent: its fault, not the submitter's
            agent.fault(error)

    def _wake_workers(self, agent: Agent) -> None:
        """Have the agent's threads compute; one that does already will find the work."""
        if agent.workers.is_idle():
            agent.transport.wake()

    def _future_of(self, admitted: tuple[str, Future[Result]], array: Array) -> Future[Result]:
        _, intake = self._entered()
        request, future = admitted
        intake.note_admitted(request, array)
        return future

    def _patience_s(self, timeout_s: float | None) -> float:
        if timeout_s is not None:
            return timeout_s
        origin = self._config.pipelines[self._index].origin
        return origin.deadline_ms / 1e3 if origin is not None else 0.0

    def _overload(self) -> OverloadError:
        agent, intake = self._entered()
        what = f"no room for another input: {intake.pipeline.node.pending} are under way"
        if not agent.transport.online and (why := agent.transport.last_error) is not None:
            return OverloadError(*why.at(f"{what}, and results wait for the broker"))
        return OverloadError(what, "submit more slowly, wait longer (timeout_s), or allow more with max_pending")

    def _deliver(self, result: Result) -> None:
        future = self._futures.pop(result.request, None)
        if future is not None and future.set_running_or_notify_cancel():
            future.set_result(result)


def _why_closed(failure: BaseException | None) -> Problem | None:
    """Return what ended an agent, None where nothing did."""
    if failure is None:
        return None
    if isinstance(failure, DistreeError):
        return failure.problem
    return Problem(f"the agent failed ({type(failure).__name__}: {failure})", "report this as a bug")


def _python_pipeline(config: AgentConfig) -> int:
    """Return the number of the one pipeline whose inputs come from this program."""
    found = [
        index
        for index, pipeline in enumerate(config.pipelines)
        if pipeline.origin is not None and isinstance(pipeline.origin.source, PythonSourceConfig)
    ]
    if len(found) != 1:
        raise ConfigError(
            f"pipelines: {len(found)} have an origin with source {{kind: python}}", "give exactly one such origin"
        )
    return found[0]
