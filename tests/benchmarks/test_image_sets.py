"""The benchmark's data sets: what needs no package to be fetched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from augmint.errors import DataError
from benchmarks import image_sets


def test_what_is_missing_and_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"apt-get is not installed: put Debian's packages dataset-fashion-mnist into"):
        image_sets.load("fashion", tmp_path)
    with pytest.raises(DataError, match=r"npm is not installed: put emoji-datasource-google-16.0.0.tgz into"):
        image_sets.load("emoji", tmp_path)


def test_a_package_of_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "elpv_dataset-1.0.0.post1-py3-none-any.whl").write_bytes(b"something else")
    with pytest.raises(DataError, match="has the sha256"):
        image_sets.load("solar", tmp_path)
    assert not (tmp_path / "solar.npz").exists()


def test_what_is_made_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def make(downloads: Path) -> image_sets.Made:
        calls.append(downloads)
        images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
        return image_sets.Made(images, np.arange(12) % 2, ("a", "b"), np.repeat([0, 1, 2], 4))

    monkeypatch.setitem(image_sets.SOURCES, "toy", image_sets.Source("toy", "a toy", ("b",), make))
    for _ in range(2):
        data = image_sets.load("toy", tmp_path)
        assert data.split_given
        assert data.counts("test") == {"a": 2, "b": 2}
        assert data.channels == 3
    assert len(calls) == 1


def test_groups_are_never_parted() -> None:
    groups = [str(i // 7) for i in range(700)]
    split = image_sets._by_group(groups, (0.6, 0.1, 0.3))
    assert [int((split == side).sum()) for side in range(3)] == [420, 70, 210]
    for group in set(groups):
        assert len({int(split[i]) for i in range(700) if groups[i] == group}) == 1
