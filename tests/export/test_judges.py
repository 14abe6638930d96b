"""What a bundle judges its images by: copies of training images are found, held-out images are not, and gates hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from augmint.bundle import read_bundle
from augmint.data import load_data
from augmint.errors import GateError
from augmint.generator import Generator
from augmint.quality import Quality
from export import gates, judges
from export.api import ExportResult
from export.judges import make_judges
from tests.export.conftest import Traced
from training.config import TrainConfig
from training.run import Run


@pytest.fixture(scope="module")
def generator(exported: ExportResult) -> Generator:
    return Generator(exported.path, device="cpu", threads=1)


@pytest.fixture(scope="module")
def config(run: Path) -> TrainConfig:
    return Run.open(run).config


def test_planted_copies_are_found_and_held_out_images_are_not(generator: Generator) -> None:
    data = load_data("digits")
    copies = Quality(copies=True)

    def share(images: np.ndarray, labels: np.ndarray) -> float:
        return float((generator.judge(images, labels, copies) == 3).mean())

    train, labels = data.images("train", shape=(8, 8, 1))
    assert share(train, labels) == 1.0
    noise = np.random.default_rng(0).integers(-2, 3, train.shape)
    assert share(np.clip(train + noise, 0, 255).astype(np.uint8), labels) > 0.95
    test, labels = data.images("test", shape=(8, 8, 1))
    assert share(test, labels) < 0.05


def test_realism_rejects_about_the_share_that_is_asked_for(generator: Generator) -> None:
    made = generator.generate({"3": 400, "8": 400}, seed=9)
    for asked in (0.1, 0.33, 0.5):
        rejected = generator.judge(made.images, made.labels, Quality(realism=asked)) == 2
        for label in (3, 8):
            assert abs(rejected[made.labels == label].mean() - asked) < 0.12


def test_the_classifier_knows_the_classes(generator: Generator) -> None:
    """Trained for a moment only: still far better than by chance."""
    images, labels = load_data("digits").images("test", shape=(8, 8, 1))
    agreed = generator.judge(images, labels, Quality(labels=True)) == 0
    assert agreed.mean() > 0.5
    assert (generator.judge(images, (labels + 1) % 10, Quality(labels=True)) == 1).mean() > 0.8


def test_the_classifier_says_what_it_is(exported: ExportResult) -> None:
    model = onnx.load(str(exported.path / "classifier.onnx"))
    assert '"part":"classifier"' in model.metadata_props[0].value
    part = read_bundle(exported.path).manifest.quality
    assert part is not None
    assert part.classifier is not None
    assert part.copies is not None
    assert (part.copies.n, part.copies.width) == (read_bundle(exported.path).manifest.data.split["train"], 128)
    assert part.copies.threshold > 0


def test_what_cannot_be_made_is_said(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_judges(
        config,
        None,
        "The data are gone",
        critic=None,
        render=lambda *_: None,
        metadata={},
        copies=True,  # type: ignore[arg-type, return-value]
    )
    assert made.files == {}
    assert made.section.missing == {
        "realism": "its run has no critic",
        "labels": "the data are gone",
        "copies": "the data are gone",
    }


def test_a_judge_whose_scores_depend_on_the_batch_is_refused(critic: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def run(self, names: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.ones(len(feeds["image"]), np.float32) * (1 + 1e-3 * (len(feeds["image"]) > 4))]

    class Opened:
        session = Session()

    monkeypatch.setattr(gates, "open_session", lambda *_, **__: Opened)
    with pytest.raises(GateError) as error:
        gates.alone(b"", {"image": np.zeros((9, 8, 8, 1), np.uint8)}, what="critic")
    assert error.value.code == "export.judge-invariance"
    assert gates.alone(b"", {"image": np.zeros((9, 8, 8, 1), np.uint8)}, what="critic", batches=(2, 4)) == 0


def test_thresholds_have_enough_images_and_not_too_many(config: TrainConfig) -> None:
    labels, images = judges._calibration(config, lambda labels, seeds, indices: np.zeros((len(labels), 8, 8, 1)))  # type: ignore[arg-type, return-value]
    assert len(images) == 4000
    assert np.bincount(labels).tolist() == [400] * 10
