"""Whether the same picture, stored in other ways, has the same answer: over all shipped samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.odd_files.pictures import image_of, saved, sixteen_bits, turned, with_alpha
from distree.bundle.inputs import InputReader
from distree.bundle.loading import find_bundle, load_bundle
from distree.exits_taken import exits_taken
from distree.tensors import Array
from model_zoo.data import LabelledExamples
from model_zoo.evaluation import collect_logits, score_exits

VARIANTS: dict[str, Callable[[Array], bytes]] = {
    "upright PNG": lambda raw: saved(image_of(raw), "PNG"),
    **{
        f"EXIF orientation {orientation}": (lambda raw, way=orientation: turned(image_of(raw), way))  # type: ignore[misc]
        for orientation in range(1, 9)
    },
    "16 bits per channel": sixteen_bits,
    "alpha, opaque": lambda raw: saved(with_alpha(image_of(raw)), "PNG"),
    "palette of 256 greys": lambda raw: saved(image_of(raw).convert("P"), "PNG") if raw.shape[2] == 1 else b"",
    "grey as RGB": lambda raw: saved(image_of(raw).convert("RGB"), "PNG") if raw.shape[2] == 1 else b"",
    "TrueColor bitmap": lambda raw: saved(image_of(raw).convert("RGB"), "BMP"),
    "WebP, lossless": lambda raw: saved(image_of(raw).convert("RGB"), "WEBP", lossless=True),
    "JPEG, quality 95": lambda raw: saved(image_of(raw), "JPEG", quality=95, subsampling=0),
    "CMYK JPEG, quality 95": lambda raw: saved(
        image_of(raw).convert("RGB").convert("CMYK"), "JPEG", quality=95, subsampling=0
    ),
}
"""How a sample is stored; b"" where it cannot be stored so without loss."""

LOSSY = ("JPEG, quality 95", "CMYK JPEG, quality 95")


@dataclass(frozen=True, slots=True)
class Variant:
    """How the samples of a bundle do, stored in one way.

    identical: share whose raw input is that of the sample, bit for bit. accuracy: share answered rightly with the
    bundle's own thresholds; of samples without labels, as the sample itself is.
    """

    name: str
    identical: float
    accuracy: float
    of_samples: float


def variants(bundle_name: str) -> Iterator[Variant]:
    """Yield how each variant of the samples does."""
    bundle = load_bundle(bundle_name)
    reader = InputReader(bundle.manifest.input, bundle.manifest.preprocess)
    with np.load(find_bundle(bundle_name).parents[1] / "samples" / f"{bundle_name}.npz") as archive:
        samples = archive["input"]
        labels = archive.get("label")
    answers = _answers(bundle_name, samples)
    truth = answers if labels is None else labels
    for name, make in VARIANTS.items():
        files = [make(raw) for raw in samples]
        if not all(files):
            continue
        read = np.stack([reader.read(content) for content in files])
        same = (read == samples).all(axis=(1, 2, 3))
        yield Variant(
            name,
            float(same.mean()),
            float((_answers(bundle_name, read) == truth).mean()),
            float((answers == truth).mean()),
        )


def _answers(bundle_name: str, inputs: Array) -> Array:
    """Return the classes that inputs get at the exits where they leave, with the bundle's thresholds."""
    bundle = load_bundle(bundle_name, verify=())
    count = len(inputs)
    examples = LabelledExamples(inputs, np.zeros(count, np.int64), np.arange(count), bundle_name)
    scored = score_exits(collect_logits(bundle, examples), bundle.criterion, bundle.criterion_parameters())
    classes: Array = scored.classes[np.arange(len(inputs)), exits_taken(scored.scores, bundle.thresholds)]
    return classes
