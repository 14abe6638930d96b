"""Networks, optimisers and counters of one training, and the step that moves them.

The step is the same for every family: k discriminator steps, one generator step, the moving average. `state()` is
everything that the next step depends on besides the configuration and the data, because all randomness is a function of
the step (`training/randomness.py`). This module knows nothing of files, evaluation or time.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from training.averaging import average_decay, average_into
from training.config import TrainConfig
from training.families.base import Batch, Networks
from training.machine import make_fabric
from training.randomness import StepRandom, seed_of
from training.sampling import Sampler

__all__ = ["Trainer"]


class Trainer:
    """Trains on images uint8 [N, C, H, W] with labels int64 [N]: numbers of `config.critic_classes`, -1 where an image
    has none, or all 0 where no network takes any."""

    def __init__(self, config: TrainConfig, images: Tensor, labels: Tensor) -> None:
        self.config = config
        self.family = config.make_family()
        self.fabric: Fabric = make_fabric(config.device, config.precision)
        self.device = self.fabric.device
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.images = images.to(self.device).contiguous(memory_format=self.memory_format)
        self.labels = labels
        drawn = labels if config.num_classes else torch.zeros_like(labels)
        self.sampler = Sampler(drawn, max(config.num_classes, 1), config.options.class_power, pairs=self.family.pairs)
        self.labelled = self._labelled() if self.family.supervised and self.family.critic_classes else None

        torch.manual_seed(seed_of(config.seed, "initial weights"))
        networks = self.family.build()
        networks.generator.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        networks.critic.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        if networks.encoder is not None:
            networks.encoder.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.average = copy.deepcopy(networks.generator).requires_grad_(False)
        generator_optimizer, critic_optimizer = self.family.optimizers(networks)
        self.generator, self.generator_optimizer = self.fabric.setup(networks.generator, generator_optimizer)
        self.critic, self.critic_optimizer = self.fabric.setup(networks.critic, critic_optimizer)
        self.encoder = None if networks.encoder is None else self.fabric.setup_module(networks.encoder)
        self.networks = Networks(self.generator, self.critic, self.encoder)

        self.step = 0
        self.retry = 0
        """Roll-backs so far: the salt of all later randomness."""
        self.sums: dict[str, Tensor] = {}
        """Sums of what the losses report since the last log, kept on the device: reading them makes a GPU wait."""
        self.summed = 0

    def prepare(self) -> dict[str, float]:
        """What the family does before the first step; see `Family.prepare`."""
        plain = Networks(
            self.generator.module, self.critic.module, None if self.encoder is None else self.encoder.module
        )
        return self.family.prepare(plain, self.images, self.labels, seed_of(self.config.seed, "prepare"))

    # -- one step --------------------------------------------------------------------------------------------------

    def train_step(self) -> None:
        """k discriminator steps and one generator step (Goodfellow et al. 2014, algorithm 1)."""
        config, family, options = self.config, self.family, self.config.options
        random = StepRandom(config.seed, self.step, self.retry)
        torch.manual_seed(random.number("dropout"))
        for network in (self.generator, self.critic, self.encoder):
            if network is not None:
                network.train()
        family.schedule(self.generator_optimizer, self.critic_optimizer, self.step, config.steps)
        numbers: dict[str, Tensor] = {}

        # Discriminator: k batches of reals against as many fakes of the same classes.
        for k in range(options.critic_steps):
            random_k = random if k == 0 else StepRandom(random.number(f"critic step {k}"), self.step, self.retry)
            last = k == options.critic_steps - 1
            with torch.set_grad_enabled(last and options.share_fakes):
                batch = self._batch(random_k, "D")
            fake, batch.fake = batch.fake, batch.fake.detach()
            loss, seen = family.d_loss(self.critic, batch)
            numbers["grad_d"] = self._update(self.critic_optimizer, loss)
        numbers |= seen | {"d_loss": loss.detach()}

        # Generator: the same fakes again, or new ones, against the discriminator as it is now.
        self.critic.requires_grad_(False)
        if options.share_fakes:
            batch.fake = fake
        else:
            batch = self._batch(random, "G")
        loss, seen = family.g_loss(self.networks, batch)
        numbers["grad_g"] = self._update(self.generator_optimizer, loss)
        numbers |= seen | {"g_loss": loss.detach()}
        self.critic.requires_grad_(True)

        # The moving average, by images seen.
        decay = average_decay(
            self.step * options.batch, options.batch, half_life=options.ema_half_life, ramp=options.ema_ramp
        )
        average_into(self.average, self.generator.module, decay)
        for name, number in numbers.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + number.float()
        self.summed += 1
        self.step += 1

    def _batch(self, random: StepRandom, purpose: str) -> Batch:
        """Reals and fakes of the same classes; whether fakes carry a graph is the caller's."""
        labels = self.sampler.labels(self.config.options.batch, random, purpose)
        indices = self.sampler.indices(labels, random, purpose)
        real = self.family.widen(self._reals(indices), random.generator("widen reals"))
        label = labels.to(self.device) if self.config.num_classes else None
        latent = self.family.latent(len(labels), random, purpose + " latents").to(self.device)
        fake = self.generator(latent, label)
        batch = Batch(real=real, fake=fake, label=label, random=random, step=self.step, latent=latent)
        if self.labelled is not None and purpose == "D":
            rows, sampler = self.labelled
            labels = sampler.labels(self.config.options.batch, random, "labelled")
            known = self._reals(rows[sampler.indices(labels, random, "labelled")])
            batch.labelled = self.family.widen(known, random.generator("widen labelled")), labels.to(self.device)
        return batch

    def _reals(self, indices: Tensor) -> Tensor:
        """float32 [N, C, H, W] in [-1, 1]."""
        return self.images[indices.to(self.device)].float().div_(127.5).sub_(1)

    def _labelled(self) -> tuple[Tensor, Sampler] | None:
        """Which images have a label that the critic may learn from, int64 [M], and what draws from them."""
        known = self.family.labelled(self.images, self.labels, seed_of(self.config.seed, "labelled"))
        rows = (known >= 0).nonzero()[:, 0]
        return (rows, Sampler(known[rows], self.family.critic_classes, 0.0)) if len(rows) else None

    def _update(self, optimizer: Optimizer, loss: Tensor) -> Tensor:
        """One optimiser step; returns the gradient's norm."""
        optimizer.zero_grad()
        self.fabric.backward(loss)
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        optimizer.step()
        return norm

    # -- what the loop asks ----------------------------------------------------------------------------------------

    def means(self) -> dict[str, float]:
        """Averages since the last `clear_means`: losses, mean logits, gradient norms. Waits for a GPU."""
        if not self.sums:
            return {}
        values = torch.stack(list(self.sums.values())).div(self.summed).tolist()
        return dict(zip(self.sums, values, strict=True))

    def clear_means(self) -> None:
        self.sums, self.summed = {}, 0

    def not_finite(self) -> str | None:
        """The first of losses, gradients and weights that is NaN or infinite, in words; None when all is well.

        A sum keeps a NaN, so nothing is missed between two calls.
        """
        names = {"d_loss": "the discriminator's loss", "g_loss": "the generator's loss"}
        names |= {"grad_d": "the discriminator's gradient", "grad_g": "the generator's gradient"}
        means = self.means()
        for name in (*names, *means):
            if not math.isfinite(means.get(name, 0.0)):
                return names.get(name, name)
        networks = ((self.critic, "a weight of the discriminator"), (self.generator, "a weight of G"))
        for network, name in (
            networks if self.encoder is None else (*networks, (self.encoder, "a weight of the encoder"))
        ):
            if not bool(torch.nn.utils.get_total_norm(list(network.parameters())).isfinite()):
                return name
        return None

    # -- state -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Copies on the CPU, all that `torch.load(weights_only=True)` reads."""
        parts = {
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "average": self.average.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "sums": self.sums,
        }
        if self.encoder is not None:
            parts["encoder"] = self.encoder.state_dict()
        return {"step": self.step, "retry": self.retry, "summed": self.summed, **_copied(parts)}

    def load_state(self, state: dict[str, Any]) -> None:
        state = _copied(state)  # optimisers keep the very tensors they are given
        self.generator.load_state_dict(state["generator"])
        self.critic.load_state_dict(state["critic"])
        self.average.load_state_dict(state["average"])
        if self.encoder is not None:
            self.encoder.load_state_dict(state["encoder"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.step, self.retry, self.summed = state["step"], state["retry"], state["summed"]


def _copied(value: Any) -> Any:
    """Dicts and sequences with every tensor copied to the CPU, strides kept."""
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.preserve_format).cpu()
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(entry) for entry in value)
    return value
