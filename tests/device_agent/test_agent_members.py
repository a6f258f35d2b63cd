"""What boards announce, and what others make of it: at a real broker, with real agents."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import request_samples
from agent_site import FASHION, LONG_S, SITE, Site, answered, ask, origin, pipeline, wait_for

from broker_config.managed import ManagedBroker, has_embedded
from device_agent import echoes
from distree import tensors, topics
from distree.errors import Problem
from distree.messages.codec import PROBE, decode, encode
from distree.messages.device import DeviceState, DeviceStatus
from distree.messages.member import Call, Member
from distree.messages.request import Outcome, RouteStop, StageMessage
from distree.node.announcer import CALLED_EVERY_S, JITTER_S
from distree.topics import Kind

PATIENT = origin(deadline_ms=200_000, min_retry_ms=100_000)
"""Waits for boards that the test holds up, however busy the machine is."""

ALL_MEMBERS = topics.member(SITE, "+", "+", "+")
ALL_STATES = topics.device(SITE, "+", Kind.STATE)


def member(k, device, name="p"):
    return topics.member(SITE, name, k, device)


def state(device):
    return topics.device(SITE, device, Kind.STATE)


def status_of(peer, device):
    said = peer.on(state(device))
    return decode(DeviceState, said[-1].payload).status if said else None


@pytest.fixture
def site(tmp_path):
    with Site(tmp_path) as made:
        yield made


# ---------------------------------------------------------------- announcements


def test_a_board_announces_each_stage_and_clears_what_an_earlier_run_did(site):
    first = site.run("b1", pipeline("p", 0, 1, 2), pipeline("q", 1))
    peer = site.peer()
    peer.hear(ALL_MEMBERS)
    expected = {member(k, "b1") for k in range(3)} | {member(1, "b1", "q")}
    peer.until(lambda: peer.retained().keys() >= expected, "announcements")
    assert peer.retained().keys() == expected
    for topic, message in peer.retained().items():
        assert message.retain
        said = decode(Member, message.payload)
        assert (said.device, said.boot, said.revisions) == ("b1", first.boot, (FASHION.revision,))
        assert said.stages == ((1,) if "/q/" in topic else (0, 1, 2))
    site.stop("b1")

    # The pipeline q is gone, and of p it has one stage left.
    second = site.run("b1", pipeline("p", 0))
    peer.until(lambda: peer.retained().keys() == {member(0, "b1")}, "what it withdraws")
    (left,) = peer.retained().values()
    assert decode(Member, left.payload) == replace(decode(Member, left.payload), boot=second.boot, stages=(0,))
    late = site.peer()
    late.hear(ALL_MEMBERS)
    late.until(late.retained, "what is left")
    late.pause(0.3)
    assert late.retained().keys() == {member(0, "b1")}
    # Whose announcements these are is no other board's business.
    assert not any(message.retain for message in peer.heard if not message.payload)


def test_an_origin_sends_nothing_more_to_a_board_that_has_withdrawn(site):
    cam = site.run("cam", pipeline("p", origin=origin()))
    site.run("b1", pipeline("p", 0, 1, 2))
    site.run("b2", pipeline("p", 0, 1, 2))
    node = cam.pipelines[0].node
    wait_for(lambda: node.telemetry().origin.members == 2, "two members")
    site.stop("b2")
    site.run("b2", pipeline("q", 0, 1, 2))
    wait_for(
        lambda: member(0, "b2") not in cam.mailbox._handlers and len(cam.mailbox._listening) == 1, "its withdrawal"
    )
    names = ask(cam, 12)
    wait_for(lambda: answered(cam).keys() == set(names), "answers")
    assert {device for hops in answered(cam).values() for device in hops} == {"b1"}


def test_pipelines_of_two_names_on_one_board(site):
    cam = site.run("cam", pipeline("p", 0, origin=origin()), pipeline("q", origin=origin()))
    b1 = site.run("b1", pipeline("p", 1, 2), pipeline("q", 0, 1, 2))
    wait_for(lambda: [p.node.telemetry().origin.members for p in cam.pipelines] == [1, 1], "both memberships")
    names = {*ask(cam, 8, index=0), *ask(cam, 8, index=1)}
    wait_for(lambda: answered(cam).keys() == names, "answers")
    assert {result.reason for result in cam.answers} <= {"confident", "last"}
    assert all(hops[0] == ("cam" if name[0] == "p" else "b1") for name, hops in answered(cam).items())
    # One pipeline forgets it, the other listens to its state as ever.
    peer = site.peer()
    for k in range(3):
        peer.say(member(k, "b1", "q"), b"", retain=True)
        # The board puts that right, and is known again.
    wait_for(lambda: cam.pipelines[1].node.telemetry().origin.members == 1, "the membership of q")
    assert cam.mailbox._listening["b1"] == {0, 1}
    assert b1.reporting.dead_letters == cam.reporting.dead_letters == 0


# ---------------------------------------------------------------- draining


class Gate:
    """Stands before a runtime, and lets nothing through while it is closed."""

    def __init__(self, agent):
        self.open, self.at_work = threading.Event(), threading.Event()
        runtime = agent.pipelines[0].runtime
        run = runtime.run

        def wait_and_run(stage, tensor):
            self.at_work.set()
            assert self.open.wait(LONG_S)
            return run(stage, tensor)

        runtime.run = wait_and_run


def stage_message(request, to, origin_id="x"):
    dtype, shape = FASHION.stages[0].input.dtype, FASHION.stages[0].input.shape
    tensor = tensors.encode(np.zeros(shape, dtype))
    thresholds = tuple(FASHION.thresholds)
    return encode(
        request_samples.stage_message(
            tensor, request=request, origin=origin_id, revision=FASHION.revision,
            route=(RouteStop(stage=0, boards=(to,)),), budget_s=200.0, criterion=FASHION.criterion, thresholds=thresholds,
        )
    )  # fmt: skip


def test_a_draining_board_finishes_what_is_under_way_and_turns_back_what_comes(site):
    cam = site.run("cam", pipeline("p", origin=PATIENT))
    b1 = site.make("b1", pipeline("p", 0, 1, 2), shutdown_timeout_s=LONG_S)
    gate = Gate(b1)
    site.start(b1)
    peer = site.peer("x")
    outcomes = topics.to_board(SITE, "p", Kind.OUTCOME, "x", "b1")
    peer.hear(ALL_STATES, outcomes)
    node = cam.pipelines[0].node
    wait_for(lambda: node.telemetry().origin.members == 1, "the board")
    before = ask(cam, 10)
    wait_for(gate.at_work.is_set, "work")
    peer.say(topics.stage(SITE, "p", 0, "b1", "x"), stage_message("early", "b1"))
    wait_for(lambda: b1.pipelines[0].node.telemetry().stages[0].received == 11, "all that was sent")

    b1.stop()
    peer.until(lambda: status_of(peer, "b1") is DeviceStatus.DRAINING, "the state")
    wait_for(lambda: node.telemetry().origin.members == 0, "the news at the origin")
    # What is sent to it all the same comes back at once; what has come before is not sent elsewhere.
    for number in range(3):
        peer.say(topics.stage(SITE, "p", 0, "b1", "x"), stage_message(f"late-{number}", "b1"))
    peer.until(lambda: len(peer.on(outcomes)) == 3, "what is turned back")
    turned = [decode(Outcome, message.payload) for message in peer.on(outcomes)]
    assert {(outcome.request, outcome.reason) for outcome in turned} == {(f"late-{n}", "moved") for n in range(3)}
    site.run("b2", pipeline("p", 0, 1, 2))
    after = ask(cam, 10)
    wait_for(lambda: answered(cam).keys() >= set(after), "answers of the other board")
    assert answered(cam).keys().isdisjoint(before)

    gate.open.set()
    wait_for(lambda: answered(cam).keys() == {*before, *after}, "all answers")
    site.stop("b1")
    peer.until(lambda: status_of(peer, "b1") is DeviceStatus.DISCONNECTED, "the goodbye")
    assert {tuple(set(answered(cam)[name])) for name in before} == {("b1",)}
    assert {tuple(set(answered(cam)[name])) for name in after} == {("b2",)}
    assert len(cam.answers) == 20  # each once
    assert {result.reason for result in cam.answers} <= {"confident", "last"}
    assert decode(Outcome, peer.on(outcomes)[-1].payload).request == "early"
    wait_for(lambda: node.telemetry().origin.pending == 0, "the broker to have all results")
    counts = node.telemetry().origin
    assert (counts.resent, counts.left_out) == (0, 0)


def test_what_a_board_turns_back_runs_on_another(site, caplog):
    """The origin has not heard that it stops: the answer `moved` is how it learns it, and nothing is lost."""
    cam = site.run("cam", pipeline("p", origin=PATIENT))
    peer = site.peer("b1")
    peer.hear(topics.stage(SITE, "p", 0, "b1", "+"))
    peer.announce(0, 1, 2)
    node = cam.pipelines[0].node
    wait_for(lambda: node.telemetry().origin.members == 1, "the board")
    names = ask(cam, 5)
    stages = topics.stage(SITE, "p", 0, "b1", "cam")
    peer.until(lambda: len(peer.on(stages)) == 5, "the inputs")
    site.run("b2", pipeline("p", 0, 1, 2))
    wait_for(lambda: node.telemetry().origin.members == 2, "the other board")
    for message in peer.on(stages):
        context = decode(StageMessage, message.payload).context
        moved = Outcome(request=context.request, token=context.token, reason="moved", guess=None, spent_s=0.0, hops=())
        peer.say(topics.to_board(SITE, "p", Kind.OUTCOME, "cam", "b1"), encode(moved))
    wait_for(lambda: answered(cam).keys() == set(names), "answers")
    assert {device for hops in answered(cam).values() for device in hops} == {"b2"}
    assert node.telemetry().origin.resent == 5
    assert cam.reporting.dead_letters == 0


# ---------------------------------------------------------------- nobody reads


def test_a_board_that_nobody_is_behind_is_left_out_at_once(site, caplog):
    """The broker says that nobody reads what is sent to it, long before its silence would."""
    caplog.set_level(logging.WARNING)
    cam = site.run("cam", pipeline("p", origin=origin(min_retry_ms=60_000, deadline_ms=120_000)))
    ghost = site.peer("ghost")
    ghost.announce(0, 1, 2)  # and subscribes to nothing
    site.run("b2", pipeline("p", 0, 1, 2))
    node = cam.pipelines[0].node
    wait_for(lambda: node.telemetry().origin.members == 2, "two members")
    names, since = ask(cam, 20), time.monotonic()
    wait_for(lambda: answered(cam).keys() == set(names), "answers")
    assert time.monotonic() - since < 2 * LONG_S
    assert {device for hops in answered(cam).values() for device in hops} == {"b2"}
    assert {result.reason for result in cam.answers} <= {"confident", "last"}
    assert node.telemetry().origin.left_out == 1
    told = [
        record.getMessage() for record in caplog.records if "nobody reads messages to ghost" in record.msg % record.args
    ]
    assert len(told) == 1


# ---------------------------------------------------------------- calls


def test_a_call_is_answered_once_with_jitter_and_not_again_for_a_while(site):
    boards = [site.run(f"b{number}", pipeline("p", 1, 2), pipeline("q", 0)) for number in range(3)]
    peer = site.peer("x")
    peer.hear(ALL_MEMBERS, ALL_STATES, topics.device(SITE, "+", Kind.META))
    peer.until(lambda: len(peer.retained()) >= 3 * 5, "what is retained")
    peer.pause(0.3)

    def call(caller):
        peer.say(topics.call(SITE, "p", caller), encode(Call(caller=caller)))

    def live(topic):
        return [
            at for message, at in zip(peer.heard, peer.at, strict=True) if message.topic == topic and not message.retain
        ]

    before = {board.config.device: len(live(member(1, board.config.device))) for board in boards}
    called_at = time.monotonic()
    for number in range(5):
        call(f"caller-{number}")
    delays = {}
    for device, count in before.items():
        peer.until(lambda device=device, count=count: len(live(member(1, device))) > count, "an answer")
        delays[device] = live(member(1, device))[count] - called_at
    peer.pause(JITTER_S + 1.0)
    for device, count in before.items():
        assert len(live(member(1, device))) == count + 1, "one answer to five calls"
        assert len(live(member(2, device))) == 1
        assert len(live(state(device))) == len(live(topics.device(SITE, device, Kind.META))) == 1
        assert not live(member(0, device, "q")), "the other pipeline was not called"
    assert max(delays.values()) < JITTER_S + 1.0
    assert max(delays.values()) - min(delays.values()) > 0.001, "each at a moment of its own"
    # Called again, a board answers, but not before its time.
    call("once-more")
    answers = {device: live(member(1, device))[before[device]] for device in before}
    for device, at in answers.items():
        peer.until(lambda device=device: len(live(member(1, device))) == before[device] + 2, "a second answer")
        assert live(member(1, device))[-1] - at > CALLED_EVERY_S - 0.5


def test_without_retained_announcements_boards_are_called_for(site):
    """As at a broker that keeps nothing: what was retained is taken away before the origin comes."""
    b1 = site.run("b1", pipeline("p", 0, 1, 2))
    with b1.lock:
        b1.mailbox.echoes._republish_at = float("inf")
        b1.mailbox.echoes._republished_at = 1e12  # it is not to say it by itself
    peer = site.peer("x")
    peer.hear(ALL_MEMBERS, topics.call(SITE, "p", "+"))
    peer.until(lambda: peer.on(member(2, "b1")), "its announcements")
    for k in range(3):
        peer.say(member(k, "b1"), b"", retain=True)
    peer.say(state("b1"), b"", retain=True)
    peer.until(lambda: not peer.on(member(2, "b1"))[-1].payload, "nothing retained")
    cam = site.run("cam", pipeline("p", origin=origin()))
    wait_for(lambda: cam.pipelines[0].node.telemetry().origin.members == 1, "the board")
    calls = topics.call(SITE, "p", "cam")
    peer.until(lambda: peer.on(calls), "the call")
    assert decode(Call, peer.on(calls)[0].payload).caller == "cam"
    names = ask(cam, 3)
    wait_for(lambda: answered(cam).keys() == set(names), "answers")


# ---------------------------------------------------------------- states


def filters(agent):
    return set(agent.transport._connection.filters._wanted)


def test_a_publish_that_is_refused_is_logged_and_is_no_lost_connection(site, caplog):
    agent = site.run("b1", pipeline("p", 1))
    with agent.lock:
        agent.transport.last_error = Problem("the broker refuses publishes on a topic", "allow it")
    wait_for(lambda: "refuses publishes on a topic" in caplog.text, "the line")
    assert agent._lost_at is None


def test_states_are_listened_to_of_boards_that_have_announced_themselves(site):
    cam = site.run("cam", pipeline("p", 0, origin=origin()))
    stranger, board = site.peer("stranger"), site.peer("b1")
    stranger.hear(topics.device(SITE, "cam", Kind.DEAD))
    stranger.say(state("stranger"), b"no state", retain=True)
    board.announce(1, 2)
    wait_for(lambda: state("b1") in filters(cam), "the subscription")
    assert {name for name in filters(cam) if name.endswith("/state")} == {state("cam"), state("b1")}
    board.say(state("b1"), b"no state", retain=True)
    stranger.until(stranger.dead_letters, "a dead letter")
    assert {letter.topic for letter in stranger.dead_letters()} == {state("b1")}
    for k in (1, 2):
        board.say(member(k, "b1"), b"", retain=True)
    wait_for(lambda: state("b1") not in filters(cam), "the end of the subscription")
    count = cam.reporting.dead_letters
    board.say(state("b1"), b"no state", retain=True)
    # Announced anew, it is listened to anew, retained state and all.
    board.announce(1, 2)
    wait_for(lambda: cam.pipelines[0].node.telemetry().origin.members == 1, "the board")
    assert cam.reporting.dead_letters == count


def test_malformed_announcements_states_and_calls_are_dead_letters_and_harm_nobody(site):
    cam = site.run("cam", pipeline("p", 0, origin=origin()))
    site.run("b1", pipeline("p", 1, 2))
    wait_for(lambda: cam.pipelines[0].node.telemetry().origin.members == 1, "the board")
    peer = site.peer("x")
    peer.hear(topics.device(SITE, "cam", Kind.DEAD))
    good = peer.member(1, 2)
    other = DeviceState(device="b2", boot="1", status=DeviceStatus.READY)
    call = topics.call(SITE, "p", "x")
    said = [
        (member(1, "x"), b"junk", "encoding"),
        (member(1, "x"), b"{}", "version"),
        (member(1, "x"), encode(replace(good, device="b2")), "sender"),
        (member(1, "x"), encode(replace(good, pipeline="q")), "sender"),
        (member(1, topics.ALL), encode(good), "sender"),
        (member(1, "x"), b"\xff" * 100_000, "encoding"),
        (state("b1"), b"junk", "encoding"),
        (state("b1"), encode(other), "device"),
        (call, b"junk", "encoding"),
        (call, encode(Call(caller="b2")), "sender"),
        (topics.call(SITE, "p", topics.ALL), encode(Call(caller="b2")), "sender"),
        (member(1, "cam"), b"", None),
        (member(0, "cam"), b"junk", "encoding"),
        (state("cam"), b"junk", "encoding"),
        (member(1, "x"), PROBE, None),
        (member(1, "x"), b"", None),
        (call, PROBE, None),
    ]
    expected = sorted((topic, reason) for topic, _, reason in said if reason is not None)
    for topic, payload, _ in said:
        peer.say(topic, payload)
    peer.until(lambda: len(peer.dead_letters()) >= len(expected), "dead letters")
    peer.pause(0.3)
    found = sorted((letter.topic, letter.reason) for letter in peer.dead_letters())
    assert found == expected
    assert cam.pipelines[0].node.telemetry().origin.members == 1
    names = ask(cam, 20)
    wait_for(lambda: answered(cam).keys() == set(names), "answers")
    assert {result.reason for result in cam.answers} <= {"confident", "last"}


# ---------------------------------------------------------------- what comes back


def lines(caplog, word):
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


def test_a_broker_that_keeps_what_is_announced_is_no_news(site, caplog, monkeypatch):
    monkeypatch.setattr(echoes, "PATIENCE_S", 0.2)
    caplog.set_level(logging.INFO)
    b1 = site.run("b1", pipeline("p", 1, 2))
    wait_for(lambda: b1.mailbox.echoes._is_judged, "the verdict")
    time.sleep(0.5)
    assert not lines(caplog, "subscribes later") + lines(caplog, "nobody reads")


def test_a_board_says_once_that_its_announcements_are_not_there_for_others(tmp_path, caplog, monkeypatch):
    """These rules hide them, as a broker does that hands nothing retained to those who subscribe by wildcards."""
    monkeypatch.setattr(echoes, "PATIENCE_S", 0.5)
    acl = tmp_path / "acl"
    acl.write_text(
        f"topic readwrite distree/1/{SITE}/device/#\ntopic readwrite distree/1/{SITE}/pipeline/p/stage/#\n"
        f"topic write distree/1/{SITE}/pipeline/p/member/#\ntopic readwrite marker/#\n"
    )
    acl.chmod(0o600)
    caplog.set_level(logging.WARNING)
    with Site(tmp_path, acl_file=acl) as site:
        b1 = site.run("b1", pipeline("p", 1, 2))
        wait_for(lambda: lines(caplog, "does not deliver what this board announces to later subscribers"), "the line")
        b1.transport.wake()
        time.sleep(1.2)
        (line,) = lines(caplog, "does not deliver what this board announces to later subscribers")
        assert f"127.0.0.1:{site.broker.port} does not deliver" in line
        assert f"or allow this user to read {topics.member(SITE, '+', '+', 'b1')}" in line


def test_another_board_of_the_name_is_said_at_a_bounded_rate_and_put_right(site, caplog):
    caplog.set_level(logging.WARNING)
    cam = site.run("cam", pipeline("p", origin=origin()))
    b1 = site.run("b1", pipeline("p", 0, 1, 2))
    twin = site.peer("b1")
    twin.hear(ALL_MEMBERS, ALL_STATES)
    for _ in range(3):
        twin.announce(0, 1, 2)
    wait_for(lambda: lines(caplog, "another board uses the name b1"), "the line")
    ours = DeviceState(device="b1", boot=b1.boot, status=DeviceStatus.READY)

    def is_right():
        last = twin.retained()
        return last[state("b1")].payload == encode(ours) and all(
            decode(Member, last[member(k, "b1")].payload).boot == b1.boot for k in range(3)
        )

    twin.until(is_right, "its own words")
    (line,) = lines(caplog, "another board uses the name b1")
    assert line.endswith("(boot 1); give one of the two another device id")
    # It serves as before: nobody is banned.
    wait_for(lambda: cam.pipelines[0].node.telemetry().origin.members == 1, "the board")
    names = ask(cam, 5)
    wait_for(lambda: answered(cam).keys() == set(names), "answers")
    assert {device for hops in answered(cam).values() for device in hops} == {"b1"}


def test_the_last_word_of_an_earlier_run_is_no_other_board(site, caplog):
    caplog.set_level(logging.WARNING)
    site.run("b1", pipeline("p", 0))
    ghost = site.peer("b1")
    ghost.hear(ALL_STATES)
    for status in (DeviceStatus.LOST, DeviceStatus.DISCONNECTED):
        ghost.state(status)
        said = encode(DeviceState(device="b1", boot="1", status=status))
        ghost.until(lambda said=said: said in [message.payload for message in ghost.on(state("b1"))], "its own words")
        ghost.until(lambda: status_of(ghost, "b1") is DeviceStatus.READY, "what is put right")
    assert not lines(caplog, "another board")


def test_at_a_broker_of_mqtt_3_1_1_it_is_said_that_nobody_tells_what_is_not_read(tmp_path, caplog, monkeypatch):
    if not has_embedded():
        pytest.skip("the embedded broker is not installed: pip install 'distree[broker]'")
    monkeypatch.setattr(echoes, "PATIENCE_S", 0.5)
    caplog.set_level(logging.INFO)
    with Site(tmp_path) as site:
        site.broker.__exit__(None, None, None)
        site.broker = ManagedBroker(engine="embedded")
        site.broker.__enter__()
        cam = site.run("cam", pipeline("p", origin=origin()))
        site.run("b1", pipeline("p", 0, 1, 2))
        wait_for(lambda: cam.pipelines[0].node.telemetry().origin.members == 1, "the board")
        names = ask(cam, 5)
        wait_for(lambda: answered(cam).keys() == set(names), "answers")
        told = lines(caplog, "speaks MQTT 3.1.1 only, which cannot report messages that nobody reads")
        assert len(told) == 2  # once for each board
        time.sleep(echoes.PATIENCE_S + 1.0)
        assert not lines(caplog, "subscribes later")
