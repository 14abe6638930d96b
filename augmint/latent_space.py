"""Ways through latent space: between two latents, along a direction, and by arithmetic.

    slerp        from one latent to another, on the arc between them
    average      what several latents have in common
    arithmetic   "smiling woman - neutral woman + neutral man" (Radford, Metz & Chintala 2015, arXiv 1511.06434, §6.3.2)
    rescaled     back to the length that latents have

Latents are float32 [N, Z] as `augmint.latents` makes them; `Generator.latents` gives those of addresses, and
`Generator.from_latents` draws them. An edit is a step along a direction that was fitted at export: z' = z + shift,
in single precision and row by row, hence the same bits at every batch size. This module is numpy alone and knows
neither bundles nor images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from augmint.errors import RequestError

__all__ = ["Edit", "arithmetic", "average", "check_edit", "edit_text", "rescaled", "shift", "slerp"]

Edit = tuple[tuple[str, float], ...]
"""A checked edit: (attribute, amount other than 0), in the bundle's order of attributes; () is none."""

_PARALLEL: Final = 1e-6  # sine of the angle below which an arc is a line


def slerp(a: ArrayLike, b: ArrayLike, t: ArrayLike) -> NDArray[np.float32]:
    """Spherical interpolation (Shoemake 1985; for latents White 2016, arXiv 1609.04468), the lengths interpolated too.

    A straight line between two normal latents passes nearer to the origin than any sample lies; the arc does not.

    Args:
        a, b: float [Z], not of length 0.
        t: float [T] or a number: 0 gives `a`, 1 gives `b`, exactly; beyond them the arc goes on.

    Returns:
        float32 [T, Z], or [Z] for a number. Computed in double precision, each row by itself.

    >>> slerp([1, 0], [0, 2], [0, 0.5, 1]).round(2).tolist()
    [[1.0, 0.0], [1.059999942779541, 1.059999942779541], [0.0, 2.0]]
    """
    start, end = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    length_a, length_b = _length(start), _length(end)
    if start.ndim != 1 or start.shape != end.shape or not (length_a > 0 and length_b > 0):
        raise RequestError("slerp goes from one latent to another: give two vectors of one length that are not 0.")
    from_a, from_b = start / length_a, end / length_b
    # More exact than the arc cosine of the product, for small angles and for large ones.
    angle = 2 * np.arctan2(_length(from_a - from_b), _length(from_a + from_b))
    share = np.asarray(t, dtype=np.float64)[..., None]
    if np.sin(angle) < _PARALLEL:
        if angle > 1:
            raise RequestError("slerp knows no way between opposite latents: they lie on no one arc.")
        made = start + share * (end - start)
    else:
        direction = (np.sin((1 - share) * angle) * from_a + np.sin(share * angle) * from_b) / np.sin(angle)
        made = direction * (length_a + share * (length_b - length_a))
    made = np.where(share == 0, start, np.where(share == 1, end, made))
    return np.ascontiguousarray(made, dtype=np.float32)


def average(latents: ArrayLike) -> NDArray[np.float32]:
    """The mean latent, float32 [Z], of float [N, Z]; that of N independent ones is sqrt(N) times shorter than they."""
    rows = np.atleast_2d(np.asarray(latents, dtype=np.float64))
    if rows.ndim != 2 or not len(rows):
        raise RequestError("average takes latents of shape [N, Z], N at least 1.")
    return np.asarray(rows.mean(axis=0), dtype=np.float32)


def arithmetic(add: Sequence[ArrayLike], subtract: Sequence[ArrayLike] = ()) -> NDArray[np.float32]:
    """Sum of the averages of some groups of latents less those of others, float32 [Z].

    Single latents make for unstable arithmetic; the paper averages three of each group.

    Args:
        add, subtract: each group is float [N, Z], or one latent, [Z].
    """
    if not add:
        raise RequestError("arithmetic needs at least one group of latents to add.")
    total = np.zeros(np.shape(add[0])[-1], dtype=np.float64)
    for sign, groups in ((1, add), (-1, subtract)):
        for group in groups:
            total += sign * average(group).astype(np.float64)
    return total.astype(np.float32)


def rescaled(latents: ArrayLike) -> NDArray[np.float32]:
    """The same directions at the length about which nearly all normal latents lie, sqrt(Z); float32, of any shape."""
    rows = np.asarray(latents, dtype=np.float64)
    lengths = np.sqrt((rows * rows).sum(axis=-1, keepdims=True))
    if not (lengths > 0).all():
        raise RequestError("a latent of length 0 has no direction to keep.")
    return np.asarray(rows * (np.sqrt(rows.shape[-1]) / lengths), dtype=np.float32)


def check_edit(edit: Mapping[str, float] | None, offered: Mapping[str, float]) -> Edit:
    """An edit as a bundle can make it.

    Args:
        edit: attribute -> amount, in standard deviations; 0 is none.
        offered: the bundle's attributes -> their largest amount, in its order.

    Raises:
        RequestError: "request.edit": an attribute it does not have, or an amount beyond its limit.

    >>> check_edit({"size": 0, "stroke": 1, "slant": -1.5}, {"slant": 2, "size": 2, "stroke": 3})
    (('slant', -1.5), ('stroke', 1.0))
    """
    if not edit:
        return ()
    if not isinstance(edit, Mapping):
        raise _refused('an edit is a mapping from attributes to amounts, such as {"slant": 1.5}')
    for name, amount in edit.items():
        if name not in offered:
            there = ", ".join(f"{known} (±{limit:g})" for known, limit in offered.items())
            raise _refused(
                f"this bundle cannot edit {str(name)[:60]!r}: "
                + (f"it edits {there}" if there else "it offers no edits")
            )
        if isinstance(amount, bool) or not isinstance(amount, int | float | np.integer | np.floating):
            raise _refused(f"the amount of {name!r} must be a number, not {str(amount)[:40]!r}")
        if not abs(float(amount)) <= offered[name]:  # also catches NaN
            raise _refused(
                f"{name} can be edited by −{offered[name]:g} … +{offered[name]:g} standard deviations, not {amount:g}: "
                "beyond that its images were not found to keep their class"
            )
    return tuple((name, float(edit[name])) for name in offered if edit.get(name))


def _refused(problem: str) -> RequestError:
    return RequestError(f"{problem}.", code="request.edit")


def edit_text(edit: Iterable[tuple[str, float]]) -> str:
    """One line that says it, for tables and marks; "" for none.

    >>> edit_text((("slant", -1.5), ("stroke", 1.0)))
    'slant=-1.5 stroke=+1.0'
    """
    return " ".join(f"{name}={'+' if amount > 0 else ''}{amount!r}" for name, amount in edit)


def shift(directions: Mapping[str, NDArray[np.float32]], edit: Edit, dim: int) -> NDArray[np.float32]:
    """What an edit adds to every latent, float32 [dim]: the sum of amount times direction, in the edit's order."""
    total = np.zeros(dim, dtype=np.float32)
    for name, amount in edit:
        total += np.float32(amount) * directions[name]
    return total


def _length(vector: NDArray[np.float64]) -> float:
    return float(np.sqrt((vector * vector).sum()))
