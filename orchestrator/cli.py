"""`distree orchestrator`: run it, see what it knows and why, set thresholds by hand."""

from __future__ import annotations

import argparse
import logging
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from distree.broker_address import joined
from distree.broker_settings import Session
from distree.errors import CHECK_PATH, ConfigError
from distree.formatting import branches_text, counted, thresholds_text
from distree.logs import start_logging
from distree.messages.plan import Plan
from distree.signing import load_signing_key, new_signing_key
from distree.thresholds import NEVER_WORD, parse_threshold
from distree.transport import make_transport
from orchestrator import home_assistant_cmd, metrics
from orchestrator.addresses import will_of
from orchestrator.config import OrchestratorConfig, PipelineConfig, load_config
from orchestrator.explain import text as explain_text
from orchestrator.explain import view as explain_view
from orchestrator.pipeline_spec import PipelineSpec, load_spec
from orchestrator.restore import restored_tuning
from orchestrator.service import Service
from orchestrator.set_thresholds import Change, Progress, find_pipeline, reset_plan, set_thresholds, wait_for
from orchestrator.signing import Signing
from orchestrator.status import text as status_text
from orchestrator.status import view as status_view
from orchestrator.store.connection import StoreError
from orchestrator.store.database import Store
from orchestrator.store.lock import ServiceLock
from orchestrator.tuning_view import kept_samples

_RUN_EXAMPLE = """example:
  distree orchestrator run -c orchestrator.yaml

orchestrator.yaml:
  site: lab
  broker: {host: 127.0.0.1, port: 1883, username: orchestrator, password_file: secret}
  store: {path: state/orchestrator.db, telemetry_days: 7, max_mb: 64}
  metrics: {port: 9469}
  home_assistant: {prefix: homeassistant}
  pipelines:
    - {name: fashion, bundle: fashion, criterion: max_softmax, thresholds: [0.9, 0.8]}"""
_STATUS_EXAMPLE = """example:
  distree orchestrator status -c orchestrator.yaml
  distree orchestrator status -c orchestrator.yaml --json | jq '.pipelines[].exits'"""
_EXPLAIN_EXAMPLE = """example:
  distree orchestrator explain -c orchestrator.yaml
  distree orchestrator explain -c orchestrator.yaml --pipeline fashion --json | jq '.pipelines[].sets'"""
_AUDITS_EXAMPLE = """example:
  distree orchestrator audits -c orchestrator.yaml --pipeline fashion --export audits.npz
  distree tune --replay audits.npz --accuracy-drop 0.5%"""
_HOME_EXAMPLE = """example:
  distree orchestrator home-assistant -c orchestrator.yaml
  distree orchestrator home-assistant -c orchestrator.yaml --remove"""
_SET_EXAMPLE = """example:
  distree orchestrator set-thresholds -c orchestrator.yaml --pipeline fashion 0.95 0.9 --wait 60
  distree orchestrator set-thresholds -c orchestrator.yaml --pipeline fashion 0.95 never"""
_KEYS_EXAMPLE = """example:
  distree orchestrator keys --new plan.key
  distree orchestrator keys --new label.key --for labels
  distree orchestrator keys -c orchestrator.yaml"""
_RESET_EXAMPLE = """example:
  distree orchestrator reset-plan -c orchestrator.yaml --pipeline fashion --wait 60"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands run, status, explain, audits, home-assistant, set-thresholds, reset-plan and keys."""
    parser.epilog = "example: distree orchestrator status -c orchestrator.yaml"
    commands = parser.add_subparsers(dest="orchestrator_command", metavar="COMMAND", required=True)
    _add_command(commands, "run", "run the orchestrator until SIGTERM or Ctrl-C", _RUN_EXAMPLE)
    what = "show devices and pipelines, from the store; exit status 1 while others replace the orchestrator's plans"
    status = _add_command(commands, "status", what, _STATUS_EXAMPLE)
    status.add_argument("--json", action="store_true", help="print JSON, for programs")
    why = _add_command(
        commands, "explain", "show from the store which thresholds are in force, and why", _EXPLAIN_EXAMPLE
    )
    why.add_argument("--pipeline", metavar="P", help="name of a pipeline; default: all")
    why.add_argument("--json", action="store_true", help="print JSON, for programs")
    audits = _add_command(commands, "audits", "write the stored audits to a recording", _AUDITS_EXAMPLE)
    audits.add_argument("--pipeline", required=True, metavar="P", help="name of the pipeline")
    audits.add_argument(
        "--export", type=Path, required=True, metavar="FILE", help=".npz file to write, for distree tune --replay"
    )
    audits.add_argument(
        "--missing",
        default="",
        metavar="A,B",
        help="audits in which these branches were missing; default: those with none missing",
    )
    home = _add_command(
        commands, "home-assistant", "show or remove the site's discovery messages for Home Assistant", _HOME_EXAMPLE
    )
    home.add_argument(
        "--remove", action="store_true", help="remove them, so that Home Assistant forgets the site's devices"
    )
    home.add_argument("--prefix", metavar="P", help="discovery prefix; default: the configuration's, or homeassistant")
    change = _add_command(commands, "set-thresholds", "set a pipeline's exit thresholds", _SET_EXAMPLE)
    change.add_argument("--pipeline", required=True, metavar="P", help="name of the pipeline")
    change.add_argument("--criterion", metavar="C", help="exit criterion; default: the one in force")
    change.add_argument(
        "--wait", type=float, metavar="SECONDS", help="wait until all ready devices follow the plan, at most this long"
    )
    change.add_argument(
        "thresholds",
        nargs="*",
        type=_threshold,
        metavar="T",
        help="one per exit but the last; never keeps an exit closed",
    )
    what = "publish a pipeline's plan again, as epoch 1, whatever others have published"
    reset = _add_command(commands, "reset-plan", what, _RESET_EXAMPLE)
    reset.add_argument("--pipeline", required=True, metavar="P", help="name of the pipeline")
    reset.add_argument("--configured", action="store_true", help="return to the thresholds of orchestrator.yaml")
    reset.add_argument(
        "--wait", type=float, metavar="SECONDS", help="wait until all ready devices follow the plan, at most this long"
    )

    what = "make a key with which plans or labels are signed, and print what those need who check them"
    keys = commands.add_parser(
        "keys",
        help=what,
        description=what,
        epilog=_KEYS_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = keys.add_mutually_exclusive_group(required=True)
    which.add_argument("--new", type=Path, metavar="FILE", help="make a private key and write it to this file")
    which.add_argument("-c", "--config", type=Path, metavar="FILE", help="orchestrator.yaml whose key is shown")
    keys.add_argument(
        "--for",
        dest="purpose",
        choices=("plans", "labels"),
        default="plans",
        help="what the new key is to sign (default: %(default)s)",
    )


def _threshold(text: str) -> float:
    try:
        return parse_threshold(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a finite number nor {NEVER_WORD!r}") from None


def _add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str, example: str
) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(name, help=what, description=what, epilog=example, formatter_class=form)
    command.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="orchestrator.yaml")
    return command


def run(args: argparse.Namespace) -> int:
    """Do what the parsed arguments ask and return the exit status; DistreeError is the caller's to print."""
    if args.orchestrator_command == "keys":
        print(_keys(args))
        return 0
    config = load_config(args.config)
    match args.orchestrator_command:
        case "run":
            return _run(config)
        case "status":
            status = status_view.read_status(config)
            print(status_view.to_json(status) if args.json else status_text.render(status))
            return 1 if any(pipeline.alarm for pipeline in status.pipelines) else 0
        case "explain":
            reasons = explain_view.read_explanation(config, _chosen(config, args.pipeline))
            print(explain_view.to_json(reasons) if args.json else explain_text.render(reasons))
            return 0
        case "audits":
            print(_export(config, args))
            return 0
        case "home-assistant":
            print(home_assistant_cmd.show(config, args.prefix, remove=args.remove))
            return 0
        case _:
            return _change_plan(config, args)


def _keys(args: argparse.Namespace) -> str:
    """Return the public key of a new private key, or of the configured one, as configurations have it."""
    if args.purpose == "labels" and args.new is None:
        raise ConfigError("--for labels: orchestrator.yaml names no such key", "make one with --new FILE")
    if args.new is not None:
        key = new_signing_key(args.new)
        use = {
            "plans": "name it as signing_key in orchestrator.yaml, and add this line to each agent.yaml",
            "labels": "sign with it: distree label --signing-key; and add this line to orchestrator.yaml",
        }[args.purpose]
        print(f"wrote a private key to {args.new}; {use}", file=sys.stderr)
    else:
        path = load_config(args.config).signing_key
        if path is None:
            raise ConfigError(f"{args.config}: has no signing_key", "make one: distree orchestrator keys --new FILE")
        key = load_signing_key(path)
    return f'{"label" if args.purpose == "labels" else "plan"}_keys: ["{key.public}"]'


def _run(config: OrchestratorConfig) -> int:
    start_logging(logging.INFO)
    specs = [load_spec(configured) for configured in config.pipelines]
    with ServiceLock(config.store.path), Store(config.store.path) as store:
        store.check()
        service = _service(config, specs, store)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: service.stop())
        with metrics.serving(config.metrics, service.snapshot) if config.metrics else nullcontext() as port:
            service.open()
            print(_started(config, service.controllers.wanted, port), flush=True)
            service.run()
    return 0


def _service(config: OrchestratorConfig, specs: Sequence[PipelineSpec], store: Store) -> Service:
    # Nothing sent to the orchestrator is worth keeping while it is away: plans and states are retained.
    # The id is new each time: a second orchestrator should be noticed by its claim, not throw this one off the broker.
    identity = secrets.token_hex(3)
    key = load_signing_key(config.signing_key) if config.signing_key is not None else None
    client_id, will = f"orchestrator-{config.site}-{identity}", will_of(config.site, identity, key, _now_ms())
    transport = make_transport(config.broker, client_id=client_id, session=Session.NONE, will=will)
    return Service(
        config.site,
        specs,
        store=store,
        transport=transport,
        identity=identity,
        retention=config.store,
        home_assistant=config.home_assistant,
        signing=Signing(config.site, key, store, time.time, label_keys=config.label_keys),
    )


def _now_ms() -> int:
    return max(0, int(time.time() * 1e3))


def _started(config: OrchestratorConfig, plans: Sequence[Plan], metrics_port: int | None) -> str:
    epochs = ", ".join(f"{plan.pipeline} (epoch {plan.epoch or 'new'})" for plan in plans)
    broker = config.broker.address
    line = f"orchestrator of {config.site}: broker {broker}, store {config.store.path}, pipelines {epochs}"
    if config.metrics is None:
        return line
    return f"{line}, metrics http://{joined(config.metrics.host, metrics_port or 0)}/metrics"


def _chosen(config: OrchestratorConfig, name: str | None) -> Sequence[PipelineConfig]:
    chosen = [pipeline for pipeline in config.pipelines if name in (None, pipeline.name)]
    if not chosen:
        names = ", ".join(pipeline.name for pipeline in config.pipelines)
        raise ConfigError(f"--pipeline {name}: not in the configuration", f"name one of {names}")
    return chosen


def _export(config: OrchestratorConfig, args: argparse.Namespace) -> str:
    """Write a recording as `orchestrator/tuning/replay.py` describes it; return the line that says what is in it."""
    pipeline, missing = find_pipeline(config, args.pipeline), _missing(args.missing)
    tuned = pipeline.tuned
    if tuned is None:
        raise ConfigError(f"--pipeline {pipeline.name}: has no goal, so nothing is audited", "give it a goal")
    with Store(config.store.path, read_only=True) as store:
        samples = kept_samples(store, pipeline.name, restored_tuning(store, tuned).audits)
    audits = [sample.audit for sample in samples if not sample.audit.lost and sample.missing == missing]
    if not audits:
        what = f"{config.store.path}: no audit of {pipeline.name} with {branches_text(missing)} is kept"
        raise StoreError(what, "wait for audits, or name other branches with --missing")
    content = {
        # Readers ignore the last exit's score.
        "score": np.array([(*audit.scores, 0.0) for audit in audits]),
        "prediction": np.array([audit.predictions for audit in audits], np.int64),
        "mac": np.array(pipeline.costs),
        "criterion": np.array(pipeline.plan.criterion),
    }
    labels = [audit.label for audit in audits if audit.label is not None]
    if len(labels) == len(audits):
        content["label"] = np.array(labels, np.int64)
    try:
        with args.export.open("wb") as out:
            np.savez_compressed(out, **content)  # type: ignore[arg-type]  # the stubs take its flag for an array
    except OSError as error:
        raise ConfigError(f"--export {args.export}: {error.strerror}", CHECK_PATH) from None
    lost = sum(sample.audit.lost for sample in samples)
    return (
        f"{args.export}: {counted(len(audits), 'audit')} of {pipeline.name}, {branches_text(missing)}; left out: "
        f"{lost:,} lost and {len(samples) - lost - len(audits):,} with other branches missing"
    )


def _missing(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",") if text}))
    except ValueError:
        what = f"--missing {text}: not a list of branches"
        raise ConfigError(what, "separate numbers by commas, as in 0,1") from None


def _change_plan(config: OrchestratorConfig, args: argparse.Namespace) -> int:
    if args.wait is not None and not args.wait >= 0:
        raise ConfigError(f"--wait {args.wait:g}: is negative", "wait 0 seconds or more")
    pipeline = find_pipeline(config, args.pipeline)
    is_reset = args.orchestrator_command == "reset-plan"
    with Store(config.store.path) as store:
        if is_reset:
            change = reset_plan(store, pipeline, configured=args.configured)
        else:
            change = set_thresholds(store, pipeline, args.criterion, tuple(args.thresholds))
    print(_change_text(change), flush=True)
    if args.wait is None:
        # A reset ends an alarm.
        if is_reset or not change.alarm:
            return 0
        print(f"pipeline {pipeline.name}: {change.alarm}", file=sys.stderr)
        return 1
    seen = wait_for(config.store.path, change.plan, args.wait, change.asked_at)
    line, code = _verdict(change.plan, seen, args.wait)
    print(line, file=sys.stderr if code else sys.stdout)
    return code


def _change_text(change: Change) -> str:
    plan = change.plan
    line = f"pipeline {plan.pipeline}: {plan.criterion} {thresholds_text(plan.thresholds)} is epoch {plan.epoch}"
    if not change.new:
        return f"{line} already; nothing to change"
    if change.served:
        once = "" if change.online else " once it is connected to the broker, which it is not now"
        return f"{line}; the running orchestrator publishes it{once}"
    return f"{line}; it is published once an orchestrator is running: distree orchestrator run"


def _verdict(plan: Plan, seen: Progress, waited_s: float) -> tuple[str, int]:
    if seen.superseded_by is not None:
        return f"pipeline {plan.pipeline}: replaced by epoch {seen.superseded_by} meanwhile", 1
    if seen.alarm:
        return f"pipeline {plan.pipeline}: {seen.alarm}", 1
    if seen.done:
        return f"pipeline {plan.pipeline}: in force on {', '.join(seen.ready)}", 0
    where = f"not in force on {', '.join(seen.missing)}" if seen.ready else "no ready device serves it"
    line = f"pipeline {plan.pipeline}: {where} after {waited_s:g} s"
    return f"{line}: {seen.hindrance}" if seen.hindrance else line, 1
