"""Dividing a teacher's filters among branches."""

from __future__ import annotations

import numpy as np
import pytest

from model_zoo.training.partition import link_weights, partition


def blocks(sizes: tuple[int, ...], images: int, seed: int) -> np.ndarray:
    """Filters of a block fire together, one block an image; the rest murmurs."""
    generator = np.random.default_rng(seed)
    activity = generator.uniform(0.0, 0.05, (images, sum(sizes)))
    starts = np.cumsum((0, *sizes))
    for image in range(images):
        block = int(generator.integers(len(sizes)))
        part = slice(starts[block], starts[block + 1])
        activity[image, part] += generator.uniform(0.5, 2.0, sizes[block])
    return activity


@pytest.mark.parametrize("branches", [1, 2, 4, 8])
def test_groups_are_of_one_size_and_hold_every_filter_once(branches: int) -> None:
    groups = partition(np.random.default_rng(3).gamma(1.0, 1.0, (200, 32)), branches)
    assert [len(group) for group in groups] == [32 // branches] * branches
    assert sorted(filter for group in groups for filter in group) == list(range(32))
    assert all(list(group) == sorted(group) for group in groups)


def test_filters_that_fire_together_stay_together() -> None:
    sizes = (8, 8, 8, 8)
    groups = partition(blocks(sizes, 400, 4), 2)
    for start in (0, 8, 16, 24):
        homes = {next(b for b, group in enumerate(groups) if filter in group) for filter in range(start, start + 8)}
        assert len(homes) == 1, f"the block from {start} is spread over {homes}"


def test_what_does_not_fit_flows_over() -> None:
    groups = partition(blocks((12, 4), 300, 5), 2)
    assert [len(group) for group in groups] == [8, 8]
    assert sorted(filter for group in groups for filter in group) == list(range(16))


def test_the_same_activity_gives_the_same_groups() -> None:
    activity = np.random.default_rng(6).gamma(1.0, 1.0, (100, 16))
    assert partition(activity, 4) == partition(activity.copy(), 4)


def test_filters_must_divide_evenly() -> None:
    with pytest.raises(ValueError, match="10 filters cannot be divided into 4"):
        partition(np.ones((5, 10)), 4)


def test_links_are_nonns_sum() -> None:
    activity = np.random.default_rng(7).gamma(1.0, 1.0, (20, 8))
    bound = np.sort(activity, axis=1)[:, -2]
    active = np.where(activity >= bound[:, None], activity, 0.0)
    found = link_weights(activity)
    for j in range(8):
        for k in range(8):
            one, other = active[:, j], active[:, k]
            expected = 0.0 if j == k else float((one * other * np.abs(one - other)).sum())
            assert found[j, k] == pytest.approx(expected)
