"""What a family is made of: its networks layer by layer, its options and optimisers, in words and figures.

Everything is read off real networks and a real forward pass (`training/tracing.py`), so it is never out of date; the
words on losses are the docstrings of the family's own `d_loss` and `g_loss`. `training/drawing.py` makes the picture.
This module knows nothing of how a description is shown, but for `text`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from augmint.errors import UsageError
from evaluation.tables import fixed_width
from training.config import PAPER, options_from
from training.families import family
from training.families.base import Family
from training.tracing import Layer, holders, trace, weights_of

__all__ = ["Description", "LayerRow", "NetworkTable", "OptionRow", "describe"]

Reads = Literal["input", "label", "both"]


@dataclass(frozen=True)
class LayerRow:
    """`what` is the layer in words, such as "conv 4×4 /2", and `then` what follows it. `shape` is one image's output:
    (C, H, W) or (F,), or () where the layer is used in training alone. `reads` says what the output depends on: the
    network's input (image or latent), the label, or both; `follows` names the layer whose output alone it is given."""

    name: str
    what: str
    then: tuple[str, ...]
    shape: tuple[int, ...]
    parameters: int
    reads: Reads
    follows: str | None = None


@dataclass(frozen=True)
class NetworkTable:
    """`part` is "generator", "critic" or "encoder"."""

    part: str
    takes: str
    gives: str
    layers: tuple[LayerRow, ...]
    parameters: int


@dataclass(frozen=True)
class OptionRow:
    name: str
    value: object
    default: object

    @property
    def changed(self) -> bool:
        return self.value != self.default


@dataclass(frozen=True)
class Description:
    """`image_shape` is (C, H, W); `classes` those the generator takes, `critic_classes` those the critic knows."""

    family: str
    summary: str
    when: str
    paper: str
    preset: str
    image_shape: tuple[int, int, int]
    classes: int
    critic_classes: int
    latent_dim: int
    batch: int
    networks: tuple[NetworkTable, ...]
    losses: Mapping[str, str]
    optimisers: Mapping[str, str]
    flow: tuple[str, ...]
    options: tuple[OptionRow, ...]

    def network(self, part: str) -> NetworkTable | None:
        return next((table for table in self.networks if table.part == part), None)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "losses": dict(self.losses),
            "optimisers": dict(self.optimisers),
            "options": [{**asdict(option), "changed": option.changed} for option in self.options],
        }

    def text(self) -> str:
        """For a terminal."""
        channels, height, width = self.image_shape
        labels = f"{self.classes} classes" if self.classes else "no classes"
        lines = [
            f"{self.family}: {self.summary}",
            f"paper    {self.paper}",
            *([f"when     {self.when}"] if self.when else []),
            f"here     preset {self.preset}; {height}×{width}, {'colour' if channels == 3 else 'grey'}; {labels}",
        ]
        for table in self.networks:
            lines += ["", f"{table.part}: {table.takes} → {table.gives}; {table.parameters:,} parameters"]
            rows = [["layer", "what", "then", "output", "parameters"]]
            for row in table.layers:
                shape = "×".join(map(str, row.shape)) or "in training alone"
                mark = " (label)" if row.reads == "label" else ""
                rows.append([row.name, row.what + mark, ", ".join(row.then), shape, f"{row.parameters:,}"])
            lines += [f"  {line}" for line in _last_right(rows)]
        lines += ["", "flow"]
        lines += [f"  {number}. {step}" for number, step in enumerate(self.flow, start=1)]
        if self.losses:
            lines += ["", "losses", *(f"  {name:<9}  {words}" for name, words in self.losses.items())]
        lines += ["", "optimisers", *(f"  {name:<9}  {words}" for name, words in self.optimisers.items())]
        lines += ["", "options (* differs from the paper's)"]
        lines += [
            f"  {line}"
            for line in fixed_width(
                [
                    [
                        f"{'*' if option.changed else ' '} {option.name}",
                        _value(option.value),
                        f"paper: {_value(option.default)}" if option.changed else "",
                    ]
                    for option in self.options
                ],
                right=False,
            )
        ]
        return "\n".join(lines)


def describe(
    name: str,
    *,
    preset: str | None = None,
    settings: Mapping[str, object] | None = None,
    image_shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
) -> Description:
    """Family `name` for images of `image_shape` (C, H, W) and data of `classes` classes (0: without labels).

    Raises:
        UsageError: there is no such family, preset or option, or the family cannot make such images.
    """
    if classes < 0 or classes == 1:
        raise UsageError(f"--classes {classes}: give 2 or more, or 0 for images without labels.")
    kind = family(name)
    options = options_from(name, settings or {}, preset=preset)
    paper = options_from(name, {})
    recipe = kind(options, image_shape, classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = recipe.build()
        generator_optimiser, critic_optimiser = recipe.optimizers(networks)
        images = torch.rand(2, 2, *image_shape) * 2 - 1
        latents = torch.randn(2, 2, options.latent_dim)
        tables = [
            _table("generator", networks.generator, latents, recipe),
            _table("critic", networks.critic, images, recipe),
        ]
        if networks.encoder is not None:
            tables.append(_table("encoder", networks.encoder, images, recipe))
    return Description(
        family=name,
        summary=kind.summary,
        when=kind.when,
        paper=kind.paper,
        preset=preset or PAPER,
        image_shape=image_shape,
        classes=recipe.num_classes,
        critic_classes=recipe.critic_classes,
        latent_dim=options.latent_dim,
        batch=options.batch,
        networks=tuple(tables),
        losses={
            part: words
            for part, function, base in (
                ("critic", kind.d_loss, Family.d_loss),
                ("generator", kind.g_loss, Family.g_loss),
            )
            if function is not base and (words := _words(function))
        },
        optimisers={
            "generator": _optimiser(generator_optimiser),
            "critic": _optimiser(critic_optimiser),
        },
        flow=tuple(_flow(recipe, networks.encoder is not None)),
        options=tuple(
            OptionRow(entry.name, getattr(options, entry.name), getattr(paper, entry.name)) for entry in fields(options)
        ),
    )


# ---------------------------------------------------------------------------------------------------- networks


def _table(part: str, network: nn.Module, inputs: Tensor, recipe: Family[Any]) -> NetworkTable:
    """`inputs` [2, N, …] are two batches, so that one can tell which layers depend on them."""
    network.eval()
    classes = recipe.num_classes
    count = inputs.shape[1]
    zeros, ones = (torch.full((count,), label) if classes else None for label in (0, 1))
    layers, answer = trace(network, inputs[0], zeros)
    of_input = _changed(layers, trace(network, inputs[1], zeros)[0])
    of_label = _changed(layers, trace(network, inputs[0], ones)[0]) if classes > 1 else [False] * len(layers)
    rows = [
        LayerRow(
            layer.name,
            _what(layer.module),
            tuple(layer.then),
            tuple(layer.output.shape[1:]),
            layer.parameters,
            "both" if by_input and by_label else "label" if by_label else "input",
            layer.follows.name if layer.follows is not None else None,
        )
        for layer, by_input, by_label in zip(layers, of_input, of_label, strict=True)
    ]
    seen = {module for layer in layers for module in (layer.module, *layer.norms)}
    for name, module in holders(network):
        if module not in seen:
            parameters = sum(weight.numel() for weight in weights_of(module))
            rows.append(LayerRow(name, _what(module), (), (), parameters, "input"))
    channels, height, width = recipe.image_shape
    image = f"image {channels}×{height}×{width}"
    label = " and label" if classes else ""
    gives = {"generator": image, "encoder": f"mean and spread of the latent {recipe.options.latent_dim}"}.get(part)
    if gives is None:
        gives = "realism" + (f" and {recipe.critic_classes} class logits" if isinstance(answer, tuple) else "")
    return NetworkTable(
        part,
        (f"latent {recipe.options.latent_dim}" if part == "generator" else image) + label,
        gives,
        tuple(rows),
        sum(weight.numel() for weight in network.parameters()),
    )


def _changed(layers: list[Layer], others: list[Layer]) -> list[bool]:
    return [
        not torch.equal(one.output, other.output) if one.output.shape == other.output.shape else True
        for one, other in zip(layers, others, strict=True)
    ]


def _what(module: nn.Module) -> str:
    """ "conv 4×4 /2" and the like."""
    match module:
        case nn.ConvTranspose2d():
            return f"transposed conv {_kernel(module.kernel_size)} ×{module.stride[0]}"
        case nn.Conv2d():
            stride = f" /{module.stride[0]}" if module.stride[0] > 1 else ""
            return f"conv {_kernel(module.kernel_size)}{stride}"
        case nn.Linear():
            return "dense"
        case nn.Embedding():
            return "embedding"
        case nn.modules.batchnorm._NormBase():
            return "batch norm"
    return type(module).__name__


def _kernel(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


# ------------------------------------------------------------------------------------------------------- words


def _words(function: object) -> str:
    return " ".join((function.__doc__ or "").split())


def _optimiser(optimiser: Optimizer) -> str:
    group = optimiser.param_groups[0]
    parts = [f"rate {group['lr']:g}"]
    if "betas" in group:
        parts.append("betas " + ", ".join(f"{beta:g}" for beta in group["betas"]))
    if group.get("momentum"):
        parts.append(f"momentum {group['momentum']:g}")
    if group.get("weight_decay"):
        parts.append(f"weight decay {group['weight_decay']:g}")
    return f"{type(optimiser).__name__}, {', '.join(parts)}"


def _flow(recipe: Family[Any], encoder: bool) -> list[str]:
    options = recipe.options
    asked = " and labels" if recipe.num_classes else ""
    law = "standard normal latents"
    steps = "1 critic step" if options.critic_steps == 1 else f"{options.critic_steps} critic steps"
    power = options.class_power
    shares = _LAWS.get(power, f"a class of n images with p ∝ n^{power:g}")
    found = [
        f"{options.batch} reals{f' with their labels ({shares})' if asked else ''}; "
        f"{options.batch} fakes from {law}{' and the same labels' if asked else ''}.",
        f"{steps} on reals and fakes{', which also names classes' if recipe.critic_classes and not asked else ''}.",
        f"1 generator step through the critic, on {'the same' if options.share_fakes else 'new'} fakes"
        + ("; with it the encoder, which rebuilds reals through the generator." if encoder else "."),
    ]
    if options.ema_half_life:
        found.append(
            "The generator's weights are averaged over steps (half-life "
            f"{options.ema_half_life:,.0f} images): the average is what makes images."
        )
    return found


_LAWS: Final = {0.0: "every class alike often", 1.0: "classes as often as in the data"}


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _last_right(rows: list[list[str]]) -> list[str]:
    widest = max(len(row[-1]) for row in rows)
    return fixed_width([[*row[:-1], row[-1].rjust(widest)] for row in rows], right=False)
