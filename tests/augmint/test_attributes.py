"""Attributes of drawings of which we know them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from augmint.attributes import ATTRIBUTES, measure


def bar(*, slant: float = 0.0, width: float = 4.0, height: float = 20.0, side: int = 40) -> NDArray[np.float64]:
    """One stroke with soft edges, float64 [side, side] in 0 … 1."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    across = np.clip(width / 2 - np.abs(x + slant * y) + 0.5, 0, 1)
    return np.asarray(across * np.clip(height / 2 - np.abs(y) + 0.5, 0, 1))


def shown(share: NDArray[np.float64], ground: float = 0, ink: float = 255) -> NDArray[np.uint8]:
    return np.round(ground + share * (ink - ground)).astype(np.uint8)[None, :, :, None]


def value(name: str, images: NDArray[np.uint8]) -> float:
    return float(measure(images)[name][0])


@pytest.mark.parametrize("slant", [-0.6, -0.2, 0.0, 0.3])
def test_slant_is_the_shear(slant: float) -> None:
    assert value("slant", shown(bar(slant=slant))) == pytest.approx(slant, abs=0.03)


@pytest.mark.parametrize("width", [1.0, 2.0, 3.0, 5.0])
def test_stroke_is_the_width_of_a_long_line(width: float) -> None:
    side = 41 if width % 2 else 40  # so that its edges lie between pixels
    found = value("stroke", shown(bar(width=width, height=34, side=side)))
    assert found == pytest.approx(width, rel=0.2)


def test_a_blurred_line_is_as_wide_as_its_ink_over_its_peak() -> None:
    y, x = np.mgrid[:40, :40] - 19.5
    soft = np.exp(-0.5 * (x / 1.5) ** 2) * (np.abs(y) < 17)
    assert value("stroke", shown(soft)) == pytest.approx(1.5 * np.sqrt(2 * np.pi), rel=0.25)


def test_size_is_the_radius_of_a_disc_and_not_the_ink() -> None:
    y, x = np.mgrid[:40, :40] - 19.5
    distance = np.hypot(x, y)
    for radius in (5.0, 12.0):
        disc = shown(np.clip(radius - distance + 0.5, 0, 1))
        assert value("size", disc) == pytest.approx(radius, rel=0.05)
        faint = shown(np.clip(radius - distance + 0.5, 0, 1), ink=80)
        assert value("size", faint) == pytest.approx(value("size", disc), rel=0.01)


@pytest.mark.parametrize("name", ["slant", "size", "stroke"])
def test_light_on_dark_is_as_dark_on_light_and_grey_as_colour(name: str) -> None:
    share = bar(slant=0.3, width=3)
    light = value(name, shown(share))
    assert value(name, shown(share, ground=255, ink=0)) == pytest.approx(light, rel=1e-6)
    assert value(name, shown(share, ground=40, ink=180)) == pytest.approx(light, rel=0.02)
    colour = np.concatenate([shown(share, ground=10, ink=g) for g in (10, 250, 90)], axis=3)
    assert value(name, colour) == pytest.approx(light, rel=0.02)


def test_brightness_is_the_mean_level() -> None:
    assert value("brightness", np.full((1, 4, 4, 3), 7, np.uint8)) == 7


@given(arrays.arrays(np.uint8, st.tuples(st.just(3), st.integers(4, 12), st.integers(4, 12), st.sampled_from([1, 3]))))
def test_every_image_has_finite_ones_of_its_own(images: NDArray[np.uint8]) -> None:
    together = measure(images)
    assert list(together) == list(ATTRIBUTES)
    for name, values in together.items():
        assert values.shape == (3,)
        assert np.isfinite(values).all()
        assert value(name, images[1:2]) == values[1]


def test_a_blank_image_has_nothing_drawn() -> None:
    found = measure(np.full((1, 8, 8, 1), 200, np.uint8))
    assert [float(found[name][0]) for name in ("slant", "size", "stroke")] == [0, 0, 0]
