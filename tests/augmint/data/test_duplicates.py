"""Exact and near duplicates stay on one side of the split; contradictions are told."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from augmint.data import duplicates, inspect_data, load_data
from tests.augmint.data.makers import folder, noise, save


def picture(seed: int, size: int = 96) -> NDArray[np.uint8]:
    """A smooth, photograph-like picture."""
    small = Image.fromarray(noise(seed, (7, 7, 3)))
    return np.array(small.resize((size, size), Image.Resampling.BICUBIC))


def recompressed(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def _group(pictures: list[NDArray[np.uint8]], labels: list[int] | None = None) -> tuple[list[int], dict[int, int]]:
    groups, given_up = duplicates.group(
        [str(p.tobytes()) for p in pictures],
        np.array([duplicates.difference_hash(p) for p in pictures], dtype=np.uint64),
        np.array(labels or [0] * len(pictures)),
        np.array([p.shape[1] / p.shape[0] for p in pictures]),
        lambda i: pictures[i],
    )
    return groups.tolist(), given_up


def test_the_same_pixels_in_any_format_are_one_group(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": 10})
    pixels = noise(0)[..., 0]
    for i, name in enumerate(("x.bmp", "x.tif", "x.webp", "rgb.png")):
        picture = Image.fromarray(pixels)
        (picture.convert("RGB") if i == 3 else picture).save(root / "a" / name, lossless=True)
    data = load_data(root)
    same = [i for i, digest in enumerate(data.digests) if digest == data.digests[data.names.index("a/0.png")]]
    assert len(same) == 5
    assert len(set(data.groups[same].tolist())) == 1
    assert len(set(data.split[same].tolist())) == 1


def test_near_duplicates_share_a_group() -> None:
    base = picture(1)
    brighter = np.clip(base.astype(int) + 3, 0, 255).astype(np.uint8)
    half = np.array(Image.fromarray(base).resize((48, 48), Image.Resampling.BICUBIC))
    others = [picture(i) for i in range(2, 10)]
    groups, given_up = _group([base, recompressed(base, 75), brighter, half, *others])
    assert groups[:4] == [0] * 4
    assert groups[4:] == list(range(4, 12))
    assert not given_up


def test_likeness_across_classes_is_no_reason() -> None:
    base = picture(1)
    groups, _ = _group([base, recompressed(base, 90), base.copy()], [0, 1, 1])
    # The third is exactly the first: that joins them, and the second through it.
    assert groups == [0, 0, 0]
    groups, _ = _group([base, recompressed(base, 90)], [0, 1])
    assert groups == [0, 1]


def test_a_class_of_near_equals_is_given_up() -> None:
    frames = [np.clip(picture(1).astype(int) + i, 0, 255).astype(np.uint8) for i in range(12)]
    groups, given_up = _group([*frames, frames[0]])
    assert groups == [*range(12), 0]  # exact duplicates still hold together
    assert given_up == {0: 12}


def test_flat_pictures_are_not_all_alike() -> None:
    groups, _ = _group([np.full((16, 16, 1), level, dtype=np.uint8) for level in range(0, 250, 10)])
    assert len(set(groups)) == 25


def test_too_many_candidates_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", 10)
    groups, given_up = _group([np.full((16, 16, 1), level, dtype=np.uint8) for level in range(8)])
    assert len(set(groups)) == 8
    assert given_up == {0: 8}


def test_handwriting_is_not_mistaken() -> None:
    data = load_data("digits")
    assert len(set(data.groups.tolist())) == len(data)


def test_order_does_not_matter() -> None:
    pictures = [picture(i // 2) if i % 2 else recompressed(picture(i // 2), 85) for i in range(20)]
    one, _ = _group(pictures)
    order = np.random.default_rng(0).permutation(20)
    two, _ = _group([pictures[i] for i in order])
    for i in range(20):
        for j in range(20):
            assert (one[order[i]] == one[order[j]]) == (two[i] == two[j])


def test_contradictions_and_repeats_are_reported(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", {"a": 6, "b": 6})
    shutil.copy(root / "a" / "0.png", root / "b" / "wrong.png")
    save(root / "b" / "one.png", picture(1))
    save(root / "b" / "two.png", recompressed(picture(1), 80))
    report = inspect_data(root)
    assert report.duplicates == (("a/0.png", "b/wrong.png"),)
    assert report.conflicts == (("a: a/0.png", "b: b/wrong.png"),)
    assert report.near_duplicates == (("b/one.png", "b/two.png"),)
    assert report.straddling == ()
    assert any("more than one class" in warning for warning in report.warnings)


def test_given_splits_that_share_images_are_reported(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"a": 6})
    folder(tmp_path / "test", {"a": 3}, first=5)
    report = inspect_data(tmp_path)
    assert report.straddling == (("test: test/a/0.png", "train: train/a/5.png"),)
    assert any("scores will flatter" in warning for warning in report.warnings)
