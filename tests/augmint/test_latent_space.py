"""Latents: arcs, sums and steps; and that an edited image is a function of its address and its edit alone."""

from __future__ import annotations

import csv
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from augmint.errors import RequestError, UnknownLabelError
from augmint.generator import Generator
from augmint.images import read_marks
from augmint.latent_space import arithmetic, average, check_edit, edit_text, rescaled, shift, slerp
from augmint.latents import latents
from augmint.samples import Request
from augmint.sampling import write_samples
from augmint.traversals import edit_sheet, interpolation_sheet
from tests.tinybundle import EDITS, LATENT_DIM, write_tiny_bundle

addresses = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
edits = st.fixed_dictionaries({}, optional={name: st.floats(-limit, limit) for name, limit in EDITS.items()})


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator(tiny_bundle, device="cpu", threads=1)


# ------------------------------------------------------------------------------------------------- vectors


@given(addresses, addresses, st.floats(0, 1), st.integers(2, 200))
def test_an_arc_has_its_ends_and_stays_among_the_lengths_between(
    one: tuple[int, int], other: tuple[int, int], t: float, dim: int
) -> None:
    (a,), (b,) = latents(*one, dim), latents(*other, dim)
    cosine = float(a.astype(float) @ b) / float(np.linalg.norm(a.astype(float)) * np.linalg.norm(b.astype(float)))
    assume(cosine > -0.9999)
    path = slerp(a, b, [0.0, t, 1.0])
    assert path.dtype == np.float32
    assert np.array_equal(path[0], a)
    assert np.array_equal(path[2], b)
    shorter, longer = sorted((np.linalg.norm(a), np.linalg.norm(b)))
    assert shorter * (1 - 1e-5) <= np.linalg.norm(path[1]) <= longer * (1 + 1e-5)
    # In the plane of both, and each row by itself.
    basis, _ = np.linalg.qr(np.stack([a, b], axis=1).astype(float))
    if cosine < 0.999:
        assert np.allclose(basis @ (basis.T @ path[1]), path[1], atol=1e-3)
    assert np.array_equal(slerp(a, b, t), path[1])
    assert np.array_equal(slerp(a, b, np.linspace(0, 1, 7))[::-1][:1], b[None])


def test_the_middle_of_an_arc_is_as_far_from_both_ends() -> None:
    a, b = latents(1, [0, 1], 64)
    middle = slerp(a / np.linalg.norm(a), b / np.linalg.norm(b), 0.5).astype(float)
    assert middle @ (a / np.linalg.norm(a)) == pytest.approx(middle @ (b / np.linalg.norm(b)), abs=1e-6)
    assert np.linalg.norm(middle) == pytest.approx(1, abs=1e-6)


def test_parallel_ends_are_joined_by_a_line_and_opposite_ones_by_nothing() -> None:
    assert slerp([1, 0], [3, 0], [0.5]).tolist() == [[2, 0]]
    for a, b in (([1, 0], [-1, 0]), ([0, 0], [1, 0]), ([1, 0], [1, 0, 0]), ([[1, 0]], [[0, 1]])):
        with pytest.raises(RequestError):
            slerp(a, b, 0.5)


def test_arithmetic_is_of_averages() -> None:
    rows = latents(5, np.arange(9), 32)
    smiling_woman, woman, man = rows[:3], rows[3:6], rows[6:]
    found = arithmetic([smiling_woman, man], [woman])
    assert found.dtype == np.float32
    assert np.allclose(found, smiling_woman.mean(0) - woman.mean(0) + man.mean(0), atol=1e-6)
    assert np.allclose(average(rows[0]), rows[0])
    assert np.linalg.norm(rescaled(found)) == pytest.approx(np.sqrt(32), rel=1e-6)
    for wrong in (lambda: arithmetic([]), lambda: average(np.empty((0, 3))), lambda: rescaled(np.zeros(3))):
        with pytest.raises(RequestError):
            wrong()


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ({"smile": 1.0}, "it edits slant (±2), brightness (±3)"),
        ({"slant": 2.01}, "−2 … +2"),
        ({"slant": float("nan")}, "−2 … +2"),
        ({"slant": "much"}, "must be a number"),
        ({"slant": True}, "must be a number"),
        ({3: 1.0}, "cannot edit '3'"),
        ("slant=1", "a mapping"),
    ],
)
def test_what_cannot_be_edited_is_refused_with_what_can(edit: Any, sentence: str) -> None:
    with pytest.raises(RequestError) as error:
        check_edit(edit, EDITS)
    assert sentence in str(error.value)
    assert error.value.code == "request.edit"


def test_a_bundle_without_edits_says_so() -> None:
    with pytest.raises(RequestError, match="offers no edits"):
        Request.make(3, (), edit={"slant": 1})
    assert Request.make(3, (), edit={}).edit == ()


def test_an_edit_in_words() -> None:
    assert edit_text(check_edit({"brightness": -1, "slant": 0.1}, EDITS)) == "slant=+0.1 brightness=-1.0"
    assert edit_text(()) == ""


# ------------------------------------------------------------------------------------------------- images


@settings(deadline=None, max_examples=30)
@given(edit=edits, seed=st.integers(0, 2**64 - 1), first=st.integers(0, 2**63), n=st.integers(1, 150))
def test_an_edited_image_is_a_function_of_its_address_and_edit(
    generator: Generator, edit: dict[str, float], seed: int, first: int, n: int
) -> None:
    """In whatever batch: all at once, one alone, and by its own latent."""
    made = generator.generate({"dog": n, "cat": 2}, seed=seed, offset=first, edit=edit)
    assert dict(made.edit) == {name: edit[name] for name in EDITS if edit.get(name)}
    i = n - 1
    alone = generator.generate({"dog": 1}, seed=seed, offset=first + i, edit=dict(reversed(edit.items())))
    assert np.array_equal(alone.images[0], made.images[i])
    latent = latents(np.uint64(seed), [first + i], LATENT_DIM)
    step = shift(generator.files.directions(), check_edit(edit, EDITS), LATENT_DIM)
    assert np.array_equal(generator.from_latents(latent + step, "dog")[0], made.images[i])
    assert np.array_equal(generator.latents([first + i], seed=seed, edit=edit), latent + step)


def test_an_edit_of_0_is_none(generator: Generator) -> None:
    plain = generator.generate({"cat": 9}, seed=4)
    for edit in ({}, {"slant": 0}, {"slant": 0.0, "brightness": -0.0}, None):
        made = generator.generate({"cat": 9}, seed=4, edit=edit)
        assert np.array_equal(made.images, plain.images)
        assert made.edit == {}
    assert not np.array_equal(generator.generate({"cat": 9}, seed=4, edit={"slant": 1}).images, plain.images)


def test_edits_go_with_truncation_parts_and_quality(judged_bundle: Path) -> None:
    generator = pickle.loads(pickle.dumps(Generator(judged_bundle, device="cpu", threads=1)))
    wish: Any = {"seed": 3, "truncation": 0.5, "edit": {"slant": -1.5}}
    whole = generator.generate({"cat": 40}, **wish)
    parts = list(generator.stream({"cat": 40}, chunk=7, **wish))
    assert np.array_equal(np.concatenate([part.images for part in parts]), whole.images)
    assert all(part.edit == {"slant": -1.5} for part in parts)
    kept = generator.generate({"cat": 12}, quality="labels", **wish)
    assert kept.edit == {"slant": -1.5}
    for image, index in zip(kept.images, kept.indices.tolist(), strict=True):
        again = generator.generate({"cat": 1}, offset=index, **wish)
        assert np.array_equal(again.images[0], image)
        assert generator.judge(again.images, again.labels, generator.request({"cat": 1}, quality="labels").quality) == 0


def test_between_two_images_lie_others(generator: Generator) -> None:
    way = generator.interpolate("été 10", seed=6, a=3, b=11, steps=5)
    ends = [generator.generate({"été 10": 1}, seed=6, offset=index).images[0] for index in (3, 11)]
    assert np.array_equal(way[0], ends[0])
    assert np.array_equal(way[-1], ends[1])
    assert len({image.tobytes() for image in way}) == 5
    with pytest.raises(RequestError, match="at least 2"):
        generator.interpolate("cat", seed=6, a=3, b=11, steps=1)


@pytest.mark.parametrize(
    ("rows", "labels"), [((3, 5), "cat"), ((2, LATENT_DIM, 1), "cat"), ((3, LATENT_DIM), ["cat", "dog"])]
)
def test_latents_of_other_shapes_are_refused(generator: Generator, rows: tuple[int, ...], labels: Any) -> None:
    with pytest.raises(RequestError):
        generator.from_latents(np.zeros(rows), labels)


def test_latents_of_ones_own(generator: Generator, tiny_bundle_unconditional: Path) -> None:
    rows = generator.latents(np.arange(70), seed=1)
    images = generator.from_latents(rows, ["cat", "dog"] * 35)
    assert np.array_equal(images[::2], generator.from_latents(rows[::2], "cat"))
    assert generator.from_latents(rows[0], "dog").shape == (1, 8, 8, 1)
    assert generator.from_latents(rows[:0], "dog").shape == (0, 8, 8, 1)
    with pytest.raises(UnknownLabelError):
        generator.from_latents(rows, "bird")
    with pytest.raises(RequestError, match="finite"):
        generator.from_latents(np.full((1, LATENT_DIM), np.nan), "cat")
    for wrong in ({"seed": -1}, {"seed": 2**64}, {"seed": 1, "truncation": 0}, {"seed": 1, "edit": {"x": 1}}):
        with pytest.raises(RequestError):
            generator.latents([0], **wrong)  # type: ignore[arg-type]
    plain = Generator(tiny_bundle_unconditional, device="cpu", threads=1)
    made = plain.from_latents(plain.latents([4], seed=2))
    assert np.array_equal(made, plain.generate(1, seed=2, offset=4).images)


# ------------------------------------------------------------------------------------------------- files and sheets


def test_files_say_the_edit(generator: Generator, tmp_path: Path) -> None:
    written = write_samples(
        generator, {"cat": 2}, str(tmp_path / "edited"), seed=5, edit={"brightness": 1, "slant": -2}
    )
    assert written.edit == {"slant": -2.0, "brightness": 1.0}
    table = (tmp_path / "edited" / "metadata.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    assert {row["edit"] for row in rows} == {"slant=-2.0 brightness=+1.0"}
    marks = read_marks((tmp_path / "edited" / rows[0]["file_name"]).read_bytes())
    assert marks is not None
    assert marks["edit"] == "slant=-2.0 brightness=+1.0"
    write_samples(generator, {"cat": 2}, str(tmp_path / "plain"), seed=5)
    assert "edit" not in (tmp_path / "plain" / "metadata.csv").read_text(encoding="utf-8").splitlines()[0]
    plain = read_marks((tmp_path / "plain" / rows[0]["file_name"]).read_bytes())
    assert plain is not None
    assert "edit" not in plain


def test_sheets_have_a_row_for_each(generator: Generator, tiny_bundle_unconditional: Path) -> None:
    for columns, labels in itertools.product((3, 5), ((), ("dog",))):
        small, wide = (edit_sheet(generator, labels, seed=1, columns=n) for n in (columns, columns + 2))
        assert small.height == wide.height
        assert small.width < wide.width
    assert edit_sheet(generator, ("dog",), seed=1).height < edit_sheet(generator, seed=1).height
    assert interpolation_sheet(generator, seed=1, a=0, b=5).height > 100
    edit_sheet(Generator(tiny_bundle_unconditional, device="cpu", threads=1), seed=1)
    for wrong in ({"columns": 4}, {"labels": ["bird"]}):
        with pytest.raises(RequestError):
            edit_sheet(generator, seed=1, **wrong)  # type: ignore[arg-type]


def test_the_middle_of_a_row_is_the_image_itself(generator: Generator) -> None:
    """8x8 images at scale 6, and one label: the third of five columns of the first row."""
    sheet = np.asarray(edit_sheet(generator, ["cat"], seed=1, index=7, columns=5))
    image = generator.generate({"cat": 1}, seed=1, offset=7).images[0].repeat(6, 0).repeat(6, 1)[:, :, 0]
    left = sheet.shape[1] - 8 - 3 * 50
    assert np.array_equal(sheet[8:56, left : left + 48, 0], image)


def test_a_bundle_that_offers_none_has_no_sheet(tmp_path: Path) -> None:
    bare = Generator(write_tiny_bundle(tmp_path / "bare", edited=False), device="cpu", threads=1)
    assert bare.info().edits == {}
    with pytest.raises(RequestError, match="offers no edits"):
        edit_sheet(bare, seed=1)
    with pytest.raises(RequestError, match="offers no edits"):
        bare.generate({"cat": 1}, edit={"slant": 1})
