"""Labelled images in, run directory out: families of GANs, one loop, checkpoints.

    run = train(TrainRequest(data="mnist5k", minutes=2))
    generator, config = load_generator(run)

This room knows torch and Lightning Fabric, and `evaluation` for choosing a checkpoint; nothing of ONNX or HTTP.
"""

from training.api import resume, train
from training.config import TrainConfig, TrainRequest
from training.families import FAMILIES, family
from training.loop import Interrupted
from training.run import Alarm, Best, Run, Status, load_critic, load_generator, weights_digest

__all__ = [
    "FAMILIES",
    "Alarm",
    "Best",
    "Interrupted",
    "Run",
    "Status",
    "TrainConfig",
    "TrainRequest",
    "family",
    "load_critic",
    "load_generator",
    "resume",
    "train",
    "weights_digest",
]
