from __future__ import annotations

import pytest
import torch

from evaluation.augmentation import STRENGTHS, Affine, Augment, augmented, random_affine, random_levels

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


@pytest.mark.parametrize("augment", ["affine", *STRENGTHS])
@pytest.mark.parametrize("shape", [(16, 1, 8, 8), (5, 3, 20, 33), (0, 1, 8, 8)])
def test_every_policy_keeps_the_range_and_uses_its_generator_alone(augment: Augment, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=generator())
    before = torch.get_rng_state(), images.clone()
    first = augmented(images, augment, generator(1))
    assert torch.equal(first, augmented(images, augment, generator(1)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], images)
    assert first.shape == shape
    if len(images):
        assert first.min() >= 0
        assert first.max() <= 1
        assert not torch.equal(first, augmented(images, augment, generator(2)))


def test_stronger_changes_more() -> None:
    images = torch.rand(200, 1, 1, 1, generator=generator()).expand(-1, -1, 16, 16) * 0.5 + 0.25
    changes = [(random_levels(images, generator(), strength) - images).abs().mean() for strength in (0, 0.5, 1, 1.5)]
    assert changes[0] == 0
    assert changes == sorted(changes)
    assert changes[3] > 2 * changes[1]


def test_each_operation_spares_about_half() -> None:
    images = torch.rand(400, 1, 1, 1, generator=generator()).expand(-1, -1, 16, 16) * 0.5 + 0.25
    changed = random_levels(images, generator(), 1)
    flat = (changed.amax((1, 2, 3)) - changed.amin((1, 2, 3))) < 1e-6  # No noise; contrast and square do not show.
    assert 0.4 < flat.float().mean() < 0.6
    still = (changed[flat] - images[flat]).abs().amax((1, 2, 3)) < 1e-6
    assert 0.2 < still.float().mean() < 0.8


def test_the_square_has_the_images_colour_and_its_size() -> None:
    images = torch.zeros(300, 3, 40, 30)
    images[:, :, :, ::2] = 1
    changed = random_levels(images, generator(), 1)
    grey = ((changed - 0.5).abs() < 1e-6).all(1)  # Where there is no noise and brightness was spared.
    sizes = grey.sum((1, 2))
    assert 0.05 < (sizes > 0).float().mean() < 0.25
    assert sizes.max() <= 8 * 8
