from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console
from sklearn.datasets import load_digits

from augmint.errors import DataError, UsageError
from evaluation.cache import Cache
from evaluation.intervals import resample
from evaluation.utility import (
    BASELINE,
    METHODS,
    REAL,
    ClassEffect,
    Difference,
    UtilityConfig,
    UtilityReport,
    UtilityRow,
    _amounts,
    _choose,
    _conclude,
    _Method,
    _weights,
    images_needed,
    utility,
)

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]
NAMES = tuple("0123456789")
SMALL = NAMES[5:]
MIXED = "real + synthetic + augmentation"
BRIEF = UtilityConfig(
    methods=(REAL, BASELINE, MIXED), amounts=(1.0,), shares=(0.5,), seeds=(0, 1, 2), steps=80, processes=1
)


@pytest.fixture(scope="module")
def parts() -> dict[str, Labelled]:
    """8×8 digits: train with 4 images of each of five classes, validation, test, and more real images of those five."""
    images, labels = load_digits(return_X_y=True)
    images = (images * 15).astype(np.uint8).reshape(-1, 8, 8, 1)
    rows = np.random.default_rng(0).permutation(len(labels))
    of_class = [rows[labels[rows] == c] for c in range(10)]

    def pick(spans: list[slice]) -> Labelled:
        chosen = np.concatenate([of_class[c][span] for c, span in enumerate(spans)])
        return images[chosen], labels[chosen].astype(np.int64)

    return {
        "train": pick([slice(0, 60)] * 5 + [slice(0, 4)] * 5),
        "validation": pick([slice(60, 63)] * 10),
        "test": pick([slice(124, None)] * 10),
        "synthetic": pick([slice(0)] * 5 + [slice(63, 119)] * 5),
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("fits"))


@pytest.fixture(scope="module")
def perfect(parts: dict[str, Labelled], cache: Cache) -> UtilityReport:
    """A perfect generator gives what more real images would give."""
    return utility(**parts, class_names=NAMES, config=BRIEF, cache=cache)


def test_perfect_images_help(perfect: UtilityReport) -> None:
    assert perfect.verdict == "helps"
    assert perfect.conclusion.startswith("It helps: real + synthetic + affine at 1× finds ")
    assert "(5, 6, 7, 8, 9)" in perfect.conclusion
    assert perfect.minority == SMALL
    assert perfect.chosen.images == {**dict.fromkeys(NAMES[:5], 0), **dict.fromkeys(SMALL, 56)}
    real, baseline, ours = perfect.rows
    assert real.minority_recall < baseline.minority_recall < ours.minority_recall
    assert baseline.against_baseline is None
    assert ours.against_baseline is not None
    assert ours.against_baseline.sign == 1
    assert real.against_real is None
    assert ours.against_real is not None
    assert ours.against_real.value == pytest.approx(ours.minority_recall - real.minority_recall)
    assert (perfect.fits, perfect.fits_cached) == (9, 0)


def test_wrong_labels_are_not_to_be_used(parts: dict[str, Labelled], cache: Cache, perfect: UtilityReport) -> None:
    images, labels = parts["synthetic"]
    poison = {**parts, "synthetic": (images, np.roll(labels, 56))}
    report = utility(**poison, class_names=NAMES, config=BRIEF, cache=cache)
    assert report.verdict == "do not use it"
    assert "hurts" in {effect.effect for effect in report.per_class.values()}
    assert report.fits_cached == 6, "real-only fits are shared between evaluations of different generators"
    assert report.rows[:2] == perfect.rows[:2]


def test_a_second_run_is_read_and_an_interrupted_one_goes_on(
    parts: dict[str, Labelled], perfect: UtilityReport, cache: Cache, tmp_path: Path
) -> None:
    again = utility(**parts, class_names=NAMES, config=BRIEF, cache=cache)
    assert again.fits_cached == again.fits == 9
    assert (again.rows, again.per_class, again.conclusion) == (perfect.rows, perfect.per_class, perfect.conclusion)

    seen: list[tuple[int, int, str]] = []

    def stop(done: int, total: int, what: str) -> None:
        seen.append((done, total, what))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        utility(**parts, class_names=NAMES, config=BRIEF, cache=Cache(tmp_path), progress=stop)
    resumed = utility(**parts, class_names=NAMES, config=BRIEF, cache=Cache(tmp_path))
    assert resumed.fits_cached == 4
    assert resumed.rows == perfect.rows
    assert [word[:2] for word in seen] == [(n, 9) for n in range(1, 5)]
    assert seen[0][2] == "real only, seed 0"


def test_other_steps_seeds_or_images_are_other_fits(parts: dict[str, Labelled], cache: Cache) -> None:
    utility(**parts, class_names=NAMES, config=BRIEF, cache=cache)
    flipped = {**parts, "test": (parts["test"][0][::-1], parts["test"][1][::-1])}
    for changed, config in (
        (parts, UtilityConfig(**{**vars(BRIEF), "seeds": (3,), "steps": 2})),
        (parts, UtilityConfig(**{**vars(BRIEF), "seeds": (0,), "steps": 2})),
        (flipped, UtilityConfig(**{**vars(BRIEF), "seeds": (0,), "steps": 2})),
    ):
        assert utility(**changed, class_names=NAMES, config=config, cache=cache).fits_cached == 0


def test_processes_change_nothing(parts: dict[str, Labelled]) -> None:
    done: list[tuple[int, int, str]] = []
    config = {**vars(BRIEF), "seeds": (0,), "steps": 10}
    alone = utility(**parts, class_names=NAMES, config=UtilityConfig(**config))
    both = utility(
        **parts,
        class_names=NAMES,
        config=UtilityConfig(**{**config, "processes": 2}),
        progress=lambda *what: done.append(what),
    )
    assert both.rows == alone.rows
    assert [what[:2] for what in done] == [(1, 3), (2, 3), (3, 3)]
    assert any("seed" in note for note in alone.notes), "one seed is to be remarked on"


@pytest.fixture(scope="module")
def colour() -> UtilityReport:
    """Everything at once on a small colour set without validation images, with gaps: class c has one training image,
    and d no test images."""
    rng = np.random.default_rng(0)

    def some(counts: list[int]) -> Labelled:
        labels = np.repeat(np.arange(4), counts)
        base = np.random.default_rng(7).integers(0, 200, (4, 12, 9, 3))
        return (base[labels] + rng.integers(0, 56, (len(labels), 12, 9, 3))).astype(np.uint8), labels

    return utility(
        some([12, 3, 1, 2]),
        some([0, 0, 0, 0]),
        some([5, 6, 1, 0]),
        some([0, 20, 4, 9]),
        ("a", "b", "c", "d"),
        config=UtilityConfig(seeds=(0, 1), steps=4, processes=1),
    )


def test_small_sets_in_colour_get_reasons_and_never_nan(colour: UtilityReport) -> None:
    json.dumps(colour.to_json(), allow_nan=False)
    assert [row.method for row in colour.rows[:7]] == [
        *METHODS[:4],
        *(f"oversampling + {strength}" for strength in ("light", "strong")),
        "SMOTE",
    ]
    assert colour.baseline == BASELINE
    assert "no validation images" in colour.baseline_why
    assert not colour.chosen.by_validation
    assert all(row.validation is None for row in colour.rows)
    assert "single image (c)" in next(row.note for row in colour.rows if row.method == "SMOTE")
    assert colour.per_class["d"] == ClassEffect(None, None, None, None, "no test images")
    assert colour.per_class["c"].effect is None
    assert "too few test images" in colour.per_class["c"].reason
    assert any("no test images of d" in note for note in colour.notes)
    assert any("generated images" in note for note in colour.notes), "12 of 'd' were wanted for 1×"


def test_tables_for_people_and_programs(perfect: UtilityReport, colour: UtilityReport) -> None:
    for report in (perfect, colour):
        assert json.loads(json.dumps(report.to_json()))["verdict"] == report.verdict
        assert report.text().endswith(report.conclusion)
        lines = report.text().removesuffix(report.conclusion).splitlines()
        assert max(map(len, lines)) <= (120 if report is perfect else 128)  # Of a handful of images intervals are long.
        console = Console(width=120)
        with console.capture() as captured:
            console.print(report.rich())
        for text in (report.text(), captured.get()):
            assert "→ real + synthetic + affine" in text
            for row in report.rows:
                assert row.method.split(" + ")[-1] in text
    assert sum(perfect.is_chosen(row) for row in perfect.rows) == 1


# --- amounts ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    given_=st.lists(st.integers(0, 80), min_size=5, max_size=5),
    amounts=st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0]), min_size=1, max_size=4),
)
def test_amounts_take_what_is_needed_as_far_as_it_is_there(
    counts: list[int], given_: list[int], amounts: list[float]
) -> None:
    names = [f"c{i}" for i in range(len(counts))]
    config = UtilityConfig(amounts=tuple(amounts))
    need = images_needed(dict(zip(names, counts, strict=True)), config)
    short = [n * 2 < max(counts) for n in counts]
    for name, n in zip(names, counts, strict=True):
        base = max(counts) - n if any(short) else max(counts)
        assert base * max(amounts) <= need[name] < base * max(amounts) + 1
    train = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), given_[: len(counts)]))
    if not sum(min(have, wanted) for have, wanted in zip(given_, need.values(), strict=False)):
        with pytest.raises(DataError, match="short of images"):
            _amounts(train, labels, config, names)
        return
    found, notes = _amounts(train, labels, config, names)
    sets = [set(rows.tolist()) for rows in found.values()]
    assert all(a < b for a, b in itertools.pairwise(sets))
    taken = np.bincount(labels[list(sets[-1])], minlength=len(counts))
    assert taken.tolist() == [min(have, need[name]) for have, name in zip(given_, names, strict=False)]
    enough = all(have >= need[name] for have, name in zip(given_, names, strict=False))
    assert any("No class is short" in note for note in notes) == (not any(short))
    assert any("there" in note for note in notes) == (not enough)
    assert list(found) == sorted(found)
    if enough and max(counts) >= 8:  # Two amounts of a handful of images may be the same images.
        assert list(found) == sorted(set(amounts))


def test_amounts_stop_at_what_a_fit_can_look_at() -> None:
    config = UtilityConfig(steps=10)
    assert images_needed({"a": 10_000, "b": 10}, config) == {"a": 0, "b": 320}


# --- choosing and concluding ------------------------------------------------------------------------------------------

DEFAULT, OTHER, THIRD = (_Method(amount=amount, share=0.5) for amount in (1.0, 0.5, 2.0))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 40), gain=st.floats(0, 0.6), seed=st.integers(0, 50))
def test_only_a_clear_gain_on_validation_departs_from_the_default(n: int, gain: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.repeat([0, 1], n)
    right = {m: rng.random((5, 2 * n)) < 0.3 + extra for m, extra in ((DEFAULT, 0), (OTHER, gain), (THIRD, gain / 2))}
    scores = resample(right, truth, 3)
    weights = _weights(truth, [0, 1, 2], 3)
    chosen, why, by_validation = _choose(DEFAULT, [OTHER, THIRD], scores, weights, truth, [0, 1, 2], "amount")
    recall = {m: float(hits.mean()) if n else 0.0 for m, hits in right.items()}
    if n < 3:
        assert chosen == DEFAULT
    if chosen != DEFAULT:
        assert recall[chosen] > recall[DEFAULT]
        assert by_validation
    else:
        assert "default" in why
    if n == 0:
        assert "no validation images" in why


def test_three_images_a_class_choose_nothing_and_hundreds_do() -> None:
    # The lucky one of several on a handful of images is taken by neither side.
    for each, expected in ((3, DEFAULT), (200, OTHER)):
        truth = np.repeat(np.arange(5), each)
        lucky = np.arange(len(truth)) % each >= each // 3
        right = {DEFAULT: np.tile(lucky, (5, 1)), OTHER: np.ones((5, len(truth)), bool)}
        right[DEFAULT] = right[DEFAULT] | (np.arange(len(truth)) >= each * 2)  # Wrong on a few of two classes.
        scores = resample(right, truth, 5)
        args = scores, _weights(truth, range(5), 5), truth, range(5)
        chosen, why, by_validation = _choose(DEFAULT, [OTHER], *args, "amount and mixture")
        assert chosen == expected
        assert by_validation == (each == 200)
        if each == 3:
            assert why.startswith("The 15 validation images of the small classes are too few to choose by: the default")


def row(method: str, recall: float, **changes: Any) -> UtilityRow:
    fields = {
        "amount": None,
        "share": None,
        "augmentation": None,
        "synthetic": 0,
        "minority_recall_sd": 0.0,
        "minority_recall_interval": (recall, recall),
        "accuracy": recall,
        "accuracy_sd": 0.0,
        "accuracy_interval": None,
        "per_class": {},
        "against_baseline": None,
        "against_real": None,
        "validation": None,
        "note": "",
    }
    return UtilityRow(method=method, minority_recall=recall, **{**fields, **changes})


@pytest.mark.parametrize(
    ("low", "high", "best", "verdict"),
    [
        (0.01, 0.03, 0.9, "helps"),
        (0.01, 0.03, 0.92, "makes no difference"),  # Another method without generated images does as well.
        (-0.01, 0.01, 0.9, "makes no difference"),
        (-0.03, -0.01, 0.9, "do not use it"),
    ],
)
def test_the_interval_decides(low: float, high: float, best: float, verdict: str) -> None:
    baseline, other = row(BASELINE, 0.9), row("oversampling + strong", best)
    sign = int(low > 0) - int(high < 0)
    difference = Difference((low + high) / 2, (low, high), 50, sign)
    ours = row("real + synthetic + affine", 0.9 + difference.value, amount=1.0, against_baseline=difference)
    effects = {
        "a": ClassEffect(0.9, 0.95, difference, "helps", ""),
        "b": ClassEffect(0.9, 0.8, difference, "hurts", ""),
    }
    cost = Difference(-sign * 0.02, (-sign * 0.02, -sign * 0.02), 50, -sign)
    got, sentence = _conclude(ours, baseline, [baseline, other], effects, cost, ["a", "c"])
    assert got == verdict
    assert f"({low * 100:+.1f} to {high * 100:+.1f} with 95 % confidence)" in sentence
    assert "small classes' test images (a, c)" in sentence
    assert "at 1×" in sentence
    assert sentence.count(".\n") == 0
    if best > 0.9:
        assert "oversampling + strong, which needs no generated images, finds 92.0%" in sentence
    else:
        assert "taken singly it helps a; taken singly it hurts b" in sentence
        assert ("over all classes accuracy changes" in sentence) == (sign != 0)


def test_clear_sentences_for_wrong_questions(parts: dict[str, Labelled]) -> None:
    def ask(names: tuple[str, ...] = NAMES, minority: list[str] | None = None, **changes: Labelled) -> None:
        utility(**{**parts, **changes}, class_names=names, minority=minority, config=BRIEF)

    images, labels = parts["synthetic"]
    with pytest.raises(UsageError, match="has no class x; the classes are 0"):
        ask(minority=["x"])
    with pytest.raises(UsageError, match="name of a small class"):
        ask(minority=[])
    with pytest.raises(DataError, match=r"generated images are \(4, 8, 1\)"):
        ask(synthetic=(images[:, ::2], labels))
    with pytest.raises(DataError, match="no generated images"):
        ask(synthetic=(images[:0], labels[:0]))
    with pytest.raises(DataError, match="None of the 56 generated images is of a class that is short"):
        ask(synthetic=(images[:56], np.zeros(56, np.int64)))
    large = parts["test"][1] < 5
    with pytest.raises(DataError, match="no test images of 5, 6, 7, 8, 9"):
        ask(test=(parts["test"][0][large], parts["test"][1][large]))
    with pytest.raises(DataError, match="at least 2 classes"):
        ask(names=("0",))
    with pytest.raises(DataError, match="8×8 or more"):
        ask(**{name: (part[0][:, :6, :6], part[1]) for name, part in parts.items()})
    with pytest.raises(DataError, match="no training images of ten"):
        ask(names=(*NAMES, "ten"), minority=["ten"])
    for wrong in ({"methods": (REAL,)}, {"methods": ("x",)}, {"amounts": (0,)}, {"shares": (1,)}, {"seeds": ()}):
        with pytest.raises(UsageError):
            UtilityConfig(**wrong)  # type: ignore[arg-type]
