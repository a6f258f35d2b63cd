"""Who may do what, tried on a real mosquitto: all that is needed is allowed, and all that is forbidden is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from thoroughness import some

from benchmarks.access import FORMS, USERS_OF_SITE, measure
from broker_config.access.dynamic_security import find_plugin
from broker_config.managed import find_mosquitto
from distree.topics import BOARD_ROLES, Role

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


def test_the_matrix_has_a_user_for_every_role() -> None:
    held = {role for user in USERS_OF_SITE for role in user.principal().roles}
    assert held == set(Role)
    assert any(user.principal().roles & BOARD_ROLES == {Role.BOARD, Role.STAGE} for user in USERS_OF_SITE)


@pytest.mark.parametrize("form", some([*FORMS], 3))
def test_the_whole_matrix(form: str, tmp_path: Path) -> None:
    if "certificates" in form and shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    if "dynamic" in form and find_plugin() is None:
        pytest.skip("mosquitto's dynamic security plugin is not installed")
    for act, counts in zip(("publish", "read"), measure(form, tmp_path), strict=True):
        print(
            f"{form}, {act}: {counts.refused:,} of {counts.forbidden:,} forbidden refused, "
            f"{counts.allowed:,} of {counts.needed:,} needed allowed"
        )
        assert counts.faults == []
        assert counts.needed > 200
        assert counts.forbidden > 2000
