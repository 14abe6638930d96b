from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from sklearn.datasets import load_digits

from augmint.errors import DataError, UsageError
from evaluation.utility import BASELINE, METHODS, UtilityRow, UtilityTable, _conclude, _difference, compare

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]
NAMES = tuple("0123456789")
SMALL = NAMES[5:]


@pytest.fixture(scope="module")
def parts() -> tuple[Labelled, Labelled, Labelled]:
    """8×8 digits: train with 4 images of each of five classes, test, and more real images of those five."""
    images, labels = load_digits(return_X_y=True)
    images = (images * 15).astype(np.uint8).reshape(-1, 8, 8, 1)
    rows = np.random.default_rng(0).permutation(len(labels))
    of_class = [rows[labels[rows] == c] for c in range(10)]

    def pick(spans: list[slice]) -> Labelled:
        chosen = np.concatenate([of_class[c][span] for c, span in enumerate(spans)])
        return images[chosen], labels[chosen].astype(np.int64)

    train = pick([slice(0, 60)] * 5 + [slice(0, 4)] * 5)
    return train, pick([slice(120, None)] * 10), pick([slice(0)] * 5 + [slice(60, 116)] * 5)


@pytest.fixture(scope="module")
def table(parts: tuple[Labelled, Labelled, Labelled]) -> UtilityTable:
    return compare(*parts, NAMES, SMALL, seeds=(0, 1), steps=100, processes=1)


def test_more_real_images_help(table: UtilityTable) -> None:
    # A perfect generator gives what more real images would give.
    recall = {row.method: row.minority_recall for row in table.rows}
    assert list(recall) == [method.name for method in METHODS]
    assert recall["real only"] < recall["oversampling"] + 0.03
    assert recall["real + synthetic"] > recall["real only"] + 0.1
    assert recall["real + synthetic + affine"] > recall[BASELINE]
    assert table.verdict == "helps"
    assert table.conclusion.startswith("It helps: ")
    assert table.n_synthetic["9"] == 56
    assert table.n_train["9"] == 4


def test_wrong_labels_do_harm(parts: tuple[Labelled, Labelled, Labelled]) -> None:
    train, test, (images, labels) = parts
    wrong = images, np.roll(labels, 56)
    methods = [METHODS[2], METHODS[4]]
    table = compare(train, test, wrong, NAMES, SMALL, seeds=(0,), methods=methods, steps=100, processes=1)
    assert table.verdict == "do not use it"
    assert table.rows[1].difference is not None
    assert table.rows[1].difference < 0


def test_processes_change_nothing(parts: tuple[Labelled, Labelled, Labelled]) -> None:
    done: list[tuple[int, int, str]] = []
    methods = METHODS[2:4]
    kwargs = {"seeds": (0,), "methods": methods, "steps": 20}
    alone = compare(*parts, NAMES, SMALL, **kwargs, processes=1)  # type: ignore[arg-type]
    both = compare(*parts, NAMES, SMALL, **kwargs, processes=2, progress=lambda *what: done.append(what))  # type: ignore[arg-type]
    assert both.rows == alone.rows
    assert [what[:2] for what in done] == [(1, 2), (2, 2)]
    assert {what[2] for what in done} == {f"{method.name}, seed 0" for method in methods}


def test_tables_for_people_and_programs(table: UtilityTable) -> None:
    assert json.loads(json.dumps(table.to_json(), allow_nan=False))["verdict"] == table.verdict
    text = table.text()
    for row in table.rows:
        assert row.method in text
    assert text.endswith(table.conclusion)
    console = Console(width=140)
    with console.capture() as captured:
        console.print(table.rich())
    for row in table.rows:
        assert row.method in captured.get()


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.03, "helps"), (-0.01, 0.01, "makes no difference"), (-0.03, -0.01, "do not use it")],
)
def test_the_interval_decides(low: float, high: float, verdict: str) -> None:
    baseline = UtilityRow(BASELINE, 0.9, 0, 0.9, 0, None, None)
    ours = UtilityRow("real + synthetic + affine", 0.9, 0, 0.9, 0, (low + high) / 2, (low, high))
    got, sentence = _conclude([baseline, ours])
    assert got == verdict
    assert f"({low * 100:+.1f} to {high * 100:+.1f} with 95 % confidence)" in sentence


def test_the_interval_is_as_wide_as_it_says() -> None:
    # 95 % intervals of a difference that is really zero: seeds and images both vary.
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(60):
        by_seed = rng.normal(0, 0.02, (5, 1))
        by_image = rng.normal(0, 0.2, (1, 100))
        _, (low, high) = _difference([by_seed + by_image + rng.normal(0, 0.2, (5, 100))])
        missed += not low <= 0 <= high
    assert missed / 60 < 0.15


def test_clear_sentences_for_wrong_questions(parts: tuple[Labelled, Labelled, Labelled]) -> None:
    train, test, synthetic = parts
    with pytest.raises(UsageError, match="has no class 'x'; the classes are '0'"):
        compare(train, test, synthetic, NAMES, ["x"])
    with pytest.raises(UsageError, match="name of a small class"):
        compare(train, test, synthetic, NAMES, [])
    with pytest.raises(DataError, match=r"generated images are \(4, 8, 1\)"):
        compare(train, test, (synthetic[0][:, ::2], synthetic[1]), NAMES, SMALL)
    without = test[1] != 9
    with pytest.raises(DataError, match="no test images of 9"):
        compare(train, (test[0][without], test[1][without]), synthetic, NAMES, SMALL)
