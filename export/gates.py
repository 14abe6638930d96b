"""The gates between a traced graph and a bundle. Each either measures something and returns it, or raises a GateError.

    plain             standard operators only, no random ones, no weights in another file     plain
    folded            no batch norm left that a convolution or linear layer could take in     unfolded
    same_signature    inputs and outputs are those of the manifest, the batch is dynamic      signature
    labels            every class can be asked for, and the label makes a difference          labels
    alive             finite before rounding; not one constant image                          not-finite, constant
    half_range        fp16 only: nothing within comes near float16's largest number           fp16-range
    parity            the same grey levels as PyTorch                                         parity
    batch_invariance  the same bytes at every batch size and number of threads                batch-invariance
    critic_parity     the same realism, or logits, as PyTorch                                 critic-parity
    alone             the same scores at every batch size                                     judge-invariance
    reproducible      a second export gives the same bytes                                    not-reproducible

The last column is the error's code, after "export.".

`torch.onnx.export(verify=True)` only logs a mismatch, so these are all there is between a wrong graph and somebody's
training set. They run the graph as it will be served: the same optimisation level, the same session options.

This module knows neither runs nor files.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from augmint.bundle import BatchInvariance, Parity, check_graph
from augmint.bundle import Tensor as TensorSpec
from augmint.errors import AugmintError, BundleError, GateError
from augmint.latents import latents
from augmint.runtime import open_session
from export.graph import levels, signature
from export.half import clipping

__all__ = [
    "PARITY_FP16",
    "PARITY_FP32",
    "Limits",
    "Subject",
    "alive",
    "alone",
    "batch_invariance",
    "critic_parity",
    "folded",
    "half_range",
    "in_batches",
    "labels",
    "number_of_outputs",
    "parity",
    "plain",
    "reproducible",
    "same_signature",
]

_SEED: Final = 0x6A7E5  # of the addresses that the gates look at; any other would do
PARITY_BATCHES: Final = (1, 7, 64)
INVARIANCE_BATCHES: Final = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64)
INVARIANCE_THREADS: Final = (1, 2)
# Enough that a share of 1e-4 is a handful of values and not the luck of one.
_PARITY_VALUES: Final = 200_000
_MOST_ROUNDS: Final = 50


@dataclass(frozen=True)
class Limits:
    """What parity allows: the largest difference in grey levels, and the share of values that may differ at all."""

    levels: int
    share: float


_HALF_LIMIT: Final = 32_752.0

# Measured on all families, 28 to 64 px: 1 level in at most 2.6e-5 of the values.
PARITY_FP32: Final = Limits(levels=1, share=1e-4)
# 11 significant bits instead of 24. Measured: 1 level in 1 % of the values; a GPU rounds in more places than a CPU.
PARITY_FP16: Final = Limits(levels=4, share=0.25)


@dataclass(frozen=True, eq=False)
class Subject:
    """A generator graph on trial: the file's bytes and what it ought to do.

    `network` is the PyTorch generator, in eval mode; `num_classes` is 0 when unconditional.
    """

    model: bytes
    network: nn.Module
    latent_dim: int
    image_shape: tuple[int, int, int]
    num_classes: int

    def addresses(self, n: int, start: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """latent float32 [n, Z] and label int64 [n], all classes in turn."""
        indices = np.arange(start, start + n)
        return latents(_SEED, indices, self.latent_dim), (indices % max(self.num_classes, 1)).astype(np.int64)

    def feeds(self, latent: NDArray[np.float32], label: NDArray[np.int64]) -> dict[str, Any]:
        return {"latent": latent, "label": label} if self.num_classes else {"latent": latent}

    def session(self, threads: int = 1, model: bytes | None = None) -> Any:
        """As served: on the CPU, with all optimisations."""
        try:
            return open_session(model or self.model, device="cpu", threads=threads).session
        except BundleError as error:
            raise GateError(f"The exported graph cannot be opened: {error}", code="export.session") from error

    def run(self, session: Any, latent: NDArray[np.float32], label: NDArray[np.int64]) -> NDArray[np.uint8]:
        try:
            (image,) = session.run(["image"], self.feeds(latent, label))
        except Exception as error:  # onnxruntime's exceptions share no base
            reason = str(error).splitlines()[0][:200]
            raise GateError(
                f"The exported graph cannot be run on a batch of {len(latent)} ({reason}).", code="export.session"
            ) from error
        expected = (len(latent), *self.image_shape)
        if image.shape != expected or image.dtype != np.uint8:
            raise GateError(
                f"The exported graph gives {image.dtype} {list(image.shape)} and not uint8 {list(expected)}.",
                code="export.signature",
            )
        return image

    def reference(self, latent: NDArray[np.float32], label: NDArray[np.int64]) -> NDArray[np.uint8]:
        """What PyTorch makes of it, in float64: its own float32 is off by as much as the graph's, and hides a fault."""
        inputs = [torch.from_numpy(latent).double()]
        if self.num_classes:
            inputs.append(torch.from_numpy(label))
        with torch.no_grad():
            return levels(self._double(*inputs)).numpy()

    @cached_property
    def _double(self) -> nn.Module:
        return _double(self.network)


def _double(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).cpu().double().eval()


# --------------------------------------------------------------------------------------------- looking at the graph


def plain(model: bytes, metadata: dict[str, Any] | None = None) -> None:
    """Standard, self-contained, deterministic arithmetic: what the reader of a bundle will insist on."""
    try:
        check_graph(model, Path("the exported graph"), expect=metadata)
    except BundleError as error:
        raise GateError(f"The exported graph would be refused by every reader: {error}", code="export.plain") from error
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError: not one base
        reason = str(error).strip().splitlines()[0][:200]
        raise GateError(f"The exported graph is not valid ONNX ({reason}).", code="export.plain") from error


def folded(model: bytes) -> None:
    """No BatchNormalization fed by nothing but a convolution or linear layer: it would be paid for at every image."""
    graph = onnx.ModelProto.FromString(model).graph
    producer = {name: node for node in graph.node for name in node.output}
    uses: dict[str, int] = {output.name: 1 for output in graph.output}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    left = []
    for node in graph.node:
        source = producer.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if source is not None and source.op_type in ("Conv", "ConvTranspose", "Gemm") and uses[node.input[0]] == 1:
            left.append(f"{source.op_type} {source.name}")
    if left:
        raise GateError(
            f"{len(left)} batch norm(s) were not folded into the layer before them, the first after {left[0][:100]}: "
            "is the network in eval mode?",
            code="export.unfolded",
        )


def same_signature(
    model: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, what: str = "generator"
) -> None:
    """Names, types and shapes are what the manifest will say, and the batch is dynamic."""
    for side, promised, found in zip(
        ("inputs", "outputs"), (inputs, outputs), signature(onnx.ModelProto.FromString(model)), strict=True
    ):
        if tuple(promised) != found:
            shown = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in found)
            raise GateError(
                f"The exported {what} has the {side} {shown}, which is not what its kind must have (a batch that is no "
                "N was fixed by the network's code: `len(x)` does that, `x.shape[0]` does not).",
                code="export.signature",
            )


def number_of_outputs(model: bytes) -> int:
    return len(onnx.ModelProto.FromString(model).graph.output)


# ------------------------------------------------------------------------------------------------- running the graph


def labels(subject: Subject) -> None:
    """Every class runs, and for one latent not all classes give the same image."""
    if subject.num_classes == 0:
        return
    session = subject.session()
    first, seen_different = None, subject.num_classes == 1
    for start in range(0, subject.num_classes, 64):
        label = np.arange(start, min(start + 64, subject.num_classes))
        latent = np.repeat(latents(_SEED, 0, subject.latent_dim), len(label), axis=0)
        try:
            images = subject.run(session, latent, label)
        except GateError as error:
            raise GateError(
                f"The exported graph cannot make all {subject.num_classes} classes: {error}", code="export.labels"
            ) from error
        first = images[0] if first is None else first
        seen_different = seen_different or bool((images != first).any())
    if not seen_different:
        raise GateError(
            f"The label makes no difference: one latent gave the same image for all {subject.num_classes} classes. "
            "The generator ignores its condition; train it longer or with another family.",
            code="export.labels",
        )


def alive(subject: Subject, n: int = 64) -> None:
    """Finite before rounding (a NaN would be served as some grey level), and more than constant or equal images."""
    latent, label = subject.addresses(n)
    proto = onnx.ModelProto.FromString(subject.model)
    value = clipping(proto.graph)[1].input[0]
    (raw,) = _values(subject, proto, [value], latent, label)
    bad = int(np.size(raw) - np.count_nonzero(np.isfinite(raw)))
    if bad:
        raise GateError(
            f"{bad} of {raw.size} values are NaN or infinite before rounding: the weights are damaged, or too "
            "large for fp16 (export with --precision fp32).",
            code="export.not-finite",
        )
    images = subject.run(subject.session(), latent, label)
    flat = int((images.max((1, 2, 3)) == images.min((1, 2, 3))).sum())
    if flat > n // 2:
        raise GateError(
            f"{flat} of {n} images are of one single grey level, such as black: the generator has collapsed, or fp16 "
            "is too narrow for it (export with --precision fp32).",
            code="export.constant",
        )
    if (images == images[0]).all():
        raise GateError(
            f"All {n} images are the same: the generator has collapsed; train it again or with another family.",
            code="export.constant",
        )


def _values(
    subject: Subject,
    proto: onnx.ModelProto,
    names: Sequence[str],
    latent: NDArray[np.float32],
    label: NDArray[np.int64],
) -> list[NDArray[np.float32]]:
    """What the float32 tensors `names` within the graph `proto` come to; they become outputs of it."""
    for name in names:
        proto.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = subject.session(model=proto.SerializeToString())
    values: list[NDArray[np.float32]] = session.run(list(names), subject.feeds(latent, label))
    return values


def half_range(subject: Subject, n: int = 64) -> float:
    """The largest magnitude within the float32 network, which must stay below half of float16's largest number.

    A CPU computes most of an fp16 graph in float32 and so would never show the overflow that a GPU runs into.
    `subject` is the float32 graph that the fp16 one is made from.
    """
    proto = onnx.ModelProto.FromString(subject.model)
    inferred = onnx.shape_inference.infer_shapes(proto)
    names = [v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    made = {name for node in proto.graph.node if node.op_type != "Constant" for name in node.output}
    # After the clipping come grey levels, which stay float32.
    names = [name for name in names if name in made]
    values = _values(subject, proto, names, *subject.addresses(n))
    magnitudes = [float(np.abs(value).max(initial=0)) for value in values]
    # argmax finds a NaN, which max() passes over, and "not <=" refuses it
    largest = int(np.argmax(magnitudes))
    worst, where = magnitudes[largest], names[largest]
    if not worst <= _HALF_LIMIT:
        raise GateError(
            f"Values within the network go up to {worst:.3g} (at {where[:60]}), too near float16's largest, 65,504: "
            "export with --precision fp32.",
            code="export.fp16-range",
        )
    return worst


def parity(subject: Subject, limits: Limits, batches: Sequence[int] = PARITY_BATCHES) -> Parity:
    """The graph against PyTorch, in grey levels, at several batch sizes."""
    session = subject.session()
    values = sum(batches) * int(np.prod(subject.image_shape))
    rounds = min(max(-(-_PARITY_VALUES // values), 1), _MOST_ROUNDS)
    total = differing = worst = start = 0
    for _ in range(rounds):
        # One call of the reference for all batches of a round: PyTorch is the slow side.
        latent, label = subject.addresses(sum(batches), start)
        start += len(latent)
        expected = subject.reference(latent, label)
        for rows in _spans(batches):
            image = subject.run(session, latent[rows], label[rows])
            difference = np.abs(image.astype(np.int16) - expected[rows])
            worst = max(worst, int(difference.max()))
            differing += int(np.count_nonzero(difference))
            total += difference.size
    share = differing / total
    if worst > limits.levels or share > limits.share:
        raise GateError(
            f"The exported graph is not the trained network: off by up to {worst} grey levels, {share:.1e} of the "
            f"values differ ({limits.levels} and {limits.share:.0e} are allowed).",
            code="export.parity",
        )
    return Parity(batches=tuple(batches), max_levels=worst, share_differing=share, provider="CPUExecutionProvider")


def batch_invariance(
    subject: Subject,
    batches: Sequence[int] = INVARIANCE_BATCHES,
    threads: Sequence[int] = INVARIANCE_THREADS,
) -> BatchInvariance:
    """The same bytes whatever the batch an image is made in, and however many threads make it."""
    n = max(batches)
    latent, label = subject.addresses(n)
    sessions = {count: subject.session(count) for count in threads}
    expected = subject.run(sessions[threads[0]], latent, label)
    for count, session in sessions.items():
        for size in batches:
            # The last batch of a size that does not divide n is a short one: one more size for free.
            images = np.concatenate(
                [
                    subject.run(session, latent[start : start + size], label[start : start + size])
                    for start in range(0, n, size)
                ]
            )
            if not np.array_equal(images, expected):
                differing = int(np.count_nonzero(images != expected))
                raise GateError(
                    f"The same latents gave other bytes in batches of {size} with {count} thread(s) than in one of "
                    f"{n} ({differing} of {images.size} values differ): samples would depend on who else asks.",
                    code="export.batch-invariance",
                )
    return BatchInvariance(batches=tuple(batches), provider="CPUExecutionProvider")


def critic_parity(
    model: bytes,
    network: nn.Module,
    images: NDArray[np.uint8],
    label: NDArray[np.int64] | None,
    *,
    what: str = "critic",
    tolerance: float = 1e-3,
) -> float:
    """The graph of a critic or classifier against PyTorch: returns the largest difference, relative to the spread.

    Args:
        images: uint8 [N, H, W, C], real or made; a critic is only meaningful on images.
        label: int64 [N], or None when the graph takes none.
        what: for the error's sentence.
    """
    feeds: dict[str, Any] = {"image": images} if label is None else {"image": images, "label": label}
    try:
        session = open_session(model, device="cpu", threads=1).session
        found = session.run(None, feeds)
        single = session.run(None, {key: value[:1] for key, value in feeds.items()})
    except Exception as error:  # onnxruntime's exceptions share no base
        reason = str(error) if isinstance(error, AugmintError) else str(error).splitlines()[0][:200]
        raise GateError(f"The exported {what} cannot be run ({reason}).", code="export.critic-parity") from error
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1.0
    with torch.no_grad():
        result = _double(network)(pixels, *([] if label is None else [torch.from_numpy(label)]))
    expected = [part.numpy() for part in ((result,) if isinstance(result, torch.Tensor) else result)]
    worst = 0.0
    for got, one, want in zip(found, single, expected, strict=True):
        if got.shape != want.shape or one.shape != (1, *want.shape[1:]):
            raise GateError(
                f"The exported {what} gives {list(got.shape)} and not {list(want.shape)}.", code="export.critic-parity"
            )
        scale = max(float(np.std(want)), float(np.abs(want).mean()), 1e-6)
        off = max(float(np.abs(got - want).max()), float(np.abs(one - want[:1]).max())) / scale
        # "not <=" also catches NaN
        if not off <= tolerance:
            raise GateError(
                f"The exported {what} is not the trained one: off by {off:.1e} of its outputs' size ({tolerance:.0e} "
                "is allowed).",
                code="export.critic-parity",
            )
        worst = max(worst, off)
    return worst


def alone(model: bytes, feeds: dict[str, Any], *, what: str, batches: Sequence[int] = INVARIANCE_BATCHES) -> float:
    """Scores of images in batches against those of each image alone: the largest difference, relative to their size.

    What comes near a threshold is judged alone (`augmint.judge`), which mends differences up to 1e-3: a tenth may be.
    """
    session = open_session(model, device="cpu", threads=1).session
    worst, single = 0.0, in_batches(session, feeds, 1)
    for size in batches:
        for got, one in zip(in_batches(session, feeds, size), single, strict=True):
            worst = max(worst, float(np.abs(got - one).max()) / max(float(np.abs(one).mean()), 1e-6))
    if not worst <= 1e-4:
        raise GateError(
            f"The exported {what}'s scores depend on the batch: off by {worst:.1e} of their size.",
            code="export.judge-invariance",
        )
    return worst


def in_batches(session: Any, feeds: dict[str, Any], size: int) -> list[NDArray[np.float32]]:
    """A session's outputs for all rows of `feeds`, `size` at a time."""
    runs = [
        session.run(None, {key: value[start : start + size] for key, value in feeds.items()})
        for start in range(0, len(feeds["image"]), size)
    ]
    return [np.concatenate(parts) for parts in zip(*runs, strict=True)]


def reproducible(model: bytes, again: Callable[[], str]) -> None:
    """`again` exports once more, preferably in a fresh process, and returns the sha256 of the bytes."""
    first, second = hashlib.sha256(model).hexdigest(), again()
    if first != second:
        raise GateError(
            f"A second export gave other bytes (sha256 {second[:12]}… after {first[:12]}…): nobody could check this "
            "bundle against its run.",
            code="export.not-reproducible",
        )


def _spans(lengths: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length
