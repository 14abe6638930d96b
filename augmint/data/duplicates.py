"""Which images belong together because they show the same thing.

Exact: the same decoded pixels. Near: of the same class, the same to the eye: saved again as JPEG, scaled, brightened by
a level or two. Near ones are found by a 64-bit difference hash (N. Krawetz, "Kind of Like That", 2013) and confirmed on
32×32 thumbnails, so that no pair rests on the hash alone. The limits are set to miss rather than to invent: of tiny or
strongly compressed copies many escape, while no two of MNIST's ones are taken for each other. A class in which many
images are nearly alike (frames of a video, a fixed camera) would end up as one group that cannot be split; there near
likeness is given up, and said so.

Knows nothing of files or splits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# At most so many of 64 bits differ between candidates; fewer where that makes too many of them.
_HASH_BITS: Final = (8, 4, 2, 0)
_THUMB: Final = 32
# Thumbnails agree if they differ by at most this share of their own contrast (RMS), and nowhere by more than _MOST.
_SHARE: Final = 0.1
_MOST: Final = 32
# Comparing every pair grows with the square: beyond these the search is not cheap any more and is left out.
_LARGEST_CLASS: Final = 20_000
_MOST_PAIRS: Final = 200_000


def difference_hash(pixels: NDArray[np.uint8]) -> int:
    """64 bits: whether each of 8×8 cells is darker than its right neighbour, of a canonical picture."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = np.packbits(small[:, :-1] < small[:, 1:])
    return int.from_bytes(bits.tobytes(), "big")


def group(
    digests: Sequence[str],
    hashes: NDArray[np.uint64],
    labels: NDArray[np.int64],
    ratios: NDArray[np.float64],
    pixels: Callable[[int], NDArray[np.uint8]],
) -> tuple[NDArray[np.int64], dict[int, int]]:
    """Number the groups of images that belong together.

    Args:
        digests: of each image's pixels.
        hashes: uint64 [N], from `difference_hash`.
        labels: int64 [N].
        ratios: float64 [N], width / height.
        pixels: index → canonical picture; called for candidates only.

    Returns:
        groups int64 [N] (the index of each group's first image), and label → images of it whose near likeness was
        given up because there was too much of it.
    """
    first: dict[str, int] = {}
    exact = np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], dtype=np.int64)
    parent = exact.copy()
    given_up: dict[int, int] = {}

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    for label in np.unique(labels).tolist():
        # One of each set of exact duplicates stands for all.
        own = np.unique(exact[labels == label])
        pairs = _candidates(hashes[own])
        if pairs is None:
            given_up[label] = len(own)
            continue
        pairs = own[pairs]
        pairs = pairs[np.abs(np.log(ratios[pairs[:, 0]] / ratios[pairs[:, 1]])) < 0.05]
        for a, b in pairs[_alike(pairs, pixels)].tolist():
            low, high = sorted((root(a), root(b)))
            parent[high] = low

        limit = max(5, len(own) // 10)
        roots = np.array([root(i) for i in own.tolist()], dtype=np.int64)
        for big, size in zip(*np.unique(roots, return_counts=True), strict=True):
            if size > limit:
                given_up[label] = given_up.get(label, 0) + int(size)
                alone = own[roots == big]
                parent[alone] = alone

    # `exact` points to the image that stands for each, and `root` from there to its group.
    return np.array([root(int(i)) for i in exact], dtype=np.int64), given_up


def _candidates(hashes: NDArray[np.uint64]) -> NDArray[np.int64] | None:
    """Pairs [P, 2] whose hashes differ in few bits; None if there are too many to look at."""
    if len(hashes) > _LARGEST_CLASS:
        return None
    for bits in _HASH_BITS:
        pairs = _within(hashes, bits)
        if pairs is not None:
            return pairs
    return None


def _within(hashes: NDArray[np.uint64], bits: int) -> NDArray[np.int64] | None:
    count = len(hashes)
    found: list[NDArray[np.int64]] = []
    total = 0
    step = max(1, 4_000_000 // max(count, 1))
    for start in range(0, count, step):
        block = hashes[start : start + step]
        rows, columns = np.nonzero(_ones(np.bitwise_xor(block[:, None], hashes[None, start:])) <= bits)
        keep = columns > rows
        total += int(keep.sum())
        if total > _MOST_PAIRS:
            return None
        found.append(np.stack([rows[keep], columns[keep]], axis=1) + start)
    return np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)


def _ones(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """How many bits are set in each word (numpy 1.26 has no bitwise_count)."""
    m1, m2, m4 = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333), np.uint64(0x0F0F0F0F0F0F0F0F)
    words = words - ((words >> np.uint64(1)) & m1)
    words = (words & m2) + ((words >> np.uint64(2)) & m2)
    words = (words + (words >> np.uint64(4))) & m4
    return ((words * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.uint8)


def _alike(pairs: NDArray[np.int64], pixels: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.bool_]:
    """bool [P]: which pairs [P, 2] of images agree as thumbnails."""
    used, place = np.unique(pairs, return_inverse=True)
    place = place.reshape(pairs.shape)
    thumbs = np.zeros((len(used), _THUMB, _THUMB, 3), dtype=np.uint8)
    for k, i in enumerate(used.tolist()):
        thumbs[k] = _thumbnail(pixels(i))
    contrast = thumbs.std(axis=(1, 2, 3), dtype=np.float32)
    # Averaging cells can only make a difference smaller, so a quarter of the cells' grey suffices to rule pairs out.
    half = _THUMB // 2
    coarse = thumbs.reshape(len(used), half, 2, half, 2, 3).mean(axis=(2, 4, 5), dtype=np.float32)

    found = np.zeros(len(pairs), dtype=np.bool_)
    for start in range(0, len(pairs), 1024):
        a, b = place[start : start + 1024].T
        limit = _SHARE * np.minimum(contrast[a], contrast[b])
        rough = np.sqrt(np.mean((coarse[a] - coarse[b]) ** 2, axis=(1, 2)))
        rest = np.flatnonzero(rough <= limit)
        a, b, limit = a[rest], b[rest], limit[rest]
        difference = np.abs(thumbs[a].astype(np.int16) - thumbs[b])
        rms = np.sqrt(np.mean(np.square(difference, dtype=np.float32), axis=(1, 2, 3)))
        found[start + rest] = (rms <= limit) & (difference.max(axis=(1, 2, 3), initial=0) <= _MOST)
    return found


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [32, 32, 3], or [32, 32, 1] of a grey picture."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    small = np.asarray(image.resize((_THUMB, _THUMB), Image.Resampling.BOX))
    return small[:, :, None] if small.ndim == 2 else small
