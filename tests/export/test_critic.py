"""A critic that classifies: exported with the names of its classes, and asked by `augmint.Critic`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import augmint
from augmint.bundle import read_bundle
from augmint.bundle_report import inspect_bundle
from augmint.data import load_data
from augmint.errors import BundleError, RequestError, UnknownLabelError
from export import api, gates
from export.api import ExportRequest, export_run
from training.run import load_critic

DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def classifying(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of `sgan` on the built-in digits, and its bundle; the second export is another test's."""
    from training.api import train
    from training.config import TrainRequest

    home = tmp_path_factory.mktemp("sgan")
    settings = {"hidden": 16, "critic_hidden": [32, 16], "labels_per_class": 20}
    request = TrainRequest(
        data="digits",
        family="sgan",
        out=home / "run",
        steps=30,
        evaluate_every=30,
        tensorboard=False,
        settings=settings,
    )
    train(request, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "SecondExport", lambda *_: contextlib.nullcontext())
        patch.setattr(gates, "reproducible", lambda *_: None)
        export_run(ExportRequest(run=home / "run", out=home / "bundle", evaluate="none"))
    return home / "run", home / "bundle"


def test_the_bundle_names_the_critics_classes(classifying: tuple[Path, Path]) -> None:
    _, bundle = classifying
    manifest = read_bundle(bundle).manifest
    assert manifest.class_names == (), "the generator takes none"
    assert manifest.critic_classes == DIGITS
    assert manifest.critic is not None
    assert [(tensor.name, tensor.shape) for tensor in manifest.critic.outputs] == [
        ("realism", ("N",)),
        ("class_logits", ("N", 10)),
    ]
    (entry,) = onnx.load(str(bundle / "critic.onnx")).metadata_props
    assert json.loads(entry.value)["critic_classes"] == list(DIGITS)
    assert "class_logits of 10 classes: 0, 1, 2" in inspect_bundle(bundle).text()
    card = (bundle / "README.md").read_text()
    assert "## The critic is a classifier" in card
    assert "20 labelled images of each class" in card


def test_the_critic_classifies_as_in_training(classifying: tuple[Path, Path]) -> None:
    run, bundle = classifying
    critic = augmint.Critic(bundle)
    assert critic.class_names == DIGITS
    images, labels = load_data("digits").images("test", shape=(8, 8, 1))
    network, _ = load_critic(run)
    with torch.no_grad():
        realism, logits = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    np.testing.assert_allclose(critic.class_logits(images), logits.numpy(), atol=1e-3)
    np.testing.assert_allclose(critic.realism(images), realism.numpy(), atol=1e-3)
    found = critic.classify(images)
    assert found == [DIGITS[i] for i in logits.argmax(1)]
    assert np.mean(np.array(found) == np.array(DIGITS)[labels]) > 0.5, "a tenth is guessing"
    assert critic.class_logits(images[:0]).shape == (0, 10)


def test_the_readme_of_the_bundle_can_be_followed(
    classifying: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bundle = classifying
    monkeypatch.chdir(bundle.parent)
    (block,) = [part for part in (bundle / "README.md").read_text().split("```python\n")[1:] if "Critic" in part]
    names = {"augmint": augmint, "images": np.zeros((3, 8, 8, 1), np.uint8)}
    exec(block.split("```")[0], names)
    assert len(augmint.Critic("bundle").classify(np.zeros((3, 8, 8, 1), np.uint8))) == 3


def test_wrong_questions_are_one_sentence(classifying: tuple[Path, Path], judged_bundle: Path) -> None:
    critic = augmint.Critic(classifying[1])
    for images in (np.zeros((2, 8, 8, 1)), np.zeros((2, 9, 8, 1), np.uint8), np.zeros((8, 8, 1), np.uint8)):
        with pytest.raises(RequestError, match="uint8") as caught:
            critic.realism(images)  # type: ignore[arg-type]
        assert caught.value.code == "request.images"
    # A critic that judges an image as one of a class, and tells none apart.
    other = augmint.Critic(judged_bundle)
    assert (other.class_names, other.needs_labels) == ((), True)
    images = np.zeros((2, *other.manifest.image.shape), np.uint8)
    name = other.manifest.class_names[0]
    assert other.realism(images, [name, name]).shape == (2,)
    with pytest.raises(RequestError, match="label for each"):
        other.realism(images, [name])
    with pytest.raises(UnknownLabelError, match="'none such'"):
        other.realism(images, [name, "none such"])
    with pytest.raises(RequestError, match="--family sgan"):
        other.classify(images, [name, name])


def test_a_bundle_may_have_no_critic(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError) as caught:
        augmint.Critic(tiny_bundle)
    assert caught.value.code == "bundle.no-critic"
