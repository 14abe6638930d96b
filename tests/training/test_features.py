"""The critic's features, of every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from augmint.cli import main
from augmint.data import load_data
from augmint.errors import TrainingError, UsageError
from tests.training.test_families import every_family, small
from training import Run, load_critic
from training.families.base import Family
from training.families.dcgan import Critic, DcganOptions
from training.features import critic_features, feature_layers, run_features

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 16, 12, 3), dtype=np.uint8)


@every_family
@pytest.mark.parametrize("classes", [0, 3])
def test_every_familys_critic_has_features(kind: type[Family[Any]], classes: int) -> None:
    recipe = small(kind, (3, 16, 12), classes)
    critic = recipe.critic().eval()
    features, layers = critic_features(critic, IMAGES, recipe.num_classes)
    assert features.shape == (7, sum(layer.width for layer in layers))
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert features.std(0).max() > 0, "different images have different features"
    one, _ = critic_features(critic, IMAGES[2:3], recipe.num_classes)
    np.testing.assert_allclose(one, features[2:3], rtol=1e-4, atol=1e-5)
    last = layers[-1]
    some, [taken] = critic_features(critic, IMAGES, recipe.num_classes, layers=[last.name])
    assert taken == last
    np.testing.assert_array_equal(some, features[:, -last.width :])


def test_dcgans_features_are_its_layers_pooled_to_4x4() -> None:
    critic = Critic(DcganOptions(width=8), (1, 28, 28)).eval()
    images = np.random.default_rng(1).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)
    features, layers = critic_features(critic, images)
    assert [(layer.name, layer.shape, layer.width) for layer in layers] == [
        ("layers.0", (8, 14, 14), 8 * 16),
        ("layers.2", (16, 7, 7), 16 * 16),
    ]
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        first = F.leaky_relu(critic.layers[0](x), 0.2)
        second = critic.layers(x)
    expected = torch.cat([F.adaptive_max_pool2d(maps, 4).flatten(1) for maps in (first, second)], 1)
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-5, atol=1e-5)


class _Labelled(nn.Module):
    """The label joins before the second layer; `skipped` has no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.of_label = nn.Embedding(3, 6)
        self.second = nn.Linear(12, 5)
        self.head = nn.Linear(5, 1)

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        x = torch.cat([torch.relu(self.first(image.flatten(1))), self.of_label(label)], 1)
        return self.head(torch.relu(self.second(x))).squeeze(1)


class _Auto(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ELU(), nn.Flatten(), nn.Linear(4, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 4), nn.ELU())

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return (self.decoder(self.encoder(image)) - image.flatten(1)).square().mean(1)


class _Nothing(nn.Module):
    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return image.mean((1, 2, 3))


def test_which_layers_count() -> None:
    assert feature_layers(_Labelled().eval(), (1, 2, 2), 3) == ("first",)
    assert feature_layers(_Auto().eval(), (1, 2, 2)) == ("encoder.0", "encoder.3")
    with pytest.raises(TrainingError, match="no convolution or dense layer"):
        critic_features(_Nothing(), np.zeros((1, 8, 8, 1), np.uint8))


def test_the_verb_writes_an_npz(
    tiny_run: Run, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "x.npz"
    with pytest.raises(SystemExit) as end:
        main(["features", str(tiny_run.path), str(tiny_data), "--out", str(out), "--json"])
    assert not end.value.code
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["which"], document["class_names"]) == (180, "best", ["bar", "blob", "cross"])
    data = load_data(tiny_data)
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["features"].shape == (180, document["features"])
        assert arrays["features"].dtype == np.float32
        np.testing.assert_array_equal(arrays["labels"], data.labels)
        assert tuple(arrays["names"]) == data.names
        assert [list(arrays["splits"]).count(name) for name in ("train", "validation", "test")] == [
            sum(data.counts(name).values()) for name in ("train", "validation", "test")
        ]
        assert list(arrays["layers"]) == [layer["name"] for layer in document["layers"]]
        images, _ = data.images("test", shape=tiny_run.config.image_shape)
        critic, config = load_critic(tiny_run)
        expected, _ = critic_features(critic, images, config.num_classes)
        np.testing.assert_array_equal(arrays["features"][arrays["splits"] == "test"], expected)
    for words, code, said in (
        (["--out", str(out)], 1, "is there already"),
        (["--out", "x.txt"], 2, ".npz"),
        (["--layer", "nonsense"], 2, "layers.0"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["features", str(tiny_run.path), str(tiny_data), *words])
        assert end.value.code == code
        assert said in capsys.readouterr().err


def test_errors_of_a_run(tiny_run: Run, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no run directory"):
        run_features(tmp_path, tiny_data)
    with pytest.raises(UsageError, match="there is no layer"):
        run_features(tiny_run, tiny_data, layers=["realism"])
