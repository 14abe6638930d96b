from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from augmint.errors import DataError, UsageError
from evaluation.cache import Cache
from evaluation.extractors import EXTRACTORS, open_extractor
from evaluation.prdc import prdc

RED, GREEN, BLUE = (220, 40, 40), (40, 200, 60), (50, 70, 220)


def stripes(n: int, colours: list[tuple[int, int, int]], seed: int) -> NDArray[np.uint8]:
    """Slanted stripes of one colour on a dark ground, 32×32."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    images = np.empty((n, 32, 32, 3), np.uint8)
    for image in images:
        colour = np.array(colours[rng.integers(len(colours))]) + rng.normal(0, 12, 3)
        angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(0.6, 1.1), rng.uniform(0, 2 * np.pi)
        lit = np.sin((x * np.cos(angle) + y * np.sin(angle)) * frequency + phase) > 0
        ground = rng.uniform(20, 50)
        image[:] = (np.where(lit[..., None], colour, ground) + rng.normal(0, 6, (32, 32, 1))).clip(0, 255)
    return images


@pytest.fixture(scope="module")
def train() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images = np.concatenate([stripes(40, [RED, GREEN, BLUE], 1), 255 - stripes(40, [RED, GREEN, BLUE], 2)])
    return images, np.repeat([0, 1], 40)


@pytest.mark.parametrize("spec", ["efficientnet-lite0", "pixels"])
def test_a_collapse_in_colour_alone_is_seen(spec: str, train: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    extractor = open_extractor(spec, train=train, num_classes=2)
    reals = extractor.features(stripes(50, [RED, GREEN, BLUE], 3))
    good = prdc(reals, extractor.features(stripes(50, [RED, GREEN, BLUE], 4)))
    all_red = prdc(reals, extractor.features(stripes(50, [RED], 5)))
    assert good.recall is not None
    assert good.coverage is not None
    assert all_red.recall is not None
    assert all_red.coverage is not None
    assert good.recall > 0.75
    assert good.coverage > 0.85
    assert all_red.recall < good.recall - 0.2
    assert all_red.coverage < 0.6


@pytest.mark.parametrize("spec", EXTRACTORS)
def test_rows_are_of_their_own_image_alone(spec: str, train: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    extractor = open_extractor(spec, train=train, num_classes=2, steps=5)
    images = train[0][:6]
    features = extractor.features(images)
    assert features.dtype == np.float32
    assert np.allclose(extractor.features(images[2:4][::-1]), features[2:4][::-1], atol=1e-3)
    assert extractor.features(images[:0]).shape == (0, features.shape[1])
    assert extractor.name


def test_efficientnet_takes_grey_of_any_size_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    before = torch.random.get_rng_state()
    extractor = open_extractor("efficientnet-lite0")
    grey = np.random.default_rng(0).integers(0, 256, (2, 20, 31, 1), dtype=np.uint8)
    features = extractor.features(grey)
    assert features.shape == (2, 1280)
    assert np.allclose(extractor.features(grey.repeat(3, axis=3)), features, atol=1e-4)
    assert "96×96" in extractor.name
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_features_are_remembered_by_content(tmp_path: Path, train: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    images, labels = train
    seen: list[tuple[int, int]] = []

    def tell(done: int, total: int, what: str) -> None:
        assert "small CNN" in what
        seen.append((done, total))

    def extract(some: NDArray[np.uint8], steps: int = 5, labels: NDArray[np.int64] = labels) -> NDArray[np.float32]:
        extractor = open_extractor(
            "classifier", train=(images, labels), num_classes=2, steps=steps, cache=Cache(tmp_path), progress=tell
        )
        return extractor.features(some)

    first = extract(images[:7])
    assert seen == [(7, 7)]
    assert np.array_equal(extract(images[:7]), first)
    assert seen == [(7, 7)]
    extract(images[:8])
    extract(images[:7], steps=6)
    extract(images[:7], labels=1 - labels)
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("inception", "There is no extractor 'inception': choose efficientnet-lite0, classifier, pixels"),
        ("model.h5", "There is no extractor 'model.h5'"),
        ("missing.onnx", r"missing\.onnx cannot be read \(No such file"),
        ("missing.pt", r"missing\.pt cannot be read"),
        ("classifier", "is made from the train split"),
        ("pixels", "is made from the train split"),
    ],
)
def test_what_cannot_be_opened(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_extractor(spec)


def test_a_classifier_needs_two_classes() -> None:
    with pytest.raises(UsageError, match="2 classes"):
        open_extractor("classifier", train=(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int64)), num_classes=1)


# --- the user's own ---------------------------------------------------------------------------------------------------


def write_onnx(path: Path, shape: list[int | str], kind: int = TensorProto.FLOAT, *, pool: bool = True) -> Path:
    """The mean over height and width: of each channel, or of the whole picture if not `pool`."""
    channels_first = shape[1] in (1, 3)
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3] if channels_first else [1, 2])
    if pool:
        nodes.append(helper.make_node("ReduceMean", ["f", "axes"], ["features"], keepdims=0))
    else:
        nodes.append(helper.make_node("Identity", ["f"], ["features"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)],
        [axes] if pool else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


COLOUR = np.full((5, 12, 12, 3), (200, 100, 50), np.uint8)


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        (["N", 3, 8, 8], TensorProto.FLOAT, [200 / 255, 100 / 255, 50 / 255]),
        (["N", 3, "H", "W"], TensorProto.UINT8, [200, 100, 50]),
        (["N", 16, 16, 3], TensorProto.FLOAT16, [200 / 255, 100 / 255, 50 / 255]),
        ([2, 1, 8, 8], TensorProto.UINT8, [124]),
    ],
)
def test_onnx_models_get_what_they_ask_for(
    shape: list[int | str], kind: int, expected: list[float], tmp_path: Path
) -> None:
    extractor = open_extractor(write_onnx(tmp_path / "mine.onnx", shape, kind))
    assert np.allclose(extractor.features(COLOUR), [expected] * 5, atol=1e-3)
    assert extractor.name.startswith("mine.onnx (ONNX, sha256 ")


def test_onnx_feature_maps_are_averaged(tmp_path: Path) -> None:
    extractor = open_extractor(write_onnx(tmp_path / "map.onnx", ["N", 3, 4, 4], pool=False))
    assert np.allclose(extractor.features(COLOUR), [[200 / 255, 100 / 255, 50 / 255]] * 5)


def test_onnx_models_that_cannot_be_used(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"broken\.onnx cannot be opened"):
        open_extractor(broken)
    with pytest.raises(DataError, match="one input of 4 dimensions"):
        open_extractor(write_onnx(tmp_path / "flat.onnx", ["N", 10], pool=False))
    with pytest.raises(DataError, match="images of 7 channels"):
        open_extractor(write_onnx(tmp_path / "seven.onnx", ["N", 7, 4, 4], pool=False))


class _Means(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert images.dtype == torch.uint8
        means = images.float().mean((2, 3))
        return means if return_features else means[:, :1]


class _Picky(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(images.shape[0], 3) @ torch.zeros(images.shape[2], 4)


def test_torchscript_is_called_as_the_inception_file_is(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        torch.jit.script(_Means()).save(str(tmp_path / "means.pt"))
        torch.jit.script(_Picky()).save(str(tmp_path / "picky.pt"))
    extractor = open_extractor(tmp_path / "means.pt")
    assert np.allclose(extractor.features(COLOUR), [[200, 100, 50]] * 5)
    assert extractor.name.startswith("means.pt (TorchScript, sha256 ")
    with pytest.raises(DataError, match=r"picky\.pt cannot take uint8 images \[5, 3, 12, 12\]"):
        open_extractor(tmp_path / "picky.pt").features(COLOUR)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    for name in ("bomb.pt", "weights.pth"):
        with pytest.raises(DataError, match="is no TorchScript file"):
            open_extractor(tmp_path / name)
    assert not marker.exists()
