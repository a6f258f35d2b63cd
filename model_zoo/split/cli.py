"""`distree zoo split`: its options, its output, and where the bundle goes."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path

from distree.bundle.loading import load_bundle
from distree.errors import CHECK_PATH, ConfigError
from distree.regular_files import read_regular
from distree.topics import check_id, is_id
from model_zoo.errors import DataError
from model_zoo.progress import Progress
from model_zoo.publishing import own_place, published
from model_zoo.split import report
from model_zoo.split.asked import Asked
from model_zoo.split.declared import load_declared
from model_zoo.split.input_range import RANGES
from model_zoo.split.supervision import Teller, Terminal, supervise
from model_zoo.split.thresholds import RULES

EXAMPLE = (
    "distree zoo split keywords.tflite --list\n"
    "  distree zoo split keywords.tflite --data recordings.npz --labels yes,no,up,down\n"
    "  distree zoo split pictures.tflite --data held-back.npz --unlabelled train.npz --seen --test test.npz"
)


def add_options(split: argparse.ArgumentParser) -> None:
    """Add the options of `distree zoo split`."""
    split.add_argument("model", type=Path, metavar="MODEL.tflite", help="a whole classifier, as its converter wrote it")
    split.add_argument(
        "--list", action="store_true", help="only list where the network can be cut and what each cut costs"
    )
    split.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="inputs, with labels if you have them, in any form that `zoo evaluate` reads",
    )
    split.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help="for sound and motion: a YAML file with the keys input and preprocess of bundle.yaml",
    )
    split.add_argument(
        "--labels", metavar="A,B,…", help="class names in the network's order, or a file with one name per line"
    )
    split.add_argument(
        "--stages", type=int, metavar="N", help="number of stages (default: 3, or 2 if only one cut saves anything)"
    )
    split.add_argument("--after", metavar="OP,…", help="cut after these operators, numbered as in --list")
    split.add_argument(
        "--max-drop", default="1%", metavar="SHARE", help="how much accuracy the exits may cost (default: 1%%)"
    )
    split.add_argument(
        "--rule",
        choices=RULES,
        default=RULES[0],
        help="what must stay within --max-drop: the upper 99 %% bound of the drop, or its mean (default: %(default)s)",
    )
    split.add_argument("--unlabelled", type=Path, metavar="FILE", help="more inputs, used only to train the exit heads")
    split.add_argument(
        "--test", type=Path, metavar="FILE", help="labelled inputs, used once at the end to measure the bundle"
    )
    split.add_argument("--seen", action="store_true", help="say that the network was trained on the inputs in --data")
    split.add_argument(
        "--range",
        metavar="R",
        help=f"values the network was trained on: {', '.join(RANGES)}; add ,bgr if blue comes first",
    )
    split.add_argument(
        "--hidden",
        type=int,
        default=128,
        metavar="N",
        help="width of the exit heads' hidden layer (default: %(default)s)",
    )
    split.add_argument("--seed", type=int, default=1, metavar="N", help="random seed (default: %(default)s)")
    split.add_argument("--name", metavar="ID", help="name of the bundle (default: from the file's name)")
    split.add_argument(
        "--description", default="", metavar="TEXT", help="one line about the network (default: its classes and sizes)"
    )
    split.add_argument("--licence", default="not stated", metavar="TEXT", help="licence of the network's weights")
    split.add_argument(
        "--force", action="store_true", help="write the bundle even if it saves nothing, and replace an existing one"
    )
    split.add_argument("--out", type=Path, metavar="DIR", help="folder of the bundle (default: among your own bundles)")


def run(args: argparse.Namespace) -> int:
    """Carry out `distree zoo split`; return the exit status."""
    asked = _asked(args)
    screen = Terminal(Progress(sys.stderr))
    if asked.list_only:
        supervise(lambda tell: _split(asked, Path(), tell), str(asked.model), screen)
        return 0
    named = args.out is None
    out = own_place(asked.name, "choose another one by --name") if named else args.out
    with published(out, replace=asked.force) as folder:
        supervise(lambda tell: _split(asked, folder, tell), str(asked.model), screen)
    bundle = load_bundle(out)
    print(f"{bundle.name} {bundle.revision} written to {out}")
    print(report.next_step(bundle.name if named else str(out)))
    return 0


def _split(asked: Asked, folder: Path, tell: Teller) -> None:
    # Imported only in the child: reading the schema takes as long as starting Python.
    from model_zoo.split.job import split_network

    split_network(asked, folder, tell)


def _asked(args: argparse.Namespace) -> Asked:
    if args.data is None and not args.list:
        raise ConfigError(
            "--data is missing: exit heads need inputs to learn from",
            "give --data FILE, or --list to see where the network can be cut",
        )
    for path in (args.data, args.unlabelled, args.test, args.input):
        if path is not None and not path.exists():
            raise DataError(f"{path}: no such file", CHECK_PATH)
    if args.stages is not None and args.after is not None:
        raise ConfigError("--stages and --after cannot be combined", "give only one of them")
    if not 1 <= args.hidden <= 4096:
        raise ConfigError(f"--hidden: {args.hidden} is out of range", "choose 1 to 4096")
    if args.seed < 0:
        raise ConfigError(f"--seed: {args.seed} is out of range", "choose 0 or more")
    return Asked(
        model=args.model,
        name=_name(args.model) if args.name is None else check_id(args.name, "--name"),
        data=args.data,
        declared=None if args.input is None else load_declared(args.input),
        unlabelled=args.unlabelled,
        test=args.test,
        labels=labels_of(args.labels),
        list_only=args.list,
        stages=args.stages,
        after=_operators(args.after),
        max_drop=_share(args.max_drop),
        rule=args.rule,
        seen=args.seen,
        value_range=args.range,
        hidden=args.hidden,
        seed=args.seed,
        licence=args.licence,
        description=args.description,
        force=args.force,
    )


def _name(model: Path) -> str:
    """Make an id from a file's name.

    >>> _name(Path("My_Model v2.tflite"))
    'my-model-v2'
    """
    made = re.sub(r"[^a-z0-9]+", "-", model.stem.lower()).strip("-")[:32].rstrip("-")
    return made if is_id(made) else "network"


MAX_LABELS_BYTES = 1 << 20


def labels_of(text: str | None) -> tuple[str, ...]:
    """Return the class names that --labels gives: a list of them, or a file with one per line."""
    if text is None:
        return ()
    path = Path(text)
    if "," not in text and path.is_file():
        try:
            lines = read_regular(path, MAX_LABELS_BYTES).decode("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"--labels {path}: cannot be read ({why})", "write one name per line") from None
        return tuple(line.strip() for line in lines if line.strip())
    return tuple(name.strip() for name in text.split(","))


def _operators(text: str | None) -> tuple[int, ...]:
    try:
        return () if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--after {text}: not a list of whole numbers", "give operator numbers from --list, as in 3,7"
        ) from None


def _share(text: str) -> float:
    """Read a share of a whole.

    >>> _share("1%"), _share("0.5 %"), _share("0.02")
    (0.01, 0.005, 0.02)
    """
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100.0 if number != text.strip() else 1.0)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"--max-drop {text}: not a share between 0 and 1", "write it as 0.01 or 1%")
    return value
