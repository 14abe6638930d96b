"""A float32 graph to half precision, for GPUs: weights and arithmetic in float16, inputs and images as before.

It works on the finished float32 graph, where batch norms are folded already: folding in float32 and rounding once is
more exact than PyTorch's `.half()`, which rounds first. What comes after the network (clipping, rounding to grey
levels) stays float32. ONNX Runtime's own converter was tried: it casts back and forth around every node that is to be
kept, and what it made of these graphs did not load.

This module knows plain arithmetic only; for a graph with an operator it does not foresee the session refuses the
types, and the gates say so.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from augmint.errors import GateError

__all__ = ["clipping", "to_half"]

# Inputs that are float32 whatever the data's type: scales, regions, limits of the operator itself.
_ALWAYS_FLOAT: Final = {"Resize": (1, 2)}


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a generator's graph that computes in float16 between `latent` and the final clipping.

    Raises:
        GateError: a weight is beyond float16's ±65,504, or the graph does not end as `export.graph` ends it.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    tail, clip = clipping(graph)
    floats = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}

    rounded: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        if node.output[0] in tail:
            continue
        for position, name in enumerate(node.input):
            if name == "latent":
                node.input[position] = "latent_half"
            elif name in floats and position not in _ALWAYS_FLOAT.get(node.op_type, ()):
                rounded.setdefault(name, _round(floats[name]))
                node.input[position] = rounded[name].name
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(_round(attribute.t))

    before = helper.make_node("Cast", ["latent"], ["latent_half"], name="to_half", to=TensorProto.FLOAT16)
    after = helper.make_node("Cast", [clip.input[0]], ["pixels"], name="to_float", to=TensorProto.FLOAT)
    clip.input[0] = "pixels"
    position = next(i for i, node in enumerate(graph.node) if node.output[0] == clip.output[0])
    graph.node.insert(position, after)
    graph.node.insert(0, before)

    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    weights = [onnx.TensorProto.FromString(t.SerializeToString()) for t in (*kept, *rounded.values())]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    return half


def clipping(graph: onnx.GraphProto) -> tuple[set[str], onnx.NodeProto]:
    """The first outputs of the nodes from clipping to `image`, and the clipping node. Raises GateError without one."""
    producer = {name: node for node in graph.node for name in node.output}
    tail: set[str] = set()
    node = producer.get("image")
    while node is not None:
        tail.add(node.output[0])
        if node.op_type == "Clip":
            return tail, node
        node = producer.get(node.input[0]) if node.input else None
    raise GateError("The exported graph does not end in clipping and rounding.", code="export.plain")


def _round(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if not np.isfinite(rounded[np.isfinite(values)]).all():
        raise GateError(
            f"The weights {tensor.name} go up to {np.abs(values).max():.3g}, beyond float16's 65,504: export with "
            "--precision fp32.",
            code="export.fp16-range",
        )
    return numpy_helper.from_array(rounded, f"{tensor.name}_half" if tensor.name else "")
