"""What tests of a split share: how to run it in a hurry, and data that a network is right about."""

from __future__ import annotations

import numpy as np
import pytest

from model_zoo.split.running import Runner


@pytest.fixture
def hurried(monkeypatch):
    """Have heads learn a little from few variations; a forked child inherits it."""
    monkeypatch.setattr("model_zoo.split.learning.VARIED_TO", 400)
    monkeypatch.setattr("model_zoo.split.learning.MOST_VARIATIONS", 100)
    training = "model_zoo.split.job.HeadTraining"
    from model_zoo.split.heads import HeadTraining

    monkeypatch.setattr(training, lambda **given: HeadTraining(samples=6_000, fewest_passes=3, **given))
    monkeypatch.setattr("model_zoo.split.job._RANDOM_INPUTS", 20)
    monkeypatch.setattr("model_zoo.split.job._TOLERANCE_INPUTS", 20)


@pytest.fixture
def answered():
    """Make int8 pictures of a few colours, and what a network of pictures of 0 to 255 says of them."""

    def answered(content, count=120, seed=0, dtype=np.uint8, shape=(8, 8, 3)):
        generator = np.random.default_rng(seed)
        coarse = generator.integers(0, 256, (count, 2, 2, shape[-1]))
        inputs = coarse.repeat(shape[0] // 2, axis=1).repeat(shape[1] // 2, axis=2).astype(np.uint8)
        runner = Runner(content)
        labels = [int(runner((one.astype(np.int16) - 128).astype(np.int8)[None])[0].argmax()) for one in inputs]
        return inputs.astype(dtype), np.asarray(labels)

    return answered
