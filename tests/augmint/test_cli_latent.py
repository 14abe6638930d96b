"""Edits on the command line, and pictures of latent space."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from augmint.cli.values import parse_edits
from augmint.errors import UsageError
from augmint.generator import Generator
from tests.augmint.test_cli import Run, refused, run  # noqa: F401
from tests.tinybundle import EDITS


def test_edits_are_made_and_told(run: Run, tiny_bundle: Path) -> None:  # noqa: F811
    words = ["--count", "dog=3", "--seed", 4, "--edit", "slant=+1.5", "--edit", "brightness=−1"]
    ran = run("sample", tiny_bundle, *words, "--out", "made")
    assert ran.code == 0
    assert "edit             slant=+1.5 brightness=-1.0" in ran.out
    rows = list(csv.DictReader(Path("made/metadata.csv").read_text(encoding="utf-8").splitlines()))
    wanted = Generator(tiny_bundle, device="cpu").generate({"dog": 3}, seed=4, edit={"slant": 1.5, "brightness": -1})
    for row, image in zip(rows, wanted.images, strict=True):
        assert row["edit"] == "slant=+1.5 brightness=-1.0"
        with Image.open(Path("made") / row["file_name"]) as picture:
            assert np.array_equal(np.asarray(picture), image[:, :, 0])
    ran = run("sample", tiny_bundle, *words, "--out", "made.npz", "--json")
    assert json.loads(ran.out)["edit"] == {"slant": 1.5, "brightness": -1.0}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--edit", "smile=1"], "it edits slant (±2), brightness (±3)"),
        (["--edit", "slant=9"], "−2 … +2"),
        (["--edit", "slant"], "such as --edit slant=+1.5"),
        (["--edit", "slant=much"], "such as --edit slant=+1.5"),
        (["--edit", "slant=1", "--edit", "slant=1"], "twice"),
    ],
)
def test_wrong_edits_are_one_line(run: Run, tiny_bundle: Path, words: list[str], sentence: str) -> None:  # noqa: F811
    refused(run("sample", tiny_bundle, "--count", "dog=3", "--out", "made", *words), 2, sentence)
    assert not Path("made").exists()


def test_edits_as_text() -> None:
    assert parse_edits(["a=+1", "b-c=−0.5", "d=1e-3"]) == {"a": 1.0, "b-c": -0.5, "d": 0.001}
    with pytest.raises(UsageError):
        parse_edits(["=1"])


def test_pictures_of_latent_space(run: Run, tiny_bundle: Path) -> None:  # noqa: F811
    ran = run("latent", tiny_bundle, "--out", "edits.png", "--label", "dog", "--columns", 5)
    assert ran.code == 0
    assert all(f"{name}  " in ran.out for name in EDITS)
    assert "−" not in Path("edits.png").name
    with Image.open("edits.png") as picture:
        assert picture.width > 5 * 48
    found = json.loads(run("latent", tiny_bundle, "--out", "again.png", "--label", "dog", "--json").out)
    assert [edit["name"] for edit in found["edits"]] == list(EDITS)
    assert found["seed"] == 0
    assert run("latent", tiny_bundle, "--between", 0, 5, "--out", "between.png").code == 0
    with Image.open("between.png") as picture:
        assert picture.width > 9 * 48
    refused(run("latent", tiny_bundle, "--out", "edits.png"), 1, "is there already")
    refused(run("latent", tiny_bundle, "--out", "edits.npz"), 2, "name a new .png")
    refused(run("latent", tiny_bundle, "--out", "x.png", "--label", "bird"), 2, "'bird'")
    refused(run("latent", tiny_bundle, "--out", "x.png", "--columns", 4), 2, "odd")


def test_inspect_says_what_can_be_edited(run: Run, tiny_bundle: Path) -> None:  # noqa: F811
    assert "edits    slant ±2, brightness ±3 (no size: a linear model" in run("inspect", tiny_bundle).out
    found = json.loads(run("inspect", tiny_bundle, "--json").out)
    assert [edit["limit"] for edit in found["edits"]["attributes"]] == list(EDITS.values())
