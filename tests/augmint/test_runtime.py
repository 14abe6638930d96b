"""Cores are those that the process may use, in a container too."""

from __future__ import annotations

from pathlib import Path

import pytest

from augmint.runtime import usable_cores


@pytest.mark.parametrize(("text", "most"), [("100000 100000", 1), ("50000 100000", 1), ("1 100000", 1)])
def test_a_quota_counts(tmp_path: Path, text: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(str(tmp_path / "cpu.max")) == most


@pytest.mark.parametrize("text", ["max 100000", "", "1 0", "nonsense"])
def test_no_quota_or_an_unreadable_one_does_not(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(str(tmp_path / "cpu.max")) == usable_cores(str(tmp_path / "missing"))
