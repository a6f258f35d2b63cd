"""What users may do, in words: the table says it once, and this says what must come of it."""

from __future__ import annotations

import pytest

from distree import topics
from distree.errors import ConfigError
from distree.roles import Principal, Rule, SiteAccess, principal, rules
from distree.topics import BOARD_ROLES, TABLE, Kind, Role

CAM = principal("cam", [Role.ORIGIN, Role.STAGE])
BRANCH = principal("b1", [Role.BRANCH])
HUB = principal("hub", [Role.HUB])
ORCHESTRATOR = principal("orchestrator", [Role.ORCHESTRATOR])
DASHBOARD = principal("dashboard", [Role.DASHBOARD])
READER = principal("reader", [Role.READER])
SUBMITTER = principal("eva", [Role.SUBMITTER], origins=["cam"])
LABELLER = principal("ann", [Role.LABELLER])
HOME = principal("home", [Role.HOME_ASSISTANT])
ADMIN = principal("admin", [Role.ADMINISTRATOR])
EVERYBODY = (CAM, BRANCH, HUB, ORCHESTRATOR, DASHBOARD, READER, SUBMITTER, LABELLER, HOME, ADMIN)
SITE = SiteAccess(site="lab", principals=EVERYBODY, discovery_prefix="homeassistant")


def may(who: Principal, act: str, topic: str) -> bool:
    full = topic if topic.startswith("homeassistant") else f"distree/1/lab/{topic}"
    return any(
        topics.overlap(rule.filter, full) and (rule.read if act == "read" else rule.write) for rule in rules(SITE, who)
    )


@pytest.mark.parametrize(
    ("who", "act", "topic", "is_allowed"),
    [
        # Boards act as themselves alone, and read what is addressed to them.
        (CAM, "write", "pipeline/p/result/cam", True),
        (CAM, "write", "pipeline/p/result/b1", False),
        (BRANCH, "write", "pipeline/p/result/b1", False),
        (BRANCH, "write", "pipeline/p/outcome/cam/b1", True),
        (BRANCH, "write", "pipeline/p/outcome/cam/hub", False),
        (BRANCH, "read", "pipeline/p/stage/1/b1/cam", True),
        (BRANCH, "read", "pipeline/p/stage/1/all/cam", True),
        (CAM, "read", "pipeline/p/stage/1/all/cam", False),
        (BRANCH, "read", "pipeline/p/stage/1/hub/cam", False),
        (HUB, "read", "pipeline/p/exit/hub/b1", True),
        (CAM, "read", "device/b1/state", True),
        (BRANCH, "read", "device/cam/state", False),
        (BRANCH, "read", "device/b1/state", True),
        (BRANCH, "write", "pipeline/p/member/1/b1", True),
        (BRANCH, "write", "pipeline/p/member/1/cam", False),
        (CAM, "read", "device/b1/telemetry", False),
        # Only the orchestrator plans.
        *((who, "write", "pipeline/p/plan", who in (ORCHESTRATOR, ADMIN)) for who in EVERYBODY),
        *((who, "write", "orchestrator", who in (ORCHESTRATOR, ADMIN)) for who in EVERYBODY),
        *((who, "write", "pipeline/p/stats/cam", who in (ORCHESTRATOR, ADMIN)) for who in EVERYBODY),
        *((who, "write", "site-event", who in (ORCHESTRATOR, ADMIN)) for who in EVERYBODY),
        *((who, "write", "pipeline/p/label", who in (LABELLER, ADMIN)) for who in EVERYBODY),
        *((who, "read", "pipeline/p/audit/cam", who in (ORCHESTRATOR, ADMIN)) for who in EVERYBODY),
        (ORCHESTRATOR, "read", "pipeline/p/result/cam", False),
        # Users.
        (DASHBOARD, "read", "pipeline/p/stats/cam", True),
        (DASHBOARD, "read", "pipeline/p/thumbnail/cam", True),
        (READER, "read", "pipeline/p/result/cam", False),
        (READER, "read", "pipeline/p/thumbnail/cam", False),
        (READER, "read", "device/cam/telemetry", True),
        (SUBMITTER, "write", "pipeline/p/input/cam", True),
        (SUBMITTER, "write", "pipeline/p/input/cam2", False),
        (SUBMITTER, "read", "pipeline/p/result/cam", True),
        (SUBMITTER, "read", "pipeline/p/result/cam2", False),
        (SUBMITTER, "read", "device/cam/dead", True),
        (SUBMITTER, "read", "device/b1/dead", False),
        # Home Assistant.
        (ORCHESTRATOR, "write", "homeassistant/device/distree_lab/config", True),
        (ORCHESTRATOR, "read", "homeassistant/status", True),
        (HOME, "write", "homeassistant/status", True),
        (HOME, "read", "homeassistant/device/distree_lab/config", True),
        (HOME, "read", "pipeline/p/stats/cam", True),
        (DASHBOARD, "read", "homeassistant/status", False),
    ],
)
def test_who_may_do_what(who: Principal, act: str, topic: str, is_allowed: bool) -> None:
    assert may(who, act, topic) is is_allowed


@pytest.mark.parametrize("who", [who for who in EVERYBODY if who is not ADMIN], ids=lambda who: who.name)
def test_nobody_is_granted_more_than_one_kind_at_a_time(who: Principal) -> None:
    """A filter that covered two kinds would grant whatever is added below it later."""
    for rule in rules(SITE, who):
        if not rule.filter.startswith("homeassistant"):
            assert len([kind for kind in Kind if topics.overlap(rule.filter, topics.every(kind, "lab"))]) == 1


def test_every_row_has_an_author_where_boards_publish_and_an_addressee_where_it_is_for_one() -> None:
    assert {kind: topic.author for kind, topic in TABLE.items() if topic.publishers & BOARD_ROLES} == {
        **dict.fromkeys((Kind.STATE, Kind.META, Kind.TELEMETRY, Kind.DEAD, Kind.EVENT, Kind.ECHO, Kind.MEMBER), "device"),
        **dict.fromkeys((Kind.CALL, Kind.STAGE, Kind.EXIT, Kind.DECISION, Kind.OUTCOME), "sender"),
        **dict.fromkeys((Kind.RESULT, Kind.AUDIT, Kind.THUMBNAIL), "origin"),
    }  # fmt: skip
    assert {kind: topic.addressee for kind, topic in TABLE.items() if topic.addressee} == {
        Kind.STAGE: "to", Kind.EXIT: "device", Kind.DECISION: "device", Kind.OUTCOME: "origin", Kind.INPUT: "origin",
    }  # fmt: skip


def test_pipelines_limit_all_but_the_clearing_of_announcements() -> None:
    one = principal("cam", [Role.ORIGIN, Role.STAGE], pipelines=["fashion"])
    found = [rule.filter for rule in rules(SITE, one) if "/pipeline/" in rule.filter]
    assert [name for name in found if "/fashion/" not in name] == ["distree/1/lab/pipeline/+/member/+/cam"]


def test_topics_of_other_programs() -> None:
    one = principal("cam", [Role.ORIGIN], also_reads=["frigate/+/+/snapshot"])
    assert [rule for rule in rules(SITE, one) if rule.filter.startswith("frigate") and rule.read and not rule.write]


def test_programs_have_topics_of_their_own_alone() -> None:
    one = principal("frigate", [Role.PROGRAM], own_topics=["frigate/#"])
    assert rules(SITE, one) == (Rule(filter="frigate/#", read=True, write=True),)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: principal("Cam", [Role.ORIGIN]), "not an id"),
        (lambda: principal("all", [Role.ORIGIN]), "reserved"),
        (lambda: principal("cam", []), "no role"),
        (lambda: principal("cam", [Role.ORIGIN, Role.DASHBOARD]), "a board cannot also be dashboard"),
        (lambda: principal("cam", [Role.ORIGIN], also_reads=["#"]), "covers topics of DistrEE"),
        (lambda: principal("eva", [Role.SUBMITTER], origins=["+"]), "not an id"),
        (lambda: principal("frigate", [Role.PROGRAM]), "the role program, which needs some"),
        (lambda: principal("eva", [Role.READER], own_topics=["frigate/#"]), "the role program"),
        (lambda: principal("frigate", [Role.PROGRAM], own_topics=["distree/#"]), "covers topics of DistrEE"),
        (lambda: principal("frigate", [Role.PROGRAM], own_topics=["$CONTROL/#"]), "a topic of the broker itself"),
        (lambda: principal("cam", [Role.ORIGIN], also_reads=["$SYS/#"]), "a topic of the broker itself"),
        (lambda: SiteAccess(site="lab", principals=(CAM, CAM)), "cam given twice"),
        *[
            (
                lambda prefix=prefix: SiteAccess(site="lab", principals=(CAM,), discovery_prefix=prefix),
                "not a discovery",
            )
            for prefix in ("", "#", "a+", "ha/", "$CONTROL", "distree/1", "ha\ntopic readwrite #")
        ],
    ],
)
def test_what_is_refused(make, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=words):
        make()
