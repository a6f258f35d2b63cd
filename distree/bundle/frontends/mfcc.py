"""Mel-frequency cepstral coefficients, as `tf.signal.mfccs_from_log_mel_spectrograms`.

The type II discrete cosine transform of each frame of a log-mel spectrogram L with B bands, scaled as HTK does:

    C[t, c] = sqrt(2 / B) · sum over b of L[t, b] · cos(π c (b + ½) / B),   c = 0 … coefficients − 1

C[t, 0] is sqrt(2) times what an orthonormal transform (librosa's, SciPy's `norm="ortho"`) returns; the others are
equal.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from distree.bundle.frontends.logmel import LogMel, LogMelFrontend
from distree.errors import ConfigError
from distree.record import record
from distree.tensors import Array


@record
class Mfcc:
    """Mel-frequency cepstral coefficients: features (frames, coefficients)."""

    kind: Literal["mfcc"] = "mfcc"
    """Mel-frequency cepstral coefficients: (frames, coefficients)."""
    coefficients: int
    """How many are kept, from the first on."""
    logmel: LogMel
    """The log-mel spectrogram that they are computed from."""


class MfccFrontend:
    """Computes mel-frequency cepstral coefficients.

    >>> logmel = LogMel(frame=480, step=320, bands=40, low_hz=20.0, high_hz=4000.0, power=1)
    >>> MfccFrontend(Mfcc(coefficients=10, logmel=logmel), (16000,), 16000.0).shape
    (49, 10)
    """

    def __init__(self, spec: Mfcc, shape: tuple[int, ...], rate_hz: float | None) -> None:
        self._logmel = LogMelFrontend(spec.logmel, shape, rate_hz)
        frames, bands = self._logmel.shape
        if not 1 <= spec.coefficients <= bands:
            raise ConfigError(
                f"coefficients: {spec.coefficients} is out of range", f"choose 1 to {bands}, the number of bands"
            )
        angles = np.pi * np.outer(np.arange(bands) + 0.5, np.arange(spec.coefficients)) / bands
        self._transform = np.sqrt(2.0 / bands) * np.cos(angles)
        self.shape: tuple[int, ...] = (frames, spec.coefficients)

    def features(self, values: Array) -> Array:
        """Return the coefficients (frames, coefficients) of one window."""
        coefficients: Array = self._logmel.features(values) @ self._transform
        return coefficients
