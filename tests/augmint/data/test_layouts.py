"""Folders, tables, arrays and built-in sets: what is read, and in which order."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augmint.data import DataSet, load_data, natural_key
from augmint.data import builtin as builtin_module
from augmint.errors import DataError
from tests.augmint.data.makers import folder, noise, save

# --- folders


def test_classes_stand_in_natural_order(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path / "d", {"10": 3, "2": 3, "1": 3, "b": 3, "A": 3}))
    assert data.class_names == ("1", "2", "10", "A", "b")
    assert data.counts() == {"1": 3, "2": 3, "10": 3, "A": 3, "b": 3}
    assert data.spec == str(tmp_path / "d")
    assert data.name == "d"
    assert len(data) == 15


@given(st.lists(st.integers(0, 10**9), unique=True))
def test_natural_order_of_numbers_is_numerical(numbers: list[int]) -> None:
    texts = sorted((f"class {n} x" for n in numbers), key=natural_key)
    assert texts == [f"class {n} x" for n in sorted(numbers)]


@given(st.lists(st.text(), unique=True))
def test_natural_order_is_total(texts: list[str]) -> None:
    assert sorted(texts, key=natural_key) == sorted(reversed(texts), key=natural_key)


def test_what_systems_leave_behind_is_ignored(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": 3, "b": 3})
    for name in (".DS_Store", "Thumbs.db", "a/.hidden.png", "a/desktop.ini", "README.md"):
        (root / name).write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    assert len(load_data(root)) == 6
    assert len(load_data(root)) == 6  # and now with the sidecar beside the class folders


def test_names_beyond_ascii(tmp_path: Path) -> None:
    root = folder(tmp_path / "Übung 猫", {"Äpfel": 3, "猫": 3, "a b": 3})
    save(root / "猫" / "ねこ é.png", noise(100))
    data = load_data(root)
    assert set(data.class_names) == {"Äpfel", "猫", "a b"}
    assert "猫/ねこ é.png" in data.names


def test_composed_and_decomposed_names_are_one_class(tmp_path: Path) -> None:
    save(tmp_path / "\u00e9" / "0.png", noise(0))
    save(tmp_path / "e\u0301" / "1.png", noise(1))
    assert load_data(tmp_path).class_names == ("é",)


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_undecodable_file_names_can_be_told(tmp_path: Path) -> None:
    folder(tmp_path, {"a": 2})
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.png")).write_bytes(b"not an image")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    data = load_data(tmp_path, skip_bad=True)
    json.dumps([item.name for item in data.bad]).encode("utf-8")
    assert [str(item) for item in data.bad] == ["a/\\udcff.png is not an image"]


@pytest.mark.parametrize(
    "names", [("train", "validation", "test"), ("Train", "val", "TEST"), ("training", "dev", "testing")]
)
def test_given_splits_are_kept(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for k, (name, count) in enumerate(zip(names, (5, 2, 3), strict=True)):
        folder(tmp_path / name, {"a": count, "b": count}, first=100 * k)
    data = load_data(tmp_path)
    assert data.split_given
    assert [data.counts(split)["b"] for split in ("train", "validation", "test")] == [5, 2, 3]
    assert not (tmp_path / "augmint-split.json").exists()


def test_given_splits_may_lack_validation_or_a_class(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"a": 4, "b": 4})
    folder(tmp_path / "test", {"a": 2}, first=50)
    (tmp_path / "test" / "b").mkdir()
    data = load_data(tmp_path)
    assert data.counts("test") == {"a": 2, "b": 0}
    assert data.counts("validation") == {"a": 0, "b": 0}
    data.require_images("train")
    with pytest.raises(DataError, match="no test images of 'b'"):
        data.require_images("test")


def test_a_train_folder_alone_is_split_by_augmint(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"a": 10, "b": 10})
    data = load_data(tmp_path)
    assert not data.split_given
    assert data.counts("test") == {"a": 2, "b": 2}


def test_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, {"train": 4, "test": 4}))
    assert data.class_names == ("test", "train")


def test_a_flat_folder_is_one_class(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / "cats" / f"{i}.png", noise(i))
    for _ in range(2):
        data = load_data(tmp_path / "cats")
        assert data.counts() == {"cats": 5}
        assert "one class" in data.notes[0]


def test_one_class_is_legitimate(tmp_path: Path) -> None:
    assert load_data(folder(tmp_path, {"only": 4})).class_names == ("only",)


# --- tables


def table(root: Path, header: str, rows: list[str], name: str = "metadata.csv", *, images: int = 10) -> Path:
    for i in range(images):
        save(root / "img" / f"{i}.png", noise(i))
    path = root / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "header", ["file_name,label", "\ufeffpath;class", "image\tcategory", "Filename, LABEL , extra"]
)
def test_columns_and_delimiters(tmp_path: Path, header: str) -> None:
    mark = max(",;\t", key=header.count)
    rows = [mark.join([f"img/{i}.png", ("10", "2")[i % 2]]) for i in range(6)]
    data = load_data(table(tmp_path, header, rows, "list.csv"))
    assert data.counts() == {"2": 3, "10": 3}
    assert (tmp_path / "list.csv.augmint-split.json").is_file()


def test_a_folder_with_metadata_is_read_by_it(tmp_path: Path) -> None:
    table(
        tmp_path,
        "file_name,label,split",
        [f"img/{i}.png,{'ab'[i % 2]},{['train', 'val', 'test'][i % 3]}" for i in range(6)],
    )
    data = load_data(tmp_path)
    assert data.split_given
    assert data.counts("validation") == {"a": 1, "b": 1}
    assert any("4 images in the folder are not named" in note for note in data.notes)


def test_metadata_of_captions_only_does_not_hide_class_folders(tmp_path: Path) -> None:
    folder(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "metadata.csv").write_text("file_name,caption\na/0.png,hello\n")
    assert load_data(tmp_path).class_names == ("a", "b")


def test_a_table_without_any_label_is_one_class(tmp_path: Path) -> None:
    # As an unconditional bundle's zip has it.
    table(tmp_path / "set", "file_name,label", ["img/0.png,", "img/1.png,"], images=2)
    data = load_data(tmp_path / "set")
    assert data.counts() == {"set": 2}
    assert any("one class" in note for note in data.notes)


def test_quoted_cells_and_absolute_paths_inside(tmp_path: Path) -> None:
    save(tmp_path / "a,b.png", noise(0))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], ["a,b.png", 'the "x"'], [str(tmp_path / "a,b.png"), "y"]])
    assert load_data(tmp_path / "list.csv").class_names == ('the "x"', "y")


# --- npz


def test_npz_with_names_keeps_their_order(tmp_path: Path) -> None:
    images = np.stack([noise(i, (6, 5)) for i in range(6)])
    np.savez(tmp_path / "d.npz", images=images, labels=[0, 1, 1, 0, 2, 2], class_names=["zebra", "ant", "é"])
    data = load_data(tmp_path / "d.npz")
    assert data.class_names == ("zebra", "ant", "é")
    assert data.name == "d"
    assert (tmp_path / "d.npz.augmint-split.json").is_file()
    found, labels = data.images(None, shape=(6, 5, 1))
    assert np.array_equal(found[..., 0], images)
    assert labels.tolist() == [0, 1, 1, 0, 2, 2]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.array([10, 2, 10, 2], dtype=np.uint8), ("2", "10")),
        (np.array([["1"], ["0"], ["1"], ["0"]]), ("0", "1")),
        (np.array([b"x", "é".encode(), b"x", b"x"]), ("x", "é")),
    ],
)
def test_npz_labels(tmp_path: Path, labels: np.ndarray, names: tuple[str, ...]) -> None:
    np.savez(tmp_path / "d.npz", images=np.stack([noise(i, (4, 4, 3)) for i in range(4)]), labels=labels)
    assert load_data(tmp_path / "d.npz").class_names == names


@pytest.mark.parametrize("split", [["train", "val", "test", "test"], np.array([0, 1, 2, 2])])
def test_npz_split(tmp_path: Path, split: object) -> None:
    np.savez(
        tmp_path / "d.npz", images=np.stack([noise(i, (4, 4)) for i in range(4)]), labels=[0, 1, 0, 1], split=split
    )
    data = load_data(tmp_path / "d.npz")
    assert data.split_given
    assert data.split.tolist() == [0, 1, 2, 2]


def test_npz_of_an_unconditional_bundles_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.stack([noise(i) for i in range(4)]), labels=np.zeros(4, int), class_names=[])
    assert load_data(tmp_path / "d.npz").counts() == {"0": 4}


def test_npz_keeps_classes_without_images(tmp_path: Path) -> None:
    images = np.stack([noise(i) for i in range(4)])
    np.savez(tmp_path / "d.npz", images=images, labels=[2, 2, 2, 2], class_names=["a", "b", "c"])
    data = load_data(tmp_path / "d.npz")
    assert data.counts() == {"a": 0, "b": 0, "c": 4}
    with pytest.raises(DataError, match="'a', 'b'"):
        data.require_images()


# --- built in


@pytest.mark.parametrize(("name", "count", "shape"), [("digits", 1797, (8, 8, 1)), ("mnist5k", 5000, (28, 28, 1))])
def test_built_in_sets(name: str, count: int, shape: tuple[int, int, int]) -> None:
    data = load_data(name)
    assert len(data) == count
    assert data.class_names == tuple("0123456789")
    assert data.native_shape() == shape
    assert data.spec == name
    images, _ = data.images("train", shape=shape)
    assert images.max() == 255
    assert abs(len(images) / count - 0.7) < 0.01


def test_a_built_in_sets_split_is_a_pure_function() -> None:
    data = load_data("digits")
    assert load_data("digits").fingerprint == data.fingerprint
    assert load_data("digits", split_seed=1).fingerprint != data.fingerprint


def test_a_missing_extra_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin_module.importlib.util, "find_spec", lambda name: None)
    for name in ("digits", "mnist5k"):
        with pytest.raises(DataError, match=r'pip install "augmint\[datasets\]"') as caught:
            load_data(name)
        assert caught.value.code == "data.missing-extra"


def test_a_data_set_is_its_own_spec(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, {"a": 3}))
    assert load_data(data) is data
    assert isinstance(data, DataSet)
