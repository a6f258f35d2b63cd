"""Where an origin's inputs come from: one kind per file, and all of them in `SourceConfig`.

A new kind is a file here, with what agent.yaml says of it and the source itself, and its record in `SourceConfig`.
"""

from __future__ import annotations

from typing import TypeAlias

from device_agent.sources.base import InputSink, PullSource, PushSource
from device_agent.sources.directory import DirectorySourceConfig
from device_agent.sources.mqtt import MqttSourceConfig
from device_agent.sources.python import PythonSourceConfig
from device_agent.sources.replay import ReplaySourceConfig
from distree import strict_yaml

__all__ = ["KINDS", "InputSink", "PullSource", "PushSource", "SourceConfig"]

SourceConfig: TypeAlias = DirectorySourceConfig | MqttSourceConfig | ReplaySourceConfig | PythonSourceConfig

KINDS: dict[str, type[SourceConfig]] = strict_yaml.kinds(SourceConfig)
"""What agent.yaml may say of a source, by its `kind`."""
