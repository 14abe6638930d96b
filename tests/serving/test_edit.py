"""Edits over HTTP: the local generator's bytes, mixed with others' in a batch, and refused with what can be edited."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from augmint import Client, Generator
from augmint.images import read_marks
from augmint.latents import latents
from serving.bundles import open_bundles
from serving.settings import Settings
from tests.augmint.test_client import same
from tests.serving.conftest import Service
from tests.serving.test_service import assert_problem
from tests.tinybundle import EDITS, LATENT_DIM

BODY: dict[str, Any] = {"bundle": "tiny", "counts": {"été 10": 5, "dog": 3}, "seed": 7, "offset": 9}
EDIT = {"brightness": -1.5, "slant": 2}


@pytest.fixture(scope="module")
def local(tiny_bundle: Path) -> Generator:
    return Generator(tiny_bundle, device="cpu", threads=1)


def test_near_and_far_give_the_same(service: Service, local: Generator) -> None:
    wanted = local.generate(BODY["counts"], seed=7, offset=9, edit=EDIT)
    reply = service.generate({**BODY, "edit": EDIT, "format": "npy"})
    assert np.array_equal(np.load(io.BytesIO(reply.body)), wanted.images)
    with Client(f"http://127.0.0.1:{service.port}", bundle="tiny") as client:
        same(client.generate(BODY["counts"], seed=7, offset=9, edit=EDIT), wanted)
        assert client.info().edits == EDITS


def test_edited_and_unedited_at_once_get_their_own(service: Service, local: Generator) -> None:
    wishes: list[dict[str, float]] = [{}, {"slant": 1.0}, {"slant": -1.0}, {"brightness": 0.5}] * 6

    def ask(numbered: tuple[int, dict[str, float]]) -> Any:
        seed, edit = numbered
        return np.load(
            io.BytesIO(service.generate({**BODY, "seed": seed, "edit": edit, "format": "npy"}).body), allow_pickle=False
        )

    with ThreadPoolExecutor(8) as pool:
        for (seed, edit), images in zip(enumerate(wishes), pool.map(ask, enumerate(wishes)), strict=True):
            wanted = local.generate(BODY["counts"], seed=seed, offset=9, edit=edit)
            assert np.array_equal(images, wanted.images)


def test_rows_of_one_batch_are_edited_each_for_itself(tiny_bundle: Path, local: Generator) -> None:
    """What the engine hands to the session: spans of rows, each with its edit."""
    (served,) = open_bundles(Settings(bundles=(tiny_bundle,), device="cpu")).values()
    labels, indices = np.zeros(10, np.int64), np.arange(10, dtype=np.uint64)
    slant, both = (("slant", 1.5),), (("slant", -1.0), ("brightness", 2.0))
    made = served.lane._render(labels, np.full(10, 3, np.uint64), indices, np.ones(10), [(2, 5, slant), (5, 6, both)])
    plain = latents(np.uint64(3), indices, LATENT_DIM)
    for row in range(10):
        step = local.shift(slant if 2 <= row < 5 else both if row == 5 else ())
        assert np.array_equal(made[row], local.from_latents(plain[row] + step, "cat")[0])


def test_the_tag_knows_the_edit(service: Service) -> None:
    tags = set()
    for edit in ({}, {"slant": 1}, {"slant": -1}, {"brightness": 1}, {"slant": 1, "brightness": 1}):
        reply = service.generate({**BODY, "edit": edit})
        tags.add(reply.headers["etag"])
        assert service.generate({**BODY, "edit": edit}, If_None_Match=reply.headers["etag"]).status == 304
    assert len(tags) == 5
    assert service.generate({**BODY, "edit": {"slant": 0}}).headers["etag"] in tags
    assert service.generate({**BODY, "edit": {"brightness": 1.0, "slant": 1.0}}).headers["etag"] in tags


def test_what_cannot_be_edited_is_refused_with_what_can(service: Service) -> None:
    problem = assert_problem(service.generate({**BODY, "edit": {"smile": 1}}), 422, "edit")
    assert "it edits slant (±2), brightness (±3)" in problem["detail"]
    problem = assert_problem(service.generate({**BODY, "edit": {"slant": 2.5}}), 422, "edit")
    assert "−2 … +2" in problem["detail"]
    for wrong in ("slant=1", {"slant": "1"}, ["slant"], {"slant": None}, {"slant": True}):
        assert_problem(service.generate({**BODY, "edit": wrong}), 422, "invalid")


def test_the_listing_says_what_can_be_edited_and_the_bundle_what_was_measured(service: Service) -> None:
    listed = {bundle["name"]: bundle["edits"] for bundle in service.ask("GET", "/v1/bundles").json()["bundles"]}
    assert listed == {"tiny": EDITS, "plain": EDITS}
    directions = service.ask("GET", "/v1/bundles/tiny").json()["directions"]
    assert [(edit["name"], edit["r2"], edit["limit"]) for edit in directions] == [
        ("slant", 0.6, 2.0),
        ("brightness", 0.6, 3.0),
    ]


def test_a_png_says_its_edit(service: Service) -> None:
    reply = service.generate({**BODY, "counts": {"dog": 1}, "edit": {"slant": -0.5}, "format": "png"})
    marks = read_marks(reply.body)
    assert marks is not None
    assert marks["edit"] == "slant=-0.5"
