"""What a board reads and writes, and that messages are taken from whom their topic names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from memory_transport import MemoryBroker
from request_samples import embedding_of

from device_agent.addresses import publications, roles, subscriptions, unheard
from device_agent.agent import Agent
from device_agent.config import AgentConfig, AgentPipelineConfig, OriginConfig, ThumbnailConfig
from device_agent.mailbox import _MAX_KNOWN_TOPICS
from device_agent.preflight import load_bundles
from device_agent.sources.mqtt import MqttSourceConfig
from device_agent.sources.python import PythonSourceConfig
from distree import tensors, topics
from distree.messages.codec import PROBE, encode
from distree.messages.device import DeviceMeta, HeldStage
from distree.messages.request import RouteStop
from distree.topics import Kind, Role
from distree.transport.base import Received

DATA = Path(__file__).parents[1] / "data"


def bundle_of(name):
    """Return a bundle of the tests, or of the zoo."""
    return str(DATA / name) if (DATA / name).exists() else name


def config(folder, *, bundle="tiny-wide", device="b0", **pipeline):
    made = AgentPipelineConfig(name="p", bundle=bundle_of(bundle), **pipeline)
    return AgentConfig(site="lab", device=device, pipelines=(made,), state_dir=folder)


def origin(source, **changes):
    return OriginConfig(source=source, **changes)


MQTT, PYTHON = MqttSourceConfig(kind="mqtt"), PythonSourceConfig(kind="python")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"stages": (0, 1, 2), "branch": 0}, {Role.STAGE, Role.BRANCH}),
        ({"fuse": True}, {Role.FUSER, Role.HUB}),
        ({"origin": origin(MQTT)}, {Role.FUSER, Role.ORIGIN}),
        ({"bundle": "tiny-mixed", "stages": (0,), "origin": origin(MQTT)}, {Role.STAGE, Role.FUSER, Role.ORIGIN}),
        ({"bundle": "tiny-mixed", "stages": (3,)}, {Role.STAGE}),
    ],
)
def test_roles(tmp_path, given, expected):
    made = config(tmp_path, **given)
    assert roles(made.pipelines[0], load_bundles(made)[0]) == {Role.BOARD, *expected}


def test_what_a_board_reads_follows_from_its_roles(tmp_path):
    def read(**given):
        made = config(tmp_path, **given)
        return {sub.filter.removeprefix("distree/1/lab/") for sub in subscriptions(made, load_bundles(made))}

    always = {"device/b0/state", "pipeline/p/plan", "pipeline/p/call/+", "pipeline/+/member/+/b0"}
    assert read(stages=(0, 1, 2), branch=1) == {
        *always, "pipeline/p/stage/0/b0/+", "pipeline/p/stage/0/all/+", "pipeline/p/decision/b0/+",
    }  # fmt: skip
    assert read(fuse=True) == {*always, "pipeline/p/exit/b0/+"}
    fusing_origin = {*always, "pipeline/p/exit/b0/+", "pipeline/p/outcome/b0/+", "pipeline/p/member/0/+"}
    assert read(origin=origin(MQTT)) == {*fusing_origin, "pipeline/p/input/b0"}
    assert read(origin=origin(PYTHON)) == fusing_origin
    # Of stages that it serves itself an origin needs nobody else, but for their other branches.
    given = {"bundle": "tiny-mixed", "stages": (0, 1, 2), "branch": 0, "origin": origin(PYTHON)}
    assert {name for name in read(**given) if "/member/" in name} == {
        "pipeline/+/member/+/b0", "pipeline/p/member/1/+", "pipeline/p/member/3/+",
    }  # fmt: skip
    assert "pipeline/p/stage/1/all/+" in read(**given)
    assert not {"pipeline/p/stage/0/all/+", "pipeline/p/stage/2/b0/+"} & read(**given)


def test_whatever_a_board_sends_to_others_ends_in_its_name(tmp_path):
    def meta(device, **what):
        return DeviceMeta(
            device=device, boot="a", version="0", python="3", runtime="", machine="", memory_mb=1,
            **{"stages": (), "origins": (), **what},
        )  # fmt: skip

    held = HeldStage(pipeline="p", stage=1, model="m", revision="r", branch=1)
    metas = [meta("cam", origins=("p",), fusers=("p",)), meta("b1", stages=(held,)), meta("hub", fusers=("p",))]
    made = config(
        tmp_path, bundle="tiny-mixed", stages=(0, 1, 2, 3), branch=0, fuse=True,
        origin=origin(MQTT, thumbnails=ThumbnailConfig()),
    )  # fmt: skip
    found = {topics.parse(topic) for topic in publications(made, load_bundles(made), metas)}
    assert {address.kind for address in found} == {
        Kind.STATE, Kind.META, Kind.TELEMETRY, Kind.DEAD, Kind.EVENT, Kind.EXIT, Kind.DECISION, Kind.OUTCOME, Kind.RESULT,
        Kind.AUDIT, Kind.THUMBNAIL, Kind.MEMBER, Kind.CALL, Kind.STAGE,
    }  # fmt: skip
    assert {address.sender or address.device or address.origin for address in found} == {"b0"}
    sent = {(address.kind, address.device or address.origin) for address in found if address.to is None}
    assert {pair for pair in sent if pair[1] not in (None, "b0")} == {
        (Kind.EXIT, "cam"), (Kind.EXIT, "hub"), (Kind.DECISION, "b1"), (Kind.OUTCOME, "cam"),
    }  # fmt: skip
    # To its own branch too, by way of the broker, and to all boards of the stage at once.
    stages = {(address.stage, address.to) for address in found if address.kind is Kind.STAGE}
    assert stages == {(1, "b1"), (1, "b0"), (1, "all")}
    assert {address.stage for address in found if address.kind is Kind.MEMBER} == {0, 1, 3}


def test_features_go_to_boards_that_hold_the_next_stage(tmp_path):
    def meta(device, stages, origins=()):
        held = tuple(HeldStage(pipeline="p", stage=k, model="m", revision="r") for k in stages)
        return DeviceMeta(
            device=device, boot="a", version="0", python="3", runtime="", machine="", memory_mb=1,
            stages=held, origins=origins,
        )  # fmt: skip

    def sent(metas, **given):
        made = config(tmp_path, bundle="fashion", **given)
        bundles = load_bundles(made)
        found = [*publications(made, bundles, metas), *unheard(made, bundles, metas, "nobody")]
        return {topic.removeprefix("distree/1/lab/pipeline/p/stage/") for topic in found if "/stage/" in topic}

    b1, b2, cam = meta("b1", (1, 2)), meta("b2", (2,)), meta("cam", (0, 2), ("p",))
    assert sent([b1, b2, cam], stages=(1,)) == {"2/b1/b0", "2/b2/b0", "2/cam/b0"}
    # What it could run itself it sends on only to an origin that does so.
    assert sent([b1, b2, cam], stages=(1, 2)) == {"2/cam/b0"}
    assert sent([b1, b2], stages=(1, 2)) == set()
    assert sent([], stages=(1,)) == {"2/nobody/b0"}
    # An origin probes any board that it has left out.
    assert sent([b1, cam], stages=(0,), origin=origin(MQTT)) == {"0/cam/b0", "1/b1/b0", "2/b1/b0", "2/cam/b0"}
    assert sent([], stages=(0,), origin=origin(MQTT)) == {"1/nobody/b0"}
    assert sent([], origin=origin(MQTT)) == {"0/nobody/b0"}


# ---------------------------------------------------------------- routing


@pytest.fixture
def hub(tmp_path):
    """The agent of a board that fuses, online, and a list of (topic, reason) of its dead letters."""
    broker = MemoryBroker()
    agent = Agent(config(tmp_path, device="hub", fuse=True), transport=broker.transport("hub"))
    agent.transport.open(agent, agent.mailbox.subscriptions())
    agent.transport.connect_now(1.0)
    dead = []
    dead_letter = agent.reporting.dead_letter

    def noted(topic, error, payload):
        dead.append((topic, error.reason))
        dead_letter(topic, error, payload)

    agent.reporting.dead_letter = noted
    agent.dead = dead
    return agent


def embedding(agent, device, request="r1", branch=0):
    tensor = tensors.encode(np.zeros((1, 6), np.int8))
    revision = agent.pipelines[0].bundle.revision
    return encode(
        embedding_of(
            tensor,
            device=device,
            branch=branch,
            request=request,
            origin="cam",
            fuser="hub",
            revision=revision,
            route=(RouteStop(stage=0, boards=("b0", "b1")),),
        )
    )


def receive(agent, topic, payload):
    with agent.lock:
        agent.received(Received(topic=topic, payload=payload, retain=False, token=None))


def exits(sender):
    return f"distree/1/lab/pipeline/p/exit/hub/{sender}"


def test_an_embedding_is_taken_from_the_board_that_its_topic_names(hub):
    receive(hub, exits("b0"), embedding(hub, "b0"))
    assert hub.dead == []
    assert hub.pipelines[0].node.books()["gatherings"] == 1


def test_one_in_another_board_s_name_is_not_and_leaves_no_trace(hub):
    receive(hub, exits("b1"), embedding(hub, "b0"))
    receive(hub, exits("b1"), embedding(hub, "b0"))  # the topic is known by now
    assert hub.dead == [(exits("b1"), "sender")] * 2
    assert hub.pipelines[0].node.books()["gatherings"] == 0
    # The board of that name is heard as ever.
    receive(hub, exits("b1"), embedding(hub, "b1", branch=1))
    assert len(hub.dead) == 2


@pytest.mark.parametrize("sender", ["", "all", "B0", "b" * 33, "b0\n", "ä", "+"])
def test_a_sender_that_is_no_board_is_refused_each_time(hub, sender):
    for _ in range(2):
        receive(hub, exits(sender), embedding(hub, "b0"))
    assert [reason for _, reason in hub.dead] == ["sender"] * 2
    assert exits(sender) not in hub.mailbox._known_topics


@pytest.mark.parametrize("topic", ["", "/", "exit/hub/b0", "distree/1/lab/pipeline/p/exit/hub", exits("b0") + "/x"])
def test_a_topic_that_was_not_subscribed_to_is_refused(hub, topic):
    receive(hub, topic, embedding(hub, "b0"))
    assert hub.dead == [(topic, "topic")]


def test_the_doctors_trial_is_ignored_whoever_sends_it(hub):
    for sender in ("b0", "all", ""):
        receive(hub, exits(sender), PROBE)
    assert hub.dead == []


def test_senders_without_number_take_no_memory_and_are_all_heard(hub):
    for index in range(3 * _MAX_KNOWN_TOPICS):
        receive(hub, exits(f"b{index}"), b"junk")
    assert len(hub.mailbox._known_topics) <= _MAX_KNOWN_TOPICS
    assert len(hub.dead) == 3 * _MAX_KNOWN_TOPICS
    receive(hub, exits("b0"), embedding(hub, "b0"))
    assert len(hub.dead) == 3 * _MAX_KNOWN_TOPICS


def test_a_branch_of_its_own_gets_its_input_by_the_broker_and_takes_it_for_no_announcement(tmp_path):
    """Both end in the board's name."""
    broker = MemoryBroker()
    made = config(tmp_path, bundle="tiny-mixed", stages=(0, 1, 2), branch=0, origin=origin(PYTHON))
    agent = Agent(made, transport=broker.transport("b0"))
    agent.transport.open(agent, agent.mailbox.subscriptions())
    agent.transport.connect_now(1.0)
    stage, own = (topics.stage("lab", "p", 1, "b0", "b0"), topics.member("lab", "p", 1, "b0"))
    with agent.lock:
        assert agent.mailbox._look_up(own) == (agent.mailbox.echoes.on_own_member, "b0")
        route, sender = agent.mailbox._look_up(stage)
    assert route == agent.mailbox._handlers[topics.stage("lab", "p", 1, "b0", "+")]
    assert sender == "b0"
