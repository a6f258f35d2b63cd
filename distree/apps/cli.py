"""The `distree` command. Each subcommand's package is imported only when it is used, so that boards start fast."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from distree import __version__
from distree.errors import CHECK_PATH, BundleError, ConfigError, DistreeError, Problem
from distree.printable import printable_lines

COMMANDS = {
    "demo": ("distree.apps.demo", "run a broker, an orchestrator and agents on this machine, answering real images"),
    "init": ("device_agent.init", "write the agent.yaml of this board"),
    "doctor": (
        "device_agent.doctor.cli",
        "check everything that a board's agent needs, from Python to the broker's ACL",
    ),
    "service": ("device_agent.systemd", "install, remove or inspect the systemd unit of a board's agent"),
    "agent": ("device_agent.cli", "run or check a board's agent"),
    "orchestrator": ("orchestrator.cli", "run or query a site's orchestrator: presence, plans, telemetry"),
    "tune": ("orchestrator.tune_cli", "replay recorded audits: see what a tuner would have done"),
    "simulate": ("orchestrator.simulator.cli", "simulate thousands of boards before you change a real site"),
    "broker": ("broker_config.cli", "run a broker for a first try"),
    "zoo": ("model_zoo.cli", "list, verify, evaluate and build bundles"),
    "submit": ("distree.apps.submit.cli", "send files to a running origin and print their results"),
    "top": ("distree.apps.top.cli", "show boards, rates, exits, latency and thresholds of a site live in the terminal"),
    "results": ("distree.apps.results_cli", "print a site's results as they arrive"),
    "label": ("distree.apps.label_cli", "say what inputs really were, for tuning on live traffic"),
    "dashboard": ("distree.apps.dashboard.cli", "serve a web page of a site's results, exits, thresholds and devices"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 (it failed) or 2 (it was called or configured wrongly)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    # A board has one thread to spare, and OpenBLAS would reserve memory for more when numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        parser, module = _parser(arguments)
        args = parser.parse_args(arguments)
        return int(module.run(args)) if module is not None else 2
    except (ConfigError, BundleError) as error:
        print(f"distree: {printable_lines(str(error))}", file=sys.stderr)
        return 2
    except DistreeError as error:
        print(f"distree: {printable_lines(str(error))}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"distree: {_missing(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whatever read our output is gone, which is not our error.
        sys.stderr.close()
        return 141
    except OSError as error:
        told = _of_a_file(error)
        if told is None:
            raise
        print(f"distree: {printable_lines(str(told))}", file=sys.stderr)
        return 1


_DISK_REMEDIES = {
    errno.ENOSPC: "free some space there, and try again",
    errno.EDQUOT: "free some space there, and try again",
    errno.EROFS: "make the file system writable, and try again",
}


def _of_a_file(error: OSError) -> Problem | None:
    """Say what is wrong with a file or a disk; None if it is an error of something else."""
    what = (error.strerror or str(error)).lower()
    if error.filename is not None:
        return Problem(f"{error.filename}: {what}", _DISK_REMEDIES.get(error.errno or 0, CHECK_PATH))
    # What fails as it is written, and not as it is opened, has no name.
    if error.errno in _DISK_REMEDIES:
        return Problem(f"a file cannot be written: {what}", _DISK_REMEDIES[error.errno])
    return None


_DEBIAN = {"numpy": "python3-numpy", "msgpack": "python3-msgpack", "yaml": "python3-yaml", "PIL": "python3-pil"}
_PYPI = {"yaml": "pyyaml", "paho": "paho-mqtt", "PIL": "pillow"}


def _missing(error: ImportError) -> Problem:
    """Say which package this Python lacks, and how to get it; there are no wheels for 32-bit boards."""
    name = (error.name or "").partition(".")[0]
    if not name:
        return Problem(str(error), "install DistrEE again")
    debian = f", or on armv7l: apt install {_DEBIAN[name]}" if name in _DEBIAN else ""
    return Problem(f"{error} ({sys.executable})", f"run: pip install {_PYPI.get(name, name)}{debian}")


def _parser(arguments: list[str]):  # type: ignore[no-untyped-def]
    """Build the parser, with the arguments of only the subcommand that was named."""
    parser = argparse.ArgumentParser(
        prog="distree",
        description="Distributed early exit of neural-network inference over MQTT.",
        epilog="example: distree demo --inputs 200",
    )
    parser.add_argument("--version", action="version", version=f"distree {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    module = None
    for name, (path, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == named:
            module = importlib.import_module(path)
            module.add_arguments(command)
    return parser, module


if __name__ == "__main__":
    sys.exit(main())
