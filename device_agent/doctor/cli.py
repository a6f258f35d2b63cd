"""`distree doctor`: run all checks in order and say what must be fixed."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from device_agent.config import load_agent_config
from device_agent.doctor.checks import Check, CheckContext, CheckResult, run_checks
from device_agent.doctor.report import results_as_json, write
from distree.errors import ConfigError

GROUPS = (
    "runtime",
    "resources",
    "sources",
    "network",
    "clock",
    "delivery",
    "acl",
    "broker_behaviour",
    "max_packet",
    "identity",
)
"""The files with checks, in order: each comes after those that it depends on."""

CHECKS: tuple[Check, ...] = tuple(
    check for group in GROUPS for check in importlib.import_module(f"device_agent.doctor.{group}").CHECKS
)
"""All checks, in order."""

_SIGNS = {"ok": "ok", "failed": "FAILED", "unknown": "unknown", "skipped": "skipped"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree doctor`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="agent.yaml")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="time limit of each check (default: %(default)g)"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="also write a text file for a bug report, without user names and passwords",
    )
    parser.epilog = (
        "example: distree doctor -c /etc/distree/agent.yaml --report report.txt. Exit status 1 if a check failed. "
        "A running agent and its site are not disturbed."
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `distree doctor`; return the exit status."""
    if not 0 < args.timeout <= 600:
        raise ConfigError(f"--timeout: {args.timeout:g} is out of range", "choose more than 0, and at most 600 seconds")
    config = load_agent_config(args.config)
    context = CheckContext(config=config, timeout_s=args.timeout)
    results = run_checks(context, CHECKS, _ignore if args.json else _print)
    found = results_as_json(config, results)
    if args.report is not None:
        write(args.report, args.config, config, results)
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(_summary(results))
    return 0 if found["ok"] else 1


def _ignore(_result: CheckResult) -> None: ...


def _print(result: CheckResult) -> None:
    finding = result.finding
    print(f"{_SIGNS[finding.status]:8}{result.check:15}{finding.text}", flush=True)
    if finding.remedy:
        print(f"{'':23}→ {finding.remedy}", flush=True)


def _summary(results: list[CheckResult]) -> str:
    failed = [result.check for result in results if result.finding.status == "failed"]
    return f"failed: {', '.join(failed)}" if failed else "all checks passed"
