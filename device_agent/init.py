"""`distree init`: write a board's agent.yaml, from flags or answers, and check it as `distree agent check` does."""

from __future__ import annotations

import argparse
import getpass
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from device_agent.cli import check
from device_agent.config import load_agent_config
from device_agent.sources import KINDS
from distree.broker_settings import BrokerSettings
from distree.bundle.loading import Bundle, find_bundle, load_bundle
from distree.client.broker_options import broker_settings
from distree.errors import ConfigError, ConfigFileError, DistreeError, Problem
from distree.topics import check_device, check_id, is_id

SOURCES = ("none", *KINDS)
_WITH_PATH = {kind: config for kind, config in KINDS.items() if config.path_is}
"""The sources of which --path says where inputs come from."""

_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree init`."""
    parser.allow_abbrev = False  # --password must not be taken for --password-file, and so be written down
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("agent.yaml"),
        metavar="FILE",
        help="file to write (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file if it exists")
    parser.add_argument("--site", help="site id: the same on all boards that work together")
    parser.add_argument("--device", help="device id, unique within the site (default: from the host name)")
    parser.add_argument("--bundle", help="a name in the model zoo, or a folder with a bundle.yaml")
    parser.add_argument("--pipeline", help="pipeline id (default: the bundle's name)")
    parser.add_argument("--stages", metavar="N,N", help="stages that this board computes (default: none)")
    parser.add_argument("--branch", type=int, metavar="N", help="wide stages only: the branch that this board runs")
    parser.add_argument("--source", choices=SOURCES, help="where this board's own inputs come from, if it has any")
    whose = ", ".join(f"{config.path_is} (--source {kind})" for kind, config in _WITH_PATH.items())
    parser.add_argument("--path", help=whose)
    parser.add_argument(
        "--deadline-ms",
        type=float,
        default=1000,
        metavar="MS",
        help="deadline of this board's own inputs (default: %(default)g)",
    )
    parser.add_argument(
        "--broker", metavar="HOST:PORT", help="the broker, or mqtts://HOST:PORT for TLS (default: 127.0.0.1:1883)"
    )
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="CA certificates to verify the broker with")
    parser.add_argument("--cert-file", type=Path, metavar="FILE", help="client certificate, if the broker requires one")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="key of the client certificate")
    parser.add_argument("--username", help="user name on the broker")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="file whose first line is the password")
    parser.epilog = (
        "examples: distree init (asks for everything) · distree init --site lab --bundle fashion --stages 0 "
        "--source directory --path inbox --broker 192.168.1.10:1883"
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `distree init`; return the exit status."""
    if args.output.exists() and not args.force:
        raise ConfigError(f"{args.output}: already exists", "write another file with -o, or overwrite it with --force")
    asks = sys.stdin.isatty()
    if asks:
        _ask_what_is_missing(args)
    settings, bundle = _complete(args)
    text = render(args, settings, bundle)
    if asks and args.username and args.password_file is not None and not args.password_file.exists():
        _write_password(args.password_file, getpass.getpass(f"password of {args.username} (not shown): "))
    _write_checked(args.output, text)
    print(f"{args.output} is written and checked. Next: distree doctor -c {args.output}")  # noqa: T201
    return 0


def device_name(host: str) -> str:
    """Make an id of a host name.

    >>> device_name("Raspberry_Pi.local")
    'raspberry-pi'
    """
    made = re.sub(r"[^a-z0-9]+", "-", host.partition(".")[0].lower()).strip("-")[:32].rstrip("-")
    return made or "board"


# ---------------------------------------------------------------- asking


def _ask_what_is_missing(args: argparse.Namespace) -> None:
    """Ask for what no flag gave; an empty answer takes the default in brackets."""
    args.site = args.site or _ask("site, the same on all boards that work together", "lab", _an_id)
    args.device = args.device or _ask("name of this board", device_name(socket.gethostname()), _a_device)
    if args.broker is None:
        args.broker = _ask("broker, HOST:PORT or mqtts://HOST:PORT", "127.0.0.1:1883", str)
        answer = args.username or _ask("user name on the broker, or - for none", "-", str)
        args.username = None if answer == "-" else answer
    if args.username and args.password_file is None:
        args.password_file = Path(_ask("file for the password", "secret", str))
    args.bundle = args.bundle or _ask("bundle, a name or a folder", "fashion", _a_bundle)
    bundle = load_bundle(args.bundle, verify=())
    if args.stages is None:
        args.stages = _ask(
            f"stages that this board computes, from 0 to {len(bundle.stages) - 1}, or - for none", "0", str
        ).strip("-")
    if args.branch is None and any(bundle.branch_counts[k] for k in _numbers(args.stages) if k < len(bundle.stages)):
        args.branch = int(
            _ask(f"branch that this board runs, from 0 to {max(bundle.branch_counts) - 1}", "0", _a_number)
        )
    if args.source is None:
        args.source = _ask(f"source of this board's own inputs: {', '.join(SOURCES)}", "none", _a_source)
    if args.path is None and args.source in _WITH_PATH:
        args.path = _ask(_WITH_PATH[args.source].path_is, _WITH_PATH[args.source].path_example, str)


def _ask(question: str, default: str, read: Callable[[str], str]) -> str:
    while True:
        try:
            answer = input(f"{question} [{default}]: ").strip() or default
        except EOFError:
            raise KeyboardInterrupt from None  # Ctrl-D means the same as Ctrl-C
        try:
            return read(answer)
        except DistreeError as error:
            print(f"  {error}")  # noqa: T201


def _an_id(text: str) -> str:
    return check_id(text, "your answer")


def _a_device(text: str) -> str:
    return check_device(text, "your answer")


def _a_bundle(text: str) -> str:
    load_bundle(text, verify=())
    return text


def _a_number(text: str) -> str:
    if not text.isdecimal():
        raise ConfigError(f"{text!r} is not a number", "enter a number, such as 0")
    return text


def _a_source(text: str) -> str:
    if text not in SOURCES:
        raise ConfigError(f"{text!r} is not a source", f"enter one of {', '.join(SOURCES)}")
    return text


def _write_password(path: Path, password: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        what = f"{path}: cannot be written ({error.strerror})"
        raise ConfigError(what, "name a new file in an existing folder") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(password + "\n")


# ---------------------------------------------------------------- the answers


def _numbers(text: str | None) -> list[int]:
    try:
        return [int(word) for word in (text or "").replace(",", " ").split()]
    except ValueError:
        raise ConfigError(f"--stages {text}: not a list of numbers", "separate numbers by commas, as in 0,1") from None


def _complete(args: argparse.Namespace) -> tuple[BrokerSettings, Bundle]:
    """Fill in defaults; ConfigError for what is missing and has no default."""
    missing = [f"--{name}" for name in ("site", "bundle") if getattr(args, name) is None]
    if not args.stages and args.source in (None, "none"):
        missing.append("--stages or --source")
    if args.path is None and args.source in _WITH_PATH and not _WITH_PATH[args.source].path_may_be_left_out:
        missing.append("--path")
    if missing:
        options = ", ".join(missing)
        raise ConfigError(f"init: missing {options}", "give the options, or run it in a terminal to be asked")
    if args.path is not None and args.source not in _WITH_PATH:
        having = ", ".join(f"--source {kind}" for kind in _WITH_PATH)
        raise ConfigError(f"--path: belongs to one of {having}", "leave it out, or give one of these sources")
    if args.username and args.password_file is None:
        raise ConfigError(
            "--username: there is no password", "give --password-file too, a file whose first line is the password"
        )
    args.device = check_device(args.device or device_name(socket.gethostname()), "--device")
    args.broker = args.broker or "127.0.0.1:1883"
    bundle = load_bundle(args.bundle, verify=())
    if args.pipeline is None:
        args.pipeline = bundle.name if is_id(bundle.name) else device_name(bundle.name)
    check_id(args.pipeline, "--pipeline")
    return broker_settings(args), bundle


# ---------------------------------------------------------------- the file


def render(args: argparse.Namespace, settings: BrokerSettings, bundle: Bundle) -> str:
    """Return the text of agent.yaml."""
    return "\n".join(_lines(args, settings, bundle)) + "\n"


def _lines(args: argparse.Namespace, settings: BrokerSettings, bundle: Bundle) -> Iterator[str]:
    folder = args.output.absolute().parent
    stages = _numbers(args.stages)
    yield "# Written by distree init. Check it with: distree doctor -c " + args.output.name
    yield f"site: {_scalar(args.site)}  # the same on all boards that work together"
    yield f"device: {_scalar(args.device)}  # unique within the site"
    yield from _broker_lines(settings, folder)
    yield "# state_dir: state  # where accepted inputs are kept, with spool: true"
    yield "# telemetry_interval_s: 2  # seconds between two reports"
    yield "pipelines:"
    yield f"  - name: {_scalar(args.pipeline)}  # the same on all boards of the pipeline"
    yield f"    bundle: {_scalar(_bundle_name(args.bundle))}  # {' '.join(bundle.manifest.description.split())[:60]}"
    if stages:
        yield f"    stages: {stages}  # this bundle has 0 to {len(bundle.stages) - 1}; other boards compute the rest"
    if args.branch is not None:
        yield f"    branch: {args.branch}  # of the wide stages"
    if args.source not in (None, "none"):
        yield "    origin:  # this board answers for inputs of its own"
        yield f"      deadline_ms: {args.deadline_ms:g}  # each input is answered within this time"
        yield "      # spool: true  # accepted inputs survive a crash"
        yield "      source:"
        yield f"        kind: {args.source}"
        if args.path is not None:
            key = _WITH_PATH[args.source].path_key
            is_path = key == "path" or Path(args.path).exists()
            yield f"        {key}: {_path(Path(args.path), folder) if is_path else _scalar(args.path)}"


def _broker_lines(settings: BrokerSettings, folder: Path) -> Iterator[str]:
    yield "broker:"
    yield f"  host: {_scalar(settings.host)}"
    yield f"  port: {settings.port}"
    if settings.username is None:
        yield "  # username: cam1"
        yield "  # password_file: secret  # its first line is the password"
    else:
        yield f"  username: {_scalar(settings.username)}"
        yield f"  password_file: {_path(settings.password_file, folder)}  # its first line is the password"
    if settings.tls is None:
        yield "  # tls: {ca_file: ca.crt}  # encrypted, usually on port 8883"
        return
    files = ((name, getattr(settings.tls, name)) for name in ("ca_file", "cert_file", "key_file"))
    given = ", ".join(f"{name}: {_path(path, folder)}" for name, path in files if path is not None)
    yield f"  tls: {{{given}}}"


def _scalar(text: str) -> str:
    """Write a string so that YAML reads a string.

    >>> _scalar("cam1"), _scalar("no"), _scalar("12")
    ('cam1', '"no"', '"12"')
    """
    if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    quoted: str = yaml.safe_dump(text, default_style='"', width=float("inf"))
    return quoted.rstrip("\n")


def _path(path: Path | None, folder: Path) -> str:
    """Write a path relative to the file's folder where it is below it, as the file's reader takes it."""
    absolute = Path(os.path.normpath(Path(path or "").absolute()))
    return _scalar(str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute))


def _bundle_name(name: str) -> str:
    """Return the name of a bundle in the model zoo as it is, a folder in full: an agent may be started anywhere."""
    named = os.sep in name or Path(name).exists()
    return os.path.normpath(find_bundle(name).absolute()) if named else name


def _write_checked(target: Path, text: str) -> None:
    """Write the file only if it passes the check of `distree agent check`."""
    draft = target.with_name(f".{target.name}.new")
    try:
        try:
            draft.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{target}: cannot be written ({error.strerror})", "name a file in an existing folder with -o"
            ) from None
        try:
            check(load_agent_config(draft))
        except ConfigFileError as error:
            raise ConfigFileError([_renamed(problem, draft, target) for problem in error.problems]) from None
        except ConfigError as error:
            raise ConfigError(*_renamed(error.problem, draft, target)) from None
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _renamed(problem: Problem, draft: Path, target: Path) -> Problem:
    """Return a problem with the name that the file will have."""
    return Problem(problem.what.replace(str(draft), str(target)), problem.remedy)
