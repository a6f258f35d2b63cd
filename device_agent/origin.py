"""An origin inside one's own program."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
from pathlib import Path
from types import TracebackType

from device_agent.agent import Agent, Pipeline
from device_agent.config import AgentConfig, PythonSource, load_agent_config
from distree.errors import BrokerError, ConfigError, DistreeError
from distree.protocols import Array
from distree.types import Result


class Origin:
    """Runs an agent in the background and hands arrays to it.

    `config` is an agent.yaml, or the loaded configuration, with exactly one pipeline whose source is `kind: python`.

        with Origin("agent.yaml") as origin:
            print(origin.submit(array).result().label)

    Entering waits until the agent is ready; leaving answers what is pending, then stops the agent. Raises BrokerError
    when the broker is not reached within `timeout_s`, and what Agent raises.
    """

    def __init__(self, config: AgentConfig | Path | str, timeout_s: float = 10.0) -> None:
        loaded = config if isinstance(config, AgentConfig) else load_agent_config(Path(config))
        self._agent = Agent(loaded)
        self._pipeline = _python_pipeline(self._agent)
        self._timeout_s = timeout_s
        self._futures: dict[str, concurrent.futures.Future[Result]] = {}
        self._count = itertools.count(1)
        self._thread = threading.Thread(target=self._agent.run, name="agent", daemon=True)

    def __enter__(self) -> Origin:
        self._agent.prepare()
        self._agent.on_result.append(self._deliver)
        self._thread.start()
        if not self._agent.wait_ready(self._timeout_s):
            self.close()
            raise BrokerError(self._agent.transport.last_error or f"not ready within {self._timeout_s:g} s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, array: Array, name: str = "") -> concurrent.futures.Future[Result]:
        """Hand over one input of the manifest's dtype and shape; the future gets its final Result by the deadline.

        Waits for room in the books, at most one deadline long, after which the input is answered `shed`. Raises
        RemoteProtocolError for a wrong dtype or shape.
        """
        origin = self._pipeline.config.origin
        assert origin is not None  # noqa: S101 - checked when this object was made
        self._pipeline.wait_for_room(origin.deadline_ms / 1e3)
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()
        # The id is chosen here, so that the future is known before the answer can come.
        request = f"{self._agent.boot}-py-{next(self._count):x}"
        self._futures[request] = future
        try:
            self._pipeline.accept(name, array, request)
        except DistreeError:
            del self._futures[request]
            raise
        # The agent's threads compute; this one is the program's own.
        self._agent.transport.wake()
        return future

    def close(self) -> None:
        """Answer what is pending, within the agent's `drain_s`, and stop."""
        self._agent.stop()
        if self._thread.is_alive():
            self._thread.join(self._agent.config.drain_s + 5.0)
        for future in self._futures.values():
            future.cancel()

    def _deliver(self, result: Result) -> None:
        future = self._futures.pop(result.request, None)
        if future is not None and future.set_running_or_notify_cancel():
            future.set_result(result)


def _python_pipeline(agent: Agent) -> Pipeline:
    for pipeline in agent.pipelines:
        origin = pipeline.config.origin
        if origin is not None and isinstance(origin.source, PythonSource):
            return pipeline
    raise ConfigError("no pipeline with an origin whose source is {kind: python}")
