"""Front ends against numbers of their references, and against what can be reckoned by hand.

The numbers were printed by TensorFlow 2.21 (`tf.signal`, float64), librosa 0.11 and Edge Impulse's processing blocks (MFE,
implementation version 4) for `TONES`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from distree.bundle.frontends import FRONTENDS, EdgeImpulseMfe, LogMel, Mfcc, Raw, make_frontend
from distree.bundle.frontends.spectra import htk_hz, htk_mel, htk_weights, slaney_hz, slaney_mel, slaney_weights

RATE_HZ, SAMPLES = 16_000.0, 2000
_T = np.arange(SAMPLES) / RATE_HZ
_WAVES = (8000, 440.0, np.sin), (3000, 3000.0, np.sin), (500, 50.0, np.cos)
TONES = np.rint(sum(size * wave(2 * np.pi * hz * _T) for size, hz, wave in _WAVES)) / 32768.0
BANDS = [0, 5, 10, 20, 35, 39]


def logmel(**changes):
    given = {"frame": 480, "step": 320, "bands": 40, "low_hz": 20.0, "high_hz": 4000.0, "power": 1}
    return LogMel(**{**given, **changes})


def features(spec, values=TONES, rate_hz=RATE_HZ):
    return make_frontend(spec, values.shape, rate_hz).features(values)


@pytest.mark.parametrize(
    ("power", "first", "last", "mfcc"),
    [
        (
            1,
            [0.561656, -2.743933, 2.452624, -6.136978, 2.903229, -6.380374],
            [0.563476, -2.771942, 2.452632, -6.033267, 2.903221, -6.234488],
            [-34.191139, 9.356334, 10.061707, -7.915738, -4.447694, 0.124278, -2.61073, 8.965017, 0.336338, 7.289844],
        ),
        (
            2,
            [1.042403, -5.850725, 5.220342, -12.784609, 5.00372, -13.402931],
            [1.046195, -5.898851, 5.220333, -12.662436, 5.003706, -13.311959],
            [
                -68.255545,
                18.626319,
                18.702436,
                -12.492447,
                -9.862752,
                -1.040367,
                -3.603101,
                18.081025,
                0.366784,
                15.306054,
            ],
        ),
    ],
)
def test_log_mel_and_mfcc_are_those_of_tf_signal(power, first, last, mfcc):
    spec = logmel(power=power)
    made = features(spec)
    assert made.shape == (5, 40)
    np.testing.assert_allclose(made[0, BANDS], first, atol=2e-6)
    np.testing.assert_allclose(made[4, BANDS], last, atol=2e-6)
    np.testing.assert_allclose(features(Mfcc(coefficients=10, logmel=spec))[4], mfcc, atol=2e-6)


def test_log_mel_with_slaneys_scale_is_librosas():
    made = features(logmel(frame=512, high_hz=8000.0, power=2, mel="slaney"))
    assert made.shape == (5, 40)
    np.testing.assert_allclose(
        made[0, BANDS], [-3.43443, 2.624014, -13.758332, -13.814245, -13.814989, -13.815096], atol=1e-4
    )
    np.testing.assert_allclose(
        made[4, BANDS], [-3.434533, 2.624012, -13.75497, -13.815064, -13.815117, -13.814859], atol=1e-4
    )


@pytest.mark.parametrize(
    ("fft", "bands", "low_hz", "places", "first", "last"),
    [
        (256, 32, 300.0, [0, 1, 2, 3, 4, 19, 20], [59, 170, 55, 27, 3, 201, 0], [56, 170, 57, 34, 14, 200, 0]),
        (512, 40, 0.0, [0, 3, 8, 16, 24, 39], [69, 83, 135, 59, 104, 51], [67, 82, 135, 57, 104, 43]),
    ],
)
def test_mel_energies_are_edge_impulses(fft, bands, low_hz, places, first, last):
    spec = EdgeImpulseMfe(frame=320, step=160, fft=fft, bands=bands, low_hz=low_hz, high_hz=8000.0)
    made = features(spec)
    assert made.shape == (11, bands)
    assert (made[0, places] * 256).tolist() == first
    assert (made[10, places] * 256).tolist() == last


def test_log_mel_by_hand():
    # Frame 1 1 1 1 under the periodic Hann window 0 ½ 1 ½: |X| = 2, |−1| = 1, 0 at 0, 2,000 and 4,000 Hz. The edges of
    # two bands are 0, 715.35, 1430.71 and 2146.06 mel; 2,000 Hz is 1521.36 mel, outside of the first, and in the second
    # (2146.06 − 1521.36) / 715.35 of its peak. The bin of 0 Hz counts nowhere.
    top = 1127 * math.log(1 + 4000 / 700)
    weight = (top - 1127 * math.log(1 + 2000 / 700)) / (top / 3)
    assert weight == pytest.approx(0.8733, abs=1e-4)
    for power in (1, 2):
        spec = LogMel(frame=4, step=4, bands=2, low_hz=0.0, high_hz=4000.0, power=power)
        made = features(spec, np.ones(4), 8000.0)
        np.testing.assert_allclose(made, [[math.log(1e-6), math.log(weight + 1e-6)]], rtol=1e-12)


def test_mfcc_by_hand():
    # Two bands a, b: c0 = a + b, as sqrt(2 / 2) = 1; c1 = (a − b) cos 45°.
    spec = LogMel(frame=4, step=4, bands=2, low_hz=0.0, high_hz=4000.0, power=1)
    (a, b), (c0, c1) = (
        features(spec, np.ones(4), 8000.0)[0],
        features(Mfcc(coefficients=2, logmel=spec), np.ones(4), 8000.0)[0],
    )
    assert c0 == pytest.approx(a + b)
    assert c1 == pytest.approx((a - b) * math.sqrt(0.5))


def test_mel_scales_at_points_that_are_known():
    assert htk_mel(np.array([0.0, 700.0])) == pytest.approx([0.0, 1127 * math.log(2)])
    assert slaney_mel(np.array([0.0, 200.0, 1000.0, 6400.0])) == pytest.approx([0.0, 3.0, 15.0, 42.0])
    hz = np.linspace(0, 8000, 81)
    np.testing.assert_allclose(htk_hz(htk_mel(hz)), hz, atol=1e-9)
    np.testing.assert_allclose(slaney_hz(slaney_mel(hz)), hz, atol=1e-9)


def test_weights_are_triangles_of_peak_or_of_area_one():
    fine = htk_weights(20_001, 16_000.0, 10, 100.0, 8000.0)
    assert fine.max(axis=0) == pytest.approx([1.0] * 10, abs=1e-2)
    area = slaney_weights(20_001, 16_000.0, 10, 100.0, 8000.0).sum(axis=0) * (8000.0 / 20_000)
    assert area == pytest.approx([1.0] * 10, abs=1e-3)


@pytest.mark.parametrize("spec", [logmel(), Mfcc(coefficients=13, logmel=logmel())])
def test_silence_is_finite_and_louder_is_more(spec):
    silence = features(spec, np.zeros(SAMPLES))
    assert np.isfinite(silence).all()
    assert features(spec)[0, 0] > silence[0, 0]


def test_edge_impulses_levels_are_256ths_from_silence_to_full_scale():
    spec = EdgeImpulseMfe(frame=320, step=160, fft=512, bands=40, low_hz=0.0, high_hz=8000.0)
    assert features(spec, np.zeros(SAMPLES)).max() == 0
    noise = np.random.default_rng(1).uniform(-1, 1, SAMPLES)
    levels = features(spec, noise) * 256
    np.testing.assert_array_equal(levels, np.rint(levels))
    assert 100 < levels.max() <= 255


def test_a_window_of_shape_samples_and_one_is_the_same():
    np.testing.assert_array_equal(features(logmel(), TONES[:, None]), features(logmel()))


def test_raw_passes_any_shape_on():
    values = np.random.default_rng(1).normal(size=(4, 3))
    assert make_frontend(Raw(), (4, 3), None).features(values) is values


def test_every_front_end_is_in_the_table_by_its_kind():
    made = {Raw(): (2000,), logmel(): (5, 40), Mfcc(coefficients=3, logmel=logmel()): (5, 3)}
    made[EdgeImpulseMfe(frame=320, step=160, fft=512, bands=40, low_hz=0.0, high_hz=8000.0)] = (11, 40)
    assert {spec.kind for spec in made} == set(FRONTENDS)
    for spec, shape in made.items():
        front = make_frontend(spec, (SAMPLES,), RATE_HZ)
        assert front.shape == shape
        assert front.features(TONES).shape == shape
        assert front.features(TONES).dtype == np.float64
