"""Makes the bundles `tiny-wide` and `tiny-mixed`, which tests run on; needs the extra `zoo`.

    PYTHONPATH=. python tests/data/make_bundles.py [FOLDER]

Weights are random but for their seed, and scaled on random images, so that answers differ from input to input. The
labels of those images are what the last exit says of them. Thresholds are such that every exit is taken in a fair
share.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from distree.bundle.loading import Bundle, load_bundle
from distree.bundle.manifest import (
    Exits,
    Golden,
    InputSpec,
    Manifest,
    MeasuredFigures,
    Preprocess,
    SplitFigures,
    StageSpec,
    Trained,
)
from distree.messages.plan import MaskedThresholds
from distree.thresholds import NEVER
from model_zoo.build.export import export_parts, export_wide
from model_zoo.build.manifest import GOLDEN_FILE, write_golden, write_manifest, write_parameters
from model_zoo.build.segments import missing_sets
from model_zoo.data import LabelledExamples
from model_zoo.evaluation import Collector, class_means, costs_of, score_exits, summarise
from model_zoo.verification import check_golden

LABELS = ("north", "east", "south", "west")
SHAPE = (8, 8, 3)
CRITERION = "max_softmax"
IMAGES = 600
SHARES = (1 / 3, 1 / 2, 1 / 2)
"""Of the inputs that reach an exit, how many are to leave there."""


def random_images(count: int = IMAGES) -> LabelledExamples:
    """Random images as tests make them, not labelled yet."""
    images = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return LabelledExamples(images, np.zeros(count, np.int64), np.arange(count), "random images")


class Head(nn.Module):
    """From a map (n, c, 4, 4) to values (n, `values`)."""

    def __init__(self, channels: int, values: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        self.values = nn.Linear(channels * 4, values)

    def forward(self, x):
        return self.values(torch.flatten(self.pool(x), 1))


class Part(nn.Module):
    """A plain stage (`name` logits) or a branch of a wide one (`name` embedding), channels last at both ends."""

    def __init__(self, channels: tuple[int, int], stride: int, name: str, values: int, last: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(*channels, 3, stride, padding=1), nn.ReLU())
        self.exit = Head(channels[1], values)
        self.name = name
        self.last = last

    def forward(self, x):
        features = self.trunk(x.permute(0, 3, 1, 2))
        given = {self.name: self.exit(features)}
        return given if self.last else {"features": features.permute(0, 2, 3, 1), **given}


class Fusion(nn.Module):
    """A fusion head; with `feature_shape` (h, w, c) it gives features for a plain stage too."""

    def __init__(self, branches: int, values: int, feature_shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(values, 6) for _ in range(branches))
        self.logits = nn.Linear(6, len(LABELS))
        self.feature_shape = feature_shape
        if feature_shape is not None:
            self.spread = nn.Linear(6, int(np.prod(feature_shape)))

    def forward(self, *embeddings):
        mixed = self.hidden[0](embeddings[0])
        for layer, embedding in zip(self.hidden[1:], embeddings[1:], strict=True):
            mixed = mixed + layer(embedding)
        mixed = torch.relu(mixed)
        given = {"logits": self.logits(mixed)}
        if self.feature_shape is not None:
            given["features"] = torch.relu(self.spread(mixed)).reshape(-1, *self.feature_shape)
        return given


class Branch(nn.Module):
    """One branch: its stages in depth order."""

    def __init__(self, *stages: Part) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)


class Wide(nn.Module):
    """Branches side by side, and a fusion head for each of their exits."""

    def __init__(self, branches: list[Branch], fusions: list[Fusion]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.fusions = nn.ModuleList(fusions)


def tiny_wide() -> Wide:
    """Three wide stages of two branches, embeddings of six values."""
    branches = [
        Branch(
            Part((3, 4), 2, "embedding", 6), Part((4, 4), 1, "embedding", 6), Part((4, 6), 1, "embedding", 6, last=True)
        )
        for _ in range(2)
    ]
    return Wide(branches, [Fusion(2, 6) for _ in range(3)])


def tiny_mixed() -> list[nn.Module]:
    """A plain stage, two wide ones of three branches, embeddings of four values, and a plain one."""
    branches = [Branch(Part((4, 4), 1, "embedding", 4), Part((4, 4), 1, "embedding", 4, last=True)) for _ in range(3)]
    wide = Wide(branches, [Fusion(3, 4), Fusion(3, 4, (4, 4, 4))])
    return [Part((3, 4), 2, "logits", 4), wide, Part((4, 6), 1, "logits", 4, last=True)]


def settle(parts: list[nn.Module], inputs: torch.Tensor) -> None:
    """Scale every layer so that each of its outputs has mean 0 and deviation 1 on the inputs, or 2 for logits."""
    hooks = [
        layer.register_forward_hook(_scaled)
        for part in parts
        for layer in part.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        for part in parts:
            inputs = _flow(part, inputs).get("features")
    for hook in hooks:
        hook.remove()


def _scaled(layer: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
    channel = 1 if output.ndim == 4 else output.ndim - 1
    over = tuple(axis for axis in range(output.ndim) if axis != channel)
    wanted = 2.0 if output.shape[channel] == len(LABELS) and output.ndim == 2 else 1.0
    factor = wanted / output.std(over)
    layer.bias.copy_((layer.bias - output.mean(over)) * factor)
    layer.weight.mul_(factor.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    shape = [-1 if axis == channel else 1 for axis in range(output.ndim)]
    return (output - output.mean(over).reshape(shape)) * factor.reshape(shape)


def _flow(part: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    if not isinstance(part, Wide):
        return part(inputs)
    flowing, given = [inputs] * len(part.branches), {}
    for depth, fusion in enumerate(part.fusions):
        outputs = [branch.stages[depth](x) for branch, x in zip(part.branches, flowing, strict=True)]
        given = fusion(*(output["embedding"] for output in outputs))
        flowing = [output.get("features") for output in outputs]
    return given


def normalised(images: LabelledExamples) -> torch.Tensor:
    return torch.from_numpy((images.inputs.astype(np.float32) / np.float32(255.0) - 0.5) / 0.5)


def draft(name: str, description: str, stages: tuple[StageSpec, ...], folder: Path) -> Bundle:
    manifest = Manifest(
        format=1,
        name=name,
        description=description,
        license="Apache-2.0",
        labels=LABELS,
        input=InputSpec(dtype="uint8", shape=SHAPE),
        preprocess=Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3, layout="nhwc"),
        stages=stages,
        exits=Exits(criterion=CRITERION, thresholds=(NEVER,) * (len(stages) - 1)),
        golden=Golden(file=GOLDEN_FILE, sha256="", tolerance=2),
        measured=MeasuredFigures(
            data="nothing",
            accuracy=(),
            accuracy_at_thresholds=0.0,
            exit_share=(),
            macs_per_input=0.0,
            macs_no_early_exit_strict=0,
            macs_no_early_exit_loose=0,
            feature_bytes_per_input=0.0,
            validation=SplitFigures(accuracy=(), accuracy_at_thresholds=0.0, exit_share=()),
            trained=Trained(epochs=0, seed=1, seconds=0.0, torch=str(torch.__version__)),
        ),
    )
    return Bundle(path=folder, revision="draft", manifest=manifest)


def finish(bundle: Bundle, images: LabelledExamples) -> Bundle:
    """Choose thresholds, measure on the images themselves, and write what is not a segment."""
    collector = Collector(bundle, images)
    collector.labels = collector.collect().logits[:, -1].argmax(axis=1)
    scored = score_exits(collector.collect(), CRITERION)
    thresholds = quantile_thresholds(scored.scores)
    masked = []
    for missing in missing_sets(max(bundle.branch_counts)):
        # A plain stage's exit has no branch to miss, and keeps its threshold.
        fixed = {k: value for k, value in enumerate(thresholds) if not bundle.stages[k].branches}
        scores = score_exits(collector.collect(missing), CRITERION).scores
        masked.append(MaskedThresholds(missing=missing, thresholds=quantile_thresholds(scores, fixed)))
    parameters = write_parameters(
        bundle.path,
        class_means(collector.collect(), len(LABELS)),
        gate_weights(len(bundle.stages)),
    )
    found = summarise(scored, costs_of(bundle.stages), CRITERION, thresholds)
    split = SplitFigures(
        accuracy=rounded(found.accuracy),
        accuracy_at_thresholds=round(found.accuracy_at_thresholds, 4),
        exit_share=rounded(found.exit_share),
    )
    manifest = replace(
        bundle.manifest,
        exits=Exits(criterion=CRITERION, thresholds=thresholds, masked=tuple(masked), parameters=parameters),
        golden=write_golden(bundle, images.inputs[:3]),
        measured=replace(
            bundle.manifest.measured,
            data=f"{len(images)} {images.source}, labelled by the last exit",
            accuracy=rounded(found.accuracy),
            accuracy_at_thresholds=round(found.accuracy_at_thresholds, 4),
            exit_share=rounded(found.exit_share),
            macs_per_input=round(found.macs_per_input, 1),
            macs_no_early_exit_strict=found.macs_no_early_exit_strict,
            macs_no_early_exit_loose=found.macs_no_early_exit_loose,
            feature_bytes_per_input=round(found.feature_bytes_per_input, 1),
            validation=split,
        ),
    )
    write_manifest(manifest, bundle.path)
    return load_bundle(bundle.path)


def rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)


def quantile_thresholds(scores: np.ndarray, fixed: dict[int, float] | None = None) -> tuple[float, ...]:
    left, thresholds = np.ones(len(scores), bool), []
    for k in range(scores.shape[1] - 1):
        value = (fixed or {}).get(k, float(np.quantile(scores[left, k], 1 - SHARES[k])))
        thresholds.append(round(value, 4))
        left &= scores[:, k] < thresholds[-1]
    return tuple(thresholds)


def gate_weights(exits: int) -> list[np.ndarray]:
    """Some weights for the gate: of each class's probability, the largest, certainty, earlier scores, and a bias."""
    of_classes = [0.1, -0.1, 0.2, -0.2]
    return [np.array([*of_classes, 2.0, 1.0, *[0.25] * k, -1.0]) for k in range(exits)]


def made(name: str, folder: Path) -> Bundle:
    """Make one bundle in `folder`."""
    torch.manual_seed(1)
    images = random_images()
    parts = [tiny_wide()] if name == "tiny-wide" else tiny_mixed()
    settle(parts, normalised(images))
    if name == "tiny-wide":
        description = "for tests: three wide stages of two branches"
        stages = export_wide(parts[0].eval(), normalised(images), folder)
    else:
        description = "for tests: plain, two wide stages of three branches, plain"
        stages = export_parts([part.eval() for part in parts], normalised(images), folder)
    return finish(draft(name, description, stages, folder), images)


def main(target: Path) -> None:
    for name in ("tiny-wide", "tiny-mixed"):
        with tempfile.TemporaryDirectory() as work:
            bundle = made(name, Path(work) / name)
            report = check_golden(bundle)
            place = target / name
            place.mkdir(parents=True, exist_ok=True)
            for file in place.iterdir():
                file.unlink()
            for file in sorted(bundle.path.iterdir()):
                (place / file.name).write_bytes(file.read_bytes())
        size = sum(file.stat().st_size for file in place.iterdir())
        shares = ", ".join(f"{share:.2f}" for share in bundle.manifest.measured.exit_share)
        print(f"{place}: {bundle.revision}, {size} bytes, exits {shares}, off by {report.worst_steps}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
