"""The samples that ship with bundles: small sets of inputs, model_zoo/samples/NAME.npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_FOLDER = Path(__file__).parents[1] / "samples"
_OF_TEST_SET = "part of the test set"


def shipped_samples(bundle: str) -> Path | None:
    """Return the sample file of a bundle by its name; None if no samples ship with it."""
    path = _FOLDER / f"{bundle}.npz"
    return path if path.is_file() else None


def about_samples(path: Path) -> str:
    """Say in a few words what a shipped sample file contains: its array `about`, or that it is part of the test set."""
    with np.load(path, allow_pickle=False) as archive:
        return str(archive["about"]) if "about" in archive else _OF_TEST_SET
