from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from numpy.typing import NDArray

from evaluation.cache import Arrays, Cache, digest

DTYPES = [np.uint8, np.int64, np.float32, np.float64, np.bool_]


def never() -> Arrays:
    raise AssertionError("it was to be remembered")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(array=st.sampled_from(DTYPES).flatmap(lambda dtype: nps.arrays(dtype, nps.array_shapes(min_dims=0, min_side=0))))
def test_what_was_computed_comes_back_bit_for_bit(tmp_path: Path, array: NDArray[Any]) -> None:
    cache = Cache(tmp_path)
    key = {"of": digest(array), "shape": array.shape, "dtype": array.dtype.str}
    cache.keep("any", key, {"array": array, "other": np.arange(3)})
    again = Cache(tmp_path).arrays("any", key, never)
    assert list(again) == ["array", "other"]
    assert again["array"].dtype == array.dtype
    assert again["array"].shape == array.shape
    assert again["array"].tobytes() == array.tobytes()


def test_every_part_of_the_key_counts_and_its_order_does_not(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.keep("fits", {"seed": 1, "images": ["a", "b"]}, {"x": np.zeros(1)})
    assert cache.find("fits", {"images": ("a", "b"), "seed": 1}) is not None
    assert cache.find("fits", {"seed": 2, "images": ["a", "b"]}) is None
    assert cache.find("fits", {"seed": 1, "images": ["b", "a"]}) is None
    assert cache.find("features", {"seed": 1, "images": ["a", "b"]}) is None
    for kind, key in (("../up", {"a": 1}), ("fits", {"a": np.zeros(2)}), ("fits", {"a": float("nan")})):
        with pytest.raises(ValueError, match=r"kind|JSON"):
            cache.find(kind, key)  # type: ignore[arg-type]


def test_damaged_files_are_computed_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.keep("fits", {"a": 1}, {"x": np.arange(1000)})
    (path,) = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for damaged in (b"", whole[:100], whole[:-1], bytes(flipped), b"not a zip" * 50):
        path.write_bytes(damaged)
        assert cache.find("fits", {"a": 1}) is None
        assert np.array_equal(cache.arrays("fits", {"a": 1}, lambda: {"x": np.arange(1000)})["x"], np.arange(1000))
        assert path.read_bytes() == whole


def test_pickles_are_neither_written_nor_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    objects = np.array([{"a": 1}], dtype=object)
    with pytest.raises(ValueError, match="objects"):
        cache.keep("fits", {"a": 1}, {"x": objects})
    with pytest.raises(ValueError, match="objects"):
        digest(objects)
    cache.keep("fits", {"a": 1}, {"x": np.zeros(1)})
    (path,) = tmp_path.rglob("*.npz")
    with path.open("wb") as file:
        np.savez(file, x=objects)
    assert cache.find("fits", {"a": 1}) is None


def test_what_failed_is_not_remembered_and_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> Arrays:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).arrays("fits", {"a": 1}, interrupted)
    assert not list(tmp_path.rglob("*.npz"))


def test_the_oldest_go_when_it_grows_too_large(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=100_000)
    for i in range(30):
        cache.keep("fits", {"a": i}, {"x": np.zeros(10_000, np.uint8)})
        for path in tmp_path.rglob("*.npz"):
            os.utime(path, (path.stat().st_mtime - 10,) * 2)
        cache.find("fits", {"a": 0})  # The only one in use.
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 110_000
    assert next(i for i in range(30) if cache.find("fits", {"a": i}) is not None) == 0
    assert cache.find("fits", {"a": 29}) is not None
    assert cache.clear() > 0
    assert cache.find("fits", {"a": 29}) is None


def test_no_directory_remembers_nothing_and_an_unwritable_one_only_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = Cache(None)
    nothing.keep("fits", {"a": 1}, {"x": np.zeros(1)})
    assert nothing.find("fits", {"a": 1}) is None
    assert nothing.clear() == 0
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file")
    with caplog.at_level(logging.WARNING, "augmint"):
        for i in range(2):
            assert cache.arrays("fits", {"a": i}, lambda: {"x": np.ones(1)})["x"] == 1
    assert len(caplog.records) == 1


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUGMINT_CACHE", str(tmp_path))
    assert Cache.default().directory == tmp_path / "evaluation"
    monkeypatch.delenv("AUGMINT_CACHE")
    found = Cache.default().directory
    assert found is not None
    assert found.parts[-2:] == ("augmint", "evaluation")


def test_digests_see_values_shape_and_type_not_layout() -> None:
    a = np.arange(12, dtype=np.int64).reshape(3, 4)
    assert digest(a) == digest(np.asfortranarray(a)) == digest(a.astype(">i8"))
    others = [a.T, a.reshape(4, 3), a.astype(np.int32), a + 1, a[:2]]
    assert len({digest(a), *map(digest, others)}) == 6
    assert digest(a, a) != digest(a)
