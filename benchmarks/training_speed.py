"""How fast training is: augmint's loop beside the way plain scripts train the very same networks.

    python benchmarks/training_speed.py [--families dcgan,acgan] [--rounds 7] [--seconds 1.5] [--size 32] [--paper]

The plain way is that of the scripts that most people start from (PyTorch-GAN's `dcgan.py` and `acgan.py`, PyTorch's own
`examples/dcgan`), written anew here: eager float32 in NCHW, plain Adam, probabilities and `BCELoss`, the generator's
step and then the discriminator's on the same fakes, gradients of all weights in both steps, `.item()` of the losses and
a line of text each step. Those scripts make one batch of fakes a step and use it twice, so augmint is measured with
`share_fakes`: with that both do the same passes on the same networks (the family's own, at its paper's defaults
but half as wide, or as wide with --paper) and the same number of weight updates. augmint's step has more to do beside:
its random numbers are those of a run that can be resumed exactly, it keeps a moving average of the generator, and it
watches gradients for NaN.

The plain ways differ in where images come from: "tensors" indexes one float tensor, the best that a script can do;
"loader" is a `DataLoader` in the same process over 8-bit pictures that are resized and turned into tensors one by one,
as the scripts have it. "New fakes" makes another batch of fakes for the discriminator, as scripts after algorithm 1 of
Goodfellow et al. 2014 do: one more pass than augmint's here, so not the same work.

All variants take turns, a block of `--seconds` CPU time each in one process on one thread, for `--rounds` rounds after
one that is not counted. Images a CPU second are printed and their ratio to the plain ways in the same round: median,
least and most; wall time too, though a shared machine disturbs it. The lines below tell what each switch is worth, by
turning it off. Results go to stdout, with machine and date.
"""

from __future__ import annotations

import os

# One thread: networks this small gain nothing by two. Before numpy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import datetime
import io
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from augmint.data import load_data  # noqa: E402
from training.config import TrainConfig, options_from  # noqa: E402
from training.families import family  # noqa: E402
from training.trainer import Trainer  # noqa: E402

HALF: Final[dict[str, dict[str, object]]] = {
    "dcgan": {"width": 32, "batch": 64},
    "acgan": {"width": 48, "critic_width": 8, "batch": 64, "noise": 0.0},
}
"""Options that make a step short enough to be measured often."""
Step = Callable[[], None]
PLAIN: Final = ("plain, tensors", "plain, loader", "plain, loader, new fakes")
OURS: Final = "augmint"


# ------------------------------------------------------------------------------------------------ the plain way


class Pictures(Dataset[tuple[Tensor, int]]):
    """Each picture resized and turned into a tensor when it is asked for."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], size: int) -> None:
        self.images, self.labels, self.size = images, labels, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index, :, :, 0])
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        tensor = torch.from_numpy(np.array(image)).view(1, self.size, self.size).float().div(255)
        return tensor.sub_(0.5).div_(0.5), int(self.labels[index])


class Plain:
    """A script's training step. `loader` chooses where images come from, `fresh` makes new fakes for the critic."""

    def __init__(
        self,
        config: TrainConfig,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        loader: bool,
        fresh: bool = False,
    ) -> None:
        self.fresh = fresh
        recipe, options = config.make_family(), cast(Any, config.options)
        self.batch_size, self.latent_dim, self.classes = options.batch, options.latent_dim, config.num_classes
        self.generator, self.critic = recipe.generator(), recipe.critic()
        rate, betas = options.learning_rate, (options.beta1, options.beta2)
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), rate, betas)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), rate, betas)
        self.adversarial, self.auxiliary = nn.BCELoss(), nn.CrossEntropyLoss()
        size = config.image_shape[0]
        pictures = Pictures(images, labels, size)
        self.loader = DataLoader(pictures, batch_size=self.batch_size, shuffle=True, drop_last=True)
        self.batches = iter(self.loader)
        self.reals = None
        if not loader:
            self.reals = torch.stack([pictures[i][0] for i in range(len(pictures))])
            self.labels = torch.from_numpy(labels)
        self.rng, self.out = np.random.default_rng(0), io.StringIO()

    def batch(self) -> tuple[Tensor, Tensor]:
        if self.reals is not None:
            chosen = torch.randint(len(self.reals), (self.batch_size,))
            return self.reals[chosen], self.labels[chosen]
        try:
            images, labels = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            images, labels = next(self.batches)
        return images, labels

    def judge(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The probability of being real [N, 1], and class logits."""
        judged = self.critic(images)
        realism, classes = judged if self.classes else (judged, None)
        return torch.sigmoid(realism).unsqueeze(1), classes

    def step(self) -> None:
        images, labels = self.batch()
        count = len(images)
        valid, fake = torch.ones(count, 1), torch.zeros(count, 1)

        self.generator_optimizer.zero_grad()
        z = torch.from_numpy(self.rng.normal(0, 1, (count, self.latent_dim)).astype(np.float32))
        wanted = torch.from_numpy(self.rng.integers(0, self.classes, count)) if self.classes else None
        made = self.generator(z, wanted)
        validity, classes = self.judge(made)
        g_loss = self.adversarial(validity, valid)
        if classes is not None:
            g_loss = (g_loss + self.auxiliary(classes, wanted)) / 2
        g_loss.backward()
        self.generator_optimizer.step()

        self.critic_optimizer.zero_grad()
        validity, real_classes = self.judge(images)
        real_loss = self.adversarial(validity, valid)
        if self.fresh:
            z = torch.from_numpy(self.rng.normal(0, 1, (count, self.latent_dim)).astype(np.float32))
            made = self.generator(z, wanted)
        validity, fake_classes = self.judge(made.detach())
        fake_loss = self.adversarial(validity, fake)
        accuracy = 0.0
        if real_classes is not None and fake_classes is not None:
            real_loss = (real_loss + self.auxiliary(real_classes, labels)) / 2
            fake_loss = (fake_loss + self.auxiliary(fake_classes, wanted)) / 2
            found = np.concatenate([real_classes.detach().numpy(), fake_classes.detach().numpy()]).argmax(1)
            accuracy = float(np.mean(found == np.concatenate([labels.numpy(), wanted.numpy()])))  # type: ignore[union-attr]
        d_loss = (real_loss + fake_loss) / 2
        d_loss.backward()
        self.critic_optimizer.step()
        self.out.seek(0)
        print(f"[D loss: {d_loss.item():f}, acc: {accuracy:.0%}] [G loss: {g_loss.item():f}]", file=self.out)


# --------------------------------------------------------------------------------------------------- augmint's way


def ours(config: TrainConfig, images: Tensor, labels: Tensor, *, off: str = "") -> Step:
    """augmint's own step, without the part called `off`."""
    changes: dict[str, Any] = {"channels_last": off != "channels last"}
    if off == "(with bfloat16)":
        changes["precision"] = "bf16-mixed"
    if off == "shared fakes":
        changes["options"] = replace(config.options, share_fakes=False)
    trainer = Trainer(replace(config, **changes), images, labels)
    if off == "fused Adam":
        for optimizer in (trainer.generator_optimizer, trainer.critic_optimizer):
            for group in optimizer.param_groups:
                group["fused"], group["foreach"] = False, False
    if off == "frozen critic":
        trainer.critic.requires_grad_ = lambda _: trainer.critic
    if off == "(with torch.compile)":
        trainer.generator.module.compile()
        trainer.critic.module.compile()
    return trainer.train_step


SWITCHES: Final = ("channels last", "fused Adam", "frozen critic", "shared fakes")
EXTRAS: Final = ("(with bfloat16)",)


def variants(name: str, size: int, *, paper: bool, compiled: bool) -> tuple[dict[str, Step], TrainConfig]:
    data = load_data("mnist5k")
    conditional = family(name).conditional
    config = TrainConfig(
        made_with="",
        data=data.spec,
        data_name=data.name,
        data_fingerprint=data.fingerprint,
        skip_bad=False,
        class_names=data.class_names,
        class_counts=tuple(data.counts("train").values()),
        image_shape=(size, size, 1),
        resize="fit",
        family=name,
        options=options_from(name, {"share_fakes": True, **({} if paper else HALF.get(name, {}))}),
        conditional=conditional,
        seed=0,
        steps=1_000_000,
        minutes=None,
        device="cpu",
        precision="32-true",
        threads=1,
        channels_last=True,
        log_every=100,
        evaluate_every=1000,
        score_images=500,
        checkpoint_every=1000,
        tensorboard=False,
    )
    native, labels = data.images("train", shape=data.native_shape())
    resized, _ = data.images("train", shape=(size, size, 1))
    tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(0, 3, 1, 2)))
    numbers = torch.from_numpy(labels)
    steps: dict[str, Step] = {
        PLAIN[0]: Plain(config, native, labels, loader=False).step,
        PLAIN[1]: Plain(config, native, labels, loader=True).step,
        PLAIN[2]: Plain(config, native, labels, loader=True, fresh=True).step,
        OURS: ours(config, tensor, numbers),
    }
    for off in (*SWITCHES, *EXTRAS, *(("(with torch.compile)",) if compiled else ())):
        steps[off] = ours(config, tensor, numbers, off=off)
    return steps, config


# ---------------------------------------------------------------------------------------------------- measuring


def block(step: Step, seconds: float) -> tuple[float, float]:
    """Steps a second of CPU time and of wall time."""
    cpu, wall, steps = time.process_time(), time.perf_counter(), 0
    while time.process_time() - cpu < seconds or steps < 2:
        step()
        steps += 1
    return steps / (time.process_time() - cpu), steps / (time.perf_counter() - wall)


def measure(name: str, size: int, *, rounds: int, seconds: float, paper: bool, compiled: bool) -> None:
    torch.manual_seed(0)
    steps, config = variants(name, size, paper=paper, compiled=compiled)
    batch = config.options.batch
    rates: dict[str, list[tuple[float, float]]] = {variant: [] for variant in steps}
    for number in range(rounds + 1):
        for variant, step in steps.items():
            rate = block(step, seconds if number else seconds / 4)
            if number:  # the first round warms up
                rates[variant].append(rate)
        print(f"{name}: round {number} of {rounds}", file=sys.stderr, flush=True)

    def median(variant: str, which: int) -> float:
        return statistics.median(rate[which] for rate in rates[variant]) * batch

    def ratio(one: str, other: str, which: int = 0) -> str:
        each = [a[which] / b[which] for a, b in zip(rates[one], rates[other], strict=True)]
        return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"

    width = "as wide as" if paper else "half as wide as"
    print(f"\n## {name}, {size}x{size} grey, batch {batch}, networks {width} the paper's\n")
    print(f"{'':28}{'images a CPU s':>16}{'images a s':>12}")
    for variant in (*PLAIN, OURS):
        print(f"{variant:28}{median(variant, 0):16.0f}{median(variant, 1):12.0f}")
    for plain in PLAIN:
        print(f"augmint / {plain}: {ratio(OURS, plain)} by CPU time, {ratio(OURS, plain, 1)} by wall time")
    print("\nwhat augmint gains by (augmint / augmint without it, by CPU time):")
    for off in (variant for variant in steps if variant not in (*PLAIN, OURS)):
        print(f"  {off:26}{ratio(off, OURS) if off.startswith('(') else ratio(OURS, off)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="dcgan,acgan")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of CPU time, for each block")
    parser.add_argument("--size", type=int, default=32, help="of the images, pixels a side")
    parser.add_argument("--paper", action="store_true", help="networks and batches of the paper's size")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which needs a C++ compiler")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    now = datetime.datetime.now(datetime.UTC)
    print(f"{now:%Y-%m-%d}, {platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread")
    for name in arguments.families.split(","):
        measure(
            name,
            arguments.size,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            paper=arguments.paper,
            compiled=arguments.compile,
        )


if __name__ == "__main__":
    main()
