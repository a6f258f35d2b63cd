"""Mel-filterbank energies as Edge Impulse's processing block "Audio (MFE)" computes them, implementation version 4.

Definition: github.com/edgeimpulse/processing-blocks, mfe/dsp.py with its fork of SpeechPy. For networks that were
trained in Edge Impulse: pre-emphasis x[i] − 0.98 x[i − 1], where the last sample counts as the one
before the first; frames without a window function, cut off at `fft` samples; power |X|² / fft; HTK mels, whose
triangles peak at whole bins and are straight in bins; decibels, moved by the noise floor to 0…1 and rounded to 256
levels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from distree.bundle.frontends.spectra import (
    MAX_FFT,
    check_bands,
    frame_count,
    frames_of,
    htk_hz,
    htk_mel,
    mono_samples,
    sampling_rate,
    weighted,
)
from distree.errors import ConfigError
from distree.record import record
from distree.tensors import Array

_EMPHASIS = 0.98
_SILENCE = 1e-10
_HEADROOM_DB = 12.0
_LEVELS = 256


@record
class EdgeImpulseMfe:
    """Edge Impulse's mel-filterbank energies: features (frames, bands) of 0 to 255/256."""

    kind: Literal["edge-impulse-mfe"] = "edge-impulse-mfe"
    """Edge Impulse's block "Audio (MFE)", version 4: (frames, bands)."""
    frame: int
    """Samples of a frame: its "frame length" times the sampling rate, rounded up."""
    step: int
    """Samples from frame to frame: its "frame stride" times the sampling rate, rounded up."""
    fft: int
    """Its "FFT length", a power of two. Only this many samples of a longer frame count."""
    bands: int
    """Its "filter number"."""
    low_hz: float
    """Its "low frequency"."""
    high_hz: float
    """Its "high frequency"; if that is 0, half the sampling rate."""
    noise_floor_db: float = -52.0
    """Its "noise floor (dB)"."""


class EdgeImpulseMfeFrontend:
    """Computes Edge Impulse's mel-filterbank energies.

    >>> spec = EdgeImpulseMfe(frame=320, step=160, fft=512, bands=40, low_hz=0.0, high_hz=8000.0)
    >>> EdgeImpulseMfeFrontend(spec, (16000,), 16000.0).shape
    (99, 40)
    """

    def __init__(self, spec: EdgeImpulseMfe, shape: tuple[int, ...], rate_hz: float | None) -> None:
        samples, rate = mono_samples(shape), sampling_rate(rate_hz)
        self._frame, self._step, self._fft = spec.frame, spec.step, spec.fft
        self._floor_db = spec.noise_floor_db
        self._count = frame_count(samples, spec.frame, spec.step)
        if not 4 <= spec.fft <= MAX_FFT or spec.fft & (spec.fft - 1):
            raise ConfigError(f"fft: {spec.fft} is not possible", f"choose a power of two from 4 to {MAX_FFT}")
        if not -1000 <= spec.noise_floor_db < _HEADROOM_DB:
            raise ConfigError(
                f"noise_floor_db: {spec.noise_floor_db:g} is out of range", f"choose -1000 to below {_HEADROOM_DB:g}"
            )
        check_bands(spec.bands, spec.low_hz, spec.high_hz, rate)
        self._weights = _bin_weights(spec, rate)
        self.shape: tuple[int, ...] = (self._count, spec.bands)

    def features(self, values: Array) -> Array:
        """Return the energies (frames, bands) of one window."""
        flat = np.asarray(values, np.float32).reshape(-1)
        emphasised = flat - _EMPHASIS * np.roll(flat, 1)
        frames = frames_of(emphasised.astype(np.float64), self._count, self._frame, self._step)
        power = np.square(np.abs(np.fft.rfft(frames, self._fft, axis=-1))) / self._fft
        energies = weighted(power, self._weights)
        decibels = 10.0 * np.log10(np.where(energies == 0, _SILENCE, np.maximum(energies, 1e-30)))
        share = np.clip((decibels - self._floor_db) / (_HEADROOM_DB - self._floor_db), 0.0, 1.0)
        levels: Array = np.minimum(np.rint(share * _LEVELS), _LEVELS - 1) / _LEVELS
        return levels


def _bin_weights(spec: EdgeImpulseMfe, rate_hz: float) -> Array:
    """Return the triangles (bins, bands) between whole bins; ConfigError if one would be empty."""
    edges_hz = htk_hz(np.linspace(htk_mel(spec.low_hz), htk_mel(spec.high_hz), spec.bands + 2))
    edges_hz[-1] -= 0.001
    edges = np.floor((spec.fft + 1) * edges_hz / rate_hz).astype(np.int64)
    bins = np.arange(spec.fft // 2 + 1)
    weights = np.zeros((len(bins), spec.bands))
    for band in range(spec.bands):
        left, middle, right = edges[band : band + 3]
        rising, falling = (bins > left) & (bins <= middle), (bins >= middle) & (bins < right)
        weights[rising, band] = (bins[rising] - left) / max(1, middle - left)
        weights[falling, band] = (right - bins[falling]) / max(1, right - middle)
        if not weights[:, band].any():
            raise ConfigError(f"bands: {spec.bands} are too many for fft {spec.fft}", "lower bands or raise fft")
    return weights
