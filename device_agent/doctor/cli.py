"""`distree doctor`: run all checks in order and say what must be mended."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from device_agent.config import load_agent_config
from device_agent.doctor.acl import check_rights
from device_agent.doctor.broker_behaviour import check_delay, check_unread
from device_agent.doctor.checks import Check, Outcome, Visit, examine
from device_agent.doctor.clock import check_clock
from device_agent.doctor.delivery import (
    check_publish,
    check_qos,
    check_retained,
    check_subscribe,
    check_will,
)
from device_agent.doctor.identity import check_client_id
from device_agent.doctor.max_packet import check_packet
from device_agent.doctor.network import check_dns, check_login, check_tcp, check_tls
from device_agent.doctor.report import outcomes_as_json, write
from device_agent.doctor.resources import check_disk, check_memory
from device_agent.doctor.runtime import check_bundle, check_python, check_self_test
from distree.errors import ConfigError

CHECKS = (
    Check(name="python", run=check_python),
    Check(name="bundle", run=check_bundle, needs=("python",)),
    Check(name="self-test", run=check_self_test, needs=("python", "bundle"), forks=True),
    Check(name="memory", run=check_memory, needs=("bundle",)),
    Check(name="disk", run=check_disk),
    Check(name="dns", run=check_dns),
    Check(name="tcp", run=check_tcp, needs=("dns",)),
    Check(name="tls", run=check_tls, needs=("tcp",)),
    Check(name="login", run=check_login, needs=("tls",)),
    Check(name="clock", run=check_clock),
    Check(name="retained", run=check_retained, needs=("login", "bundle")),
    Check(name="qos", run=check_qos, needs=("login", "bundle")),
    Check(name="will", run=check_will, needs=("login",)),
    Check(name="subscribe", run=check_subscribe, needs=("login", "bundle")),
    Check(name="publish", run=check_publish, needs=("login", "bundle")),
    Check(name="rights", run=check_rights, needs=("login", "bundle")),
    Check(name="unread", run=check_unread, needs=("login", "bundle")),
    Check(name="delay", run=check_delay, needs=("login", "bundle")),
    Check(name="packet", run=check_packet, needs=("login", "bundle")),
    Check(name="client-id", run=check_client_id, needs=("login",)),
)
"""In order: nothing is asked before what it rests on."""

_SIGNS = {"ok": "ok", "failed": "FAILED", "unknown": "unknown", "skipped": "skipped"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree doctor`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="agent.yaml")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="longest time for one check (default: %(default)g)"
    )
    parser.add_argument(
        "--bundle-report",
        type=Path,
        metavar="FILE",
        help="also write a text for a bug report, without user names and passwords",
    )
    parser.epilog = (
        "example: distree doctor -c /etc/distree/agent.yaml --bundle-report report.txt. Exit status 1 if a check "
        "failed. A running agent and its site are not disturbed."
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `distree doctor`; return the exit status."""
    if not 0 < args.timeout <= 600:
        raise ConfigError(f"--timeout {args.timeout:g}: must be above 0 and at most 600 seconds")
    config = load_agent_config(args.config)
    outcomes = examine(Visit(config=config, timeout_s=args.timeout), CHECKS, _quiet if args.json else _tell)
    found = outcomes_as_json(config, outcomes)
    if args.bundle_report is not None:
        write(args.bundle_report, args.config, config, outcomes)
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(_summary(outcomes))
    return 0 if found["ok"] else 1


def _quiet(_outcome: Outcome) -> None: ...


def _tell(outcome: Outcome) -> None:
    finding = outcome.finding
    print(f"{_SIGNS[finding.status]:8}{outcome.check:11}{finding.text}", flush=True)
    if finding.remedy:
        print(f"{'':19}→ {finding.remedy}", flush=True)


def _summary(outcomes: list[Outcome]) -> str:
    failed = [outcome.check for outcome in outcomes if outcome.finding.status == "failed"]
    return f"to be mended: {', '.join(failed)}" if failed else "nothing to be mended"
