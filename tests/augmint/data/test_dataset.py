"""What a loaded data set answers: counts, shapes, pixels, its fingerprint; cutting and writing it."""

from __future__ import annotations

import csv
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from augmint.data import DataSet, dataset, load_data, write_folder, write_npz
from augmint.data.writing import folder_names
from augmint.errors import DataError
from augmint.images import read_marks
from tests.augmint.data.makers import folder, noise, save


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return load_data(folder(tmp_path / "d", {"2": 40, "10": 20, "x": 10}))


def test_counts_and_splits(data: DataSet) -> None:
    assert data.counts("train") == {"2": 28, "10": 14, "x": 7}
    assert data.counts("validation") == {"2": 4, "10": 2, "x": 1}
    assert data.counts("test") == {"2": 8, "10": 4, "x": 2}
    with pytest.raises(DataError, match="no split 'val': use train, validation, test"):
        data.counts("val")


def test_images_are_the_callers_own(data: DataSet) -> None:
    for split in ("train", None):
        images, labels = data.images(split, shape=(8, 8, 1))
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64
        before = images.copy()
        images[:] = 0
        labels[:] = 0
        assert np.array_equal(data.images(split, shape=(8, 8, 1))[0], before)
    assert data.labels.any()


def test_images_keep_the_sets_order(data: DataSet) -> None:
    images, labels = data.images(None, shape=(8, 8, 1))
    assert data.names[:3] == ("2/0.png", "2/1.png", "2/2.png")
    assert np.array_equal(images[1], noise(1))
    assert labels.tolist() == sorted(labels.tolist())


def test_only_the_last_few_shapes_are_kept(data: DataSet) -> None:
    for side in (8, 12, 16, 20):
        data.images("train", shape=(side, side, 3))
    assert len(data._shaped) == 2


def test_wrong_arguments(data: DataSet) -> None:
    with pytest.raises(DataError, match="no resize policy 'pad': use fit, crop, stretch"):
        data.images(None, shape=(8, 8, 1), resize="pad")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="1 or 3 channels, not 4"):
        data.images(None, shape=(8, 8, 4))


def test_beyond_the_memory_budget_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, {"a": 100})
    whole, _ = load_data(root).images(None, shape=(8, 8, 1))
    monkeypatch.setattr(dataset, "_KEEP_BYTES", 10 * 64)
    data = load_data(root)
    assert sum(picture.pixels is not None for picture in data.pictures) <= 10 + (os.cpu_count() or 1)
    assert np.array_equal(data.images(None, shape=(8, 8, 1))[0], whole)

    save(root / "a" / "99.png", noise(12345))
    with pytest.raises(DataError, match=r"a/99\.png has changed since the set was loaded"):
        data.images(None, shape=(8, 8, 3))
    (root / "a" / "99.png").unlink()
    with pytest.raises(DataError, match=r"a/99\.png cannot be opened .*: it was readable"):
        data.images(None, shape=(8, 8, 3))


@pytest.mark.parametrize(
    ("size", "resolution", "shape"),
    [
        ((28, 28), None, (28, 28, 1)),
        ((8, 8), None, (8, 8, 1)),
        ((30, 30), None, (32, 32, 1)),
        ((300, 200), None, (64, 44, 1)),
        ((3, 200), None, (8, 64, 1)),
        ((28, 28), 32, (32, 32, 1)),
        ((28, 28), (20, 40), (20, 40, 1)),
    ],
)
def test_native_shape(
    tmp_path: Path, size: tuple[int, int], resolution: int | None, shape: tuple[int, int, int]
) -> None:
    for i in range(3):
        save(tmp_path / "a" / f"{i}.png", noise(i, (*size, 1)))
    data = load_data(tmp_path)
    assert data.native_shape(resolution) == shape
    assert data.sizes() == Counter({(*size, "L"): 3})


def test_one_coloured_image_makes_the_set_coloured(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "a" / f"{i}.png", np.repeat(noise(i), 3, axis=2))
    assert load_data(tmp_path).native_shape() == (8, 8, 1)  # RGB files of grey pixels are grey
    save(tmp_path / "a" / "3.png", noise(3, (8, 8, 3)))
    data = load_data(tmp_path)
    assert data.native_shape() == (8, 8, 3)
    images, _ = data.images(None, shape=(8, 8, 3))
    assert np.array_equal(images[0], np.repeat(noise(0), 3, axis=2))
    assert data.images(None, shape=(8, 8, 1))[0].shape == (4, 8, 8, 1)


def test_resolution_out_of_range(data: DataSet) -> None:
    with pytest.raises(DataError, match="out of range"):
        data.native_shape(0)


# --- fingerprint


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(12)))
def test_fingerprint_knows_no_order(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    root = tmp_path_factory.mktemp("f")
    images = np.stack([noise(i) for i in range(12)])
    labels = np.arange(12) % 3
    write_npz(images, labels, "abc", root / "one.npz")
    write_npz(images[order], labels[order], "abc", root / "two.npz")
    one, two = load_data(root / "one.npz"), load_data(root / "two.npz")
    assert one.fingerprint == two.fingerprint
    assert two.split.tolist() == one.split[order].tolist()


def test_fingerprint_knows_the_rest(tmp_path: Path) -> None:
    images = np.stack([noise(i) for i in range(12)])
    labels = np.arange(12) % 3
    split = np.arange(12) % 3
    changed = images.copy()
    changed[3, 0, 0, 0] ^= 1
    variants = [
        (images, labels, "abc", split),
        (changed, labels, "abc", split),
        (images, np.roll(labels, 1), "abc", split),
        (images, labels, "abd", split),
        (images, labels, "acb", split),
        (images, labels, "abc", np.roll(split, 1)),
        (images[:-1], labels[:-1], "abc", split[:-1]),
    ]
    found = set()
    for k, (pixels, label, names, side) in enumerate(variants):
        write_npz(pixels, label, names, tmp_path / f"{k}.npz", arrays={"split": side})
        found.add(load_data(tmp_path / f"{k}.npz").fingerprint)
    assert len(found) == len(variants)
    assert all(len(fingerprint) == 64 for fingerprint in found)


# --- cut


def test_cut(data: DataSet) -> None:
    cut = data.cut({"2": 10, "10": 3})
    assert cut.counts("train") == {"2": 10, "10": 3, "x": 7}
    assert cut.counts("validation") == {"2": 2, "10": 1, "x": 1}
    assert cut.counts("test") == data.counts("test")
    assert cut.fingerprint != data.fingerprint
    assert data.cut({"2": 10, "10": 3}).fingerprint == cut.fingerprint
    assert data.cut({"2": 10, "10": 3}, seed=1).fingerprint != cut.fingerprint
    assert set(data.cut({"2": 5}).names) < set(data.cut({"2": 9}).names)
    images, labels = cut.images("train", shape=(8, 8, 1))
    assert len(images) == len(labels) == 20


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"3": 1}, "no class '3' to cut: it has 2, 10, x"),
        ({"x": 8}, "has 7 train images"),
        ({"x": 0}, "cut it to 1 … 7"),
    ],
)
def test_bad_cut(data: DataSet, counts: dict[str, int], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        data.cut(counts)


def test_pickles(data: DataSet) -> None:
    again = pickle.loads(pickle.dumps(data))
    assert again.fingerprint == data.fingerprint
    assert np.array_equal(again.images(None, shape=(8, 8, 1))[0], data.images(None, shape=(8, 8, 1))[0])


# --- writing


def test_written_and_read_again(data: DataSet, tmp_path: Path) -> None:
    cut = data.cut({"2": 10})
    out = cut.write(tmp_path / "sub" / "out")
    assert sorted(path.name for path in out.iterdir()) == ["test", "train", "validation"]
    again = load_data(out)
    assert again.split_given
    assert again.fingerprint == cut.fingerprint
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_written_at_native_sizes_and_modes(tmp_path: Path) -> None:
    save(tmp_path / "d" / "猫" / "0.png", noise(0, (5, 9, 3)))
    save(tmp_path / "d" / "猫" / "1.png", noise(1, (9, 5, 1)))
    save(tmp_path / "d" / "猫" / "1.bmp", noise(2, (9, 5, 1)))
    save(tmp_path / "d" / "b" / "1.png", noise(3, (9, 5, 1)))
    data = load_data(tmp_path / "d")
    again = load_data(data.write(tmp_path / "out"))
    assert again.fingerprint == data.fingerprint
    assert again.sizes() == Counter({(5, 9, "RGB"): 1, (9, 5, "L"): 3})


def test_a_set_of_train_images_only_stays_one(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path / "d", {"a": 2, "b": 2}))
    assert data.counts("train") == {"a": 2, "b": 2}
    assert load_data(data.write(tmp_path / "out")).fingerprint == data.fingerprint


def test_write_refuses_class_names_that_are_no_folders(tmp_path: Path) -> None:
    write_npz(np.stack([noise(i) for i in range(6)]), np.arange(6) % 2, ["a/b", "c"], tmp_path / "d.npz")
    data = load_data(tmp_path / "d.npz")
    with pytest.raises(DataError, match="'a/b' cannot be a folder's name"):
        data.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_write_refuses_a_place_in_use(data: DataSet, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    data.write(tmp_path / "empty")
    with pytest.raises(DataError, match="is there already and not empty"):
        data.write(tmp_path / "empty")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="is there already and is no folder"):
        data.write(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be written"):
        data.write(tmp_path / "file" / "below")


def test_a_failed_write_leaves_nothing(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    (tmp_path / "place").mkdir()
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\): choose another place"):
        data.write(tmp_path / "place" / "out")
    assert list((tmp_path / "place").iterdir()) == []


def test_write_folder(tmp_path: Path) -> None:
    images = np.stack([noise(i, (6, 7, 3)) for i in range(5)])
    labels = np.array([1, 0, 2, 1, 2])
    names = ("10", "a/b", "CON")
    mark = {"bundle": "ab" * 32, "label": "a/b", "seed": 2**64 - 1, "index": 3, "truncation": 0.5}
    out = write_folder(
        images,
        labels,
        names,
        tmp_path / "out",
        marks=[mark, None, None, None, None],  # type: ignore[list-item]
        columns={"synthetic": [True, False, False, False, False], "seed": [2**64 - 1, None, None, None, None]},
    )
    with (out / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"file_name": "a_b/000000.png", "label": "a/b", "synthetic": "True", "seed": str(2**64 - 1)}
    assert rows[1]["seed"] == ""
    assert read_marks((out / "a_b/000000.png").read_bytes()) == mark
    assert read_marks((out / "a_b/000001.png").read_bytes()) is None

    data = load_data(out)
    assert set(data.class_names) == set(names)
    found, found_labels = data.images(None, shape=(6, 7, 3))
    assert np.array_equal(found, images)
    assert [data.class_names[k] for k in found_labels] == [names[k] for k in labels]


def test_write_folder_is_read_by_folders_too(tmp_path: Path) -> None:
    out = write_folder(np.stack([noise(i) for i in range(6)]), np.arange(6) % 2, ("a", "b"), tmp_path / "out")
    (out / "metadata.csv").unlink()
    assert load_data(out).counts() == {"a": 3, "b": 3}


def test_write_folder_refuses_names_that_collide(tmp_path: Path) -> None:
    images = np.stack([noise(i) for i in range(2)])
    with pytest.raises(DataError, match="would be named 'x'"):
        write_folder(images, np.array([0, 0]), ("a",), tmp_path / "out", names=["X", "x"])
    with pytest.raises(ValueError, match="marks has 1 values for 2 images"):
        write_folder(images, np.array([0, 0]), ("a",), tmp_path / "out", marks=[None])
    with pytest.raises(ValueError, match="labels must lie in 0 … 0"):
        write_folder(images, np.array([0, 1]), ("a",), tmp_path / "out")
    with pytest.raises(ValueError, match="images must be uint8"):
        write_folder(images / 255, np.array([0, 0]), ("a",), tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@given(st.lists(st.text(min_size=1), unique=True, max_size=8))
def test_folder_names_are_tame_and_distinct(names: list[str]) -> None:
    found = folder_names(names)
    assert len({name.casefold() for name in found}) == len(names)
    for name in found:
        assert name == name.strip()
        assert not name.startswith(".")
        assert not set(name) & set('<>:"/\\|?*\0\n')
        assert len(name.encode("utf-8", "replace")) < 200


def test_write_npz(tmp_path: Path) -> None:
    images = np.stack([noise(i) for i in range(4)])
    out = write_npz(images, np.array([0, 1, 1, 0]), ("é", "b"), tmp_path / "d.npz", arrays={"seeds": np.arange(4)})
    assert load_data(out).class_names == ("é", "b")
    assert np.load(out)["seeds"].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="is there already"):
        write_npz(images, np.zeros(4, int), ("a",), out)
    with pytest.raises(DataError, match=r"does not end in \.npz"):
        write_npz(images, np.zeros(4, int), ("a",), tmp_path / "d.zip")
    with pytest.raises(DataError, match="cannot be written"):
        write_npz(images, np.zeros(4, int), ("a",), tmp_path / "gone" / "d.npz")


def test_exif_orientation_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    (tmp_path / "a").mkdir()
    Image.fromarray(noise(0, (4, 10, 3))).save(tmp_path / "a" / "0.png", exif=exif)
    data = load_data(tmp_path)
    assert data.sizes() == Counter({(10, 4, "RGB"): 1})
    assert np.array_equal(data.images(None, shape=(10, 4, 3))[0][0], np.rot90(noise(0, (4, 10, 3)), -1))
