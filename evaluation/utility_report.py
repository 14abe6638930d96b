"""What a comparison of classifiers found, as values, for programs, and as tables. Knows nothing of how it was found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from evaluation.tables import fixed_width

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Chosen", "ClassEffect", "Difference", "Effect", "UtilityReport", "UtilityRow", "Verdict", "points", "shown"]

Verdict = Literal["helps", "makes no difference", "do not use it"]
Effect = Literal["helps", "no difference", "hurts"]


@dataclass(frozen=True)
class Difference:
    """Of two methods' recalls on the same images, in [-1, 1].

    `interval` is None where there are fewer than 2 images. `differing` images were not judged alike by the two. `sign`
    is 1 or -1 where the interval excludes zero and enough images differ for a claim, else 0.
    """

    value: float
    interval: tuple[float, float] | None
    differing: int
    sign: int


@dataclass(frozen=True)
class UtilityRow:
    """One method on the test images; shares in [0, 1], means and standard deviations over seeds (0 for one seed).

    Attributes:
        method: name, with its augmentation.
        amount: of generated images, where 1 fills every class up to the largest; None: none are used.
        share: of a class's draws that are generated; None: all its images count alike.
        augmentation: "affine", "light", "medium", "strong", or None.
        synthetic: generated images used.
        minority_recall: mean over the small classes, with a 95 % interval (None: fewer than 2 images).
        per_class: recall of each class, None without test images.
        against_baseline, against_real: minority recall less the baseline's and less real only's; None for itself.
        validation: minority recall on the validation images; None where there are none.
        note: what had to be done otherwise, or "".
    """

    method: str
    amount: float | None
    share: float | None
    augmentation: str | None
    synthetic: int
    minority_recall: float
    minority_recall_sd: float
    minority_recall_interval: tuple[float, float] | None
    accuracy: float
    accuracy_sd: float
    accuracy_interval: tuple[float, float] | None
    per_class: dict[str, float | None]
    against_baseline: Difference | None
    against_real: Difference | None
    validation: float | None
    note: str


@dataclass(frozen=True)
class Chosen:
    """The recommended use of the generated images; `images` of each class. `by_validation`: whether the validation
    split was large enough to choose by; `why` says so in a sentence."""

    method: str
    amount: float
    share: float | None
    augmentation: str | None
    images: dict[str, int]
    by_validation: bool
    why: str


@dataclass(frozen=True)
class ClassEffect:
    """Recall of a class with the baseline and with the chosen method, and the difference, whose interval holds for all
    classes together. None, with a `reason`, where there are no or too few test images."""

    baseline: float | None
    chosen: float | None
    difference: Difference | None
    effect: Effect | None
    reason: str


_TITLES: Final = (
    "training set",
    "amount",
    "mix",
    "recall (95 %)",
    "accuracy",
    "over baseline",
    "over real",
    "valid.",
)
_CLASS_TITLES: Final = ("class", "train", "test", "baseline", "chosen", "points (95 % for all)", "effect")


@dataclass(frozen=True)
class UtilityReport:
    """What `utility` found. `conclusion` is one sentence; `verdict` its key word for programs.

    `baseline` and `chosen.method` are methods of `rows`; `baseline_why` and `chosen.why` say how they were chosen.
    `skipped`: method → why it could not be run. `minority`: the classes whose recall is averaged. `n_…`: images of each
    class. `fits_cached` of the `fits` had been done before.
    """

    rows: tuple[UtilityRow, ...]
    skipped: dict[str, str]
    baseline: str
    baseline_why: str
    chosen: Chosen
    verdict: Verdict
    conclusion: str
    per_class: dict[str, ClassEffect]
    minority: tuple[str, ...]
    n_train: dict[str, int]
    n_validation: dict[str, int]
    n_test: dict[str, int]
    n_synthetic: dict[str, int]
    seeds: tuple[int, ...]
    steps: int
    notes: tuple[str, ...]
    fits: int
    fits_cached: int
    seconds: float

    def is_chosen(self, row: UtilityRow) -> bool:
        """Whether this row is the recommended one."""
        return (row.method, row.amount, row.share) == (self.chosen.method, self.chosen.amount, self.chosen.share)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json.dumps`."""
        return asdict(self)

    def text(self) -> str:
        """The tables in fixed width (at most 120 columns where names are short), what was compared, the conclusion."""
        words = [textwrap.fill(line, 120) for line in self._words()]
        blocks = [_fixed(_TITLES, self._cells()), _fixed(_CLASS_TITLES, self._class_cells()), "\n".join(words)]
        return "\n\n".join([*blocks, self.conclusion])

    def rich(self) -> RenderableType:
        """The same for a terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        look: Any = {"box": SIMPLE_HEAD, "padding": 0, "title_justify": "left"}  # Narrow: 120 columns are enough.
        table = Table(title="Does it help?", **look)
        for title in _TITLES:
            table.add_column(title, justify="left" if title == _TITLES[0] else "right", no_wrap=title != _TITLES[0])
        for row, cells in zip(self.rows, self._cells(), strict=True):
            marked = self.is_chosen(row) or row.method == self.baseline
            table.add_row(*map(Text, cells), style="bold" if marked else "")
        classes = Table(title="Class by class", **look)
        for title in _CLASS_TITLES:
            classes.add_column(title, justify="left" if title in ("class", "effect") else "right")
        for cells in self._class_cells():
            classes.add_row(*map(Text, cells))
        return Group(
            table, classes, *(Text(line, style="dim") for line in self._words()), Text(self.conclusion, "bold")
        )

    def _words(self) -> list[str]:
        """What was compared and how it was chosen, a sentence a line."""
        lines = [
            f"{len(self.seeds)} classifiers a row, {self.steps} steps each, on {sum(self.n_test.values()):,} held-out "
            f"real images. Recall is the mean over the small classes: {shown(self.minority)}. Differences in points.",
            "Amount: 1× fills every class up to the largest. Mix: share of a class's draws that are generated.",
            f"Baseline: {self.baseline}. {self.baseline_why}",
            f"→ Chosen: {self.chosen.method} at {self.chosen.amount:g}×. {self.chosen.why}",
        ]
        if any(row.augmentation not in (None, "affine") for row in self.rows):
            lines.append("light, medium, strong: affine with brightness, contrast, noise and a cut-out square.")
        lines += [f"{row.method}: {row.note}." for row in self.rows if row.note]
        lines += [f"{method} was left out: {reason}." for method, reason in self.skipped.items()]
        return [*lines, *self.notes]

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                ("→ " if self.is_chosen(row) else "") + row.method,
                "" if row.amount is None else f"{row.amount:g}×",
                "" if row.share is None else f"{row.share:.0%}",
                f"{row.minority_recall:.3f}{_range(row.minority_recall_interval)}",
                f"{row.accuracy:.3f}",
                _signed(row.against_baseline, "baseline"),
                _signed(row.against_real, "–"),
                "–" if row.validation is None else f"{row.validation:.3f}",
            )
            for row in self.rows
        ]

    def _class_cells(self) -> list[tuple[str, ...]]:
        return [
            (
                name,
                f"{self.n_train[name]:,}",
                f"{self.n_test[name]:,}",
                "–" if effect.baseline is None else f"{effect.baseline:.3f}",
                "–" if effect.chosen is None else f"{effect.chosen:.3f}",
                _signed(effect.difference, "–"),
                effect.effect or effect.reason,
            )
            for name, effect in self.per_class.items()
        ]


def points(share: float) -> str:
    """A signed share in points, to one decimal; never "-0.0".

    >>> points(0.0123), points(-0.0001)
    ('+1.2', '+0.0')
    """
    return f"{round(share * 100, 1) + 0.0:+.1f}"


def shown(names: Sequence[str], most: int = 10) -> str:
    """Names in a sentence.

    >>> shown(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" {interval[0]:.3f}–{interval[1]:.3f}"


def _signed(difference: Difference | None, none: str) -> str:
    if difference is None:
        return none
    if difference.interval is None:
        return points(difference.value)
    return f"{points(difference.value)} ({points(difference.interval[0])}…{points(difference.interval[1])})"


def _fixed(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(fixed_width([titles, *rows], right=False))
