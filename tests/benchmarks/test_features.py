"""The benchmark of a critic's features: the protocol's parts and its words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import features
from benchmarks.features import PIXELS, Row, Split, conclude, drawn, measure


def clouds(distance: float) -> tuple[Split, Split]:
    """Features of three classes `distance` apart, and labels, by split."""
    rng = np.random.default_rng(0)
    labels: dict[str, NDArray[Any]] = {}
    found: dict[str, NDArray[Any]] = {}
    for split, count in (("train", 60), ("validation", 40), ("test", 100)):
        labels[split] = np.repeat(np.arange(3), count)
        noise = rng.normal(size=(3 * count, 20))
        noise[np.arange(3 * count), labels[split]] += distance
        found[split] = (noise * 100).astype(np.float32)
    return found, labels


def test_labelled_images_are_drawn_by_class_and_differ_by_seed() -> None:
    labels = np.array([0] * 30 + [1] * 5 + [2] * 20)
    own = drawn(labels, 10, seed=1)
    assert np.bincount(labels[own]).tolist() == [10, 5, 10]
    assert len(set(own.tolist())) == 25
    assert set(own.tolist()) != set(drawn(labels, 10, seed=2).tolist())


def test_better_features_are_measured_as_better() -> None:
    good, labels = clouds(5.0)
    poor, _ = clouds(1.0)
    one, other = (measure("x", [which], labels, [5, 60], seeds=3) for which in (good, poor))
    assert one.accuracy[5] > 0.85 > other.accuracy[5] > 0.4
    assert other.accuracy[60] > other.accuracy[5]
    assert other.deviation[5] > 0
    assert other.deviation[60] == 0, "all are taken: there is one draw"
    assert set(one.strengths.values()) <= set(features.STRENGTHS)
    several = measure("x", [good, poor], labels, [60])
    assert other.accuracy[60] < several.accuracy[60] < one.accuracy[60]


def row(name: str, accuracy: float, deviation: float, validation: float) -> Row:
    return Row(
        name, 7, 10_000, {20: accuracy, 350: 0.96}, {20: deviation, 350: 0.01}, {20: validation, 350: 0.9}, {20: 1.0}
    )


def test_the_conclusion_says_whether_there_is_a_margin() -> None:
    rows = [row(PIXELS, 0.8, 0.01, 0.99), row("a", 0.9, 0.01, 0.9), row("a, untrained", 0.85, 0.01, 0.8)]
    assert "prefers a. " in conclude(rows)
    assert "+5.0 points at 20 (a margin), +0.0 points at 350 (no margin)" in conclude(rows)
    assert "+1.5 points at 20 (no margin)" in conclude([row("a", 0.865, 0.01, 0.9), rows[2]])
    assert "+1.5 points at 20 (a margin)" in conclude([row("a", 0.865, 0.0, 0.9), row("a, untrained", 0.85, 0.0, 0.8)])
    few = [replace(one, tested=100) for one in (row("a", 0.865, 0.0, 0.9), row("a, untrained", 0.85, 0.0, 0.8))]
    assert "+1.5 points at 20 (no margin)" in conclude(few), "a hundred test images cannot tell"
    rows += [row("b", 0.8, 0.01, 0.95), row("b, untrained", 0.85, 0.02, 0.8)]
    assert "prefers b. " in conclude(rows), "by validation, not by test"
    assert "-5.0 points at 20 (worse)" in conclude(rows)


def test_pixels_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["features.py", "--only", "", "--shots", "3", "--out", str(tmp_path), "--json"]
    monkeypatch.setattr("sys.argv", words)
    assert features.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found["rows"]] == [PIXELS]
    assert 0.3 < found["rows"][0]["accuracy"]["3"] < 0.8
    assert "features" in features.text(found)
    assert list(tmp_path.iterdir()) == [], "only a whole benchmark is kept"
    for wrong in (["--shots", "x"], ["--only", "stylegan"]):
        monkeypatch.setattr("sys.argv", ["features.py", *wrong, "--out", str(tmp_path)])
        assert features.main() == 2
