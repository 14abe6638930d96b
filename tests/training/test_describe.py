"""Describing a family: every layer and weight is accounted for, and the picture says what the text says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from augmint.cli import main
from augmint.errors import UsageError
from tests.training.test_families import every_family
from training import FAMILIES
from training.config import options_from
from training.describe import describe
from training.drawing import write_picture
from training.families.base import Family

NARROW = {"width": 16, "critic_width": 16, "hidden": 32, "maxout": 8}


def narrow(kind: type[Family[Any]]) -> dict[str, object]:
    return {name: value for name, value in NARROW.items() if name in kind.Options.__dataclass_fields__}


@every_family
def test_every_weight_is_in_a_row(kind: type[Family[Any]], tmp_path: Path) -> None:
    found = describe(kind.name, settings=narrow(kind), image_shape=(3, 32, 32), classes=3)
    recipe = kind(options_from(kind.name, narrow(kind)), (3, 32, 32), 3)
    networks = recipe.build()
    for part in ("generator", "critic", "encoder"):
        table, network = found.network(part), getattr(networks, part)
        assert (table is None) == (network is None)
        if table is not None:
            total = sum(weight.numel() for weight in network.parameters())
            assert sum(row.parameters for row in table.layers) == table.parameters == total
    generator = found.network("generator")
    assert generator is not None
    assert generator.layers[-1].shape[-2:] == (32, 32) or int(np.prod(generator.layers[-1].shape)) >= 3 * 32 * 32
    assert any(row.reads != "input" for row in generator.layers) == (recipe.num_classes > 0)
    changed = {option.name for option in found.options if option.changed}
    assert changed <= set(NARROW)
    text = found.text()
    for words in (kind.summary, kind.paper, f"{generator.parameters:,} parameters"):
        assert words in text
    for ending in ("svg", "png"):
        write_picture(found, tmp_path / f"x.{ending}")
    drawn = "".join(ElementTree.parse(tmp_path / "x.svg").getroot().itertext())
    for words in (kind.name, f"{generator.parameters:,} parameters", "real image", "fake image"):
        assert words in drawn
    assert ("label y" in drawn) == (recipe.num_classes > 0)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 600
    again = tmp_path / "y.svg"
    write_picture(found, again)
    assert again.read_bytes() == (tmp_path / "x.svg").read_bytes()


def test_the_rows_of_dcgan() -> None:
    found = describe("dcgan", settings={"width": "16"})
    critic = found.network("critic")
    assert critic is not None
    assert [(row.what, row.then, row.shape, row.parameters) for row in critic.layers] == [
        ("conv 4×4 /2", ("LeakyReLU 0.2",), (16, 14, 14), 16 * 16 + 16),
        ("conv 4×4 /2", ("batch norm", "LeakyReLU 0.2"), (32, 7, 7), 16 * 16 * 32 + 64),
        ("dense", (), (1,), 32 * 49 + 1),
    ]
    assert found.classes == 0
    assert [option.name for option in found.options if option.changed] == ["width"]
    assert "* width" in found.text()
    assert "paper: 64" in found.text()


def test_what_the_label_reaches() -> None:
    found = describe("augment")
    critic = found.network("critic")
    assert critic is not None
    assert {row.name: row.reads for row in critic.layers}["embedding"] == "label"
    assert {row.name: row.reads for row in critic.layers}["features"] == "input"
    without = describe("augment", classes=0)
    assert without.classes == 0
    assert all(row.reads == "input" for table in without.networks for row in table.layers)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": 1}, "--classes"),
        ({"image_shape": (1, 4, 4)}, "--resolution"),
        ({"preset": "none such"}, "--preset"),
        ({"settings": {"nonsense": 1}}, "--set"),
    ],
)
def test_what_cannot_be_described(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        describe("augment", **changes)


def verb(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_the_verbs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = verb(capsys, "families", "--json")
    assert code == 0
    listed = json.loads(out)
    assert [entry["name"] for entry in listed] == [kind.name for kind in FAMILIES]
    assert [entry["name"] for entry in listed if entry["default"]] == ["augment"]
    assert all("paper" in entry["presets"] and entry["summary"] for entry in listed)
    code, out, _ = verb(capsys, "families")
    assert code == 0
    assert all(f"\n{kind.name}" in f"\n{out}" and kind.paper.split(",")[0] in out for kind in FAMILIES)

    picture = tmp_path / "d.svg"
    words = ("describe", "dcgan", "--set", "width=16", "--resolution", "16x24", "--channels", "3")
    code, out, err = verb(capsys, *words, "--out", str(picture), "--json")
    assert (code, err) == (0, f"drawn in {picture}\n")
    document = json.loads(out)
    assert document["image_shape"] == [3, 16, 24]
    assert [table["part"] for table in document["networks"]] == ["generator", "critic"]
    assert picture.is_file()
    for wrong in (["--channels", "2"], ["--out", "x.gif"], ["--set", "width"], ["--resolution", "0"]):
        assert verb(capsys, "describe", "dcgan", *wrong)[0] == 2
