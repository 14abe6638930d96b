from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from augmint.errors import DataError
from evaluation.copying import CopyingReport, copying
from evaluation.pixels import PixelPCA
from tests.evaluation.conftest import NAMES, Digits

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


@pytest.fixture(scope="module")
def features(digits: Digits) -> PixelPCA:
    return PixelPCA.fit(digits.train[0])


def look(fakes: Labelled, digits: Digits, features: PixelPCA, held_out: Labelled | None = None) -> CopyingReport:
    return copying(*fakes, *digits.train, *(held_out or digits.held_out), NAMES, features=features)


def test_held_out_reals_are_not_flagged(digits: Digits, features: PixelPCA) -> None:
    images, labels = digits.held_out
    odd = np.arange(len(images)) % 2 == 1
    report = look((images[odd], labels[odd]), digits, features, (images[~odd], labels[~odd]))
    assert report.share is not None
    assert report.share < 0.03
    assert report.expected == pytest.approx(3 / 301)
    assert not report.suspicious
    assert (report.overall.exact, report.overall.near) == (0, 0)
    assert "No sign of copying" in report.conclusion
    json.dumps(report.to_json(), allow_nan=False)


def test_exact_copies_are_found_among_others(digits: Digits, features: PixelPCA) -> None:
    images, labels = digits.held_out
    planted, planted_labels = images[::2].copy(), labels[::2].copy()
    sources = [3, 200, 799]
    planted[[10, 20, 30]] = digits.train[0][sources]
    planted_labels[[10, 20]] = digits.train[1][sources[:2]]
    planted_labels[30] = (digits.train[1][799] + 1) % 10  # Under a wrong label a copy is still a copy.
    report = look((planted, planted_labels), digits, features)
    assert report.overall.exact == 3
    assert report.suspicious
    assert report.conclusion.startswith("Copies: 3 of 300")
    assert {(pair.fake, pair.train) for pair in report.pairs[:3]} == {(10, 3), (20, 200), (30, 799)}
    assert [pair.copy for pair in report.pairs[:4]] == ["exact", "exact", "exact", ""]


@pytest.mark.parametrize("kind", ["noise", "shift", "brightness"])
def test_slightly_changed_copies_are_found(kind: str, digits: Digits, features: PixelPCA) -> None:
    images, labels = digits.train[0][::4], digits.train[1][::4]
    rng = np.random.default_rng(0)
    changed = {
        "noise": images + rng.normal(0, 6, images.shape),
        "shift": np.roll(images, (1, -2), (1, 2)),
        "brightness": images * 0.95,
    }[kind]
    report = look((changed.clip(0, 255).astype(np.uint8), labels), digits, features)
    assert report.overall.near > 0.95 * len(images)
    assert report.overall.held_out_near == 0
    assert report.suspicious
    assert report.pairs[0].copy == "near"
    assert report.pairs[0].train == 4 * report.pairs[0].fake


def test_strong_noise_is_no_copy_to_the_eye_but_too_near(digits: Digits, features: PixelPCA) -> None:
    images, labels = digits.train[0][::4], digits.train[1][::4]
    noisy = images + np.random.default_rng(0).normal(0, 25, images.shape)
    report = look((noisy.clip(0, 255).astype(np.uint8), labels), digits, features)
    assert report.overall.near == 0
    assert report.share is not None
    assert report.share > 0.5
    assert report.suspicious
    assert "Nearer to the training images" in report.conclusion
    assert report.pairs[0].relative is not None
    assert report.pairs[0].relative < 1


def test_shares_need_enough_held_out_images(digits: Digits, features: PixelPCA) -> None:
    images, labels = digits.held_out
    report = look((images, labels), digits, features)
    assert report.share is not None
    assert all(row.share is None and "needs 99 held-out images" in str(row.reason) for row in report.rows)
    some = np.arange(0, len(images), 15)  # 40 images: a 5 % quantile for all of them
    report = look((images, labels), digits, features, (images[some], labels[some]))
    assert report.expected == pytest.approx(2 / 41)
    few = look((images, labels), digits, features, (images[:5], labels[:5]))
    assert few.share is None
    assert "needs 19 held-out images" in few.conclusion
    json.dumps(few.to_json(), allow_nan=False)
    assert "–" in few.text()


def test_classes_without_train_images_and_no_images_at_all(digits: Digits, features: PixelPCA) -> None:
    images, labels = digits.held_out
    without = digits.train[1] != 7
    train = (digits.train[0][without], digits.train[1][without])
    report = copying(images, labels, *train, images, labels, NAMES, features=features)
    assert report.rows[7].n_train == 0
    assert all(labels[pair.fake] != 7 for pair in report.pairs)
    nothing = copying(images[:0], labels[:0], *train, images, labels, NAMES, features=features)
    assert nothing.share is None
    assert nothing.pairs == ()


def test_without_labels_all_are_one(digits: Digits, features: PixelPCA) -> None:
    report = copying(
        digits.train[0][:50], None, digits.train[0], None, digits.held_out[0], None, (), features=features, pairs=3
    )
    assert [row.name for row in report.rows] == ["all"]
    assert report.overall.exact == 50
    assert len(report.pairs) == 3


def test_sizes_must_match(digits: Digits, features: PixelPCA) -> None:
    with pytest.raises(DataError, match="generated images are"):
        copying(digits.train[0][:, ::2], None, digits.train[0], None, digits.held_out[0], None, (), features=features)
