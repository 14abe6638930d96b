"""Balancing: imbalanced-learn's own plans, real images first and untouched, and never one that was set aside."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imblearn.pipeline import make_pipeline
from imblearn.utils import check_sampling_strategy
from sklearn.base import clone
from sklearn.dummy import DummyClassifier

from augmint.balancing import STRATEGIES, Balancer, balance, plan
from augmint.data import DataSet, load_data, write_folder
from augmint.errors import (
    AugmintError,
    DataError,
    RequestError,
    ShortfallError,
    TransportError,
    UnknownLabelError,
    UsageError,
)
from augmint.generator import Generator
from augmint.images import read_marks
from augmint.samples import BundleInfo, Samples

NAMES = ("cat", "dog", "été 10")


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator(tiny_bundle, device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """60 dogs, 20 cats, 9 of "été 10", every image different."""
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0, 2], [60, 20, 9])
    images = rng.integers(0, 256, (89, 8, 8, 1), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("data") / "pets"
    return load_data(write_folder(images, labels, NAMES, folder))


# ------------------------------------------------------------------------------------------------- the plan

counts = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 40), min_size=2)


def theirs(real: dict[str, int], strategy: Any) -> dict[str, int]:
    y = np.repeat(list(real), list(real.values()))
    found = check_sampling_strategy(strategy, y, "over-sampling")
    return {str(label): int(n) for label, n in found.items() if n}


def agree(real: dict[str, int], strategy: Any, for_them: Any = None) -> None:
    real = dict(sorted(real.items()))  # they see classes in this order, which decides between equals
    try:
        expected = theirs(real, strategy if for_them is None else for_them)
    except ValueError:
        with pytest.raises(UsageError):
            plan(real, strategy)
        return
    found = plan(real, strategy)
    assert list(found) == list(real)
    assert {label: n for label, n in found.items() if n} == expected


@given(real=counts, strategy=st.sampled_from([*STRATEGIES, "majority", "nonsense", ""]))
def test_words_mean_what_they_mean_to_imbalanced_learn(real: dict[str, int], strategy: str) -> None:
    agree(real, strategy)


@given(
    real=counts.filter(lambda found: len(found) == 2) | counts,
    share=st.floats(0, 1.2, exclude_min=False) | st.sampled_from([1, 1.0, 0.5, 1 / 3, -1.0]),
)
@settings(max_examples=300)
def test_shares_too(real: dict[str, int], share: float) -> None:
    agree(real, share)


@given(real=counts, totals=st.dictionaries(st.sampled_from("abcdefghij"), st.integers(-3, 80)))
def test_totals_and_functions_too(real: dict[str, int], totals: dict[str, int]) -> None:
    agree(real, totals)
    agree(real, lambda _: totals, lambda _: totals)


def test_functions_are_given_the_counts() -> None:
    assert plan({"a": 3, "b": 5}, lambda real: {label: 2 * n for label, n in real.items()}) == {"a": 3, "b": 5}


@given(real=counts, strategy=st.sampled_from(STRATEGIES))
def test_nothing_is_taken_away_and_nothing_passes_the_largest(real: dict[str, int], strategy: str) -> None:
    found = plan(real, strategy)
    assert all(n >= 0 and real[label] + n <= max(real.values()) for label, n in found.items())


@pytest.mark.parametrize(
    "strategy",
    [None, True, [1], {"a": 1.5}, {"a": True}, {"a": "9"}, float("nan"), float("inf"), lambda _: None, b"all"],
)
def test_anything_else_is_refused_in_a_sentence(strategy: Any) -> None:
    with pytest.raises(UsageError) as error:
        plan({"a": 1, "b": 5}, strategy)
    assert error.value.code == "balance.strategy"


def test_one_class_can_only_be_given_a_total() -> None:
    with pytest.raises(UsageError, match="two classes"):
        plan({"a": 3})
    assert plan({"a": 3}, {"a": 10}) == {"a": 7}
    assert plan({"a": 0, "b": 4}) == {"a": 4, "b": 0}


# ------------------------------------------------------------------------------------------------- balancing


def test_real_first_then_synthetic_and_every_class_as_large_as_the_largest(data: DataSet, generator: Generator) -> None:
    result = balance(data, generator, seed=5)
    real, labels = data.images("train", shape=(8, 8, 1))
    np.testing.assert_array_equal(result.images[: len(real)], real)
    np.testing.assert_array_equal(result.labels[: len(real)], labels)
    assert result.synthetic.tolist() == [False] * len(real) + [True] * (len(result) - len(real))
    sizes = {label: result.label_names.count(label) for label in NAMES}
    assert set(sizes.values()) == {data.counts("train")["dog"]}
    assert {row.label: (row.real, row.target) for row in result.plan} == {
        label: (data.counts("train")[label], sizes[label]) for label in NAMES
    }
    wanted = plan(data.counts("train"))
    assert result.delivered == wanted
    samples = generator.generate({label: n for label, n in wanted.items() if n}, seed=5)
    np.testing.assert_array_equal(result.images[result.synthetic], samples.images)
    assert [result.label_names[i] for i in np.flatnonzero(result.synthetic)] == samples.label_names
    np.testing.assert_array_equal(result.indices[result.synthetic], samples.indices)
    assert (result.seed, result.bundle, result.missing, result.notes) == (5, generator.digest, {}, ())


def test_nothing_set_aside_is_counted_returned_or_written(data: DataSet, generator: Generator, tmp_path: Path) -> None:
    result = balance(data, generator, seed=5)
    kept = {image.tobytes() for image in result.images[~result.synthetic]}
    for split in ("validation", "test"):
        aside = data.images(split, shape=(8, 8, 1))[0]
        assert len(aside)
        assert not kept & {image.tobytes() for image in aside}
    written = load_data(result.write(tmp_path / "out"))
    assert written.counts("validation") == written.counts("test") == dict.fromkeys(NAMES, 0)


def test_the_data_may_order_its_classes_otherwise_than_the_bundle(generator: Generator) -> None:
    x = np.zeros((6, 8, 8, 1), np.uint8)
    result = balance((x, ["été 10", "dog", "dog", "dog", "cat", "dog"]), generator, seed=1)
    assert result.class_names == ("cat", "dog", "été 10")
    result = balance((x, np.array(["été 10"] * 5 + ["dog"])), generator, seed=1)
    assert result.class_names == ("dog", "été 10")
    made = result.images[result.synthetic]
    np.testing.assert_array_equal(made, generator.generate({"dog": 4}, seed=1).images)
    assert set(np.array(result.label_names)[result.synthetic]) == {"dog"}


class Replaced(Generator):
    """A source whose bundle was another one, with the classes in another order, when it was asked what it has."""

    def info(self) -> BundleInfo:
        return replace(super().info(), class_names=NAMES[::-1])


def test_labels_are_those_of_the_answer_not_of_what_the_source_had_before(tiny_bundle: Path) -> None:
    x, y = np.zeros((5, 8, 8, 1), np.uint8), ["cat"] * 4 + ["dog"]
    source = Replaced(tiny_bundle, device="cpu")
    result = balance((x, y), source, seed=1)
    assert set(np.array(result.label_names)[result.synthetic]) == {"dog"}


@pytest.mark.parametrize("total", [10**15, 10**19])
def test_more_than_memory_holds_is_refused_in_a_sentence(generator: Generator, total: int) -> None:
    with pytest.raises(DataError, match="do not fit in memory"):
        balance((np.zeros((2, 8, 8), np.uint8), ["cat", "dog"]), generator, {"cat": total})


def test_real_images_are_brought_to_the_sources_shape_and_that_is_said(generator: Generator) -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, 16, 12, 3), dtype=np.uint8)
    result = balance((x, ["cat"] * 4 + ["dog"]), generator, resize="crop")
    assert result.images.shape[1:] == (8, 8, 1)
    assert "resized from 16×12×3 to 8×8×1 (crop)" in result.notes[0]


def test_a_balanced_set_needs_nothing(generator: Generator) -> None:
    x = np.zeros((4, 8, 8), np.uint8)
    result = balance((x, ["cat", "dog", "cat", "dog"]), generator)
    assert len(result) == 4
    assert result.seed is None
    assert "nothing was generated" in result.notes[0]


def test_a_seed_left_out_is_picked_and_told(data: DataSet, generator: Generator) -> None:
    first = balance(data, generator)
    assert first.seed is not None
    np.testing.assert_array_equal(balance(data, generator, seed=first.seed).images, first.images)


@pytest.mark.parametrize(
    ("x", "y", "error"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), ["cat", "dog"], DataError),
        (np.zeros((2, 64), np.uint8), ["cat", "dog"], DataError),
        (np.zeros((2, 8, 8, 2), np.uint8), ["cat", "dog"], DataError),
        (np.zeros((2, 8, 8), np.uint8), ["cat"], DataError),
        (np.zeros((0, 8, 8), np.uint8), [], DataError),
        (np.zeros((3, 8, 8), np.uint8), ["cat", "cat", "bird"], UnknownLabelError),
        (np.zeros((3, 8, 8), np.uint8), [0, 0, 1], UnknownLabelError),
    ],
)
def test_arrays_that_cannot_be_balanced(generator: Generator, x: Any, y: Any, error: type[AugmintError]) -> None:
    with pytest.raises(error):
        balance((x, y), generator)


def test_a_class_the_bundle_lacks_may_stay_as_it_is(generator: Generator) -> None:
    x = np.zeros((4, 8, 8), np.uint8)
    result = balance((x, ["cat", "bird", "bird", "bird"]), generator, {"cat": 3}, seed=1)
    assert result.delivered == {"bird": 0, "cat": 2}


def test_an_unconditional_bundle_cannot_balance(data: DataSet, tiny_bundle_unconditional: Path) -> None:
    with pytest.raises(RequestError, match="unconditional"):
        balance(data, tiny_bundle_unconditional)


class Failing:
    """A source that stops after `parts` chunks of 10."""

    def __init__(self, generator: Generator, parts: int, error: Exception) -> None:
        self.generator, self.parts, self.error = generator, parts, error

    def info(self) -> Any:
        return self.generator.info()

    def generate(self, counts: Any, **more: Any) -> Samples:
        raise AssertionError

    def stream(self, counts: Any, *, chunk: int, **more: Any) -> Iterator[Samples]:
        for number, part in enumerate(self.generator.stream(counts, chunk=10, **more)):
            if number == self.parts:
                raise self.error
            yield part


@pytest.mark.parametrize("error", [ShortfallError("Too few."), TransportError("The line is dead.")])
def test_what_was_delivered_before_the_end_is_kept_and_said(
    data: DataSet, generator: Generator, error: Exception
) -> None:
    source = Failing(generator, 2, error)
    result = balance(data, source, seed=1, allow_shortfall=True)
    assert result.synthetic.sum() == 20
    assert sum(result.missing.values()) == sum(plan(data.counts("train")).values()) - 20
    with pytest.raises(ShortfallError, match=str(error).rstrip(".")) as raised:
        result.raise_for_shortfall()
    assert raised.value.delivered == 20
    with pytest.raises(ShortfallError):
        balance(data, source, seed=1)


def test_a_service_that_gives_nothing_is_its_own_error(data: DataSet, generator: Generator) -> None:
    with pytest.raises(TransportError):
        balance(data, Failing(generator, 0, TransportError("The line is dead.")), allow_shortfall=True)


# ------------------------------------------------------------------------------------------------- writing


def test_a_folder_reads_back_and_says_of_each_image_what_it_is(
    data: DataSet, generator: Generator, tmp_path: Path
) -> None:
    result = balance(data, generator, seed=2**64 - 1, truncation=0.5)
    out = result.write(tmp_path / "balanced")
    again = load_data(out)
    assert again.counts() == {label: result.label_names.count(label) for label in NAMES}
    assert again.counts("train") == again.counts()
    with (out / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result)
    origins = set()
    for row in rows:
        marks = read_marks((out / row["file_name"]).read_bytes())
        if row["synthetic"] == "true":
            assert marks == {
                "bundle": row["bundle"],
                "label": row["label"],
                "seed": int(row["seed"]),
                "index": int(row["index"]),
                "truncation": 0.5,
            }
            assert (marks["bundle"], marks["seed"]) == (generator.digest, 2**64 - 1)
        else:
            assert marks is None
            assert row["seed"] == row["bundle"] == ""
            origins.add(row["origin"])
    assert origins == {name for name, train in zip(data.names, data.where("train"), strict=True) if train}


def test_an_npz_reads_back(data: DataSet, generator: Generator, tmp_path: Path) -> None:
    result = balance(data, generator, seed=3, truncation=0.5)
    out = result.write(tmp_path / "balanced.npz", format="npz")
    assert load_data(out).counts("train") == {label: result.label_names.count(label) for label in NAMES}
    with np.load(out, allow_pickle=False) as arrays:
        for name in ("images", "labels", "synthetic", "seeds", "indices"):
            np.testing.assert_array_equal(arrays[name], getattr(result, name))
        assert str(arrays["bundle"]) == generator.digest
        assert float(arrays["truncation"]) == 0.5


def test_nothing_is_written_over(data: DataSet, generator: Generator, tmp_path: Path) -> None:
    result = balance(data, generator, seed=3)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    (tmp_path / "used.npz").touch()
    with pytest.raises(DataError):
        result.write(tmp_path / "used")
    with pytest.raises(DataError):
        result.write(tmp_path / "used.npz", format="npz")
    with pytest.raises(UsageError):
        result.write(tmp_path / "new", format="tar")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["used", "used.npz"]


# ------------------------------------------------------------------------------------------------- fit_resample


@pytest.mark.parametrize("form", [(8, 8, 1), (8, 8), (64,)])
def test_fit_resample_returns_what_it_was_given_and_more(generator: Generator, form: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (12, *form), dtype=np.uint8)
    y = np.array(["cat"] * 7 + ["dog"] * 3 + ["été 10"] * 2)
    balancer = Balancer(generator, random_state=4)
    x_new, y_new = balancer.fit_resample(x, y)
    np.testing.assert_array_equal(x_new[:12], x)
    np.testing.assert_array_equal(y_new[:12], y)
    assert y_new.dtype == y.dtype
    assert x_new.shape == (21, *form)
    assert {label: int((y_new == label).sum()) for label in NAMES} == dict.fromkeys(NAMES, 7)
    assert balancer.sampling_strategy_ == {"dog": 4, "été 10": 5}
    assert balancer.synthetic_.sum() == 9
    np.testing.assert_array_equal(Balancer(generator, random_state=4).fit_resample(x, y)[0], x_new)


def test_integer_labels_stay_integers(tmp_path: Path) -> None:
    from tests.tinybundle import write_tiny_bundle

    source = Generator(write_tiny_bundle(tmp_path / "digits", class_names=("0", "2", "10")), device="cpu")
    y = np.array([10, 10, 10, 2, 0, 0], dtype=np.int16)
    balancer = Balancer(source, sampling_strategy={2: 3}, random_state=np.random.default_rng(0))
    x_new, y_new = balancer.fit_resample(np.zeros((6, 8, 8), np.uint8), y)
    assert y_new.tolist() == [10, 10, 10, 2, 0, 0, 2, 2]
    assert y_new.dtype == np.int16
    assert balancer.sampling_strategy_ == {2: 2}
    np.testing.assert_array_equal(x_new[6:], balancer.balanced_.images[6:, :, :, 0])


def test_a_function_is_given_y_as_imbalanced_learn_does(generator: Generator) -> None:
    x, y = np.zeros((5, 8, 8), np.uint8), np.array(["cat"] * 4 + ["dog"])

    def double(labels: np.ndarray) -> dict[str, int]:
        values, n = np.unique(labels, return_counts=True)
        return dict(zip(values, 2 * n, strict=True))

    balancer = Balancer(generator, sampling_strategy=double, random_state=np.random.RandomState(0))
    balancer.fit_resample(x, y)
    assert balancer.sampling_strategy_ == {"cat": 4, "dog": 1}


@pytest.mark.parametrize("shape", [(5, 9, 8), (5, 8, 8, 3), (5, 63), (5,)])
def test_rows_of_another_shape_are_not_silently_resized(generator: Generator, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="resize"):
        Balancer(generator).fit_resample(np.zeros(shape, np.uint8), ["cat"] * 5)


def test_it_is_a_step_of_imbalanced_learns_pipeline(generator: Generator) -> None:
    balancer = Balancer(generator, random_state=1)
    assert clone(balancer).get_params()["random_state"] == 1
    pipeline = make_pipeline(balancer, DummyClassifier(strategy="prior"))
    pipeline.set_params(balancer__random_state=2)
    x, y = np.zeros((5, 64), np.uint8), np.array(["cat"] * 4 + ["dog"])
    pipeline.fit(x, y)
    assert pipeline[-1].class_prior_.tolist() == [0.5, 0.5]
    with pytest.raises(UsageError, match="no parameter"):
        balancer.set_params(seed=3)
