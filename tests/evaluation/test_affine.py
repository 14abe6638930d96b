from __future__ import annotations

import pytest
import torch

from evaluation.affine import Affine, random_affine

STILL = Affine(rotation=0, shift=0, scale=0, stretch=0, shear=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 9, 14), (0, 1, 8, 8)])
def test_no_ranges_no_change(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=generator())
    torch.testing.assert_close(random_affine(images, generator(), STILL), images, atol=1e-5, rtol=0)


def test_draws_come_from_the_generator_alone() -> None:
    images = torch.rand(8, 1, 12, 12, generator=generator())
    before = torch.get_rng_state()
    first = random_affine(images, generator(1))
    assert torch.equal(first, random_affine(images, generator(1)))
    assert not torch.equal(first, random_affine(images, generator(2)))
    assert torch.equal(before, torch.get_rng_state())


def test_adds_no_value_that_was_not_there() -> None:
    images = torch.rand(64, 3, 10, 16, generator=generator()) + 5
    moved = random_affine(images, generator(), Affine(rotation=180, shift=1, scale=1))
    assert images.min() - 1e-4 <= moved.min()
    assert moved.max() <= images.max() + 1e-4


@pytest.mark.parametrize("size", [(41, 41), (31, 61), (61, 31)])
def test_a_rotation_keeps_a_disc_round(size: tuple[int, int]) -> None:
    # On images that are not square a rotation in the grid's own coordinates would be a shear.
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    disc = ((y - size[0] // 2) ** 2 + (x - size[1] // 2) ** 2 < 100).float().expand(16, 1, *size)
    turned = random_affine(disc, generator(), Affine(rotation=90, shift=0, scale=0, stretch=0, shear=0))
    assert (turned - disc).abs().mean() < 0.02


def test_a_shift_moves_by_pixels() -> None:
    dot = torch.zeros(200, 1, 21, 41)
    dot[:, :, 10, 20] = 1
    moved = random_affine(dot, generator(), Affine(rotation=0, shift=0.1, scale=0, stretch=0, shear=0))
    rows = (moved.sum((1, 3)) * torch.arange(21)).sum(1) - 10
    columns = (moved.sum((1, 2)) * torch.arange(41)).sum(1) - 20
    assert 1.8 < rows.abs().max() < 2.2
    assert 3.7 < columns.abs().max() < 4.2
