from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import linalg

from evaluation import bootstrap
from evaluation.frechet import frechet_distance, least_points


def directly(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The formula as the paper prints it, with a matrix root."""
    a, b = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    apart = x.mean(0) - y.mean(0)
    return float(apart @ apart + np.trace(a + b - 2 * np.real(linalg.sqrtm(a @ b))))


def torchmetrics_fid(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.fid import FrechetInceptionDistance

        features = torch.nn.Flatten()
        features.num_features = x.shape[1]
        metric = FrechetInceptionDistance(feature=features)
        metric.update(torch.from_numpy(x), real=True)
        metric.update(torch.from_numpy(y), real=False)
        return float(metric.compute())


def test_worked_by_hand() -> None:
    # One dimension: means 1 and 11, variances 2 and 8: 10² + 2 + 8 - 2 √16.
    x, y = np.array([[0.0], [2]]), np.array([[9.0], [13]])
    assert frechet_distance(x, y, least=2).value == pytest.approx(102)


@pytest.mark.parametrize(("n", "m", "dim"), [(200, 150, 1), (60, 90, 4), (300, 200, 32)])
def test_agrees_with_the_formula_and_with_torchmetrics(n: int, m: int, dim: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)), rng.normal(0.5, 2, size=(m, dim))
    value = frechet_distance(x, y).value
    assert value == pytest.approx(directly(x, y), rel=1e-8)
    assert value == pytest.approx(torchmetrics_fid(x, y), rel=1e-6)


def test_low_rank_and_constant_features_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 100)), rng.normal(1, 1, size=(30, 100))
    value = frechet_distance(x, y, least=2).value
    assert value is not None
    # Whatever both lack, a rotation brings no more: 50 points span at most 50 dimensions.
    basis = np.linalg.qr(np.concatenate([x, y]).T)[0]
    assert value == pytest.approx(directly(x @ basis, y @ basis), rel=1e-4)
    flat = frechet_distance(np.ones((60, 8)), np.ones((60, 8)))
    assert flat.value == flat.bias == 0


@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(2, 40), m=st.integers(2, 40), scale=st.sampled_from([1e-6, 1, 1e6])
)
@settings(max_examples=40, deadline=None)
def test_symmetric_invariant_and_finite(seed: int, n: int, m: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 5)) * scale, rng.normal(size=(m, 5)) * scale
    value = frechet_distance(x, y, least=2).value
    assert value is not None
    assert np.isfinite(value)
    assert value >= 0
    tolerance = {"rel": 1e-6, "abs": 1e-9 * scale**2}
    assert frechet_distance(y, x, least=2).value == pytest.approx(value, **tolerance)
    assert frechet_distance(rng.permutation(x) + scale, y + scale, least=2).value == pytest.approx(value, **tolerance)


def test_the_bias_is_what_a_second_real_sample_shows() -> None:
    rng = np.random.default_rng(0)
    same = [frechet_distance(rng.normal(size=(150, 20)), rng.normal(size=(100, 20))) for _ in range(30)]
    values, biases = (np.mean([getattr(one, name) for one in same]) for name in ("value", "bias"))
    assert values > 1  # Far from 0, though it is one law.
    assert biases == pytest.approx(values, rel=0.1)


def test_influences_predict_a_reweighting() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 3)), rng.normal(0.5, 1.5, size=(300, 3))
    found = frechet_distance(x, y)
    assert found.value is not None
    assert found.real_influence is not None
    assert found.fake_influence is not None
    twice = np.concatenate([x, x[:40]])
    weights = np.where(np.arange(400) < 40, 2, 1) * 400 / 440
    moved = frechet_distance(twice, y).value
    assert moved is not None
    assert moved - found.value == pytest.approx(np.mean(weights * found.real_influence), rel=0.2, abs=0.01)
    moved = frechet_distance(x, np.concatenate([y, y[:30]])).value
    weights = np.where(np.arange(300) < 30, 2, 1) * 300 / 330
    assert moved is not None
    assert moved - found.value == pytest.approx(np.mean(weights * found.fake_influence), rel=0.2, abs=0.01)


def test_intervals_hold_their_promise() -> None:
    """Of 100 experiments about 95 have the mean distance in their interval."""
    rng, draws = np.random.default_rng(0), np.random.default_rng(1)
    found = [frechet_distance(rng.normal(size=(150, 4)), rng.normal(0.4, 1.2, size=(150, 4))) for _ in range(100)]
    mean = np.mean([one.value for one in found])
    hits = 0
    for one in found:
        assert one.value is not None
        assert one.real_influence is not None
        assert one.fake_influence is not None
        resampled = [bootstrap.resampled_means(side, draws) for side in (one.real_influence, one.fake_influence)]
        low, high = bootstrap.interval(one.value + resampled[0] + resampled[1])
        hits += low <= mean <= high
    assert 87 <= hits <= 100


@pytest.mark.parametrize(("n", "m", "dim"), [(0, 0, 2), (1, 60, 2), (49, 500, 2), (600, 600, 1280)])
def test_too_few_images_give_a_reason(n: int, m: int, dim: int) -> None:
    result = frechet_distance(np.zeros((n, dim)), np.zeros((m, dim)))
    assert result.value is result.bias is None
    assert f"needs {least_points(dim)} images a side" in str(result.reason)
    assert f"got {n} real and {m} fake" in str(result.reason)


def test_refuses_what_is_not_features() -> None:
    good = np.zeros((60, 2))
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(good, np.full((60, 2), np.nan))
    with pytest.raises(ValueError, match="2 dimensions and fake ones 3"):
        frechet_distance(good, np.zeros((60, 3)))
