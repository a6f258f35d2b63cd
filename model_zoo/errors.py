"""The zoo's own errors, under the hierarchy that all parts share."""

from __future__ import annotations

from distree.errors import DistreeError


class DataError(DistreeError):
    """A data set, sample file, recipe or checkpoint cannot be used as given."""


class ExportError(DistreeError):
    """A trained network cannot be turned into segments: a tool is missing, or what it made is not sound."""
