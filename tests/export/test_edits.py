"""The edits of a bundle that was really exported."""

from __future__ import annotations

import pytest

from augmint.attributes import ATTRIBUTES, measure
from augmint.generator import Generator
from export.api import ExportResult


def test_a_bundle_has_every_attribute_or_says_why_not(exported: ExportResult) -> None:
    """Real in every part, if hardly trained; what it offers does on other images what its manifest says."""
    generator = Generator(exported.path, device="cpu", threads=1)
    edits = generator.manifest.edits
    assert edits is not None
    assert {*(edit.name for edit in edits.attributes), *edits.dropped} == {*ATTRIBUTES, "clarity"}
    assert list(generator.info().edits) == [edit.name for edit in edits.attributes]
    assert ("directions.npy" in generator.files.content) == bool(edits.attributes)
    card = (exported.path / "README.md").read_text(encoding="utf-8")
    assert ("## Editing" in card) == bool(edits.attributes)
    counts = dict.fromkeys(generator.class_names, 30)
    plain = measure(generator.generate(counts, seed=5).images)
    for edit in edits.attributes:
        if edit.name in plain:
            for amount, change in ((-edit.limit, edit.steps[0].change), (edit.limit, edit.steps[-1].change)):
                after = measure(generator.generate(counts, seed=5, edit={edit.name: amount}).images)
                moved = (after[edit.name] - plain[edit.name]).mean() / edit.deviation
                assert moved == pytest.approx(change, abs=0.3 * abs(change))
