"""Inputs from a source, or a program, up to the node; and what a fault of the interpreter costs."""

from __future__ import annotations

import json
import threading
from collections import Counter

import numpy as np
import pytest
from memory_transport import MemoryBroker

from device_agent.agent import Agent
from device_agent.config import AgentConfig, AgentPipelineConfig, OriginConfig, ThumbnailConfig
from device_agent.intake import check_given_id
from device_agent.sources.mqtt import MqttSourceConfig
from device_agent.sources.python import PythonSourceConfig
from device_agent.sources.replay import ReplaySourceConfig
from distree import topics
from distree.errors import ConfigError, RemoteProtocolError
from distree.topics import Kind


class Ear:
    """Keeps what is published on one of cam's topics."""

    def __init__(self, broker, topic):
        self.payloads = []
        self.transport = broker.transport("ear")
        self.transport.open(self, [(topic, 1)])
        self.transport.connect_now(1.0)

    def received(self, message):
        self.transport.acknowledge(message.token)
        self.payloads.append(message.payload)

    def connected(self):
        pass

    disconnected = published = no_subscribers = given_up = connected

    def heard(self):
        self.transport.poll(0.0)
        return self.payloads


def made(tmp_path, broker, *, source=None, stages=(), connect=True, **origin):
    """An agent cam that is connected, but has no threads: what it is to do is done by the test."""
    settings = OriginConfig(source=source or MqttSourceConfig(kind="mqtt"), **origin)
    part = AgentPipelineConfig(name="p", bundle="fashion", stages=stages, origin=settings)
    agent = Agent(
        AgentConfig(site="lab", device="cam", pipelines=(part,), state_dir=tmp_path), transport=broker.transport("cam")
    )
    agent.transport.open(agent, [])
    if connect:
        agent.transport.connect_now(1.0)
    return agent, agent.intakes[0]


def image():
    return np.zeros((28, 28, 1), np.uint8)


def test_an_input_is_accepted_and_its_deadline_is_watched_for(tmp_path):
    agent, intake = made(tmp_path, MemoryBroker())
    woken = []
    agent.transport.wake = lambda: woken.append("woken")
    request = intake.submit("a", image())
    assert agent.pipelines[0].node.holds(request)
    assert woken == []
    agent._waits_until = 1e12
    intake.submit("b", image())
    assert woken == ["woken"], "the network's thread waits beyond the deadline"


def test_a_wrong_input_is_refused_and_costs_no_room(tmp_path):
    broker = MemoryBroker()
    agent, intake = made(tmp_path, broker, max_pending=1)
    with pytest.raises(RemoteProtocolError):
        intake.submit("a", image()[:-1])
    assert agent.pipelines[0].node.room() == 1
    assert intake.wait_for_room(0.0)
    intake.submit("b", image())
    assert not intake.wait_for_room(0.0)


def test_what_is_no_input_is_dead_lettered_by_the_topic_of_inputs(tmp_path):
    broker = MemoryBroker()
    agent, intake = made(tmp_path, broker)
    ear = Ear(broker, topics.device("lab", "cam", Kind.DEAD))
    intake.reject("a", RemoteProtocolError("image", "not an image", "send one"), b"x")
    (letter,) = map(json.loads, ear.heard())
    assert (letter["topic"], letter["reason"]) == ("distree/1/lab/pipeline/p/input/cam", "image")
    assert agent.reporting.dead_letters == 1


def test_a_refused_input_is_told_once_with_its_name_and_request(tmp_path, caplog):
    broker = MemoryBroker()
    _, intake = made(tmp_path, broker)
    ear = Ear(broker, "distree/1/lab/device/cam/+")
    error = RemoteProtocolError("image", "not an image", "send one")
    intake.reject("a.png", error, b"x", request="r-1", topic="frigate/door")
    letter, event = (
        one for one in map(json.loads, ear.heard()) if one["schema"] in ("distree.dead/1", "distree.event/1")
    )
    assert (letter["topic"], letter["input"], letter["request"]) == ("frigate/door", "a.png", "r-1")
    assert (letter["detail"], letter["remedy"]) == ("a.png: not an image", "send one")
    assert (event["kind"], event["pipeline"]) == ("input", "p")
    assert (event["what"], event["remedy"]) == ("refused a.png: not an image", "send one")
    assert caplog.text.count("not an image") == 1


def test_refusals_of_one_kind_are_told_one_by_one_up_to_a_bound_and_dead_lettered_all(tmp_path, caplog):
    broker = MemoryBroker()
    _, intake = made(tmp_path, broker)
    ear = Ear(broker, "distree/1/lab/device/cam/+")
    for number in range(100):
        intake.reject(f"{number}.png", RemoteProtocolError("image", f"{number} bytes", "send one"), b"x")
    intake.reject("other", RemoteProtocolError("table", "line 1", "mend it"), b"x")
    schemas = Counter(json.loads(payload)["schema"] for payload in ear.heard())
    assert (schemas["distree.dead/1"], schemas["distree.event/1"]) == (101, 9)
    assert caplog.text.count("refused ") == 9


def test_a_picture_is_made_only_while_the_broker_is_there(tmp_path):
    agent, intake = made(tmp_path, MemoryBroker(), thumbnails=ThumbnailConfig())
    shown = []
    agent.mailbox.publish_thumbnail = lambda _pipeline, thumbnail: shown.append(thumbnail.request)
    agent.transport.online = False
    intake.submit("a", image(), "first")
    assert shown == []
    agent.transport.online = True
    intake.submit("b", image(), "second")
    assert shown == ["second"]


def test_inputs_that_are_at_hand_are_submitted_as_there_is_room_for_them(tmp_path):
    path = tmp_path / "inputs.npz"
    np.savez(path, input=np.zeros((5, 28, 28, 1), np.uint8))
    source = ReplaySourceConfig(kind="replay", path=path)
    agent, intake = made(tmp_path, MemoryBroker(), source=source, max_pending=2)
    agent.prepare(tests=())
    assert intake.due_at() == float("inf"), "not begun"
    intake.start(threading.Event())
    assert intake.ready
    with agent.lock:
        intake.tick(1e12)
        assert agent.pipelines[0].node.pending == 2
        assert intake.due_at() == float("inf"), "no room"
        intake.stop_pulling()
        intake.tick(1e12)
    assert agent.pipelines[0].node.pending == 2


def test_a_pipeline_without_inputs_has_no_intake(tmp_path):
    part = AgentPipelineConfig(name="p", bundle="fashion", stages=(0,))
    config = AgentConfig(site="lab", device="cam", pipelines=(part,), state_dir=tmp_path)
    assert Agent(config, transport=MemoryBroker().transport("cam")).intakes == []


class Ends:
    """A source that ends by an error."""

    ready = True

    def __init__(self, error):
        self.error = error

    def run(self, stop):
        raise self.error

    def note_answered(self, request):
        pass


@pytest.mark.parametrize(
    ("error", "ends"), [(ConfigError("gone", "bring it back"), False), (ZeroDivisionError("a fault"), True)]
)
def test_a_source_that_breaks_ends_the_agent_and_one_that_gives_up_does_not(tmp_path, caplog, error, ends):
    agent, intake = made(tmp_path, MemoryBroker(), source=PythonSourceConfig(kind="python"))
    agent.pipelines[0].source = Ends(error)
    intake.start(threading.Event())
    intake.join(30.0)
    assert agent._stopping.is_set() == ends
    assert str(error) in caplog.text


class Runtime:
    name = "none"

    def __init__(self, error):
        self.error = error

    def run(self, stage, tensor):
        raise self.error


@pytest.mark.parametrize(
    ("error", "dead"),
    [
        (ValueError("of the interpreter"), []),
        (RemoteProtocolError("size", "too few"), [("distree/1/lab/pipeline/p/stage/0/cam/+", "size", "too few")]),
    ],
)
def test_an_interpreter_that_raises_costs_its_input_alone(tmp_path, error, dead):
    broker = MemoryBroker()
    agent, intake = made(tmp_path, broker, stages=(0,))
    agent.pipelines[0].runtime = Runtime(error)
    letters = Ear(broker, topics.device("lab", "cam", Kind.DEAD))
    results = broker.transport("results")
    answers = []
    agent.mailbox.on_result = answers.append
    intake.submit("a", image(), "first")
    intake.run_jobs()
    assert [(one["topic"], one["reason"], one["detail"]) for one in map(json.loads, letters.heard())] == dead
    ((request, reason),) = [(result.request, result.reason) for result in answers]
    assert (request, reason) == ("first", "fallback")
    results.close()


def test_nobody_else_gives_the_ids_that_the_board_gives_itself():
    """Else whoever sees its boot id could have inputs to come dropped as duplicates."""
    for ident in ("5ab1e-1", "5ab1e-py-2"):
        with pytest.raises(RemoteProtocolError, match="are given by this board alone") as caught:
            check_given_id(ident, "5ab1e")
        assert caught.value.reason == "request"
    check_given_id("5ab1ef-1", "5ab1e")
    check_given_id("mine", "5ab1e")
