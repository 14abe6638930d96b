"""Which image is for training, which for validation, which for the test: decided once, then kept for ever.

The rule for images that no one has assigned yet, class by class:

1. Images that belong together (duplicates) form a group, and a group is never parted.
2. Targets are the fractions of the class's images, rounded by largest remainders.
3. Groups, larger ones first and equal ones in the order of sha256(seed, digest), go where most is lacking. A class with
   3 groups or more has at least one in train and one in test, with 5 or more one in validation too; a class with 1 or 2
   is all in train.

So the split depends on contents and the seed alone, not on file names or their order. What has been assigned stays
where it is; a new image joins its duplicates, or fills up its class.

The assignments are kept as JSON beside the data (`augmint-split.json`), by sha256 of the decoded pixels, so that
renaming or converting files without loss changes nothing. Where the place is read-only they go to the user's cache
folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from augmint.data.records import SPLITS, TEST, TRAIN, VALIDATION, shown
from augmint.errors import DataError
from augmint.files import replacing

DEFAULT_FRACTIONS: Final = (0.7, 0.1, 0.2)
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Stored:
    """A sidecar's content: how the split was made, and digest → index into SPLITS."""

    seed: int
    fractions: tuple[float, float, float]
    assigned: Mapping[str, int]


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Raises DataError unless these are three shares of 1, the first above 0."""
    shares = tuple(float(share) for share in fractions)
    sound = len(shares) == 3 and all(0 <= share <= 1 for share in shares) and abs(sum(shares) - 1) < 1e-6
    if not sound or shares[0] == 0:
        raise DataError(
            f"the split fractions {list(shares)} are not usable: give train, validation and test shares that add up to "
            "1, with some for train.",
            code="data.fractions",
        )
    return shares[0], shares[1], shares[2]


def assign(
    digests: Sequence[str],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    *,
    assigned: Mapping[str, int],
    fractions: tuple[float, float, float],
    seed: int,
) -> NDArray[np.uint8]:
    """Split images by the rule in this module's docstring.

    Args:
        digests: sha256 hex of each image's pixels.
        labels: int64 [N].
        groups: int64 [N]; images with the same number are never parted. Equal digests share a number.
        assigned: digest → index into SPLITS: what is already decided.
        fractions: shares of train, validation, test.
        seed: any integer.

    Returns:
        uint8 [N], index into SPLITS.
    """
    split = np.full(len(digests), 255, dtype=np.uint8)
    for i, digest in enumerate(digests):
        split[i] = assigned.get(digest, 255)

    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(i)
    by_class: dict[int, list[list[int]]] = {}
    for group_members in members.values():
        decided = {int(split[i]) for i in group_members} - {255}
        if decided:
            # A newcomer like images of two splits: to the one farthest from training.
            side = next(s for s in (TEST, VALIDATION, TRAIN) if s in decided)
            for i in group_members:
                split[i] = side if split[i] == 255 else split[i]
        # A group of several classes (mislabelled duplicates) counts for its most frequent one.
        home = int(np.bincount(labels[group_members]).argmax())
        by_class.setdefault(home, []).append(group_members)

    for class_groups in by_class.values():
        _assign_class(class_groups, split, digests, fractions, seed)
    return split


def _assign_class(
    groups: list[list[int]],
    split: NDArray[np.uint8],
    digests: Sequence[str],
    fractions: tuple[float, float, float],
    seed: int,
) -> None:
    total = sum(len(group) for group in groups)
    have = [0, 0, 0]
    for group in groups:
        for i in group:
            if split[i] != 255:
                have[split[i]] += 1
    waiting = [group for group in groups if split[group[0]] == 255]

    def rank(group: list[int]) -> tuple[int, bytes]:
        first = min(digests[i] for i in group)
        return -len(group), hashlib.sha256(f"{seed}:{first}".encode()).digest()

    waiting.sort(key=rank)
    targets = _targets(total, fractions)
    required = [TRAIN, TEST] if len(groups) >= 3 else [TRAIN]
    if len(groups) >= 5:
        required.append(VALIDATION)
    for position, group in enumerate(waiting):
        lacking = [s for s in required if not have[s] and fractions[s] > 0]
        if len(groups) < 3:
            side = TRAIN
        elif len(waiting) - position <= len(lacking):
            side = lacking[0]
        else:
            side = max((TRAIN, TEST, VALIDATION), key=lambda s: (fractions[s] > 0, targets[s] - have[s]))
        split[group] = side
        have[side] += len(group)


def _targets(total: int, fractions: tuple[float, float, float]) -> list[int]:
    exact = [share * total for share in fractions]
    # Rounded first, because 0.7 * 10 is 7.000000000000001 or 6.999… depending on the way it was reached.
    targets = [int(round(value, 6)) for value in exact]
    order = sorted((TRAIN, TEST, VALIDATION), key=lambda s: -round(exact[s] - targets[s], 6))
    for side in order[: total - sum(targets)]:
        targets[side] += 1
    return targets


# ---------------------------------------------------------------------------------------------------------------------
# The sidecar


def cache_folder() -> Path:
    """AUGMINT_CACHE, or the platform's cache folder for augmint. Not created here."""
    chosen = os.environ.get("AUGMINT_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "augmint" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "augmint"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "augmint"


def _in_cache(sidecar: Path) -> Path:
    key = hashlib.sha256(os.path.realpath(sidecar).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / "splits" / f"{key[:32]}.json"


def read_split(sidecar: Path) -> Stored | None:
    """The stored split, from beside the data and from the cache; None where none has been made.

    Both may be there, if the place became read-only after images had been added: the one beside the data comes first.

    Raises:
        DataError: it is there and damaged. It is never silently made anew: a model may have trained on it.
    """
    found: Stored | None = None
    for place in (sidecar, _in_cache(sidecar)):
        try:
            text = place.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise DataError(
                f"the stored split {shown(str(place))} cannot be read ({error.strerror}): check its permissions."
            ) from None
        except UnicodeDecodeError as error:
            raise _damaged(place, str(error)) from None
        stored = _parse(text, place)
        found = stored if found is None else replace(found, assigned={**stored.assigned, **found.assigned})
    return found


def _parse(text: str, place: Path) -> Stored:
    try:
        data = json.loads(text)
        if data["schema_version"] != _SCHEMA:
            raise ValueError(f"schema_version {data['schema_version']!r}")
        assigned: dict[str, int] = {}
        for index, name in enumerate(SPLITS):
            for digest in data["splits"][name]:
                if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
                    raise ValueError(f"{str(digest)[:80]!r} is no digest")
                if assigned.setdefault(digest, index) != index:
                    raise ValueError(f"{digest} is in two splits")
        return Stored(int(data["seed"]), check_fractions(data["fractions"]), assigned)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, DataError) as error:
        raise _damaged(place, f"{type(error).__name__}: {error}") from None


def _damaged(place: Path, problem: str) -> DataError:
    return DataError(
        f"{shown(str(place))} is damaged ({' '.join(problem.split())[:120]}): restore it, or delete it to split anew, "
        "after which test images may be ones that earlier models trained on.",
        code="data.split-damaged",
    )


def write_split(sidecar: Path, stored: Stored) -> Path | None:
    """Keep a split beside the data, or in the cache where that is read-only.

    Returns:
        The file written; None where neither place can be written to.
    """
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for digest, index in stored.assigned.items():
        splits[SPLITS[index]].append(digest)
    content = {
        "about": "augmint's train/validation/test split, by sha256 of decoded pixels. Keep this file with the images.",
        "schema_version": _SCHEMA,
        "seed": stored.seed,
        "fractions": list(stored.fractions),
        "splits": {name: sorted(digests) for name, digests in splits.items()},
    }
    text = json.dumps(content, indent=1) + "\n"
    for place in (sidecar, _in_cache(sidecar)):
        try:
            if place is not sidecar:
                place.parent.mkdir(parents=True, exist_ok=True)
            _replace(place, text)
        except OSError:
            continue
        return place
    return None


def _replace(place: Path, text: str) -> None:
    with replacing(place) as file:
        file.write(text.encode())
