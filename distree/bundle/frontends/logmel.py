"""Log-mel spectrogram, as `tf.signal` computes it, or with librosa's mel scale.

X[t, k] is the discrete Fourier transform of frame t, `frame` samples under a periodic Hann window, zeros appended up to
`fft`; frames begin every `step` samples, from the first on, and none is padded or centred. The features are

    ln( sum over k of |X[t, k]|^power · W[k, b] + offset )

with the weights W of `distree.bundle.frontends.spectra`: `htk` as `tf.signal.linear_to_mel_weight_matrix`, `slaney` as
`librosa.filters.mel`. Samples are −1…1, as from `tf.audio.decode_wav`.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from distree.bundle.frontends.spectra import (
    check_bands,
    check_fft,
    frame_count,
    frames_of,
    htk_weights,
    mono_samples,
    next_power_of_two,
    sampling_rate,
    slaney_weights,
    weighted,
)
from distree.errors import ConfigError
from distree.record import record
from distree.tensors import Array

_WEIGHTS = {"htk": htk_weights, "slaney": slaney_weights}


@record
class LogMel:
    """Logarithm of the energy in mel bands: features (frames, bands)."""

    kind: Literal["logmel"] = "logmel"
    """Log-mel spectrogram: (frames, bands)."""
    frame: int
    """Samples of a frame."""
    step: int
    """Samples from the start of one frame to the start of the next."""
    fft: int | None = None
    """Points of the Fourier transform, a power of two; by default the smallest that fits a frame."""
    bands: int
    """Mel bands."""
    low_hz: float
    """Lower edge of the lowest band."""
    high_hz: float
    """Upper edge of the highest band."""
    mel: Literal["htk", "slaney"] = "htk"
    """Mel scale and weights: TensorFlow's, or librosa's default."""
    power: Literal[1, 2]
    """1 for the magnitude of the spectrum, 2 for its power."""
    offset: float = 1e-6
    """Added before the logarithm."""


class LogMelFrontend:
    """Computes log-mel spectrograms.

    >>> spec = LogMel(frame=480, step=320, bands=40, low_hz=20.0, high_hz=4000.0, power=1)
    >>> LogMelFrontend(spec, (16000,), 16000.0).shape
    (49, 40)
    """

    def __init__(self, spec: LogMel, shape: tuple[int, ...], rate_hz: float | None) -> None:
        samples, rate = mono_samples(shape), sampling_rate(rate_hz)
        self._frame, self._step, self._power, self._offset = spec.frame, spec.step, spec.power, spec.offset
        self._count = frame_count(samples, spec.frame, spec.step)
        self._fft = next_power_of_two(spec.frame) if spec.fft is None else spec.fft
        check_fft(self._fft, spec.frame)
        check_bands(spec.bands, spec.low_hz, spec.high_hz, rate)
        if not 0 < spec.offset < math.inf:
            raise ConfigError(
                f"offset: {spec.offset:g} is out of range, since silence has no logarithm", "choose a number above 0"
            )
        self._weights = _WEIGHTS[spec.mel](self._fft // 2 + 1, rate, spec.bands, spec.low_hz, spec.high_hz)
        self._hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.frame) / spec.frame)
        self.shape: tuple[int, ...] = (self._count, spec.bands)

    def features(self, values: Array) -> Array:
        """Return the log-mel spectrogram (frames, bands) of one window."""
        frames = frames_of(values, self._count, self._frame, self._step) * self._hann
        spectrum: Array = np.abs(np.fft.rfft(frames, self._fft, axis=-1))
        if self._power == 2:
            spectrum = spectrum * spectrum
        logarithms: Array = np.log(weighted(spectrum, self._weights) + self._offset)
        return logarithms
