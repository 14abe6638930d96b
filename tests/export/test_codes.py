"""A generator that found its categories without labels: asked by label where that is known, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError

import augmint
from augmint.bundle import Codes, read_bundle
from augmint.bundle_report import inspect_bundle
from augmint.latents import latents
from export import api, networks
from export.api import ExportRequest, export_run
from export.graph import signature
from training import Run, load_critic, load_generator, train
from training.codes import CodeMap
from training.config import TrainRequest

NAMES = tuple("0123456789")
# Eleven categories for ten labels, so that label 0 has two; the others are in no order.
CLUSTERS = ((3, 10), (7,), (1,), (0,), (9,), (2,), (4,), (8,), (5,), (6,))


def with_codes(run: Run, purities: tuple[float, ...]) -> Run:
    """The run as if an examination had found these."""
    codes = CodeMap(CLUSTERS, 11, float(np.mean(purities)), purities, 1258)
    run.save_checkpoint("best", {**run.load_checkpoint("best"), "codes": codes.as_dict()})
    return run


pytestmark = pytest.mark.xdist_group("codes")  # one run, one bundle


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("codes") / "run"
    settings: dict[str, object] = {"width": 8, "hidden": 32, "categories": 11, "latent_dim": 24, "clustering": 1.0}
    request = TrainRequest(
        data="digits", family="infogan", out=out, steps=12, batch=32, tensorboard=False, settings=settings
    )
    return train(request, progress=False)


@pytest.fixture(scope="module")
def bundle(run: Run) -> Path:
    with_codes(run, (0.9, 0.75) + 8 * (1.0,))
    return export_run(ExportRequest(run=run.path, out=run.path.parent / "asked", evaluate="none")).path


def test_each_label_is_drawn_from_its_categories(bundle: Path, run: Run) -> None:
    generator = augmint.Generator(bundle, device="cpu")
    assert generator.info().class_names == NAMES
    samples = generator.generate({"0": 12, "7": 3}, seed=4)
    assert samples.images.shape == (15, 8, 8, 1)
    raw, config = load_generator(run, by_label=False)
    assert config.num_classes == 0
    latent = torch.from_numpy(latents(samples.seeds, samples.indices, config.options.latent_dim))
    for image, given, name in zip(samples.images, latent, samples.labels, strict=True):
        group = list(CLUSTERS[int(name)])
        given[:11] = torch.nn.functional.one_hot(torch.tensor(group[int(given[group].argmax())]), 11) * 9.0
        with torch.no_grad():
            expected = raw(given[None]).add(1).mul(127.5).round().clamp(0, 255).permute(0, 2, 3, 1)[0].numpy()
        assert np.abs(image - expected).max() <= 1


def test_the_bundle_says_where_its_labels_come_from(bundle: Path) -> None:
    codes = read_bundle(bundle).manifest.codes
    assert codes is not None
    assert codes.clusters == dict(zip(NAMES, CLUSTERS, strict=True))
    assert (codes.purity, codes.purities["1"], codes.n) == (pytest.approx(0.965), 0.75, 1258)
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert "found 11 categories by itself" in card
    assert "96.5% of those lie in a category of their own label" in card
    assert "Least pure are those of 1: 75.0%" in card
    assert "purity 0.965 on 1,258 training images, the least 0.750 (1)" in inspect_bundle(bundle).text()


def test_its_critic_and_judges_take_the_labels(bundle: Path, run: Run) -> None:
    manifest = read_bundle(bundle).manifest
    assert manifest.critic is not None
    assert [tensor.name for tensor in manifest.critic.inputs] == ["image", "label"]
    assert manifest.offers == {"labels": "", "realism": "", "copies": ""}
    critic, _ = load_critic(run)
    plain, _ = load_critic(run, by_label=False)
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    label = torch.tensor([0, 1, 2, 3])
    assert (critic(images, label) <= plain(images) + 1e-5).all(), "a log probability was added"


def test_a_label_whose_category_is_mostly_another_leaves_it_unconditional(run: Run) -> None:
    found = networks.load(with_codes(run, (0.9, 0.45) + 8 * (1.0,)).path, "best")
    assert (found.class_names, found.conditional, found.config.num_classes) == ((), False, 0)
    graphs = networks.trace(found, "fp32")
    for part, expected in (("generator", ["latent"]), ("critic", ["image"])):
        inputs, _ = signature(onnx.ModelProto.FromString(graphs[part]))
        assert [tensor.name for tensor in inputs] == expected
    description = api._description(found, ExportRequest(run=run.path, out="unused"), "name", graphs)
    assert (description.class_names, description.codes) == ((), None)
    (warning,) = [text for text in description.evidence.warnings if "cannot be asked by label" in text]
    assert "nearest to '1' only 45% are of it" in warning


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clusters": {"a": (0, 1), "b": (1,)}}, "each category once"),
        ({"clusters": {"a": (0,), "b": (3,)}}, "numbered below categories"),
        ({"clusters": {"a": (0,), "b": ()}}, "at least 1 item"),
        ({"purities": {"a": 1.0}}, "must name the labels"),
        ({"purity": 1.2}, "less than or equal to 1"),
        ({"n": 0}, "greater than or equal to 1"),
        ({"labels": 2}, "Extra inputs"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {
        "categories": 3,
        "clusters": {"a": (0, 2), "b": (1,)},
        "purity": 0.9,
        "purities": {"a": 0.8, "b": 1.0},
        "n": 10,
    }
    assert Codes(**good).kind == "categories"
    with pytest.raises(ValidationError, match=said):
        Codes(**{**good, **change})


def test_codes_and_class_names_are_the_same_labels(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    fields = manifest.model_dump()
    assert fields["codes"]["clusters"].pop("9")
    fields["codes"]["purities"].pop("9")
    with pytest.raises(ValidationError, match=r"codes\.clusters must name the labels"):
        type(manifest).model_validate(fields)
