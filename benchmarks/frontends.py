"""What front ends cost, in milliseconds for a second of sound: `python -m benchmarks.frontends [--rounds N]`.

Each is timed in turn, round by round, and the median given: of the front end alone, and of all from the raw window to
the first segment's tensor.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time

import numpy as np

from distree.bundle.frontends import EdgeImpulseMfe, FrontendSpec, LogMel, Mfcc, Raw, make_frontend
from distree.bundle.loading import load_bundle
from distree.bundle.manifest import InputSpec, Preprocess, TensorSpec
from distree.bundle.preprocessing import Preprocessor

RATE_HZ = 16_000
_LOGMEL = LogMel(frame=480, step=320, bands=40, low_hz=20.0, high_hz=4000.0, power=1)
FRONT_ENDS: dict[str, FrontendSpec] = {
    "raw": Raw(),
    "logmel, 49 frames of 30 ms, 40 bands": _LOGMEL,
    "logmel, 98 frames of 25 ms, 64 bands": LogMel(frame=400, step=160, bands=64, low_hz=60.0, high_hz=7800.0, power=2),
    "mfcc, 49 frames of 30 ms, 10 coefficients": Mfcc(coefficients=10, logmel=_LOGMEL),
    "edge-impulse-mfe, 99 frames of 20 ms, 40 bands": EdgeImpulseMfe(
        frame=320, step=160, fft=256, bands=40, low_hz=300.0, high_hz=8000.0
    ),
}


def _preprocessor(spec: FrontendSpec) -> Preprocessor:
    manifest = load_bundle("fashion", verify=()).manifest
    shape = make_frontend(spec, (RATE_HZ,), float(RATE_HZ)).shape
    taken = TensorSpec(name="x", dtype="int8", shape=(1, *shape), scale=0.1)
    made = dataclasses.replace(
        manifest,
        input=InputSpec(dtype="int16", shape=(RATE_HZ,), rate_hz=float(RATE_HZ)),
        preprocess=Preprocess(layout="nhwc", mean=(-5.0,), std=(3.0,), frontend=spec),
        stages=(dataclasses.replace(manifest.stages[0], input=taken), *manifest.stages[1:]),
    )
    return Preprocessor(made)


def measure(rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median milliseconds of each front end, and of a whole input."""
    rng = np.random.default_rng(1)
    raw = rng.integers(-9000, 9000, RATE_HZ).astype(np.int16)
    values = raw / 32768.0
    alone = {name: make_frontend(spec, (RATE_HZ,), float(RATE_HZ)) for name, spec in FRONT_ENDS.items()}
    whole = {name: _preprocessor(spec) for name, spec in FRONT_ENDS.items()}
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in FRONT_ENDS}
    for turn in range(rounds + 5):
        for name, (of_features, of_tensor) in times.items():
            begun = time.perf_counter()
            alone[name].features(values)
            between = time.perf_counter()
            whole[name].tensor(raw)
            ended = time.perf_counter()
            if turn >= 5:  # the first ones fill caches
                of_features.append(1e3 * (between - begun))
                of_tensor.append(1e3 * (ended - between))
    return {name: (statistics.median(a), statistics.median(b)) for name, (a, b) in times.items()}


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frontends", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    args = parser.parse_args()
    print("| front end, a window of 1 s at 16 kHz | front end, ms | window to tensor, ms |\n| --- | --- | --- |")
    for name, (features, tensor) in measure(args.rounds).items():
        print(f"| {name} | {features:.2f} | {tensor:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
