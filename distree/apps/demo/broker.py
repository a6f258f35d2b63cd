"""The broker of the demo: one that runs already, one that is open to everybody on this machine, or a secured one."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distree.apps.demo.dashboard import serve_dashboard
from distree.apps.demo.plan import DemoBoard, DemoSite
from distree.broker_address import parse_address
from distree.broker_settings import BrokerSettings
from distree.errors import ConfigError


class DemoBroker(Protocol):
    """How the demo's processes reach the broker."""

    @property
    def description(self) -> str:
        """What runs where, for people."""
        ...

    def settings_of(self, user: str) -> dict[str, Any]:
        """Return the `broker` of the configuration file of a board, or of "orchestrator"."""
        ...

    def watcher(self) -> BrokerSettings:
        """Return how the demo itself connects, which watches everything."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBroker:
    """A broker that asks for no login."""

    host: str
    port: int
    description: str

    def settings_of(self, user: str) -> dict[str, Any]:  # noqa: ARG002 - all are alike here
        """Return what is the same for all."""
        return {"host": self.host, "port": self.port}

    def watcher(self) -> BrokerSettings:
        """Return what is the same for all."""
        return BrokerSettings(host=self.host, port=self.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecuredBroker:
    """A broker as `distree broker init` makes it, by its folder."""

    users: Path
    description: str

    def settings_of(self, user: str) -> dict[str, Any]:
        """Return what the user's broker.yaml says, with full paths."""
        from broker_config.site.folder import read_broker_yaml

        settings: dict[str, Any] = read_broker_yaml(self.users / user)["broker"]
        return settings

    def watcher(self) -> BrokerSettings:
        """Return the administrator's settings."""
        settings = self.settings_of("administrator")
        return BrokerSettings(**{**settings, "password_file": Path(settings["password_file"])})


def start_broker(
    args: argparse.Namespace, plan: DemoSite, site: str, folder: Path, stack: contextlib.ExitStack
) -> DemoBroker:
    """Return the broker that the options ask for, started unless it runs already, until `stack` ends.

    ConfigError for options that exclude each other; BrokerError for a broker that does not start.
    """
    if args.broker != "auto":
        if args.secure:
            raise ConfigError("--secure: only for the broker that the demo starts", "leave out --broker")
        if args.dashboard is not None:
            raise ConfigError(
                "--dashboard: only for the broker that the demo starts",
                "run `distree dashboard --broker ws://HOST:PORT` beside the demo",
            )
        address = parse_address(args.broker, "--broker", {})
        return OpenBroker(host=address.host, port=address.port, description=f"the one at {address}")
    if args.secure:
        return _start_secured(args, plan, site, folder, stack)
    from broker_config.managed import WEBSOCKETS_USER, ManagedBroker

    if args.dashboard is None:
        managed = stack.enter_context(ManagedBroker(engine=args.engine))
    else:
        managed = stack.enter_context(ManagedBroker(engine=args.engine, websockets_port=0))
        _show_dashboard(stack, args.dashboard, managed.websockets_port, WEBSOCKETS_USER, managed.websockets_password)
    return OpenBroker(host=managed.host, port=managed.port, description=managed.describe())


def _start_secured(
    args: argparse.Namespace, plan: DemoSite, site: str, folder: Path, stack: contextlib.ExitStack
) -> DemoBroker:
    from broker_config.access.dynamic_security import find_plugin
    from broker_config.managed import HOST, free_port
    from broker_config.site.broker import SiteBroker
    from broker_config.site.config import SiteConfig, UserConfig
    from broker_config.site.folder import USERS, SiteFolder

    if args.engine == "embedded":
        raise ConfigError(
            "--secure: the embedded broker has no users", "run: apt install mosquitto, and leave out --engine"
        )
    boards = [UserConfig(name=board.device, roles=_roles(board, plan)) for board in plan.boards]
    others = [
        UserConfig(name="orchestrator", roles=("orchestrator",)),
        UserConfig(name="dashboard", roles=("dashboard",)),
        UserConfig(name="administrator", roles=("administrator",)),
    ]
    config = SiteConfig(
        site=site,
        host=HOST,
        port=free_port(),
        access="files" if find_plugin() is None else "dynamic-security",
        websockets=None if args.dashboard is None else free_port(),
        users=(*boards, *others),
    )
    place = SiteFolder(folder / "broker")
    place.create(config)
    broker = stack.enter_context(SiteBroker(place.path, listen_on=HOST))
    if args.dashboard is not None:
        password = (place.user_folder("dashboard") / "dashboard.secret").read_text().strip()
        _show_dashboard(stack, args.dashboard, config.websockets, "dashboard", password)
    users = f"{len(config.users)} users, each with a password and rules of its own"
    return SecuredBroker(users=place.path / USERS, description=f"{broker.describe()}, {users}")


def _roles(board: DemoBoard, plan: DemoSite) -> tuple[Any, ...]:
    has = {
        "origin": board.is_origin,
        "stage": bool(board.stages),
        "branch": board.branch is not None,
        "fuser": board.is_origin and plan.bundle.is_wide,
        "hub": board.fuses,
    }
    return tuple(name for name, is_so in has.items() if is_so)


def _show_dashboard(stack: contextlib.ExitStack, port: int, websockets: int | None, user: str, password: str) -> None:
    url = serve_dashboard(stack, port, f"ws://127.0.0.1:{websockets}")
    print(f"dashboard: {url} user {user}, password {password}", flush=True)
