"""The local generator: the same address gives the same bytes at every batch size, order, split, thread and process."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from augmint.bundle import MANIFEST, read_bundle
from augmint.errors import BundleError, DeviceError, RequestError, UnknownLabelError
from augmint.generator import Generator
from augmint.runtime import cuda_driver_present
from augmint.samples import Request, Samples, Source
from tests.tinybundle import write_tiny_bundle

CLASSES = ("cat", "dog", "été 10")


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator(tiny_bundle, device="cpu")


def test_it_is_a_source_and_says_what_it_is(generator: Generator) -> None:
    assert isinstance(generator, Source)
    info = generator.info()
    assert info.class_names == CLASSES
    assert info.image_shape == (8, 8, 1)
    assert (info.device, info.reproducibility, info.tolerance) == ("cpu", "exact", 0)
    assert info.digest == read_bundle(generator._path).digest


def test_an_answer_has_the_requests_order_and_addresses(generator: Generator) -> None:
    samples = generator.generate({"été 10": 2, "cat": 3}, seed=2**64 - 1, offset=5)
    assert samples.images.shape == (5, 8, 8, 1)
    assert samples.images.dtype == np.uint8
    assert samples.label_names == ["été 10"] * 2 + ["cat"] * 3
    assert samples.indices.tolist() == [5, 6, 5, 6, 7]
    assert set(samples.seeds.tolist()) == {2**64 - 1}
    assert samples.requested == samples.delivered == {"été 10": 2, "cat": 3}


addresses = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.sampled_from([1.0, 0.5])),
    min_size=1,
    max_size=150,
)


@given(rows=addresses, order=st.randoms(use_true_random=False), cut=st.integers(0, 150))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_an_address_gives_the_same_bytes_in_any_batch_order_and_split(
    generator: Generator, rows: list[tuple[int, int, int, float]], order: object, cut: int
) -> None:
    def render(subset: list[tuple[int, int, int, float]]) -> np.ndarray:
        if not subset:
            return np.empty((0, 8, 8, 1), np.uint8)
        labels, seeds, indices, shares = zip(*subset, strict=True)
        return generator.render(labels, np.array(seeds, np.uint64), np.array(indices, np.uint64), shares)

    whole = render(rows)
    np.testing.assert_array_equal(np.concatenate([render(rows[:cut]), render(rows[cut:])]), whole)
    np.testing.assert_array_equal(render(rows[-1:]), whole[-1:])
    permutation = list(range(len(rows)))
    order.shuffle(permutation)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(render([rows[i] for i in permutation]), whole[permutation])


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_a_stream_adds_up_to_the_whole(generator: Generator, chunk: int) -> None:
    whole = generator.generate({"dog": 70, "cat": 3}, seed=4)
    parts = list(generator.stream({"dog": 70, "cat": 3}, seed=4, chunk=chunk))
    assert max(map(len, parts)) <= chunk
    joined = Samples.concatenate(parts)
    for name in ("images", "labels", "seeds", "indices"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    assert joined.requested == whole.requested


def test_image_7_of_10_is_image_7_of_1000_and_offsets_continue(generator: Generator) -> None:
    many = generator.generate({"cat": 1000}, seed=9).images
    np.testing.assert_array_equal(generator.generate({"cat": 10}, seed=9).images, many[:10])
    np.testing.assert_array_equal(generator.generate({"cat": 200}, seed=9, offset=800).images, many[800:])


def test_a_seed_left_out_is_picked_and_returned(generator: Generator) -> None:
    first, second = generator.generate({"cat": 1}), generator.generate({"cat": 1})
    assert first.seeds[0] != second.seeds[0]
    again = generator.generate({"cat": 1}, seed=int(first.seeds[0]))
    np.testing.assert_array_equal(first.images, again.images)


def test_threads_share_it(generator: Generator) -> None:
    expected = {seed: generator.generate({"cat": 20, "dog": 20}, seed=seed).images for seed in range(8)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: generator.generate({"cat": 20, "dog": 20}, seed=seed).images, range(8)))
    for seed, images in enumerate(found):
        np.testing.assert_array_equal(images, expected[seed])


def _in_another_process(generator: Generator) -> np.ndarray:
    return generator.generate({"dog": 5}, seed=3).images


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_it_goes_to_other_processes(generator: Generator, method: str) -> None:
    with multiprocessing.get_context(method).Pool(1) as pool:
        images = pool.apply_async(_in_another_process, (generator,)).get(timeout=60)
    np.testing.assert_array_equal(images, _in_another_process(generator))


def test_it_goes_there_from_another_working_directory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    generator = Generator("tiny", device="cpu")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(generator)).digest == generator.digest


def test_it_notices_when_the_bundle_changed_on_the_way(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "b", seed=1)
    pickled = pickle.dumps(Generator(path, device="cpu"))
    for file in path.iterdir():
        file.unlink()
    write_tiny_bundle(path, seed=2)
    with pytest.raises(BundleError, match="changed"):
        pickle.loads(pickled)


def test_an_unconditional_bundle_takes_a_count(tiny_bundle_unconditional: Path) -> None:
    generator = Generator(tiny_bundle_unconditional, device="cpu")
    samples = generator.generate(4, seed=1)
    assert samples.images.shape == (4, 8, 10, 3)
    assert samples.label_names == [""] * 4
    with pytest.raises(RequestError, match="unconditional"):
        generator.generate({"cat": 1})


@pytest.mark.parametrize(
    ("counts", "arguments", "message"),
    [
        ({"bird": 1}, {}, "unknown label 'bird': this bundle has cat, dog"),
        ({10: 1}, {}, "write the label 10 as text"),
        ({"cat": -1}, {}, "whole number"),
        ({"cat": 1.5}, {}, "whole number"),
        ({"cat": True}, {}, "whole number"),
        ({"cat": 0}, {}, "nothing was asked"),
        ({}, {}, "nothing was asked"),
        (5, {}, "by label"),
        ({"cat": 1}, {"seed": -1}, "seed"),
        ({"cat": 1}, {"seed": 2**64}, "seed"),
        ({"cat": 1}, {"seed": 2**70}, "seed"),
        ({"cat": 1}, {"offset": -1}, "offset"),
        ({"cat": 2}, {"offset": 2**64 - 2}, "offset"),
        ({"cat": 1}, {"truncation": 0}, "truncation"),
        ({"cat": 1}, {"truncation": float("nan")}, "truncation"),
        ({"cat": 1}, {"truncation": "1"}, "truncation"),
    ],
)
def test_a_bad_request_meets_one_sentence(
    generator: Generator, counts: object, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        generator.generate(counts, **arguments)  # type: ignore[arg-type]


def test_many_unknown_labels_do_not_hold_up_a_service() -> None:
    names = tuple(f"class{i}" for i in range(5_000))
    began = time.process_time()
    with pytest.raises(UnknownLabelError):
        Request.make({f"{i}": 1 for i in range(50_000)}, names)
    assert time.process_time() - began < 1  # and not 5 s, in which an event loop would answer nobody


def test_an_unknown_label_lists_the_right_ones(generator: Generator) -> None:
    with pytest.raises(UnknownLabelError) as caught:
        generator.generate({"bird": 1})
    assert caught.value.labels == CLASSES


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_never_reaches_the_session(generator: Generator, label: int) -> None:
    with pytest.raises(RequestError, match="labels"):
        generator.render([0, label], 0, [0, 1])


@given(counts=st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any), offset=st.integers(0, 10**9))
def test_addresses_of_parts_are_parts_of_the_addresses(counts: list[int], offset: int) -> None:
    request = Request.make(dict(zip(CLASSES, counts, strict=True)), CLASSES, seed=0, offset=offset)
    labels, indices = request.addresses()
    assert Counter(labels.tolist()) == Counter({i: n for i, n in enumerate(counts) if n})
    for start in range(request.total):
        part_labels, part_indices = request.addresses(start, start + 4)
        np.testing.assert_array_equal(part_labels, labels[start : start + 4])
        np.testing.assert_array_equal(part_indices, indices[start : start + 4])


@pytest.mark.skipif(cuda_driver_present(), reason="this machine has a GPU")
def test_cuda_without_cuda_is_an_error_and_auto_says_what_it_took(tiny_bundle: Path) -> None:
    with pytest.raises(DeviceError, match="CUDA was asked for"):
        Generator(tiny_bundle, device="cuda")
    generator = Generator(tiny_bundle, device="auto")
    assert generator.info().device == "cpu"
    assert "CPU" in generator.remark


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", ""])
def test_an_unknown_device_is_refused(tiny_bundle: Path, device: str) -> None:
    with pytest.raises(DeviceError, match="device must be"):
        Generator(tiny_bundle, device=device)


def test_the_manifest_is_the_last_file_written(tiny_bundle: Path) -> None:
    assert (tiny_bundle / MANIFEST).is_file()
    assert not [path for path in tiny_bundle.parent.iterdir() if path.name.startswith(".")]
