"""The generator whose weights are a moving average: the one that is evaluated, kept and exported.

This module knows weights and batch norm, and nothing of losses, data or files.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from augmint.latents import latents

__all__ = ["CALIBRATION_IMAGES", "average_decay", "average_into", "calibration_batches", "recalibrate_batch_norm"]


def average_decay(images_seen: int, batch: int, *, half_life: float, ramp: float) -> float:
    """The decay of a step of `batch` images after `images_seen` others: β = 0.5 ** (batch / half-life).

    The half-life grows with the images seen (`ramp` times their number) up to `half_life`, so a short run is not an
    average of its own beginning (Karras et al. 2020, StyleGAN2-ADA's `ema_rampup`). 0 means no averaging.
    """
    life = min(half_life, ramp * (images_seen + batch))
    return 0.5 ** (batch / life) if life > 0 else 0.0


@torch.no_grad()
def average_into(average: nn.Module, live: nn.Module, decay: float) -> None:
    """average ← decay·average + (1 - decay)·live for parameters; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), 1 - decay)
    for kept, new in zip(average.buffers(), live.buffers(), strict=True):
        kept.copy_(new)


@torch.no_grad()
def recalibrate_batch_norm(generator: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]]) -> nn.Module:
    """A copy of `generator` in eval mode whose batch-norm statistics are those of its own outputs.

    Averaged weights have never seen the statistics that live weights collected: with those, colours and contrast drift.
    The copy's statistics are the plain mean over `batches` of (latent, label). The original is not touched.
    """
    calibrated = copy.deepcopy(generator)
    norms = [module for module in calibrated.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        calibrated.eval()  # without dropout, as images will be made
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for a cumulative average
            norm.train()
        for latent, label in batches:
            calibrated(latent, label)
    return calibrated.eval()


CALIBRATION_IMAGES = 512
CALIBRATION_SEED = 0x5EED_BA7C
"""Calibration has its own addresses, so that no sheet or score is drawn from them."""


def calibration_batches(
    latent_dim: int, num_classes: int, *, device: torch.device | str = "cpu"
) -> Iterable[tuple[Tensor, Tensor | None]]:
    """Always the same (latent [128, Z], label [128] | None): all classes in turn, as balanced training saw them."""
    for index in np.arange(CALIBRATION_IMAGES).reshape(-1, 128):
        latent = torch.from_numpy(latents(CALIBRATION_SEED, index, latent_dim)).to(device)
        yield latent, torch.from_numpy(index % num_classes).to(device) if num_classes else None
