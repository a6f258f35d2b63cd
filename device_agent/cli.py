"""`distree agent`: run a board's agent, or check its configuration."""

from __future__ import annotations

import argparse
import gc
import logging
import signal
from dataclasses import replace
from pathlib import Path

from device_agent import credentials
from device_agent.config import AgentConfig, load_agent_config
from device_agent.preflight import load_bundles, start_self_tests
from distree.logs import start_logging
from distree.transport.base import QuietListener


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `distree agent`."""
    parser.epilog = "example: distree agent check -c agent.yaml --connect"
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="run|check")
    run_parser = verbs.add_parser(
        "run", help="serve until SIGTERM", epilog="example: distree agent run -c /etc/distree/agent.yaml"
    )
    check = verbs.add_parser(
        "check",
        help="check the configuration, the bundles and the interpreter",
        epilog="example: distree agent check -c agent.yaml --connect",
    )
    for verb in (run_parser, check):
        verb.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="agent.yaml")
    run_parser.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="folder of the spool, in place of the file's state_dir"
    )
    run_parser.add_argument(
        "-v", "--verbose", action="store_true", help="log every dropped request and every rejected message"
    )
    check.add_argument("--connect", action="store_true", help="also log in to the broker")


def run(args: argparse.Namespace) -> int:
    """Carry out `distree agent …`; return the exit status."""
    config = load_agent_config(args.config)
    if args.verb == "check":
        return check(config, connect=args.connect)
    config = replace(
        config,
        broker=credentials.with_service_credentials(config.broker),
        state_dir=args.state_dir or config.state_dir,
    )
    start_logging(logging.DEBUG if args.verbose else logging.INFO)
    return _run(config)


def _run(config: AgentConfig) -> int:
    bundles = load_bundles(config)
    tests = start_self_tests(config, bundles)
    # Imported while the self-tests run in processes of their own: it imports the broker's client, which takes long.
    from device_agent.agent import Agent

    agent = Agent(config, bundles=bundles)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    agent.prepare(tests)
    # What is loaded by now stays: the collector need not look at it again, which saves pauses of milliseconds.
    gc.freeze()
    return agent.run()


class _Silent(QuietListener):
    """Ignores everything: a check only logs in."""


def check(config: AgentConfig, *, connect: bool = False) -> int:
    """Carry out `distree agent check`; whatever is wrong is raised as it would be by `run`."""
    from device_agent.agent import Agent

    # Without spools: one that a running agent writes must not be opened, and what it holds must not be restored.
    agent = Agent(config, keeps_state=False)
    agent.prepare()
    for pipeline in agent.pipelines:
        runtime = pipeline.runtime.name if pipeline.runtime is not None else "no interpreter needed"
        print(f"ok: {pipeline.config.name}: bundle {pipeline.bundle.name} {pipeline.bundle.revision}, {runtime}")
    if connect:
        from distree.broker_settings import Session
        from distree.transport import make_transport

        # Another client id: a check must not push a running agent off the broker.
        transport = make_transport(config.broker, client_id=f"{config.client_id}_check", session=Session.NONE)
        try:
            transport.open(_Silent(), [])
            transport.connect_now(config.broker.connect_timeout_s + 1.0)
        finally:
            transport.close()
        print(f"ok: broker {config.broker.address}")
    print(f"ok: {config.device} at site {config.site}")
    return 0
