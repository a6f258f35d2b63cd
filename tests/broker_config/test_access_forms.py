"""Access rules as each broker reads them: rendered as the golden files have them, and of sound syntax."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from broker_config.access import dynamic_security, emqx, mosquitto_file
from broker_config.passwords import HashedPassword
from distree.roles import SiteAccess, principal, rules
from distree.topics import Role

GOLDEN = Path(__file__).parent / "golden"

SITE = SiteAccess(
    site="lab",
    principals=(
        principal("cam1", [Role.ORIGIN, Role.STAGE], also_reads=["frigate/+/+/snapshot"]),
        principal("board1", [Role.STAGE]),
        principal("orchestrator", [Role.ORCHESTRATOR]),
        principal("dashboard", [Role.DASHBOARD]),
        principal("admin", [Role.ADMINISTRATOR]),
    ),
    discovery_prefix="homeassistant",
)
PASSWORDS = {"cam1": HashedPassword(salt=b"0123456789ab", digest=bytes(64))}


@pytest.mark.parametrize(
    ("name", "rendered"),
    [
        ("access", mosquitto_file.access_file(SITE)),
        ("dynamic-security.json", dynamic_security.configuration(SITE, PASSWORDS) + "\n"),
        ("emqx-acl.conf", emqx.access_file(SITE)),
    ],
)
def test_rendered_as_the_golden_file_has_it(name: str, rendered: str) -> None:
    assert rendered == (GOLDEN / name).read_text(encoding="utf-8")


def test_each_form_says_the_same() -> None:
    by_plugin = json.loads(dynamic_security.configuration(SITE, PASSWORDS))
    by_file = mosquitto_file.access_file(SITE)
    for who in SITE.principals:
        wanted = rules(SITE, who)
        (role,) = [role for role in by_plugin["roles"] if role["rolename"] == who.name]
        of_site = [acl for acl in role["acls"] if not acl["topic"].startswith("$")]
        assert {acl["topic"] for acl in of_site if acl["acltype"] == "publishClientSend"} == {
            rule.filter for rule in wanted if rule.write
        }
        for kind in ("publishClientReceive", "subscribePattern"):
            # Programs may ask for all sites, and receive what comes from their own.
            found = {acl["topic"] for acl in of_site if acl["acltype"] == kind}
            assert {topic for topic in found if not topic.startswith("distree/1/+/")} == {
                rule.filter for rule in wanted if rule.read
            }
            assert found == {rule.filter for rule in wanted if rule.read} or (
                kind == "subscribePattern" and not who.is_board
            )
        section = re.search(rf"user {who.name}\n((?:topic .*\n)*)", by_file)
        assert section is not None
        assert len(section[1].splitlines()) == len(wanted)


def test_emqx_terms_are_erlang() -> None:
    """A file of Erlang terms as file:consult/1 reads it, in the forms that EMQX 5 documents for acl.conf."""
    text = re.sub(r"%%.*", "", emqx.access_file(SITE))
    string = r'"[^"\\]*"'
    allow = rf"\{{allow,\s*\{{username,\s*{string}\}},\s*(publish|subscribe),\s*\[\s*{string}(,\s*{string})*\s*\]\}}\."
    left = re.sub(allow, "", text)
    assert left.split() == ["{deny,", "all}."]
    assert text.rstrip().endswith("{deny, all}.")  # the first that matches decides
    for who in SITE.principals:
        wanted = rules(SITE, who)
        for act, filters in (
            ("publish", {rule.filter for rule in wanted if rule.write}),
            ("subscribe", {rule.filter for rule in wanted if rule.read}),
        ):
            found = re.search(rf'\{{username, "{who.name}"\}}, {act}, \[([^\]]*)\]', text)
            assert set(re.findall(r'"([^"]*)"', found[1] if found else "")) == filters
