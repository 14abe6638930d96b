"""What a family of GANs must declare so that the one loop can train it.

A family is one file: its networks, its losses and its paper's defaults with the source of each number. It knows
nothing of data sets, checkpoints, devices or precision; the loop (`training/loop.py`) knows nothing of losses. A new
family is one file here and one line in `families/__init__.py`.

Conventions shared by all networks, which `export/` relies on:

- generator: ``forward(latent float32 [N, Z], label int64 [N] | None) -> float32 [N, C, H, W] in [-1, 1]``
- critic: ``forward(image float32 [N, C, H, W] in [-1, 1], label int64 [N] | None) -> float32 [N]``, a realism logit:
  the larger, the more real; or a pair of that and class logits float32 [N, K], for critics that classify. In eval mode
  each image is judged alone.
- the label is given when ``num_classes > 0`` and is None otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Generic, TypeVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.optim import Optimizer

from augmint.errors import UsageError
from training.randomness import StepRandom

__all__ = ["Batch", "Count", "Family", "FamilyOptions", "Losses", "Networks", "NonNegative", "Positive", "Share"]

# Bounds in the annotations: they check `--set key=value` and config.json alike.
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class FamilyOptions:
    """What every family has. A family's own dataclass adds fields and sets its paper's defaults."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    latent_dim: Count = 100
    batch: Count = 64
    critic_steps: Count = 1
    """Discriminator steps for each generator step: k in Goodfellow et al. 2014, algorithm 1."""
    share_fakes: bool = False
    """The generator's step reuses the fakes of the last discriminator step: saves a forward pass of the generator."""
    class_power: Share = 0.0
    """Conditional families draw class c with p ∝ n_c ** class_power: 0 balanced, 0.5 tempered, 1 as the data are."""
    ema_half_life: NonNegative = 5000.0
    """Half-life of the weights' moving average, in images seen. 0 turns it off."""
    ema_ramp: Positive = 0.05
    """The half-life is never more than this share of the images seen so far (StyleGAN2-ADA's `ema_rampup`)."""


@dataclass
class Batch:
    """One step's images, as losses see them: float32 [N, C, H, W] in [-1, 1], in pairs where the family asks.

    `real` is as `Family.widen` leaves it. `fake` carries the generator's graph in `g_loss` and is detached in `d_loss`.
    `label` is None when unconditional; reals and fakes have the same labels, hence the same law. `labelled`, in the
    `d_loss` of `supervised` families, are other reals, of each class alike many, with their class numbers int64 [N].
    """

    real: Tensor
    fake: Tensor
    label: Tensor | None
    random: StepRandom
    step: int
    labelled: tuple[Tensor, Tensor] | None = None
    latent: Tensor | None = None
    """What the fakes were made from, float32 [N, Z]."""


@dataclass
class Networks:
    """`encoder`, for families that have one, helps the generator learn and is then left behind: image float32
    [N, C, H, W], label int64 [N] | None -> mean and log variance of the latent, float32 [N, Z] each. The generator's
    optimiser moves it too.
    """

    generator: nn.Module
    critic: nn.Module
    encoder: nn.Module | None = None


OptionsT = TypeVar("OptionsT", bound=FamilyOptions)
Losses = tuple[Tensor, dict[str, Tensor]]
"""A scalar loss with its graph, and scalars to log without one. `d_real` and `d_fake` (mean logits) are expected."""


class Family(ABC, Generic[OptionsT]):
    """One GAN of the literature, set up for one image shape and number of classes.

    `image_shape` is (C, H, W). `num_classes` is 0 for an unconditional generator.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for `augmint families`."""
    when: ClassVar[str] = ""
    """When to choose it, for somebody who has to: half a sentence."""
    paper: ClassVar[str]
    conditional: ClassVar[bool]
    """True: uses labels where there are some. False: ignores them."""
    supervised: ClassVar[bool] = False
    """True: the critic learns the labels although the generator takes none. A critic that classifies well then chooses
    the best checkpoint, and images of a class called "unlabelled" count as having no label."""
    logistic: ClassVar[bool] = True
    """Whether the discriminator's loss near 0 means that it tells reals from fakes with certainty, as a logistic loss
    does: the health check then warns."""
    finds_categories: ClassVar[bool] = False
    """True: sorts images into categories of its own without labels, and `categories` and the three methods after it
    are there. Which label each category is, is found after training (`training/codes.py`)."""
    Options: ClassVar[type[FamilyOptions]]
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    """Sets of options by name, beside the paper's, which are the defaults: what `--preset` chooses from, and `--set`
    changes further. A preset says where its numbers come from."""
    pairs: ClassVar[bool] = False
    """Whether images 2i and 2i + 1 of a batch must be two of one class, for critics that compare them."""
    enough_steps: ClassVar[int] = 1500
    """Fewer steps than this are hardly worth a wide network: `fit` narrows instead, where the family can."""
    most_epochs: ClassVar[float] = 4000.0
    """`fit` plans no more passes over the training images than this; a long budget on few images ends early."""

    def __init__(self, options: OptionsT, image_shape: tuple[int, int, int], num_classes: int) -> None:
        self.check_shape(image_shape)
        if self.pairs and options.batch % 2:
            raise UsageError(f"family {self.name!r} takes images in pairs: --batch must be even, not {options.batch}.")
        self.options = options
        self.image_shape = image_shape
        self.num_classes = num_classes if self.conditional else 0
        """Classes that the generator takes: 0 when unconditional."""
        self.critic_classes = num_classes if self.conditional or self.supervised else 0

    # -- what it can do --------------------------------------------------------------------------------------------

    @classmethod
    def check_shape(cls, image_shape: tuple[int, int, int]) -> None:
        """Raises UsageError, with a resolution that would do, when the family cannot make (C, H, W) images."""
        _, height, width = image_shape
        if min(height, width) < 8 or max(height, width) > 256:
            raise UsageError(
                f"family {cls.name!r} makes images from 8 to 256 pixels a side, not {height}x{width}: "
                "choose another size with --resolution, such as --resolution 32."
            )

    # -- networks --------------------------------------------------------------------------------------------------

    @abstractmethod
    def generator(self) -> nn.Module:
        """A new generator, initialised from torch's global generator."""

    @abstractmethod
    def critic(self) -> nn.Module:
        """A new critic (discriminator), initialised from torch's global generator."""

    def build(self) -> Networks:
        return Networks(self.generator(), self.critic())

    @abstractmethod
    def optimizers(self, networks: Networks) -> tuple[Optimizer, Optimizer]:
        """The generator's and the critic's optimiser."""

    def schedule(self, generator: Optimizer, critic: Optimizer, step: int, steps: int) -> None:
        """Sets learning rates and the like for `step` of `steps`. It must depend on nothing else: that makes a
        resumed run exact. By default nothing changes."""

    def prepare(self, networks: Networks, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
        """Called once, before the first step of a training, with all training images uint8 [N, C, H, W] and their
        labels int64 [N], such as for pre-training the critic. Returns what is to be said of it. All randomness comes
        from `seed` (`training.randomness.seed_of`). By default nothing happens."""
        return {}

    def convergence(self, critic: nn.Module) -> float | None:
        """The family's own measure of how far a training is, the lower the better, read from the critic's buffers.
        Where there is one, it chooses the best checkpoint. By default None: the validation score does."""
        return None

    def labelled(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        """For `supervised` families: the labels that the critic may learn from, int64 [N], -1 for the rest, of all
        training images uint8 [N, C, H, W] with `labels` int64 [N], -1 where there is none. By default all there are."""
        return labels

    # -- categories of its own -------------------------------------------------------------------------------------

    @property
    def categories(self) -> int:
        """How many there are."""
        raise NotImplementedError(f"family {self.name!r} finds no categories")

    def categories_of(self, critic: nn.Module, images: Tensor) -> Tensor:
        """The category that the critic puts each image into, float32 [N, C, H, W] in [-1, 1] -> int64 [N]."""
        raise NotImplementedError(f"family {self.name!r} finds no categories")

    def generator_by_label(self, generator: nn.Module, members: Tensor) -> nn.Module:
        """A generator that takes labels, of one that takes none: `members` bool [L, K] says which of the K categories
        are those of each label."""
        raise NotImplementedError(f"family {self.name!r} finds no categories")

    def critic_by_label(self, critic: nn.Module, members: Tensor) -> nn.Module:
        """A critic that takes labels, likewise: the larger, the more real as an image of that label."""
        raise NotImplementedError(f"family {self.name!r} finds no categories")

    # -- losses ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def d_loss(self, critic: nn.Module, batch: Batch) -> Losses:
        """The discriminator's loss."""

    @abstractmethod
    def g_loss(self, networks: Networks, batch: Batch) -> Losses:
        """The generator's loss, and the encoder's; the critic is frozen."""

    def widen(self, reals: Tensor, generator: torch.Generator) -> Tensor:
        """Reals as the generator is meant to learn them, changed on purpose. Default: as they are."""
        return reals

    def augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What the critic sees of reals and fakes, which should not show in the samples. Default: as they are.

        The health check for leaks compares samples with `widen(reals)` before and after `augment`.
        """
        return images

    def latent(self, count: int, random: StepRandom, purpose: str) -> Tensor:
        """Standard normal latents float32 [count, latent_dim], the law that the exported bundle samples from."""
        return torch.randn(count, self.options.latent_dim, generator=random.generator(purpose))

    # -- a time budget ---------------------------------------------------------------------------------------------

    @classmethod
    def narrower(cls, options: OptionsT) -> tuple[OptionsT, ...]:
        """Cheaper versions of `options`, dearest first, that a small time budget may choose from."""
        return ()

    @classmethod
    def fit(
        cls,
        versions: Sequence[OptionsT],
        *,
        steps_per_second: Callable[[OptionsT], float],
        seconds: float,
        images: int,
    ) -> tuple[OptionsT, int]:
        """Which of `versions` (dearest first) to train, and for how many steps, in `seconds` on `images` images.

        The dearest that gets `enough_steps`, else the cheapest. `steps_per_second` measures, at some cost, so it is
        asked from the cheapest upwards and no further than needed.
        """
        best, steps = versions[-1], steps_per_second(versions[-1]) * seconds
        for dearer in reversed(versions[:-1]):
            if steps < cls.enough_steps or (more := steps_per_second(dearer) * seconds) < cls.enough_steps:
                break
            best, steps = dearer, more
        most = max(cls.enough_steps, cls.most_epochs * images / best.batch)
        return best, max(1, int(min(steps, most)))
