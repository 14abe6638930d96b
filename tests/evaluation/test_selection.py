from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from augmint.errors import DataError
from evaluation.selection import SelectionScore
from tests.evaluation.conftest import NAMES, Digits

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


def noise(like: Labelled) -> Labelled:
    return np.random.default_rng(1).integers(0, 256, like[0].shape, dtype=np.uint8), like[1]


def collapsed(like: Labelled) -> Labelled:
    """The first image of each class, again and again."""
    images, labels = like
    return np.stack([images[np.flatnonzero(labels == label)[0]] for label in labels]), labels


def blurred(like: Labelled, radius: float) -> Labelled:
    images = [Image.fromarray(image[:, :, 0]).filter(ImageFilter.GaussianBlur(radius)) for image in like[0]]
    return np.stack([np.asarray(image)[:, :, None] for image in images]), like[1]


def half_of_the_classes(like: Labelled) -> Labelled:
    """Knows five classes, and gives one of them when asked for another."""
    images, labels = like
    rng = np.random.default_rng(1)
    return np.stack([images[rng.choice(np.flatnonzero(labels == label % 5))] for label in labels]), labels


def test_orders_generators(selection: SelectionScore, digits: Digits) -> None:
    real = digits.held_out
    shuffled = (real[0], np.random.default_rng(1).permutation(real[1]))
    sets = {
        "noise": noise(real),
        "shuffled": shuffled,
        "half": half_of_the_classes(real),
        "collapsed": collapsed(real),
        "blur 2": blurred(real, 2),
        "blur 1": blurred(real, 1),
        "real": real,
    }
    value = {name: selection.score(*fakes).value for name, fakes in sets.items()}
    assert value["noise"] < 0.05
    assert value["shuffled"] < 0.1
    assert max(value["noise"], value["shuffled"], value["blur 2"]) < value["collapsed"] < 0.35
    assert value["collapsed"] < value["half"] < 0.6
    assert value["blur 2"] < value["blur 1"] < value["real"]
    assert value["collapsed"] < value["real"] - 0.4
    assert value["real"] > 0.85


def test_pooled_orders_generators_too(selection: SelectionScore, digits: Digits) -> None:
    # An unconditional generator follows the law of its training images: so do these, unlike the balanced held-out set.
    keep = np.concatenate([np.flatnonzero(digits.held_out[1] == c)[:n] for c, n in enumerate([60] * 5 + [8] * 5)])
    real = digits.held_out[0][keep], digits.held_out[1][keep]
    only_two = np.concatenate([real[0][:120]] * 3)[: len(keep)]
    value = {
        "noise": selection.score(noise(real)[0]).value,
        "one image": selection.score(np.repeat(real[0][:1], len(keep), 0)).value,
        "two classes": selection.score(only_two).value,
        "real": selection.score(real[0]).value,
    }
    assert value["noise"] < 0.2
    assert value["one image"] < 0.2
    assert value["two classes"] < value["real"] - 0.2
    assert value["real"] > 0.85


@pytest.mark.parametrize("labelled", [False, True])
def test_without_classes_pixels_are_the_features(digits: Digits, labelled: bool) -> None:
    images, labels = (part[digits.train[1] == 3] for part in digits.train)
    validation = digits.validation[0][digits.validation[1] == 3]
    real = tuple(part[digits.held_out[1] == 3] for part in digits.held_out)
    zeros = (np.zeros_like(labels), np.zeros(len(validation), np.int64)) if labelled else (None, None)
    score = SelectionScore.fit(images, zeros[0], ["3"] if labelled else [], validation, zeros[1], seed=0)
    asked = np.zeros(len(real[1]), np.int64) if labelled else None
    value = {
        "noise": score.score(noise(real)[0], asked).value,
        "collapsed": score.score(collapsed(real)[0], asked).value,
        "blurred": score.score(blurred(real, 2)[0], asked).value,
        "real": score.score(real[0], asked).value,
    }
    assert "pixels" in score.extractor
    assert max(value["noise"], value["collapsed"]) < 0.2
    assert value["blurred"] < value["real"] - 0.2
    assert value["real"] > 0.8


def test_details_say_what_was_compared(selection: SelectionScore, digits: Digits) -> None:
    score = selection.score(*digits.held_out)
    assert score.details["n_fake"] == len(digits.held_out[1])
    assert "5, 6, 7, 8, 9" in str(score.details["remark"])
    assert score.per_class["0"]["real images"] == "validation"
    assert score.per_class["9"]["n_real"] == 23
    json.dumps([score.details, score.per_class])


def test_a_class_that_was_not_made_scores_nothing(selection: SelectionScore, digits: Digits) -> None:
    keep = digits.held_out[1] != 7
    score = selection.score(digits.held_out[0][keep], digits.held_out[1][keep])
    assert score.per_class["7"]["value"] == 0
    assert score.value < selection.score(*digits.held_out).value


def test_same_scores_after_a_resume(selection: SelectionScore, digits: Digits) -> None:
    file = io.BytesIO()
    torch.save(selection.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = SelectionScore.restore(state, *digits.train, NAMES, *digits.validation)
    assert again.score(*digits.held_out) == selection.score(*digits.held_out)
    plain = SelectionScore.fit(digits.train[0], None, [], digits.validation[0], None, seed=0)
    again = SelectionScore.restore(plain.state_dict(), digits.train[0], None, [], digits.validation[0], None)
    assert again.score(digits.held_out[0]) == plain.score(digits.held_out[0])


def test_no_validation_images_and_few_of_all() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)
    labels = np.array([0, 0, 0, 1, 1])
    nothing = images[:0], labels[:0]
    score = SelectionScore.fit(images, labels, ["a", "b", "empty"], *nothing, seed=0, steps=3).score(images, labels)
    assert 0 <= score.value <= 1
    assert score.details["not scored"] == "fewer than 2 real images: empty"
    with pytest.raises(DataError, match="at least 2 training images"):
        SelectionScore.fit(images[:1], labels[:1], ["a"], *nothing, seed=0)


def test_images_too_small_for_a_network() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 7, 1), dtype=np.uint8)
    labels = np.arange(12) % 2
    score = SelectionScore.fit(images, labels, ["a", "b"], images[:0], labels[:0], seed=0)
    assert score.steps == 0
    assert 0 <= score.score(images, labels).value <= 1


def test_seconds_bound_the_fit(digits: Digits) -> None:
    few = digits.train[0][::40, :8, :8], digits.train[1][::40]
    score = SelectionScore.fit(
        *few, NAMES, digits.validation[0][:0, :8, :8], digits.validation[1][:0], seed=0, seconds=0
    )
    assert score.steps == 200  # The least that is worth anything, however little time there is.
