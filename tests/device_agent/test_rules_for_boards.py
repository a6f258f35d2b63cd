"""What agents, the orchestrator and programs ask of a broker lies within the rules of their roles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from device_agent.addresses import publications, roles, subscriptions, unheard
from device_agent.config import AgentConfig, AgentPipelineConfig, OriginConfig, ThumbnailConfig
from device_agent.preflight import load_bundles
from device_agent.sources.mqtt import MqttSourceConfig
from distree import topics
from distree.apps.dashboard import page
from distree.apps.submit.origin import described_on
from distree.roles import Principal, SiteAccess, principal, rules
from distree.topics import Kind, Role
from orchestrator import addresses

DATA = Path(__file__).parents[1] / "data"
MQTT = OriginConfig(source=MqttSourceConfig(kind="mqtt"))
FOREIGN = OriginConfig(source=MqttSourceConfig(kind="mqtt", topic="frigate/+/+/snapshot"))


def within(asked: str, allowed: str) -> bool:
    """Whether all topics of one filter are topics of another."""
    ours, theirs = asked.split("/"), allowed.split("/")
    if theirs[-1] == "#":
        ours, theirs = ours[: len(theirs) - 1], theirs[:-1]
    return len(ours) == len(theirs) and all(b in ("+", a) for a, b in zip(ours, theirs, strict=True))


def beyond(who: Principal, *, read: list[str], written: list[str], prefix: str | None = None) -> list[str]:
    """Return what a user may not do of what it does."""
    allowed = rules(SiteAccess(site="lab", principals=(who,), discovery_prefix=prefix), who)
    to_read = [rule.filter for rule in allowed if rule.read]
    to_write = [rule.filter for rule in allowed if rule.write]
    return [name for name in read if not any(within(name, rule) for rule in to_read)] + [
        name for name in written if not any(within(name, rule) for rule in to_write)
    ]


@pytest.mark.parametrize(
    ("bundle", "given"),
    [
        ("fashion", {"stages": (0, 1, 2), "origin": MQTT}),
        ("fashion", {"stages": (0,), "origin": FOREIGN}),
        ("fashion", {"stages": (1, 2)}),
        ("fashion", {"origin": OriginConfig(source=MqttSourceConfig(kind="mqtt"), thumbnails=ThumbnailConfig())}),
        ("tiny-wide", {"stages": (0, 1, 2), "branch": 1}),
        ("tiny-wide", {"fuse": True}),
        ("tiny-wide", {"origin": MQTT}),
        ("tiny-wide", {"stages": (0, 1, 2), "branch": 0, "origin": MQTT, "fuse": True}),
        ("tiny-wide", {"origin": OriginConfig(source=MqttSourceConfig(kind="mqtt"), fuser="hub")}),
        ("tiny-mixed", {"stages": (0,), "origin": MQTT}),
        ("tiny-mixed", {"stages": (1, 2), "branch": 2}),
        ("tiny-mixed", {"stages": (3,)}),
    ],
)
@pytest.mark.parametrize("pipelines", [(), ("p",)])
def test_all_that_an_agent_does_is_allowed(tmp_path, bundle, given, pipelines):
    path = DATA / bundle
    made = AgentPipelineConfig(name="p", bundle=str(path) if path.exists() else bundle, **given)
    config = AgentConfig(site="lab", device="b0", pipelines=(made,), state_dir=tmp_path)
    bundles = load_bundles(config)
    foreign = () if made.origin is None else made.origin.source.foreign_topics()
    who = principal("b0", roles(made, bundles[0]), pipelines=pipelines, also_reads=foreign)
    read = [sub.filter for sub in subscriptions(config, bundles)]
    written = publications(config, bundles) + unheard(config, bundles, [], "nobody")
    echo = topics.device("lab", "b0", Kind.ECHO)
    assert beyond(who, read=[*read, echo], written=[*written, echo]) == []
    if made.origin is not None:  # it reads the state of each board that announces itself, and calls them
        assert beyond(who, read=[topics.device("lab", "b9", Kind.STATE)], written=[topics.call("lab", "p", "b0")]) == []


def test_all_that_an_orchestrator_does_is_allowed():
    who = principal("orchestrator", [Role.ORCHESTRATOR])
    birth = "homeassistant/status"
    read = [name for name, _ in addresses.subscriptions("lab", ["p", "q"], ["q"], birth)]
    assert {*read} >= {topics.plan("lab", "p"), topics.label("lab", "q"), birth}
    written = [
        topics.plan("lab", "p"), topics.site_event("lab"), topics.orchestrator("lab"), topics.call("lab", "p", "a1b2"),
        topics.of_origin("lab", "p", Kind.STATS, "b0"), "homeassistant/device/distree_lab_b0/config",
    ]  # fmt: skip
    assert beyond(who, read=read, written=written, prefix="homeassistant") == []
    assert beyond(who, read=[birth], written=[]) == [birth]


def test_all_that_submit_and_the_dashboard_page_do_is_allowed():
    submitter = principal("eva", [Role.SUBMITTER], origins=["b0"])
    read = [*described_on("lab", "b0"), topics.of_origin("lab", "p", Kind.RESULT, "b0")]
    assert beyond(submitter, read=read, written=[topics.of_origin("lab", "p", Kind.INPUT, "b0")]) == []
    source = (Path(page.__file__).parent / "page" / "link.js").read_text(encoding="utf-8")
    asked = [f"distree/1/lab/{name}" for name in re.findall(r'\["([^"]+)", [01]\]', source)]
    assert len(asked) >= 9
    assert beyond(principal("screen", [Role.DASHBOARD]), read=asked, written=[]) == []


def test_all_that_top_does_is_allowed_to_a_reader():
    source = (Path(page.__file__).parents[1] / "top" / "live.py").read_text(encoding="utf-8")
    kinds = {Kind[name] for name in re.findall(r"Kind\.([A-Z_]+)\b", source)}
    assert {Kind.STATE, Kind.PLAN, Kind.SITE_EVENT} <= kinds
    asked = [topics.every(kind, "lab") for kind in kinds]
    assert beyond(principal("watch", [Role.READER]), read=asked, written=[]) == []
