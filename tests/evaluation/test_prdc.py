from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.prdc import Prdc, prdc


def brute_force(real: NDArray[np.float64], fake: NDArray[np.float64], k: int) -> tuple[float, float, float, float]:
    """The papers' definitions, point by point."""

    def radius(i: int, points: NDArray[np.float64]) -> float:
        others = [float(np.linalg.norm(points[i] - points[j])) for j in range(len(points)) if j != i]
        return sorted(others)[k - 1]

    real_radii = [radius(i, real) for i in range(len(real))]
    fake_radii = [radius(j, fake) for j in range(len(fake))]
    near = [[float(np.linalg.norm(x - y)) for y in fake] for x in real]
    rows, columns = range(len(real)), range(len(fake))
    precision = np.mean([any(near[i][j] < real_radii[i] for i in rows) for j in columns])
    recall = np.mean([any(near[i][j] < fake_radii[j] for j in columns) for i in rows])
    density = np.mean([sum(near[i][j] < real_radii[i] for i in rows) / k for j in columns])
    coverage = np.mean([any(near[i][j] < real_radii[i] for j in columns) for i in rows])
    return float(precision), float(recall), float(density), float(coverage)


def figures(result: Prdc) -> tuple[float | None, ...]:
    return result.precision, result.recall, result.density, result.coverage


def test_worked_by_hand() -> None:
    # Real radii at k = 1: 1, 1, 1, 8; fake radii: 4.5, 4.5, 25.
    # 0.5 lies in the balls of 0 and 1, and 5 in that of 10; 30 in none. No fake reaches the ball of 2.
    # 10 is within 25 of 30; the other reals are within 4.5 of 0.5.
    result = prdc(np.array([[0.0], [1], [2], [10]]), np.array([[0.5], [5], [30]]), k=1)
    assert figures(result) == pytest.approx((2 / 3, 1.0, (2 + 1 + 0) / 3, 3 / 4))


@pytest.mark.parametrize(("n", "m", "dim", "k"), [(40, 30, 3, 5), (7, 25, 1, 3), (30, 6, 64, 5), (60, 60, 2, 1)])
def test_agrees_with_the_definitions(n: int, m: int, dim: int, k: int) -> None:
    rng = np.random.default_rng(n)
    real, fake = rng.normal(size=(n, dim)), rng.normal(0.3, 0.8, size=(m, dim))
    assert figures(prdc(real, fake, k=k)) == pytest.approx(brute_force(real, fake, k))


@pytest.mark.parametrize(("n", "k"), [(60, 5), (40, 3)])
def test_agrees_with_the_authors_package(n: int, k: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(n)
    real, fake = rng.normal(size=(n, 6)), rng.normal(0.4, 0.8, size=(n, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import prdc as theirs

        expected = theirs.compute_prdc(real, fake, nearest_k=k)
    names = ("precision", "recall", "density", "coverage")
    assert figures(prdc(real, fake, k=k)) == pytest.approx(tuple(expected[name] for name in names))


def test_measures_are_the_means_of_their_points() -> None:
    rng = np.random.default_rng(0)
    result = prdc(rng.normal(size=(40, 3)), rng.normal(size=(30, 3)))
    sides = {"precision": 30, "recall": 40, "density": 30, "coverage": 40}
    assert {name: len(points) for name, points in result.points.items()} == sides
    for name, points in result.points.items():
        assert points.mean() == pytest.approx(getattr(result, name))


def test_a_set_against_itself() -> None:
    points = np.random.default_rng(0).normal(size=(100, 8))
    assert figures(prdc(points, points)) == pytest.approx((1, 1, 1, 1))


def test_collapse_keeps_precision_and_loses_recall_and_coverage() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 4))
    result = prdc(real, np.repeat(real[:1] * 0.5, 200, axis=0))
    assert result.precision == 1
    assert result.recall == 0
    assert result.coverage is not None
    assert result.coverage < 0.2


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 40), m=st.integers(2, 40), chunk=st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_neither_order_nor_chunk_matters(seed: int, n: int, m: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(n, 5)), rng.normal(size=(m, 5))
    expected = prdc(real, fake, k=3)
    assert prdc(rng.permutation(real), rng.permutation(fake), k=3, chunk=chunk) == expected


def test_few_images_clip_k_and_say_so() -> None:
    rng = np.random.default_rng(0)
    result = prdc(rng.normal(size=(3, 2)), rng.normal(size=(4, 2)), k=5)
    assert (result.k_real, result.k_fake) == (2, 3)
    assert "got 3 real and 4 fake" in result.reasons["k"]
    assert None not in figures(result)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (1, 5), (5, 0), (5, 1), (1, 1)])
def test_too_few_images_give_a_reason_not_a_nan(n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    result = prdc(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)))
    for name, value in zip(("precision", "recall", "density", "coverage"), figures(result), strict=True):
        assert (value is None) == (name in result.reasons)
        assert value is None or np.isfinite(value)
    assert None in figures(result)


def test_refuses_what_is_not_features() -> None:
    good = np.zeros((5, 2))
    with pytest.raises(ValueError, match="NaN"):
        prdc(good, np.full((5, 2), np.nan))
    with pytest.raises(ValueError, match="2 dimensions"):
        prdc(good, np.zeros(5))
    with pytest.raises(ValueError, match="2 dimensions and fake ones 3"):
        prdc(good, np.zeros((5, 3)))
