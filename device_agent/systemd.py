"""`distree service`: a hardened systemd unit for a board's agent.

The unit runs the agent as a user that exists only while it runs, with nothing writable but its state directory (and the
folder of a directory source), no devices but the camera or the microphone that it reads, no capabilities, and the
system calls of a plain service. Secrets reach it as credentials: systemd reads them as root and shows them only to the
agent.
"""

from __future__ import annotations

import argparse
import grp
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from device_agent import resource_estimate
from device_agent.config import DEFAULT_STATE_DIR, AgentConfig, load_agent_config
from device_agent.credentials import CERTIFICATE, KEY, PASSWORD
from device_agent.preflight import load_bundles
from device_agent.sources import SourceConfig
from distree.errors import ConfigError
from distree.regular_files import read_regular

UNIT = "distree-agent.service"
STATE = "distree"
"""Below /var/lib: the one folder that the agent may write, but for shared folders of inputs."""

STATE_FOLDER = Path("/var/lib") / STATE

GROUP = "distree"
"""The group that shares the folder of a directory source, unless the folder has another."""

_UNITS = Path("etc/systemd/system")
_WANTS = _UNITS / "multi-user.target.wants"

_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - what the unit's sandbox hides
_MAX_UNIT_BYTES = 1 << 16
_BACKOFF_SINCE = 254
"""The version of systemd from which on a unit may restart at growing intervals."""

_SUDO = "run this with sudo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `distree service`."""
    parser.epilog = "example: sudo distree service install -c /etc/distree/agent.yaml"
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="install|remove|status")
    install = verbs.add_parser(
        "install",
        help="write the unit, enable it and start it",
        epilog="example: sudo distree service install -c /etc/distree/agent.yaml; with --print it only shows the unit",
    )
    remove = verbs.add_parser(
        "remove", help="stop the agent and remove the unit", epilog="example: sudo distree service remove"
    )
    status = verbs.add_parser(
        "status",
        help="show whether the unit is installed, up to date and running; exit status 1 if not",
        epilog="example: distree service status -c /etc/distree/agent.yaml",
    )
    for verb in (install, remove, status):
        verb.add_argument(
            "-c", "--config", type=Path, required=verb is install, metavar="FILE", help="agent.yaml, as on the board"
        )
        verb.add_argument(
            "--root",
            type=Path,
            default=Path("/"),
            metavar="DIR",
            help="root of an image: write files only, start nothing",
        )
    for verb in (install, status):
        verb.add_argument("--exec", metavar="PROGRAM", help="the distree command on the board (default: this Python's)")
    install.add_argument("--print", action="store_true", help="print the unit and do nothing else")


def run(args: argparse.Namespace) -> int:
    """Carry out `distree service …`; return the exit status."""
    if args.verb == "remove":
        return _remove(args.root)
    unit = None if args.config is None else _render_for(args)
    if args.verb == "status":
        return _status(args.root, unit)
    assert unit is not None  # noqa: S101 - install requires the file
    if args.print:
        print(unit, end="")  # noqa: T201
        return 0
    return _install(args.root, unit)


def _render_for(args: argparse.Namespace) -> str:
    path = args.config.absolute()
    config = load_agent_config(path)
    here = args.root == Path("/") and not getattr(args, "print", False)
    program = args.exec or _own_program()
    if here:
        _check_visible(path, config, program)
    return render(path, config, program)


# ---------------------------------------------------------------- the unit


def render(path: Path, config: AgentConfig, program: str) -> str:
    """Return the unit for the agent of a configuration, whose bundles are loaded to estimate its memory.

    Raises ConfigError for what a unit cannot grant, BundleError for an unusable bundle.
    """
    need = resource_estimate.memory(config, load_bundles(config))
    return "\n".join(_lines(path, config, program, resource_estimate.memory_limit(need) >> 20)) + "\n"


def _lines(path: Path, config: AgentConfig, program: str, memory_mib: int) -> Iterator[str]:
    yield "# Written by distree service install, which overwrites changes. Make yours with"
    yield f"#   systemctl edit {UNIT}"
    yield "[Unit]"
    yield f"Description=DistrEE agent {config.device} of site {config.site}"
    yield "# No network-online.target: the agent starts without a network and connects when there is one."
    yield "After=network.target"
    yield "# Never give up: there may be nobody to start it again."
    yield "StartLimitIntervalSec=0"
    yield ""
    yield "[Service]"
    yield "Type=notify"
    yield f"ExecStart={_quoted(program)} agent run -c {_quoted(str(path))}{_state_option(path, config)}"
    yield "# It is ready once it has connected for the first time, however long the broker is away."
    yield "TimeoutStartSec=infinity"
    yield "# Fed by the loop that does the work, while inference makes progress."
    yield "WatchdogSec=30"
    yield "Restart=always"
    yield "RestartSec=2"
    if _systemd_version() >= _BACKOFF_SINCE:
        yield "RestartSteps=6"
        yield "RestartMaxDelaySec=60"
    yield "# Answers what it has accepted, within shutdown_timeout_s, before it leaves."
    yield f"TimeoutStopSec={config.shutdown_timeout_s + 10:g}"
    yield "# Estimated from the bundles and full queues, as distree doctor does, and half as much again."
    yield f"MemoryMax={memory_mib}M"
    # An ffmpeg decodes with several threads per core.
    yield f"TasksMax={256 if any(source.runs_programs for source in _sources(config)) else 64}"
    yield ""
    yield "DynamicUser=yes"
    yield f"StateDirectory={STATE}"
    # What is moved within a shared folder of inputs still belongs to its group.
    yield "UMask=0007" if any(_folders(config)) else "UMask=0077"
    yield from _credentials(config)
    yield from _folders(config)
    yield from _device_lines(config)
    yield ""
    yield from _HARDENING
    yield ""
    yield "[Install]"
    yield "WantedBy=multi-user.target"


_HARDENING = (
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateUsers=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "# Not ProcSubset=pid: the interpreter reads the features of the CPU from /proc/cpuinfo.",
    "ProtectProc=invisible",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "RemoveIPC=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
    "# The agent asks whether NTP keeps the clock, without a right to set it; ProtectClock would forbid asking.",
    "SystemCallFilter=adjtimex clock_adjtime clock_adjtime64",
    "SystemCallErrorNumber=EPERM",
)


def _credentials(config: AgentConfig) -> Iterator[str]:
    for name, path in _secrets(config):
        yield f"LoadCredential={name}:{_escaped(str(path))}"


def _secrets(config: AgentConfig) -> Iterator[tuple[str, Path]]:
    """Yield the files that the unit's user need not be able to read, by the names of their credentials."""
    tls = config.broker.tls
    files = (
        (PASSWORD, config.broker.password_file),
        (CERTIFICATE, tls.cert_file if tls else None),
        (KEY, tls.key_file if tls else None),
    )
    yield from ((name, path) for name, path in files if path is not None)


def _sources(config: AgentConfig) -> list[SourceConfig]:
    return [pipeline.origin.source for pipeline in config.pipelines if pipeline.origin is not None]


def _device_lines(config: AgentConfig) -> Iterator[str]:
    """Give the lines for the devices of its inputs: these and no others."""
    sources = _sources(config)
    for group in dict.fromkeys(group for source in sources for group in source.device_groups()):
        yield f"SupplementaryGroups={group}"
    devices = list(dict.fromkeys(device for source in sources for device in source.devices()))
    if not devices:
        yield "PrivateDevices=yes"
        return
    # Not PrivateDevices, which would hide them.
    yield "DevicePolicy=closed"
    for device in devices:
        yield f"DeviceAllow={_quoted(device)} rw"


def _folders(config: AgentConfig) -> Iterator[str]:
    """Give the lines for what the agent writes besides its state: the folders of its inputs."""
    for pipeline in config.pipelines:
        if pipeline.origin is None:
            continue
        for folder in pipeline.origin.source.shared_folders():
            yield f"ReadWritePaths={_quoted(str(folder))}"
            yield f"SupplementaryGroups={_group(folder)}"


def installed_state_dir() -> Path | None:
    """Return where the service on this machine keeps its state, as far as its unit says so; None without one."""
    try:
        unit = read_regular(Path("/") / _UNITS / UNIT, _MAX_UNIT_BYTES).decode(errors="replace")
    except OSError:
        return None
    found = re.search(r"^ExecStart=.* --state-dir (\S+)$", unit, re.MULTILINE)
    return None if found is None else Path(found.group(1))


def _state_option(path: Path, config: AgentConfig) -> str:
    """Return the option that moves the state to where the unit may write; "" where none is kept, or it is there.

    Raises ConfigError where the file names another folder.
    """
    if not config.keeps_state or config.state_dir.is_relative_to(STATE_FOLDER):
        return ""
    if config.state_dir != path.absolute().parent / DEFAULT_STATE_DIR:
        raise ConfigError(
            f"state_dir {config.state_dir}: the service may write only below /var/lib/{STATE}", "remove state_dir"
        )
    return f" --state-dir {STATE_FOLDER / DEFAULT_STATE_DIR}"


def _group(folder: Path) -> str:
    try:
        return grp.getgrgid(folder.stat().st_gid).gr_name if folder.exists() else GROUP
    except KeyError:
        return str(folder.stat().st_gid)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    r"""Write a word for a unit file.

    >>> _quoted("/opt/distree/bin/distree"), _quoted("/a b/100%")
    ('/opt/distree/bin/distree', '"/a b/100%%"')
    """
    text = _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return text if re.fullmatch(r"[\w./%@:+-]+", text) else f'"{text}"'


def _own_program() -> str:
    program = Path(sys.executable).with_name("distree")
    if not program.exists():
        raise ConfigError(
            f"{program}: distree is not installed for this Python", "pip install it, or name the command with --exec"
        )
    return str(program)


def _systemd_version() -> int:
    """Return the version of the systemd here; 0 without one."""
    if shutil.which("systemctl") is None:
        return 0
    said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    found = re.search(r"systemd (\d+)", said)
    return int(found.group(1)) if found else 0


# ---------------------------------------------------------------- what the unit can read


def _check_visible(path: Path, config: AgentConfig, program: str) -> None:
    """Raise ConfigError for a file that the unit's user could not read."""
    advice = "put it below /etc/distree"
    install = "install DistrEE into /opt/distree, with a Python of the system: python3 -m venv /opt/distree"
    files = [(path, advice), *((file, install) for file in _program_files(program))]
    if config.broker.tls is not None and config.broker.tls.ca_file is not None:
        files.append((config.broker.tls.ca_file, advice))
    files += [(Path(p.bundle), advice) for p in config.pipelines if Path(p.bundle).is_absolute()]
    sources = _sources(config)
    files += [(file, advice) for source in sources for file in source.read_files()]
    for file, remedy in files:
        if any(file.is_relative_to(hidden) for hidden in _HIDDEN):
            raise ConfigError(f"{file}: hidden from the service by systemd sandboxing", remedy)
        if not _readable_by_all(file):
            raise ConfigError(f"{file}: the service's user cannot read it", "chmod o+rX it and the folders above it")
    for _, secret in _secrets(config):
        if not secret.is_file():
            raise ConfigError(f"{secret}: no such file", "write it before you install the service")
    for source in sources:
        for folder in source.shared_folders():
            _check_shared(folder)


def _program_files(program: str) -> Iterator[Path]:
    """Yield what a command of a virtual environment needs: itself, its Python, and the package."""
    yield Path(program)
    python = Path(program).with_name("python")
    if python.exists():
        yield python.resolve()
    if program == str(Path(sys.executable).with_name("distree")):
        yield Path(__file__)


def _readable_by_all(path: Path) -> bool:
    try:
        return path.stat().st_mode & stat.S_IROTH != 0 and all(
            parent.stat().st_mode & stat.S_IXOTH for parent in path.parents
        )
    except OSError:
        return False


def _check_shared(folder: Path) -> None:
    remedy = f"groupadd -f {GROUP}; mkdir -p {folder}; chgrp {GROUP} {folder}; chmod 2775 {folder}"
    if any(folder.is_relative_to(hidden) for hidden in _HIDDEN):
        raise ConfigError(
            f"{folder}: hidden from the service by systemd sandboxing", "name another folder for the inputs"
        )
    if not folder.is_dir() or not folder.stat().st_mode & stat.S_IWGRP or folder.stat().st_gid == 0:
        raise ConfigError(f"{folder}: not a folder that a group other than root may write", f"run: {remedy}")


# ---------------------------------------------------------------- install, remove, status


def _install(root: Path, unit: str) -> int:
    path, link = root / _UNITS / UNIT, root / _WANTS / UNIT
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(unit, encoding="utf-8")
        path.chmod(0o644)
        if root != Path("/"):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(f"../{UNIT}")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})", _SUDO) from None
    print(f"{path} written")  # noqa: T201
    if root == Path("/"):
        _systemctl("daemon-reload")
        # Without waiting: it is up once the broker accepts it.
        _systemctl("enable", UNIT)
        _systemctl("restart", "--no-block", UNIT)
        print(f"started; follow its log with: journalctl -fu {UNIT.removesuffix('.service')}")  # noqa: T201
    return 0


def _remove(root: Path) -> int:
    path, link = root / _UNITS / UNIT, root / _WANTS / UNIT
    if not path.exists() and not link.is_symlink():
        print(f"{path} does not exist")  # noqa: T201
        return 0
    if root == Path("/"):
        _systemctl("disable", "--now", UNIT)
    try:
        link.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be removed ({error.strerror})", _SUDO) from None
    if root == Path("/"):
        _systemctl("daemon-reload")
    print(f"{path} removed; its state remains in /var/lib/{STATE}")  # noqa: T201
    return 0


def _status(root: Path, unit: str | None) -> int:
    path, link = root / _UNITS / UNIT, root / _WANTS / UNIT
    if not path.exists():
        print(f"not installed: {path} does not exist")  # noqa: T201
        return 1
    current = unit is None or read_regular(path, _MAX_UNIT_BYTES) == unit.encode()
    words = ["installed", "enabled" if link.is_symlink() else "not enabled"]
    if unit is not None:
        words.append("up to date" if current else "out of date: run distree service install again")
    print(f"{path}: {', '.join(words)}")  # noqa: T201
    if root != Path("/"):
        return 0 if current else 1
    names = ("ActiveState", "SubState", "NRestarts", "MemoryCurrent")
    said = _systemctl("show", UNIT, "--property", ",".join(names))
    print(" ".join(said.split()))  # noqa: T201
    return 0 if current and "ActiveState=active" in said else 1


def _systemctl(*arguments: str) -> str:
    """Run systemctl; ConfigError with its own message if it fails."""
    try:
        done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, timeout=90, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        what = f"systemctl {' '.join(arguments)}: {error}"
        raise ConfigError(what, "check that this system runs systemd") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise ConfigError(f"systemctl {' '.join(arguments)}: {said}", f"{_SUDO}, and see: journalctl -u {UNIT}")
    return done.stdout
