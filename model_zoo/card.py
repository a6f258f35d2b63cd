"""A bundle as a card for people to read: its inputs, classes, stages, costs and accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distree.bundle.frontends import make_frontend
from distree.bundle.loading import Bundle, known_bundles, load_bundle, zoo_folder
from distree.bundle.manifest import (
    BranchSpec,
    DataUse,
    InputSpec,
    Manifest,
    Preprocess,
    SplitFrom,
    StageSpec,
    TensorSpec,
)
from distree.bundle.preprocessing import FULL_SCALE
from distree.errors import BundleError
from distree.formatting import thresholds_text
from model_zoo.costs import FUSER, costs_of, tensor_bytes
from model_zoo.evaluation import Evaluation, with_boards

_WIDTH = 12
_WRAP = 108
_FEW_LABELS = 24


def list_bundles() -> Iterator[str]:
    """Yield a line for each bundle that has a name, the shipped ones first; a broken one is listed as such."""
    for path in known_bundles():
        whose = "shipped" if path.parent == zoo_folder() else "yours"
        try:
            bundle = load_bundle(path, verify=())
        except BundleError as error:
            yield f"{path.name}  {whose}  cannot be read: {str(error).splitlines()[0]}"
            continue
        size = f"{_bytes_of(bundle) / 1000:.0f} kB"
        yield f"{path.name}  {len(bundle.stages)} stages  {size}  {whose}  {bundle.manifest.description}"


def _bytes_of(bundle: Bundle) -> int:
    return sum(stage.bytes + sum(branch.bytes for branch in stage.branches) for stage in bundle.stages)


def card(bundle: Bundle) -> Iterator[str]:
    """Yield the lines of a bundle's card."""
    manifest = bundle.manifest
    yield f"{bundle.name}: {manifest.description}"
    yield _row("revision", f"{bundle.revision}, {_bytes_of(bundle) / 1000:.0f} kB of segments, in {bundle.path}")
    yield _row("licence", manifest.license)
    yield _row("input", _input(manifest))
    yield from (_row("", line) for line in _files(manifest))
    yield from _wrapped("classes", _labels(bundle.labels))
    for k, stage in enumerate(bundle.stages):
        yield from _stage_rows(k, stage)
    yield _row(
        "exits",
        f"{bundle.criterion} at {thresholds_listed(bundle.thresholds)}" if bundle.thresholds else "only the last one",
    )
    for masked in manifest.exits.masked:
        yield _row("", f"without {branches_text(masked.missing)}: at {thresholds_listed(masked.thresholds)}")
    if manifest.split_from is not None:
        yield from _split_rows(manifest.split_from)
    yield from measured_lines(bundle)


def _row(what: str, text: str) -> str:
    return f"{what:<{_WIDTH}}{text}"


def _wrapped(what: str, words: Sequence[str]) -> Iterator[str]:
    line = ""
    for word in words:
        if line and len(line) + len(word) > _WRAP:
            yield _row(what, line.rstrip())
            what, line = "", ""
        line += f"{word} "
    yield _row(what, line.rstrip())


def _labels(labels: Sequence[str]) -> list[str]:
    shown = labels if len(labels) <= _FEW_LABELS else labels[:_FEW_LABELS]
    words = [f"{label}," for label in shown[:-1]] + [shown[-1]]
    if len(labels) > len(shown):
        words[-1] += ","
        words.append(f"… {len(labels)} in all")
    return [f"{len(labels)}:", *words]


def _input(manifest: Manifest) -> str:
    given, tensor = manifest.input, _tensor(manifest.stages[0].input)
    return f"{_shape(given.shape)} {given.dtype}, {_preprocessing(manifest.preprocess, given)}, as {tensor}"


def _files(manifest: Manifest) -> Iterator[str]:
    """Say how files are read: images, and recordings."""
    spec, rules = manifest.input, manifest.preprocess
    if spec.is_image:
        yield f"image files: other aspect ratios: {rules.resize}; transparent parts: {rules.background}"
    elif spec.is_window:
        parts = [f"at {spec.rate_hz:,g} Hz"] if spec.rate_hz is not None else []
        parts += [f"channels {', '.join(spec.channels)}"] if spec.channels else []
        parts += [f"a window every {rules.window.hop} samples"] if rules.window.hop is not None else []
        if parts:
            yield f"recordings: {'; '.join(parts)}"


def _preprocessing(preprocess: Preprocess, spec: InputSpec) -> str:
    scaled = f"value / {FULL_SCALE[spec.dtype]:g}" if spec.dtype in FULL_SCALE else "value"
    turned = ", blue first" if preprocess.channel_order == "bgr" else ""
    if preprocess.frontend.kind != "raw":
        features = make_frontend(preprocess.frontend, spec.shape, spec.rate_hz).shape
        scaled = f"{preprocess.frontend.kind} of {_shape(features)}"
    if preprocess.range is not None:
        return f"{'already quantised' if preprocess.range == 'quantised' else f'values {preprocess.range}'}{turned}"
    if set(preprocess.mean) <= {0.0} and set(preprocess.std) <= {1.0}:
        return f"{scaled}{turned}"
    return f"({scaled} - {_per_channel(preprocess.mean)}) / {_per_channel(preprocess.std)}{turned}"


def _per_channel(values: Sequence[float]) -> str:
    listed = ", ".join(f"{value:.6g}" for value in values)
    return listed if len(values) == 1 else f"[{listed}]"


def _tensor(spec: TensorSpec) -> str:
    return f"{_shape(spec.shape[1:])} {spec.dtype}"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape) or "one value"


def _stage_rows(k: int, stage: StageSpec) -> Iterator[str]:
    head = "fusion" if stage.branches else "head"
    cost = f"{stage.macs.trunk / 1e6:.2f} MMACs"
    if stage.macs.exit:
        cost += (
            f" + {head} {stage.macs.exit / 1e6:.2f}" if not stage.branches else f" + exit {stage.macs.exit / 1e6:.2f}"
        )
    yield _row(f"stage {k}", f"{stage.segment}, {stage.bytes / 1000:.0f} kB, {cost}{_sends(stage.features)}")
    for b, branch in enumerate(stage.branches):
        yield _row("", _branch(b, branch))


def _branch(b: int, branch: BranchSpec) -> str:
    cost = f"{branch.macs.trunk / 1e6:.2f} MMACs + embedding {branch.macs.exit / 1e6:.2f}"
    sends = f", sends {tensor_bytes(branch.embedding):,} bytes ({_tensor(branch.embedding)})"
    return f"branch {b}: {branch.segment}, {branch.bytes / 1000:.0f} kB, {cost}{sends}"


def _sends(features: TensorSpec | None) -> str:
    return "" if features is None else f", sends {tensor_bytes(features):,} bytes ({_tensor(features)})"


def _split_rows(origin: SplitFrom) -> Iterator[str]:
    yield _row(
        "cut from", f"{origin.file}, SHA-256 {origin.sha256[:12]}…, after operators {', '.join(map(str, origin.after))}"
    )
    for k, head in enumerate(origin.heads):
        yield _row(f"head {k}", head)
    yield _row("head data", "; ".join(map(_use, origin.heads_from)))
    promise = origin.promise
    held = "99 % bound" if promise.rule == "bound" else "mean"
    yield _row(
        "thresholds",
        f"chosen on {_use(origin.thresholds_from)}: {held} of the drop at most {_points(promise.max_drop)}",
    )
    yield _row(
        "",
        f"on these inputs: {100 * promise.saved:.1f} % of the compute saved, drop {100 * promise.drop:.2f} points "
        f"(99 % bound {100 * promise.drop_bound:.2f})",
    )
    if origin.tested_on is not None:
        yield _row("tested on", f"{_use(origin.tested_on)}, opened once")


def _use(use: DataUse) -> str:
    known = "labelled" if use.labelled else "unlabelled: the whole network's answers were used"
    return f"{use.data} ({use.inputs:,} inputs, {known}{', used to train the network' if use.seen else ''})"


def branches_text(missing: Sequence[int]) -> str:
    """Name branches.

    >>> branches_text((0,)), branches_text((0, 2))
    ('branch 0', 'branches 0, 2')
    """
    return f"branch{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"


def thresholds_listed(thresholds: Sequence[float]) -> str:
    """Write thresholds separated by commas, each with at most six digits."""
    return ", ".join(thresholds_text([threshold]) for threshold in thresholds)


# ---------------------------------------------------------------- figures


def measured_lines(bundle: Bundle) -> Iterator[str]:
    """Yield what was measured when the bundle was made; if nothing was, a line that says so."""
    measured = bundle.manifest.measured
    if measured is None:
        yield _row(
            "measured", "nothing, since no labelled inputs were given; measure it on yours with distree zoo evaluate"
        )
        return
    yield _row("measured", f"on {measured.data}")
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
    yield figures(with_boards(evaluation, costs_of(bundle.stages)))


def figures(evaluation: Evaluation) -> str:
    """Lay out accuracy, shares and costs of an evaluation, in lines."""
    exits = len(evaluation.accuracy)
    rows = [
        ("", (*(f"exit {k}" for k in range(exits)), "early exit")),
        ("accuracy %", _percent((*evaluation.accuracy, evaluation.accuracy_at_thresholds))),
        ("share %", _percent(evaluation.exit_share)),
    ]
    drop = 100 * (evaluation.accuracy[-1] - evaluation.accuracy_at_thresholds)
    mean, strict, loose = (
        evaluation.macs_per_input,
        evaluation.macs_no_early_exit_strict,
        evaluation.macs_no_early_exit_loose,
    )
    return "\n".join(
        [
            *(_row(what, "".join(f"{value:>12}" for value in values)) for what, values in rows),
            f"drop compared with the last exit: {drop:.2f} points",
            f"MMACs per input: {mean / 1e6:.3f}, including exit heads",
            f"  {mean / strict:.3f} of {strict / 1e6:.3f} without early exits (strict: only the last head)",
            f"  {mean / loose:.3f} of {loose / 1e6:.3f} with all exits computed (loose)",
            f"feature bytes sent per input: {evaluation.feature_bytes_per_input:.0f}",
            *_lines_of_wide(evaluation),
        ]
    )


def _lines_of_wide(evaluation: Evaluation) -> list[str]:
    """What boards compute and receive if stages are wide; for a chain the other figures already say it."""
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


def _points(share: float) -> str:
    """Write a share as percentage points.

    >>> _points(0.01), _points(0.005)
    ('1 point', '0.5 points')
    """
    text = f"{100 * share:.3g}"
    return f"{text} point{'' if text == '1' else 's'}"
