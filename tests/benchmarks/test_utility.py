"""The benchmark of utility: its figures, its page, and that it takes up what lies there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from augmint.data import DataSet, load_data
from augmint.errors import UsageError
from benchmarks import utility
from benchmarks.image_sets import SOURCES, Source
from benchmarks.utility import CEILING, CEILING_AFFINE, STRONG, WITH, WITHOUT, Cell, Settings

SETTINGS = Settings(training=1000, generators=(0, 1), classifiers=(0, 1), steps=12)
NAMES = tuple("0123456789")


def outcomes(truth: NDArray[np.int64], shares: dict[str, float], generators: int = 2) -> utility.Outcomes:
    """Methods that are right this often, on the same images first."""
    rng = np.random.default_rng(0)
    luck = rng.random(len(truth))
    found: utility.Outcomes = {}
    for name, share in shares.items():
        many = generators if "synthetic" in name else 1
        found[name] = np.broadcast_to(luck < share, (many, 3, len(truth))) ^ (rng.random((many, 3, len(truth))) < 0.02)
    return found


def saved(out: Path, *, ours: float = 0.95) -> dict[str, Any]:
    """A cell's file."""
    truth = np.repeat(np.arange(10), 100)
    shares = {"real only": 0.7, "oversampling": 0.8, STRONG: 0.85, WITHOUT: 0.82, WITH: ours}
    found = outcomes(truth, {**shares, CEILING: 0.96, CEILING_AFFINE: 0.97})
    cell = Cell("mnist5k", 20, SETTINGS)
    result = {
        "cell": cell.name,
        "source": cell.source,
        "words": SOURCES[cell.source].words,
        "shots": 20,
        "settings": utility.asdict(cell.settings),
        "code": utility.code("training", "evaluation"),
        "fingerprint": "0" * 64,
        "small": list(NAMES[5:]),
        "image_shape": [28, 28, 1],
        "n_train": {name: 20 if name >= "5" else 350 for name in NAMES},
        "n_ceiling": dict.fromkeys(NAMES, 350),
        "n_test": dict.fromkeys(NAMES, 100),
        "n_synthetic": {name: 330 if name >= "5" else 0 for name in NAMES},
        "rows": utility.rows(found, truth, NAMES, NAMES[5:]),
        "training": [{"seconds": 60.0, "steps": 900}, {"seconds": 61.0, "steps": 1000}],
        "seconds": 90.0,
        "made": utility.made("torch"),
    }
    utility.save(cell.file(out), json.dumps(result))
    return result


def test_the_page_is_written_from_saved_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path)
    monkeypatch.setattr("sys.argv", ["utility.py", "--only-print", "--out", str(tmp_path), "--docs", str(tmp_path)])
    assert utility.main() == 0
    page = (tmp_path / "utility.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == page
    assert page.count("**It helps: +") == 1
    for name in ("real only", "oversampling", STRONG, WITHOUT, WITH, CEILING, CEILING_AFFINE):
        assert f"\n| {name} | 0." in page
    assert "2 generators of 1,000 steps (best at 900 and 1,000; 60 and 61 s), 2 classifier seeds of 12 steps" in page
    assert "A generator each: real + synthetic 0.8" in page
    assert "nan" not in page.casefold()
    [result] = json.loads((tmp_path / "utility.json").read_text(encoding="utf-8"))
    assert result["cell"] == "mnist5k/20"


@pytest.mark.parametrize(
    ("ours", "word"), [(0.95, "It helps"), (0.5, "Do not use it"), (0.85, "It makes no difference")]
)
def test_the_verdict_is_what_the_interval_says(tmp_path: Path, ours: float, word: str) -> None:
    assert utility.verdict(saved(tmp_path, ours=ours)).startswith(word)


def test_nothing_to_print(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["utility.py", "--only-print", "--out", str(tmp_path), "--docs", str(tmp_path)])
    assert utility.main() == 2
    assert "no finished cells" in capsys.readouterr().err


def test_a_cell_runs_and_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_data("digits")
    monkeypatch.setitem(utility.SOURCES, "digits", Source("digits", "digits, real", ("8", "9")))

    def generated(
        cell: Cell, data: DataSet, needed: dict[str, int], seed: int, out: Path
    ) -> tuple[tuple[NDArray[np.uint8], NDArray[np.int64]], dict[str, float]]:
        assert cell.shots == 5
        assert data.counts("train")["8"] == 5
        images, labels = digits.images("train", shape=(8, 8, 1))
        keep = np.isin(labels, [8, 9])
        rng = np.random.default_rng(seed)
        return ((images[keep] ^ rng.integers(0, 4, images[keep].shape, dtype=np.uint8)), labels[keep]), {
            "seconds": 1.0,
            "steps": 10,
        }

    monkeypatch.setattr(utility, "generated", generated)
    cell = Cell("digits", 5, SETTINGS)
    assert not utility.finished(cell, tmp_path)
    result = utility.measure(cell, tmp_path)
    assert [row["method"] for row in result["rows"]] == [*utility.METHODS, CEILING, CEILING_AFFINE]
    for row in result["rows"]:
        low, high = row["minority_recall"][1:]
        assert 0 <= low <= row["minority_recall"][0] <= high <= 1
        assert set(row["per_class"]) == set(digits.class_names)
        assert (row["by_generator"] is not None) == ("synthetic" in row["method"])
    assert utility.finished(cell, tmp_path)
    assert not utility.finished(Cell("digits", 5, Settings(2.0, (0,), (0, 1), 12)), tmp_path)
    # The same again, but for the time: every fit is remembered.
    again = utility.measure(cell, tmp_path)
    assert again["rows"] == result["rows"]


def test_the_interval_of_several_generators_is_wider() -> None:
    truth = np.repeat(np.arange(2), 200)
    rng = np.random.default_rng(1)
    one = (rng.random((1, 5, 400)) < 0.9).astype(float)
    value, low, high = utility.interval(one, truth, [0, 1])
    assert low < value < high
    # Three generators of which one is much worse: what one of them knows is not enough.
    three = np.concatenate([one, one, one * (rng.random((1, 5, 400)) < 0.7)])
    _, low3, high3 = utility.interval(three, truth, [0, 1])
    assert high3 - low3 > 3 * (high - low)
    assert utility.interval(np.ones((1, 2, 400)), truth, [0, 1]) == (1.0, 1.0, 1.0)


def test_intervals_of_one_generator_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    truth = np.zeros(150, np.int64)
    held = 0
    for _ in range(200):
        difficulty = rng.random(150) < 0.8
        drawn = difficulty ^ (rng.random((1, 5, 150)) < 0.05)
        _, low, high = utility.interval(drawn.astype(float), truth, [0])
        held += low <= 0.8 * 0.95 + 0.2 * 0.05 <= high
    assert 180 <= held <= 199


def arguments(**changes: Any) -> Any:
    usual = {"cells": None, "training": "2500", "generators": None, "classifiers": 5, "steps": 2000, "amount": 1.0}
    return type("Arguments", (), {**usual, "quick": False, **changes})


def test_the_plan() -> None:
    cells = utility.plan(arguments(training="2000,mnist5k/20=9000,solar=1000"))
    assert sorted({cell.source for cell in cells}) == sorted(SOURCES)
    assert len(utility.plan(arguments(cells="solar"))) == 3
    assert cells[0] == Cell("mnist5k", 20, Settings(9000, (0, 1, 2), (0, 1, 2, 3, 4), 2000))
    assert {cell.settings.training for cell in cells if cell.source == "solar"} == {1000}
    assert [cell.name for cell in utility.plan(arguments(cells="letters/5,solar/10"))] == ["letters/5", "solar/10"]


@pytest.mark.parametrize(
    "changes", [{"cells": "cifar"}, {"cells": "solar/x"}, {"training": "x"}, {"training": "2000,solar"}]
)
def test_a_plan_that_cannot_be(changes: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"--(cells|training) "):
        utility.plan(arguments(**changes))
