"""What a network does with one batch, layer by layer: read off a real forward pass, whatever its code is like.

A layer is a module that holds weights of its own (a convolution, a dense layer, an embedding). What follows it before
the next one, such as a norm, an activation or dropout, counts as part of it, be it a module or a function: both come
down to the same torch functions, which are watched. This module knows no family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["Layer", "holders", "trace", "weights_of"]


@dataclass(eq=False)
class Layer:
    """`name` is the module's path in the network; `output` what leaves it after `then`, such as ["LeakyReLU 0.2"];
    `norms` are the modules among these that hold weights. `activated`: one of them is an activation. `follows` is the
    layer whose output it was given, if it was given one's alone."""

    name: str
    module: nn.Module
    output: Tensor
    then: list[str] = field(default_factory=list)
    norms: list[nn.Module] = field(default_factory=list)
    activated: bool = False
    follows: Layer | None = None

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for module in (self.module, *self.norms) for weight in weights_of(module))


def trace(network: nn.Module, *inputs: Tensor | None) -> tuple[list[Layer], Any]:
    """The layers in the order in which they were used, and the network's answer. The network's mode is left as it is.

    A layer that is used twice is there twice.
    """
    watch = _Watch()
    with ExitStack() as hooks, torch.no_grad():
        for name, module in holders(network):
            hooks.callback(module.register_forward_hook(watch.used(name)).remove)
        with watch:
            answer = network(*inputs)
    return watch.layers, answer


def holders(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold weights themselves, not through their parts, and their paths. What reparametrises a weight,
    such as spectral normalisation, is part of the module whose weight it is."""
    for name, module in network.named_modules():
        if "parametrizations" not in name.split(".") and weights_of(module):
            yield name, module


def weights_of(module: nn.Module) -> list[nn.Parameter]:
    """A module's own parameters, and those behind its reparametrised ones."""
    found = list(module.parameters(recurse=False))
    parts = getattr(module, "parametrizations", None)
    return found + (list(parts.parameters()) if isinstance(parts, nn.ModuleDict) else [])


class _Watch(TorchFunctionMode):
    """Attributes functions to the layer whose output they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        # Tensor → the layer it comes from. Tensors are kept, so that an id stays that of one tensor.
        self.origin: dict[int, tuple[Tensor, Layer]] = {}

    def used(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            _, before = self.origin.get(id(inputs[0]), (None, None))
            if before is not None and isinstance(module, _NORMS):
                before.norms.append(module)
                return
            layer = Layer(name, module, output, follows=before)
            self.layers.append(layer)
            self.origin[id(output)] = (output, layer)

        return hook

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not isinstance(result, Tensor):
            return result
        if function in _SUMS:
            # Of a sum of several layers' outputs, such as a residual's, the last layer's.
            terms = [self.origin[id(term)][1] for term in args if id(term) in self.origin]
            terms = [layer for layer in terms if layer.output.shape == result.shape]
            if terms:
                self.origin[id(result)] = (result, max(terms, key=self.layers.index))
            return result
        _, layer = self.origin.get(id(args[0]), (None, None)) if args else (None, None)
        if layer is None:
            return result
        if function in _RESHAPING:
            self.origin[id(result)] = (result, layer)
        elif (says := _ACTIVATIONS.get(function) or _OTHERS.get(function)) is not None:
            layer.then.append(says(args, kwargs or {}))
            layer.activated |= function in _ACTIVATIONS
            layer.output = result
            self.origin[id(result)] = (result, layer)
        return result


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _plain(name: str) -> Callable[[Any, Any], str]:
    return lambda args, kwargs: name


def _resized(args: Any, kwargs: Any) -> str:
    size, scale = _argument(args, kwargs, 1, "size", None), _argument(args, kwargs, 2, "scale_factor", None)
    mode = _argument(args, kwargs, 3, "mode", "nearest")
    return f"{mode} ×{float(scale):g}" if isinstance(scale, int | float) else f"{mode} to {size or scale}"


_NORMS: Final = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_RESHAPING: Final = frozenset(
    {torch.Tensor.flatten, torch.flatten, torch.Tensor.unflatten, torch.Tensor.view, torch.Tensor.reshape}
    | {torch.Tensor.contiguous, torch.Tensor.float}
)
_SUMS: Final = frozenset(
    {torch.add, torch.mul, torch.addcmul, torch.Tensor.add, torch.Tensor.mul, torch.Tensor.__add__}
    | {torch.Tensor.__radd__, torch.Tensor.__mul__, torch.Tensor.__rmul__}
)
_Says = Callable[[tuple[Any, ...], dict[str, Any]], str]
_ACTIVATIONS: Final[dict[Any, _Says]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.Tensor.relu, torch.relu_), _plain("ReLU")),
    F.leaky_relu: lambda args, kwargs: f"LeakyReLU {_argument(args, kwargs, 1, 'negative_slope', 0.01):g}",
    F.elu: _plain("ELU"),
    F.silu: _plain("SiLU"),
    F.gelu: _plain("GELU"),
    F.selu: _plain("SELU"),
    F.softplus: _plain("softplus"),
    **dict.fromkeys((torch.tanh, F.tanh, torch.Tensor.tanh), _plain("tanh")),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, torch.Tensor.sigmoid), _plain("sigmoid")),
    **dict.fromkeys((torch.Tensor.amax, torch.amax), lambda args, kwargs: f"maxout {args[0].shape[-1]}"),
}
_OTHERS: Final[dict[Any, _Says]] = {
    F.batch_norm: _plain("batch norm"),
    F.instance_norm: _plain("instance norm"),
    F.group_norm: _plain("group norm"),
    F.layer_norm: _plain("layer norm"),
    F.normalize: _plain("normalised"),
    F.dropout: lambda args, kwargs: f"dropout {_argument(args, kwargs, 1, 'p', 0.5):g}",
    F.dropout2d: lambda args, kwargs: f"dropout2d {_argument(args, kwargs, 1, 'p', 0.5):g}",
    F.avg_pool2d: _plain("average pooling"),
    F.adaptive_avg_pool2d: _plain("average pooling"),
    F.max_pool2d: _plain("max pooling"),
    F.interpolate: _resized,
    F.pixel_shuffle: _plain("pixel shuffle"),
}
