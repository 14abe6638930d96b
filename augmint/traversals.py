"""Pictures of latent space: what each edit does, and what lies between two images.

Knows the local generator and contact sheets; what an edit is stands in `augmint.latent_space`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from augmint.errors import RequestError
from augmint.generator import Generator
from augmint.samples import label_numbers
from augmint.sheets import contact_sheet

__all__ = ["edit_sheet", "interpolation_sheet"]

_MOST_LABELS = 10  # unless they are named


def edit_sheet(
    generator: Generator,
    labels: Sequence[str] = (),
    *,
    seed: int,
    index: int = 0,
    columns: int = 7,
) -> Image.Image:
    """A block of rows for each attribute, a row for each label: from the largest edit downwards to the largest upwards.

    Args:
        generator: whose bundle offers edits.
        labels: () takes the first ten, and for an unconditional bundle four images.
        seed, index: of the image in the middle of each row.
        columns: odd, at least 3.

    Raises:
        RequestError: the bundle offers no edits, or has no such label.
    """
    edits = generator.info().edits
    if not edits:
        raise RequestError("this bundle offers no edits: `augmint inspect` says why.", code="request.edit")
    if columns < 3 or columns % 2 == 0:
        raise RequestError("columns must be odd and at least 3, with the image itself in the middle.")
    rows = _rows(generator, labels)
    images, numbers = [], []
    for number, (name, limit) in enumerate(edits.items()):
        # Column by column, because one edit holds for all images of a call.
        amounts = np.linspace(-limit, limit, columns)
        made = [
            generator.from_latents(
                generator.latents(index + np.array([more for _, more in rows]), seed=seed, edit={name: float(amount)}),
                [label for label, _ in rows],
            )
            for amount in amounts
        ]
        block = np.stack(made, axis=1).reshape(-1, *generator.manifest.image.shape)
        images.append(block)
        numbers += [number] * len(block)
    notes = [f"-{limit:g} .. +{limit:g}" for limit in edits.values()]
    return contact_sheet(
        np.concatenate(images),
        np.array(numbers),
        list(edits),
        per_class=len(rows) * columns,
        columns=columns,
        notes=notes,
    )


def interpolation_sheet(
    generator: Generator, labels: Sequence[str] = (), *, seed: int, a: int, b: int, steps: int = 11
) -> Image.Image:
    """A row for each label: from its image `a` to its image `b`, on the arc between their latents.

    The latent does not depend on the label, so the rows run through the same latents.

    Raises:
        RequestError: there is no such label, or fewer than two steps.
    """
    names = list(dict.fromkeys(label for label, _ in _rows(generator, labels)))
    images = [generator.interpolate(label, seed=seed, a=a, b=b, steps=steps) for label in names]
    return contact_sheet(
        np.concatenate(images),
        np.repeat(np.arange(len(names)), steps),
        [name or "images" for name in names],
        per_class=steps,
        columns=steps,
        notes=[f"{a} .. {b}"] * len(names),
    )


def _rows(generator: Generator, labels: Sequence[str]) -> list[tuple[str, int]]:
    """Label of each row, and how far its image's index is from the one asked for."""
    names = generator.class_names
    if labels:
        label_numbers(labels, names)  # for its sentence about labels that are not there
    if not names:
        return [("", more) for more in range(4)]
    return [(label, 0) for label in (labels or names[:_MOST_LABELS])]
