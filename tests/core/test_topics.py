"""Topics: what is built can be parsed, and nothing else can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distree import topics
from distree.errors import ConfigError, RemoteProtocolError
from distree.topics import DELIVERY, Address, Kind

ids = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True)


@given(ids, ids, st.sampled_from([Kind.STATE, Kind.META, Kind.TELEMETRY, Kind.DEAD]))
def test_device_topics(site, device, kind):
    assert topics.parse(topics.device(site, device, kind)) == Address(site=site, kind=kind, device=device)


@given(ids, ids, ids, st.integers(0, 999))
def test_pipeline_topics(site, pipeline, origin, k):
    assert topics.parse(topics.plan(site, pipeline)) == Address(site=site, kind=Kind.PLAN, pipeline=pipeline)
    assert topics.parse(topics.stage(site, pipeline, k)) == Address(
        site=site, kind=Kind.STAGE, pipeline=pipeline, stage=k
    )
    for kind in (Kind.INPUT, Kind.OUTCOME, Kind.RESULT, Kind.AUDIT, Kind.STATS, Kind.THUMBNAIL):
        assert topics.parse(topics.of_origin(site, pipeline, kind, origin)) == Address(
            site=site, kind=kind, pipeline=pipeline, origin=origin
        )


@given(ids, ids, ids, st.sampled_from([Kind.EXIT, Kind.DECISION]))
def test_topics_of_wide_stages(site, pipeline, device, kind):
    topic = topics.of_wide(site, pipeline, kind, device)
    assert topic == f"distree/1/{site}/pipeline/{pipeline}/{kind.value}/{device}"
    assert topics.parse(topic) == Address(site=site, kind=kind, pipeline=pipeline, device=device)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.EXIT, Kind.DECISION)])
def test_other_kinds_are_not_of_wide_stages(kind):
    with pytest.raises(AssertionError):
        topics.of_wide("lab", "fashion", kind, "hub")


def test_every_kind_has_a_topic_that_is_parsed_to_it():
    built = {
        Kind.PLAN: topics.plan("lab", "p"),
        Kind.TRUTH: topics.truth("lab", "p"),
        Kind.ORCHESTRATOR: topics.orchestrator("lab"),
        Kind.STAGE: topics.stage("lab", "p", 1),
        **{kind: topics.device("lab", "b", kind) for kind in (Kind.STATE, Kind.META, Kind.TELEMETRY, Kind.DEAD)},
        **{
            kind: topics.of_origin("lab", "p", kind, "b")
            for kind in (Kind.INPUT, Kind.OUTCOME, Kind.RESULT, Kind.AUDIT, Kind.STATS, Kind.THUMBNAIL)
        },
        **{kind: topics.of_wide("lab", "p", kind, "b") for kind in (Kind.EXIT, Kind.DECISION)},
    }
    assert built.keys() == set(Kind)
    assert len(set(built.values())) == len(Kind)
    assert {kind: topics.parse(topic).kind for kind, topic in built.items()} == {kind: kind for kind in Kind}


@pytest.mark.parametrize("kind", Kind)
def test_the_template_of_a_kind_becomes_a_topic_of_it(kind):
    names = {"site": "lab", "device": "b", "pipeline": "p", "origin": "o", "stage": 2}
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
        "distree/1/lab/pipeline/p/stage/x",
        "distree/1/lab/pipeline/p/stage/-1",
        "distree/1/lab/pipeline/p/stage/1234",
        "distree/1/lab/pipeline//plan",
        "distree/1/lab/pipeline/" + "p" * 33 + "/plan",
        "distree/1/lab/pipeline/p/exit",
        "distree/1/lab/pipeline/p/exit/",
        "distree/1/lab/pipeline/p/exit/hub/1",
        "distree/1/lab/pipeline/p/exit/+",
        "distree/1/lab/pipeline/p/decision/#",
        "distree/1/lab/pipeline/p/decision/Hub",
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


def test_boards_of_one_branch_share_a_stage():
    assert topics.shared_stage("lab", "fashion", 2) == "$share/lab-fashion-2-0/distree/1/lab/pipeline/fashion/stage/2"
    assert topics.shared_stage("lab", "fashion", 2, 3) == (
        "$share/lab-fashion-2-3/distree/1/lab/pipeline/fashion/stage/2"
    )


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
        Kind.ORCHESTRATOR,
    }
