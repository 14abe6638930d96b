"""The split: a partition, stratified, made once, the same in any order, never parting what belongs together."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from augmint.data import load_data
from augmint.data import split as split_module
from augmint.data.split import DEFAULT_FRACTIONS, assign, read_split
from augmint.errors import DataError
from tests.augmint.data.makers import folder, noise, save

_QUICK = settings(max_examples=60, deadline=None)


def _digest(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


@st.composite
def _sets(draw: st.DrawFn) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Digests, labels and groups of up to 120 images; now and then two to four belong together."""
    labels = draw(st.lists(st.integers(0, 3), min_size=1, max_size=120))
    groups = [draw(st.integers(0, i)) if draw(st.integers(0, 9)) == 0 else i for i in range(len(labels))]
    for i, group in enumerate(groups):
        groups[i] = groups[group]
    return [_digest(i) for i in range(len(labels))], np.array(labels), np.array(groups)


_fractions = st.sampled_from([DEFAULT_FRACTIONS, (0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.8, 0.0, 0.2), (1.0, 0.0, 0.0)])


@_QUICK
@given(_sets(), _fractions, st.integers(0, 3))
def test_a_partition_that_parts_no_group(
    found: tuple[list[str], NDArray[np.int64], NDArray[np.int64]], fractions: tuple[float, float, float], seed: int
) -> None:
    digests, labels, groups = found
    split = assign(digests, labels, groups, assigned={}, fractions=fractions, seed=seed)
    assert set(split.tolist()) <= {0, 1, 2}
    for group in set(groups.tolist()):
        assert len(set(split[groups == group].tolist())) == 1
    for side, share in enumerate(fractions):
        if share == 0:
            assert not (split == side).any()


@_QUICK
@given(st.lists(st.integers(0, 3), min_size=1, max_size=150), _fractions, st.integers(0, 3))
def test_stratified(labels: list[int], fractions: tuple[float, float, float], seed: int) -> None:
    digests = [_digest(i) for i in range(len(labels))]
    split = assign(digests, np.array(labels), np.arange(len(labels)), assigned={}, fractions=fractions, seed=seed)
    for label, total in Counter(labels).items():
        sides = np.bincount(split[np.array(labels) == label], minlength=3)
        if total < 3:
            assert sides.tolist() == [total, 0, 0]
            continue
        assert all(abs(count - share * total) < 2 for count, share in zip(sides, fractions, strict=True))
        assert sides[0] > 0
        assert sides[2] > 0 or fractions[2] == 0
        assert sides[1] > 0 or fractions[1] == 0 or total < 5


@_QUICK
@given(_sets(), st.randoms(use_true_random=False))
def test_order_does_not_matter(found: tuple[list[str], NDArray[np.int64], NDArray[np.int64]], random: object) -> None:
    digests, labels, groups = found
    order = list(range(len(digests)))
    random.shuffle(order)  # type: ignore[attr-defined]
    one = assign(digests, labels, groups, assigned={}, fractions=DEFAULT_FRACTIONS, seed=0)
    two = assign(
        [digests[i] for i in order], labels[order], groups[order], assigned={}, fractions=DEFAULT_FRACTIONS, seed=0
    )
    assert one[order].tolist() == two.tolist()


@_QUICK
@given(_sets(), st.data())
def test_what_is_assigned_stays(
    found: tuple[list[str], NDArray[np.int64], NDArray[np.int64]], data: st.DataObject
) -> None:
    digests, labels, groups = found
    many = data.draw(st.integers(0, len(digests)))
    before = assign(digests[:many], labels[:many], groups[:many], assigned={}, fractions=DEFAULT_FRACTIONS, seed=0)
    assigned = dict(zip(digests[:many], before.tolist(), strict=True))
    after = assign(digests, labels, groups, assigned=assigned, fractions=DEFAULT_FRACTIONS, seed=0)
    assert after[:many].tolist() == before.tolist()
    for group in set(groups.tolist()):
        assert len(set(after[groups == group].tolist())) == 1


# --- on disk


def test_kept_beside_the_data_and_by_content(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", {"a": 20, "b": 10})
    first = load_data(root)
    assert (root / "augmint-split.json").is_file()
    split = dict(zip(first.digests, first.split.tolist(), strict=True))

    for i in range(20):
        (root / "a" / f"{i}.png").rename(root / "a" / f"renamed {99 - i}.png")
    again = load_data(root, split_seed=5)  # the stored split holds
    assert dict(zip(again.digests, again.split.tolist(), strict=True)) == split
    assert again.fingerprint == first.fingerprint
    assert any("the stored split holds (made with seed 0" in note for note in again.notes)

    folder(root, {"a": 30}, first=500)  # 30 others of the same names
    save(root / "b" / "new.png", noise(999))
    grown = load_data(root)
    assert {d: s for d, s in zip(grown.digests, grown.split.tolist(), strict=True) if d in split} == split
    assert grown.counts("test")["a"] == 10
    assert grown.fingerprint != first.fingerprint


def test_images_that_come_back_return_to_their_place(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", {"a": 12})
    first = load_data(root)
    kept = tmp_path / "kept"
    (root / "a").rename(kept)
    folder(root, {"a": 12}, first=100)
    load_data(root)
    for file in kept.iterdir():
        shutil.copy(file, root / "a" / f"old {file.name}")
    split = dict(zip(first.digests, first.split.tolist(), strict=True))
    back = load_data(root)
    assert {d: s for d, s in zip(back.digests, back.split.tolist(), strict=True) if d in split} == split


def test_loading_again_does_not_touch_the_file(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": 5})
    load_data(root)
    before = (root / "augmint-split.json").stat()
    load_data(root)
    after = (root / "augmint-split.json").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def _refuse_in(monkeypatch: pytest.MonkeyPatch, *places: Path) -> None:
    """Make folders read-only, for root too."""
    real = split_module._replace

    def replace(place: Path, text: str) -> None:
        if any(place.is_relative_to(root) for root in places):
            raise PermissionError(13, "Permission denied")
        real(place, text)

    monkeypatch.setattr(split_module, "_replace", replace)


def test_a_read_only_place_uses_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUGMINT_CACHE", str(tmp_path / "cache"))
    root = folder(tmp_path / "d", {"a": 10})
    _refuse_in(monkeypatch, root)
    first = load_data(root)
    assert not (root / "augmint-split.json").exists()
    assert len(list((tmp_path / "cache" / "splits").iterdir())) == 1
    assert any("read-only: the split is kept in" in note for note in first.notes)
    folder(root, {"a": 5}, first=200)
    load_data(root)
    stored = read_split(root / "augmint-split.json")
    assert stored is not None
    assert len(stored.assigned) == 15
    assert all(stored.assigned[d] == s for d, s in zip(first.digests, first.split.tolist(), strict=True))


def test_a_place_that_becomes_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "d", {"a": 10})
    seen: dict[str, int] = {}
    for step in range(4):
        data = load_data(root)
        now = dict(zip(data.digests, data.split.tolist(), strict=True))
        assert {digest: now[digest] for digest in seen} == seen
        seen = now
        for i in range(7):
            save(root / "a" / f"{step} {i}.png", noise(1000 + 10 * step + i))
        _refuse_in(monkeypatch, root)


def test_nowhere_to_store_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "d", {"a": 10})
    _refuse_in(monkeypatch, tmp_path, split_module.cache_folder())
    data = load_data(root)
    assert any("could not be stored" in note for note in data.notes)
    assert load_data(root).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"schema_version": 1', '"schema_version": 2'),
        lambda text: text.replace('"test"', '"tset"'),
        lambda text: text.replace('"seed": 0', '"seed": null'),
        lambda text: text.replace("0.7", "0.9"),
        lambda text: json.dumps({**json.loads(text), "splits": {"train": [1], "validation": [], "test": []}}),
        lambda text: json.dumps({**json.loads(text), "splits": {"train": ["ab"], "validation": [], "test": []}}),
        lambda text: json.dumps(
            {**json.loads(text), "splits": {"train": ["a" * 64], "validation": [], "test": ["a" * 64]}}
        ),
    ],
)
def test_a_damaged_split_is_never_silently_made_anew(tmp_path: Path, spoil: object) -> None:
    root = folder(tmp_path, {"a": 5})
    load_data(root)
    place = root / "augmint-split.json"
    place.write_text(spoil(place.read_text()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"augmint-split\.json is damaged .* delete it to split anew") as caught:
        load_data(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fractions", [(0.5, 0.1, 0.1), (0, 0.5, 0.5), (1.2, -0.1, -0.1), (1, 0), (float("nan"), 0, 1)])
def test_bad_fractions(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match="add up to 1"):
        load_data("digits", fractions=fractions)


def test_platform_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUGMINT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("LOCALAPPDATA", "/l")
    for platform, end in (("linux", "x/augmint"), ("win32", "l/augmint/Cache"), ("darwin", "Library/Caches/augmint")):
        monkeypatch.setattr(split_module.sys, "platform", platform)
        assert split_module.cache_folder().as_posix().endswith(end)


def test_a_set_whose_split_nobody_needs_leaves_nothing_behind(tmp_path: Path) -> None:
    folder(tmp_path / "set", {"a": 6, "b": 6})
    load_data(tmp_path / "set", store_split=False)
    assert not (tmp_path / "set" / "augmint-split.json").exists()
    load_data(tmp_path / "set")
    assert (tmp_path / "set" / "augmint-split.json").exists()
