"""The folder of a site's broker: created, and kept in step with site.yaml as users come and go.

    site.yaml               who may log in, and as what; no secrets
    mosquitto.conf          refers to all that follows by full paths
    dynamic-security.json   users and rules for mosquitto's plugin, or `passwords` and `access` without it
    emqx-acl.conf           the same rules for EMQX
    authority/              ca.crt, ca.key and what was revoked, with TLS; broker.crt and broker.key are beside it
    users/NAME/             what NAME needs, to be copied to its machine: broker.yaml, and a password or a certificate
    data/                   sessions and retained messages
    .lock                   held by the command that is changing the folder

site.yaml is written last, when a change is complete: until then, the command that was cut short can be repeated.

With `signed`, the orchestrators' folders also have the key by which they sign plans, and those of labellers one each;
everybody's broker.yaml names the public keys to check by.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from broker_config.access import dynamic_security, emqx, mosquitto_file
from broker_config.passwords import HashedPassword, hash_password, password_line
from broker_config.site import control, retained, signing_keys, user_passwords
from broker_config.site.certificates import Authority
from broker_config.site.config import FILE, SiteConfig, UserConfig, dump, load
from broker_config.site.mosquitto_conf import (
    ACCESS,
    AUTHORITY,
    BROKER_CERTIFICATE,
    BROKER_KEY,
    DATA,
    DYNAMIC_SECURITY,
    PASSWORDS,
    PID,
    mosquitto_conf,
)
from broker_config.site.private_files import check_owner, delete, locked, write
from distree.broker_address import joined
from distree.errors import BrokerError, ConfigError, DistreeError
from distree.printable import quoted
from distree.regular_files import read_regular

USERS = "users"
CONFIG = "mosquitto.conf"
EMQX = "emqx-acl.conf"
_MAX_FILE_BYTES = 16 << 20
BROKER_YAML = "broker.yaml"

TAKEN_OVER = "the broker has taken over the change"
NOT_RUNNING = "no broker runs here; the change applies when it is started"

_TLS_LATER = "leave it as it is, or make a broker with TLS: distree broker init --tls"

_OURS = (
    FILE,
    CONFIG,
    EMQX,
    DYNAMIC_SECURITY,
    PASSWORDS,
    ACCESS,
    AUTHORITY,
    BROKER_CERTIFICATE,
    BROKER_KEY,
    USERS,
    DATA,
)


class SiteFolder:
    """A folder as described above. Errors: ConfigError for what does not fit, BrokerError for a broker that refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def user_folder(self, name: str) -> Path:
        """Where the files of a user are."""
        return self.path / USERS / name

    @property
    def authority(self) -> Authority:
        """Where certificates come from."""
        return Authority(self.path / AUTHORITY)

    def load(self) -> SiteConfig:
        """Read site.yaml; ConfigError where this is no such folder, or that of another user."""
        check_owner(self.path)
        if not (self.path / FILE).exists():
            raise ConfigError(f"{self.path} has no {FILE}", "name a folder that `distree broker init` has made")
        return load(self.path)

    def create(self, config: SiteConfig, *, force: bool = False) -> None:
        """Make everything anew; ConfigError if something is there already, unless `force` says to replace it."""
        check_owner(self.path)
        conf = mosquitto_conf(config, self.path)  # what cannot run leaves nothing behind
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.path):
            self._make_way(force)
            self._create(config, conf)

    def _make_way(self, force: bool) -> None:
        there = [name for name in _OURS if (self.path / name).exists()]
        if there and not force:
            if FILE in there:
                remedy = (
                    "change it with `distree broker add`, `change`, `remove` and `rotate`, or make all secrets anew"
                )
                raise ConfigError(f"{self.path} has {', '.join(there)} already", f"{remedy} with --force")
            what = f"{self.path} has {', '.join(there)} already, but no {FILE}: it was not made to the end"
            raise ConfigError(what, "make everything in it anew with --force, or choose another folder with --folder")
        for name in there:
            delete(self.path / name)

    def _create(self, config: SiteConfig, conf: str) -> None:
        (self.path / DATA).mkdir(mode=0o700)
        (self.path / USERS).mkdir(mode=0o700)
        if config.tls:
            self.authority.create(config.site)
            self.authority.sign_broker(config.host, self.path / BROKER_CERTIFICATE, self.path / BROKER_KEY)
        passwords = {}
        config = self._with_folders(config, [user.name for user in config.users])
        for user in config.users:
            self._hand_out(config, user)
            if config.has_password(user):
                passwords[user.name] = hash_password(user_passwords.prepare(self.user_folder(user.name), user.name))
                user_passwords.put_in_force(self.user_folder(user.name), user.name)
        if config.access == "files":
            write(self.path / PASSWORDS, "".join(password_line(*entry) for entry in passwords.items()))
        else:
            write(self.path / DYNAMIC_SECURITY, dynamic_security.configuration(config.as_access(), passwords))
        write(self.path / CONFIG, conf)
        self._write_rules(config)
        self._write_users(config)

    def add(self, user: UserConfig) -> str:
        """Add a user; return what has happened to a broker that runs."""
        with self._changing() as before:
            return self._add(before, user)

    def _add(self, before: SiteConfig, user: UserConfig) -> str:
        if any(one.name == user.name for one in before.users):
            raise ConfigError(f"{quoted(user.name)} is a user already", "choose another name, or remove it first")
        config = self._with_folders(replace(before, users=(*before.users, user)), [user.name])
        user = config.user(user.name)
        self._hand_out(config, user)
        password = self._prepare_password(config, user)
        role = dynamic_security.role(config.as_access(), user.principal())
        commands: list[dict[str, Any]] = [
            *_forget(user.name),  # what an attempt that failed may have left
            {"command": "createRole", **role},
            {"command": "createClient", "username": user.name, **({} if password is None else {"password": password}),
             "roles": [{"rolename": user.name, "priority": -1}]},
        ]  # fmt: skip
        told = self._apply(config, commands, user.name, role, password)
        self._write_users(config)
        return told

    def change(self, user: UserConfig) -> str:
        """Give a user other roles, and leave its secret as it is; return what has happened to a broker that runs.

        Who signs something else from now on gets another key, and a broker.yaml that names it.
        """
        with self._changing() as before:
            return self._change(before, user)

    def _change(self, before: SiteConfig, user: UserConfig) -> str:
        was = before.user(user.name)
        old_key, key = signing_keys.key_file(before, was), signing_keys.key_file(before, user)
        user = replace(user, public_key=was.public_key if key == old_key else None)
        config = replace(before, users=tuple(user if one.name == user.name else one for one in before.users))
        _check_administrators(config)
        folder = self.user_folder(user.name)
        if key != old_key:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if key is not None:
                (folder / key).unlink(missing_ok=True)  # what an attempt that failed may have left
            config = signing_keys.with_keys(config, self.path / USERS, [user.name])
        role = dynamic_security.role(config.as_access(), user.principal())
        is_done = config.access == "dynamic-security" and control.execute(
            before, self.path / USERS, [{"command": "modifyRole", **role}], changed=user.name
        )
        if config.access == "dynamic-security" and not is_done:
            self._edit_dynamic_security("roles", "rolename", user.name, role)
        self._write_rules(config)
        told = self._reload() if config.access == "files" else TAKEN_OVER if is_done else NOT_RUNNING
        if key != old_key:
            self._hand_out_settings(config, config.user(user.name))
            if old_key is not None:
                (folder / old_key).unlink(missing_ok=True)
        self._write_users(config)
        return told

    def remove(self, name: str) -> str:
        """Remove a user; return what has happened to a broker that runs, which then retains nothing of a board."""
        with self._changing() as before:
            return self._remove(before, name)

    def _remove(self, before: SiteConfig, name: str) -> str:
        user = before.user(name)
        config = replace(before, users=tuple(one for one in before.users if one.name != name))
        _check_administrators(config)
        self._revoke(before, name)
        told = self._apply(config, _forget(name), name)
        delete(self.user_folder(name))
        if user.is_board and told == NOT_RUNNING:
            told += f". Dashboards will go on showing {name}; to avoid that, remove boards while the broker runs"
        elif user.is_board:
            self._clear_retained(config, name)
        self._write_users(config)
        return told

    def _clear_retained(self, config: SiteConfig, name: str) -> None:
        try:
            retained.clear(config, self.path / USERS, name)
        except DistreeError as error:
            what = f"{name} may no longer log in, but the broker still retains what it said of itself"
            raise BrokerError(f"{what}: {error.problem.what}", error.problem.remedy) from error

    def rotate(self, name: str) -> str:
        """Give a user a new password or certificate; return what has happened to a broker that runs."""
        with self._changing() as config:
            return self._rotate(config, name)

    def _rotate(self, config: SiteConfig, name: str) -> str:
        user = config.user(name)
        self._revoke(config, name)
        self._hand_out(config, user)
        password = self._prepare_password(config, user)
        # Either ends the sessions of this user.
        commands = [{"command": "disableClient", "username": name}, {"command": "enableClient", "username": name}]
        if password is not None:
            commands = [{"command": "setClientPassword", "username": name, "password": password}]
        role = dynamic_security.role(config.as_access(), user.principal())
        return self._apply(config, commands, name, role, password)

    def renew(self) -> str:
        """Give the broker a new certificate for the same address; return what has happened to a broker that runs."""
        with self._changing() as config:
            if not config.tls:
                raise ConfigError(f"{self.path}: this broker has no certificate, as it does not use TLS", _TLS_LATER)
            self.authority.sign_broker(config.host, self.path / BROKER_CERTIFICATE, self.path / BROKER_KEY)
            return NOT_RUNNING if self._reload() == NOT_RUNNING else TAKEN_OVER

    @contextlib.contextmanager
    def _changing(self) -> Iterator[SiteConfig]:
        """Keep other commands away, and return what site.yaml says."""
        self.load()  # first, so that no lock is left in what is not ours
        with locked(self.path):
            yield self.load()

    def _revoke(self, config: SiteConfig, name: str) -> None:
        """Have the certificate of a user refused, from now on if a broker runs."""
        if config.login == "certificates":
            self.authority.revoke_user(name)
            self._reload()

    # ------------------------------------------------------------ what users get

    def _with_folders(self, config: SiteConfig, names: Iterable[str]) -> SiteConfig:
        """Make these users' folders, with the keys that they sign with; return them with their public keys."""
        names = [*names]
        for name in names:
            self.user_folder(name).mkdir(mode=0o700, exist_ok=True)
            for key in (signing_keys.PLAN_KEY, signing_keys.LABEL_KEY):  # what an attempt that failed may have left
                (self.user_folder(name) / key).unlink(missing_ok=True)
        return signing_keys.with_keys(config, self.path / USERS, names)

    def _hand_out(self, config: SiteConfig, user: UserConfig) -> None:
        """Fill a user's folder with all but passwords and keys; a broker.yaml that is there stays."""
        folder = self.user_folder(user.name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it may have been moved to where it is used
        if config.tls:
            shutil.copy(self.authority.certificate, folder / "ca.crt")
        if config.login == "certificates":
            self.authority.sign_user(user.name, folder / f"{user.name}.crt", folder / f"{user.name}.key")
        if not (folder / BROKER_YAML).exists():
            self._hand_out_settings(config, user)

    def _hand_out_settings(self, config: SiteConfig, user: UserConfig) -> None:
        """Write a user's broker.yaml; its client ids stay as they were."""
        folder = self.user_folder(user.name)
        is_there = (folder / BROKER_YAML).exists()
        suffix = read_broker_yaml(folder)["broker"]["client_id_suffix"] if is_there else secrets.token_hex(8)
        write(folder / BROKER_YAML, broker_yaml(config, user, suffix))

    def _prepare_password(self, config: SiteConfig, user: UserConfig) -> str | None:
        return user_passwords.prepare(self.user_folder(user.name), user.name) if config.has_password(user) else None

    # ------------------------------------------------------------ what the broker reads

    def _write_rules(self, config: SiteConfig) -> None:
        access = config.as_access()
        write(self.path / EMQX, emqx.access_file(access))
        if config.access == "files":
            write(self.path / ACCESS, mosquitto_file.access_file(access))

    def _write_users(self, config: SiteConfig) -> None:
        """Declare a change complete."""
        write(self.path / FILE, dump(config))

    def _apply(
        self,
        config: SiteConfig,
        commands: Iterable[dict[str, Any]],
        name: str,
        role: dict[str, Any] | None = None,
        password: str | None = None,
    ) -> str:
        """Bring a user's rules and password up to date, in a broker that runs and for the next start.

        A new password replaces the old one in the user's folder only then: until then the old one may be what the
        broker is changed with.
        """
        hashed = None if password is None else hash_password(password)
        if config.access == "files":
            self._change_password(name, hashed)
            self._write_rules(config)
            told = self._reload()
        elif control.execute(self.load(), self.path / USERS, commands, changed=name):
            self._write_rules(config)
            told = f"{TAKEN_OVER}; sessions of this user, if there were any, have been ended"
        else:
            client = None if role is None else dynamic_security.client(name, hashed)
            self._edit_dynamic_security("clients", "username", name, client)
            self._edit_dynamic_security("roles", "rolename", name, role)
            self._write_rules(config)
            told = NOT_RUNNING
        if password is not None:
            user_passwords.put_in_force(self.user_folder(name), name)
        return told

    def _change_password(self, name: str, hashed: HashedPassword | None) -> None:
        path = self.path / PASSWORDS
        if not path.exists() and hashed is None:
            return
        there = read_regular(path, _MAX_FILE_BYTES).decode().splitlines(keepends=True)
        lines = [line for line in there if not line.startswith(f"{name}:")]
        write(path, "".join([*lines, *([] if hashed is None else [password_line(name, hashed)])]))

    def _edit_dynamic_security(self, part: str, key: str, name: str, entry: dict[str, Any] | None) -> None:
        """Replace or remove an entry of the plugin's file, which no broker uses now."""
        path = self.path / DYNAMIC_SECURITY
        try:
            there = json.loads(read_regular(path, _MAX_FILE_BYTES))
            others = [one for one in there[part] if one[key] != name]
        except (ValueError, TypeError, KeyError):
            raise ConfigError(
                f"{path}: not what mosquitto's dynamic security plugin writes",
                "put back a copy of it, or make all secrets anew with `distree broker init --force`",
            ) from None
        there[part] = others + ([] if entry is None else [entry])
        write(path, json.dumps(there, indent=1))

    def _reload(self) -> str:
        """Have a broker that runs read its files again."""
        try:
            number = int(read_regular(self.path / DATA / PID, 64))
            if "mosquitto" not in Path(f"/proc/{number}/comm").read_text():
                raise ProcessLookupError
            os.kill(number, signal.SIGHUP)
        except (OSError, ValueError):
            return NOT_RUNNING
        return (
            "the broker has read its files again; a session of this user that is open now stays open and may keep its "
            "rights: restart the broker to end it"
        )


def _forget(name: str) -> list[dict[str, Any]]:
    return [{"command": "deleteClient", "username": name}, {"command": "deleteRole", "rolename": name}]


def _check_administrators(config: SiteConfig) -> None:
    if config.access == "dynamic-security" and not any("administrator" in user.roles for user in config.users):
        raise ConfigError("nobody would be left to change the broker's users", "add another administrator first")


def broker_yaml(config: SiteConfig, user: UserConfig, client_id_suffix: str) -> str:
    """Render what a user's configuration says about the broker; its files lie beside it.

    Mosquitto cannot tie client ids to users who have several connections, as boards with an mqtt source do. With a
    suffix that nobody else knows, nobody can take over a connection by its id.
    """
    settings: dict[str, Any] = {"host": config.host, "port": config.port}
    options = [f"--broker {'mqtts' if config.tls else 'mqtt'}://{joined(config.host, config.port)}"]
    if config.login == "passwords":
        settings |= {"username": user.name, "password_file": f"{user.name}.secret"}
        options += [f"--username {user.name}", f"--password-file {user.name}.secret"]
    if config.tls:
        settings["tls"] = {"ca_file": "ca.crt"}
        options.append("--ca-file ca.crt")
    if config.login == "certificates":
        settings["tls"] |= {"cert_file": f"{user.name}.crt", "key_file": f"{user.name}.key"}
        options += [f"--cert-file {user.name}.crt", f"--key-file {user.name}.key"]
    settings["client_id_suffix"] = client_id_suffix
    options += signing_keys.command_options(config, user)
    into = "agent.yaml" if user.is_board else "orchestrator.yaml" if "orchestrator" in user.roles else "programs"
    head = f"# For {into} of {user.name}; the files it names lie beside it. As options of a command:\n"
    whole = {"broker": settings, **signing_keys.settings(config, user)}
    comments = f"# {' '.join(options)}\n{_for_browsers(config, user)}"
    return head + comments + yaml.safe_dump(whole, sort_keys=False)


def _for_browsers(config: SiteConfig, user: UserConfig) -> str:
    """Say with which address a page for browsers is served, and what a browser needs; "" for who needs no page."""
    if config.websockets is None or "dashboard" not in user.roles:
        return ""
    url = f"{'wss' if config.tls else 'ws'}://{joined(config.host, config.websockets)}"
    trust = "; the browser must trust ca.crt" if config.tls else ""
    return f"# For a browser, with the same user name and password: distree dashboard --broker {url}{trust}\n"


def read_broker_yaml(folder: Path) -> dict[str, Any]:
    """Return what the broker.yaml in a user's folder says, with the full paths of its files."""
    whole: dict[str, Any] = yaml.safe_load(read_regular(folder / BROKER_YAML, _MAX_FILE_BYTES))
    for part in (whole, whole["broker"], whole["broker"].get("tls", {})):
        for key in ("password_file", "ca_file", "cert_file", "key_file", "signing_key"):
            if key in part:
                part[key] = str(folder / part[key])
    return whole
