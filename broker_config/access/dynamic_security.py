"""The configuration of mosquitto's dynamic security plugin: users and roles that can be changed while it runs."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from broker_config.passwords import PASSWORD_ROUNDS, HashedPassword
from distree.roles import Principal, Rule, SiteAccess, rules
from distree.topics import ROOT, Role

CONTROL = "$CONTROL/dynamic-security/#"
"""Where administrators change users and roles."""

_FOLDERS = ("/usr/lib/*/", "/usr/lib/", "/usr/lib64/", "/usr/local/lib/", "/usr/lib/mosquitto/")
_PLUGIN = "mosquitto_dynamic_security.so"


def find_plugin() -> Path | None:
    """Return where the plugin is installed, None if it is not."""
    for folder in _FOLDERS:
        found = sorted(Path("/").glob(f"{folder[1:]}{_PLUGIN}"))
        if found:
            return found[0]
    return None


def configuration(access: SiteAccess, passwords: Mapping[str, HashedPassword]) -> str:
    """Render the plugin's file for a whole site; users without a password log in by certificate.

    The plugin writes this file itself whenever it is told to change something.
    """
    return json.dumps(
        {
            "defaultACLAccess": {
                "publishClientSend": False,
                "publishClientReceive": False,
                "subscribe": False,
                "unsubscribe": True,
            },
            "clients": [client(who.name, passwords.get(who.name)) for who in access.principals],
            "groups": [],
            "roles": [role(access, who) for who in access.principals],
        },
        indent=1,
    )


def client(name: str, password: HashedPassword | None) -> dict[str, Any]:
    """Return a user as the plugin's file has it; its role bears its name."""
    hashed: dict[str, Any] = {}
    if password is not None:
        hashed = {
            "password": base64.b64encode(password.digest).decode(),
            "salt": base64.b64encode(password.salt).decode(),
            "iterations": PASSWORD_ROUNDS,
        }
    return {"username": name, **hashed, "roles": [{"rolename": name, "priority": -1}]}


def role(access: SiteAccess, who: Principal) -> dict[str, Any]:
    """Return what a user may do, as the plugin's file and its command createRole have it."""
    allowed = [*rules(access, who)]
    if Role.ADMINISTRATOR in who.roles:
        allowed += [Rule(filter=CONTROL, read=True, write=True), Rule(filter="$SYS/#", read=True, write=False)]
    acls = []
    for rule in allowed:
        kinds = ["publishClientSend"] if rule.write else []
        # The filter that is asked for must lie within the rule, and so must each message that is delivered.
        kinds += ["publishClientReceive", "subscribePattern"] if rule.read else []
        acls += [{"acltype": kind, "topic": rule.filter, "priority": 0, "allow": True} for kind in kinds]
        own = f"{ROOT}/{access.site}/"
        if rule.read and not who.is_board and rule.filter.startswith(own):
            # Programs such as the dashboard ask for all sites, and then see those that they may.
            everywhere = f"{ROOT}/+/{rule.filter.removeprefix(own)}"
            acls.append({"acltype": "subscribePattern", "topic": everywhere, "priority": 0, "allow": True})
    return {"rolename": who.name, "acls": acls}
