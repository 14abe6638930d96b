"""Quality: which images are kept follows from their addresses alone, and every answer accounts for what was made."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import augmint
from augmint import judge as judge_module
from augmint.archive import pack, unpack
from augmint.client import Client
from augmint.data import load_data
from augmint.errors import AugmintError, BundleError, RequestError, ShortfallError, TransportError
from augmint.generator import Generator
from augmint.judge import Judge
from augmint.quality import PARTS, REASONS, Quality, check_offered, most_candidates
from augmint.samples import Request, Samples
from augmint.sampling import write_samples
from augmint.selection import Selection, Walk
from tests.augmint.fakeservice import FakeService
from tests.augmint.test_client import URL, Near, same
from tests.tinybundle import write_tiny_bundle

NAMES = ("cat", "dog", "été 10")
QUALITIES = ("labels", "labels:0.9", "copies", "realism:0.37", "labels,copies,realism:0.3", "labels:0.99999")


@pytest.fixture(scope="module")
def generator(judged_bundle: Path) -> Generator:
    return Generator(judged_bundle, device="cpu", threads=1)


# ------------------------------------------------------------------------------------------------------- the words


@given(
    st.booleans() | st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.floats(0, 0.9),
    st.booleans(),
)
def test_what_is_written_is_read(labels: bool | float, realism: float, copies: bool) -> None:
    wish = Quality(labels, realism, copies)
    assert Quality.parse(str(wish)) == wish
    assert Quality.parse(wish) is wish
    assert bool(wish) == (str(wish) != "none")


def test_words_may_stand_in_any_order_and_case() -> None:
    assert Quality.parse(" Realism:0.2,COPIES , labels:.5") == Quality(0.5, 0.2, True)
    assert Quality.parse("none") == Quality()
    assert str(Quality.parse("copies,labels")) == "labels,copies"


@pytest.mark.parametrize(
    "wish",
    ["", "sharp", "labels,labels", "labels,none", "realism", "realism:", "realism:0", "realism:0.95", "realism:nan",
     "labels:0", "labels:1", "labels:1.5", "labels:x", "copies:0.1", "labels,,copies", 7, None, True, ["labels"]],
)  # fmt: skip
def test_what_is_no_wish_is_refused(wish: Any) -> None:
    with pytest.raises(RequestError) as error:
        Quality.parse(wish)
    assert error.value.code == "request.quality"
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    "arguments", [{"labels": 1.0}, {"labels": 2}, {"realism": -0.1}, {"realism": True}, {"copies": 1}]
)
def test_what_is_no_quality_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Quality(**arguments)


def test_what_a_bundle_cannot_judge_is_refused_with_the_reason_and_what_it_can() -> None:
    offered = {"labels": "", "realism": "", "copies": "the data were gone"}
    assert check_offered("labels", offered) == Quality(labels=True)
    with pytest.raises(RequestError, match=r"'copies'.*the data were gone.*this bundle offers labels, realism\."):
        check_offered("labels,copies", offered)
    with pytest.raises(RequestError, match=r"offers labels, realism\.$"):
        check_offered("sharp", offered)
    with pytest.raises(RequestError, match="offers none"):
        check_offered("labels", {})


# -------------------------------------------------------------------------------------------------- what is offered


def test_bundles_offer_what_they_have(
    generator: Generator, tiny_bundle: Path, tiny_bundle_unconditional: Path, tmp_path: Path
) -> None:
    assert generator.info().quality == dict.fromkeys(PARTS, "")
    old = Generator(tiny_bundle, device="cpu")
    with pytest.raises(RequestError, match=r"without what judges images.*offers none") as error:
        old.generate({"cat": 1}, quality="labels")
    assert error.value.code == "request.quality"
    same(old.generate({"cat": 1}, seed=1, quality="none"), old.generate({"cat": 1}, seed=1))
    with pytest.raises(RequestError, match="offers none"):
        Generator(tiny_bundle_unconditional, device="cpu").generate(3, quality="realism:0.1")

    without = Generator(write_tiny_bundle(tmp_path / "without", judged=True, copies=False), device="cpu")
    without.generate({"cat": 3}, quality="labels,realism:0.5")
    with pytest.raises(RequestError, match=r"features of the training images out.*offers labels, realism"):
        without.generate({"cat": 1}, quality="copies")


def test_unconditional_bundles_know_realism(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "plain", judged=True, class_names=(), shape=(8, 10, 3))
    plain = Generator(path, device="cpu")
    samples = plain.generate(40, seed=1, quality="realism:0.5")
    assert samples.delivered == {"": 40}
    assert 20 <= samples.rejected[""][1] <= 80
    assert samples.generated == {"": 40 + samples.rejected[""][1]}
    with pytest.raises(RequestError, match="unconditional"):
        plain.generate(1, quality="labels")
    service = FakeService(plain, limit=7)
    same(Client(URL, transport=service.transport).generate(40, seed=1, quality="realism:0.5"), samples)


# ---------------------------------------------------------------------------------------------- the same indices kept


def expected(generator: Generator, label: str, n: int, seed: int, offset: int, quality: str) -> tuple[Any, Any, Any]:
    """By hand: judge every candidate alone, keep the first n."""
    bound = most_candidates(n)
    indices = np.arange(offset, offset + bound, dtype=np.uint64)
    labels = np.full(bound, NAMES.index(label))
    images = generator.render(labels, np.uint64(seed), indices)
    one = [generator.judge(images[i : i + 1], labels[i : i + 1], Quality.parse(quality))[0] for i in range(bound)]
    kept = [i for i, reason in enumerate(one) if reason == 0][:n]
    end = kept[-1] + 1 if len(kept) == n else bound
    rejected = tuple(one[:end].count(reason) for reason in (1, 2, 3))
    return images[kept], indices[kept], rejected


@pytest.mark.parametrize("quality", QUALITIES)
def test_the_first_kept_ones_are_the_answer(generator: Generator, quality: str) -> None:
    counts = {"été 10": 5, "cat": 0, "dog": 4}
    samples = generator.generate(counts, seed=3, offset=1000, quality=quality)
    wanted = {label: expected(generator, label, n, 3, 1000, quality) for label, n in counts.items() if n}
    np.testing.assert_array_equal(samples.images, np.concatenate([images for images, _, _ in wanted.values()]))
    np.testing.assert_array_equal(samples.indices, np.concatenate([indices for _, indices, _ in wanted.values()]))
    assert samples.rejected == {label: rejected for label, (_, _, rejected) in wanted.items()}
    accounted(samples, {"été 10": 5, "dog": 4})


def accounted(samples: Samples, counts: dict[str, int]) -> None:
    """The account adds up, and the images are where it says."""
    assert samples.requested == counts
    for label, n in counts.items():
        assert samples.delivered[label] <= n
        assert samples.generated[label] == samples.delivered[label] + sum(samples.rejected[label])
        assert samples.generated[label] <= most_candidates(n)
        assert (label in samples.missing) == (samples.delivered[label] < n)
        if label in samples.missing:
            assert samples.generated[label] == most_candidates(n)


@settings(max_examples=15, deadline=None)
@given(
    counts=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 7), min_size=1).filter(lambda c: any(c.values())),
    quality=st.sampled_from(QUALITIES),
    chunk=st.integers(1, 20),
    limit=st.integers(1, 9),
    offset=st.integers(0, 2**40),
    seed=st.integers(0, 2**64 - 1),
)
def test_however_it_is_cut(
    generator: Generator, counts: dict[str, int], quality: str, chunk: int, limit: int, offset: int, seed: int
) -> None:
    arguments: dict[str, Any] = {"seed": seed, "offset": offset, "quality": quality}
    whole = generator.generate(counts, **arguments)
    accounted(whole, {label: n for label, n in counts.items() if n})
    parts = list(generator.stream(counts, chunk=chunk, **arguments))
    assert all(len(part) <= chunk for part in parts)
    same(Samples.concatenate(parts), whole)
    service = FakeService(generator, limit=limit)
    far = list(Client(URL, transport=service.transport).stream(counts, chunk=chunk, **arguments))
    same(Samples.concatenate(far), whole)
    assert all(len(part) <= min(chunk, limit) for part in far)
    # Each image is still what its address says, without any quality.
    np.testing.assert_array_equal(generator.render(whole.labels, whole.seeds, whole.indices), whole.images)


@settings(max_examples=10, deadline=None)
@given(n=st.integers(1, 10), more=st.integers(0, 30), quality=st.sampled_from(QUALITIES[:5]), seed=st.integers(0, 99))
def test_fewer_are_the_first_of_more_and_an_answer_can_be_continued(
    generator: Generator, n: int, more: int, quality: str, seed: int
) -> None:
    few = generator.generate({"cat": n}, seed=seed, quality=quality)
    many = generator.generate({"cat": n + more}, seed=seed, quality=quality)
    np.testing.assert_array_equal(many.indices[: len(few)], few.indices)
    if more and not few.missing:
        rest = generator.generate({"cat": more}, seed=seed, offset=few.generated["cat"], quality=quality)
        np.testing.assert_array_equal(np.concatenate([few.indices, rest.indices])[: len(many)], many.indices)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_in_whatever_batch_they_are_judged(generator: Generator, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(150) % 3
    images = generator.render(labels, np.uint64(1), np.arange(150, dtype=np.uint64))
    quality = Quality.parse("labels,copies,realism:0.3")
    reasons = generator.judge(images, labels, quality)
    assert set(reasons) == {0, 1, 2, 3}
    monkeypatch.setattr(judge_module, "_BATCH", batch)
    np.testing.assert_array_equal(generator.judge(images, labels, quality), reasons)
    order = np.random.default_rng(0).permutation(150)
    np.testing.assert_array_equal(generator.judge(images[order], labels[order], quality), reasons[order])


def test_noise_of_batches_decides_nothing(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that come out otherwise in a batch than alone, as on other processors: the verdicts are the same."""
    labels = np.arange(200) % 3
    images = generator.render(labels, np.uint64(2), np.arange(200, dtype=np.uint64))
    quality = Quality.parse("labels:0.4,copies,realism:0.5")
    reasons = generator.judge(images, labels, quality)
    run, rng = Judge._run, np.random.default_rng(1)

    def noisy(self: Judge, session: Any, feeds: dict[str, Any]) -> Any:
        outputs = run(self, session, feeds)
        if len(feeds["image"]) == 1:
            return outputs
        return [out * (1 + 1e-5 * rng.normal(size=out.shape)).astype(np.float32) for out in outputs]

    monkeypatch.setattr(Judge, "_run", noisy)
    np.testing.assert_array_equal(generator.judge(images, labels, quality), reasons)


def test_a_score_that_is_no_number_is_not_good_enough(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    images = generator.generate({"cat": 2}, seed=1).images
    monkeypatch.setattr(Judge, "_run", lambda self, session, feeds: [np.full(len(feeds["image"]), np.nan, np.float32)])
    assert generator.judge(images, np.zeros(2, np.int64), Quality(realism=0.1)).tolist() == [2, 2]


def test_rounds_and_guesses_change_nothing(generator: Generator) -> None:
    request = generator.request({"dog": 9, "cat": 7}, seed=5, quality="labels,realism:0.2")
    answers = []
    for most in (1, 2, 5, 1000):
        selection = Selection(request)
        while (candidates := selection.next(most)) is not None:
            assert 1 <= candidates.total <= most
            labels, indices = candidates.addresses()
            images = generator.render(labels, np.uint64(5), indices)
            selection.add(candidates, images, generator.judge(images, labels, request.quality))
        answers.append(selection.samples(generator.info()))
    for answer in answers[1:]:
        same(answer, answers[0])


def test_the_last_indices_there_are(generator: Generator) -> None:
    """Where the indices end, the bound does too; nothing overflows."""
    end = 2**64 - 1
    samples = generator.generate({"été 10": 3}, seed=1, offset=end - 4, quality="labels:0.99999")
    assert samples.generated == {"été 10": 4}
    same(Samples.concatenate(list(generator.stream({"été 10": 3}, seed=1, offset=end - 4, quality="labels:0.99999", chunk=1))), samples)  # fmt: skip  # noqa: E501


def test_it_survives_being_sent(generator: Generator) -> None:
    wanted = generator.generate({"cat": 5}, seed=1, quality="labels").indices.tolist()
    assert (
        pickle.loads(pickle.dumps(generator)).generate({"cat": 5}, seed=1, quality="labels").indices.tolist() == wanted
    )


# ------------------------------------------------------------------------------------------------------- near and far


@pytest.mark.parametrize("connect", [Client, Near], ids=["sync", "async"])
def test_near_and_far_refuse_in_the_same_words(connect: Any, generator: Generator, tiny_bundle: Path) -> None:
    tiny = Generator(tiny_bundle, device="cpu")
    for source, wish in ((generator, "sharp"), (tiny, "labels"), (generator, "realism:0.99")):
        service = FakeService(source)
        with pytest.raises(RequestError) as near:
            source.generate({"cat": 1}, quality=wish)
        with pytest.raises(RequestError) as far:
            connect(URL, transport=service.transport).generate({"cat": 1}, quality=wish)
        assert (str(near.value), near.value.code) == (str(far.value), far.value.code)
        assert service.asked == []


def test_a_piece_is_asked_for_where_the_last_one_ended(generator: Generator) -> None:
    service = FakeService(generator, limit=4)
    samples = Client(URL, transport=service.transport).generate({"cat": 10, "dog": 3}, seed=1, quality="labels")
    assert all(sum(asked["counts"].values()) <= 4 for asked in service.asked)
    cat = [asked for asked in service.asked if "cat" in asked["counts"]]
    assert [asked["offset"] for asked in cat] == sorted({asked["offset"] for asked in cat})
    assert all(asked["quality"] == "labels" for asked in service.asked)
    assert cat[0]["candidates"] == most_candidates(10) == cat[1]["candidates"] + cat[1]["offset"]
    assert samples.indices[4] >= cat[1]["offset"]


def test_an_answer_that_cannot_be_a_selection_is_refused(generator: Generator) -> None:
    request = generator.request({"cat": 4}, seed=1, quality="labels")
    right = generator._select(request)
    wrong_label, *others = right.rejected["cat"]
    wrongs = {
        "counts too many": {"rejected": {"cat": (wrong_label + 1, *others)}},
        "counts too few": {"rejected": {"cat": (wrong_label - 1, *others)}},
        "negative": {"rejected": {"cat": (wrong_label + 1, -1, 0)}},
        "another request": {"requested": {"cat": 5}},
        "out of order": {"indices": right.indices[::-1].copy()},
        "twice the same": {"indices": np.repeat(right.indices[-1:], 4)},
        "before the first": {"indices": right.indices - np.uint64(right.indices[0] + 1)},
        "gave up early": {name: getattr(right, name)[:2] for name in ("images", "labels", "seeds", "indices")}
        | {"rejected": {"cat": (5, 0, 0)}},
    }
    for changes in wrongs.values():
        service = FakeService(generator)
        answer = service.answer(dataclasses.replace(right, **changes), 4)
        service.faults = [answer]
        with pytest.raises(TransportError) as error:
            Client(URL, transport=service.transport).generate({"cat": 4}, seed=1, quality="labels")
        assert error.value.code == "service.bad-answer"
    service = FakeService(generator, faults=[FakeService(generator).answer(right, 4)])
    same(Client(URL, transport=service.transport).generate({"cat": 4}, seed=1, quality="labels"), right)


def test_the_npz_holds_the_account(generator: Generator, tmp_path: Path) -> None:
    samples = generator.generate({"dog": 3, "cat": 2}, seed=1, quality="labels,copies")
    arrays = unpack(pack(samples), most=5, image_shape=(8, 8, 1), accounts=2)
    assert arrays["account"] is not None
    rows = {row[0]: row[1:] for row in arrays["account"].tolist()}
    assert rows == {
        NAMES.index(label): [n, samples.generated[label], *samples.rejected[label]]
        for label, n in {"dog": 3, "cat": 2}.items()
    }
    with pytest.raises(TransportError):
        unpack(pack(samples), most=5, image_shape=(8, 8, 1))
    write_samples(generator, {"dog": 3, "cat": 2}, str(tmp_path / "s.npz"), seed=1, quality="labels")
    assert len(load_data(tmp_path / "s.npz").labels) == 5


# ------------------------------------------------------------------------------------------------- fewer than asked for

HARD = "labels:0.9999999"


def test_when_the_bound_is_hit_fewer_are_delivered_and_said(generator: Generator) -> None:
    samples = generator.generate({"dog": 30, "été 10": 30}, seed=1, quality=HARD)
    assert "été 10" in samples.missing
    assert samples.generated["été 10"] == 20 * 30 + 64
    with pytest.raises(ShortfallError, match="good enough") as error:
        samples.raise_for_shortfall()
    assert (error.value.requested, error.value.delivered) == (60, len(samples))
    same(Client(URL, transport=FakeService(generator, limit=8).transport).generate({"dog": 30, "été 10": 30}, seed=1, quality=HARD), samples)  # fmt: skip  # noqa: E501


def test_none_at_all_is_an_answer_too(generator: Generator, tmp_path: Path) -> None:
    hard = Quality(labels=1 - 1e-15)
    samples = generator.generate({"été 10": 2}, seed=1, quality=hard)
    assert (len(samples), samples.rejected) == (0, {"été 10": (104, 0, 0)})
    written = write_samples(generator, {"été 10": 2}, str(tmp_path / "out"), seed=1, quality=hard)
    assert (written.delivered, written.generated, written.seed) == ({"été 10": 0}, {"été 10": 104}, 1)
    with pytest.raises(ShortfallError, match="of 104 made"):
        written.raise_for_shortfall()
    with pytest.raises(ShortfallError, match="nothing to draw"):
        write_samples(generator, {"été 10": 2}, str(tmp_path / "out.png"), seed=1, quality=hard)
    write_samples(generator, {"été 10": 2}, str(tmp_path / "out.npz"), seed=1, quality=hard)


def test_balancing_accounts_too(generator: Generator) -> None:
    data = (np.zeros((30, 8, 8), np.uint8), ["dog"] * 20 + ["cat"] * 10)
    result = augmint.balance(data, generator, seed=1, quality="labels")
    assert result.delivered == {"cat": 10, "dog": 0}
    wanted = generator.generate({"cat": 10}, seed=1, quality="labels")
    np.testing.assert_array_equal(result.images[30:], wanted.images)
    assert result.rejected == {"cat": dict(zip(REASONS, wanted.rejected["cat"], strict=True))}
    assert result.quality == "labels"
    balancer = augmint.Balancer(generator, random_state=1, quality="labels")
    np.testing.assert_array_equal(balancer.fit_resample(*data)[0], result.images[..., 0])

    hard = ["été 10"] * 20 + ["cat"] * 30
    with pytest.raises(ShortfallError, match="made, the others were not"):
        augmint.balance((np.zeros((50, 8, 8), np.uint8), hard), generator, seed=1, quality="labels:0.9999999999")
    with pytest.raises(RequestError, match="offers labels"):
        augmint.balance(data, generator, quality="sharp")


# ----------------------------------------------------------------------------------------------------- broken bundles


def test_a_classifier_that_is_not_what_the_manifest_says_is_refused_when_it_is_opened(
    judged_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(judged_bundle, device="cpu")
    content = dict(generator.files.content) | {"classifier.onnx": generator.files.content["critic.onnx"]}
    object.__setattr__(generator.files, "content", content)
    with pytest.raises(BundleError) as error:
        generator.generate({"cat": 1}, quality="labels")
    assert error.value.code == "bundle.signature"


def test_a_classifier_that_does_not_run_is_one_sentence(generator: Generator) -> None:
    with pytest.raises(AugmintError, match="cannot be run"):
        generator.judge(np.zeros((1, 9, 9, 1), np.uint8), np.zeros(1, np.int64), Quality(labels=True))


def test_a_walk_without_quality_is_the_plain_one() -> None:
    request = Request.make({"a": 3, "b": 4}, ("a", "b"), seed=1)
    walk = Walk(request)
    piece = walk.piece(5)
    assert piece is not None
    assert (piece.counts, piece.candidates, piece.offset) == ((("a", 3), ("b", 2)), None, 0)
