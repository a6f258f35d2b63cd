"""Where an origin's inputs come from: one kind per file, and all of them in `SourceConfig`.

A new kind is a file here, with what agent.yaml says of it and the source itself, and its record in `SourceConfig`.
What several kinds need has files named for what they do: `child` and `opened_path` are outputs that are read,
`supervision` keeps them open, `frames`, `samples` and `windowed` make inputs of what comes.
"""

from __future__ import annotations

from typing import TypeAlias

from device_agent.sources.base import InputSink, PullSource, PushSource
from device_agent.sources.camera import CameraSourceConfig
from device_agent.sources.directory import DirectorySourceConfig
from device_agent.sources.microphone import MicrophoneSourceConfig
from device_agent.sources.mqtt import MqttSourceConfig
from device_agent.sources.python import PythonSourceConfig
from device_agent.sources.replay import ReplaySourceConfig
from device_agent.sources.stream import StreamSourceConfig
from distree import strict_yaml

__all__ = ["KINDS", "InputSink", "PullSource", "PushSource", "SourceConfig"]

SourceConfig: TypeAlias = (
    DirectorySourceConfig
    | CameraSourceConfig
    | MicrophoneSourceConfig
    | StreamSourceConfig
    | MqttSourceConfig
    | ReplaySourceConfig
    | PythonSourceConfig
)

KINDS: dict[str, type[SourceConfig]] = strict_yaml.kinds(SourceConfig)
"""What agent.yaml may say of a source, by its `kind`."""
