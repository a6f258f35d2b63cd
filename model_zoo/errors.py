"""The zoo's own errors, within the hierarchy that all parts share."""

from __future__ import annotations

from distree.errors import DistreeError

INSTALL_EXTRA = "run: pip install 'distree[zoo]'"


class DataError(DistreeError):
    """A data set, sample file, recipe or checkpoint cannot be used as given."""


class ExportError(DistreeError):
    """A trained network cannot be turned into segments: a tool is missing, or its result is wrong."""


class SplitError(DistreeError):
    """A network cannot be cut into stages: what it is made of, the file, or the data stand against it."""


def needs_zoo(what: str, error: ImportError) -> ExportError:
    """Return the error to raise where `what` needs the extra `zoo`."""
    return ExportError(
        f"{what} needs torch ({error})",
        "install it first, then the extra: pip install torch==2.13.0 && pip install 'distree[zoo]'",
    )
