"""A pipeline and its board: all that it asks for goes by the port."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from device_agent.config import AgentConfig, MqttSource, OriginConfig, PipelineConfig, ThumbnailConfig
from device_agent.pipeline import Pipeline
from distree.bundle.loading import load_bundle
from distree.errors import RemoteProtocolError
from distree.messages.member import Member
from distree.messages.request import StageMessage, Stop
from distree.messages.result import Result
from distree.node import Publish, Run
from distree.segments import SegmentOutput


class Board:
    """Writes down what it is asked for, and does nothing of it."""

    def __init__(self):
        self.lock = threading.RLock()
        self.online = True
        self.effects, self.asked, self.dead, self.shown = [], [], [], []

    def perform(self, pipeline, effects):
        self.effects += effects

    def dead_letter(self, topic, error, payload):
        self.dead.append((topic, str(error), payload))

    def show(self, pipeline, thumbnail):
        self.shown.append(thumbnail)

    def wake_for(self, due_at):
        self.asked.append("wake for")

    def __getattr__(self, name):
        return lambda *_: self.asked.append(name)


@pytest.fixture
def board():
    return Board()


def make(board, tmp_path, *, stages=(), **origin):
    part = PipelineConfig(
        name="p", bundle="fashion", stages=stages, origin=OriginConfig(source=MqttSource(kind="mqtt"), **origin)
    )
    agent = AgentConfig(site="lab", device="cam", pipelines=(part,), state_dir=tmp_path)
    return Pipeline(board, agent, 0, load_bundle("fashion", verify=()), "boot")


def there(pipeline, device):
    """A board has announced itself for all stages, and is ready."""
    member = Member(
        device=device,
        boot="1",
        pipeline="p",
        model=pipeline.bundle.name,
        revisions=(pipeline.bundle.revision,),
        stages=(0, 1, 2),
    )
    pipeline.node.announced(time.monotonic(), member, 0, is_live=True)


def image():
    return np.zeros((28, 28, 1), np.uint8)


def test_an_input_is_taken_into_custody_sent_and_watched_for(board, tmp_path):
    pipeline = make(board, tmp_path)
    there(pipeline, "b1")
    request = pipeline.accept("a", image())
    (effect,) = board.effects
    assert isinstance(effect.message, StageMessage)
    assert effect.message.context.request == request
    assert (effect.to, effect.message.context.route) == ("b1", (Stop(stage=0, boards=("b1",)),))
    assert pipeline.node.holds(request)
    assert board.asked == ["wake for"]
    pipeline.work()
    pipeline.wake()
    assert board.asked == ["wake for", "work", "wake"]


def test_a_wrong_input_is_refused_before_the_board_hears_of_it(board, tmp_path):
    pipeline = make(board, tmp_path)
    with pytest.raises(RemoteProtocolError):
        pipeline.accept("a", image()[:-1])
    assert (board.effects, board.asked) == ([], [])
    pipeline.reject("a", RemoteProtocolError("image", "not an image", "send one"), b"x")
    assert board.dead == [("distree/1/lab/pipeline/p/input/cam", "image: a: not an image; send one", b"x")]


def test_a_picture_is_made_only_while_the_broker_is_there(board, tmp_path):
    pipeline = make(board, tmp_path, thumbnails=ThumbnailConfig())
    board.online = False
    pipeline.accept("a", image(), "first")
    assert board.shown == []
    board.online = True
    pipeline.accept("b", image(), "second")
    assert [thumbnail.request for thumbnail in board.shown] == ["second"]


class Runtime:
    name = "none"

    def __init__(self, outcome):
        self.outcome = outcome

    def run(self, stage, tensor):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_what_inference_brings_is_carried_out(board, tmp_path):
    pipeline = make(board, tmp_path, stages=(0,))
    pipeline.runtime = Runtime(SegmentOutput(features=np.zeros((1, 14, 14, 8), np.int8), logits=[99.0] + [0.0] * 9))
    pipeline.accept("a", image(), "first")
    (task,) = board.effects
    assert isinstance(task, Run)
    board.effects.clear()
    board.asked.clear()
    pipeline.infer(task)
    (result,) = (effect.message for effect in board.effects if isinstance(effect, Publish))
    assert isinstance(result, Result)
    assert (result.request, result.reason) == ("first", "confident")
    assert board.asked == ["deliver_results", "wake for"]


@pytest.mark.parametrize(
    ("error", "dead"),
    [
        (ValueError("of the interpreter"), []),
        (RemoteProtocolError("size", "too few"), [("distree/1/lab/pipeline/p/stage/0/cam/+", "size: too few")]),
    ],
)
def test_an_interpreter_that_raises_costs_its_input_alone(board, tmp_path, error, dead):
    pipeline = make(board, tmp_path, stages=(0,))
    pipeline.accept("a", image(), "first")
    (task,) = board.effects
    board.effects.clear()
    pipeline.runtime = Runtime(error)
    pipeline.infer(task)
    assert [(topic, error) for topic, error, _ in board.dead] == dead
    (result,) = (effect.message for effect in board.effects if isinstance(effect, Publish))
    assert (result.request, result.reason) == ("first", "fallback")


def test_results_of_an_earlier_run_are_handed_out_once(board, tmp_path):
    first = make(board, tmp_path, spool=True)
    first.accept("a", image(), "first")
    first.note_answer("first", b"{}")
    first.close()
    second = make(board, tmp_path, spool=True)
    assert second.take_unpublished() == (("first", b"{}"),)
    assert second.take_unpublished() == ()
