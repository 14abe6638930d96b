"""From a PyTorch generator, critic or classifier to one self-contained ONNX graph.

    generator   latent float32 [N, Z] (, label int64 [N])       -> image uint8 [N, H, W, C]
    critic      image uint8 [N, H, W, C] (, label int64 [N])    -> realism float32 [N] (, class_logits float32 [N, K])
    classifier  image uint8 [N, H, W, C]                        -> class_logits float32 [N, K], features float32 [N, D]

Conversion to grey levels is inside the graph, so that a quarter of the bytes leave the device and nobody rounds
differently. The bytes depend on the network alone: nothing of the machine, the checkout or the clock is in them.

This module trusts what it makes in nothing: `export/gates.py` checks it. It knows neither runs nor bundles.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from augmint.bundle import Graph
from augmint.bundle import Tensor as TensorSpec
from augmint.errors import ExportError, GateError

__all__ = [
    "OPSET",
    "classifier_graph",
    "critic_graph",
    "described",
    "frozen",
    "generator_graph",
    "levels",
    "serialise",
    "signature",
    "versions",
]

OPSET: Final = 20
_TRACE_BATCH: Final = 2  # 0 and 1 are what torch.export would freeze into the graph
_DTYPES: Final[dict[int, Literal["float32", "int64", "uint8"]]] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.UINT8: "uint8",
}


def levels(image: Tensor) -> Tensor:
    """float [N, C, H, W] in [-1, 1] -> uint8 [N, H, W, C], rounded half to even; what lies outside is clipped."""
    grey = ((image.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    # One channel needs no transposition, and ONNX Runtime does not find that out by itself.
    return grey.squeeze(1).unsqueeze(3) if grey.shape[1] == 1 else grey.permute(0, 2, 3, 1)


def _unlevels(image: Tensor) -> Tensor:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in [-1, 1]."""
    grey = image.squeeze(3).unsqueeze(1) if image.shape[3] == 1 else image.permute(0, 3, 1, 2)
    return grey.to(torch.float32) / 127.5 - 1.0


# The tracer names inputs after the parameters of `forward`, hence one class for each signature.
class _Generator(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, latent: Tensor) -> Tensor:
        return levels(self.network(latent))


class _ConditionalGenerator(_Generator):
    def forward(self, latent: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        return levels(self.network(latent, label))


class _Critic(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(_unlevels(image))


class _ConditionalCritic(_Critic):
    def forward(self, image: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        return self.network(_unlevels(image), label)


def frozen(network: nn.Module) -> nn.Module:
    """A copy for inference: float32 on the CPU, eval mode, spectral norm and the like replaced by their value."""
    network = copy.deepcopy(network).to(device="cpu", dtype=torch.float32).eval()
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            _bake(module)
    return network.requires_grad_(False)


def _bake(module: nn.Module) -> None:
    """Replace a module's parametrizations by the values they give now.

    `torch.nn.utils.parametrize.remove_parametrizations` would change the module that this one is a copy of as well: a
    deep copy shares the class that was made for its original, and it deletes from that class.
    """
    assert isinstance(module.parametrizations, nn.ModuleDict)
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def generator_graph(
    network: nn.Module, *, latent_dim: int, image_shape: tuple[int, int, int], num_classes: int
) -> onnx.ModelProto:
    """Trace a generator.

    Args:
        network: `forward(latent float32 [N, Z][, label int64 [N]]) -> float32 [N, C, H, W] in [-1, 1]`.
        latent_dim: Z.
        image_shape: (height, width, channels).
        num_classes: 0 when unconditional.

    Raises:
        ExportError: the network cannot be traced.
    """
    latent = torch.zeros(_TRACE_BATCH, latent_dim)
    label = torch.zeros(_TRACE_BATCH, dtype=torch.int64)
    wrapper, inputs = (
        (_ConditionalGenerator, {"latent": latent, "label": label}) if num_classes else (_Generator, {"latent": latent})
    )
    return _trace("generator", wrapper(frozen(network)), inputs, {"image": image_shape})


def critic_graph(
    network: nn.Module, *, image_shape: tuple[int, int, int], num_classes: int, conditional: bool
) -> onnx.ModelProto:
    """Trace a critic.

    Args:
        network: `forward(image float32 [N, C, H, W] in [-1, 1][, label]) -> realism [N]`, or a pair of that and
            class logits [N, K].
        num_classes: K.
        conditional: whether it takes labels.
    """
    image = torch.zeros(_TRACE_BATCH, *image_shape, dtype=torch.uint8)
    label = torch.zeros(_TRACE_BATCH, dtype=torch.int64)
    network = frozen(network)
    wrapper, inputs = (
        (_ConditionalCritic(network), {"image": image, "label": label})
        if conditional
        else (_Critic(network), {"image": image})
    )
    with torch.no_grad():
        result = wrapper(**inputs)
    outputs: dict[str, tuple[int, ...]] = {"realism": ()}
    if not isinstance(result, Tensor):
        outputs["class_logits"] = (num_classes,)
    return _trace("critic", wrapper, inputs, outputs)


def classifier_graph(
    network: nn.Module, *, image_shape: tuple[int, int, int], num_classes: int, width: int
) -> onnx.ModelProto:
    """Trace a classifier.

    Args:
        network: `forward(image float32 [N, C, H, W] in [-1, 1]) -> (class logits [N, K], features [N, D])`.
        image_shape: (height, width, channels).
        num_classes: K.
        width: D.
    """
    image = torch.zeros(_TRACE_BATCH, *image_shape, dtype=torch.uint8)
    outputs: dict[str, tuple[int, ...]] = {"class_logits": (num_classes,), "features": (width,)}
    return _trace("classifier", _Critic(frozen(network)), {"image": image}, outputs)


def described(
    file: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    precision: Literal["fp32", "fp16"],
) -> Graph:
    """A graph of ours as the manifest describes it."""
    return Graph(
        file=file,
        inputs=inputs,
        outputs=outputs,
        opset=OPSET,
        precision=precision,
        optimisation="all",
        versions=versions(),
    )


def signature(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The graph's inputs and outputs, in the manifest's words. Raises GateError for a type that no bundle has."""

    def describe(value: onnx.ValueInfoProto) -> TensorSpec:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        if tensor.elem_type not in _DTYPES:
            raise GateError(
                f"The exported graph's {value.name[:60]} is neither float32, int64 nor uint8.", code="export.signature"
            )
        return TensorSpec(name=value.name, dtype=_DTYPES[tensor.elem_type], shape=shape)

    return tuple(map(describe, model.graph.input)), tuple(map(describe, model.graph.output))


def serialise(model: onnx.ModelProto, metadata: dict[str, str] | None = None) -> bytes:
    """Deterministic bytes; `metadata` replaces the file's own."""
    if metadata is not None:
        model = _with_metadata(model, metadata)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def versions() -> dict[str, str]:
    """Of what made and ran the graph, for the manifest."""
    import onnxruntime
    import onnxscript

    return {
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _trace(
    name: str, wrapper: nn.Module, inputs: dict[str, Tensor], outputs: dict[str, tuple[int, ...]]
) -> onnx.ModelProto:
    batch = torch.export.Dim("N", min=1)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                wrapper.eval(),
                kwargs=inputs,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes={key: {0: batch} for key in inputs},
                opset_version=OPSET,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever the network's code or its own passes raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"PyTorch cannot export the {name} ({reason[0][:200]}): its `forward` must be plain tensor arithmetic "
            "that holds for any batch size.",
            code="export.trace",
        ) from error
    assert program is not None
    return _plain(program.model_proto, name, outputs)


def _plain(model: onnx.ModelProto, name: str, outputs: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Strip what the exporter tells of this machine and this checkout, and name things as the manifest does."""
    for message in _messages(model):
        for field in ("doc_string", "metadata_props"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)
    model.producer_name, model.producer_version = "augmint", ""
    model.graph.name = name
    del model.graph.value_info[:]  # the runtime infers it again
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, length in zip(dims[1:], outputs.get(value.name, ()), strict=False):
            if dim.dim_param:  # the tracer could not see that it is fixed; the gates see whether it is
                dim.dim_value = length
    return model


def _messages(model: onnx.ModelProto) -> Iterator[Any]:
    yield model
    yield from _inside(model.graph)


def _inside(graph: onnx.GraphProto) -> Iterator[Any]:
    yield graph
    yield from (*graph.input, *graph.output, *graph.initializer)
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield attribute
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _inside(attribute.g)


def _with_metadata(model: onnx.ModelProto, metadata: dict[str, str]) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.metadata_props[:]
    for key, value in sorted(metadata.items()):
        copied.metadata_props.add(key=key, value=value)
    return copied


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own future and about libraries that nobody needs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
