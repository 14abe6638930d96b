"""The benchmark of families: its page, its pictures, and that it takes up what lies there."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from augmint.errors import UsageError
from benchmarks import families
from benchmarks.promises import Recipe
from training import FAMILIES

MEASURES = {"precision": 0.91, "recall": 0.52, "density": 0.83, "coverage": 0.74}
ROW = {"name": "all", "n": 1000, "kernel_distance": 0.01, **MEASURES}


def cell(out: Path, name: str, *, by_class: bool, kept: bool = True) -> dict[str, Any]:
    """A family's file and pictures."""
    recipe = Recipe(steps=1000, preset="small", settings={"width": 8})
    result: dict[str, Any] = {
        "family": name,
        "key": families.key(name, recipe),
        "quick": False,
        "recipe": asdict(recipe),
        "conditional": by_class,
        "fingerprint": "0" * 64,
        "images": 3500 if by_class else 2000,
        "training": {
            "steps": 1000,
            "batch": 20,
            "cpu_seconds": 125.0,
            "images_per_second": 160.0,
            "best_step": 900,
            "alarms": ["class '3' is not what it says."] if not kept else [],
        },
        "parameters": {"generator": 1234567, "critic": 7654},
        "figures": {
            "overall": {**ROW, "label_fidelity": 0.97 if by_class else None},
            "mean": {**MEASURES, "label_fidelity": 0.985} if by_class else None,
            "classes": None,
            "judge": None,
            "judge_accuracy": None,
            "features": "f",
            "cas": {
                "generated": [0.91, 0.01],
                "generated + affine": [0.93, 0.011],
                "real": [0.96, 0.002],
                "real + affine": [0.975, 0.001],
            }
            if by_class
            else None,
        },
        "promise": {"sentence": f"What {name} does: 0.123.", "kept": kept, "figures": {"x": 0.123}},
        "made": families.made(),
    }
    families.save(out / "cells" / f"{name}.json", json.dumps(result))
    for ending in (".png", "-promise.png", ".svg"):
        families._save_bytes(out / "pictures" / f"{name}{ending}", b"picture")
    return result


def ran(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["families.py", *words])
    return families.main()


def test_the_page_is_written_from_saved_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell(tmp_path, "augment", by_class=True)
    cell(tmp_path, "dcgan", by_class=False, kept=False)
    docs = tmp_path / "docs"
    assert ran(monkeypatch, "--only-print", "--out", str(tmp_path), "--docs", str(docs)) == 0
    page = (docs / "families.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == page
    lines = page.splitlines()
    for kind in FAMILIES:
        assert sum(line.startswith(("| [" + kind.name + "]", "| " + kind.name)) for line in lines) >= 1
    assert (
        "| [augment](#augment) | small | 1,000 | 125 | 160 | 0.985 | 0.910 | 0.520 | 0.830 | 0.740 | 0.910 ± 0.010 "
        "| 0.930 ± 0.011 | kept |"
    ) in lines
    assert (
        "| [dcgan](#dcgan) | small | 1,000 | 125 | 160 | – | 0.910 | 0.520 | 0.830 | 0.740 | – | – | **not kept** |"
    ) in lines
    header = next(i for i, line in enumerate(lines) if line.startswith("| family | preset"))
    assert {line.count("|") for line in lines[header : header + 5]} == {14}
    assert "0.960 ± 0.002 | 0.975 ± 0.001" in lines[header + 4]
    assert "**Promise: kept.** What augment does: 0.123." in lines
    assert "**Promise: not kept.** What dcgan does: 0.123." in lines
    assert "- class '3' is not what it says." in lines
    assert "`augmint train mnist5k --family dcgan --preset small --steps 1000 --seed 0 --set width=8`" in page
    for link in re.findall(r"\]\((families/[^)]+)\)", page):
        assert (docs / link).read_bytes() == b"picture"
    whole = json.loads((docs / "families.json").read_text(encoding="utf-8"))
    assert [result["family"] for result in whole["families"]] == ["augment", "dcgan"]
    assert "nan" not in page.casefold()


def test_what_was_finished_is_kept_until_its_code_or_recipe_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(steps=1000, preset="small", settings={"width": 8})
    module = type("Module", (), {"RECIPE": recipe})
    monkeypatch.setattr(families, "promised", lambda: {"dcgan": module})
    assert not families.finished("dcgan", tmp_path)
    cell(tmp_path, "dcgan", by_class=False)
    assert families.finished("dcgan", tmp_path)
    monkeypatch.setattr(families, "measure", lambda *_, **__: pytest.fail("it is finished"))
    words = ("--only", "dcgan", "--out", str(tmp_path), "--docs", str(tmp_path))
    assert ran(monkeypatch, *words) == 0
    module.RECIPE = replace(recipe, steps=999)
    assert not families.finished("dcgan", tmp_path)


def test_trainings_of_other_code_are_forgotten(tmp_path: Path) -> None:
    recipe = Recipe(steps=5)
    families._forget_what_changed("dcgan", recipe, tmp_path / "work")
    (tmp_path / "work" / "run").mkdir()
    families._forget_what_changed("dcgan", recipe, tmp_path / "work")
    assert (tmp_path / "work" / "run").is_dir()
    families._forget_what_changed("dcgan", replace(recipe, steps=6), tmp_path / "work")
    assert not (tmp_path / "work" / "run").exists()


def test_time_is_that_of_all_attempts_and_of_no_more(tmp_path: Path) -> None:
    file = tmp_path / "training.json"

    def attempt(seconds: float) -> float:
        with families._cpu_seconds(file) as spent:
            end = families.time.process_time() + seconds
            while families.time.process_time() < end:
                pass
            if seconds == 0.05:
                raise KeyboardInterrupt
        return float(spent["seconds"])

    with pytest.raises(KeyboardInterrupt):
        attempt(0.05)
    whole = attempt(0.1)
    assert 0.15 <= whole < 0.6
    assert attempt(0.2) == whole, "nothing was left to train"


def test_nothing_to_print_and_unknown_families(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran(monkeypatch, "--only-print", "--out", str(tmp_path)) == 2
    assert "no finished families" in capsys.readouterr().err
    assert ran(monkeypatch, "--only", "stylegan", "--out", str(tmp_path)) == 2
    assert "stylegan" in capsys.readouterr().err


def test_every_promise_is_one_of_a_family() -> None:
    for name, module in families.promised().items():
        assert isinstance(module.RECIPE, Recipe)
        assert callable(module.promise)
        assert name in {kind.name for kind in FAMILIES}


def test_pictures_are_small_and_sheets_are_marked() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (600, 900), dtype=np.uint8)).convert("RGB")
    content = families.sheet_png(noise)
    assert len(content) <= families.LARGEST
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.mode == "L"
        assert "trainedAlgorithmicMedia" in str(picture.info)
    colour = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    with Image.open(io.BytesIO(families.sheet_png(colour))) as picture:
        assert picture.size == (60, 40)
        assert picture.mode == "RGB"

    figure = Figure(figsize=(9, 9))
    figure.add_subplot().imshow(rng.random((800, 800)))
    assert len(families.figure_png(figure)) <= families.LARGEST


def test_a_promise_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    arguments = type("Arguments", (), {"only": "gan2", "quick": False, "again": False, "only_print": False})
    arguments.out = arguments.docs = tmp_path  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="gan2"):
        families.run(arguments)  # type: ignore[arg-type]


def test_figures_of_numpy_are_written_as_pythons() -> None:
    assert json.dumps([families._plain(value) for value in (np.float32(0.5), np.int64(3), 0.25, "x")]) == (
        '[0.5, 3, 0.25, "x"]'
    )
