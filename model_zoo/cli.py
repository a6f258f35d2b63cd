"""`distree zoo`: list, show, verify, evaluate and build bundles, and report on wide recipes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from distree.bundle.frontends import make_frontend
from distree.bundle.loading import Bundle, find_bundle, load_bundle, zoo_folder
from distree.bundle.manifest import MANIFEST, Manifest, Measured
from distree.criteria import POLICIES
from distree.errors import ConfigError, DistreeError
from model_zoo.build.finish import ImageSets
from model_zoo.costs import FUSER
from model_zoo.data import (
    DEFAULT_FASHION_DIR,
    FASHION_HINT,
    LabelledExamples,
    Split,
    load_examples,
    load_split,
)
from model_zoo.errors import DataError, needs_zoo
from model_zoo.evaluation import (
    Evaluation,
    ExitScores,
    check_missing,
    check_thresholds,
    collect_logits,
    costs_of,
    exits_taken,
    score_exits,
    summarise,
    thresholds_in_force,
    with_boards,
    write_audits,
)
from model_zoo.progress import Progress
from model_zoo.recipes import Recipe, WideRecipe, get_recipe, recipe_names
from model_zoo.training.plans import VARIANTS, WideSettings
from model_zoo.verification import check_golden

_SAMPLES = Path(__file__).parent / "samples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands of `distree zoo` to its parser."""
    parser.epilog = "example: distree zoo show fashion"
    commands = parser.add_subparsers(dest="zoo_command", metavar="COMMAND", required=True)
    _command(commands, "list", "bundles that are installed", "distree zoo list")
    show = _command(commands, "show", "stages, exits and figures of a bundle", "distree zoo show fashion")
    show.add_argument("bundle", metavar="NAME", help="name of an installed bundle, or a folder with a bundle.yaml")
    verify = _command(
        commands,
        "verify",
        "check a bundle's hashes and golden vectors on this machine",
        "distree zoo verify fashion",
    )
    verify.add_argument("bundle", metavar="NAME_OR_PATH", help="name of an installed bundle, or its folder")
    _add_evaluate(commands)
    _add_build(commands)
    _add_report(commands)


def _command(commands: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_evaluate(commands: Any) -> None:
    evaluate = _command(
        commands,
        "evaluate",
        "accuracy, exits and cost of a bundle on labelled data",
        "distree zoo evaluate fashion --data /usr/share/datasets/fashion-mnist --thresholds 0.9,0.8",
    )
    evaluate.add_argument("bundle", metavar="NAME_OR_PATH", help="name of an installed bundle, or its folder")
    evaluate.add_argument(
        "--data",
        type=Path,
        help=".npz or .npy arrays, a folder of images, WAV or CSV files for each class, a CSV file, idx files, or "
        "CIFAR-10's binary version: see docs/howto/data.md (default: the shipped samples)",
    )
    evaluate.add_argument(
        "--split",
        choices=get_args(Split),
        help="of data that is divided into them (default: test)",
    )
    evaluate.add_argument("--thresholds", metavar="A,B", help="one per exit but the last (default: the bundle's)")
    evaluate.add_argument("--criterion", metavar="C", help=f"one of {', '.join(POLICIES)} (default: the bundle's)")
    evaluate.add_argument("--missing", metavar="B,…", help="branches of wide stages to do without, such as 0,2")
    evaluate.add_argument("--limit", type=int, metavar="N", help="only the first N inputs")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too; - for stdout alone")
    evaluate.add_argument(
        "--audits", type=Path, metavar="NPZ", help="record what every exit says, for distree tune --replay"
    )
    evaluate.add_argument("--per-input", action="store_true", help="with --json: class, exit and score of every input")


def _add_build(commands: Any) -> None:
    build = _command(
        commands,
        "build",
        "train a recipe and write its bundle (needs the extra 'zoo')",
        "distree zoo build fashion --out bundles/fashion --seed 1\n"
        "  distree zoo build cifar10-wide --data cifar10_jpeg.npz --branches 4",
    )
    build.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(recipe_names())}")
    build.add_argument(
        "--data",
        type=Path,
        help=f"fashion: folder of idx files (default: {DEFAULT_FASHION_DIR}); wide recipes: npz of JPEG images "
        "(arrays jpeg, offset, label, is_test), or the folder of CIFAR-10's binary version",
    )
    build.add_argument("--out", type=Path, help="folder of the bundle (default: ./RECIPE)")
    build.add_argument("--seed", type=int, help="of everything random (default: the recipe's)")
    build.add_argument("--epochs", type=int, help="passes over the training images (default: the recipe's)")
    build.add_argument(
        "--work",
        type=Path,
        help="folder of checkpoints, to go on after a cut (default: OUT.work; of wide recipes RECIPE.work)",
    )
    build.add_argument(
        "--samples", type=Path, metavar="FILE", help="also write 100 test images of each class there (not of wide ones)"
    )
    build.add_argument("--branches", type=int, metavar="B", help="of a wide recipe (default: its first number)")
    build.add_argument(
        "--variant", choices=VARIANTS, help="of a wide recipe: without branch dropout, or without early exits"
    )


def _add_report(commands: Any) -> None:
    report = _command(
        commands,
        "report",
        "what early exits of a wide recipe save: text, JSON and plots",
        "distree zoo report cifar10-wide --data cifar10_jpeg.npz --work cifar10-wide.work --seeds 1,2,3",
    )
    report.add_argument("recipe", metavar="RECIPE", help="a wide recipe, such as cifar10-wide")
    report.add_argument("--data", type=Path, required=True, help="as for build")
    report.add_argument(
        "--work", type=Path, required=True, help="folder of the checkpoints; bundles are made there, and found again"
    )
    report.add_argument("--seeds", default="1,2,3", metavar="N,…", help="whose networks (default: %(default)s)")
    report.add_argument("--branches", metavar="B,…", help="whose networks (default: all of the recipe)")
    report.add_argument("--out", type=Path, default=Path("docs/results"), help="folder (default: %(default)s)")
    report.add_argument("--train", action="store_true", help="train what is not trained (hours)")
    report.add_argument(
        "--trained-on", metavar="TEXT", help="what to call the machine of trainings whose checkpoint does not say it"
    )


def run(args: argparse.Namespace) -> int:
    """Run what `add_arguments` parsed. Returns the exit status: 0, or 2 after one line on stderr."""
    try:
        return _COMMANDS[args.zoo_command](args)
    except DistreeError as error:
        print(f"distree zoo {args.zoo_command}: {error}", file=sys.stderr)
        return 2


def _list(_: argparse.Namespace) -> int:
    folder = zoo_folder()
    found = sorted(folder.glob(f"*/{MANIFEST}")) if folder is not None else []
    for path in found:
        bundle = load_bundle(path.parent, verify=())
        size = sum(stage.bytes + sum(branch.bytes for branch in stage.branches) for stage in bundle.stages)
        print(f"{bundle.name}  {len(bundle.stages)} stages  {size / 1000:.0f} kB  {bundle.manifest.description}")
    return 0


def _show(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle, verify=())
    manifest = bundle.manifest
    print(f"{bundle.name}: {manifest.description}")
    print(f"revision {bundle.revision}, licence {manifest.license}, in {bundle.path}")
    print(f"labels: {', '.join(bundle.labels)}")
    print(f"input: {_input_text(manifest)}")
    for k, stage in enumerate(bundle.stages):
        features = "" if stage.features is None else f", features {_shape(stage.features.shape)} {stage.features.dtype}"
        cost = f"{stage.macs.trunk / 1e6:.2f} + {stage.macs.exit / 1e6:.2f} MMACs (trunk + exit)"
        print(f"stage {k}: {stage.segment}, {stage.bytes / 1000:.0f} kB, {cost}{features}")
        for b, branch in enumerate(stage.branches):
            cost = f"{branch.macs.trunk / 1e6:.2f} + {branch.macs.exit / 1e6:.2f} MMACs (trunk + embedding)"
            embedding = f"embedding {_shape(branch.embedding.shape)} {branch.embedding.dtype}"
            print(f"  branch {b}: {branch.segment}, {branch.bytes / 1000:.0f} kB, {cost}, {embedding}")
    print(f"exits: {bundle.criterion} at {_numbers(bundle.thresholds)}")
    for masked in manifest.exits.masked:
        print(f"  without {_branches(masked.missing)}: at {_numbers(masked.thresholds)}")
    print(f"measured on {manifest.measured.data}:")
    print(_table(_from_manifest(bundle)))
    return 0


def _input_text(manifest: Manifest) -> str:
    """Say what the bundle takes, and what files become."""
    spec, rules = manifest.input, manifest.preprocess
    size = " x ".join(map(str, spec.shape))
    if spec.is_image:
        return f"image, {size}; another aspect: {rules.resize}; transparent parts: {rules.background}"
    parts = [f"{spec.dtype}, {size}"]
    parts += [f"at {spec.rate_hz:,g} Hz"] if spec.rate_hz is not None else []
    parts += [f"channels {', '.join(spec.channels)}"] if spec.channels else []
    parts += [f"windows every {rules.window.hop} samples"] if rules.window.hop is not None else []
    if rules.frontend.kind != "raw":
        features = make_frontend(rules.frontend, spec.shape, spec.rate_hz).shape
        parts.append(f"{rules.frontend.kind} of {' x '.join(map(str, features))}")
    return ", ".join(parts)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape[1:])


def _branches(missing: Sequence[int]) -> str:
    return f"branch{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _from_manifest(bundle: Bundle) -> Evaluation:
    measured: Measured = bundle.manifest.measured
    evaluation = Evaluation(
        inputs=0,
        criterion=bundle.criterion,
        thresholds=bundle.thresholds,
        accuracy=measured.accuracy,
        accuracy_at_thresholds=measured.accuracy_at_thresholds,
        exit_share=measured.exit_share,
        macs_per_input=measured.macs_per_input,
        macs_no_early_exit_strict=measured.macs_no_early_exit_strict,
        macs_no_early_exit_loose=measured.macs_no_early_exit_loose,
        feature_bytes_per_input=measured.feature_bytes_per_input,
    )
    return with_boards(evaluation, costs_of(bundle.stages))


def _verify(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle)
    report = check_golden(bundle)
    segments = len(bundle.stages) + sum(bundle.branch_counts)
    print(f"{bundle.name} {bundle.revision}: {segments} segments, hashes and golden vectors are right")
    print(f"{report.runtime}: off by {report.worst_steps} steps at most, {report.tolerance} allowed")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle)
    missing = _parse_missing(args.missing)
    check_missing(bundle, missing)
    criterion, thresholds = _exit_rule(bundle, args.criterion, args.thresholds, missing)
    images = _evaluation_data(bundle, args.data, args.split, _positive("--limit", args.limit))
    quiet = args.json is not None and str(args.json) == "-"
    collected = collect_logits(bundle, images, None if quiet else _progress, missing)
    scored = score_exits(collected, criterion, bundle.policy_parameters())
    costs = costs_of(bundle.stages, missing)
    evaluation = summarise(scored, costs, criterion, thresholds)
    if args.audits is not None:
        write_audits(args.audits, scored, costs, images.labels)
    if args.json is not None:
        _write_json(args.json, _as_json(bundle, images, evaluation, scored if args.per_input else None))
    if not quiet:
        print(f"{bundle.name} {bundle.revision} on {images.source}, {len(images)} inputs")
        without = f", without {_branches(missing)}" if missing else ""
        print(f"{criterion} at {_numbers(thresholds)}{without}")
        print(_table(evaluation))
    return 0


def _parse_missing(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")})) if text is not None else ()
    except ValueError:
        raise ConfigError(f"--missing {text}: not numbers of branches separated by commas, such as 0,2") from None


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _positive(option: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ConfigError(f"{option} {value}: must be at least 1")
    return value


def _exit_rule(
    bundle: Bundle, criterion: str | None, thresholds: str | None, missing: tuple[int, ...]
) -> tuple[str, tuple[float, ...]]:
    chosen = criterion or bundle.criterion
    if thresholds is None and chosen != bundle.criterion:
        raise ConfigError(
            f"--criterion {chosen}: the thresholds of {bundle.name!r} are for {bundle.criterion}; give --thresholds too"
        )
    bundle.check_criterion(chosen)
    values = thresholds_in_force(bundle, missing) if thresholds is None else _parse_thresholds(thresholds)
    check_thresholds(values, len(bundle.stages))
    return chosen, values


def _parse_thresholds(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--thresholds {text}: not numbers separated by commas, such as 0.9,0.8") from None


def _evaluation_data(bundle: Bundle, data: Path | None, split: Split | None, limit: int | None) -> LabelledExamples:
    manifest, shipped = bundle.manifest, _SAMPLES / f"{bundle.name}.npz"
    if data is None and not shipped.is_file():
        raise DataError(f"no samples are shipped for {bundle.name!r}; give --data FILE_OR_DIR")
    if data is not None and not data.exists() and bundle.name == "fashion":
        raise DataError(f"--data {data}: does not exist; {FASHION_HINT}")
    found = load_examples(
        data or shipped,
        spec=manifest.input,
        preprocess=manifest.preprocess,
        labels=manifest.labels,
        split=split,
        limit=limit,
    ).labelled()
    if data is None:
        return dataclasses.replace(found, source="the shipped samples (part of the test set)")
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    what: str
    values: tuple[str, ...]


def _table(evaluation: Evaluation) -> str:
    exits = len(evaluation.accuracy)
    rows = [
        _Row("", (*(f"exit {k}" for k in range(exits)), "early exit")),
        _Row("accuracy %", _percent((*evaluation.accuracy, evaluation.accuracy_at_thresholds))),
        _Row("share %", _percent(evaluation.exit_share)),
    ]
    drop = 100 * (evaluation.accuracy[-1] - evaluation.accuracy_at_thresholds)
    mean, strict, loose = (
        evaluation.macs_per_input,
        evaluation.macs_no_early_exit_strict,
        evaluation.macs_no_early_exit_loose,
    )
    return "\n".join(
        [
            *(f"{row.what:<12}" + "".join(f"{value:>12}" for value in row.values) for row in rows),
            f"drop against the last exit: {drop:.2f} points",
            f"MMACs per input: {mean / 1e6:.3f}, heads counted",
            f"  {mean / strict:.3f} of {strict / 1e6:.3f} without early exits (strict: only the last head)",
            f"  {mean / loose:.3f} of {loose / 1e6:.3f} with all exits computed (loose)",
            f"feature bytes sent per input: {evaluation.feature_bytes_per_input:.0f}",
            *_lines_of_wide(evaluation),
        ]
    )


def _lines_of_wide(evaluation: Evaluation) -> list[str]:
    """What boards compute and receive where stages are wide; a chain's figures say that already."""
    fuser = [board for board in evaluation.boards if board.board == FUSER]
    traffic = evaluation.traffic
    if not fuser or traffic is None:
        return []
    computing = [board for board in evaluation.boards if board.board != FUSER]
    loose = max(board.loose for board in computing)
    size = "" if traffic.message_bytes is None else f", {traffic.message_bytes:.0f} bytes in all"
    return [
        f"MMACs per input and board: mean {evaluation.board_macs_mean / 1e6:.3f}, "
        f"max {evaluation.board_macs_max / 1e6:.3f} (at most {loose / 1e6:.3f}); "
        f"fusion {fuser[0].macs_per_input / 1e6:.3f}",
        f"bytes received per input: input {traffic.input_bytes:.0f}, features {traffic.feature_bytes:.0f}, "
        f"embeddings {traffic.embedding_bytes:.0f}",
        f"messages received per input: {traffic.messages:.1f}, {traffic.decisions:.1f} of them decisions{size}",
    ]


def _percent(values: Sequence[float]) -> tuple[str, ...]:
    return tuple(f"{100 * value:.2f}" for value in values)


def _as_json(
    bundle: Bundle, images: LabelledExamples, evaluation: Evaluation, scored: ExitScores | None
) -> dict[str, Any]:
    document: dict[str, Any] = {"model": bundle.name, "revision": bundle.revision, "data": images.source}
    document |= dataclasses.asdict(evaluation)
    document["thresholds"] = _finite_or_none(evaluation.thresholds)
    if scored is not None:
        document["results"] = _per_input(bundle, images, scored, evaluation.thresholds)
    return document


def _finite_or_none(values: Sequence[float]) -> list[float | None]:
    """JSON has no infinity: null is a threshold that is never reached, and a score that reaches none."""
    return [value if math.isfinite(value) else None for value in values]


def _per_input(
    bundle: Bundle, images: LabelledExamples, scored: ExitScores, thresholds: Sequence[float]
) -> list[dict[str, Any]]:
    """One row per input, named as in the demo's figures: `index` is the place in the data, `label` the prediction."""
    taken = exits_taken(scored.scores, thresholds)
    rows = np.arange(len(taken))
    classes = scored.classes[rows, taken].tolist()
    columns = (
        rows.tolist(),
        [bundle.labels[class_id] for class_id in classes],
        classes,
        taken.tolist(),
        _finite_or_none(scored.scores[rows, taken].tolist()),
        images.labels.tolist(),
        images.index.tolist(),
    )
    names = ("index", "label", "class_id", "exit", "score", "truth", "source_index")
    results = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    if images.files is not None:
        return [{**result, "input": name} for result, name in zip(results, images.files, strict=True)]
    return results


def _write_json(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=None if "results" in document else 2) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written ({error.strerror})") from error


def _build(args: argparse.Namespace) -> int:
    recipe = get_recipe(args.recipe)
    bundle = _build_wide(args, recipe) if isinstance(recipe, WideRecipe) else _build_chain(args, recipe)
    print(f"{bundle.name} {bundle.revision} written to {find_bundle(bundle.path)}")
    print(_table(_from_manifest(bundle)))
    return 0


def _build_chain(args: argparse.Namespace, recipe: Recipe) -> Bundle:
    for option in ("branches", "variant"):
        if getattr(args, option) is not None:
            raise ConfigError(f"--{option}: {recipe.name} is no wide recipe; leave it out")
    given = {"seed": args.seed, "epochs": _positive("--epochs", args.epochs)}
    settings = dataclasses.replace(recipe.settings, **{key: value for key, value in given.items() if value is not None})
    data = args.data or DEFAULT_FASHION_DIR
    if not data.is_dir():
        raise DataError(f"--data {data}: no such folder; {FASHION_HINT}")
    try:
        from model_zoo.build.chain import BuildPaths, build_bundle
    except ImportError as error:
        raise needs_zoo("building", error) from error
    out = args.out or Path(recipe.name)
    paths = BuildPaths(data, out, args.work or out.with_name(out.name + ".work"), args.samples)
    progress = Progress(sys.stderr)
    return build_bundle(recipe, settings, paths, progress.line, progress.step)


def _build_wide(args: argparse.Namespace, recipe: WideRecipe) -> Bundle:
    if args.samples is not None:
        raise ConfigError(f"--samples: images of {recipe.data_name} may not be passed on; leave it out")
    settings = WideSettings(
        branches=recipe.branch_counts[0] if args.branches is None else args.branches,
        seed=recipe.student.seed if args.seed is None else args.seed,
        variant=args.variant or "full",
        epochs=_positive("--epochs", args.epochs),
    )
    images = _image_sets(recipe, args.data)
    try:
        from model_zoo.build.wide import build_wide
    except ImportError as error:
        raise needs_zoo("building", error) from error
    out, work = args.out or Path(settings.bundle_name(recipe)), args.work or Path(f"{recipe.name}.work")
    progress = Progress(sys.stderr)
    return build_wide(recipe, settings, images, out, work, progress.line, progress.step)


def _image_sets(recipe: WideRecipe, data: Path | None) -> ImageSets:
    if data is None or not data.exists():
        which = "is needed" if data is None else f"{data}: no such file"
        raise DataError(f"--data {which}; give {recipe.data_hint}")
    return ImageSets(lambda split: load_split(data, split, recipe.validation))


def _report(args: argparse.Namespace) -> int:
    recipe = get_recipe(args.recipe)
    if not isinstance(recipe, WideRecipe):
        raise ConfigError(f"{recipe.name} is no wide recipe; a report is of one")
    from model_zoo.report.networks import Workshop, file_sha256
    from model_zoo.report.write import Asked, write_report

    branches = recipe.branch_counts if args.branches is None else _whole_numbers("--branches", args.branches)
    asked = Asked(_whole_numbers("--seeds", args.seeds), branches, args.trained_on)
    images, progress = _image_sets(recipe, args.data), Progress(sys.stderr)
    workshop = Workshop(
        recipe, images, file_sha256(args.data), args.work, args.train, progress=progress.line, step=progress.step
    )
    report = write_report(recipe, asked, workshop, args.out, progress.line)
    for absent in report.absent:
        print(f"missing: {absent.variant}, {absent.branches} branches, seed {absent.seed}: {absent.why}")
    print(
        f"{len(report.networks)} networks judged, {len(report.absent)} missing: {args.out / recipe.name}.md and .json"
    )
    return 0


def _whole_numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"{option} {text}: not whole numbers separated by commas, such as 1,2") from None


_COMMANDS = {"list": _list, "show": _show, "verify": _verify, "evaluate": _evaluate, "build": _build, "report": _report}
