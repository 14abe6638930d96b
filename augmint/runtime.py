"""ONNX Runtime sessions, honest about the device they got.

onnxruntime-gpu without CUDA imports silently, names the GPU in `get_available_providers()`, and when asked for CUDA
runs on the CPU with two coloured lines on stderr. So: probe the driver's library, create the session, and believe only
`session.get_providers()[0]`.

This module knows sessions, not bundles.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from augmint.errors import BundleError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnxruntime

    from augmint.bundle import Tensor

__all__ = ["Session", "check_signature", "cuda_driver_present", "open_session", "usable_cores"]

Optimisation = Literal["disabled", "basic", "extended", "all"]


@dataclass(frozen=True, eq=False)
class Session:
    """An open session and what it really runs on ("cpu", "cuda:0", …)."""

    session: onnxruntime.InferenceSession
    device: str
    remark: str = ""


def usable_cores(quota_file: str = "/sys/fs/cgroup/cpu.max") -> int:
    """Cores this process may use: by its affinity and its container's quota (`docker run --cpus`)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open(quota_file, encoding="ascii") as file:
            quota, period = file.read().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        pass  # no control group, or no quota ("max")
    return max(cores, 1)


@cache
def cuda_driver_present() -> bool:
    """Whether NVIDIA's driver library can be loaded, which is the least that CUDA needs."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


@cache
def _runtime() -> Any:
    # The Linux wheel (seen in 1.31) keeps usage data in ~/.cache to send to its makers, unless told not to by now.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise DeviceError(
            'Generating in this process needs onnxruntime: pip install "augmint[local]" (or use augmint.Client).',
            code="device.no-onnxruntime",
        ) from None
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(both) == 2 or not hasattr(onnxruntime, "InferenceSession"):
        raise DeviceError(
            "onnxruntime and onnxruntime-gpu are installed over each other, which breaks both: pip uninstall -y "
            'onnxruntime onnxruntime-gpu, then pip install "augmint[local]".',
            code="device.two-onnxruntimes",
        )
    onnxruntime.set_default_logger_severity(4)  # the device is checked below; its own lines would only alarm
    return onnxruntime


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _parse_device(device: str) -> tuple[str, int]:
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdecimal())):
        raise DeviceError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}.", code="device.unknown")
    return kind, int(number or 0)


def open_session(
    model: bytes,
    *,
    device: str = "auto",
    threads: int | None = None,
    optimisation: Optimisation = "all",
) -> Session:
    """Open a session on the device that was asked for, or say why not.

    Args:
        model: a self-contained ONNX file.
        device: "auto" (CUDA where it works, else the CPU, with a remark), "cuda" or "cuda:N" (an error where it does
            not work), "cpu".
        threads: of one run on the CPU; None takes all usable cores. The images do not depend on it.
        optimisation: ONNX Runtime's graph optimisation level: part of the promise of identical bytes.

    Raises:
        DeviceError: the device cannot be had.
        BundleError: ONNX Runtime refuses the model.
    """
    kind, number = _parse_device(device)
    ort = _runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = {
        "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[optimisation]
    # Spinning threads beside torch's gave stalls of 150 ms, and cost a server the cores it answers with.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    why_not = ""
    if kind in ("auto", "cuda"):
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            why_not = "this onnxruntime is built without CUDA"
        elif not cuda_driver_present():
            why_not = "no NVIDIA driver was found"
        else:
            if hasattr(ort, "preload_dlls"):
                ort.preload_dlls()
            provider_options = {
                "device_id": str(number),
                "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE re-tunes at every new batch size
                "use_tf32": "0",  # parity with the float32 that was checked at export
                "arena_extend_strategy": "kSameAsRequested",
            }
            providers = [("CUDAExecutionProvider", provider_options), "CPUExecutionProvider"]
            session = _create(ort, model, options, providers)
            if session.get_providers()[0] == "CUDAExecutionProvider":
                return Session(session, f"cuda:{number}")
            why_not = 'its libraries could not be loaded (pip install "augmint[cuda]")'
        if kind == "cuda":
            raise DeviceError(
                f"CUDA was asked for but cannot be used: {why_not}. Use --device cpu.", code="device.cuda"
            )
    session = _create(ort, model, options, ["CPUExecutionProvider"])
    return Session(session, "cpu", f"running on the CPU: {why_not}" if why_not else "")


_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}


def check_signature(session: Session, inputs: Sequence[Tensor], outputs: Sequence[Tensor], path: Path) -> None:
    """Refuse a graph, read from `path`, whose inputs and outputs are not those that were promised.

    Raises:
        BundleError: they are others, or the batch is fixed.
    """
    for what, promised, found in (
        ("inputs", inputs, session.session.get_inputs()),
        ("outputs", outputs, session.session.get_outputs()),
    ):
        actual = [
            (value.name, _TYPES.get(value.type, value.type), ["N", *value.shape[1:]] if value.shape else [])
            for value in found
        ]
        expected = [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in promised]
        fixed_batch = any(value.shape and isinstance(value.shape[0], int) for value in found)
        if actual != expected or fixed_batch:
            raise BundleError(
                f"{path} has {what} other than the manifest's: export the bundle again.", code="bundle.signature"
            )


def _create(ort: Any, model: bytes, options: Any, providers: list[Any]) -> Any:
    try:
        return ort.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        reason = str(error).splitlines()[0][:200]
        raise BundleError(
            f"ONNX Runtime refuses the model ({reason}): export it again.", code="bundle.session"
        ) from error
