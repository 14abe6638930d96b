"""Directions of a generator whose latent we know: what it steers is found, and what breaks the class is held back."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from augmint.attributes import measure
from augmint.bundle import Edits
from augmint.latents import latents
from export import directions
from export.directions import make_directions

SIDE = 32


@dataclass
class Drawing:
    """Stands for an exported graph: one stroke a latent draws, float32 [N, 8] -> uint8 [N, 32, 32, 1].

    The first number is its slant, the second its height and the third its ink; its class is a dot on the left, which
    `fragile` lets go out where the ink is far from its mean. The other numbers change nothing.
    """

    num_classes: int = 3
    latent_dim: int = 8
    image_shape: tuple[int, int, int] = (SIDE, SIDE, 1)
    fragile: float = 99.0
    deaf: bool = False

    def session(self) -> None:
        return None

    def run(self, session: None, latent: NDArray[np.float32], label: NDArray[np.int64]) -> NDArray[np.uint8]:
        z = latent.astype(np.float64) * (0 if self.deaf else 1)
        y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
        slant, height = 0.15 * z[:, 0], 16 + 1.5 * z[:, 1]
        across = np.clip(2.5 - np.abs(x + slant[:, None, None] * y), 0, 1)
        share = across * np.clip(height[:, None, None] / 2 - np.abs(y), 0, 1)
        images = share * np.clip(160 + 15 * z[:, 2], 0, 255)[:, None, None]
        dot = np.where(np.abs(z[:, 2]) < self.fragile, 20, 0)
        images[np.arange(len(z)), 4 + 8 * label, 2] += dot if self.num_classes else 0
        return np.round(images).astype(np.uint8)[..., None]


class Reader:
    """Stands for the classifier's session: it reads the dot."""

    def run(self, names: list[str], feeds: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        assert names == ["class_logits"]
        dots = feeds["image"][:, [4, 12, 20], 2, 0].astype(np.float32)
        return [dots - np.array([0, 0.1, 0.2], np.float32)]


@pytest.fixture(autouse=True, scope="module")
def _reader_and_few_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directions, "open_session", lambda *_, **__: SimpleNamespace(session=Reader()))
        patch.setattr(directions, "_FIT", (8, 800))
        patch.setattr(directions, "_HELD_OUT", (100, 120))
        yield


def made(drawing: Drawing, classifier: bytes | None = b"reader") -> tuple[Edits, dict[str, NDArray[np.float32]]]:
    section, files = make_directions(drawing, classifier)  # type: ignore[arg-type]
    table = np.load(io.BytesIO(files["directions.npy"])) if files else []
    return section, {edit.name: row for edit, row in zip(section.attributes, table, strict=True)}


@pytest.fixture(scope="module")
def found() -> tuple[Edits, dict[str, NDArray[np.float32]]]:
    return made(Drawing())


def test_each_attribute_is_steered_by_its_own_number(found: tuple[Edits, dict[str, NDArray[np.float32]]]) -> None:
    section, rows = found
    assert {"slant", "size"} <= set(rows)
    for name, number in (("slant", 0), ("size", 1)):
        row = rows[name]
        assert row.dtype == np.float32
        assert row[number] == pytest.approx(1, abs=0.1), name
        assert np.abs(row[[1 - number, 3, 4, 5, 6, 7]]).max() < 0.1, name
    # The ink is in brightness; a larger stroke has less of it where brightness is held.
    assert rows["brightness"][2] > 0.5
    assert rows["size"][2] < 0
    for edit in section.attributes:
        assert edit.name == "stroke" or (edit.r2 > 0.7 and edit.limit >= 2)
    assert "slant" in next(edit for edit in section.attributes if edit.name == "size").holds


@pytest.mark.parametrize("name", ["slant", "size", "brightness"])
def test_an_edit_moves_its_attribute_and_keeps_the_class(
    found: tuple[Edits, dict[str, NDArray[np.float32]]], name: str
) -> None:
    """On latents that were neither fitted to nor measured at export, image by image."""
    section, rows = found
    edit = next(edit for edit in section.attributes if edit.name == name)
    drawing, label = Drawing(), np.arange(200) % 3
    z = latents(np.uint64(99), np.arange(200), 8)
    amounts = (-1.5, -0.75, 0.0, 0.75, 1.5)
    assert edit.limit >= 1.5
    images = [drawing.run(None, z + np.float32(amount) * rows[name], label) for amount in amounts]
    values = np.stack([measure(image)[name] for image in images])
    assert (np.diff(values.mean(axis=1)) > 0).all()
    assert (np.diff(values, axis=0) > 0).mean() > 0.95
    step = (values[-1] - values[0]).mean() / 3 / edit.deviation
    assert step == pytest.approx(1, abs=0.25)
    for image in images:
        assert (Reader().run(["class_logits"], {"image": image})[0].argmax(axis=1) == label).mean() >= 0.9


def test_steps_end_where_the_class_is_lost() -> None:
    """Where the ink is 2.4 deviations from its mean the dot goes out: that is soon reached."""
    firm, _ = made(Drawing())
    fragile, _ = made(Drawing(fragile=2.4))
    limits = [{edit.name: edit.limit for edit in section.attributes} for section in (firm, fragile)]
    assert limits[1].get("brightness", 0.0) < limits[0]["brightness"]
    assert limits[1]["slant"] == limits[0]["slant"]
    for edit in fragile.attributes:
        assert all(step.kept is not None and step.kept >= 0.9 for step in edit.steps)
    lost, _ = made(Drawing(fragile=0.6))
    assert "in their class" in lost.dropped["brightness"]


def test_without_a_classifier_nobody_says_whether_the_class_is_kept() -> None:
    section, rows = made(Drawing(num_classes=0), None)
    assert "slant" in rows
    assert all(step.kept is None for edit in section.attributes for step in edit.steps)
    assert "clarity" not in section.dropped


def test_a_latent_that_changes_nothing_gives_no_edits() -> None:
    section, rows = made(Drawing(deaf=True))
    assert rows == {}
    assert section.file is None
    assert section.attributes == ()
    assert section.dropped["slant"] == "it is the same in all images of a class"


def test_noise_is_no_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(directions, "measure", lambda images: {"slant": rng.normal(size=len(images))})
    section, _ = made(Drawing(), None)
    assert "a linear model of the latent explains 0%" in section.dropped["slant"]


def test_what_is_bound_up_with_another_is_not_held() -> None:
    """Brightness and stroke of white on black are nearly one: to hold the one would leave nothing of the other."""
    fit: Any = directions._Fit.__new__(directions._Fit)
    fit.vectors = {
        "slant": np.array([1.0, 0.0, 0.0]),
        "stroke": np.array([0.0, 1.0, 0.1]),
        "brightness": np.array([0.0, 1.0, -0.1]),
    }
    row, holds = fit.direction("brightness")
    assert holds == ("slant",)
    assert row.tolist() == pytest.approx([0, 1 / 1.01, -0.1 / 1.01], abs=1e-5)
    row, holds = fit.direction("slant")
    assert holds == ("stroke", "brightness")
    for other in holds:
        assert row @ fit.vectors[other] == pytest.approx(0, abs=1e-5)
    assert row @ fit.vectors["slant"] == pytest.approx(1, abs=1e-5)


def test_the_same_again_is_the_same_bytes() -> None:
    first, second = (make_directions(Drawing(), b"reader") for _ in range(2))  # type: ignore[arg-type]
    assert first == second
