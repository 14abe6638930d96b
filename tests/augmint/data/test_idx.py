"""IDX files as MNIST's: what is read, how it is split, and every way to be damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from augmint.data import load_data
from augmint.errors import DataError
from tests.augmint.data.makers import folder, noise


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def pair(
    root: Path, split: str, count: int, *, first: int = 0, packed: bool = True, dot: str = "-"
) -> NDArray[np.uint8]:
    """`count` images of 8×6 with the labels 0, 10, 2, 0, …"""
    images = np.stack([noise(first + i, (8, 6)) for i in range(count)])
    labels = np.array([(0, 10, 2)[i % 3] for i in range(count)], np.uint8)
    for name, array in ((f"{split}-images{dot}idx3-ubyte", images), (f"{split}-labels{dot}idx1-ubyte", labels)):
        (root / (name + (".gz" if packed else ""))).write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return images


@pytest.mark.parametrize(("packed", "dot"), [(True, "-"), (False, "-"), (False, ".")])
def test_the_files_of_mnist(tmp_path: Path, packed: bool, dot: str) -> None:
    train = pair(tmp_path, "train", 9, packed=packed, dot=dot)
    test = pair(tmp_path, "t10k", 6, first=50, packed=packed, dot=dot)
    (tmp_path / "README.md").write_text("hello")
    data = load_data(tmp_path)
    assert data.class_names == ("0", "2", "10")
    assert data.split_given
    assert data.counts("train") == {"0": 3, "2": 3, "10": 3}
    assert data.counts("validation") == {"0": 0, "2": 0, "10": 0}
    images, labels = data.images("train", shape=(8, 6, 1))
    assert np.array_equal(images[..., 0], train)
    assert labels.tolist() == [0, 2, 1] * 3
    assert np.array_equal(data.images("test", shape=(8, 6, 1))[0][..., 0], test)
    assert data.names[0] == "train/0"
    assert not (tmp_path / "augmint-split.json").exists()


def test_one_pair_alone_is_split_by_augmint_and_may_bear_the_sets_name(tmp_path: Path) -> None:
    pair(tmp_path, "emnist-digits-train", 30)
    data = load_data(tmp_path)
    assert not data.split_given
    assert data.counts("test") == {"0": 2, "2": 2, "10": 2}
    assert (tmp_path / "augmint-split.json").is_file()
    assert data.notes == ("there are train images only: augmint makes the split.",)


def test_unpacked_beside_packed_is_read_once(tmp_path: Path) -> None:
    pair(tmp_path, "train", 6)
    pair(tmp_path, "train", 6, packed=False)
    assert len(load_data(tmp_path)) == 6


def test_a_folder_of_class_folders_stays_one(tmp_path: Path) -> None:
    folder(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    assert load_data(tmp_path).class_names == ("a", "b")


def test_naming_the_file_itself(tmp_path: Path) -> None:
    pair(tmp_path, "train", 3)
    with pytest.raises(DataError, match="one of a set's IDX files: name the folder"):
        load_data(tmp_path / "train-images-idx3-ubyte.gz")


def test_two_sets_in_one_folder(tmp_path: Path) -> None:
    pair(tmp_path, "emnist-letters-train", 3)
    pair(tmp_path, "emnist-digits-train", 3)
    with pytest.raises(DataError, match=r"2 sets of IDX files \('emnist-digits-', 'emnist-letters-'\)"):
        load_data(tmp_path)


@pytest.mark.parametrize("lost", ["images", "labels"])
def test_half_a_pair(tmp_path: Path, lost: str) -> None:
    pair(tmp_path, "train", 3)
    pair(tmp_path, "t10k", 3)
    name = {"images": "t10k-images-idx3-ubyte.gz", "labels": "t10k-labels-idx1-ubyte.gz"}[lost]
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"but no {name}: put it there"):
        load_data(tmp_path)


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    pair(tmp_path / "there", "train", 3)
    for file in (tmp_path / "there").iterdir():
        (tmp_path / "here" / file.name).symlink_to(file)
    with pytest.raises(DataError, match="leads out of the folder"):
        load_data(tmp_path / "here")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not an IDX file"),
        (b"\x89PNG....", "is not an IDX file"),
        (idx(np.zeros((3, 8, 6), np.uint8))[:-1], "has less in it than its header says"),
        (idx(np.zeros((3, 8, 6), np.uint8)) + b"x", "has more in it than its header says"),
        (bytes([0, 0, 8, 3, 0, 0]), "has less in it than its header says"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2), "claims to hold more than 16 GiB"),
        (bytes([0, 0, 0x0D, 3]) + bytes(12), "3 dimensions of type 0x0d, but images are 3 of unsigned bytes"),
        (idx(np.zeros((3, 8), np.uint8)), "2 dimensions of type 0x08, but images are 3"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 3, 0, 6), "images of 0x6, which have no pixels"),
        (idx(np.zeros((4, 8, 6), np.uint8)), "4 images but train-labels-idx1-ubyte 3 labels"),
        (idx(np.zeros((0, 8, 6), np.uint8)), "0 images but train-labels-idx1-ubyte 3 labels"),
    ],
)
def test_every_damage_has_its_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    pair(tmp_path, "train", 3, packed=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_data(tmp_path)


def test_no_images_at_all(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((0, 8, 6), np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(0, np.uint8)))
    with pytest.raises(DataError, match="has no images in its IDX files"):
        load_data(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    pair(tmp_path, "train", 3)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(content))
    (tmp_path / "augmint-split.json").unlink(missing_ok=True)
    said = ""
    try:
        load_data(tmp_path)
    except DataError as error:
        said = str(error)
    assert not said or "train-images-idx3-ubyte.gz" in said
