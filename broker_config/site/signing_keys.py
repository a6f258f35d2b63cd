"""Keys by which orchestrators sign plans, and labellers labels: made for users, and told to those who check them.

Orchestrators stand in for each other, so they have one key between them. Each labeller has a key of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from broker_config.site.config import RoleName, SiteConfig, UserConfig
from distree.errors import ConfigError
from distree.signing import load_signing_key, new_signing_key

PLAN_KEY, LABEL_KEY = "plan.key", "label.key"


def key_file(config: SiteConfig, user: UserConfig) -> str | None:
    """Return the name of the private key that a user signs with, None for who signs nothing."""
    if not config.signed:
        return None
    return PLAN_KEY if "orchestrator" in user.roles else LABEL_KEY if "labeller" in user.roles else None


def with_keys(config: SiteConfig, folder: Path, names: Iterable[str]) -> SiteConfig:
    """Make the private keys of these users, in their folders below `folder`; return them with their public keys.

    Raises ConfigError if a key cannot be made, or the orchestrators' is no longer here to be copied.
    """
    for name in names:
        user = config.user(name)
        key = key_file(config, user)
        if key is None:
            continue
        is_shared = key == PLAN_KEY
        public = _shared_key(config, folder, user) if is_shared else new_signing_key(folder / name / key).public
        changed = replace(user, public_key=public)
        config = replace(config, users=tuple(changed if one is user else one for one in config.users))
    return config


def _shared_key(config: SiteConfig, folder: Path, user: UserConfig) -> str:
    path = folder / user.name / PLAN_KEY
    signing = [one for one in config.users if "orchestrator" in one.roles and one.public_key is not None]
    if not signing:
        return new_signing_key(path).public
    for one in signing:
        there = folder / one.name / PLAN_KEY
        if there.exists():
            shutil.copy(there, path)  # with its mode
            return load_signing_key(path).public
    raise ConfigError(
        f"{folder / signing[0].name / PLAN_KEY}: not there, and all orchestrators of a site sign with the same key",
        "put it back there",
    )


def settings(config: SiteConfig, user: UserConfig) -> dict[str, Any]:
    """Return what the configuration of a user says about signatures."""
    if not config.signed:
        return {}
    if user.is_board:
        return {"plan_keys": [*config.public_keys("orchestrator")]}
    if "orchestrator" not in user.roles:
        return {}
    labels = config.public_keys("labeller")
    return {"signing_key": PLAN_KEY, **({"label_keys": [*labels]} if labels else {})}


def command_options(config: SiteConfig, user: UserConfig) -> list[str]:
    """Return the options for `distree label` of a user who signs labels."""
    return [f"--signing-key {LABEL_KEY}"] if key_file(config, user) == LABEL_KEY else []


def what_to_change(before: SiteConfig, now: SiteConfig) -> list[str]:
    """Return lines on what has to follow in other users' files once users were added, changed or removed."""
    told = []
    label_keys = now.public_keys("labeller")
    if label_keys and label_keys != before.public_keys("labeller"):
        told.append(f"in orchestrator.yaml, set label_keys: {_list(now, 'labeller')}, and restart the orchestrator")
    elif not label_keys and before.public_keys("labeller"):
        told.append(
            "nobody may publish labels now: in orchestrator.yaml, take out label_keys and labels_wait_s, and restart "
            "the orchestrator"
        )
    plan_keys = now.public_keys("orchestrator")
    if plan_keys and plan_keys != before.public_keys("orchestrator"):
        told.append(f"in each board's agent.yaml, set plan_keys: {_list(now, 'orchestrator')}, and restart its agent")
    return told


def _list(config: SiteConfig, role: RoleName) -> str:
    return f"[{', '.join(json.dumps(key) for key in config.public_keys(role))}]"
