from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.classifier import FEATURES, Classifier, Synthetic, _draw, _pool, train_classifier
from tests.evaluation.conftest import Digits


def stripes(shape: tuple[int, int, int], n: int = 40, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Two classes: lines across and lines down, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    y, x, _ = np.indices(shape)
    images = np.stack([(x if label else y) // 2 % 2 * 120 for label in labels]) + rng.integers(0, 100, (n, *shape))
    return images.astype(np.uint8), labels


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 13, 3), (32, 20, 3), (28, 28, 1), (130, 70, 1)])
def test_learns_images_of_any_size(shape: tuple[int, int, int]) -> None:
    classifier = train_classifier(*stripes(shape), 2, seed=0, steps=30, batch=16)
    images, labels = stripes(shape, seed=1)
    assert (classifier.predict(images) == labels).mean() > 0.9
    assert classifier.logits(images).shape == (40, 2)
    assert classifier.features(images).shape == (40, FEATURES)
    assert classifier.features(images[:0]).shape == (0, FEATURES)


def test_same_seed_same_weights_and_nothing_global() -> None:
    images, labels = stripes((12, 12, 1))
    before = torch.get_rng_state()
    first = train_classifier(images, labels, 2, seed=3, steps=20, augment="affine", sampler="balanced")
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    again = train_classifier(images, labels, 2, seed=3, steps=20, augment="affine", sampler="balanced")
    other = train_classifier(images, labels, 2, seed=4, steps=20, augment="affine", sampler="balanced")
    assert np.array_equal(first.logits(images), again.logits(images))
    assert not np.array_equal(first.logits(images), other.logits(images))


def test_answers_do_not_depend_on_the_batch() -> None:
    images, labels = stripes((16, 16, 3))
    classifier = train_classifier(images, labels, 2, seed=0, steps=10)
    whole = classifier.features(images)
    np.testing.assert_allclose(classifier.features(images, batch=7), whole, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_allclose(classifier.features(images[order]), whole[order], atol=1e-5)
    assert np.square(whole).mean() == pytest.approx(1, abs=1e-3)


def test_survives_a_checkpoint() -> None:
    images, labels = stripes((9, 9, 1))
    classifier = train_classifier(images, labels, 2, seed=0, steps=5)
    file = io.BytesIO()
    torch.save(classifier.state_dict(), file)
    file.seek(0)
    again = Classifier.from_state_dict(torch.load(file, weights_only=True))
    assert np.array_equal(again.logits(images), classifier.logits(images))
    assert np.array_equal(again.features(images), classifier.features(images))


def test_reads_digits(digits: Digits) -> None:
    five = digits.train[1] < 5
    classifier = train_classifier(digits.train[0][five], digits.train[1][five], 10, seed=0, steps=120)
    known = digits.held_out[1] < 5
    assert (classifier.predict(digits.held_out[0][known]) == digits.held_out[1][known]).mean() > 0.93


def probabilities(labels: list[int], fakes: list[int], sampler: str | None, share: float | None) -> NDArray[np.float64]:
    images = np.zeros((len(labels), 8, 8, 1), np.uint8)
    synthetic = Synthetic(np.zeros((len(fakes), 8, 8, 1), np.uint8), np.array(fakes, np.int64), share)
    return _pool(images, np.array(labels), 3, sampler, synthetic)[2]


def test_who_is_drawn_how_often() -> None:
    # Classes 0 and 1 (of 3) are there; class 1 has one real image and two generated ones.
    plain = probabilities([0, 0, 0, 1], [], None, None)
    assert plain == pytest.approx([0.25] * 4)
    balanced = probabilities([0, 0, 0, 1], [], "balanced", None)
    assert balanced == pytest.approx([1 / 6] * 3 + [1 / 2])
    added = probabilities([0, 0, 0, 1], [1, 1], None, None)
    assert added == pytest.approx([1 / 6] * 6)
    mixed = probabilities([0, 0, 0, 1], [1, 1], "balanced", 0.5)
    assert mixed == pytest.approx([1 / 6] * 3 + [1 / 4] + [1 / 8] * 2)
    few = probabilities([0, 0, 1, 1, 1], [1], "balanced", 0.5)
    assert few == pytest.approx([1 / 4] * 2 + [1 / 8] * 4)
    only_fakes = probabilities([0, 0, 0], [1, 1], "balanced", 0.5)
    assert only_fakes == pytest.approx([1 / 6] * 3 + [1 / 4] * 2)


def test_draws_follow_the_probabilities_closely() -> None:
    weights = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
    counts = np.bincount(_draw(weights, 1000, seed=0), minlength=5)
    assert np.abs(counts - weights * 1000).max() <= 1
    assert counts[4] == 0


def test_class_weights_shift_the_answer() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(40) % 2
    heavy = train_classifier(images, labels, 2, seed=0, steps=3, class_weights=np.array([0.01, 10]))
    assert heavy.predict(images).mean() > 0.8


def test_refuses_wrong_arrays() -> None:
    images, labels = stripes((8, 8, 1))
    with pytest.raises(ValueError, match="8x8 or more"):
        train_classifier(images[:, :7], labels, 2, seed=0)
    with pytest.raises(ValueError, match="as many labels"):
        train_classifier(images, labels[:3], 2, seed=0)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        train_classifier(images, labels, 1, seed=0)
    classifier = train_classifier(images, labels, 2, seed=0, steps=1)
    with pytest.raises(ValueError, match="Expected uint8 images"):
        classifier.predict(images[:, :, :4])
