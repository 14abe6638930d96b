"""Pixels in and out: decode any picture to uint8, bring it to a shape, write PNG and WebP with the marks of synthetic
origin.

Two forms occur. A *canonical* picture is uint8 [H, W, 1] when every pixel is grey (whatever the file's mode said) and
uint8 [H, W, 3], sRGB as stored, otherwise. A *shaped* one has exactly the (height, width, channels) that was asked for.

How a file's mode becomes canonical:

=====================  =========================================================================================
1-bit, L, P, RGB        as they are; a palette is looked up
LA, RGBA, PA, tRNS      composited on white
CMYK, YCbCr, LAB, HSV   converted to RGB by Pillow, without a colour profile
16-bit grey             divided by 257 and rounded, so that 0 … 65,535 becomes 0 … 255 (16-bit RGB: its high byte)
32-bit integer, float   refused: their range is nowhere stated
=====================  =========================================================================================

EXIF orientation is applied; of an animation the first frame counts. This module knows nothing of data sets, classes
or bundles: a mark is a handful of values that it writes and reads back.
"""

from __future__ import annotations

import io
import json
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, NotRequired, TypedDict
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from augmint.errors import DataError

__all__ = [
    "MAX_PIXELS",
    "RESIZE_POLICIES",
    "SYNTHETIC",
    "Decoded",
    "Marks",
    "Resize",
    "canonical",
    "decode_image",
    "encode_png",
    "encode_webp",
    "quiet_pillow",
    "read_marks",
    "resize_image",
    "synthetic_png",
    "synthetic_pngs",
    "synthetic_sheet_png",
    "synthetic_webp",
]

Resize = Literal["fit", "crop", "stretch"]
RESIZE_POLICIES: Final[tuple[Resize, ...]] = ("fit", "crop", "stretch")

# The same figure as Pillow's own default, but an error from here on, not a warning first.
MAX_PIXELS: Final = 89_478_485

# A fixed list, because Pillow also opens formats that start other programs (EPS runs Ghostscript).
_FORMATS: Final[tuple[str, ...]] = ("PNG", "JPEG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")

SYNTHETIC: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_MARK_KEY: Final = "augmint"
_XMP_KEY: Final = "XML:com.adobe.xmp"
_XMP_NAMESPACE: Final = "urn:augmint:address:1#"
_WEBP_SIDE: Final = 16_383


class Marks(TypedDict):
    """The address of a generated image, as it stands in its PNG or WebP. `label` is "" for an unconditional bundle.

    `edit` is there where the image was edited, as `augmint.latent_space.edit_text` writes it.
    """

    bundle: str
    label: str
    seed: int
    index: int
    truncation: float
    edit: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Decoded:
    """A canonical picture, uint8 [H, W, 1 or 3], and the mode of the file it came from ("L", "P", "I;16", …)."""

    pixels: NDArray[np.uint8]
    mode: str


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Turn Pillow's bomb warning into an error and silence its other warnings while many files are decoded.

    Python's warning filters belong to the whole process, so this is entered once around a pool of threads, never
    inside one.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode a picture fully and make it canonical.

    Args:
        source: a path, or the bytes of a file.
        max_pixels: a picture whose header claims more is refused before anything is decoded.

    Raises:
        DataError: not a picture, empty, damaged, cut short, too large, or of a mode without a stated range. The
            message is a clause without the file's name, which the caller knows better.
    """
    try:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror or error})", code="data.unreadable") from None
    if size == 0:
        raise DataError("is empty (0 bytes)", code="data.empty-file")

    Image.init()  # Registers every plug-in, so that the formats Pillow was built without can be left out.
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"claims {image.width} × {image.height} pixels, more than the limit of {max_pixels:,}",
                    code="data.too-large",
                )
            mode, form = image.mode, image.format
            image.load()
            pixels = _to_uint8(_upright(image), form)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("is not an image", code="data.not-an-image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"claims more pixels than the limit of {max_pixels:,} (a decompression bomb?)", code="data.too-large"
        ) from None
    except PermissionError:
        raise DataError("cannot be opened (permission denied)", code="data.unreadable") from None
    # Damaged files make Pillow's plug-ins raise nearly anything: OSError, SyntaxError, struct.error, KeyError, …
    except Exception as error:
        detail = " ".join(str(error).split())[:100] or type(error).__name__
        raise DataError(f"is damaged or cut short ({detail})", code="data.damaged") from None
    return Decoded(canonical(pixels), mode)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # The picture itself decoded: damaged EXIF only means that nothing is known of an orientation.
        return image


def _to_uint8(image: Image.Image, form: str | None) -> NDArray[np.uint8]:
    """Pixels of a loaded picture of any mode, uint8 [H, W, 1 or 3]; `form` is the file's, which copies forget."""
    mode = image.mode
    if mode == "F":
        raise DataError(
            "has floating-point pixels, whose range is not stated; save it with 8 or 16 bits", code="data.mode"
        )
    if mode == "I" or mode.startswith("I;16"):
        wide = np.asarray(image)
        # Pillow opens 16-bit PGM, and older ones PNG, as 32-bit "I"; anything else with 32 bits has no stated range.
        if mode == "I" and (form not in ("PNG", "PPM") or wide.min() < 0 or wide.max() > 65535):
            raise DataError(
                "has 32-bit integer pixels, whose range is not stated; save it with 8 or 16 bits", code="data.mode"
            )
        return ((wide.astype(np.uint32) + 128) // 257).astype(np.uint8)[:, :, None]
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, rgba).convert("RGB"))
    if mode in ("1", "L"):
        return np.array(image.convert("L"))[:, :, None]
    return np.array(image.convert("RGB"))


def canonical(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (composited on white) as a canonical picture."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[2] == 4:
        rgba = Image.fromarray(np.ascontiguousarray(pixels))
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        pixels = np.array(Image.alpha_composite(white, rgba).convert("RGB"))
    if pixels.shape[2] == 3:
        red = pixels[:, :, :1]
        if np.array_equal(red, pixels[:, :, 1:2]) and np.array_equal(red, pixels[:, :, 2:]):
            pixels = red
    return np.ascontiguousarray(pixels)


def resize_image(pixels: NDArray[np.uint8], shape: tuple[int, int, int], policy: Resize = "fit") -> NDArray[np.uint8]:
    """Bring a canonical picture to `shape` = (height, width, channels), uint8.

    - ``fit``: the whole picture, its proportions kept, centred; what remains is filled with the median colour of the
      picture's own outermost pixels, so black digits' ground stays black and a white page stays white.
    - ``crop``: proportions kept, the shape filled, what sticks out on both sides cut off.
    - ``stretch``: the whole picture, its proportions changed.

    Resampling is Pillow's bicubic with antialiasing. A picture of the right size is not touched. Colour becomes grey by
    ITU-R 601 luma; grey becomes colour by repeating it.
    """
    height, width, channels = shape
    if channels == 1 and pixels.shape[2] == 3:
        pixels = np.array(Image.fromarray(pixels).convert("L"))[:, :, None]
    made = _resize(pixels, height, width, policy)
    return np.repeat(made, 3, axis=2) if made.shape[2] < channels else made


def _resize(pixels: NDArray[np.uint8], height: int, width: int, policy: Resize) -> NDArray[np.uint8]:
    h, w, channels = pixels.shape
    if (h, w) == (height, width):
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    if policy == "fit":
        scale = min(width / w, height / h)
        inner_w = min(width, max(1, round(w * scale)))
        inner_h = min(height, max(1, round(h * scale)))
        inner = _pixels(image.resize((inner_w, inner_h), Image.Resampling.BICUBIC))
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        out = np.empty((height, width, channels), dtype=np.uint8)
        # The upper median: always one of the levels that occur.
        out[:] = np.partition(edge, len(edge) // 2, axis=0)[len(edge) // 2]
        top, left = (height - inner_h) // 2, (width - inner_w) // 2
        out[top : top + inner_h, left : left + inner_w] = inner
        return out
    if policy == "crop":
        scale = max(width / w, height / h)
        cut_w, cut_h = width / scale, height / scale
        left, top = (w - cut_w) / 2, (h - cut_h) / 2
        box = (max(left, 0.0), max(top, 0.0), min(left + cut_w, float(w)), min(top + cut_h, float(h)))
        return _pixels(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
    if policy == "stretch":
        return _pixels(image.resize((width, height), Image.Resampling.BICUBIC))
    raise AssertionError(policy)


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = np.array(image)
    return array[:, :, None] if array.ndim == 2 else array


# ---------------------------------------------------------------------------------------------------------------------
# PNG


def encode_png(image: NDArray[np.uint8], text: Mapping[str, str] | None = None) -> bytes:
    """Encode one image as PNG; several times faster than Pillow for small ones, and the text chunks are ours to order.

    Args:
        image: uint8 [H, W], [H, W, 1] or [H, W, 3].
        text: keyword (1–79 printable ASCII characters) → text, each written as an uncompressed iTXt chunk before the
            pixels.

    Source: PNG Specification, third edition (W3C 2025): §9.2 filter type 2 (Up), §11.3.3.4 iTXt.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f"expected uint8 [H, W], [H, W, 1] or [H, W, 3], not {image.dtype} {list(image.shape)}")
    chunks = b"".join(_text_chunk(keyword, value) for keyword, value in (text or {}).items())
    (lines,) = _scan_lines(image[None])
    return _png(_head(image.shape), chunks, zlib.compress(lines))


def _scan_lines(images: NDArray[np.uint8]) -> Iterator[bytes]:
    """Of each of [N, H, W] or [N, H, W, C]: every line's filter number, then the difference to the line above."""
    n, height, width = images.shape[:3]
    if not height or not width:
        raise ValueError("an image needs at least one pixel")
    flat = images.reshape(n, height, -1)
    lines = np.empty((n, height, 1 + flat.shape[2]), dtype=np.uint8)
    lines[:, :, 0] = 2
    lines[:, 0, 1:] = flat[:, 0]
    np.subtract(flat[:, 1:], flat[:, :-1], out=lines[:, 1:, 1:])
    return map(bytes, lines)


@lru_cache(maxsize=256)
def _head(shape: tuple[int, ...]) -> bytes:
    """The signature and the header of an image [H, W] or [H, W, C]."""
    colour_type = 2 if len(shape) == 3 and shape[2] == 3 else 0
    header = struct.pack(">IIBBBBB", shape[1], shape[0], 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)


def _png(head: bytes, chunks: bytes, deflated: bytes) -> bytes:
    return b"".join((head, chunks, _chunk(b"IDAT", deflated), _END))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


_END: Final = _chunk(b"IEND", b"")


def _text_chunk(keyword: str, value: str) -> bytes:
    if not (1 <= len(keyword) <= 79 and keyword.isascii() and keyword.isprintable()) or "\0" in value:
        raise ValueError(f"PNG text needs a printable ASCII keyword and a value without NUL: {keyword!r}")
    return _chunk(b"iTXt", _itxt(keyword, value))


def _itxt(keyword: str, value: str) -> bytes:
    # NUL after the keyword, not compressed (2 bytes), no language (NUL), no translated keyword (NUL).
    return keyword.encode("ascii") + b"\0\0\0\0\0" + value.encode("utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Marks of synthetic origin


def synthetic_sheet_png(sheet: Image.Image) -> bytes:
    """PNG of a sheet of generated images: marked as synthetic as a whole, but not the image of one address."""
    before, after = _xmp("")
    return encode_png(np.asarray(sheet), {"Software": "augmint", _XMP_KEY: before + after})


def synthetic_png(
    image: NDArray[np.uint8], *, bundle: str, label: str, seed: int, index: int, truncation: float, edit: str = ""
) -> bytes:
    """`encode_png` with the marks of synthetic origin and the image's address; `read_marks` reads them back."""
    one = synthetic_pngs(
        image[None], bundle=bundle, labels=[label], seeds=[seed], indices=[index], truncation=truncation, edit=edit
    )
    return next(one)


def synthetic_pngs(
    images: NDArray[np.uint8],
    *,
    bundle: str,
    labels: Sequence[str],
    seeds: Sequence[int],
    indices: Sequence[int],
    truncation: float,
    edit: str = "",
) -> Iterator[bytes]:
    """PNGs that are marked as synthetic and carry their addresses.

    Both stand in three texts: `Software`; an XMP packet with IPTC's DigitalSourceType (IPTC Photo Metadata Standard
    2023.2), which image search and editors read; and `augmint`, the address as JSON, with 64-bit integers as decimal
    strings because most JSON readers lose digits above 2^53.

    Args:
        images: uint8 [N, H, W, 1 or 3].
        bundle: its digest.
        labels, seeds, indices: of each image; a label is "" for an unconditional bundle.
        truncation, edit: of all of them.

    They are compressed by ISA-L at its fastest: a tenth of zlib's time, and most of a small PNG is its marks.
    """
    head = _head(images.shape[1:])
    for start in range(0, len(images), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        addresses = zip(labels[rows], seeds[rows], indices[rows], strict=True)
        for lines, (label, seed, index) in zip(_scan_lines(images[rows]), addresses, strict=True):
            frame = _frame(bundle, label, float(truncation), edit)
            yield _png(head, frame.chunks(seed, index), isal_zlib.compress(lines, 0))


_AT_ONCE: Final = 64  # images whose lines are in memory


@dataclass(frozen=True, slots=True)
class _Frame:
    """The texts of an address, but for its seed and index, which differ from image to image."""

    software: bytes
    xmp: tuple[bytes, bytes]
    address: bytes

    def packet(self, seed: int, index: int) -> bytes:
        before, after = self.xmp
        return b'%b augmint:seed="%d" augmint:index="%d"%b' % (before, seed, index, after)

    def chunks(self, seed: int, index: int) -> bytes:
        address = b'%b, "seed": "%d", "index": "%d"}' % (self.address, seed, index)
        return b"".join(
            (self.software, _chunk(b"iTXt", _XMP_START + self.packet(seed, index)), _chunk(b"iTXt", address))
        )


@lru_cache(maxsize=1024)
def _frame(bundle: str, label: str, truncation: float, edit: str) -> _Frame:
    address = {"bundle": bundle, "label": label, "truncation": truncation, **({"edit": edit} if edit else {})}
    before, after = _xmp(
        # XML 1.0 knows no control characters, and an unpaired surrogate cannot be written as UTF-8.
        "".join(
            f" augmint:{key}={quoteattr(''.join(c for c in str(value) if c.isprintable()))}"
            for key, value in address.items()
        )
    )
    return _Frame(
        software=_text_chunk("Software", "augmint"),
        xmp=(before.encode(), after.encode()),
        address=_itxt(_MARK_KEY, json.dumps(address)[:-1]),
    )


_XMP_START: Final = _itxt(_XMP_KEY, "")


def _xmp(attributes: str) -> tuple[str, str]:
    """An XMP packet that says "made by a trained algorithm", cut where more attributes may stand."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        f' xmlns:augmint="{_XMP_NAMESPACE}" Iptc4xmpExt:DigitalSourceType="{SYNTHETIC}"{attributes}',
        '/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>',
    )


def encode_webp(image: NDArray[np.uint8], xmp: bytes = b"") -> bytes:
    """Encode one image as lossless WebP: decoding gives the same pixels, and the same libwebp the same bytes.

    WebP has no grey mode: a grey image is written with three equal channels.

    Args:
        image: uint8 [H, W], [H, W, 1] or [H, W, 3], sides up to 16,383.
        xmp: an XMP packet to carry along.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f"expected uint8 [H, W], [H, W, 1] or [H, W, 3], not {image.dtype} {list(image.shape)}")
    if not 1 <= min(image.shape[:2]) <= max(image.shape[:2]) <= _WEBP_SIDE:
        raise ValueError(f"a WebP's sides are 1 to {_WEBP_SIDE} pixels, not {image.shape[0]} × {image.shape[1]}")
    colour = np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3))
    stream = io.BytesIO()
    # The second-lowest effort: in a trial the higher ones took up to ten times as long and gave no fewer bytes.
    Image.fromarray(np.ascontiguousarray(colour)).save(stream, "WEBP", lossless=True, quality=0, method=1, xmp=xmp)
    return stream.getvalue()


def synthetic_webp(
    image: NDArray[np.uint8], *, bundle: str, label: str, seed: int, index: int, truncation: float, edit: str = ""
) -> bytes:
    """`encode_webp` with the XMP packet of `synthetic_pngs`; `read_marks` reads it back.

    XML knows no control characters: in a label they are left out.
    """
    return encode_webp(image, _frame(bundle, label, float(truncation), edit).packet(seed, index))


def read_marks(data: bytes) -> Marks | None:
    """The address in a PNG or WebP that augmint wrote; None for any other bytes, damaged ones among them."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "WEBP"]) as image:
            found = json.loads(image.info[_MARK_KEY]) if image.format == "PNG" else _marks_in_xmp(image.info["xmp"])
        marks = Marks(
            bundle=found["bundle"],
            label=found["label"],
            seed=int(found["seed"]),
            index=int(found["index"]),
            truncation=float(found["truncation"]),
        )
        if "edit" in found:
            marks["edit"] = str(found["edit"])
    # Whatever is wrong with foreign bytes, the answer is the same: they carry no address of ours.
    except Exception:
        return None
    strings = isinstance(marks["bundle"], str) and isinstance(marks["label"], str)
    return marks if strings and math.isfinite(marks["truncation"]) else None


def _marks_in_xmp(packet: bytes) -> dict[str, str]:
    if b"<!" in packet:  # ours declares no entities
        raise ValueError
    (description,) = ElementTree.fromstring(packet.decode("utf-8")).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    prefix = f"{{{_XMP_NAMESPACE}}}"
    return {key.removeprefix(prefix): value for key, value in description.items() if key.startswith(prefix)}
