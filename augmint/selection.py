"""The way from a request under a `Quality` to its answer: which indices to look at next, and what was kept.

`Selection` answers one request: it asks for candidates, is told which of them are kept, and asks for more until every
class has its images or its bound is reached (`augmint.quality.most_candidates`). `Walk` cuts a large request into
pieces that are answered one after the other, each class going on after the last index that was looked at. Both follow
from the addresses alone: however an answer is cut and batched, the same indices are kept and the same ones counted.

This module makes no images and judges none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from augmint.quality import REASONS
from augmint.samples import BundleInfo, Request, Samples

__all__ = ["Selection", "Walk"]

_DOUBTS: Final = 8.0  # candidates' worth of belief in the first guess of how many are kept


@dataclass(slots=True)
class _Class:
    """One class on its way."""

    label: str
    label_id: int
    wanted: int
    first: int
    bound: int
    examined: int = 0
    kept: int = 0
    rejected: list[int] = field(default_factory=lambda: [0] * len(REASONS))
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    indices: list[NDArray[np.uint64]] = field(default_factory=list)

    @property
    def open(self) -> bool:
        return self.kept < self.wanted and self.examined < self.bound


class Selection:
    """The candidates of one request, and what is kept of them.

    Use::

        selection = Selection(request)
        while (candidates := selection.next(256)) is not None:
            labels, indices = candidates.addresses()
            images = …
            selection.add(candidates, images, reasons)   # reasons: 0 kept, else 1 + the position in REASONS
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.examined = 0
        rows = zip(request.counts, request.label_ids, request.firsts, strict=True)
        self._classes = [_Class(label, i, n, first, request.bound(n)) for (label, n), i, first in rows if n]
        # Only a guess, for asking often enough at once: the answer does not depend on it.
        self._guess = 0.95 * (1 - request.quality.realism)

    def next(self, most: int) -> Request | None:
        """The next candidates, at most `most`, as a request of their own; None when the answer is complete."""
        chosen: list[tuple[_Class, int]] = []
        for row in self._classes:
            if most and row.open:
                share = (row.kept + self._guess * _DOUBTS) / (row.examined + _DOUBTS)
                n = min(math.ceil((row.wanted - row.kept) / share), row.bound - row.examined, most)
                chosen.append((row, n))
                most -= n
        if not chosen:
            return None
        return replace(
            self.request,
            counts=tuple((row.label, n) for row, n in chosen),
            label_ids=tuple(row.label_id for row, _ in chosen),
            firsts=tuple(row.first + row.examined for row, _ in chosen),
        )

    def add(self, candidates: Request, images: NDArray[np.uint8], reasons: NDArray[np.uint8]) -> None:
        """Take what was found of `candidates`, in their order: images uint8 [N, H, W, C], reasons uint8 [N]."""
        by_label = {row.label: row for row in self._classes}
        start = 0
        for (label, n), first in zip(candidates.counts, candidates.firsts, strict=True):
            row, here = by_label[label], slice(start, start + n)
            assert first == row.first + row.examined, "candidates are added in the order they were asked for"
            found = reasons[here]
            kept = np.flatnonzero(found == 0)[: row.wanted - row.kept]
            # What lies after the last image that is needed was made for nothing, and is not counted.
            end = int(kept[-1]) + 1 if row.kept + len(kept) == row.wanted else n
            counted = np.bincount(found[:end], minlength=len(REASONS) + 1)
            row.rejected = [a + int(b) for a, b in zip(row.rejected, counted[1:], strict=True)]
            row.images.append(images[here][kept])
            row.indices.append(np.uint64(first) + kept.astype(np.uint64))
            row.examined += end
            row.kept += len(kept)
            self.examined += n
            start += n

    def samples(self, info: BundleInfo) -> Samples:
        """The answer, once `next` has returned None."""
        rows, request = self._classes, self.request
        images, indices = ([part for row in rows for part in getattr(row, name)] for name in ("images", "indices"))
        labels = np.repeat(np.array([r.label_id for r in rows], dtype=np.int64), [r.kept for r in rows])
        return Samples(
            images=np.concatenate(images),
            labels=labels,
            seeds=np.full(len(labels), request.seed, dtype=np.uint64),
            indices=np.concatenate(indices),
            class_names=info.class_names,
            bundle=info.digest,
            reproducibility=info.reproducibility,
            truncation=request.truncation,
            requested={row.label: row.wanted for row in rows},
            rejected={row.label: tuple(row.rejected) for row in rows},
            edit=dict(request.edit),
        )


class Walk:
    """A large request in pieces, in order, each of which begins where the one before it ended.

    A piece has one offset for all its labels, so several labels fit in one only where each begins at its first image.
    A label that a piece did not fill goes on in the next one, as long as its bound over the whole request allows.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        rows = zip(request.counts, request.label_ids, request.firsts, strict=True)
        self._left = [_Class(label, i, n, first, request.bound(n)) for (label, n), i, first in rows if n]

    def piece(self, most: int) -> Request | None:
        """The next piece, of 1 … `most` images; None at the end."""
        if not self._left:
            return None
        begun = self._left[0]
        offset = begun.first + begun.examined
        chosen: list[tuple[_Class, int]] = []
        for row in self._left:
            if not most or row.first + row.examined != offset:
                break
            n = min(row.wanted - row.kept, row.bound - row.examined, most)
            chosen.append((row, n))
            most -= n
            if n < row.wanted:
                break
        alone = len(chosen) == 1
        return replace(
            self.request,
            counts=tuple((row.label, n) for row, n in chosen),
            label_ids=tuple(row.label_id for row, _ in chosen),
            offset=offset,
            firsts=(offset,) * len(chosen),
            # Several labels have looked at nothing yet, so that the bound of their number is theirs.
            candidates=begun.bound - begun.examined if alone and self.request.quality else None,
        )

    def advance(self, piece: Request, samples: Samples) -> Samples:
        """Go on after the piece that was answered with `samples`.

        Returns:
            `samples`, with `requested` as this piece settles it: over all pieces it adds up to the request's counts.
        """
        delivered, generated = samples.delivered, samples.generated
        requested: dict[str, int] = {}
        for label, n in piece.counts:
            row = self._left[0]
            assert row.label == label, "pieces are answered in order"
            if not piece.quality:
                requested[label] = n
                row.kept += n
                row.examined += n
            else:
                row.kept += delivered[label]
                row.examined += generated[label]
                requested[label] = delivered[label] if row.open else delivered[label] + row.wanted - row.kept
            if row.kept == row.wanted or (piece.quality and not row.open):
                self._left.pop(0)
        return replace(samples, requested=requested)
