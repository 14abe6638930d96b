"""The machine a training runs on: device, threads, precision; honest about what it got.

This module knows Fabric and torch's global switches, and nothing of networks.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import Precision as FabricPrecision
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from augmint.errors import DeviceError, UsageError
from training.config import Device, Precision

__all__ = ["cores", "make_fabric", "resolve_device", "supports_bf16", "torch_settings"]


def cores() -> int:
    """Processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def resolve_device(device: str) -> Device:
    """ "auto" takes CUDA where torch has it, else the CPU. Raises DeviceError when "cuda" cannot be had."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device!r} is unknown: choose auto, cpu or cuda.")
    if device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        reason = "this build of torch has no CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        raise DeviceError(f"--device cuda: {reason}; use --device cpu, or install a CUDA build of torch.")
    return "cpu"


def supports_bf16(device: Device) -> bool:
    """Whether bfloat16 is worth a probe: the hardware has it, or the CPU may emulate it well."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else True


class _Bf16(FabricPrecision):
    """bfloat16 autocast in every forward pass, float32 weights and outputs.

    Fabric's own "bf16-mixed" does the same, but forbids `torch.autograd.grad`, which gradient penalties need: it might
    have been float16 with a gradient scaler.
    """

    precision = "bf16-mixed"

    def __init__(self, device: Device) -> None:
        self.device = device

    def forward_context(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def convert_output(self, data: Any) -> Any:
        return apply_to_collection(data, dtype=Tensor, function=_to_float32)


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def make_fabric(device: Device, precision: Precision) -> Fabric:
    with warnings.catch_warnings():
        # Fabric remarks on accelerators that are there and not used; `--device` has said which one to use.
        warnings.simplefilter("ignore")
        plugin = _Bf16(device) if precision == "bf16-mixed" else None
        return Fabric(accelerator=device, devices=1, plugins=plugin)


@contextmanager
def torch_settings(*, device: Device, threads: int) -> Iterator[None]:
    """Threads and matmul precision for the time of a training; the caller's settings and random state come back."""
    before_threads, before_matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.set_num_threads(threads)
        if device == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 where the GPU has it
        try:
            yield
        finally:
            torch.set_num_threads(before_threads)
            torch.set_float32_matmul_precision(before_matmul)
