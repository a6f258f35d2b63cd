"""Hands files to real origins in every way: a folder, MQTT, `distree submit`, a Python program."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from broker_config.managed import ManagedBroker
from device_agent import Origin
from device_agent.agent import Agent
from device_agent.config import AgentConfig, AgentPipelineConfig, OriginConfig
from device_agent.sources.directory import DirectorySourceConfig, watch
from device_agent.sources.mqtt import MqttSourceConfig
from device_agent.sources.python import PythonSourceConfig
from distree import topics
from distree.broker_settings import BrokerSettings
from distree.bundle.loading import Bundle, load_bundle
from distree.bundle.windows import count_of
from distree.client.results import result_topic
from distree.client.subscription import Subscription
from distree.errors import InputError, Problem
from distree.messages.codec import decode, encode
from distree.messages.events import DeadLetter
from distree.messages.request import InputMessage
from distree.messages.result import Result
from distree.topics import Kind
from distree.transport.base import Received

WAYS = ("folder", "MQTT", "submit", "Python")
PATIENCE_S = 120.0
_SITE, _PIPELINE = "odd", "p"
_TOPIC = "odd-files/"
_LONG_MS = 60_000.0


@dataclass(slots=True)
class Outcome:
    """What came of a file: why it was refused, or label and confidence of each of its windows, in order."""

    refusal: Problem | None = None
    reason: str = ""
    answers: dict[str, tuple[str | None, float]] = field(default_factory=dict)
    windows: int = 1

    @property
    def is_complete(self) -> bool:
        return self.refusal is not None or len(self.answers) >= self.windows

    def __str__(self) -> str:
        if self.refusal is not None:
            return f"refused: {self.refusal}"
        answers = sorted(self.answers.items(), key=lambda item: int((item[0] or "1").partition("/")[0]))
        return ", ".join(f"{label} {confidence:.4f}" for _, (label, confidence) in answers)


class Ways:
    """A broker, and an origin of one bundle for each way in; a wide bundle's branches run on boards of their own."""

    def __init__(self, bundle: str, folder: Path) -> None:
        self.bundle: Bundle = load_bundle(bundle, verify=())
        self._folder = folder
        self._inbox = folder / "inbox"
        self._files = folder / "files"
        self._stack = contextlib.ExitStack()
        self._outcomes: dict[str, dict[str, Outcome]] = {}

    def __enter__(self) -> Ways:
        with contextlib.ExitStack() as stack:
            self._inbox.mkdir(parents=True)
            self._files.mkdir()
            # Nobody is still writing here, so that an empty file needs no patience.
            stack.enter_context(mock.patch.object(watch, "PATIENCE_S", 2.0))
            broker = stack.enter_context(ManagedBroker())
            self._broker = BrokerSettings(host=broker.host, port=broker.port)
            for branch in range(max(self.bundle.branch_counts)):
                self._run(stack, f"branch{branch}", self._part(tuple(range(len(self.bundle.stages))), branch=branch))
            stages = () if self.bundle.is_wide else tuple(range(len(self.bundle.stages)))
            for device, source in {
                "folder": DirectorySourceConfig(kind="directory", path=self._inbox, poll_interval_ms=20),
                "mqtt": MqttSourceConfig(kind="mqtt", topic=f"{_TOPIC}+"),
            }.items():
                self._run(stack, device, self._part(stages, origin=self._origin(source)))
            part = self._part(stages, origin=self._origin(PythonSourceConfig(kind="python")))
            self._python = stack.enter_context(Origin.from_config(self._config("python", part)))
            self._heard = stack.enter_context(
                Subscription(
                    self._broker,
                    [result_topic(_SITE, _PIPELINE), *(topics.device(_SITE, "+", kind) for kind in (Kind.DEAD,))],
                    _read,
                    queue=1 << 16,
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ------------------------------------------------------------ boards

    def _origin(self, source: Any) -> OriginConfig:
        # So few under way that what all origins send has room on a board of a branch: nothing is shed there.
        return OriginConfig(source=source, deadline_ms=_LONG_MS, min_retry_ms=_LONG_MS / 3, max_pending=16)

    def _part(self, stages: tuple[int, ...], **changes: Any) -> AgentPipelineConfig:
        return AgentPipelineConfig(
            name=_PIPELINE, bundle=str(self.bundle.path), stages=stages, branch_timeout_ms=_LONG_MS / 2, **changes
        )

    def _config(self, device: str, part: AgentPipelineConfig) -> AgentConfig:
        return AgentConfig(
            site=_SITE, device=device, broker=self._broker, pipelines=(part,), self_test=False,
            state_dir=self._folder / device,
        )  # fmt: skip

    def _run(self, stack: contextlib.ExitStack, device: str, part: AgentPipelineConfig) -> None:
        agent = Agent(self._config(device, part))
        agent.prepare()
        thread = threading.Thread(target=agent.run, name=device)
        thread.start()
        stack.callback(thread.join, PATIENCE_S)
        stack.callback(agent.stop)
        if not agent.wait_ready(PATIENCE_S):
            raise TimeoutError(f"{device} does not come up")

    # ------------------------------------------------------------ files

    def hand_over(self, files: Mapping[str, bytes]) -> dict[str, dict[str, Outcome]]:
        """Hand over all files in all ways; return what came of each, by file and way."""
        for name, content in files.items():
            (self._files / name).write_bytes(content)
            hidden = self._inbox / f".{name}"
            hidden.write_bytes(content)
            hidden.rename(self._inbox / name)
            self._publish(name, content)
        outcomes = {"folder": self._await("folder", files), "MQTT": self._await("mqtt", files)}
        outcomes["submit"] = self._submit(files)
        outcomes["Python"] = {name: self._by_python(content) for name, content in files.items()}
        return {name: {way: outcomes[way][name] for way in WAYS} for name in files}

    def _publish(self, name: str, content: bytes) -> None:
        if content:
            self._heard.publish(f"{_TOPIC}{name}", content)
            return
        # An empty message is none: it clears what a broker has retained.
        message = InputMessage(request="empty", name=f"{_TOPIC}{name}", payload=content)
        self._heard.publish(topics.of_origin(_SITE, _PIPELINE, Kind.INPUT, "mqtt"), encode(message))

    def _await(self, device: str, files: Mapping[str, bytes]) -> dict[str, Outcome]:
        found = self._outcomes.setdefault(device, {})
        ends_at = time.monotonic() + PATIENCE_S
        while missing := [name for name in files if name not in found or not found[name].is_complete]:
            if time.monotonic() > ends_at:
                raise TimeoutError(f"by {device}, nothing came of {missing[:5]}")
            self._note(self._heard.get(PATIENCE_S))
        return found

    def _note(self, item: Result | DeadLetter) -> None:
        if isinstance(item, DeadLetter):
            name = item.input.removeprefix(_TOPIC).partition("@")[0]
            what = item.detail.removeprefix(f"{item.input}: ")
            self._of(item.device, name).refusal = Problem(what, item.remedy)
            self._of(item.device, name).reason = item.reason
            return
        name = item.input.removeprefix(_TOPIC).partition("@")[0]
        _add(self._of(item.origin, name), item)

    def _of(self, device: str, name: str) -> Outcome:
        return self._outcomes.setdefault(device, {}).setdefault(name, Outcome())

    def _submit(self, files: Mapping[str, bytes]) -> dict[str, Outcome]:
        found = {name: Outcome() for name in files}
        done = subprocess.run(
            [sys.executable, "-m", "distree", "submit", "--broker", self._broker.address, "--site", _SITE, "--pipeline",
             _PIPELINE, "--origin", "mqtt", "--timeout", f"{PATIENCE_S:g}", *files],
            cwd=self._files, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path[1:]])},
        )  # fmt: skip
        for line in done.stdout.splitlines():
            result = json.loads(line)
            outcome = found[result["input"].partition("@")[0]]
            part, outcome.windows = result["request"].rpartition("~")[2], count_of(result["request"])[1]
            outcome.answers[part if outcome.windows > 1 else ""] = result["label"], result["confidence"]
        for line in done.stderr.splitlines():
            name, _, text = line.removeprefix("distree: ").partition(": ")
            if name in found:
                what, _, remedy = text.rpartition("; ")
                found[name].refusal = Problem(what, remedy)
        if missing := [name for name, outcome in found.items() if not outcome.is_complete]:
            raise TimeoutError(f"by submit, nothing came of {missing[:5]}: {done.stderr[-500:]}")
        return found

    def _by_python(self, content: bytes) -> Outcome:
        outcome = Outcome()
        try:
            arrays = self._python.decode_windows(content)
            futures = [self._python.submit(array, timeout_s=PATIENCE_S) for array in arrays]
        except InputError as error:
            outcome.refusal = Problem(error.what.removeprefix("input: "), error.remedy)
            return outcome
        outcome.windows = len(futures)
        for number, future in enumerate(futures, 1):
            result = future.result(PATIENCE_S)
            part = f"{number}/{len(futures)}" if len(futures) > 1 else ""
            outcome.answers[part] = result.label, result.confidence
        return outcome


def _read(message: Received) -> Result | DeadLetter | None:
    if message.topic.endswith("/dead"):
        return decode(DeadLetter, message.payload)
    result = decode(Result, message.payload)
    # Of what `submit` sends, the command itself tells.
    return result if result.final and (result.origin != "mqtt" or result.input.startswith(_TOPIC)) else None


def _add(outcome: Outcome, result: Result) -> None:
    _, outcome.windows = count_of(result.request)
    part = result.request.rpartition("~")[2] if outcome.windows > 1 else ""
    outcome.answers[part] = result.label, result.confidence


def differing(outcomes: Mapping[str, Mapping[str, Outcome]]) -> Iterator[str]:
    """Yield a line for each file that has not the same outcome in all ways."""
    for name, by_way in outcomes.items():
        texts = {way: str(outcome) for way, outcome in by_way.items()}
        reasons = {by_way[way].reason for way in ("folder", "MQTT")}
        if len(set(texts.values())) > 1 or len(reasons) > 1:
            yield f"{name}: " + " | ".join(f"{way} {text} [{by_way[way].reason}]" for way, text in texts.items())
