"""Topics: what is built can be parsed, and nothing else can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distree import topics
from distree.errors import ConfigError, RemoteProtocolError
from distree.topics import ALL, BOARD_ROLES, DELIVERY, TABLE, Address, Kind

ids = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=32)
boards = ids.filter(lambda name: name != ALL)


@given(ids, boards, st.sampled_from([Kind.STATE, Kind.META, Kind.TELEMETRY, Kind.DEAD]))
def test_device_topics(site, device, kind):
    assert topics.parse(topics.device(site, device, kind)) == Address(site=site, kind=kind, device=device)


@given(ids, ids, boards)
def test_pipeline_topics(site, pipeline, origin):
    assert topics.parse(topics.plan(site, pipeline)) == Address(site=site, kind=Kind.PLAN, pipeline=pipeline)
    for kind in (Kind.INPUT, Kind.RESULT, Kind.AUDIT, Kind.STATS, Kind.THUMBNAIL):
        assert topics.parse(topics.of_origin(site, pipeline, kind, origin)) == Address(
            site=site, kind=kind, pipeline=pipeline, origin=origin
        )


@given(ids, ids, st.integers(0, 999), boards, ids)
def test_what_is_for_a_stage_names_its_sender_last(site, pipeline, k, sender, to):
    # One board, or all of a wide stage.
    for board in (to, ALL):
        topic = topics.stage(site, pipeline, k, board, sender)
        assert topic == f"distree/1/{site}/pipeline/{pipeline}/stage/{k}/{board}/{sender}"
        assert topics.parse(topic) == Address(
            site=site, kind=Kind.STAGE, pipeline=pipeline, stage=k, to=board, sender=sender
        )


@given(ids, ids, st.integers(0, 999), boards)
def test_what_a_board_serves_is_told_at_a_topic_of_each_stage(site, pipeline, k, device):
    topic = topics.member(site, pipeline, k, device)
    assert topic == f"distree/1/{site}/pipeline/{pipeline}/member/{k}/{device}"
    assert topics.parse(topic) == Address(site=site, kind=Kind.MEMBER, pipeline=pipeline, stage=k, device=device)


@given(ids, ids, boards)
def test_who_calls_stands_in_the_topic(site, pipeline, sender):
    topic = topics.call(site, pipeline, sender)
    assert topic == f"distree/1/{site}/pipeline/{pipeline}/call/{sender}"
    assert topics.parse(topic) == Address(site=site, kind=Kind.CALL, pipeline=pipeline, sender=sender)


@given(ids, ids, boards, boards)
def test_what_is_for_one_board_names_its_sender_last(site, pipeline, to, sender):
    for kind, name in ((Kind.EXIT, "device"), (Kind.DECISION, "device"), (Kind.OUTCOME, "origin")):
        topic = topics.to_board(site, pipeline, kind, to, sender)
        assert topic == f"distree/1/{site}/pipeline/{pipeline}/{kind.value}/{to}/{sender}"
        assert topics.parse(topic) == Address(site=site, kind=kind, pipeline=pipeline, sender=sender, **{name: to})


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.EXIT, Kind.DECISION, Kind.OUTCOME)])
def test_other_kinds_are_not_for_one_board(kind):
    with pytest.raises(AssertionError):
        topics.to_board("lab", "fashion", kind, "hub", "b")


def test_every_kind_has_a_topic_that_is_parsed_to_it():
    built = {
        Kind.PLAN: topics.plan("lab", "p"),
        Kind.LABEL: topics.label("lab", "p"),
        Kind.ORCHESTRATOR: topics.orchestrator("lab"),
        Kind.SITE_EVENT: topics.site_event("lab"),
        Kind.STAGE: topics.stage("lab", "p", 1, "b", "c"),
        Kind.MEMBER: topics.member("lab", "p", 1, "b"),
        Kind.CALL: topics.call("lab", "p", "b"),
        **{
            kind: topics.device("lab", "b", kind)
            for kind in (Kind.STATE, Kind.META, Kind.TELEMETRY, Kind.DEAD, Kind.EVENT, Kind.ECHO)
        },
        **{
            kind: topics.of_origin("lab", "p", kind, "b")
            for kind in (Kind.INPUT, Kind.RESULT, Kind.AUDIT, Kind.STATS, Kind.THUMBNAIL)
        },
        **{kind: topics.to_board("lab", "p", kind, "b", "c") for kind in (Kind.EXIT, Kind.DECISION, Kind.OUTCOME)},
    }
    assert built.keys() == set(Kind)
    assert len(set(built.values())) == len(Kind)
    assert {kind: topics.parse(topic).kind for kind, topic in built.items()} == {kind: kind for kind in Kind}


def test_every_kind_is_published_by_someone_and_read_by_someone():
    assert TABLE.keys() == DELIVERY.keys() == set(Kind)
    assert all(topic.publishers and topics.readers(kind) for kind, topic in TABLE.items())


def test_what_only_boards_say_to_each_other_ends_in_its_sender():
    between_boards = {kind for kind, topic in TABLE.items() if topic.publishers | topic.subscribers <= BOARD_ROLES}
    assert between_boards == {Kind.STAGE, Kind.EXIT, Kind.DECISION, Kind.OUTCOME, Kind.ECHO}
    between_boards.remove(Kind.ECHO)  # a board's own
    assert {kind for kind in Kind if topics.template(kind).endswith("/{sender}")} == {*between_boards, Kind.CALL}


@pytest.mark.parametrize("kind", Kind)
def test_the_template_of_a_kind_becomes_a_topic_of_it(kind):
    names = {"site": "lab", "device": "b", "pipeline": "p", "origin": "o", "stage": 2, "to": "all", "sender": "s"}
    address = topics.parse(topics.template(kind).format(**names))
    given = {name: names[name] for name in names if getattr(address, name) is not None}
    assert address == Address(kind=kind, **given)
    assert topics.template(kind) == topics.template(kind).format(**{name: f"{{{name}}}" for name in given})


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "distree/2/lab/device/a/state",
        "distree/1/lab/device/a/unheard",
        "distree/1/lab/device/a/state/more",
        "distree/1/Lab/device/a/state",
        "distree/1/lab/pipeline/p/stage/x/all/b",
        "distree/1/lab/pipeline/p/stage/-1/all/b",
        "distree/1/lab/pipeline/p/stage/1234/all/b",
        "distree/1/lab/pipeline/p/stage/\u0663/all/b",
        "distree/1/lab/pipeline//plan",
        "distree/1/lab/pipeline/" + "p" * 33 + "/plan",
        "distree/1/lab/pipeline/p/exit",
        "distree/1/lab/pipeline/p/exit/",
        "distree/1/lab/pipeline/p/exit/hub",
        "distree/1/lab/pipeline/p/exit/hub/",
        "distree/1/lab/pipeline/p/exit/hub/b/1",
        "distree/1/lab/pipeline/p/exit/hub/+",
        "distree/1/lab/pipeline/p/exit/hub/all",
        "distree/1/lab/pipeline/p/exit/all/b",
        "distree/1/lab/pipeline/p/exit/hub/B",
        "distree/1/lab/pipeline/p/exit/hub/b\n",
        "distree/1/lab/pipeline/p/outcome/cam",
        "distree/1/lab/pipeline/p/outcome/cam/all",
        "distree/1/lab/pipeline/p/stage/0",
        "distree/1/lab/pipeline/p/stage/0/all",
        "distree/1/lab/pipeline/p/stage/0/all/all",
        "distree/1/lab/pipeline/p/member/0",
        "distree/1/lab/pipeline/p/member/0/all",
        "distree/1/lab/pipeline/p/member/x/b",
        "distree/1/lab/pipeline/p/member/0/b/c",
        "distree/1/lab/pipeline/p/call",
        "distree/1/lab/pipeline/p/call/all",
        "distree/1/lab/device/all/state",
        "distree/1/lab/pipeline/p/decision/#",
        "distree/1/lab/pipeline/p/decision/Hub/b",
        "distree/1/lab/device/hub/exit",
    ],
)
def test_other_topics_are_refused(topic):
    with pytest.raises(RemoteProtocolError):
        topics.parse(topic)


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text):
    try:
        topics.parse(text)
    except RemoteProtocolError:
        return


def test_filters_of_members():
    assert topics.member("lab", "p", "+", "+") == topics.every(Kind.MEMBER, "lab", "p")
    assert topics.every(Kind.MEMBER, "lab") == "distree/1/lab/pipeline/+/member/+/+"
    assert topics.call("lab", "p", "+") == topics.every(Kind.CALL, "lab", "p")


def test_no_topic_is_shared():
    assert not any("$share" in topics.template(kind) for kind in Kind)


@pytest.mark.parametrize("bad", ["", "A", "a b", "a/b", "+", "#", "ä", "x" * 33, "a\n"])
def test_bad_ids_are_refused(bad):
    with pytest.raises(ConfigError):
        topics.check_id(bad, "site")


def test_commands_to_boards_are_not_retained_and_every_kind_has_its_delivery():
    assert set(DELIVERY) == set(Kind)
    assert {kind for kind, delivery in DELIVERY.items() if delivery.retain} == {
        Kind.STATE,
        Kind.META,
        Kind.PLAN,
        Kind.MEMBER,
        Kind.ORCHESTRATOR,
    }


def test_no_board_is_called_all():
    assert topics.check_device("all-1", "device") == "all-1"
    with pytest.raises(ConfigError, match="device: 'all' is reserved"):
        topics.check_device("all", "device")
    with pytest.raises(ConfigError, match="device: 'All' is not an id"):
        topics.check_device("All", "device")
    # As the name of anything else it is like others.
    assert topics.check_id("all", "site") == "all"
    assert topics.parse("distree/1/all/pipeline/all/plan").pipeline == "all"
