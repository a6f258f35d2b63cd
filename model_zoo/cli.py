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

from distree.bundle.loading import Bundle, find_bundle, load_bundle, zoo_folder
from distree.bundle.manifest import MANIFEST, MeasuredFigures
from distree.criteria import CRITERIA
from distree.errors import CHECK_PATH, ConfigError, DistreeError
from distree.exits_taken import exits_taken
from distree.formatting import counted, thresholds_text
from distree.thresholds import parse_threshold, plain_thresholds
from model_zoo.build.finish import ImageSets
from model_zoo.costs import FUSER
from model_zoo.data import (
    DEFAULT_FASHION_DIR,
    FASHION_HINT,
    LabelledImages,
    Split,
    is_divided,
    load_idx_set,
    load_samples,
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
    _command(commands, "list", "list the installed bundles", "distree zoo list")
    show = _command(commands, "show", "show stages, exits and figures of a bundle", "distree zoo show fashion")
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
        "measure accuracy, exits and cost of a bundle on labelled data",
        "distree zoo evaluate fashion --data /usr/share/datasets/fashion-mnist --thresholds 0.9,0.8",
    )
    evaluate.add_argument("bundle", metavar="NAME_OR_PATH", help="name of an installed bundle, or its folder")
    evaluate.add_argument(
        "--data",
        type=Path,
        help="npz with input and label; npz of JPEG images (jpeg, offset, label, is_test) or folder of CIFAR-10's "
        "binary version; folder of idx files (default: the shipped samples)",
    )
    evaluate.add_argument(
        "--split",
        choices=get_args(Split),
        help="for data that is divided into splits (default: test)",
    )
    evaluate.add_argument("--thresholds", metavar="A,B", help="one per exit but the last (default: the bundle's)")
    evaluate.add_argument("--criterion", metavar="C", help=f"one of {', '.join(CRITERIA)} (default: the bundle's)")
    evaluate.add_argument(
        "--missing", metavar="B,…", help="evaluate without these branches of wide stages, such as 0,2"
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="only the first N inputs")
    evaluate.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the figures as JSON; - prints nothing else"
    )
    evaluate.add_argument(
        "--audits", type=Path, metavar="NPZ", help="record what every exit answers, for distree tune --replay"
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
    build.add_argument("--seed", type=int, help="random seed (default: the recipe's)")
    build.add_argument("--epochs", type=int, help="passes over the training images (default: the recipe's)")
    build.add_argument(
        "--work",
        type=Path,
        help="folder of checkpoints, to resume after an interruption (default: OUT.work; for wide recipes RECIPE.work)",
    )
    build.add_argument(
        "--samples",
        type=Path,
        metavar="FILE",
        help="also write 100 test images of each class there (not for wide recipes)",
    )
    build.add_argument(
        "--branches", type=int, metavar="B", help="wide recipes only: number of branches (default: the recipe's first)"
    )
    build.add_argument(
        "--variant", choices=VARIANTS, help="wide recipes only: without branch dropout, or without early exits"
    )


def _add_report(commands: Any) -> None:
    report = _command(
        commands,
        "report",
        "report what the early exits of a wide recipe save, as text, JSON and plots",
        "distree zoo report cifar10-wide --data cifar10_jpeg.npz --work cifar10-wide.work --seeds 1,2,3",
    )
    report.add_argument("recipe", metavar="RECIPE", help="a wide recipe, such as cifar10-wide")
    report.add_argument("--data", type=Path, required=True, help="as for build")
    report.add_argument(
        "--work", type=Path, required=True, help="folder of the checkpoints and the bundles made from them"
    )
    report.add_argument("--seeds", default="1,2,3", metavar="N,…", help="seeds of the networks (default: %(default)s)")
    report.add_argument(
        "--branches", metavar="B,…", help="how many branches the networks have (default: all numbers in the recipe)"
    )
    report.add_argument(
        "--out", type=Path, default=Path("docs/results"), help="folder to write to (default: %(default)s)"
    )
    report.add_argument("--train", action="store_true", help="train networks that are not trained yet (takes hours)")
    report.add_argument(
        "--trained-on", metavar="TEXT", help="name of the training machine, for checkpoints that do not record it"
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
        stages = counted(len(bundle.stages), "stage")
        print(f"{bundle.name}  {stages}  {size / 1000:.0f} kB  {bundle.manifest.description}")
    return 0


def _show(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle, verify=())
    manifest = bundle.manifest
    print(f"{bundle.name}: {manifest.description}")
    print(f"revision {bundle.revision}, licence {manifest.license}, in {bundle.path}")
    print(f"labels: {', '.join(bundle.labels)}")
    for k, stage in enumerate(bundle.stages):
        features = "" if stage.features is None else f", features {_shape(stage.features.shape)} {stage.features.dtype}"
        cost = f"{stage.macs.trunk / 1e6:.2f} + {stage.macs.exit / 1e6:.2f} MMACs (trunk + exit)"
        print(f"stage {k}: {stage.segment}, {stage.bytes / 1000:.0f} kB, {cost}{features}")
        for b, branch in enumerate(stage.branches):
            cost = f"{branch.macs.trunk / 1e6:.2f} + {branch.macs.exit / 1e6:.2f} MMACs (trunk + embedding)"
            embedding = f"embedding {_shape(branch.embedding.shape)} {branch.embedding.dtype}"
            print(f"  branch {b}: {branch.segment}, {branch.bytes / 1000:.0f} kB, {cost}, {embedding}")
    print(f"exits: {bundle.criterion} at {_listed(bundle.thresholds)}")
    for masked in manifest.exits.masked:
        print(f"  without {_branches(masked.missing)}: at {_listed(masked.thresholds)}")
    print(f"measured on {manifest.measured.data}:")
    print(_table(_from_manifest(bundle)))
    return 0


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape[1:])


def _branches(missing: Sequence[int]) -> str:
    return f"branch{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"


def _listed(thresholds: Sequence[float]) -> str:
    return ", ".join(thresholds_text([threshold]) for threshold in thresholds)


def _from_manifest(bundle: Bundle) -> Evaluation:
    measured: MeasuredFigures = bundle.manifest.measured
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
    print(f"{bundle.name} {bundle.revision}: {segments} segments, hashes and golden vectors are correct")
    print(f"{report.runtime}: off by at most {report.worst_steps} steps, {report.tolerance} allowed")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle)
    missing = _parse_missing(args.missing)
    check_missing(bundle, missing)
    criterion, thresholds = _exit_rule(bundle, args.criterion, args.thresholds, missing)
    images = _evaluation_data(bundle, args.data, args.split).head(_positive("--limit", args.limit))
    quiet = args.json is not None and str(args.json) == "-"
    collected = collect_logits(bundle, images, None if quiet else _progress, missing)
    scored = score_exits(collected, criterion, bundle.criterion_parameters())
    costs = costs_of(bundle.stages, missing)
    evaluation = summarise(scored, costs, criterion, thresholds)
    if args.audits is not None:
        write_audits(args.audits, criterion, scored, costs, images.labels)
    if args.json is not None:
        _write_json(args.json, _as_json(bundle, images, evaluation, scored if args.per_input else None))
    if not quiet:
        print(f"{bundle.name} {bundle.revision} on {images.source}, {counted(len(images), 'input')}")
        without = f", without {_branches(missing)}" if missing else ""
        print(f"{criterion} at {_listed(thresholds)}{without}")
        print(_table(evaluation))
    return 0


def _parse_missing(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")})) if text is not None else ()
    except ValueError:
        raise ConfigError(
            f"--missing {text}: not a list of branches", "separate numbers by commas, as in 0,2"
        ) from None


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _positive(option: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ConfigError(f"{option}: {value} is out of range", "choose at least 1")
    return value


def _exit_rule(
    bundle: Bundle, criterion: str | None, thresholds: str | None, missing: tuple[int, ...]
) -> tuple[str, tuple[float, ...]]:
    chosen = criterion or bundle.criterion
    if thresholds is None and chosen != bundle.criterion:
        raise ConfigError(
            f"--criterion {chosen}: the thresholds of {bundle.name!r} are for {bundle.criterion}",
            "give --thresholds too",
        )
    bundle.check_criterion(chosen)
    values = thresholds_in_force(bundle, missing) if thresholds is None else _parse_thresholds(thresholds)
    check_thresholds(chosen, values, len(bundle.stages))
    return chosen, values


def _parse_thresholds(text: str) -> tuple[float, ...]:
    try:
        return tuple(parse_threshold(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--thresholds {text}: not a list of numbers", "separate them by commas, as in 0.9,0.8 or 0.9,never"
        ) from None


def _evaluation_data(bundle: Bundle, data: Path | None, split: Split | None) -> LabelledImages:
    if data is not None and is_divided(data):
        return load_split(data, split or "test")
    if split is not None:
        raise DataError(
            f"--split {split}: only a file of JPEG images or a folder of CIFAR-10's binary version has splits",
            "give one of these as --data",
        )
    if data is None:
        shipped = _SAMPLES / f"{bundle.name}.npz"
        if not shipped.is_file():
            raise DataError(f"no samples ship with {bundle.name!r}", "give --data FILE_OR_DIR")
        return dataclasses.replace(load_samples(shipped), source="the shipped samples (part of the test set)")
    if data.is_dir():
        return load_idx_set(data, "t10k", f"the test set in {data}")
    if not data.exists():
        raise DataError(f"--data {data}: does not exist", FASHION_HINT if bundle.name == "fashion" else CHECK_PATH)
    return load_samples(data)


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
    """What boards compute and receive where stages are wide; for a chain the other figures show that already."""
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
    bundle: Bundle, images: LabelledImages, evaluation: Evaluation, scored: ExitScores | None
) -> dict[str, Any]:
    document: dict[str, Any] = {"model": bundle.name, "revision": bundle.revision, "data": images.source}
    document |= dataclasses.asdict(evaluation)
    document["thresholds"] = plain_thresholds(evaluation.thresholds)
    if scored is not None:
        document["results"] = _per_input(bundle, images, scored, evaluation.thresholds)
    return document


def _finite_or_none(values: Sequence[float]) -> list[float | None]:
    """JSON has no infinity: null is a score that reaches no threshold."""
    return [value if math.isfinite(value) else None for value in values]


def _per_input(
    bundle: Bundle, images: LabelledImages, scored: ExitScores, thresholds: Sequence[float]
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
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _write_json(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=None if "results" in document else 2) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written ({error.strerror})", CHECK_PATH) from error


def _build(args: argparse.Namespace) -> int:
    recipe = get_recipe(args.recipe)
    bundle = _build_wide(args, recipe) if isinstance(recipe, WideRecipe) else _build_chain(args, recipe)
    print(f"{bundle.name} {bundle.revision} written to {find_bundle(bundle.path)}")
    print(_table(_from_manifest(bundle)))
    return 0


def _build_chain(args: argparse.Namespace, recipe: Recipe) -> Bundle:
    for option in ("branches", "variant"):
        if getattr(args, option) is not None:
            raise ConfigError(f"--{option}: {recipe.name} is not a wide recipe", "leave it out")
    given = {"seed": args.seed, "epochs": _positive("--epochs", args.epochs)}
    settings = dataclasses.replace(recipe.settings, **{key: value for key, value in given.items() if value is not None})
    data = args.data or DEFAULT_FASHION_DIR
    if not data.is_dir():
        raise DataError(f"--data {data}: no such folder", FASHION_HINT)
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
        raise ConfigError(f"--samples: images of {recipe.data_name} may not be redistributed", "leave it out")
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
        what = "--data: missing" if data is None else f"--data {data}: no such file"
        raise DataError(what, f"give {recipe.data_hint}")
    return ImageSets(lambda split: load_split(data, split, recipe.validation))


def _report(args: argparse.Namespace) -> int:
    recipe = get_recipe(args.recipe)
    if not isinstance(recipe, WideRecipe):
        wide = ", ".join(name for name in recipe_names() if isinstance(get_recipe(name), WideRecipe))
        raise ConfigError(f"{recipe.name} is not a wide recipe, so there is no report", f"name one of {wide}")
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
        f"{counted(len(report.networks), 'network')} evaluated, {len(report.absent)} missing; see "
        f"{args.out / recipe.name}.md and .json"
    )
    return 0


def _whole_numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        what = f"{option} {text}: not a list of whole numbers"
        raise ConfigError(what, "separate them by commas, as in 1,2") from None


_COMMANDS = {"list": _list, "show": _show, "verify": _verify, "evaluate": _evaluate, "build": _build, "report": _report}
