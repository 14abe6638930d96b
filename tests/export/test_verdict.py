"""The verdict of a bundle that is being made: in its manifest, its card and beside it, the same each time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from augmint import load_data
from augmint.bundle import Description, Utility, read_bundle
from augmint.bundle_report import inspect_bundle
from evaluation import api
from evaluation.inputs import open_inputs
from evaluation.utility import UtilityConfig
from export.api import ExportRequest, export_run
from export.verdict import judged
from tests.tinybundle import write_tiny_bundle

SMALL = UtilityConfig(
    methods=("real only", "oversampling + affine", "real + synthetic"),
    amounts=(1.0,),
    shares=(0.5,),
    seeds=(0, 1),
    steps=4,
    processes=1,
)
FOUND = Utility(
    verdict="helps",
    sentence="It helps for 3.",
    method="real + synthetic + affine",
    amount="1×",
    classes=("3",),
    difference=0.01,
    interval=(0.004, 0.016),
    seeds=5,
    n=360,
)


def test_it_is_the_same_each_time_and_names_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UtilityConfig, "quick", classmethod(lambda cls: SMALL))
    monkeypatch.setattr(api, "_FIDELITY", {False: 20, True: 20})
    files = read_bundle(write_tiny_bundle(tmp_path / "tiny", class_names=("a", "b")))
    values = files.manifest.model_dump(exclude={"files"})
    description = Description.model_validate(values)
    data = load_data(_set(tmp_path, ("a", "b")))
    first = judged(description, files.content, data, level="quick")
    utility, pages, warnings = first
    assert utility is not None
    assert utility.classes == ("b",)
    assert sorted(pages) == ["report.html", "report.json"]
    assert warnings == ()
    assert str(tmp_path).encode() not in pages["report.html"] + pages["report.json"]
    document = json.loads(pages["report.json"])
    assert document["source"]["digest"] == ""
    assert document["source"]["words"] == "tiny"
    assert "seconds" not in document
    monkeypatch.setenv("AUGMINT_CACHE", str(tmp_path / "another"))
    assert judged(description, files.content, data, level="quick") == first


def test_a_run_is_evaluated_by_way_of_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from augmint.cli.evaluate import _as_bundle

    run = tmp_path / "my run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    asked: list[ExportRequest] = []

    def export(request: ExportRequest, *, say: object) -> None:
        asked.append(request)
        write_tiny_bundle(Path(request.out), name="mine")

    monkeypatch.setattr("export.api.export_run", export)
    with _as_bundle(str(run), lambda line: None) as opened:
        assert Path(opened).name == "my run"
        assert (Path(opened) / "manifest.json").exists()
        assert asked[0].evaluate == "none"
    assert not Path(opened).exists()
    with _as_bundle("elsewhere", lambda line: None) as opened:
        assert opened == "elsewhere"
    facts = open_inputs(write_tiny_bundle(tmp_path / "b"), _set(tmp_path, ("cat", "dog")), words=str(run)).source
    assert facts.kind == "run"
    assert facts.words == str(run)


def _set(folder: Path, names: tuple[str, str]) -> Path:
    """70 images of two classes, the second small; the split is given."""
    rng = np.random.default_rng(0)
    np.savez(
        folder / "set.npz",
        images=rng.integers(0, 255, (70, 8, 8, 1), dtype=np.uint8),
        labels=[0] * 50 + [1] * 20,
        split=([0] * 30 + [1] * 5 + [2] * 15) + ([0] * 6 + [1] * 4 + [2] * 10),
        class_names=names,
    )
    return folder / "set.npz"


def test_a_bundle_carries_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"report.html": b"<!doctype html><title>It helps</title>", "report.json": b"{}"}
    monkeypatch.setattr("export.api.judged", lambda *_, **__: (FOUND, pages, ("Beware.",)))
    result = export_run(ExportRequest(run=run, out=tmp_path / "digits", evaluate="full"))
    assert result.utility == FOUND
    assert result.as_dict()["utility"]["sentence"] == "It helps for 3."
    assert "Beware." in result.warnings
    report = inspect_bundle(result.path)
    assert report.manifest.evidence.utility == FOUND
    assert report.report == str(result.path / "report.html")
    assert "It helps for 3." in report.text()
    card = (result.path / "README.md").read_text()
    assert "**It helps for 3.**" in card
    assert "(report.html)" in card
