"""Inputs from the program that runs the agent, through `device_agent.Origin`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from device_agent.sources.base import BaseSourceConfig, InputSink
from distree.record import record
from distree.transport.base import Transport


@record
class PythonSourceConfig(BaseSourceConfig):
    """Inputs from the program that runs the agent, through `device_agent.Origin`."""

    kind: Literal["python"]
    """Inputs from your own program."""

    def make(self, sink: InputSink, topic: str, connection: Callable[[], Transport]) -> None:  # noqa: ARG002
        """Nothing is needed: the program submits inputs by itself."""
        return
