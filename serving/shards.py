"""An endless data set in shards, as the `webdataset` library reads them: shard k is a function of its address.

The labels of the data set repeat one cycle, such as a, b, a for "a:2,b:1", and each label's images are those of rising
indices. So position p has an address of its own, and a shard is the addresses of its positions: it can be made without
any other, again and again, by anybody.

Knows neither HTTP nor how images are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from augmint import tars
from augmint.errors import RequestError
from augmint.samples import Request, Samples
from augmint.sampling import marked_pngs

__all__ = ["MOST_SHARDS", "Cycle", "shard_request", "tar"]

MOST_SHARDS: Final = 10**9
_MOST_WEIGHT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Cycle:
    """The labels in turn, as positions of `names`: ("a", "b") and (0, 1, 0)."""

    names: tuple[str, ...]
    turns: tuple[int, ...]

    @classmethod
    def parse(cls, text: str, class_names: Sequence[str]) -> Cycle:
        """ "balanced": every label in turn; "a:2,b:1": two of a for each of b, spread evenly.

        Raises:
            RequestError: not of this form; whether the labels exist is `Request.make`'s business.
        """
        if text == "balanced":
            return cls(tuple(class_names) or ("",), tuple(range(max(len(class_names), 1))))
        weights: dict[str, int] = {}
        for part in text.split(","):
            name, colon, number = part.rpartition(":")
            if not colon or not number.isdecimal() or len(number) > 9 or name in weights:
                raise RequestError(f"labels must be balanced, or each once with a weight, such as a:2,b:1: {text!r}.")
            weights[name] = int(number)
        total = sum(weights.values())
        if not 1 <= total <= _MOST_WEIGHT:
            raise RequestError(f"the weights of labels must add up to 1 … {_MOST_WEIGHT}, not {total}: divide them.")
        names = tuple(weights)
        # Evenly: whoever is furthest behind its share is next.
        given = [0] * len(names)
        turns = []
        for turn in range(1, total + 1):
            behind = [weights[name] * turn - given[i] * total for i, name in enumerate(names)]
            turns.append(behind.index(max(behind)))
            given[turns[-1]] += 1
        return cls(names, tuple(turns))

    def before(self, position: int) -> list[int]:
        """How many of each name there are at positions under `position`."""
        rounds, rest = divmod(position, len(self.turns))
        whole, part = (np.bincount(self.turns[:n], minlength=len(self.names)) for n in (None, rest))
        return [rounds * int(w) + int(p) for w, p in zip(whole, part, strict=True)]


def shard_request(
    cycle: Cycle, k: int, per_shard: int, class_names: tuple[str, ...], *, seed: int, truncation: float
) -> tuple[Request, list[int]]:
    """The request for shard k's images, and the order of its answer's rows in the shard.

    Raises:
        RequestError: see `Request.make`.
    """
    start = k * per_shard
    first, last = cycle.before(start), cycle.before(start + per_shard)
    counts = {name: b - a for name, a, b in zip(cycle.names, first, last, strict=True)}
    asked = counts if class_names else per_shard
    request = Request.make(asked, class_names, seed=seed, truncation=truncation, offset=max(first))
    request = replace(request, offset=0, firsts=tuple(first))
    begin = np.cumsum([0, *counts.values()])[:-1].tolist()
    order = []
    for position in range(start, start + per_shard):
        which = cycle.turns[position % len(cycle.turns)]
        order.append(begin[which])
        begin[which] += 1
    return request, order


def tar(samples: Samples, order: Sequence[int], k: int) -> bytes:
    """key.png with its address and mark, key.cls with the number of the label: the same bytes every time."""
    images = list(marked_pngs(samples))
    members = []
    for place, row in enumerate(order):
        key = f"{k:09d}-{place:06d}"
        members.append(tars.member(f"{key}.png", images[row]))
        members.append(tars.member(f"{key}.cls", b"%d" % samples.labels[row]))
    archive = b"".join(members)
    return archive + tars.end(len(archive))
