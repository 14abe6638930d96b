"""Everything that cannot be read meets one clear sentence, and is left out only when that is asked for."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from augmint.data import inspect_data, load_data
from augmint.errors import DataError
from augmint.images import decode_image
from tests.augmint.data.makers import folder, noise, save
from tests.augmint.data.test_layouts import table


def _jpeg(size: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(5, (size, size, 3))).save(buffer, "JPEG")
    return buffer.getvalue()


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(5, (32, 32, 3))).save(buffer, "PNG")
    return buffer.getvalue()


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims to be huge."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


def _tiff(array: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF")
    return buffer.getvalue()


FILES: dict[str, tuple[bytes, str]] = {
    "zero.png": (b"", "is empty (0 bytes)"),
    "note.txt": (b"hello", "is not an image"),
    "text.png": (b"hello", "is not an image"),
    "half.jpg": (_jpeg()[: len(_jpeg()) // 2], "is damaged or cut short"),
    "nearly.jpg": (_jpeg()[:-40], "is damaged or cut short"),
    "header.jpg": (_jpeg()[:30], "is"),
    "half.png": (_png()[: len(_png()) // 2], "is damaged or cut short"),
    "bomb.png": (_bomb(60_000, 60_000), "claims more pixels than the limit of 89,478,485"),
    "small_bomb.png": (_bomb(12_000, 12_000), "claims more pixels than the limit of 89,478,485"),
    "float.tif": (_tiff(np.zeros((4, 4), dtype=np.float32)), "has floating-point pixels"),
    "int.tif": (_tiff(np.full((4, 4), 70_000, dtype=np.int32)), "has 32-bit integer pixels"),
    "page.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is not an image"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_file(tmp_path: Path, name: str) -> None:
    content, reason = FILES[name]
    root = folder(tmp_path, {"a": 4, "b": 4})
    (root / "a" / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_data(root)
    sentence = str(caught.value)
    assert f"a/{name} {reason}" in sentence
    assert "--skip-bad" in sentence
    assert "\n" not in sentence
    assert caught.value.code == "data.bad-files"

    data = load_data(root, skip_bad=True)
    assert len(data) == 8
    assert [item.name for item in data.bad] == [f"a/{name}"]


def _link_out(root: Path) -> str:
    outside = save(root.parent / "outside" / "secret.png", noise(99))
    (root / "a" / "x.png").symlink_to(outside)
    return "a/x.png is a symbolic link that leads out of the folder"


def _link_folder_out(root: Path) -> str:
    folder(root.parent / "outside", {"c": 2})
    (root / "c").symlink_to(root.parent / "outside" / "c", target_is_directory=True)
    return "c is a symbolic link that leads out of the folder"


def _link_nowhere(root: Path) -> str:
    (root / "a" / "x.png").symlink_to("gone.png")
    return "a/x.png is a symbolic link that leads nowhere"


def _link_loop(root: Path) -> str:
    (root / "a" / "x.png").symlink_to("x.png")
    return "a/x.png is a symbolic link that leads nowhere"


def _fifo(root: Path) -> str:
    os.mkfifo(root / "a" / "x.png")
    return "a/x.png is not a regular file"


def _empty_class(root: Path) -> str:
    (root / "c").mkdir()
    return "c/ is a class folder without images"


def _deeper(root: Path) -> str:
    folder(root / "a", {"deep": 2}, first=50)
    return "a/deep/ is a folder inside a class folder; move its images up"


def _loose(root: Path) -> str:
    save(root / "x.png", noise(77))
    return "x.png lies outside of every class folder"


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes as on POSIX")
@pytest.mark.parametrize(
    "spoil", [_link_out, _link_folder_out, _link_nowhere, _link_loop, _fifo, _empty_class, _deeper, _loose]
)
def test_bad_place(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    root = folder(tmp_path / "data", {"a": 4, "b": 4})
    expected = spoil(root)
    with pytest.raises(DataError) as caught:
        load_data(root)
    assert expected in str(caught.value)
    data = load_data(root, skip_bad=True)
    assert data.counts() == {"a": 4, "b": 4}
    assert len(data.bad) == 1


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": 4, "b": 4})
    (root / "b" / "again.png").symlink_to(root / "b" / "0.png")
    assert load_data(root).counts() == {"a": 4, "b": 5}


def test_the_first_few_are_named_and_all_counted(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": 4})
    for i in range(7):
        (root / "a" / f"x{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"has 7 files that cannot be used \(a/x0.png is empty .* and 4 more\)"):
        load_data(root)


def test_folder_of_text_files(tmp_path: Path) -> None:
    for name in ("a/1.txt", "a/2.txt", "b/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("hello")
    with pytest.raises(DataError, match="3 files that cannot be used"):
        load_data(tmp_path)
    with pytest.raises(DataError, match=r"has no image that can be read: a/1\.txt is not an image"):
        load_data(tmp_path, skip_bad=True)
    with pytest.raises(DataError, match="has no image that can be read"):
        inspect_data(tmp_path)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda p: p / "gone",
            r"there is no file or folder .*gone: check the path \(built-in: digits, mnist5k\)",
        ),
        (lambda p: "mnsit5k", "did you mean the built-in set mnist5k"),
        (lambda p: "", "name a folder"),
        (lambda p: "a\0b", "name a folder"),
        (lambda p: "x" * 5000, "cannot be opened"),
        (lambda p: save(p / "one.png", noise(1)), "one.png is a .png file: augmint reads a folder, a .csv or a .npz"),
        (lambda p: p, "has no images: put each class in a folder"),
        (lambda p: folder(p, {"x/a": 2, "x/b": 2}), r"no images in its class folders: did you mean .*x\?"),
        (lambda p: folder(p, {"a": 0, "b": 0}), "no images in its class folders"),
    ],
)
def test_bad_spec(tmp_path: Path, make: Callable[[Path], str | Path], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        load_data(make(tmp_path))


@pytest.mark.skipif(sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_no_permission(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": 4})
    (root / "a" / "0.png").chmod(0)
    with pytest.raises(DataError, match=r"a/0\.png cannot be opened"):
        load_data(root)


# --- tables


@pytest.mark.parametrize(
    ("header", "rows", "expected"),
    [
        ("file_name,label", [], "is empty: it needs a header"),
        ("", [], "is empty: it needs a header"),
        ("name,label", ["img/0.png,a"], "has no column file_name or path or image or filename: it has name, label"),
        ("path,kind", ["img/0.png,a"], "has no column label or class or category"),
        ("path,label", ["gone.png,a"], "names no image that is there: gone.png .* is not there"),
        ("path,label", ["../secret.png,a", "img/0.png,a"], "secret.png .*line 2.* leads out of the CSV's folder"),
        ("path,label", ["/etc/passwd,a", "img/0.png,a"], "leads out of the CSV's folder"),
        ("path,label", ["img,a", "img/0.png,a"], "is not a regular file"),
        ("path,label", ["img/0.png,", "img/1.png,a"], "line 2 has no label"),
        ("path,label", [",a", "img/1.png,a"], "line 2 has no file name"),
        ("path,label", ["img/0.png", "img/1.png,a"], "line 2 has no label"),
        ("path,label", ["x" * 3000 + ",a", "img/1.png,a"], "is not"),
        ("path,label,split", ["img/0.png,a,train", "img/1.png,a,"], "has the split '': write train, validation, test"),
        ("path,label,split", ["img/0.png,a,holdout"], "has the split 'holdout'"),
    ],
)
def test_bad_table(tmp_path: Path, header: str, rows: list[str], expected: str) -> None:
    save(tmp_path / "secret.png", noise(50))
    path = table(tmp_path / "d", header, rows, "list.csv", images=3)
    with pytest.raises(DataError, match=expected) as caught:
        load_data(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["9" * 5000, "a" * 257])
def test_class_names_that_no_bundle_could_hold(tmp_path: Path, name: str) -> None:
    save(tmp_path / "0.png", noise(0))
    (tmp_path / "set.csv").write_text(f"file_name,label\n0.png,{name}\n")
    with pytest.raises(DataError, match=f"a class name of {len(name):,} characters"):
        load_data(tmp_path / "set.csv")


def test_more_classes_than_a_bundle_could_hold(tmp_path: Path) -> None:
    images = np.arange(10_001, dtype=np.uint32).view(np.uint8).reshape(-1, 2, 2)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(10_001))
    with pytest.raises(DataError, match="10,001 classes, more than 10,000"):
        load_data(tmp_path / "set.npz")


def test_bad_rows_can_be_skipped(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label", ["gone.png,a", "img/0.png,a", "img/1.png,b"], "list.csv")
    data = load_data(path, skip_bad=True)
    assert data.counts() == {"a": 1, "b": 1}
    assert [item.name for item in data.bad] == ["gone.png"]


@pytest.mark.parametrize("content", ["path,label\nü,a\n".encode("latin-1"), b"\x00" * 100, b'path,label\n"x'])
def test_table_of_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DataError):
        load_data(tmp_path / "list.csv")


# --- npz

GOOD = np.stack([noise(i) for i in range(4)])


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x_train": GOOD}, "has no 'images' but x_train: save it with numpy.savez_compressed"),
        ({"images": GOOD}, "has no 'labels'"),
        ({"images": GOOD / 255, "labels": [0] * 4}, r"images are float64, not uint8: .*\(images \* 255\)"),
        ({"images": GOOD * np.nan, "labels": [0] * 4}, "images hold NaN or infinity"),
        ({"images": GOOD.astype(np.uint16), "labels": [0] * 4}, "images / 257"),
        ({"images": GOOD.astype(np.int64), "labels": [0] * 4}, "images are int64, not uint8: save them as uint8"),
        ({"images": GOOD.reshape(4, 64), "labels": [0] * 4}, r"shape \[4, 64\]: they must be"),
        ({"images": GOOD.reshape(4, 1, 8, 8), "labels": [0] * 4}, "channels come last"),
        ({"images": GOOD[:0], "labels": []}, "labels are float64|has no images"),
        ({"images": GOOD[:0], "labels": np.zeros(0, int)}, "has no images"),
        ({"images": GOOD[:, :0], "labels": [0] * 4}, "no pixels"),
        ({"images": GOOD, "labels": [0, 1]}, "4 images but 2 labels"),
        ({"images": GOOD, "labels": [0.0, 1.0, np.nan, 1.0]}, "labels are float64: save them as integers or strings"),
        ({"images": GOOD, "labels": np.eye(4)}, "labels.argmax"),
        ({"images": GOOD, "labels": [0, 1, 2, 0], "class_names": ["a", "b"]}, "label 2 is out of range: .* 0 … 1"),
        ({"images": GOOD, "labels": [0, -1, 1, 0], "class_names": ["a", "b"]}, "label -1 is out of range"),
        ({"images": GOOD, "labels": ["a", "b", "c", "a"], "class_names": ["a", "b"]}, "'c' is not among class_names"),
        ({"images": GOOD, "labels": [0] * 4, "class_names": ["a", "a"]}, "names a class twice"),
        ({"images": GOOD, "labels": [0] * 4, "class_names": ["a", ""]}, "empty name"),
        ({"images": GOOD, "labels": [0] * 4, "class_names": [1, 2]}, "class_names must be a list of strings"),
        ({"images": GOOD, "labels": [b"\xff"] * 4}, "not UTF-8"),
        ({"images": GOOD, "labels": [0] * 4, "split": [0, 1, 2, 3]}, "split has '3'"),
        ({"images": GOOD, "labels": [0] * 4, "split": ["train", "x", "x", "x"]}, "split has 'x'"),
        ({"images": GOOD, "labels": [0] * 4, "split": [0.0] * 4}, "split has 'float64'"),
        ({"images": GOOD, "labels": [0] * 4, "split": [0]}, r"split has the shape \[1\]"),
        ({"images": np.array([GOOD[0], None, 1, 2], dtype=object), "labels": [0] * 4}, "never unpickles"),
        ({"images": GOOD, "labels": np.array(["a", None, 1, 2], dtype=object)}, "never unpickles"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=expected) as caught:
        load_data(tmp_path / "d.npz")
    assert "\n" not in str(caught.value)


def test_npz_that_is_none(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"PK\x03\x04 broken", b"\x80\x04N."):
        (tmp_path / "d.npz").write_bytes(content)
        with pytest.raises(DataError, match="is not an npz, or is damaged"):
            load_data(tmp_path / "d.npz")


# --- damage at random: an answer or a DataError, never another exception

_FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_SEEDS = [_png(), _jpeg(32), _tiff(noise(1, (9, 9))), _bomb(50, 50)]


@_FUZZ
@given(st.sampled_from(_SEEDS), st.integers(0, 2**32), st.integers(0, 255), st.integers(0, 2**32))
def test_damaged_pictures(data: bytes, place: int, value: int, end: int) -> None:
    spoilt = bytearray(data)
    spoilt[place % len(spoilt)] = value
    if end % 2:
        del spoilt[end % len(spoilt) :]
    with contextlib.suppress(DataError):
        found = decode_image(bytes(spoilt))
        assert found.pixels.dtype == np.uint8
        assert found.pixels.shape[2] in (1, 3)


@_FUZZ
@given(st.integers(0, 2**32), st.integers(0, 255))
def test_damaged_npz(tmp_path: Path, place: int, value: int) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=GOOD, labels=np.arange(4))
    spoilt = bytearray(buffer.getvalue())
    spoilt[place % len(spoilt)] = value
    (tmp_path / "d.npz").write_bytes(bytes(spoilt))
    with contextlib.suppress(DataError):
        load_data(tmp_path / "d.npz")
    (tmp_path / "d.npz.augmint-split.json").unlink(missing_ok=True)


@_FUZZ
@given(st.text(max_size=200))
def test_any_text_as_table(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text("path,label\n" + text, encoding="utf-8", errors="replace")
    with pytest.raises(DataError):
        load_data(tmp_path / "list.csv")
