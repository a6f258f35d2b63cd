"""A pipeline by itself: it calls nobody, and returns what is to be done."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from device_agent.config import AgentConfig, AgentPipelineConfig, OriginConfig
from device_agent.pipeline import AgentPipeline
from device_agent.sources.directory import DirectorySourceConfig
from device_agent.sources.mqtt import MqttSourceConfig
from device_agent.spool import Spool
from distree.bundle.loading import load_bundle
from distree.errors import RemoteProtocolError
from distree.messages.member import Member
from distree.messages.request import RouteStop, StageMessage
from distree.messages.result import Result
from distree.node import Drop, Publish, Run
from distree.segments import SegmentOutput

LOCK = threading.RLock()


def make(tmp_path, *, stages=(), **origin):
    part = AgentPipelineConfig(
        name="p", bundle="fashion", stages=stages, origin=OriginConfig(source=MqttSourceConfig(kind="mqtt"), **origin)
    )
    agent = AgentConfig(site="lab", device="cam", pipelines=(part,), state_dir=tmp_path)
    return AgentPipeline(agent, 0, load_bundle("fashion", verify=()), "boot", LOCK)


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


def accept(pipeline, request):
    """Accept an input; return the effects."""
    raw = np.zeros((28, 28, 1), np.uint8)
    found, effects = pipeline.accept(time.monotonic(), "a", pipeline.to_tensor(raw), request)
    assert found == request
    return effects


class Answered:
    """A source that writes down what it is told."""

    ready = True

    def __init__(self):
        self.requests = []

    def run(self, stop):
        pass

    def note_answered(self, request):
        self.requests.append(request)


def test_an_input_is_accepted_into_custody_and_sent(tmp_path):
    pipeline = make(tmp_path)
    there(pipeline, "b1")
    (effect,) = accept(pipeline, "first")
    assert isinstance(effect.message, StageMessage)
    assert effect.message.context.request == "first"
    assert (effect.to, effect.message.context.route) == ("b1", (RouteStop(stage=0, boards=("b1",)),))
    assert pipeline.node.holds("first")


def test_a_wrong_input_is_refused_before_the_node_hears_of_it(tmp_path):
    pipeline = make(tmp_path)
    with pytest.raises(RemoteProtocolError):
        pipeline.to_tensor(np.zeros((27, 28, 1), np.uint8))
    assert pipeline.node.pending == 0


def test_the_source_is_told_of_inputs_that_are_shed_and_of_results_that_are_published(tmp_path):
    pipeline = make(tmp_path, max_pending=1)
    pipeline.source = source = Answered()
    accept(pipeline, "first")
    (shed,) = accept(pipeline, "second")
    assert (shed.message.request, shed.message.reason) == ("second", "shed")
    assert source.requests == ["second"]
    pipeline.tick(1e12, 1e12)
    with LOCK:
        pipeline.note_published("first")
    assert source.requests == ["second", "first"]


class Runtime:
    name = "none"

    def __init__(self, outcome):
        self.outcome = outcome

    def run(self, stage, tensor):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_what_was_computed_becomes_the_answer(tmp_path):
    pipeline = make(tmp_path, stages=(0,))
    pipeline.runtime = Runtime(SegmentOutput(features=np.zeros((1, 14, 14, 8), np.int8), logits=[99.0] + [0.0] * 9))
    (task,) = accept(pipeline, "first")
    assert isinstance(task, Run)
    output, took_s = pipeline.compute(task)
    with LOCK:
        effects = pipeline.completed(time.monotonic(), task, output, took_s)
    (result,) = (effect.message for effect in effects if isinstance(effect, Publish))
    assert isinstance(result, Result)
    assert (result.request, result.reason) == ("first", "confident")


def test_what_the_interpreter_raises_comes_out(tmp_path):
    pipeline = make(tmp_path, stages=(0,))
    pipeline.runtime = Runtime(ValueError("of the interpreter"))
    (task,) = accept(pipeline, "first")
    with pytest.raises(ValueError, match="of the interpreter"):
        pipeline.compute(task)


def folder_origin(tmp_path, **changes):
    source = DirectorySourceConfig(kind="directory", path=tmp_path / "in")
    origin = OriginConfig(source=source, **changes)
    part = AgentPipelineConfig(name="p", bundle="fashion", stages=(0,), origin=origin)
    return AgentConfig(site="s", device="cam", pipelines=(part,), state_dir=tmp_path / "state")


@pytest.mark.parametrize(("spool", "left"), [(False, 0), (True, 1)])
def test_of_files_the_answers_are_kept_and_the_files_themselves_only_if_that_is_asked_for(tmp_path, spool, left):
    config = folder_origin(tmp_path, spool=spool)

    def run():
        return AgentPipeline(config, 0, load_bundle("fashion"), "boot", LOCK)

    first = run()
    accept(first, "first")
    accept(first, "second")
    first.note_answer("first", b"{}")
    assert len(Spool(tmp_path / "state" / "p.spool").recover().open) == left
    second = run()
    assert second.take_unpublished() == (("first", b"{}"),)
    (dropped,) = accept(second, "first")
    assert dropped == Drop(request="first", reason="duplicate")
    second.close()


def test_a_pipeline_that_keeps_no_state_touches_none(tmp_path):
    config = folder_origin(tmp_path, spool=True)
    pipeline = AgentPipeline(config, 0, load_bundle("fashion"), "boot", LOCK, keeps_state=False)
    assert pipeline.spool is None
    accept(pipeline, "first")
    assert not (tmp_path / "state").exists()


def test_results_of_an_earlier_run_are_handed_out_once(tmp_path):
    first = make(tmp_path, spool=True)
    accept(first, "first")
    first.note_answer("first", b"{}")
    first.close()
    second = make(tmp_path, spool=True)
    assert second.take_unpublished() == (("first", b"{}"),)
    assert second.take_unpublished() == ()
