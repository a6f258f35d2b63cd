"""`python -m benchmarks.brokers`: what brokers can do, and whether a chain and a wide site work on each.

    python -m benchmarks.brokers --install              aedes and amqtt, into a cache outside of the checkout
    python -m benchmarks.brokers --only capabilities
    python -m benchmarks.brokers RabbitMQ NATS --json /tmp/brokers.json
    python -m benchmarks.brokers --out docs             also into docs/brokers.md

A broker that is not installed is told as such.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.brokers import report, trials
from benchmarks.brokers.capabilities import capabilities, round_trip
from benchmarks.brokers.client import NoAnswerError
from benchmarks.brokers.servers import BROKERS, Broker, BrokerUnavailableError, Server, install


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    if args.install:
        install()
    wanted = [broker for broker in BROKERS if not args.names or broker.name.partition(" ")[0].strip(",") in args.names]
    played: list[trials.Trial] = []
    if args.only != "capabilities":
        played.append(trials.chain(args.inputs, args.rate))
        played.append(trials.wide(args.inputs, args.rate, args.wide, args.data))
    reports = []
    for broker in wanted:
        print(f"{broker.name} …", file=sys.stderr, flush=True)
        reports.append(_measure(broker, args.only, played))
    machine = f"{platform.system()} {platform.machine()} with {os.cpu_count()} cores"
    text = report.text(reports, machine)
    print(text)
    if args.json is not None:
        args.json.write_text(json.dumps(reports, indent=1) + "\n")
    if args.out is not None:
        report.write(args.out / "brokers.md", text)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [broker.name.partition(" ")[0].strip(",") for broker in BROKERS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.brokers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="BROKER", help=f"of {', '.join(dict.fromkeys(names))}; all if none")
    parser.add_argument("--install", action="store_true", help="first fetch what neither apt nor this project has")
    parser.add_argument("--only", choices=("capabilities", "trials"), help="only the one part")
    parser.add_argument("--inputs", type=int, default=300, metavar="N", help="of each trial (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=40.0, metavar="HZ", help="inputs a second (default: %(default)s)")
    parser.add_argument("--wide", metavar="BUNDLE", help="wide bundle in place of the tests' tiny one; needs --data")
    parser.add_argument("--data", type=Path, metavar="FILE", help="its inputs, such as cifar10_jpeg.npz")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the tables into FOLDER/brokers.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures into FILE")
    args = parser.parse_args(argv)
    unknown = set(args.names) - set(names)
    if unknown:
        parser.error(f"no such broker: {', '.join(sorted(unknown))}")
    if (args.wide is None) != (args.data is None):
        parser.error("--wide and --data: give both or none")
    return args


def _measure(broker: Broker, only: str | None, played: Sequence[trials.Trial]) -> report.Report:
    found: report.Report = {"name": broker.name, "config_name": broker.config}
    try:
        if only != "trials":
            with tempfile.TemporaryDirectory(prefix="distree-brokers-") as name, broker.start(Path(name)) as server:
                found |= {"version": server.version, "config": _config(broker, Path(name), server)}
                found["facts"] = _facts(broker, server)
        if played:
            # Started anew, so that nothing of before stays in its memory.
            with tempfile.TemporaryDirectory(prefix="distree-brokers-") as name, broker.start(Path(name)) as server:
                found["version"] = server.version
                found["trials"] = {
                    trial.name: trials.play(trial, server, broker.mqtt, Path(name) / trial.name) for trial in played
                }
    except (BrokerUnavailableError, NoAnswerError) as error:
        found["trouble"] = str(error)
    return found


def _facts(broker: Broker, server: Server) -> dict[str, str]:
    facts = capabilities(server.host, server.port, broker.mqtt)
    facts["round trip"] = f"{round_trip(server.host, server.port, broker.mqtt):.1f} ms"
    facts["round trip without TCP_NODELAY"] = "cannot be set"
    if broker.can_delay:
        with (
            tempfile.TemporaryDirectory(prefix="distree-brokers-") as name,
            broker.start(Path(name), nodelay=False) as slow,
        ):
            facts["round trip without TCP_NODELAY"] = f"{round_trip(slow.host, slow.port, broker.mqtt):.1f} ms"
    return facts


def _config(broker: Broker, folder: Path, server: Server) -> str:
    """Return the file that the broker was given, with a port and folder as others would have them."""
    if not broker.config:
        return ""
    written = (folder / broker.config).read_text().replace(str(folder), "/var/lib/distree")
    return written.replace(str(server.port), "1883")


if __name__ == "__main__":
    raise SystemExit(main())
