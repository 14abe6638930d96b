"""The end mark of a stream of images: how many there were, and the sha256 of every byte before it.

A connection that breaks off leaves a file that looks whole to many readers, so the last bytes of every stream say that
they are the last. The mark is JSON, padded with spaces to `LENGTH` bytes, where each format's own readers pass it by:

    npy   after the rows: `np.load` reads as many as the header says
    tar   a last member named `__augmint__`, which the webdataset library skips, then the end of the archive
    zip   the archive's comment

This module knows what a stream ends with, nothing of the images in it or of HTTP.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from typing import BinaryIO, Final, Literal, get_args

from augmint import tars
from augmint.errors import TransportError

__all__ = ["LENGTH", "StreamForm", "check", "check_bytes", "mark", "tail", "tail_length"]

StreamForm = Literal["tar", "npy", "zip"]

LENGTH: Final = 192
_MEMBER: Final = "__augmint__"
# Bytes from the end of what the sha256 covers to the end of the file; and from the mark's end to the file's.
_TAIL: Final[dict[StreamForm, int]] = {"npy": LENGTH, "tar": 4 * tars.BLOCK, "zip": 22 + LENGTH}
_AFTER: Final[dict[StreamForm, int]] = {"npy": 0, "tar": 3 * tars.BLOCK - LENGTH, "zip": 0}
assert set(_TAIL) == set(_AFTER) == set(get_args(StreamForm))
_READ_BYTES: Final = 1 << 20


def mark(images: int, sha256: str) -> bytes:
    """The mark itself, `LENGTH` bytes."""
    return json.dumps({"augmint": "end", "images": images, "sha256": sha256}).encode().ljust(LENGTH - 1) + b"\n"


def tail_length(form: StreamForm) -> int:
    """Bytes of a stream's tail: the mark and what the format puts around it."""
    return _TAIL[form]


def tail(form: Literal["tar", "npy"], images: int, sha256: str) -> bytes:
    """What ends a stream; the tail of a zip is made with its directory, by whoever writes it."""
    text = mark(images, sha256)
    if form == "npy":
        return text
    return tars.member(_MEMBER, text) + bytes(2 * tars.BLOCK)


def check(file: BinaryIO, form: StreamForm) -> int:
    """How many images a whole stream says it has; reads all of it, from the start.

    Raises:
        TransportError: it was cut or damaged on its way; code "service.damaged".
    """
    end = file.seek(0, os.SEEK_END) - _TAIL[form]
    if end < 0:
        raise _damaged("it is shorter than any")
    file.seek(-_AFTER[form] - LENGTH, os.SEEK_END)
    try:
        found = json.loads(file.read(LENGTH))
        kind, images, stated = found["augmint"], int(found["images"]), found["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged("it has no end mark, so it was cut off") from None
    if kind != "end":
        raise _damaged("its end mark is none")
    hashed = hashlib.sha256()
    file.seek(0)
    while end > 0 and (piece := file.read(min(end, _READ_BYTES))):
        hashed.update(piece)
        end -= len(piece)
    if hashed.hexdigest() != stated:
        raise _damaged("its sha256 is not the one in its end mark")
    return images


def check_bytes(body: bytes, form: StreamForm) -> int:
    """`check` of a stream in memory."""
    return check(io.BytesIO(body), form)


def _damaged(problem: str) -> TransportError:
    return TransportError(f"This is not a whole stream ({problem}): ask for it again.", code="service.damaged")
