"""Where an origin's inputs come from, one kind a file."""

from __future__ import annotations

from device_agent.config import DirectorySource, MqttSource, PythonSource, ReplaySource
from device_agent.config import Source as SourceConfig
from device_agent.sources.base import Feed, Inlet, Source
from device_agent.sources.directory import Directory
from device_agent.sources.mqtt import Mqtt
from device_agent.sources.replay import Replay

__all__ = ["Feed", "Inlet", "Mqtt", "Source", "make_source"]


def make_source(config: SourceConfig, inlet: Inlet) -> Source | Feed | None:
    """Make what `config` describes; None where the program itself hands inputs over."""
    match config:
        case ReplaySource():
            return Replay(config, inlet.preprocessor)
        case DirectorySource():
            return Directory(config, inlet)
        case MqttSource():
            return Mqtt(inlet)
        case PythonSource():
            return None
