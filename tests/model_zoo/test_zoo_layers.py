"""Building blocks of networks and the optimiser they are trained with."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from model_zoo.recipes import Schedule  # noqa: E402
from model_zoo.training.layers import PoolUnit, Whitening, fit_whitening, start_as_identity  # noqa: E402
from model_zoo.training.loop import Loop  # noqa: E402


def correlated_images(count: int = 200, size: int = 9):
    """Images whose channels and neighbouring pixels have much in common."""
    generator = torch.Generator().manual_seed(0)
    grey = torch.randn((count, 1, size + 1, size + 1), generator=generator)
    smooth = grey[:, :, 1:, 1:] + grey[:, :, :-1, 1:] + grey[:, :, 1:, :-1]
    return 3 * smooth + torch.randn((count, 3, size, size), generator=generator)


def test_whitened_patches_have_no_correlation() -> None:
    images, layer = correlated_images(), Whitening(3)
    fit_whitening(nn.Sequential(layer, nn.ReLU()), images)
    out = layer(images)
    assert out.shape == (200, Whitening.outputs(3), 8, 8)
    half = out.shape[1] // 2
    assert torch.equal(out[:, :half], -out[:, half:])
    patches = out[:, :half].permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.allclose(patches.T @ patches / len(patches), torch.eye(half), atol=0.01)


def test_a_whitening_is_not_learned() -> None:
    assert [p for p in Whitening(3).parameters() if p.requires_grad] == []


def test_convolutions_start_as_identity_and_fixed_ones_are_left_alone() -> None:
    torch.manual_seed(0)
    fixed = Whitening(3)
    before = fixed.conv.weight.clone()
    wider, narrower = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.Conv2d(6, 2, 1, bias=False)
    others = wider.weight[4:].clone()
    start_as_identity(nn.Sequential(fixed, wider, narrower))
    image = torch.randn((1, 4, 5, 5))
    assert torch.equal(wider(image)[:, :4], image)
    assert torch.equal(wider.weight[4:], others)
    assert torch.equal(narrower(torch.cat([image, image[:, :2]], 1)), image[:, :2])
    assert torch.equal(fixed.conv.weight, before)


def test_a_pool_unit_gives_the_same_in_either_order() -> None:
    torch.manual_seed(0)
    unit, images = PoolUnit(3, 5), torch.randn((16, 3, 8, 9))
    unit.norm.momentum = 1.0
    nn.init.normal_(unit.norm.bias)
    for _ in range(2):
        trained = unit(images)
    unit.eval()
    # What training normalised by, made what evaluation normalises by.
    pooled = unit.pool(unit.conv(images)).detach()
    unit.norm.running_var.copy_(pooled.var((0, 2, 3), unbiased=False))
    assert trained.shape == (16, 5, 4, 4)
    assert torch.allclose(unit(images), trained, atol=1e-5)


def test_shifts_of_normalisations_have_a_rate_of_their_own(tmp_path: Path) -> None:
    def moved(shift_rate: float) -> tuple[float, float]:
        network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
        nn.init.ones_(network[0].weight)
        schedule = Schedule(epochs=1, batch=1, peak_rate=0.5, momentum=0.1, weight_decay=0.0, shift_rate=shift_rate)
        loop = Loop(
            network=network,
            schedule=schedule,
            count=4,
            loss=lambda *_: network[0].weight.sum() + network[1].bias.sum(),
            validate=lambda: (0.0,),
            checkpoint=tmp_path / f"{shift_rate}.pt",
            identity={},
        )
        loop.run()
        return 1.0 - float(network[0].weight.detach().sum()), -float(network[1].bias.detach().sum())

    weight, shift = moved(1.0)
    assert shift == pytest.approx(weight, rel=1e-5)
    assert moved(8.0) == (pytest.approx(weight, rel=1e-5), pytest.approx(8 * weight, rel=1e-5))
