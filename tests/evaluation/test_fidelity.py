from __future__ import annotations

import json

import numpy as np
import pytest

from augmint.errors import DataError
from evaluation.classifier import Classifier, train_classifier
from evaluation.fidelity import measure
from evaluation.pixels import PixelPCA
from tests.evaluation.conftest import NAMES, Digits


@pytest.fixture(scope="module")
def judge(digits: Digits) -> Classifier:
    judge = train_classifier(*digits.held_out, 10, seed=102, steps=250, augment="affine", sampler="balanced")
    judge.name = "a small CNN trained on held-out real images"
    return judge


def test_real_images_measure_as_real_and_collapsed_ones_as_collapsed(judge: Classifier, digits: Digits) -> None:
    reals, labels = digits.held_out
    big = digits.train[1] < 5
    fakes, fake_labels = digits.train[0][big], digits.train[1][big]
    report = measure(fakes, fake_labels, reals, labels, NAMES, features=judge, judge=judge)
    means = report.mean(NAMES[:5])
    for name in ("precision", "recall", "coverage", "label_fidelity"):
        assert means[name] is not None
        assert means[name] > 0.75
    assert report.rows[0].n == 60
    assert (report.rows[0].n_fake, report.rows[0].n_real) == (150, 60)

    one_each = np.stack([fakes[np.flatnonzero(fake_labels == label)[0]] for label in fake_labels])
    collapsed = measure(one_each, fake_labels, reals, labels, NAMES, features=judge, judge=judge).mean(NAMES[:5])
    assert collapsed["recall"] == 0
    assert collapsed["coverage"] is not None
    assert collapsed["coverage"] < 0.3
    assert collapsed["kernel_distance"] is not None
    assert means["kernel_distance"] is not None
    assert collapsed["kernel_distance"] > 2 * means["kernel_distance"]


def test_gaps_have_reasons_and_json_has_no_nan(judge: Classifier, digits: Digits) -> None:
    reals, labels = digits.held_out
    one = np.flatnonzero(labels == 2)[:1]
    report = measure(reals[one], labels[one], reals, labels, NAMES, features=judge, judge=judge)
    row = report.rows[2]
    assert row.recall is None
    assert "kernel_distance" in row.reasons
    assert report.rows[3].n_fake == 0
    assert report.rows[3].label_fidelity is None
    json.dumps(report.to_json(), allow_nan=False)
    text = report.text()
    assert "features: a small CNN trained on held-out real images" in text
    assert "–" in text


def test_without_labels_all_are_one(digits: Digits) -> None:
    extractor = PixelPCA.fit(digits.train[0])
    report = measure(digits.held_out[0], None, digits.train[0], None, (), features=extractor)
    assert [row.name for row in report.rows] == ["all"]
    assert report.judge is None
    assert report.rows[0].coverage is not None


def test_sizes_must_match(judge: Classifier, digits: Digits) -> None:
    with pytest.raises(DataError, match="14×28×1 and the real ones 28×28×1"):
        measure(digits.train[0][:, ::2], None, digits.train[0], None, (), features=judge)


def test_pixels_survive_a_checkpoint_and_take_few_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 70, 90, 3), dtype=np.uint8)
    extractor = PixelPCA.fit(images)
    again = PixelPCA.from_state_dict(extractor.state_dict())
    assert np.array_equal(again.features(images), extractor.features(images))
    assert np.isfinite(PixelPCA.fit(np.zeros((4, 8, 8, 1), np.uint8)).features(images[:1, :8, :8, :1])).all()


def test_a_classifier_by_another_name(digits: Digits) -> None:
    classifier = train_classifier(digits.train[0][:50], digits.train[1][:50], 10, seed=0, steps=1)
    assert "train split" in classifier.name
