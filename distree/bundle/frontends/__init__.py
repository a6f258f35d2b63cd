"""Front ends, one per file: each computes features from one window, with numpy alone.

Training, `distree zoo` and boards all run this code, so a network is served exactly what it was trained on. Each file
states its definition, and tests compare it with numbers from the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from distree.bundle.frontends.base import Frontend
from distree.bundle.frontends.edge_impulse import EdgeImpulseMfe, EdgeImpulseMfeFrontend
from distree.bundle.frontends.logmel import LogMel, LogMelFrontend
from distree.bundle.frontends.mfcc import Mfcc, MfccFrontend
from distree.bundle.frontends.raw import Raw, RawFrontend

__all__ = ["FRONTENDS", "EdgeImpulseMfe", "Frontend", "FrontendSpec", "LogMel", "Mfcc", "Raw", "make_frontend"]

FrontendSpec: TypeAlias = Raw | LogMel | Mfcc | EdgeImpulseMfe
"""What a manifest may declare."""

FRONTENDS: dict[str, Callable[[Any, tuple[int, ...], float | None], Frontend]] = {
    "raw": RawFrontend,
    "logmel": LogMelFrontend,
    "mfcc": MfccFrontend,
    "edge-impulse-mfe": EdgeImpulseMfeFrontend,
}
"""Every front end that a bundle may name, by its kind."""


def make_frontend(spec: FrontendSpec, shape: tuple[int, ...], rate_hz: float | None) -> Frontend:
    """Make the front end that a manifest declares, for windows of this shape and sampling rate.

    Raises ConfigError, one line, for a combination that cannot work.

    >>> make_frontend(Raw(), (28, 28, 1), None).shape
    (28, 28, 1)
    """
    return FRONTENDS[spec.kind](spec, shape, rate_hz)
