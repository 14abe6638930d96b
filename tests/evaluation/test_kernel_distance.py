from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.kernel_distance import kernel_distance, mean_kernel


def directly(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The estimator as the paper prints it, pair by pair."""

    def k(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_worked_by_hand() -> None:
    # One dimension, k(x, y) = (xy + 1)^3: k(0, 1) = 1, k(2, 3) = 343, between 1, 1, 27, 64 -> 93 / 4.
    result = kernel_distance(np.array([[0.0], [1]]), np.array([[2.0], [3]]))
    assert result.value == pytest.approx(1 + 343 - 2 * 93 / 4)


@pytest.mark.parametrize(("n", "m", "dim"), [(2, 2, 1), (20, 31, 4), (9, 40, 128)])
def test_agrees_with_the_formula(n: int, m: int, dim: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, dim)), rng.normal(0.5, 2, size=(m, dim))
    assert kernel_distance(x, y).value == pytest.approx(directly(x, y), rel=1e-9)


def test_agrees_with_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 16)), rng.normal(0.5, 2, size=(80, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.kid import KernelInceptionDistance

        # Its subsets are drawn without replacement: one subset of all points is every point.
        metric = KernelInceptionDistance(feature=torch.nn.Flatten(), subsets=1, subset_size=80)
        metric.update(torch.from_numpy(x), real=True)
        metric.update(torch.from_numpy(y), real=False)
        theirs, _ = metric.compute()
    assert kernel_distance(x, y).value == pytest.approx(float(theirs), rel=1e-9)


def test_influences_predict_a_reweighting() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 4)), rng.normal(0.5, 1, size=(250, 4))
    found = kernel_distance(x, y)
    assert found.value is not None
    assert found.fake_influence is not None
    assert found.fake_influence.mean() == pytest.approx(0, abs=1e-9)
    without = np.arange(250) >= 10
    moved = kernel_distance(x, y[without]).value
    assert moved is not None
    assert moved - found.value == pytest.approx(np.mean(without * 250 / 240 * found.fake_influence), rel=0.2, abs=0.01)
    assert kernel_distance(x, y, blocks=2).fake_influence is None


def test_same_law_is_zero_on_average_and_another_is_not() -> None:
    rng = np.random.default_rng(0)
    same = [kernel_distance(rng.normal(size=(50, 4)), rng.normal(size=(50, 4))).value for _ in range(200)]
    assert None not in same
    values = np.array(same, dtype=np.float64)
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(200)
    moved = kernel_distance(rng.normal(size=(50, 4)), rng.normal(1, 1, size=(50, 4))).value
    assert moved is not None
    assert moved > 10 * values.std()


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 40), m=st.integers(2, 40), chunk=st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_neither_order_nor_chunk_matters(seed: int, n: int, m: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 5)), rng.normal(size=(m, 5))
    expected = kernel_distance(x, y).value
    got = kernel_distance(rng.permutation(x), rng.permutation(y), chunk=chunk).value
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_blocks_are_deterministic_and_near_the_whole() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 8)), rng.normal(0.5, 1, size=(200, 8))
    blocks = kernel_distance(x, y, blocks=50, block_size=100)
    assert blocks == kernel_distance(x, y, blocks=50, block_size=100)
    assert blocks.value == pytest.approx(kernel_distance(x, y).value, rel=0.2)
    assert blocks.std is not None
    assert blocks.std > 0
    assert kernel_distance(x, y[:20], blocks=3).block_size == 20


@pytest.mark.parametrize(("n", "m"), [(0, 0), (1, 5), (5, 1)])
def test_too_few_images_give_a_reason(n: int, m: int) -> None:
    result = kernel_distance(np.zeros((n, 2)), np.zeros((m, 2)))
    assert result.value is None
    assert f"got {n} real and {m} fake" in str(result.reason)


def test_mean_kernel() -> None:
    assert mean_kernel(np.array([[0.0], [1]])) == pytest.approx((1 + 1 + 1 + 8) / 4)
