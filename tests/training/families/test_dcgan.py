"""What is particular to DCGAN: its two heads, two upsamplings and spectral norm, its first weights, its latents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from augmint.errors import UsageError
from training.config import options_from
from training.families.base import Batch
from training.families.dcgan import Dcgan, DcganOptions
from training.randomness import StepRandom


@pytest.mark.parametrize("upsampling", ["transposed", "upsample_conv"])
@pytest.mark.parametrize("spectral", [False, True])
def test_variants(upsampling: Any, spectral: bool) -> None:
    options = DcganOptions(width=16, upsampling=upsampling, spectral_norm=spectral)
    family = Dcgan(options, (1, 28, 28), 0)
    networks = family.build()
    real, fake = torch.rand(2, 4, 1, 28, 28) * 2 - 1
    loss, _ = family.d_loss(networks.critic, Batch(real, fake, None, StepRandom(0, 0), 0))
    assert loss.isfinite()
    assert networks.generator(torch.randn(2, 100)).shape == (2, 1, 28, 28)


def test_64_pixels_are_the_papers_networks() -> None:
    """Figure 1: four doublings from 4x4 maps; the critic is the same backwards (section 3)."""
    networks = Dcgan(DcganOptions(), (3, 64, 64), 0).build()
    shapes: dict[str, list[tuple[int, ...]]] = {"generator": [], "critic": []}
    for name, kind in (("generator", torch.nn.ConvTranspose2d), ("critic", torch.nn.Conv2d)):
        for layer in getattr(networks, name).modules():
            if isinstance(layer, kind):
                layer.register_forward_hook(lambda _, x, y, to=shapes[name]: to.append(tuple(y.shape[1:])))
    image = networks.generator(torch.randn(2, 100))
    networks.critic(image)
    assert shapes["generator"] == [(256, 8, 8), (128, 16, 16), (64, 32, 32), (3, 64, 64)]
    assert shapes["critic"] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


@pytest.mark.parametrize("spectral", [False, True])
def test_starts_from_the_papers_weights(spectral: bool) -> None:
    """N(0, 0.02), which spectral normalisation must neither undo nor have estimated its norms before."""
    torch.manual_seed(0)
    critic = Dcgan(DcganOptions(width=32, spectral_norm=spectral), (1, 32, 32), 0).critic()
    weights = [weight.detach() for weight in critic.parameters() if weight.ndim > 1]
    assert len(weights) == 4
    for weight in weights:
        assert float(weight.std()) == pytest.approx(0.02, rel=0.1)
    if spectral:
        norm = torch.linalg.matrix_norm(critic.eval().head.weight.detach(), 2)  # type: ignore[union-attr, arg-type]
        assert float(norm) == pytest.approx(1.0, rel=0.05)


def test_two_logits_are_the_softmax_of_both() -> None:
    """softplus(-(l1 - l0)) is the cross-entropy of [l0, l1] against "real"."""
    critic = Dcgan(DcganOptions(width=16, head="two_logits"), (1, 8, 8), 0).critic().eval()
    image = torch.rand(5, 1, 8, 8)
    features: list[torch.Tensor] = []
    critic.head.register_forward_hook(lambda _, __, output: features.append(output))  # type: ignore[union-attr]
    logit = critic(image)
    expected = torch.nn.functional.cross_entropy(features[0], torch.ones(5, dtype=torch.long))
    torch.testing.assert_close(torch.nn.functional.softplus(-logit).mean(), expected)


def test_two_logits_and_one_differ_in_the_head_only() -> None:
    one = Dcgan(DcganOptions(width=16), (1, 8, 8), 0).critic().state_dict()
    two = Dcgan(replace(DcganOptions(width=16), head="two_logits"), (1, 8, 8), 0).critic().state_dict()
    assert {name for name in one if one[name].shape != two[name].shape} == {"head.weight", "head.bias"}


def test_latents_are_made_uniform() -> None:
    """Figure 1's Z, of the standard normal law that every bundle draws from."""
    torch.manual_seed(0)
    seen: list[torch.Tensor] = []
    for law in ("uniform", "normal"):
        generator = Dcgan(DcganOptions(width=16, latent_law=law), (1, 8, 8), 0).generator()  # type: ignore[arg-type]
        generator.project.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))  # type: ignore[union-attr]
        generator(latent := torch.randn(200, 100, generator=torch.Generator().manual_seed(1)))
    uniform, normal = seen
    assert torch.equal(normal, latent)
    levels = torch.linspace(0.1, 0.9, 9)
    torch.testing.assert_close(torch.quantile(uniform.flatten(), levels), 2 * levels - 1, rtol=0, atol=0.02)
    assert torch.equal(uniform.argsort(0), normal.argsort(0)), "and the order is kept"


def test_odd_sides_are_refused_with_one_that_fits() -> None:
    with pytest.raises(UsageError, match="--resolution 28x32"):
        Dcgan(DcganOptions(), (1, 27, 31), 0)


def test_a_small_budget_chooses_the_presets() -> None:
    small, cpu = (options_from("dcgan", {}, preset=name) for name in ("small", "cpu"))
    assert Dcgan.narrower(DcganOptions()) == (small, cpu)
    assert Dcgan.narrower(DcganOptions(width=32, batch=16)) == (replace(cpu, batch=16),)
    assert Dcgan.narrower(DcganOptions(width=16)) == ()
