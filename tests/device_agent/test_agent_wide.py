"""A board of wide stages: what it listens to, what it sends, and that eager branches hear a word to stop in time."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import request_samples
from memory_transport import MemoryBroker
from request_samples import embedding_of, token_of

from device_agent.agent import Agent
from device_agent.config import AgentConfig, AgentPipelineConfig, OriginConfig
from device_agent.mailbox import DECISION_EXPIRY_S
from device_agent.preflight import fuses, load_bundles
from device_agent.sources.mqtt import MqttSourceConfig
from distree import tensors, topics
from distree.bundle.loading import load_bundle
from distree.criteria.base import CriterionParameters
from distree.messages.codec import decode, encode
from distree.messages.request import Decision, Embedding, Outcome, RouteStop
from distree.segments import SegmentOutput
from distree.topics import Kind

DATA = Path(__file__).parents[1] / "data"
LONG_S = 30.0
"""Bound of what must come at all."""

STAGE = topics.stage("lab", "p", 0, "b0", "hub")
ROUTE = (RouteStop(stage=0, boards=("b0", "b1")),)


@pytest.fixture(scope="module")
def wide():
    return load_bundle(DATA / "tiny-wide", verify=())


def config(folder, *, bundle="tiny-wide", device="b0", **pipeline):
    made = AgentPipelineConfig(name="p", bundle=str(DATA / bundle), **pipeline)
    return AgentConfig(site="lab", device=device, pipelines=(made,), state_dir=folder, shutdown_timeout_s=0.1)


def mqtt_origin(**changes):
    return OriginConfig(source=MqttSourceConfig(kind="mqtt"), **changes)


def subscriptions(made):
    return {name for name, _ in Agent(made, transport=MemoryBroker().transport("x")).mailbox.subscriptions()}


def exits(device, sender):
    return topics.to_board("lab", "p", Kind.EXIT, device, sender)


def decisions(device, sender):
    return topics.to_board("lab", "p", Kind.DECISION, device, sender)


def test_a_branch_reads_what_is_for_it_and_for_all_and_listens_for_decisions(tmp_path):
    heard = subscriptions(config(tmp_path, stages=(0, 1, 2), branch=1))
    assert {topics.stage("lab", "p", 0, to, "+") for to in ("b0", topics.ALL)} <= heard
    assert decisions("b0", "+") in heard
    assert exits("b0", "+") not in heard
    # Between wide stages in a row nothing travels.
    assert not any("/stage/1" in name or "/stage/2" in name for name in heard)


def test_who_fuses_listens_for_embeddings(tmp_path):
    for roles in ({"origin": mqtt_origin()}, {"fuse": True}, {"stages": (0, 1, 2), "branch": 0, "fuse": True}):
        heard = subscriptions(config(tmp_path, **roles))
        assert exits("b0", "+") in heard
        assert (decisions("b0", "+") in heard) == ("branch" in roles)
    chain = AgentConfig(
        site="lab", device="b0", pipelines=(AgentPipelineConfig(name="p", bundle="fashion", origin=mqtt_origin()),)
    )
    assert not any("/exit/" in name or "/decision/" in name for name in subscriptions(chain))


def test_plain_stages_beside_wide_ones_are_read_by_the_board_s_name_alone(tmp_path):
    heard = subscriptions(config(tmp_path, bundle="tiny-mixed", stages=(0, 1, 2, 3), branch=2))
    assert {name for name in heard if "/stage/" in name} == {
        topics.stage("lab", "p", k, to, "+") for k, to in ((0, "b0"), (1, "b0"), (1, topics.ALL), (3, "b0"))
    }


def test_wide_stages_in_a_row_are_one_group(wide):
    assert wide.wide_groups == [[0, 1, 2]]
    assert load_bundle(DATA / "tiny-mixed", verify=()).wide_groups == [[1, 2]]
    assert load_bundle("fashion", verify=()).wide_groups == []


@pytest.mark.parametrize(
    ("roles", "decides"),
    [
        ({"stages": (1, 2), "branch": 0}, False),
        ({"stages": (0, 1, 2), "branch": 0}, True),
        ({"stages": (3,)}, True),
        ({"fuse": True}, True),
        ({"origin": mqtt_origin(fuser="hub", mode="eager")}, True),
    ],
)
def test_the_node_is_told_of_its_roles_and_what_it_needs_for_them(tmp_path, roles, decides):
    made = config(tmp_path, bundle="tiny-mixed", **roles)
    settings = Agent(made, transport=MemoryBroker().transport("x")).pipelines[0].node.settings
    (bundle,) = load_bundles(made)
    assert settings.embeddings == ((), (("int8", (1, 4)),) * 3, (("int8", (1, 4)),) * 3, ())
    assert settings.masked == bundle.manifest.exits.masked != ()
    assert settings.parameters == (bundle.criterion_parameters() if decides else CriterionParameters())
    assert (settings.branch, settings.fuses) == (roles.get("branch"), roles.get("fuse", False))
    assert settings.branch_timeout_s == 0.2
    if "origin" in roles:
        assert (settings.origin.fuser, settings.origin.eager) == ("hub", True)
        assert fuses(made.pipelines[0], bundle)


# ---------------------------------------------------------------- at work


class Peer:
    """A client that keeps what it hears; driven by the threads that call it."""

    def __init__(self, broker, *filters):
        self.heard = []
        self.transport = broker.transport("peer", receive_maximum=1000)
        self.transport.open(self, [(name, 1) for name in filters])
        self.transport.connect_now(1.0)

    def connected(self): ...
    def disconnected(self, why): ...
    def published(self, token): ...

    def given_up(self, token):
        pass

    def no_subscribers(self, topic, payload):
        pass

    def received(self, message):
        self.heard.append(message)
        self.transport.acknowledge(message.token)

    def say(self, topic, payload):
        with self.transport.lock:
            self.transport.publish(topic, payload, qos=1)

    def until(self, condition, what):
        ends_at = time.monotonic() + LONG_S
        while not condition():
            assert time.monotonic() < ends_at, f"waited in vain for {what}"
            self.transport.poll(0.01)

    def embeddings(self):
        return [decode(Embedding, message.payload) for message in self.heard if "/exit/" in message.topic]


class Branch:
    """A runtime of a branch whose stages take no time, but do what the test says while they run."""

    name = "none"

    def __init__(self):
        self.runs = []
        self.during = {}

    def run(self, stage, tensor):
        self.runs.append(stage)
        self.during.pop(stage, lambda: None)()
        features = None if stage == 2 else np.zeros((1, 4, 4, 4), np.int8)
        return SegmentOutput(features=features, logits=[], embedding=np.zeros((1, 6), np.int8))


@contextlib.contextmanager
def running(agent):
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        assert agent.wait_ready(LONG_S)
        yield
    finally:
        agent.stop()
        thread.join(LONG_S)
        assert not thread.is_alive()


@pytest.fixture
def board(tmp_path):
    """The agent of branch 0, its runtime, and the peer that is origin and fuses."""
    broker = MemoryBroker()
    peer = Peer(broker, exits("hub", "+"))
    agent = Agent(config(tmp_path, stages=(0, 1, 2), branch=0), transport=broker.transport("b0"))
    runtime = agent.pipelines[0].runtime = Branch()
    with running(agent):
        yield agent, runtime, peer


def stage_message(bundle, request="r1", *, eager=True, route=ROUTE):
    tensor = tensors.encode(np.zeros((1, 8, 8, 3), np.int8))
    return encode(
        request_samples.stage_message(
            tensor,
            request=request,
            origin="hub",
            revision=bundle.revision,
            spent_s=0.5,
            fuser="hub",
            eager=eager,
            route=route,
        )
    )


def decision(request="r1", *, stage=0, go=False):
    return encode(Decision(request=request, token=token_of(request), stage=stage, go=go))


def test_an_eager_branch_goes_on_by_itself(board, wide):
    _, runtime, peer = board
    peer.say(STAGE, stage_message(wide))
    peer.until(lambda: len(peer.embeddings()) == 3, "three embeddings")
    assert runtime.runs == [0, 1, 2]
    assert [(message.stage, message.branch, message.device) for message in peer.embeddings()] == [
        (k, 0, "b0") for k in range(3)
    ]


def test_what_is_for_all_boards_of_a_stage_is_run_by_those_on_its_route(board, wide):
    agent, runtime, peer = board
    every = topics.stage("lab", "p", 0, topics.ALL, "hub")
    for request, boards in (("others", ("b3", "b1")), ("ours", ("b0", "b1"))):
        route = (RouteStop(stage=0, boards=boards, together=True),)
        peer.say(every, stage_message(wide, request, route=route))
    peer.until(lambda: len(peer.embeddings()) == 3, "three embeddings")
    assert {message.context.request for message in peer.embeddings()} == {"ours"}
    assert runtime.runs == [0, 1, 2]
    assert agent.reporting.dead_letters == 0
    # What is sent to it alone must name it.
    peer.say(STAGE, stage_message(wide, "strays", route=(RouteStop(stage=0, boards=("b3", "b1")),)))
    peer.until(lambda: agent.reporting.dead_letters == 1, "a dead letter")
    assert runtime.runs == [0, 1, 2]


def test_an_eager_branch_that_is_told_to_stop_while_it_runs_runs_no_further_stage(board, wide):
    agent, runtime, peer = board
    # On its way while stage 1 runs, and so before stage 2 could begin.
    runtime.during[1] = lambda: peer.say(decisions("b0", "hub"), decision())
    peer.say(STAGE, stage_message(wide))
    peer.until(lambda: agent.pipelines[0].node.telemetry().stages[1].wasted == 1, "the wasted run")
    assert runtime.runs == [0, 1]
    assert [message.stage for message in peer.embeddings()] == [0]
    # The next input finds the board as ever.
    peer.say(STAGE, stage_message(wide, "r2"))
    peer.until(lambda: len(peer.embeddings()) == 4, "the next input's embeddings")
    assert runtime.runs == [0, 1, 0, 1, 2]


def test_what_waits_behind_a_run_is_stopped_before_it_runs(board, wide):
    agent, runtime, peer = board

    def meanwhile():
        # A second input, and then the word that the first one is answered.
        peer.say(STAGE, stage_message(wide, "r2"))
        peer.say(decisions("b0", "hub"), decision("r1"))

    runtime.during[0] = meanwhile
    peer.say(STAGE, stage_message(wide, "r1"))
    peer.until(lambda: sum(message.context.request == "r2" for message in peer.embeddings()) == 3, "the second input")
    assert runtime.runs == [0, 0, 1, 2]
    assert agent.reporting.dead_letters == 0


def test_a_gated_branch_waits_for_its_word(board, wide):
    agent, runtime, peer = board
    peer.say(STAGE, stage_message(wide, eager=False))
    peer.until(lambda: len(peer.embeddings()) == 1, "the first embedding")
    peer.say(decisions("b0", "hub"), decision(stage=0, go=True))
    peer.until(lambda: len(peer.embeddings()) == 2, "the second embedding")
    assert runtime.runs == [0, 1]
    peer.say(decisions("b0", "hub"), decision(stage=1, go=False))
    peer.until(agent._idle, "rest")
    assert runtime.runs == [0, 1]
    assert [stage.wasted for stage in agent.pipelines[0].node.telemetry().stages] == [0, 0, 0]


class Ledger:
    """Stands before a transport and notes how long each message at QoS 1 may wait."""

    def __init__(self, transport):
        self.expiries = {}
        publish = transport.publish

        def noted(topic, payload, *, expiry_s=None, **options):
            self.expiries.setdefault(topic, []).append(expiry_s)
            publish(topic, payload, expiry_s=expiry_s, **options)

        transport.publish = noted


def test_embeddings_expire_with_the_budget_and_their_bytes_are_counted(board, wide):
    agent, _, peer = board
    ledger = Ledger(agent.transport)
    peer.say(STAGE, stage_message(wide))
    peer.until(lambda: len(peer.embeddings()) == 3, "three embeddings")
    expiries = ledger.expiries[exits("hub", "b0")]
    assert len(expiries) == 3
    assert all(10.0 < expiry_s <= 19.5 for expiry_s in expiries)  # the machine may be busy
    sizes = [len(message.payload) for message in peer.heard]
    assert [stage.bytes_out for stage in agent.pipelines[0].node.telemetry().stages] == sizes


def say_embeddings(peer, bundle, request):
    """Publish what both branches have to say at the first exit, to the board `hub`."""
    for branch in range(2):
        tensor = tensors.encode(np.zeros((1, 6), np.int8))
        embedding = embedding_of(
            tensor,
            device=f"b{branch}",
            branch=branch,
            request=request,
            origin="cam",
            fuser="hub",
            revision=bundle.revision,
            route=ROUTE,
        )
        peer.say(exits("hub", f"b{branch}"), encode(embedding))


def test_decisions_go_to_the_boards_that_were_heard_and_expire(tmp_path, wide):
    broker = MemoryBroker()
    peer = Peer(broker, decisions("b0", "+"), decisions("b1", "+"))
    agent = Agent(config(tmp_path, device="hub", fuse=True), transport=broker.transport("hub"))

    class Head:
        name = "none"

        def fuse(self, stage, embeddings):
            assert [embedding.shape for embedding in embeddings] == [(1, 6), (1, 6)]
            return SegmentOutput(features=None, logits=[9.0, 0.0, 0.0, 0.0], embeddings=((0.0,) * 6,) * 2)

    agent.pipelines[0].runtime = Head()
    ledger = Ledger(agent.transport)
    with running(agent):
        say_embeddings(peer, wide, "r1")
        peer.until(lambda: len(peer.heard) == 2, "two decisions")
    assert [message.topic for message in peer.heard] == [decisions(f"b{branch}", "hub") for branch in range(2)]
    assert {decode(Decision, message.payload).go for message in peer.heard} == {False}
    assert ledger.expiries[decisions("b0", "hub")] == [DECISION_EXPIRY_S]


def test_a_fusion_head_that_raises_costs_its_request_alone(tmp_path, wide):
    broker = MemoryBroker()
    outcomes = topics.to_board("lab", "p", Kind.OUTCOME, "cam", "+")
    peer = Peer(broker, outcomes)
    agent = Agent(config(tmp_path, device="hub", fuse=True), transport=broker.transport("hub"))

    class Head:
        name = "none"
        calls = 0

        def fuse(self, stage, embeddings):
            self.calls += 1
            if self.calls == 1:
                raise ValueError("of the interpreter")
            return SegmentOutput(features=None, logits=[9.0, 0.0, 0.0, 0.0], embeddings=((0.0,) * 6,) * 2)

    agent.pipelines[0].runtime = Head()
    with running(agent):
        say_embeddings(peer, wide, "r1")
        say_embeddings(peer, wide, "r2")
        peer.until(lambda: len(peer.heard) == 2, "two outcomes")
    told = [decode(Outcome, message.payload) for message in peer.heard]
    assert [(outcome.request, outcome.reason) for outcome in told] == [("r1", "fallback"), ("r2", "confident")]
    assert agent.pipelines[0].node.telemetry().fusions[0].failed == 1
