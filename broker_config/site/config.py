"""site.yaml: where the broker of a site listens, and who may do what on it. It holds no secrets."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

import yaml

from distree import strict_yaml
from distree.broker_address import host_fault
from distree.errors import ConfigError
from distree.printable import quoted
from distree.record import record
from distree.roles import Principal, SiteAccess, principal
from distree.signing import check_public_keys
from distree.topics import BOARD_ROLES, Role, check_id

FILE = "site.yaml"

RoleName = Literal[
    "origin", "stage", "branch", "fuser", "hub", "orchestrator", "dashboard", "reader", "submitter", "labeller",
    "home-assistant", "program", "administrator",
]  # fmt: skip
"""The roles that a user can be given; every board also has the role `board`."""


@record
class UserConfig:
    """A user of the broker: a board by its device id, or a program or person."""

    name: str
    """Its name, from a-z, 0-9 and '-'."""
    roles: tuple[RoleName, ...]
    """What it is allowed to be."""
    pipelines: tuple[str, ...] = ()
    """The pipelines that it takes part in; all if left out."""
    origins: tuple[str, ...] = ()
    """The origins that a submitter may hand inputs to; all if left out."""
    reads: tuple[str, ...] = ()
    """Topics of other programs that this board's source reads."""
    topics: tuple[str, ...] = ()
    """Topics of its own that a program publishes and reads."""
    public_key: str | None = None
    """What others check by that plans or labels are this user's; none if it signs nothing."""

    def __post_init__(self) -> None:
        self.principal()

    def principal(self) -> Principal:
        """Return it as the table of roles knows it."""
        given = [Role(name) for name in self.roles]
        return principal(
            self.name,
            given,
            pipelines=self.pipelines,
            origins=self.origins,
            also_reads=self.reads,
            own_topics=self.topics,
        )

    @property
    def is_board(self) -> bool:
        """Whether it is a board."""
        return any(Role(name) in BOARD_ROLES for name in self.roles)


@record
class SiteConfig:
    """The whole of site.yaml."""

    site: str
    """The site's id."""
    host: str
    """Name or address by which boards reach the broker."""
    port: int
    """Its port."""
    login: Literal["passwords", "certificates"] = "passwords"
    """What users log in with. Certificates need `tls`."""
    tls: bool = False
    """Whether connections are encrypted, by a certificate from this folder's own authority."""
    access: Literal["dynamic-security", "files"] = "dynamic-security"
    """Where mosquitto finds users and rules: in its plugin, or in a password file and an access file."""
    websockets: int | None = None
    """A port for browsers; none if left out."""
    discovery_prefix: str | None = None
    """Home Assistant's discovery prefix; left out without Home Assistant."""
    signed: bool = False
    """Whether orchestrators sign plans and labellers sign labels, and boards and orchestrators obey nothing else."""
    users: tuple[UserConfig, ...] = field(default=())
    """Everybody who may log in."""

    def __post_init__(self) -> None:
        check_id(self.site, "site")
        if remedy := host_fault(self.host):
            raise ConfigError(f"host: {quoted(self.host)} is neither a name nor an address", remedy)
        for name, port in (("port", self.port), ("websockets", self.websockets)):
            if port is not None and not 0 < port < 65536:
                raise ConfigError(f"{name}: {port} is out of range", "choose 1 to 65535")
        if self.port == self.websockets:
            raise ConfigError("websockets: this is the port for MQTT", "choose another one")
        if self.login == "certificates" and not self.tls:
            raise ConfigError("login: certificates are for TLS only", "set tls: true")
        for user in self.users:
            check_public_keys([] if user.public_key is None else [user.public_key], f"public_key of {user.name}")
        self.as_access()

    def as_access(self) -> SiteAccess:
        """Return who may do what."""
        return SiteAccess(
            site=self.site,
            principals=tuple(user.principal() for user in self.users),
            discovery_prefix=self.discovery_prefix,
        )

    def user(self, name: str) -> UserConfig:
        """Return a user by name; ConfigError if there is none."""
        found = next((user for user in self.users if user.name == name), None)
        if found is None:
            known = ", ".join(user.name for user in self.users)
            raise ConfigError(f"{quoted(name)} is not a user of the site {self.site}", f"choose among {known}")
        return found

    def public_keys(self, role: RoleName) -> tuple[str, ...]:
        """Return the public keys of those who sign in a role, each once."""
        keys = [user.public_key for user in self.users if role in user.roles and user.public_key is not None]
        return tuple(dict.fromkeys(keys))

    def has_password(self, user: UserConfig) -> bool:
        """Whether a user logs in with a password, be it only by websockets, where browsers have no certificates."""
        return self.login == "passwords" or (self.websockets is not None and "dashboard" in user.roles)


def load(folder: Path) -> SiteConfig:
    """Read a folder's site.yaml; ConfigError as `strict_yaml.load`."""
    return strict_yaml.load(folder / FILE, SiteConfig)


def dump(config: SiteConfig) -> str:
    """Render site.yaml."""
    users = [
        {
            "name": user.name,
            "roles": [*user.roles],
            **{
                key: [*names]
                for key, names in (
                    ("pipelines", user.pipelines),
                    ("origins", user.origins),
                    ("reads", user.reads),
                    ("topics", user.topics),
                )
                if names
            },
            **({} if user.public_key is None else {"public_key": user.public_key}),
        }
        for user in config.users
    ]
    given = {
        "site": config.site,
        "host": config.host,
        "port": config.port,
        "login": config.login,
        "tls": config.tls,
        "access": config.access,
        **({"signed": True} if config.signed else {}),
        **({} if config.websockets is None else {"websockets": config.websockets}),
        **({} if config.discovery_prefix is None else {"discovery_prefix": config.discovery_prefix}),
    }
    head = "# Written by `distree broker init`, add, change, remove and rotate; it says who may log in, and as what.\n"
    body: str = yaml.safe_dump(given, sort_keys=False)
    listed = yaml.safe_dump({"users": users}, sort_keys=False, default_flow_style=None, width=1000)
    return f"{head}{body}{listed}"
