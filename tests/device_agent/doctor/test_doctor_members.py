"""`distree doctor` on what boards announce: whether it is there later, may be read, and what the broker does not tell."""

from __future__ import annotations

import time
from pathlib import Path

from setup_broker import Mosquitto, users
from test_doctor import agent, board, doctor, fails, listener, rules_of

from broker_config.managed import ManagedBroker, has_embedded
from device_agent.config import load_agent_config
from distree import topics
from distree.messages.codec import PROBE

MEMBER_0 = topics.member("lab", "p", 0, "cam")


def test_whether_announcements_are_there_for_those_that_come_later(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        path = board(tmp_path, broker.port)
        found = doctor(path, "login", "retained")["retained"]
        assert (found.status, found.text) == (
            "ok",
            "retained messages work, and reach later subscribers",
        )
        # An origin that announces nothing cannot try it, unless others have.
        lone = board(tmp_path, broker.port, "lone", stages=[])
        assert "no board has announced itself" in doctor(lone, "login", "retained")["retained"].text
        with agent(path), listener(broker.port, "distree/#") as all_heard:
            for each in (path, lone):
                found = doctor(each, "login", "retained")["retained"]
                assert found.text.endswith("reach later subscribers"), found
            all_heard.listen(time.monotonic() + 0.5)
            # Where the agent's own is there, it is left alone; and nothing else is left behind.
            said = {message.payload for message in all_heard.heard if message.topic == MEMBER_0}
            assert len(said) == 1
            assert PROBE not in said
        with listener(broker.port, topics.member("lab", "+", "+", "+")) as late:
            late.listen(time.monotonic() + 0.5)
            assert {message.topic for message in late.heard} == {MEMBER_0}


def test_announcements_that_are_not_handed_out(tmp_path: Path) -> None:
    """These rules hide them from whoever subscribes, as a broker does that keeps nothing."""
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite distree/1/lab/device/#\ntopic write distree/1/lab/pipeline/#\n")
    acl.chmod(0o600)
    with Mosquitto(tmp_path, "allow_anonymous true", f"acl_file {acl}") as broker:
        found = doctor(board(tmp_path, broker.port), "login", "retained")["retained"]
        fails(
            found,
            "boards have to be asked what they serve, and dashboards see a board only when it next",
            "retain_available",
        )
        assert "user to read distree/1/lab/pipeline/+/member/+/cam" in found.remedy


def test_the_state_of_a_member_is_read_where_there_is_one(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    states = "topic read distree/1/lab/device/+/state"
    rules = [
        "topic readwrite distree/1/lab/device/cam/#", "topic readwrite distree/1/lab/pipeline/#", states,
        "user b1", "topic readwrite distree/#",
    ]  # fmt: skip
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    for allowed, extra in ((True, []), (False, []), (False, ["topic read distree/1/lab/device/+/meta"])):
        given = [*extra, *(rule for rule in rules if allowed or rule != states)]
        acl.write_text("\n".join(given) + "\n")
        acl.chmod(0o600)
        lines = ["allow_anonymous true", users(tmp_path, b1="s3cret"), f"acl_file {acl}"]
        login = {"username": "b1", "password_file": str(secret)}
        with Mosquitto(tmp_path, *lines) as broker:
            path = board(tmp_path, broker.port)
            assert f"not tried on {topics.plan('lab', 'p')}" in doctor(path, "acl")["acl"].text
            with agent(board(tmp_path, broker.port, "b1", stages=[1, 2], origin=None, broker=login)):
                found = doctor(path, "acl")["acl"]
        if allowed:
            assert found.status == "ok", found
            assert "/state" not in found.text
            assert "/member/" not in found.text
        else:
            fails(found, "receives nothing from distree/1/lab/device/+/state", f"broker's ACL: {states}")


def test_an_origin_that_may_not_send_to_a_board_that_has_announced_itself(tmp_path: Path) -> None:
    """Boards' descriptions it need not read: what it reads of them anyway names those it must reach."""
    acl, secret = tmp_path / "acl", tmp_path / "secret"
    secret.write_text("s3cret\n")
    rules = [line for line in rules_of(load_agent_config(board(tmp_path, 1))) if "/stage/1/+" not in line]
    acl.write_text("\n".join([*rules, "user b1", "topic readwrite distree/#"]) + "\n")
    acl.chmod(0o600)
    lines = ["allow_anonymous true", users(tmp_path, b1="s3cret"), f"acl_file {acl}"]
    login = {"username": "b1", "password_file": str(secret)}
    with Mosquitto(tmp_path, *lines) as broker:
        path = board(tmp_path, broker.port)
        found = doctor(path, "acl")["acl"]
        assert found.status == "unknown", found
        assert "no board is known yet to which it sends on distree/1/lab/pipeline/p/stage/1/+/cam" in found.text
        with agent(board(tmp_path, broker.port, "b1", stages=[1, 2], origin=None, broker=login)):
            found = doctor(path, "acl")["acl"]
    fails(
        found,
        "may not publish on distree/1/lab/pipeline/p/stage/1/b1/cam (not authorized)",
        "broker's ACL: topic write distree/1/lab/pipeline/p/stage/1/+/cam",
    )


def test_announcements_of_boards_that_are_known_to_be_there_must_come(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    others = "distree/1/lab/pipeline/p"
    acl.write_text(
        "topic readwrite distree/1/lab/device/#\n"
        f"topic readwrite {others}/stage/#\ntopic readwrite {others}/outcome/#\ntopic readwrite {others}/call/#\n"
        f"topic write {others}/result/cam\ntopic write {others}/audit/cam\ntopic readwrite {others}/member/+/cam\n"
        f"topic read {others}/plan\ntopic read {others}/input/cam\ntopic write {others}/member/1/b1\n"
        f"topic write {others}/member/2/b1\n"
    )
    acl.chmod(0o600)
    with Mosquitto(tmp_path, "allow_anonymous true", f"acl_file {acl}") as broker:
        path = board(tmp_path, broker.port)
        assert doctor(path, "acl")["acl"].status == "ok"
        with agent(board(tmp_path, broker.port, "b1", stages=[1, 2], origin=None)):
            found = doctor(path, "acl")["acl"]
    fails(found, f"receives nothing from {others}/member/1/+", f"topic read {others}/member/1/+")


def test_whether_the_broker_says_that_nobody_reads(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        path = board(tmp_path, broker.port)
        found = doctor(path, "login", "no-subscribers")["no-subscribers"]
        assert (found.status, found.text) == ("ok", "the broker reports messages that nobody reads")
        with listener(broker.port, "#"):
            found = doctor(path, "login", "no-subscribers")["no-subscribers"]
        assert found.status == "ok"
        assert (
            "or some client there reads all messages, so a board that has stopped is noticed only by its state"
            in found.text
        )
    if has_embedded():
        with ManagedBroker(engine="embedded") as broker:
            found = doctor(board(tmp_path, broker.port), "login", "no-subscribers")["no-subscribers"]
        assert found.status == "ok"
        assert "speaks MQTT 3.1.1 only, which cannot report messages that nobody reads" in found.text
        assert found.remedy == "use an MQTT 5 broker that reports them, such as mosquitto 2"


def test_a_broker_that_holds_small_messages_back(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, "set_tcp_nodelay false") as broker:
        path = board(tmp_path, broker.port)
        # A busy machine can hide it.
        found = [doctor(path, "login", "tcp-nodelay")["tcp-nodelay"] for _ in range(3)]
    late = next(finding for finding in found if finding.status == "failed")
    fails(late, "delays small messages by some 40 ms", "set_tcp_nodelay true")
    with Mosquitto(tmp_path) as broker:
        assert (
            doctor(board(tmp_path, broker.port), "login", "tcp-nodelay")["tcp-nodelay"].text
            == "small messages are passed on at once"
        )
