"""`distree simulate`: a fleet of thousands of boards, simulated on this computer."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distree.errors import CHECK_PATH, ConfigError
from orchestrator.simulator import plots
from orchestrator.simulator.overrides import load_fleet
from orchestrator.simulator.report import report, to_json, to_text
from orchestrator.simulator.site import SimulatedSite
from orchestrator.simulator.traffic import load_table

_EXAMPLE = """examples:
  distree simulate -c fleet.yaml
  distree simulate -c fleet.yaml --set boards.hub.count=20 --set links.loss=2% --out whatif"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree simulate`."""
    parser.epilog, parser.formatter_class = _EXAMPLE, argparse.RawDescriptionHelpFormatter
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="fleet.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a key of the file, such as traffic.rate_hz=2 or boards.hub.count=20; can be repeated",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write report.json and plots (needs the extra 'plots')")


def run(args: argparse.Namespace) -> int:
    """Do what the parsed arguments ask and return the exit status; DistreeError is the caller's to print."""
    if args.out is not None:
        plots.check_matplotlib()
    config = load_fleet(args.config, args.overrides)
    table = load_table(config.traffic, config.seed)
    try:
        site = SimulatedSite(config, table)
    except ConfigError as error:
        raise ConfigError(*error.problem.at(str(args.config))) from None
    with _quiet():
        site.run()
    results = report(site)
    print(to_text(results))
    if args.json is not None:
        _write(args.json, results)
    if args.out is not None:
        _write_folder(args.out, results)
    return 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the orchestrator from logging: its messages are about simulated time, and the report has them."""
    log = logging.getLogger("distree.orchestrator")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _write(path: Path, results: dict[str, Any]) -> None:
    try:
        path.write_text(to_json(results), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", CHECK_PATH) from None


def _write_folder(folder: Path, results: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = plots.draw(results, folder)
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror}", CHECK_PATH) from None
    _write(folder / "report.json", results)
    print(f"wrote report.json, {', '.join(names)} to {folder}")
