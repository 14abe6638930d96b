"""Bundles with random weights, to measure speed with: what was learned does not change how long an image takes.

Knows nothing of services or loads.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from augmint.bundle import (
    Architecture,
    Data,
    Description,
    Evidence,
    Golden,
    Graph,
    Identity,
    Image,
    Sampling,
    Tensor,
    essentials,
    write_bundle,
)
from augmint.latents import latents

__all__ = ["GENERATORS", "write_random_bundle"]

Shape = tuple[int, int, int]
Parts = tuple[int, list[onnx.NodeProto], dict[str, Any]]
"""Width of the latent, the nodes up to "tanh" [N, C, H, W] in -1 … 1, the constants by name."""


def _weights(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return (rng.normal(size=shape) / np.sqrt(np.prod(shape[:1] + shape[2:]))).astype(np.float32)


def gan(shape: Shape) -> Parts:
    """The family `gan` at its paper's size (Goodfellow et al. 2014, mnist.yaml): 100 -> 1200 -> 1200 -> pixels. A call
    spends its time on reading 10 MB of weights (21 MB for 32×32 colour), however many images it makes."""
    rng = np.random.default_rng(0)
    height, width, channels = shape
    widths = (100, 1200, 1200, height * width * channels)
    nodes, constants, hidden = [], {}, "latent"
    for layer, (n_in, n_out) in enumerate(pairwise(widths)):
        constants |= {f"w{layer}": _weights(rng, n_in, n_out), f"b{layer}": np.zeros(n_out, np.float32)}
        nodes.append(helper.make_node("Gemm", [hidden, f"w{layer}", f"b{layer}"], [f"linear{layer}"]))
        activation = "Relu" if layer < 2 else "Tanh"
        nodes.append(helper.make_node(activation, [f"linear{layer}"], [f"on{layer}"]))
        hidden = f"on{layer}"
    constants["to_map"] = np.array([-1, channels, height, width])
    return widths[0], [*nodes, helper.make_node("Reshape", [hidden, "to_map"], ["tanh"])], constants


def dcgan(shape: Shape, *, latent_dim: int, widths: Sequence[int]) -> Parts:
    """A DCGAN: latent -> maps of `widths` channels, each by a transposed convolution of 4×4 twice as large as the one
    before it. A call spends its time on arithmetic, which grows with the images."""
    rng = np.random.default_rng(0)
    height, _, channels = shape
    first = height >> len(widths)
    constants: dict[str, Any] = {
        "w": _weights(rng, latent_dim, widths[0] * first * first),
        "b": np.zeros(widths[0] * first * first, np.float32),
        "to_map": np.array([-1, widths[0], first, first]),
    }
    nodes = [
        helper.make_node("Gemm", ["latent", "w", "b"], ["flat"]),
        helper.make_node("Relu", ["flat"], ["flat_on"]),
        helper.make_node("Reshape", ["flat_on", "to_map"], ["on0"]),
    ]
    for layer, (n_in, n_out) in enumerate(pairwise((*widths, channels))):
        constants[f"w{layer}"] = _weights(rng, n_in, n_out, 4, 4) * 4
        last = layer == len(widths) - 1
        nodes += [
            helper.make_node(
                "ConvTranspose", [f"on{layer}", f"w{layer}"], [f"map{layer}"], strides=[2, 2], pads=[1, 1, 1, 1]
            ),
            helper.make_node("Tanh" if last else "Relu", [f"map{layer}"], ["tanh" if last else f"on{layer + 1}"]),
        ]
    return latent_dim, nodes, constants


GENERATORS: Final[dict[str, tuple[str, Callable[[Shape], Parts], Shape]]] = {
    "gan28": ("gan", gan, (28, 28, 1)),
    "gan32": ("gan", gan, (32, 32, 3)),
    "dcgan28": ("dcgan", lambda shape: dcgan(shape, latent_dim=64, widths=(64, 32)), (28, 28, 1)),
    "tiny": ("dcgan", lambda shape: dcgan(shape, latent_dim=64, widths=(32, 16)), (28, 28, 1)),
    "64x64": ("dcgan", lambda shape: dcgan(shape, latent_dim=100, widths=(256, 128, 64, 32)), (64, 64, 3)),
}
"""Name -> family, graph, image shape."""


def write_random_bundle(name: str, path: Path) -> Path:
    """Write the unconditional bundle of GENERATORS[name] to `path`."""
    import onnxruntime

    family, build, shape = GENERATORS[name]
    latent_dim, nodes, constants = build(shape)
    constants["half"] = np.float32(127.5)
    nodes += [
        helper.make_node("Mul", ["tanh", "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "half"], ["grey"]),
        helper.make_node("Round", ["grey"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["nchw"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["nchw"], ["image"], perm=[0, 2, 3, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        family,
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", latent_dim])],
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *shape])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    description = Description(
        identity=Identity(name=name, augmint_version="benchmark", run="none", trained="never"),
        architecture=Architecture(family=family, options={}, parameters=0, checkpoint_step=0, images_seen=0),
        data=Data(
            name="none",
            fingerprint="0" * 64,
            class_counts={},
            split={"train": 0, "validation": 0, "test": 0},
            resize="fit",
        ),
        class_names=(),
        image=Image(height=shape[0], width=shape[1], channels=shape[2]),
        sampling=Sampling(latent_dim=latent_dim, tolerance=1),
        generator=Graph(
            file="generator.onnx",
            inputs=(Tensor(name="latent", dtype="float32", shape=("N", latent_dim)),),
            outputs=(Tensor(name="image", dtype="uint8", shape=("N", *shape)),),
            opset=20,
            precision="fp32",
            optimisation="all",
            versions={"onnx": onnx.__version__},
        ),
        evidence=Evidence(),
        golden=(Golden(label="", seed=1, index=0, truncation=1.0),),
    )
    entry = model.metadata_props.add()
    entry.key, entry.value = "augmint", json.dumps(essentials(description))
    data = model.SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (image,) = session.run(None, {"latent": latents([1], [0], latent_dim)})
    golden = io.BytesIO()
    np.save(golden, image)
    write_bundle(path, description, {"generator.onnx": data, "golden.npy": golden.getvalue()})
    return path
