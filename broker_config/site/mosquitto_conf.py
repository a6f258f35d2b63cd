"""mosquitto.conf of a site's folder, which runs as it is."""

from __future__ import annotations

import os
from pathlib import Path

from broker_config.access.dynamic_security import find_plugin
from broker_config.render import MosquittoSettings, limits
from broker_config.site.certificates import Authority
from broker_config.site.config import SiteConfig
from broker_config.site.private_files import user_name
from distree.errors import ConfigError

ACCESS, PASSWORDS = "access", "passwords"
DYNAMIC_SECURITY = "dynamic-security.json"
AUTHORITY = "authority"
BROKER_CERTIFICATE, BROKER_KEY = "broker.crt", "broker.key"
DATA, PID = "data", "mosquitto.pid"

MAX_CONNECTIONS = 1000
"""Most connections to a port, so that one faulty program cannot take all of them from the boards."""


def mosquitto_conf(config: SiteConfig, folder: Path, *, listen_on: str = "") -> str:
    """Render the file for a folder at its absolute path.

    It listens on every address of the machine, or on `listen_on` alone. ConfigError where the plugin that it needs is
    not installed.
    """
    folder = folder.absolute()
    lines = [
        "# Written by `distree broker init`; `distree broker run` does not read it, but renders site.yaml again.",
        *_user(),
        "",
        *_security(config, folder),
        "",
        f"listener {config.port}{f' {listen_on}' if listen_on else ''}",
        f"max_connections {MAX_CONNECTIONS}",
        *(_tls(folder) if config.tls else []),
    ]
    if config.login == "certificates":
        lines += ["require_certificate true", "use_identity_as_username true"]
        lines.append(f"crlfile {Authority(folder / AUTHORITY).revoked}")
    if config.websockets is not None:
        lines += ["", "# For browsers. Mosquitto 2.0 opens this port on every address, whatever it is told."]
        lines += [f"listener {config.websockets}", "protocol websockets", f"max_connections {MAX_CONNECTIONS}"]
        lines += _tls(folder) if config.tls else []
    lines += [
        "",
        *limits(MosquittoSettings()),
        "",
        "# Written every half hour and at the end: writing wears out an SD card.",
        "persistence true",
        f"persistence_location {folder / DATA}/",
        "autosave_interval 1800",
        "autosave_on_changes false",
        f"pid_file {folder / DATA / PID}",
        "",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",
    ]
    return "\n".join(lines) + "\n"


def _user() -> list[str]:
    # By number: what the environment says of the user may be about somebody else, as after `su`.
    name = user_name(os.geteuid())
    if name is None:
        return ["# The user who made this has no name, so root cannot start mosquitto as that user."]
    return ["# If root starts mosquitto, it goes on as this user, who must be able to read the folder.", f"user {name}"]


def _security(config: SiteConfig, folder: Path) -> list[str]:
    lines = ["allow_anonymous false"]
    if config.access == "files":
        if any(config.has_password(user) for user in config.users):
            lines.append(f"password_file {folder / PASSWORDS}")
        return [*lines, f"acl_file {folder / ACCESS}"]
    plugin = find_plugin()
    if plugin is None:
        raise ConfigError(
            "mosquitto's dynamic security plugin is not installed",
            "install mosquitto 2 from your distribution, or use --access files",
        )
    return [*lines, f"plugin {plugin}", f"plugin_opt_config_file {folder / DYNAMIC_SECURITY}"]


def _tls(folder: Path) -> list[str]:
    return [
        f"cafile {folder / AUTHORITY / 'ca.crt'}",
        f"certfile {folder / BROKER_CERTIFICATE}",
        f"keyfile {folder / BROKER_KEY}",
        "tls_version tlsv1.2",
    ]
