"""The odd files for each bundle."""

from __future__ import annotations

import numpy as np

from benchmarks.odd_files.arrays import arrays, npy, others, wrapped
from benchmarks.odd_files.pictures import image_of, pictures, saved
from benchmarks.odd_files.recordings import sounds, tables
from distree.bundle.loading import Bundle, find_bundle
from distree.tensors import Array

BUNDLES = ("fashion", "cifar10-wide", "spoken-digits", "wrist-exercises")


def samples_of(name: str) -> Array:
    """Return the shipped inputs of a bundle."""
    with np.load(find_bundle(name).parents[1] / "samples" / f"{name}.npz") as archive:
        inputs: Array = archive["input"]
    return inputs


def files_for(bundle: Bundle) -> dict[str, bytes]:
    """Return odd files by name: of all kinds, with an input of the bundle in those that can hold it."""
    spec = bundle.manifest.input
    raw = samples_of(bundle.name)[7]
    picture = raw if spec.is_image else samples_of("cifar10-wide")[7]
    is_sound, is_motion = spec.is_window and len(spec.shape) == 1, spec.is_window and len(spec.shape) == 2
    sound = raw if is_sound else samples_of("spoken-digits")[7]
    motion = raw if is_motion else samples_of("wrist-exercises")[7]
    names = spec.channels or ("ax", "ay", "az", "wx", "wy", "wz")
    file = saved(image_of(raw), "PNG") if spec.is_image else npy(raw)
    found: dict[str, bytes] = {}
    for some in (
        pictures(picture),
        sounds(sound, 8000),
        tables(motion, names, spec.rate_hz if is_motion and spec.rate_hz else 50.0),
        arrays(raw),
        wrapped(raw, file),
        others(),
    ):
        for name, content in some:
            assert name not in found, name
            found[name] = content
    return found
