from __future__ import annotations

import numpy as np

from evaluation.smote import smote, smote_note


def test_fills_up_between_neighbours() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3], [30, 8, 2, 1])
    images = rng.integers(0, 256, (len(labels), 8, 9, 3), dtype=np.uint8)
    made, made_labels = smote(images, labels, seed=0, most=25)
    assert made.dtype == np.uint8
    assert np.array_equal(made[: len(images)], images)
    assert np.bincount(made_labels).tolist() == [30, 30, 27, 1]  # By 25 at most; nothing from a single image.
    low, high = images[labels == 2].min(0), images[labels == 2].max(0)
    new = made[len(images) :][made_labels[len(images) :] == 2]
    assert ((low <= new) & (new <= high)).all()
    assert len(np.unique(new.reshape(len(new), -1), axis=0)) > 20
    again, _ = smote(images, labels, seed=0, most=25)
    other, _ = smote(images, labels, seed=1, most=25)
    assert np.array_equal(made, again)
    assert not np.array_equal(made, other)


def test_says_what_it_could_not_do() -> None:
    assert smote_note({"a": 30, "b": 9}) == (True, "")
    assert smote_note({"a": 30, "b": 3, "c": 1}) == (
        True,
        "fewer than 5 neighbours for b (2); nothing made of a single image (c)",
    )
    able, why = smote_note({"a": 30, "b": 1, "c": 1})
    assert not able
    assert "needs 2 images" in why
    able, why = smote_note({"a": 30, "b": 30})
    assert not able
    assert "nothing to fill up" in why
