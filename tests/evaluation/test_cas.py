from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from augmint.errors import DataError
from evaluation.cache import Cache
from evaluation.cas import cas
from tests.evaluation.conftest import NAMES, Digits


def test_wrong_labels_cost_accuracy_and_fits_are_remembered(tmp_path: Path, digits: Digits) -> None:
    images, labels = digits.held_out
    some = labels < 5
    fakes = (images[some][::3], (labels[some][::3] + 1) % 5)
    told: list[str] = []

    def run() -> str:
        report = cas(
            fakes,
            digits.train,
            (images[some][1::3], labels[some][1::3]),
            NAMES,
            seeds=(0, 1),
            steps=30,
            cache=Cache(tmp_path),
            progress=lambda done, total, what: told.append(f"{done}/{total} {what}"),
        )
        assert [row.name for row in report.rows] == ["generated", "generated + affine", "real", "real + affine"]
        by_name = {row.name: row for row in report.rows}
        ours, real = by_name["generated + affine"], by_name["real + affine"]
        assert ours.accuracy < 0.2
        assert real.accuracy > 0.6
        assert ours.difference == pytest.approx(ours.accuracy - real.accuracy)
        assert ours.difference_interval is not None
        assert ours.difference_interval[1] < 0
        assert real.difference is None
        assert real.n_train == ours.n_train == {name: 20 if int(name) < 5 else 0 for name in NAMES}
        assert real.recalls["7"] is None
        assert "100 generated images alone" in report.conclusion
        assert "generated + affine" in report.text()
        return json.dumps(report.to_json(), allow_nan=False)

    first = run()
    assert told[0] == "1/8 generated, seed 0"
    files = len(list(tmp_path.rglob("*.npz")))
    assert files == 8
    assert run() == first


def test_what_cannot_be_scored(digits: Digits) -> None:
    images, labels = digits.held_out
    with pytest.raises(DataError, match="2 classes or more"):
        cas((images[labels == 1], labels[labels == 1]), digits.train, digits.held_out, NAMES)
    with pytest.raises(DataError, match="no test images"):
        cas(digits.held_out, digits.train, (images[:0], labels[:0]), NAMES)
    with pytest.raises(DataError, match="generated images are"):
        cas((images[:, ::2], labels), digits.train, digits.held_out, NAMES)
    only = digits.train[1] == 1
    with pytest.raises(DataError, match="nothing to compare with"):
        cas(digits.held_out, (digits.train[0][only], digits.train[1][only]), digits.held_out, NAMES)
    tiny = (np.zeros((4, 6, 6, 1), np.uint8), np.array([0, 1, 0, 1]))
    with pytest.raises(DataError, match="8 pixels"):
        cas(tiny, tiny, tiny, NAMES)
