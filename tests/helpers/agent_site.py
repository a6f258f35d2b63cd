"""A site for tests: a real mosquitto, real agents in threads, and a client that plays any other board."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from broker_config.managed import ManagedBroker, find_mosquitto
from device_agent.agent import Agent
from device_agent.config import AgentConfig, AgentPipelineConfig, OriginConfig
from device_agent.sources.python import PythonSourceConfig
from distree import topics
from distree.broker_settings import BrokerSettings, Session
from distree.bundle.loading import load_bundle
from distree.messages.codec import decode, encode
from distree.messages.device import DeviceState, DeviceStatus
from distree.messages.events import DeadLetter
from distree.messages.member import Member
from distree.topics import Kind
from distree.transport import make_transport

LONG_S = 30.0
"""Bound of what must come at all."""

SITE = "lab"
FASHION = load_bundle("fashion", verify=())


_numbers = itertools.count()


def image(value=0):
    return np.full((28, 28, 1), value, np.uint8)


def pipeline(name="p", *stages, origin=None, bundle="fashion", **changes):
    return AgentPipelineConfig(name=name, bundle=bundle, stages=stages, origin=origin, **changes)


def origin(**changes):
    """An origin whose inputs the test hands over, and that does not give up on a busy machine."""
    return OriginConfig(
        **{"source": PythonSourceConfig(kind="python"), "deadline_ms": 20_000, "min_retry_ms": 8_000, **changes}
    )


class Site:
    """A broker and the agents at it; all ends with the `with` block."""

    def __init__(self, folder: Path, **broker):
        if find_mosquitto() is None:
            pytest.skip("mosquitto is not installed: apt install mosquitto")
        self.folder = folder
        self.broker = ManagedBroker(engine="mosquitto", **broker)
        self._running: dict[str, tuple[Agent, threading.Thread]] = {}
        self._peers = contextlib.ExitStack()

    def __enter__(self):
        self.broker.__enter__()
        return self

    def __exit__(self, *_):
        with contextlib.ExitStack() as last:
            last.callback(self.broker.__exit__, None, None, None)
            last.callback(self._peers.close)
            for device in tuple(self._running):
                last.callback(self.stop, device)

    @property
    def settings(self):
        return BrokerSettings(host=self.broker.host, port=self.broker.port)

    def make(self, device, *pipelines, **changes):
        """An agent with its interpreters, not yet at the broker; a test may still change it."""
        made = AgentConfig(
            site=SITE,
            device=device,
            pipelines=pipelines,
            broker=self.settings,
            state_dir=self.folder / device,
            **{"self_test": False, "telemetry_interval_s": 0.3, **changes},
        )
        agent = Agent(made)
        agent.prepare()
        agent.answers = []
        agent.mailbox.on_result = agent.answers.append
        return agent

    def start(self, agent):
        thread = threading.Thread(target=agent.run)
        thread.start()
        self._running[agent.config.device] = agent, thread
        assert agent.wait_ready(LONG_S)
        return agent

    def run(self, device, *pipelines, **changes):
        return self.start(self.make(device, *pipelines, **changes))

    def stop(self, device):
        """End an agent cleanly, and wait until it has."""
        agent, thread = self._running.pop(device)
        agent.stop()
        thread.join(LONG_S)
        assert not thread.is_alive()

    def peer(self, device="x"):
        return self._peers.enter_context(contextlib.closing(Peer(self.settings, device)))


class Peer:
    """A client that may say anything in anybody's name, and keeps what it hears."""

    def __init__(self, settings, device):
        self.device, self.boot = device, "1"
        self.heard, self.at = [], []
        self.transport = make_transport(settings, client_id=f"peer_{os.urandom(4).hex()}", session=Session.NONE)
        self.transport.open(self, [])
        self.transport.connect_now(LONG_S)

    def connected(self): ...

    disconnected = published = given_up = connected

    def no_subscribers(self, topic, payload):
        pass

    def received(self, message):
        self.heard.append(message)
        self.at.append(time.monotonic())
        self.transport.acknowledge(message.token)

    def close(self):
        self.transport.close()

    def hear(self, *filters):
        """Listen, and wait until the broker has taken that in."""
        marker = f"marker/{os.urandom(4).hex()}"
        with self.transport.lock:
            self.transport.subscribe([(name, 1) for name in (*filters, marker)])
        ends_at = time.monotonic() + LONG_S
        while not any(message.topic == marker for message in self.heard):
            assert time.monotonic() < ends_at
            self.say(marker, b"x")
            self.transport.poll(0.05)

    def say(self, topic, payload, *, retain=False):
        with self.transport.lock:
            self.transport.publish(topic, payload, qos=1, retain=retain)
        self.transport.poll(0.0)

    def until(self, condition, what, patience_s=LONG_S):
        ends_at = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < ends_at, f"waited in vain for {what}"
            self.transport.poll(0.01)

    def pause(self, seconds):
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self.transport.poll(0.01)

    # ------------------------------------------------------------ as a board

    def member(self, *stages, name="p", **changes):
        given = {
            "device": self.device, "boot": self.boot, "pipeline": name, "model": FASHION.name,
            "revisions": (FASHION.revision,), "stages": stages, **changes,
        }  # fmt: skip
        return Member(**given)

    def announce(self, *stages, name="p"):
        """Say that the board of this name serves stages, and is ready."""
        self.state(DeviceStatus.READY)
        for k in stages:
            self.say(topics.member(SITE, name, k, self.device), encode(self.member(*stages, name=name)), retain=True)

    def state(self, status):
        said = DeviceState(device=self.device, boot=self.boot, status=status)
        self.say(topics.device(SITE, self.device, Kind.STATE), encode(said), retain=True)

    # ------------------------------------------------------------ what was heard

    def on(self, topic):
        return [message for message in self.heard if message.topic == topic]

    def dead_letters(self):
        return [decode(DeadLetter, m.payload) for m in self.heard if m.topic.endswith("/dead")]

    def retained(self):
        """Return the last that was heard of each topic, but for what was emptied."""
        last = {message.topic: message for message in self.heard}
        return {topic: message for topic, message in last.items() if message.payload and topic.startswith(topics.ROOT)}


def ask(agent, count=1, index=0):
    """Submit inputs to pipeline number `index`; return their names."""
    intake = next(one for one in agent.intakes if one.pipeline.index == index)
    names = [f"{intake.pipeline.config.name}-{next(_numbers)}" for _ in range(count)]
    for name in names:
        intake.submit(name, image())
        intake.wake()
    return names


def answered(agent):
    """Return the devices that a result came by, for each input that has one."""
    return {result.input: [hop.device for hop in result.hops] for result in tuple(agent.answers) if result.final}


def wait_for(condition, what, patience_s=LONG_S):
    ends_at = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < ends_at, f"waited in vain for {what}"
        time.sleep(0.01)
