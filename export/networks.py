"""From a run directory to its networks, and from those to the graphs' bytes.

Apart from `export/api.py` because a second export (`export/again.py`) does exactly this and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from augmint.errors import TrainingError
from export.graph import critic_graph, generator_graph, serialise
from export.half import to_half
from training.codes import CodeMap
from training.config import TrainConfig
from training.run import Run, load_codes, load_critic, load_generator

__all__ = ["Networks", "Precision", "Which", "load", "trace"]

Precision = Literal["fp32", "fp16"]
Which = Literal["best", "last"]


@dataclass(frozen=True, eq=False)
class Networks:
    """What is exported of a run: networks in eval mode, float32, on the CPU.

    `step` is the checkpoint's, `written` its time in ISO 8601, `score` the validation score that chose it (None for
    "last"). `codes` says which categories the labels are, where the generator found its own, or `refused` why it cannot
    be asked by label all the same.
    """

    run: Run
    config: TrainConfig
    generator: nn.Module
    critic: nn.Module | None
    step: int
    written: str
    score: float | None
    codes: CodeMap | None = None
    refused: str = ""

    @property
    def conditional(self) -> bool:
        return self.config.num_classes > 0

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names if self.conditional else ()


def load(path: Path, which: Which) -> Networks:
    """Raises TrainingError when `path` is no run or has no whole checkpoint."""
    run = Run.open(path)
    state = run.load_checkpoint(which)
    generator, config = load_generator(run, which)
    critic = load_critic(run, which)[0] if which == "last" or "critic" in state else None
    score = state.get("score")
    try:
        step, written = int(state["step"] if "step" in state else state["state"]["step"]), str(state["written"])
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{run.checkpoint_path(which)} does not say its step and time; train anew.",
            code="training.checkpoint-damaged",
        ) from error
    codes, refused = load_codes(run, which)
    return Networks(
        run, config, generator, critic, step, written, None if score is None else float(score), codes, refused
    )


def trace(networks: Networks, precision: Precision) -> dict[str, bytes]:
    """ "generator" (and "critic", where there is one) -> the graph's bytes, without metadata.

    The critic stays float32 in either precision: it judges, and is asked for far fewer images.
    """
    config = networks.config
    with torch.no_grad():
        graph = generator_graph(
            networks.generator,
            latent_dim=config.options.latent_dim,
            image_shape=config.image_shape,
            num_classes=config.num_classes,
        )
        if precision == "fp16":
            graph = to_half(graph)
        graphs = {"generator": serialise(graph)}
        if networks.critic is not None:
            critic = critic_graph(
                networks.critic,
                image_shape=config.image_shape,
                num_classes=len(config.critic_classes),
                conditional=networks.conditional,
            )
            graphs["critic"] = serialise(critic)
    return graphs
