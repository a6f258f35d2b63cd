"""What an origin owes a spool that sheds, and an answer to a request of an earlier run."""

from __future__ import annotations

import numpy as np
import pytest
from memory_transport import MemoryBroker

from device_agent.agent import Agent
from device_agent.config import AgentConfig, AgentPipelineConfig, OriginConfig
from device_agent.sources.mqtt import MqttSourceConfig
from device_agent.spool import Spool
from distree import topics
from distree.errors import RemoteProtocolError
from distree.messages.codec import decode
from distree.messages.request import Guess, Outcome
from distree.messages.result import Result
from distree.topics import Kind


def config(tmp_path, source, **changes):
    pipeline = AgentPipelineConfig(
        name="p", bundle="fashion", origin=OriginConfig(source=source, spool=True, **changes)
    )
    return AgentConfig(site="lab", device="cam", pipelines=(pipeline,), state_dir=tmp_path)


@pytest.fixture
def agent(tmp_path):
    """An origin without stages, so that inputs stay in its books; with room for one."""
    transport = MemoryBroker().transport("cam")
    agent = Agent(config(tmp_path, MqttSourceConfig(kind="mqtt"), max_pending=1), transport=transport)
    transport.open(agent, [])
    return agent


def image():
    return np.zeros((28, 28, 1), np.uint8)


def spooled(tmp_path):
    return [item.request for item in Spool(tmp_path / "p.spool").recover().open]


def test_an_open_input_is_in_the_spool(agent, tmp_path):
    agent.intakes[0].submit("a", image(), "first")
    assert spooled(tmp_path) == ["first"]


def test_a_shed_input_is_answered_and_not_kept_for_the_next_run(agent, tmp_path):
    agent.intakes[0].submit("a", image(), "first")
    agent.intakes[0].submit("b", image(), "shed")
    assert spooled(tmp_path) == ["first"]


def test_an_input_that_was_answered_is_not_kept_when_it_comes_again(agent, tmp_path):
    pipeline = agent.pipelines[0]
    agent.intakes[0].submit("a", image(), "first")
    with agent.transport.lock:
        for effect in pipeline.node.tick(1e12):
            agent.mailbox.perform(pipeline, [effect])
        pipeline.note_published("first")
    agent.intakes[0].submit("a", image(), "first")
    assert spooled(tmp_path) == []


class Ear:
    """Keeps what it hears, and who acknowledged its own publishes."""

    def __init__(self, broker, name="ear"):
        self.payloads = []
        self.transport = broker.transport(name)
        self.transport.open(self, [(topics.of_origin("lab", "p", Kind.RESULT, "cam"), 1)])

    def received(self, message):
        self.transport.acknowledge(message.token)
        self.payloads.append(message.payload)

    def connected(self):
        pass

    disconnected = published = no_subscribers = connected

    def hears(self, *others):
        for _ in range(10):
            for transport in (*others, self.transport):
                transport.poll(0.0)
        return self.payloads


def due(agent):
    pipeline = agent.pipelines[0]
    with agent.transport.lock:
        agent.mailbox.perform(pipeline, pipeline.node.tick(1e12))


def test_an_answer_whose_arrival_is_unknown_is_said_again_to_the_byte_and_once(agent, tmp_path):
    agent.intakes[0].submit("a", image(), "first")
    due(agent)
    # The broker never heard it, for nobody polled: the process dies.
    ((request, payload),) = Spool(tmp_path / "p.spool").recover().unpublished
    assert request == "first"
    broker = MemoryBroker()
    ear = Ear(broker)
    ear.hears()
    second = Agent(config(tmp_path, MqttSourceConfig(kind="mqtt")), transport=broker.transport("cam"))
    second.transport.open(second, [])
    assert ear.hears(second.transport) == [payload]
    # The same delivered again is not computed anew.
    second.intakes[0].submit("a", image(), "first")
    due(second)
    assert ear.hears(second.transport) == [payload]
    left = Spool(tmp_path / "p.spool").recover()
    assert (left.open, left.unpublished, left.answered) == ((), (), ("first",))


def test_an_answer_to_a_shed_input_is_kept_until_the_broker_has_it(agent, tmp_path):
    agent.intakes[0].submit("a", image(), "first")
    agent.intakes[0].submit("b", image(), "shed")
    left = Spool(tmp_path / "p.spool").recover()
    assert [request for request, _ in left.unpublished] == ["shed"]
    assert decode(Result, left.unpublished[0][1]).reason == "shed"


def test_a_failing_disk_is_told_in_telemetry(agent, tmp_path):
    pipeline = agent.pipelines[0]
    assert pipeline.telemetry().origin.unspooled == 0
    (tmp_path / "p.spool").unlink()
    (tmp_path / "p.new").mkdir()
    agent.intakes[0].submit("a", image(), "first")
    agent.reporting.report()
    assert pipeline.telemetry().origin.unspooled == 1
    (tmp_path / "p.new").rmdir()
    pipeline.spool.retry(1e12)
    assert pipeline.telemetry().origin.unspooled == 0


def test_an_answer_to_a_request_of_an_earlier_run_is_refused(tmp_path):
    """Its token is of no attempt by this run: it may be anybody's, and the input has been answered."""
    spool = Spool(tmp_path / "p.spool")
    spool.recover()
    transport = MemoryBroker().transport("cam")
    first = Agent(config(tmp_path, MqttSourceConfig(kind="mqtt")), transport=MemoryBroker().transport("first"))
    first.intakes[0].submit("a", image(), "old")
    first.pipelines[0].spool.note_published("old")
    first.pipelines[0].spool.close()
    agent = Agent(config(tmp_path, MqttSourceConfig(kind="mqtt")), transport=transport)
    guess = Guess(exit=1, class_id=1, confidence=0.5)
    outcome = Outcome(request="old", token=b"the past", guess=guess, reason="confident", spent_s=0.1, hops=())
    with pytest.raises(RemoteProtocolError) as caught:
        agent.pipelines[0].node.receive(1.0, outcome, object())
    assert caught.value.reason == "token"


@pytest.mark.parametrize("told", [True, False])
def test_an_answer_to_a_shed_input_that_was_settled_is_not_said_again(agent, tmp_path, told):
    pipeline = agent.pipelines[0]
    agent.intakes[0].submit("a", image(), "first")
    agent.intakes[0].submit("b", image(), "shed/by name")
    with agent.transport.lock:
        (agent.published if told else agent.given_up)("0/SHED/shed/by name")
    left = Spool(tmp_path / "p.spool").recover()
    assert left.unpublished == ()
    assert [item.request for item in left.open] == ["first"]
    counts = pipeline.node.telemetry().origin
    assert (counts.accepted, counts.shed, counts.dropped) == (1, int(told), int(not told))
