from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.intervals import FEWEST, Estimate, estimate, resample


def even(truth: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    there = np.bincount(truth, minlength=num_classes) > 0
    return there / there.sum()


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    seeds = draw(st.integers(1, 4))
    truth = np.array(draw(st.lists(st.integers(0, 3), min_size=1, max_size=25)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    one = rng.random((seeds, len(truth))) < draw(st.floats(0, 1))
    other = rng.random((seeds, len(truth))) < draw(st.floats(0, 1))
    return one, other, truth


@settings(max_examples=60, deadline=None)
@given(case=outcomes(), level=st.sampled_from([0.8, 0.95, 0.99]))
def test_contracts_whatever_the_outcomes(
    case: tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]], level: float
) -> None:
    one, other, truth = case
    found = resample({"one": one, "other": other}, truth, 5)
    weights = even(truth, 5)
    forth = estimate(found["one"], weights, found["other"], level)
    back = estimate(found["other"], weights, found["one"], level)
    exact = np.mean([(one[:, truth == c].mean() - other[:, truth == c].mean()) for c in np.unique(truth)])
    assert forth.value == pytest.approx(exact)
    assert back.value == pytest.approx(-exact)
    assert forth.differing == back.differing <= len(truth)
    assert forth.sign == -back.sign
    alone = estimate(found["one"], weights, level=level)
    if len(truth) < 2:
        assert forth.interval is alone.interval is None
        assert forth.sign == 0
        return
    assert forth.interval is not None
    assert back.interval is not None
    assert alone.interval is not None
    assert -1 <= forth.interval[0] <= forth.value + 1e-12
    assert forth.value - 1e-12 <= forth.interval[1] <= 1
    assert back.interval == pytest.approx((-forth.interval[1], -forth.interval[0]))
    assert 0 <= alone.interval[0] <= alone.interval[1] <= 1
    wider = estimate(found["one"], weights, found["other"], 0.999).interval
    assert wider is not None
    assert wider[0] <= forth.interval[0]
    itself = estimate(found["one"], weights, found["one"], level)
    assert (itself.value, itself.interval, itself.differing, itself.sign) == (0, (0, 0), 0, 0)


@pytest.mark.parametrize(
    ("of_seeds", "of_images", "images"), [(0.08, 0.0, 60), (0.0, 0.3, 60), (0.06, 0.3, 60), (0.0, 0.3, 6), (0, 0, 40)]
)
def test_intervals_are_as_wide_as_they_say(of_seeds: float, of_images: float, images: int) -> None:
    # Two methods of equal worth; seeds and images favour now one, now the other.
    rng = np.random.default_rng(0)
    truth = np.arange(images) % 3
    missed = 0
    for _ in range(150):
        lean = rng.normal(0, of_seeds, (5, 1)) + rng.normal(0, of_images, (1, images))
        one, other = (rng.random((5, images)) < (0.6 + way * lean).clip(0.02, 0.98) for way in (0.5, -0.5))
        found = resample({"one": one, "other": other}, truth, 3)
        interval = estimate(found["one"], even(truth, 3), found["other"]).interval
        assert interval is not None
        missed += not interval[0] <= 0 <= interval[1]
    assert missed / 150 < 0.09


def test_single_images_of_classes_are_judged_together() -> None:
    truth = np.arange(10)
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(100):
        one, other = (np.repeat(rng.random((1, 10)) < 0.5, 3, 0) for _ in range(2))
        found = resample({"one": one, "other": other}, truth, 10)
        interval = estimate(found["one"], even(truth, 10), found["other"]).interval
        assert interval is not None
        missed += not interval[0] <= 0 <= interval[1]
    assert missed / 100 < 0.12


@pytest.mark.parametrize(("images", "sign"), [(FEWEST - 1, 0), (FEWEST, 1)])
def test_a_handful_of_images_claims_nothing(images: int, sign: int) -> None:
    truth = np.zeros(images, np.int64)
    found = resample({"all": np.ones((5, images), bool), "none": np.zeros((5, images), bool)}, truth, 1)
    better = estimate(found["all"], np.ones(1), found["none"])
    assert better == Estimate(1.0, (1.0, 1.0), images)
    assert better.sign == sign
