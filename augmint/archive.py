"""The npz in which samples travel: plain numpy arrays, never a pickle, and nothing believed that was not checked.

    images       uint8 [N, H, W, C]
    labels       int64 [N], index into class_names; all 0 when unconditional
    class_names  unicode [K]; K = 0 when unconditional
    seeds        uint64 [N]
    indices      uint64 [N]
    account      int64 [L, 6], only under a quality: for each label that was asked for its index in class_names (0 when
                 unconditional), then how many images were requested, generated, and rejected for their label, for
                 their realism, and as copies (`augmint.quality.REASONS`); the rest were delivered

`pack` writes it and `unpack` reads it back, and looks at what a header claims before any memory is given to it. This
module knows nothing of HTTP, nor of data sets: `augmint.data` reads npz files of other people's making.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypedDict, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from augmint.errors import TransportError
from augmint.quality import REASONS
from augmint.samples import Samples

__all__ = ["Arrays", "npy_header", "pack", "unpack"]

MEMBERS: Final = ("images", "labels", "class_names", "seeds", "indices")
_LONGEST_NAME: Final = 256  # of a class, in characters; the manifest's own limit
_NPY_OVERHEAD: Final = 4096  # far more than any header that numpy writes for such arrays


class Arrays(TypedDict):
    """The members of the npz; see this module's docstring for shapes and types."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    seeds: NDArray[np.uint64]
    indices: NDArray[np.uint64]
    account: NDArray[np.int64] | None


def pack(samples: Samples, *, compress: bool = False) -> bytes:
    """The bytes of an npz; the same samples give the same bytes (entries carry no clock).

    Compression is off by default: generated images shrink by a third at best, at 7 to 240 µs an image.
    """
    stream = io.BytesIO()
    save: Any = np.savez_compressed if compress else np.savez
    names = samples.class_names
    arrays: dict[str, NDArray[Any]] = {
        "images": samples.images,
        "labels": samples.labels,
        "class_names": np.array(names, dtype=np.str_) if names else np.empty(0, dtype="<U1"),
        "seeds": samples.seeds,
        "indices": samples.indices,
    }
    if samples.rejected:
        numbers = {name: i for i, name in enumerate(names or ("",))}
        generated = samples.generated
        rows = [(numbers[name], n, generated[name], *samples.rejected[name]) for name, n in samples.requested.items()]
        arrays["account"] = np.array(rows, dtype=np.int64)
    save(stream, **arrays)
    return stream.getvalue()


def unpack(body: bytes, *, most: int, image_shape: tuple[int, int, int], accounts: int = 0) -> Arrays:
    """Read an npz of samples from an untrusted place.

    Args:
        body: the whole file.
        most: images that were asked for; more are refused, fewer are not this function's business.
        image_shape: (height, width, channels) that every image must have.
        accounts: rows that `account` must have; 0: there must be none.

    Raises:
        TransportError: it is not such an npz, or claims other shapes, types or sizes; code "service.bad-answer".
    """
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            found = archive.infolist()
            members = (*MEMBERS, "account") if accounts else MEMBERS
            if sorted(info.filename for info in found) != sorted(f"{name}.npy" for name in members):
                raise _Bad(f"its members are not {', '.join(members)}")
            entries = {info.filename.removesuffix(".npy"): info for info in found}

            def read(name: str, fits: Callable[[tuple[int, ...], np.dtype[Any]], bool]) -> NDArray[Any]:
                return _read_member(archive, entries[name], fits)

            images = read(
                "images",
                lambda shape, dtype: (
                    dtype == np.uint8 and len(shape) == 4 and shape[0] <= most and shape[1:] == image_shape
                ),
            )
            rows = (len(images),)
            labels = read("labels", lambda shape, dtype: dtype == np.int64 and shape == rows)
            seeds = read("seeds", lambda shape, dtype: dtype == np.uint64 and shape == rows)
            indices = read("indices", lambda shape, dtype: dtype == np.uint64 and shape == rows)
            names = read(
                "class_names",
                lambda shape, dtype: (
                    dtype.kind == "U" and dtype.itemsize <= 4 * _LONGEST_NAME and len(shape) == 1 and shape[0] <= 10_000
                ),
            )
            class_names = tuple(str(name) for name in names)
            columns = (accounts, 3 + len(REASONS))
            account = read("account", lambda shape, dtype: dtype == np.int64 and shape == columns) if accounts else None
    except _Bad as problem:
        raise _refused(str(problem)) from None
    # Damaged zip and npy headers make their readers raise nearly anything: BadZipFile, EOFError, zlib.error,
    # SyntaxError, struct.error, RuntimeError (encrypted), NotImplementedError, UnicodeDecodeError, OverflowError, …
    except Exception as error:
        raise _refused(" ".join(str(error).split())[:100] or type(error).__name__) from None
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < max(len(class_names), 1):
        raise _refused("its labels are not among its class names")
    return Arrays(
        images=cast("NDArray[np.uint8]", images),
        labels=cast("NDArray[np.int64]", labels),
        class_names=class_names,
        seeds=cast("NDArray[np.uint64]", seeds),
        indices=cast("NDArray[np.uint64]", indices),
        account=account,
    )


@lru_cache(maxsize=1024)
def npy_header(shape: tuple[int, ...]) -> bytes:
    """What `np.save` writes before the numbers; it takes it longer than the numbers of a small image."""
    header = io.BytesIO()
    npy_format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


class _Bad(Exception):
    """What is wrong with the npz, as a clause."""


def _refused(problem: str) -> TransportError:
    return TransportError(
        f"The service's answer is not an npz of samples ({problem}): ask for the same seed again.",
        code="service.bad-answer",
    )


def _read_member(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, fits: Callable[[tuple[int, ...], np.dtype[Any]], bool]
) -> NDArray[Any]:
    """One array; its header is judged before its data is read, and its length must be exactly what the header says."""
    with archive.open(entry) as member:
        version = npy_format.read_magic(member)
        reader = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, fortran, dtype = reader(member)
        if dtype.hasobject or fortran or not fits(shape, dtype):
            raise _Bad(f"{entry.filename} is {dtype} {list(shape)}{' in Fortran order' if fortran else ''}")
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        # Deflate shrinks zeros a thousandfold: the size that the archive claims must be the size that fits.
        if not size <= entry.file_size <= size + _NPY_OVERHEAD:
            raise _Bad(f"{entry.filename} has a size that does not fit its shape")
        data = member.read(size)
        if len(data) != size or member.read(1):
            raise _Bad(f"{entry.filename} has a length that does not fit its shape")
    # A bytearray, so that the caller may write to the images as to the local generator's.
    array: NDArray[Any] = np.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
    return array
