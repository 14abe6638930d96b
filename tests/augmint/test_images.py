"""Decoding to canonical pixels, resizing, PNG and the marks of synthetic origin."""

from __future__ import annotations

import io
import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from augmint.errors import DataError
from augmint.images import (
    RESIZE_POLICIES,
    SYNTHETIC,
    Resize,
    canonical,
    decode_image,
    encode_png,
    encode_webp,
    read_marks,
    resize_image,
    synthetic_png,
    synthetic_pngs,
    synthetic_webp,
)
from tests.augmint.data.makers import noise


def _bytes(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


# --- modes

GREY = Image.fromarray(noise(1, (5, 7)))
COLOUR = Image.fromarray(noise(2, (5, 7, 3)))


def _with_alpha(image: Image.Image, alpha: int) -> Image.Image:
    image = image.copy()
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize(
    ("data", "mode", "expected"),
    [
        (_bytes(GREY), "L", GREY),
        (_bytes(COLOUR), "RGB", COLOUR),
        (_bytes(GREY.convert("RGB")), "RGB", GREY),
        (_bytes(GREY.convert("1")), "1", GREY.convert("1").convert("L")),
        (_bytes(COLOUR.quantize(16)), "P", COLOUR.quantize(16).convert("RGB")),
        (_bytes(GREY.convert("P")), "P", GREY),
        (_bytes(_with_alpha(COLOUR, 255)), "RGBA", COLOUR),
        (_bytes(_with_alpha(COLOUR, 0)), "RGBA", Image.new("L", (7, 5), 255)),
        (_bytes(_with_alpha(GREY, 255)), "LA", GREY),
        (_bytes(_with_alpha(GREY, 0)), "LA", Image.new("L", (7, 5), 255)),
        (_bytes(COLOUR.convert("CMYK"), "TIFF"), "CMYK", COLOUR.convert("CMYK").convert("RGB")),
        (_bytes(Image.new("L", (7, 5), 9), transparency=9), "L", Image.new("L", (7, 5), 255)),
        (_bytes(COLOUR, "WEBP", lossless=True), "RGB", COLOUR),
        (_bytes(COLOUR, "PPM"), "RGB", COLOUR),
        (_bytes(GREY, "BMP"), "L", GREY),
    ],
)
def test_modes(data: bytes, mode: str, expected: Image.Image) -> None:
    decoded = decode_image(data)
    assert decoded.mode == mode
    assert np.array_equal(decoded.pixels, canonical(np.array(expected)))


@pytest.mark.parametrize(("form", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_16_bit_grey_is_divided_by_257(form: str, dtype: str) -> None:
    wide = np.array([[0, 1, 128, 129, 257, 65535], [k * 257 for k in (2, 3, 100, 200, 254, 255)]], dtype=dtype)
    decoded = decode_image(_bytes(Image.fromarray(wide), form))
    assert decoded.mode.startswith("I")
    assert decoded.pixels[..., 0].tolist() == [[0, 0, 0, 1, 1, 255], [2, 3, 100, 200, 254, 255]]


def test_16_bit_pgm_is_16_bit_grey_too() -> None:
    wide = np.array([[0, 128, 129, 257 * 100, 65535]], dtype=">u2")
    assert decode_image(b"P5\n5 1\n65535\n" + wide.tobytes()).pixels[..., 0].tolist() == [[0, 0, 1, 100, 255]]


def test_32_bit_integers_are_refused() -> None:
    with pytest.raises(DataError, match="32-bit integer pixels"):
        decode_image(_bytes(Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)), "TIFF"))


def test_animations_count_by_their_first_frame() -> None:
    frames = [Image.fromarray(noise(i, (5, 7))) for i in range(3)]
    data = _bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode_image(data).pixels[..., 0], np.array(frames[0]))


def test_half_transparent_pixels_lie_on_white() -> None:
    pixels = np.array([[[0, 0, 0, 128]]], dtype=np.uint8)
    assert canonical(pixels).tolist() == [[[127]]]


def test_the_limit_is_the_callers(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(_bytes(COLOUR))
    with pytest.raises(DataError, match="claims 7 × 5 pixels, more than the limit of 34"):
        decode_image(tmp_path / "x.png", max_pixels=34)
    assert decode_image(str(tmp_path / "x.png"), max_pixels=35).pixels.shape == (5, 7, 3)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        decode_image(tmp_path / "x.png")


# --- resizing

_pictures = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3])), elements=st.integers(0, 255)
)


@settings(deadline=None)
@given(
    _pictures,
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3])),
    st.sampled_from(RESIZE_POLICIES),
)
def test_resized_to_what_was_asked(pixels: NDArray[np.uint8], shape: tuple[int, int, int], policy: Resize) -> None:
    made = resize_image(pixels, shape, policy)
    assert made.shape == shape
    assert made.dtype == np.uint8
    if pixels.shape == shape:
        assert np.array_equal(made, pixels)


@given(st.integers(0, 255), st.sampled_from(RESIZE_POLICIES))
def test_a_flat_picture_stays_flat(level: int, policy: Resize) -> None:
    assert (resize_image(np.full((9, 5, 1), level, dtype=np.uint8), (8, 16, 3), policy) == level).all()


def test_fit_pads_with_the_edges_colour_and_keeps_proportions() -> None:
    pixels = np.full((20, 40, 1), 30, dtype=np.uint8)
    pixels[5:15, 10:30] = 200
    made = resize_image(pixels, (40, 40, 1), "fit")
    assert (made[:10] == 30).all()
    assert (made[30:] == 30).all()
    assert np.array_equal(made[10:30], pixels)


def test_crop_keeps_the_middle() -> None:
    pixels = np.zeros((20, 40, 1), dtype=np.uint8)
    pixels[:, 10:30] = 255
    assert (resize_image(pixels, (20, 20, 1), "crop") == 255).all()
    assert (resize_image(pixels.transpose(1, 0, 2), (20, 20, 1), "crop") == 255).all()


def test_stretch_changes_proportions() -> None:
    pixels = np.zeros((20, 40, 1), dtype=np.uint8)
    pixels[:, :20] = 255
    made = resize_image(pixels, (20, 20, 1), "stretch")
    assert (made[:, :8] == 255).all()
    assert (made[:, 12:] == 0).all()


# --- PNG


_texts = st.dictionaries(
    st.from_regex(r"[A-Za-z][A-Za-z0-9:]{0,20}", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
    max_size=3,
)


@given(_pictures, _texts)
def test_png_round_trip(pixels: NDArray[np.uint8], text: dict[str, str]) -> None:
    data = encode_png(pixels, text)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == ("L" if pixels.shape[2] == 1 else "RGB")
        assert np.array_equal(np.array(image).reshape(pixels.shape), pixels)
        assert image.text == text  # type: ignore[attr-defined]
    assert np.array_equal(decode_image(data).pixels, canonical(pixels))


def test_png_takes_views() -> None:
    pixels = noise(0, (9, 12, 3))
    for view in (pixels[::2], pixels[:, ::-1], pixels.transpose(1, 0, 2), pixels[..., 0]):
        assert np.array_equal(np.array(Image.open(io.BytesIO(encode_png(view)))), view)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (4, 4, 4), (0, 4), (4, 0, 3), (1, 4, 4, 3)])
def test_png_of_what_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected uint8|at least one pixel"):
        encode_png(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("text", [{"": "x"}, {"k" * 80: "x"}, {"ü": "x"}, {"a": "x\0y"}])
def test_png_text_that_cannot_be_written(text: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="PNG text"):
        encode_png(noise(0), text)


# --- marks

_MARK = {"bundle": "0f" * 32, "label": 'scratch "<&>" 猫', "seed": 2**64 - 1, "index": 2**53 + 1, "truncation": 0.7}


@given(
    st.text(st.characters(codec="utf-8"), max_size=40),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.floats(0, 1),
)
def test_marks_round_trip(label: str, seed: int, index: int, truncation: float) -> None:
    mark = {"bundle": "ab" * 32, "label": label, "seed": seed, "index": index, "truncation": truncation}
    data = synthetic_png(noise(0), **mark)  # type: ignore[arg-type]
    assert read_marks(data) == mark
    assert np.array_equal(decode_image(data).pixels, noise(0))
    _xmp(data)


def _xmp(data: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(data)) as image:
        packet = image.text["XML:com.adobe.xmp"]  # type: ignore[attr-defined]
    inner = re.fullmatch(r"<\?xpacket begin=.*?\?>(.*)<\?xpacket end=\"r\"\?>", packet, re.DOTALL)
    assert inner
    description = ET.fromstring(inner[1])[0][0]
    return dict(description.attrib)


def test_xmp_is_well_formed_and_says_synthetic() -> None:
    attributes = _xmp(synthetic_png(noise(0, (4, 4, 3)), **_MARK))  # type: ignore[arg-type]
    assert attributes["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"] == SYNTHETIC
    assert SYNTHETIC == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert attributes["{urn:augmint:address:1#}label"] == _MARK["label"]
    assert attributes["{urn:augmint:address:1#}seed"] == str(2**64 - 1)


def test_many_pngs_are_those_of_each() -> None:
    images = np.stack([noise(i, (9, 12, 3)) for i in range(130)])
    labels, seeds, indices = ["a", "b"] * 65, list(range(130)), [2**64 - 1 - i for i in range(130)]
    many = list(
        synthetic_pngs(images, bundle="0f", labels=labels, seeds=seeds, indices=indices, truncation=0.5, edit="size:1")
    )
    for i in (0, 64, 129):
        address = {"bundle": "0f", "label": labels[i], "seed": seeds[i], "index": indices[i], "truncation": 0.5}
        assert many[i] == synthetic_png(images[i], **address, edit="size:1")  # type: ignore[arg-type]
        assert read_marks(many[i]) == {**address, "edit": "size:1"}


def test_marks_stand_before_the_pixels() -> None:
    data = synthetic_png(noise(0), **_MARK)  # type: ignore[arg-type]
    kinds, place = [], 8
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        kinds.append(data[place + 4 : place + 8])
        place += 12 + size
    assert kinds == [b"IHDR", b"iTXt", b"iTXt", b"iTXt", b"IDAT", b"IEND"]


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (8, 8, 1), (5, 9, 3), (64, 64, 3)])
def test_webp_keeps_pixels_and_marks(shape: tuple[int, ...]) -> None:
    pixels = noise(3, shape)
    data = synthetic_webp(pixels, **_MARK)  # type: ignore[arg-type]
    assert data == synthetic_webp(pixels, **_MARK)  # type: ignore[arg-type]
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("WEBP", "RGB")  # there is no grey WebP
        packet = image.info["xmp"].decode()
    assert np.array_equal(decode_image(data).pixels, canonical(pixels))
    assert read_marks(data) == _MARK
    assert read_marks(synthetic_webp(pixels, **_MARK, edit="slant:1.5")) == {**_MARK, "edit": "slant:1.5"}  # type: ignore[arg-type]
    assert SYNTHETIC in packet


def test_webp_that_cannot_be_written() -> None:
    for wrong in (noise(0, (4, 4, 2)), noise(0).astype(np.int16), np.zeros((1, 16_384), np.uint8)):
        with pytest.raises(ValueError, match=r"uint8|sides"):
            encode_webp(wrong)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        encode_webp(noise(0)),
        encode_webp(noise(0), "<x"),
        encode_webp(noise(0), '<!DOCTYPE x [<!ENTITY e "e">]><x>&e;</x>'),
        encode_webp(noise(0), '<r:Description xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>'),
        encode_png(noise(0)),
        _bytes(COLOUR, "JPEG"),
        encode_png(noise(0), {"augmint": "hello"}),
        encode_png(noise(0), {"augmint": "[1]"}),
        encode_png(noise(0), {"augmint": '{"bundle": "a"}'}),
        encode_png(noise(0), {"augmint": '{"bundle": 1, "label": "", "seed": "1", "index": "1", "truncation": 1}'}),
        encode_png(noise(0), {"augmint": '{"bundle": "", "label": "", "seed": "1", "index": "1", "truncation": NaN}'}),
        encode_png(noise(0), {"augmint": "[" * 100_000}),
        synthetic_png(noise(0), **_MARK)[:40],  # type: ignore[arg-type]
    ],
)
def test_no_marks(data: bytes) -> None:
    assert read_marks(data) is None
