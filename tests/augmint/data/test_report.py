"""`inspect_data`: the facts, the warnings, and both of its forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from augmint.data import inspect_data
from augmint.errors import DataError
from tests.augmint.data.makers import folder, noise, save


def test_facts_and_forms(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"10": 100, "2": 20, "[bold]": 2})
    (root / "2" / "zero.png").write_bytes(b"")
    report = inspect_data(root, sheet=tmp_path / "out" / "sheet.png")
    assert report.images == 122
    assert list(report.classes) == ["2", "10", "[bold]"]
    assert report.classes["10"] == {"train": 70, "validation": 10, "test": 20}
    assert report.imbalance == 35.0
    assert report.shape == (8, 8, 1)
    assert report.sizes == ((8, 8, "L", 122),)
    assert [str(item) for item in report.bad] == ["2/zero.png is empty (0 bytes)"]

    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["classes"]["2"]["train"] == 14
    assert plain["bad"] == [{"name": "2/zero.png", "reason": "is empty (0 bytes)"}]
    assert plain["sizes"] == [{"height": 8, "width": 8, "mode": "L", "images": 122}]
    assert plain["sheet"] == str(tmp_path / "out" / "sheet.png")

    text = report.text()
    for part in ("set: 122 images, 3 classes", "35.0 : 1", "8×8, grey", "2/zero.png is empty", "[bold]", "sheet.png"):
        assert part in text
    for part in ("'2', '[bold]'", "no test images of '[bold]'", "fewer than 10 test images", "takes --skip-bad"):
        assert any(part in warning for warning in report.warnings), part
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.height > 3 * 48


def test_quiet_where_nothing_is_wrong(tmp_path: Path) -> None:
    report = inspect_data(folder(tmp_path, {"a": 80, "b": 80}))
    assert report.warnings == ()
    assert report.sheet is None
    assert "beware" not in report.text()


def test_warnings(tmp_path: Path) -> None:
    for i in range(60):
        save(tmp_path / "train" / "a" / f"{i}.png", noise(i, (8, 24, 3) if i % 10 == 0 else (8, 8, 1)))
    report = inspect_data(tmp_path)
    said = "\n".join(report.warnings)
    assert "one class only" in said
    assert "6 images have another width-to-height ratio" in said
    assert "54 of 60 images are grey among coloured ones" in said


def test_splits_that_are_missing(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"a": 60})
    folder(tmp_path / "validation", {"a": 10}, first=100)
    assert any("no test images" in warning for warning in inspect_data(tmp_path).warnings)
    (tmp_path / "validation").rename(tmp_path / "test")
    assert any("no validation images" in warning for warning in inspect_data(tmp_path).warnings)


def test_dark_16_bit_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(60):
        Image.fromarray(noise(i, (8, 8)).astype(np.uint16) * 16).save(tmp_path / "a" / f"{i}.png")
    report = inspect_data(tmp_path)
    assert report.sizes[0][2].startswith("I")
    assert any("16-bit images reach level 16 of 255 only" in warning for warning in report.warnings)


def test_class_without_train_images(tmp_path: Path) -> None:
    folder(tmp_path / "train", {"a": 60})
    folder(tmp_path / "test", {"a": 20, "b": 20}, first=100)
    report = inspect_data(tmp_path)
    assert report.imbalance is None
    assert report.as_dict()["imbalance"] is None
    assert "a class has no train images" in report.text()


def test_sheet_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        inspect_data(folder(tmp_path / "d", {"a": 3}), sheet=tmp_path / "file" / "sheet.png")


def test_a_sheet_does_not_go_among_the_images(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"a": 3, "b": 3})
    with pytest.raises(DataError, match="lies in the data set"):
        inspect_data(root, sheet=root / "a" / "sheet.png")
    assert not (root / "a" / "sheet.png").exists()


def test_many_classes(tmp_path: Path) -> None:
    report = inspect_data(folder(tmp_path / "d", {str(k): 3 for k in range(120)}), sheet=tmp_path / "s.png")
    assert len(report.classes) == 120
    assert "and 110 more" in "\n".join(report.warnings)
