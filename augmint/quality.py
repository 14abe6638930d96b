"""What a good enough image is: a wish in a few words, the same on the command line, in Python and over HTTP.

    none            every image, as it comes
    labels          the bundle's classifier takes the image for the class that was asked for
    labels:0.9      … and gives that class a probability of at least 0.9
    copies          the image is no near copy of a training image
    realism:0.2     it is not among the 20 % of its class that the bundle's critic finds least realistic

joined by commas: "labels,copies,realism:0.1". Every part is a predicate of one image alone, with thresholds that were
fixed at export: an image is kept or rejected whatever it was made beside. So the answer to a request for n images of a
class is the first n kept indices from the offset upward, wherever and in how many pieces they are made.

This module knows neither bundles nor ONNX: `augmint.judge` judges, and `augmint.selection` walks from index to index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from augmint.errors import RequestError

__all__ = ["EVERY", "LARGEST_SHARE", "PARTS", "REASONS", "Quality", "add_rejected", "check_offered", "most_candidates"]

PARTS: Final = ("labels", "realism", "copies")
REASONS: Final = ("label", "realism", "copy")
"""Why an image was rejected, in the order in which it is asked: one that fails twice counts under the first."""
LARGEST_SHARE: Final = 0.9
"""Of a class that `realism` may reject."""

_CANDIDATES_EACH: Final = 20
_CANDIDATES_MORE: Final = 64


def most_candidates(n: int) -> int:
    """How many images of a class are made, at most, for n kept ones: 20 n + 64. Then fewer are delivered."""
    return _CANDIDATES_EACH * n + _CANDIDATES_MORE if n else 0


@dataclass(frozen=True, slots=True)
class Quality:
    """Which images are kept; see this module's docstring.

    Attributes:
        labels: True: the classifier's first choice must be the class asked for. A number in (0, 1): the least
            probability that it must give that class. False: not looked at.
        realism: share in [0, 0.9] of each class to reject, the least realistic first; 0: not looked at.
        copies: reject near copies of training images.

    >>> Quality.parse("realism:0.2, labels")
    Quality(labels=True, realism=0.2, copies=False)
    >>> str(_)
    'labels,realism:0.2'
    """

    labels: bool | float = False
    realism: float = 0.0
    copies: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.labels, bool) and not (isinstance(self.labels, float) and 0 < self.labels < 1):
            raise _wrong(f"labels takes a probability between 0 and 1, not {self.labels!r}")
        number = isinstance(self.realism, int | float) and not isinstance(self.realism, bool)
        if not number or not 0 <= self.realism <= LARGEST_SHARE:
            raise _wrong(f"realism takes the share to reject, above 0 and at most {LARGEST_SHARE}, not {self.realism}")
        if not isinstance(self.copies, bool):
            raise _wrong(f"copies is True or False, not {self.copies!r}")

    @classmethod
    def parse(cls, wish: str | Quality) -> Quality:
        """Read a wish; one that is read already is returned as it is.

        Raises:
            RequestError: it is none; code "request.quality".
        """
        if isinstance(wish, Quality):
            return wish
        if not isinstance(wish, str):
            raise _wrong(f"it must be text, not {type(wish).__name__}")
        found: dict[str, bool | float] = {}
        words = [word.strip().lower() for word in wish.split(",")]
        for word in words:
            name, colon, number = word.partition(":")
            if word == "none" and len(words) == 1:
                continue
            if name not in PARTS or (name == "copies" and colon) or (name == "realism" and not colon):
                raise _wrong(f"{word[:40]!r} is no part of one")
            if name in found:
                raise _wrong(f"{name} stands in it twice")
            found[name] = _number(name, number) if colon else True
        return cls(
            labels=found.get("labels", False),
            realism=float(found.get("realism", 0.0)),
            copies=bool(found.get("copies", False)),
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of `PARTS` are looked at."""
        return tuple(name for name in PARTS if getattr(self, name))

    def __bool__(self) -> bool:
        return bool(self.labels or self.realism or self.copies)

    def __str__(self) -> str:
        """The wish as text, always in the same order: what `parse` reads."""
        labels = "labels" if self.labels is True else f"labels:{self.labels!r}" if self.labels else ""
        realism = f"realism:{float(self.realism)!r}" if self.realism else ""
        return ",".join(filter(None, (labels, "copies" if self.copies else "", realism))) or "none"


EVERY: Final = Quality()
"""No wish at all: every image, as it comes."""


def check_offered(wish: str | Quality, offered: Mapping[str, str]) -> Quality:
    """Read a wish and see whether a bundle can grant it.

    Args:
        wish: see `Quality.parse`.
        offered: part → "" if the bundle has what it takes, else why not; see `BundleInfo.quality`.

    Raises:
        RequestError: it is no wish, or the bundle cannot grant it; code "request.quality". Says what the bundle offers.
    """
    if wish == "none":  # nearly always
        return EVERY
    have = [name for name in PARTS if offered.get(name, "no") == ""]
    shown = f"this bundle offers {', '.join(have)}" if have else "this bundle offers none: leave quality out"
    try:
        quality = Quality.parse(wish)
    except RequestError as error:
        raise RequestError(f"{str(error).rstrip('.')}; {shown}.", code=error.code) from None
    for name in quality.parts:
        if name not in have:
            why = offered.get(name) or "it was exported by another version of augmint, export it again"
            raise RequestError(f"quality {name!r} cannot be judged here ({why}): {shown}.", code="request.quality")
    return quality


def add_rejected(so_far: dict[str, dict[str, int]], rejected: Mapping[str, Sequence[int]]) -> None:
    """Add label → counts by reason, as `Samples.rejected` has them, to label → reason → count."""
    for label, counts in rejected.items():
        of_label = so_far.setdefault(label, dict.fromkeys(REASONS, 0))
        for reason, n in zip(REASONS, counts, strict=True):
            of_label[reason] += n


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:  # also catches NaN
        raise _wrong(f"{name}:{text[:20]} holds no number above 0")
    return value


def _wrong(problem: str) -> RequestError:
    return RequestError(
        f'quality is none, or labels, labels:P, copies and realism:SHARE joined by commas, such as "labels,realism:0.2"'
        f" ({problem}).",
        code="request.quality",
    )
