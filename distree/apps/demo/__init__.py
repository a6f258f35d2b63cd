"""`distree demo`: the whole system on one machine, as separate processes, answering real inputs."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

from distree.apps.demo.broker import start_broker
from distree.apps.demo.figures import Figures, Screen
from distree.apps.demo.fleet import Demo
from distree.apps.demo.plan import plan_site
from distree.apps.demo.samples import USUAL_COUNT, load_samples
from distree.apps.demo.verdict import stranded
from distree.bundle.loading import load_bundle
from distree.errors import CHECK_PATH, ConfigError
from distree.formatting import counted

RATE_HZ = 250.0
WATCHED_RATE_HZ = 20.0
"""Inputs per second for people who look at each of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree demo`."""
    parser.add_argument(
        "--inputs", type=int, metavar="N", help=f"how many samples (default: all, at most {USUAL_COUNT:,})"
    )
    parser.add_argument(
        "--bundle", default="fashion", help="bundle in the model zoo, or a folder (default: %(default)s)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="what `zoo evaluate` reads: .npz or .npy arrays, a folder with images, WAV or CSV files per class, a CSV "
        "file, and others (default: the bundle's samples)",
    )
    parser.add_argument(
        "--mode",
        choices=["gated", "eager"],
        default="gated",
        help="wide stages only: branches wait to be told to go on, or go on until told to stop (default: %(default)s)",
    )
    parser.add_argument(
        "--fuser",
        choices=["origin", "board"],
        default="origin",
        help="wide stages only: who fuses the embeddings, the origin or a separate board (default: %(default)s)",
    )
    parser.add_argument(
        "--broker",
        default="auto",
        metavar="auto|HOST:PORT",
        help="start a broker, or use this one (default: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        choices=["auto", "mosquitto", "embedded"],
        default="auto",
        help="which broker to start (default: %(default)s)",
    )
    parser.add_argument(
        "--secure",
        action="store_true",
        help="start a broker as `distree broker init` makes it: each board logs in, and may do only what its role "
        "needs (mosquitto only)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        metavar="HZ",
        help=f"inputs per second, 0 for no limit (default: {RATE_HZ:g}, with --dashboard {WATCHED_RATE_HZ:g})",
    )
    parser.add_argument(
        "--dashboard",
        type=int,
        nargs="?",
        const=8080,
        metavar="PORT",
        help="also serve `distree dashboard` on this port (default: 8080), until Ctrl-C; needs mosquitto",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and every answer as JSON")
    parser.epilog = "example: distree demo --inputs 200 --json demo.json"


def run(args: argparse.Namespace) -> int:
    """Carry out `distree demo`; 0 only if every input was answered, and those that had to reached other boards."""
    rate_hz = args.rate if args.rate is not None else RATE_HZ if args.dashboard is None else WATCHED_RATE_HZ
    bundle = load_bundle(args.bundle)
    plan = plan_site(bundle, fuser=args.fuser, mode=args.mode)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distree-demo-")))
        samples = load_samples(bundle, args.data, args.inputs, rate_hz, folder)
        site = f"demo-{uuid4().hex[:8]}"
        broker = start_broker(args, plan, site, folder, stack)
        print(f"broker: {broker.description}")
        demo = stack.enter_context(Demo(plan, samples, folder, site, broker, pictures=args.dashboard is not None))
        agents = counted(len(demo.devices), "agent")
        print(f"starting an orchestrator and {agents} for bundle {bundle.name} {bundle.revision} …")
        if samples.about:
            print(f"inputs: {samples.count:,} shipped samples: {samples.about}")
        demo.start()
        screen = Screen(demo)
        for _ in demo.stream():
            screen.show()
        screen.end()
        figures = Figures(demo)
        print("\n".join(figures.lines()))
        if args.json is not None:
            _write_json(args.json, figures)
        problem = stranded(demo)
        if problem:
            print(f"distree: {problem}", file=sys.stderr, flush=True)
        if args.dashboard is not None:
            print("\nthe dashboard stays until Ctrl-C", flush=True)
            demo.stay()
    return 0 if figures.answered == samples.count and not problem else 1


def _write_json(path: Path, figures: Figures) -> None:
    try:
        path.write_text(json.dumps(figures.as_json(), indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written ({error.strerror or error})", CHECK_PATH) from None
