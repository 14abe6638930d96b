"""Warnings of the evidence: a class whose images miss the real ones is named."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from export.evidence import _warnings


def report(**figures: object) -> SimpleNamespace:
    row = {"name": "scratch", "n_real": 40, "recall": 0.8, "coverage": 0.9, "label_fidelity": 0.99} | figures
    return SimpleNamespace(rows=[SimpleNamespace(**row)])


@pytest.mark.parametrize("figures", [{"recall": 0.28}, {"coverage": 0.44}])
def test_a_weak_class_is_named(figures: dict[str, float]) -> None:
    (warning,) = _warnings(report(**figures), classes=2)  # type: ignore[arg-type]
    assert "scratch (recall" in warning


@pytest.mark.parametrize("figures", [{}, {"recall": None, "coverage": None}])
def test_a_good_or_unmeasured_class_is_not(figures: dict[str, float]) -> None:
    assert _warnings(report(**figures), classes=2) == ()  # type: ignore[arg-type]


def test_a_figure_of_few_images_only_warns_that_they_are_few() -> None:
    (warning,) = _warnings(report(n_real=5, recall=0.0), classes=2)  # type: ignore[arg-type]
    assert "Fewer than 20" in warning
