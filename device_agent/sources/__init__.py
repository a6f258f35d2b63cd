"""Where an origin's inputs come from, one file per kind."""

from __future__ import annotations

from collections.abc import Callable

from device_agent.config import DirectorySource, MqttSource, PythonSource, ReplaySource
from device_agent.config import Source as SourceConfig
from device_agent.sources.base import Feed, Inlet, Source
from device_agent.sources.directory import Directory
from device_agent.sources.mqtt import Mqtt
from device_agent.sources.replay import Replay
from distree.transport.base import Transport

__all__ = ["Feed", "Inlet", "Mqtt", "Source", "make_source"]


def make_source(
    config: SourceConfig, inlet: Inlet, topic: str, connection: Callable[[], Transport]
) -> Source | Feed | None:
    """Make what `config` describes; None where the program itself submits inputs.

    `topic` is the origin's input topic, and `connection` makes the connection on which its inputs arrive.
    """
    match config:
        case ReplaySource():
            return Replay(config, inlet.preprocessor)
        case DirectorySource():
            return Directory(config, inlet)
        case MqttSource():
            return Mqtt(inlet, connection(), topic)
        case PythonSource():
            return None
