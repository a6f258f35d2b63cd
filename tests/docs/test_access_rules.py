"""The access rules on the pages are the rendered ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_config.access.mosquitto_file import access_file
from broker_config.site.cli import OTHER_NAMES
from broker_config.site.config import RoleName
from distree.roles import SiteAccess, principal
from distree.topics import Role

DOCS = Path(__file__).parents[2] / "docs"

CHAIN = SiteAccess(
    site="lab",
    principals=(
        principal("cam1", [Role.ORIGIN, Role.STAGE]),
        principal("board1", [Role.STAGE]),
        principal("orchestrator", [Role.ORCHESTRATOR]),
        principal("dashboard", [Role.DASHBOARD]),
    ),
)
HOME = SiteAccess(
    site="lab",
    principals=(
        principal("orchestrator", [Role.ORCHESTRATOR]),
        principal("home-assistant", [Role.HOME_ASSISTANT]),
    ),
    discovery_prefix="homeassistant",
)


@pytest.mark.parametrize(("page", "access"), [("howto/secure-broker.md", CHAIN), ("dashboards.md", HOME)])
def test_the_rules_on_a_page_are_the_rendered_ones(page: str, access: SiteAccess) -> None:
    assert f"```text\n{access_file(access)}```\n" in (DOCS / page).read_text(encoding="utf-8")


def test_every_role_that_can_be_given_is_explained() -> None:
    text = (DOCS / "howto" / "secure-broker.md").read_text(encoding="utf-8")
    names = RoleName.__args__  # type: ignore[attr-defined]
    assert set(OTHER_NAMES) < set(names) == {role.value for role in Role} - {Role.BOARD.value}
    assert [name for name in names if f"\n| `{name}` |" not in text] == []
