"""SMOTE on pixels: new images on the line between an image and one of its nearest neighbours in the same class.

Chawla et al. 2002, as imbalanced-learn does it. Knows nothing of classifiers.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["smote", "smote_note"]

_NEIGHBOURS: Final = 5


def smote(
    images: NDArray[np.uint8], labels: NDArray[np.int64], *, seed: int, most: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 [N, H, W, C] and labels, with every class filled up to the largest, by `most` images at most.

    A class of n images has n - 1 neighbours if that is fewer than 5; a class of one image stays as it is.
    """
    from imblearn.over_sampling import SMOTE

    counts = np.bincount(labels)
    parts, part_labels = [images], [labels]
    for c, count in enumerate(counts.tolist()):
        wanted = min(int(counts.max()) - count, most)
        if count < 2 or wanted < 1:
            continue
        # Class by class, each with neighbours of its own number; SMOTE wants a second class to be there.
        own, other = np.flatnonzero(labels == c), np.flatnonzero(labels != c)[:1]
        sampler = SMOTE(
            sampling_strategy={1: count + wanted},
            k_neighbors=min(_NEIGHBOURS, count - 1),
            random_state=int(np.random.SeedSequence((seed, c)).generate_state(1)[0]),
        )
        pixels = images[np.concatenate([own, other])].reshape(count + 1, -1).astype(np.float32)
        made, _ = sampler.fit_resample(pixels, np.r_[np.ones(count, np.int64), 0])
        new = np.rint(made[count + 1 :]).clip(0, 255).astype(np.uint8)
        parts.append(new.reshape(-1, *images.shape[1:]))
        part_labels.append(np.full(len(new), c, np.int64))
    return np.concatenate(parts), np.concatenate(part_labels)


def smote_note(counts: dict[str, int]) -> tuple[bool, str]:
    """Whether SMOTE can make any image for classes of so many images, and what is to be said of it ("": nothing)."""
    short = {name: n for name, n in counts.items() if 0 < n < max(counts.values())}
    if not short:
        return False, "no class is smaller than the largest, so there is nothing to fill up"
    alone = [name for name, n in short.items() if n == 1]
    if len(alone) == len(short):
        return False, f"it needs 2 images of a class, and there is 1 of {', '.join(alone)}"
    few = [f"{name} ({n - 1})" for name, n in short.items() if 1 < n <= _NEIGHBOURS]
    notes = [f"fewer than {_NEIGHBOURS} neighbours for {', '.join(few)}"] if few else []
    notes += [f"nothing made of a single image ({', '.join(alone)})"] if alone else []
    return True, "; ".join(notes)
