"""What front ends for sound share: overlapping frames of one channel, and the mel scales."""

from __future__ import annotations

import numpy as np

from distree.errors import ConfigError
from distree.tensors import Array

MAX_FRAMES = 4096
MAX_FFT = 65_536
MAX_BANDS = 512

_ONE_THREAD = 1 << 18
"""Multiplications up to which OpenBLAS computes a product in the calling thread."""

_BREAK_HZ = 1000.0  # where Slaney's scale turns from linear to logarithmic
_HZ_PER_MEL = 200.0 / 3.0
_LOG_STEP = np.log(6.4) / 27.0


def mono_samples(shape: tuple[int, ...]) -> int:
    """Return the samples of a window of one channel, (samples,) or (samples, 1); ConfigError for any other shape."""
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        return shape[0]
    raise ConfigError(f"needs windows of one channel, but input.shape is {list(shape)}", "give [samples]")


def sampling_rate(rate_hz: float | None) -> float:
    """Return the sampling rate; ConfigError if the manifest does not have it."""
    if rate_hz is None:
        raise ConfigError("needs the sampling rate of its inputs", "add input.rate_hz")
    return rate_hz


def frame_count(samples: int, frame: int, step: int) -> int:
    """Return how many whole frames a window has; none is padded. ConfigError for none, or for far too many."""
    if not 1 <= frame <= samples:
        raise ConfigError(f"frame: {frame} is out of range", f"choose 1 to {samples}, the samples of a window")
    if step < 1:
        raise ConfigError(f"step: {step} is out of range", "choose at least 1 sample")
    count = 1 + (samples - frame) // step
    if count > MAX_FRAMES:
        raise ConfigError(f"step: {step} samples make {count} frames per window, more than {MAX_FRAMES}", "raise step")
    return count


def frames_of(values: Array, count: int, frame: int, step: int) -> Array:
    """Return the frames of one channel, a view: (count, frame)."""
    flat = np.ascontiguousarray(values).reshape(-1)
    windows: Array = np.lib.stride_tricks.sliding_window_view(flat, frame)
    return windows[::step][:count]


def weighted(spectra: Array, weights: Array) -> Array:
    """Return spectra (frames, bins) times weights (bins, bands), a few frames at a time.

    BLAS would spread the product of all frames over threads, which at this size gains nothing; on a board that is busy
    with inference, the threads wait for each other: 11 ms instead of 1.3 was measured.
    """
    block = max(1, _ONE_THREAD // weights.size)
    parts = [spectra[start : start + block] @ weights for start in range(0, len(spectra), block)]
    product: Array = np.concatenate(parts)
    return product


def check_bands(bands: int, low_hz: float, high_hz: float, rate_hz: float) -> None:
    """Raise ConfigError for bands that do not lie between 0 and half the sampling rate."""
    if not 2 <= bands <= MAX_BANDS:
        raise ConfigError(f"bands: {bands} is out of range", f"choose 2 to {MAX_BANDS}")
    if not 0 <= low_hz < high_hz <= rate_hz / 2:
        raise ConfigError(
            f"low_hz, high_hz: {low_hz:g} and {high_hz:g} are out of range",
            f"choose ascending values from 0 to {rate_hz / 2:g}, half the sampling rate",
        )


def check_fft(fft: int, frame: int) -> None:
    """Raise ConfigError unless `fft` is a power of two that fits a whole frame."""
    if fft < frame or fft > MAX_FFT or fft & (fft - 1):
        raise ConfigError(f"fft: {fft} is not possible", f"choose a power of two from {frame}, the frame, to {MAX_FFT}")


def next_power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least `number`.

    >>> next_power_of_two(480)
    512
    """
    return 1 << (number - 1).bit_length()


def htk_mel(hz: Array | float) -> Array:
    """Return mels of frequencies by HTK's formula, 1127 ln(1 + f / 700).

    >>> round(float(htk_mel(1000.0)), 2)
    999.99
    """
    mels: Array = 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)
    return mels


def htk_hz(mels: Array) -> Array:
    """Return frequencies of mels by HTK's formula."""
    hz: Array = 700.0 * np.expm1(mels / 1127.0)
    return hz


def slaney_mel(hz: Array | float) -> Array:
    """Return mels by Slaney's Auditory Toolbox: linear up to 1 kHz (15 mels), logarithmic above.

    >>> float(slaney_mel(1000.0)), round(float(slaney_mel(6400.0)), 6)
    (15.0, 42.0)
    """
    given = np.asarray(hz, np.float64)
    above = np.log(np.maximum(given, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    mels: Array = np.where(given < _BREAK_HZ, given / _HZ_PER_MEL, _BREAK_HZ / _HZ_PER_MEL + above)
    return mels


def slaney_hz(mels: Array) -> Array:
    """Return frequencies of mels by Slaney's scale."""
    linear = _BREAK_HZ / _HZ_PER_MEL
    above = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mels, linear) - linear))
    hz: Array = np.where(mels < linear, mels * _HZ_PER_MEL, above)
    return hz


def triangles(points: Array, edges: Array) -> Array:
    """Return triangular weights (points, bands): band b rises from edges[b] to edges[b + 1], falls to edges[b + 2]."""
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (points[:, None] - left) / (middle - left)
    falling = (right - points[:, None]) / (right - middle)
    weights: Array = np.maximum(0.0, np.minimum(rising, falling))
    return weights


def htk_weights(bins: int, rate_hz: float, bands: int, low_hz: float, high_hz: float) -> Array:
    """Return weights (bins, bands) as TensorFlow's `tf.signal.linear_to_mel_weight_matrix`.

    Edges are evenly spaced in HTK's mels, triangles are straight in mels, their peaks are 1, and the bin of 0 Hz
    counts nowhere.
    """
    edges = np.linspace(htk_mel(low_hz), htk_mel(high_hz), bands + 2)
    weights = triangles(htk_mel(np.linspace(0.0, rate_hz / 2, bins)), edges)
    weights[0] = 0.0
    return weights


def slaney_weights(bins: int, rate_hz: float, bands: int, low_hz: float, high_hz: float) -> Array:
    """Return weights (bins, bands) as librosa's `filters.mel` by default, transposed.

    Edges are evenly spaced in Slaney's mels, triangles are straight in hertz, and the area of each is 1.
    """
    edges = slaney_hz(np.linspace(slaney_mel(low_hz), slaney_mel(high_hz), bands + 2))
    weights: Array = triangles(np.linspace(0.0, rate_hz / 2, bins), edges) * (2.0 / (edges[2:] - edges[:-2]))
    return weights
