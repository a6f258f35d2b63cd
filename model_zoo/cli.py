"""`distree zoo`: list, show, verify, evaluate, split, pack and build bundles, and report on wide recipes."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from distree.bundle.loading import Bundle, find_bundle, load_bundle
from distree.criteria import CRITERIA
from distree.errors import CHECK_PATH, ConfigError, DistreeError
from distree.exits_taken import exits_taken
from distree.formatting import counted
from distree.printable import printable_lines
from distree.thresholds import parse_threshold, plain_thresholds
from model_zoo.build.finish import ImageSets
from model_zoo.card import branches_text, card, figures, list_bundles, measured_lines, thresholds_listed
from model_zoo.data import (
    DEFAULT_FASHION_DIR,
    FASHION_HINT,
    LabelledExamples,
    Split,
    about_samples,
    load_examples,
    load_split,
    shipped_samples,
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
    write_audits,
)
from model_zoo.packing import SUFFIX, pack, unpack
from model_zoo.progress import Progress
from model_zoo.recipes import (
    Recipe,
    WideRecipe,
    get_recipe,
    get_whole_recipe,
    recipe_names,
    whole_recipe_names,
)
from model_zoo.split.supervision import Teller, Terminal, supervise
from model_zoo.training.plans import VARIANTS, WideSettings
from model_zoo.verification import check_golden


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands of `distree zoo` to its parser."""
    parser.epilog = "example: distree zoo show fashion"
    commands = parser.add_subparsers(dest="zoo_command", metavar="COMMAND", required=True)
    _command(
        commands,
        "list",
        "list the bundles that you can call by name: the shipped ones and your own",
        "distree zoo list",
    )
    show = _command(
        commands, "show", "show a bundle's inputs, classes, stages, costs and accuracy", "distree zoo show fashion"
    )
    show.add_argument("bundle", metavar="NAME", help="name of an installed bundle, or a folder with a bundle.yaml")
    verify = _command(
        commands,
        "verify",
        "check a bundle's hashes and golden vectors on this machine",
        "distree zoo verify fashion",
    )
    verify.add_argument("bundle", metavar="NAME_OR_PATH", help="name of an installed bundle, or its folder")
    _add_evaluate(commands)
    _add_split(commands)
    _add_packing(commands)
    _add_build(commands)
    _add_train(commands)
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
        help=".npz or .npy arrays, a folder of images, WAV or CSV files for each class, a CSV file, idx files, or "
        "CIFAR-10's binary version: see docs/howto/data.md (default: the shipped samples)",
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


def _add_split(commands: Any) -> None:
    from model_zoo.split.cli import EXAMPLE, add_options

    add_options(
        _command(
            commands, "split", "cut a trained .tflite classifier into stages with early exits, as a bundle", EXAMPLE
        )
    )


def _add_packing(commands: Any) -> None:
    packing = _command(commands, "pack", "pack a bundle into one file", "distree zoo pack keywords")
    packing.add_argument("bundle", metavar="NAME_OR_PATH", help="name of a bundle, or its folder")
    packing.add_argument("--out", type=Path, metavar="FILE", help=f"default: NAME{SUFFIX} in this folder")
    unpacking = _command(
        commands,
        "unpack",
        "verify a packed bundle and add it to your own bundles",
        "distree zoo unpack keywords.distree --revision 4f1c2a90b7de",
    )
    unpacking.add_argument("file", type=Path, metavar=f"FILE{SUFFIX}", help="a file written by `distree zoo pack`")
    unpacking.add_argument("--revision", metavar="R", help="refuse any other revision")
    unpacking.add_argument("--force", action="store_true", help="replace a bundle of the same name")
    unpacking.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to unpack into (default: among your own bundles)"
    )


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


def _add_train(commands: Any) -> None:
    train = _command(
        commands,
        "train",
        "train a whole network by a recipe, ready for distree zoo split (needs the extra 'zoo')",
        "distree zoo train spoken-digits --data recordings --out digits",
    )
    train.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(whole_recipe_names())}")
    train.add_argument("--data", type=Path, required=True, help="the data set, as downloaded")
    train.add_argument("--out", type=Path, help="folder to write to (default: ./RECIPE)")
    train.add_argument("--seed", type=int, help="random seed (default: the recipe's)")
    train.add_argument("--epochs", type=int, help="passes over the training inputs (default: the recipe's)")
    train.add_argument(
        "--work", type=Path, help="folder of checkpoints, to resume after an interruption (default: OUT.work)"
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
        print(f"distree zoo {args.zoo_command}: {printable_lines(str(error))}", file=sys.stderr)
        return 2


def _list(_: argparse.Namespace) -> int:
    for line in list_bundles():
        print(line)
    return 0


def _show(args: argparse.Namespace) -> int:
    for line in card(load_bundle(args.bundle, verify=())):
        print(line)
    return 0


def _verify(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle)
    # A bundle may come from anywhere, and the interpreter crashes on some damaged segments.
    supervise(functools.partial(_check_golden, bundle), f"bundle {bundle.name}", Terminal(Progress(sys.stderr)))
    return 0


_VERIFY_S = 600.0


def _check_golden(bundle: Bundle, tell: Teller) -> None:
    tell.phase("running the golden vectors", _VERIFY_S)
    report = check_golden(bundle)
    segments = len(bundle.stages) + sum(bundle.branch_counts)
    tell.print(f"{bundle.name} {bundle.revision}: {segments} segments, hashes and golden vectors are correct")
    tell.print(f"{report.runtime}: off by at most {report.worst_steps:.3g} steps, {report.tolerance} allowed")


def _evaluate(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle)
    missing = _parse_missing(args.missing)
    check_missing(bundle, missing)
    criterion, thresholds = _exit_rule(bundle, args.criterion, args.thresholds, missing)
    images = _evaluation_data(bundle, args.data, args.split, _positive("--limit", args.limit))
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
        without = f", without {branches_text(missing)}" if missing else ""
        print(f"{criterion} at {thresholds_listed(thresholds)}{without}")
        print(figures(evaluation))
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


def _evaluation_data(bundle: Bundle, data: Path | None, split: Split | None, limit: int | None) -> LabelledExamples:
    manifest, shipped = bundle.manifest, shipped_samples(bundle.name)
    path = data or shipped
    if path is None:
        raise DataError(f"no samples ship with {bundle.name!r}", "give --data FILE_OR_DIR")
    if data is not None and not data.exists():
        raise DataError(f"--data {data}: does not exist", FASHION_HINT if bundle.name == "fashion" else CHECK_PATH)
    examples = load_examples(
        path,
        spec=manifest.input,
        preprocess=manifest.preprocess,
        labels=manifest.labels,
        split=split,
        limit=limit,
    )
    if data is None and examples.labels is None:
        raise DataError(f"the samples that ship with {bundle.name!r} have no labels", "give --data FILE_OR_DIR")
    found = examples.labelled()
    if data is None:
        return dataclasses.replace(found, source=f"the shipped samples ({about_samples(path)})")
    return found


def _as_json(
    bundle: Bundle, images: LabelledExamples, evaluation: Evaluation, scored: ExitScores | None
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
        raise ConfigError(f"--json {path}: cannot be written ({error.strerror})", CHECK_PATH) from error


def _build(args: argparse.Namespace) -> int:
    recipe = get_recipe(args.recipe)
    bundle = _build_wide(args, recipe) if isinstance(recipe, WideRecipe) else _build_chain(args, recipe)
    print(f"{bundle.name} {bundle.revision} written to {find_bundle(bundle.path)}")
    for line in measured_lines(bundle):
        print(line)
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


def _train(args: argparse.Namespace) -> int:
    recipe = get_whole_recipe(args.recipe)
    if not args.data.exists():
        raise DataError(f"--data {args.data}: does not exist", f"give {recipe.data_hint}")
    given = {"seed": args.seed, "epochs": _positive("--epochs", args.epochs)}
    schedule = dataclasses.replace(recipe.schedule, **{key: value for key, value in given.items() if value is not None})
    try:
        from model_zoo.build.whole import DECLARED, WHOLE, train_whole
    except ImportError as error:
        raise needs_zoo("training", error) from error
    out = args.out or Path(recipe.name)
    work, progress = args.work or out.with_name(out.name + ".work"), Progress(sys.stderr)
    whole = train_whole(recipe, schedule, args.data, out, work, progress.line, progress.step)
    macs = whole.stage.macs.trunk + whole.stage.macs.exit
    print(
        f"{out / WHOLE}: {whole.stage.bytes / 1000:.0f} kB, {macs / 1e6:.3f} MMACs, "
        f"{100 * whole.accuracy:.2f} % accuracy on the validation inputs"
    )
    print(
        f"next: distree zoo split {out / WHOLE} --input {out / DECLARED} --data {out}/validation.npz "
        f"--unlabelled {out}/heads.npz --test {out}/test.npz --after {','.join(map(str, recipe.after))} "
        f"--name {recipe.name} --licence {recipe.licence} --description {shlex.quote(recipe.description)}"
    )
    return 0


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


def _split(args: argparse.Namespace) -> int:
    from model_zoo.split.cli import run as split

    return split(args)


def _pack(args: argparse.Namespace) -> int:
    bundle = load_bundle(args.bundle)
    path = args.out or Path(f"{bundle.name}{SUFFIX}")
    size = pack(bundle, path)
    print(f"{bundle.name} {bundle.revision} packed into {path}, {size / 1000:.0f} kB")
    print(f"next: distree zoo unpack {path} --revision {bundle.revision}, on each board")
    return 0


def _unpack(args: argparse.Namespace) -> int:
    bundle = unpack(args.file, args.out, expected=args.revision, replace=args.force)
    print(f"{bundle.name} {bundle.revision} unpacked to {bundle.path}, all hashes verified")
    return 0


_COMMANDS = {
    "list": _list,
    "show": _show,
    "verify": _verify,
    "evaluate": _evaluate,
    "split": _split,
    "pack": _pack,
    "unpack": _unpack,
    "build": _build,
    "train": _train,
    "report": _report,
}
