"""`inspect_bundle`: verifies, shows, and repeats nothing that could steer a terminal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from augmint.bundle import MANIFEST
from augmint.bundle_report import inspect_bundle
from augmint.errors import BundleError
from tests.augmint.broken_bundles import read_manifest, with_critic, write_manifest
from tests.tinybundle import write_tiny_bundle


def test_it_shows_what_the_bundle_is(tiny_bundle: Path) -> None:
    report = inspect_bundle(tiny_bundle)
    text = report.text()
    for shown in ("tiny: verified", report.digest, "été 10", "8×8, grey", "byte for byte", "help a classifier was not"):
        assert shown in text, shown
    assert str(tiny_bundle / "samples.png") in text
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert document["kind"] == "bundle"
    assert document["class_names"] == ["cat", "dog", "été 10"]
    assert document["files"][MANIFEST]["bytes"] == (tiny_bundle / MANIFEST).stat().st_size
    assert document["reproducibility"] == "exact"
    assert document["evidence"]["utility"] is None
    assert document["report"] is None


UTILITY = {
    "verdict": "helps",
    "sentence": "It helps for dog.",
    "method": "real + synthetic + affine",
    "amount": "up to the largest class",
    "classes": ["dog"],
    "difference": 0.013,
    "interval": [0.005, 0.021],
    "seeds": 5,
    "n": 1000,
}


def test_an_unconditional_bundle(tiny_bundle_unconditional: Path) -> None:
    text = inspect_bundle(tiny_bundle_unconditional).text()
    assert "unconditional" in text
    assert "8×10, colour" in text


def test_metrics_and_verdict_are_shown(tiny_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    document = read_manifest(path)
    row = {"n": 100, "method": "measured so", "label": None, "note": None}
    document["evidence"]["metrics"] = [
        {"name": "recall", "value": 0.75, **row},
        {"name": "recall", "value": None, **row, "label": "dog"},
    ]
    document["evidence"]["utility"] = UTILITY
    document["evidence"]["warnings"] = ["Few images."]
    write_manifest(path, document)
    report = inspect_bundle(path)
    text = report.text()
    assert "0.750" in text
    assert "It helps for dog." in text
    assert "warning: Few images." in text
    assert "not measured" not in text
    assert report.report is None


def test_a_bundles_words_cannot_steer_a_terminal(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "evil", class_names=("\x1b[2Jgone", "b\nc"))
    document = read_manifest(path)
    document["identity"]["licence"] = "\x1b]0;owned\x07"
    write_manifest(path, document)
    text = inspect_bundle(path).text()
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "b c" in text


def test_a_broken_critic_is_refused_though_generating_does_without(tiny_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    with_critic(path, (path / "generator.onnx").read_bytes())
    with pytest.raises(BundleError) as caught:
        inspect_bundle(path)
    assert caught.value.code == "bundle.signature"


def test_a_broken_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        inspect_bundle(tmp_path)
