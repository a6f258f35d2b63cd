"""`distree broker init` and what changes its folder: a broker for a site of one's own, and who may use it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from broker_config.access.dynamic_security import find_plugin
from broker_config.site import signing_keys
from broker_config.site.certificates import DAYS
from broker_config.site.config import RoleName, SiteConfig, UserConfig
from broker_config.site.folder import CONFIG, USERS, SiteFolder
from distree import topics
from distree.errors import ConfigError
from distree.printable import quoted
from distree.topics import BOARD_ROLES, Role

BOARD_NAMES = tuple(name for name in get_args(RoleName) if Role(name) in BOARD_ROLES)
OTHER_NAMES = tuple(name for name in get_args(RoleName) if name not in (*BOARD_NAMES, "program"))

STANDARD_USERS = ("orchestrator", "dashboard", "submitter", "administrator")
"""Users that every site has: each has the role that it is named after."""

_FOLDER = "the folder that `distree broker init` made"


def add_init_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree broker init`."""
    parser.add_argument("site", metavar="SITE", help="the site's id, as in agent.yaml")
    parser.add_argument(
        "--host", required=True, metavar="ADDRESS", help="name or address of this machine, by which boards reach it"
    )
    parser.add_argument(
        "--board",
        action="append",
        default=[],
        metavar="NAME:ROLE[,ROLE]",
        help=f"a board by its device id, and what it does: {', '.join(BOARD_NAMES)}; may be repeated. `fuser` is for "
        "origins of wide stages, `hub` for boards with `fuse: true`",
    )
    parser.add_argument(
        "--user",
        action="append",
        default=[],
        metavar="NAME:ROLE[,ROLE]",
        help=f"a further user, and what it may be: {', '.join(OTHER_NAMES)}; may be repeated. There are always "
        f"{', '.join(STANDARD_USERS)}",
    )
    parser.add_argument(
        "--reads",
        action="append",
        default=[],
        metavar="BOARD=TOPIC",
        help="a topic of another program that a board's source reads, such as cam1=frigate/+/+/snapshot",
    )
    parser.add_argument(
        "--program",
        action="append",
        default=[],
        metavar="NAME=TOPIC",
        help="another program on this broker, and a topic of its own that it publishes and reads, such as "
        "frigate=frigate/#; may be repeated",
    )
    parser.add_argument("--port", type=int, help="the broker's port (default: 1883, or 8883 with TLS)")
    parser.add_argument("--tls", action="store_true", help="encrypt connections, by a certificate authority made here")
    parser.add_argument(
        "--certificates", action="store_true", help="log in with certificates instead of passwords; implies --tls"
    )
    parser.add_argument(
        "--signed",
        action="store_true",
        help="also make keys, with which the orchestrator signs plans and labellers sign labels, and have boards and "
        "orchestrator obey nothing else (they need the extra `signed`)",
    )
    parser.add_argument("--websockets", type=int, metavar="PORT", help="also let browsers connect, on this port")
    parser.add_argument(
        "--home-assistant",
        nargs="?",
        const="homeassistant",
        metavar="PREFIX",
        help="add a user home-assistant, and allow discovery below this prefix (%(const)s if none is given)",
    )
    parser.add_argument(
        "--access",
        choices=("auto", "dynamic-security", "files"),
        default="auto",
        help="where mosquitto finds its users: in its dynamic security plugin, which can end sessions when a user is "
        "removed, or in files (default: the plugin if it is installed)",
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="folder to make (default: SITE-broker)")
    parser.add_argument("--force", action="store_true", help="replace what is in the folder, with all its secrets")
    parser.epilog = "example: distree broker init lab --host 192.168.1.10 --board cam1:origin,stage --board b1:stage"


def add_user_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Add the options of `distree broker add`, `change`, `remove` or `rotate`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=_FOLDER)
    if command in ("add", "change"):
        parser.add_argument(
            "user", metavar="NAME:ROLE[,ROLE]", help=f"the user, and what it may be: {', '.join(get_args(RoleName))}"
        )
        parser.add_argument(
            "--reads", action="append", default=[], metavar="TOPIC", help="a topic of another program that it reads"
        )
        parser.add_argument(
            "--topic", action="append", default=[], metavar="TOPIC", help="a topic that a program has for its own"
        )
        parser.add_argument(
            "--origin",
            action="append",
            default=[],
            metavar="NAME",
            help="an origin that a submitter may hand inputs to; may be repeated (default: all)",
        )
        parser.epilog = f"example: distree broker {command} lab-broker b2:stage"
    else:
        parser.add_argument("user", metavar="NAME", help="the user")
        parser.epilog = f"example: distree broker {command} lab-broker b2"


def add_renew_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree broker renew`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=_FOLDER)
    parser.epilog = "example: distree broker renew lab-broker"


def run_renew(args: argparse.Namespace) -> int:
    """Carry out `distree broker renew`."""
    told = SiteFolder(args.folder).renew()
    print(f"new certificate for the broker, valid for {DAYS} days; boards and users need nothing new")
    print(told)
    return 0


def run_init(args: argparse.Namespace) -> int:
    """Carry out `distree broker init`."""
    reads = [_split(given, "=", "--reads", "BOARD=TOPIC") for given in args.reads]
    boards = [_user(given, "--board", BOARD_NAMES) for given in args.board]
    if not boards:
        raise ConfigError("--board: none is given", "name each board and what it does, as in --board cam1:origin,stage")
    if unknown := [board for board, _ in reads if board not in [user.name for user in boards]]:
        raise ConfigError(f"--reads: {quoted(unknown[0])} is not a board", "name one that --board gives")
    boards = [replace(user, reads=tuple(topic for board, topic in reads if board == user.name)) for user in boards]
    home = ["home-assistant"] if args.home_assistant is not None else []
    standard = [UserConfig(name=name, roles=(cast("RoleName", name),)) for name in (*STANDARD_USERS, *home)]
    others = [_user(given, "--user", OTHER_NAMES) for given in args.user] + _programs(args.program)
    uses_tls = args.tls or args.certificates
    access: Literal["dynamic-security", "files"] = "files" if find_plugin() is None else "dynamic-security"
    if args.access != "auto":
        access = args.access
    config = SiteConfig(
        site=topics.check_id(args.site, "SITE"),
        host=args.host,
        port=args.port if args.port is not None else 8883 if uses_tls else 1883,
        login="certificates" if args.certificates else "passwords",
        tls=uses_tls,
        signed=args.signed,
        access=access,
        websockets=args.websockets,
        discovery_prefix=args.home_assistant,
        users=(*boards, *standard, *others),
    )
    folder = SiteFolder(args.folder if args.folder is not None else Path(f"{args.site}-broker"))
    folder.create(config, force=args.force)
    print(f"{_shown(folder.path)}: a broker for the site {config.site}, with {len(config.users)} users")
    for user in config.users:
        print(_what_to_copy(folder, user))
    if not config.tls:
        print("passwords will cross the network in clear text; --tls encrypts the connections")
    print(f"start the broker: distree broker run {_shown(folder.path)}")
    print(f"or, as a service: mosquitto -c {folder.path / CONFIG}")
    return 0


def run_change(args: argparse.Namespace, command: str) -> int:
    """Carry out `distree broker add`, `change`, `remove` or `rotate`."""
    folder = SiteFolder(args.folder)
    before = folder.load()
    match command:
        case "add" | "change":
            name, roles = _name_and_roles(args.user, "NAME:ROLE", get_args(RoleName))
            user = UserConfig(
                name=name,
                roles=roles,
                reads=tuple(args.reads),
                topics=tuple(args.topic),
                origins=tuple(args.origin),
            )
            if command == "add":
                told = folder.add(user)
                print(f"added {_what_to_copy(folder, user)}")
            else:
                told = folder.change(user)
                print(f"{user.name} is now: {', '.join(user.roles)}; its secret stays as it is")
                if signing_keys.key_file(before, user) != signing_keys.key_file(before, before.user(user.name)):
                    print(f"what it signs has changed; {_what_to_copy(folder, user)}")
        case "remove":
            told = folder.remove(args.user)
            print(f"removed {args.user}")
        case _:
            told = folder.rotate(args.user)
            print(f"new secret for {_what_to_copy(folder, before.user(args.user))}")
    for line in signing_keys.what_to_change(before, folder.load()):
        print(line)
    print(told)
    return 0


def _what_to_copy(folder: SiteFolder, user: UserConfig) -> str:
    path = _shown(folder.path / USERS / user.name)
    where = f"to {user.name}" if user.is_board else "to where it is used"
    return f"{user.name} ({', '.join(user.roles)}): copy {path}/ {where}"


def _programs(given: Iterable[str]) -> list[UserConfig]:
    pairs = [_split(one, "=", "--program", "NAME=TOPIC") for one in given]
    return [
        UserConfig(
            name=topics.check_device(name, "--program"),
            roles=("program",),
            topics=tuple(topic for other, topic in pairs if other == name),
        )
        for name in dict.fromkeys(name for name, _ in pairs)
    ]


def _user(given: str, option: str, known: Sequence[str]) -> UserConfig:
    name, roles = _name_and_roles(given, option, known)
    return UserConfig(name=name, roles=roles)


def _name_and_roles(given: str, option: str, known: Sequence[str]) -> tuple[str, tuple[RoleName, ...]]:
    name, words = _split(given, ":", option, "NAME:ROLE")
    roles = words.split(",")
    for role in roles:
        if role not in known:
            raise ConfigError(
                f"{option} {given}: {quoted(role)} is not a role here", f"choose among {', '.join(known)}"
            )
    return topics.check_device(name, option), tuple(_once(roles))


def _split(given: str, separator: str, option: str, form: str) -> tuple[str, str]:
    name, found, rest = given.partition(separator)
    if not (name and found and rest):
        raise ConfigError(f"{option}: {quoted(given)} is incomplete", f"write it as {form}")
    return name, rest


def _once(names: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(names))


def _shown(path: Path) -> str:
    """Return a path as people write it, from the working directory if it is below that."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
