from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from augmint.errors import DataError
from evaluation.cache import Cache
from evaluation.classifier import Classifier, train_classifier
from evaluation.fidelity import MEASURES, measure
from evaluation.label_fidelity import open_judge
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


def test_every_figure_has_an_interval_and_all_classes_a_row(judge: Classifier, digits: Digits) -> None:
    reals, labels = digits.held_out
    fakes, fake_labels = digits.train
    pixels = PixelPCA.fit(fakes)
    report = measure(fakes, fake_labels, reals, labels, NAMES, features=pixels, judge=judge)
    # 60 reals of each class; 150 fakes of five classes and 20 of the others: the same number a side and class counts.
    assert (report.overall.n_real, report.overall.n_fake, report.overall.n) == (400, 400, 400)
    assert set(report.overall.intervals) == set(report.mean_intervals) == set(MEASURES)
    for row in (*report.rows, report.overall):
        assert set(row.intervals) | set(row.reasons) >= set(MEASURES)
        for name, (low, high) in row.intervals.items():
            assert low - 1e-9 <= getattr(row, name) <= high + 1e-9 or getattr(row, name) in (0, 1)
            assert low < high
    assert report.rows[0].frechet_distance is not None
    assert report.rows[9].frechet_distance is None
    assert "needs 50 images a side" in report.rows[9].reasons["frechet_distance"]
    # The fakes are real: nearly all of their distance is bias.
    assert report.overall.frechet_bias is not None
    assert report.overall.frechet_distance == pytest.approx(report.overall.frechet_bias, rel=0.5)
    means = report.mean()
    for name, (low, high) in report.mean_intervals.items():
        assert means[name] is not None
        assert low < means[name] < high
    # The mean of ten classes is known better than any of them.
    widths = [row.intervals["coverage"][1] - row.intervals["coverage"][0] for row in report.rows]
    assert report.mean_intervals["coverage"][1] - report.mean_intervals["coverage"][0] < min(widths)
    assert report == measure(fakes, fake_labels, reals, labels, NAMES, features=pixels, judge=judge)


def test_the_judge_is_trained_on_what_the_generator_has_not_seen(tmp_path: Path, digits: Digits) -> None:
    cache = Cache(tmp_path)
    judge = open_judge(digits.train, digits.held_out, 10, steps=100, cache=cache)
    assert judge is not None
    assert judge.independent
    assert judge.name == "a small CNN trained on held-out real images"
    assert judge.accuracy is not None
    assert judge.accuracy > 0.6
    # Asked again, it answers from the cache without being trained.
    again = open_judge(digits.train, digits.held_out, 10, steps=100, cache=cache)
    assert again is not None
    assert again.accuracy == judge.accuracy
    assert again._classifier is None
    # 3 validation images of a class are too few.
    other = open_judge(digits.train, digits.validation, 10, steps=100)
    assert other is not None
    assert not other.independent
    assert "train split" in other.name
    assert open_judge(digits.train, (digits.train[0][:0], digits.train[1][:0]), 10) is not None
    one = (digits.train[0][:20], np.zeros(20, np.int64))
    assert open_judge(one, one, 1) is None


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
