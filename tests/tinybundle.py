"""Tiny, untrained bundles written straight with onnx.helper: torch-free and instant, shared by every room's tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
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

LATENT_DIM = 6


def tiny_model(
    class_names: tuple[str, ...],
    shape: tuple[int, int, int] = (8, 8, 1),
    *,
    seed: int = 0,
    latent_dim: int = LATENT_DIM,
) -> onnx.ModelProto:
    """latent (+ label's embedding) -> linear -> tanh -> uint8 NHWC."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    constants = {
        "weight": rng.normal(size=(latent_dim, size)).astype(np.float32),
        "bias": rng.normal(size=size).astype(np.float32) * 0.1,
        "half": np.float32(127.5),
        "shape": np.array([-1, *shape], dtype=np.int64),
    }
    inputs = [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", latent_dim])]
    nodes = []
    hidden = "latent"
    if class_names:
        inputs.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]))
        constants["embedding"] = rng.normal(size=(len(class_names), latent_dim)).astype(np.float32) * 2
        nodes += [
            helper.make_node("Gather", ["embedding", "label"], ["code"]),
            helper.make_node("Add", ["latent", "code"], ["joined"]),
        ]
        hidden = "joined"
    nodes += [
        helper.make_node("Gemm", [hidden, "weight", "bias"], ["linear"]),
        helper.make_node("Tanh", ["linear"], ["tanh"]),
        helper.make_node("Mul", ["tanh", "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "half"], ["grey"]),
        helper.make_node("Round", ["grey"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["flat"], to=TensorProto.UINT8),
        helper.make_node("Reshape", ["flat", "shape"], ["image"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *shape])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def tiny_description(
    name: str,
    class_names: tuple[str, ...],
    shape: tuple[int, int, int] = (8, 8, 1),
    *,
    latent_dim: int = LATENT_DIM,
) -> Description:
    labels = class_names or ("",)
    inputs = [Tensor(name="latent", dtype="float32", shape=("N", latent_dim))]
    if class_names:
        inputs.append(Tensor(name="label", dtype="int64", shape=("N",)))
    return Description(
        identity=Identity(name=name, augmint_version="test", run="none", trained="2026-01-01T00:00:00+00:00"),
        architecture=Architecture(family="tiny", options={}, parameters=0, checkpoint_step=0, images_seen=0),
        data=Data(
            name="nothing",
            fingerprint="0" * 64,
            class_counts=dict.fromkeys(class_names, 0),
            split={"train": 0, "validation": 0, "test": 0},
            resize="fit",
        ),
        class_names=class_names,
        image=Image(height=shape[0], width=shape[1], channels=shape[2]),  # type: ignore[arg-type]
        sampling=Sampling(latent_dim=latent_dim, tolerance=2),
        generator=Graph(
            file="generator.onnx",
            inputs=tuple(inputs),
            outputs=(Tensor(name="image", dtype="uint8", shape=("N", *shape)),),
            opset=20,
            precision="fp32",
            optimisation="all",
            versions={"onnx": onnx.__version__},
        ),
        evidence=Evidence(),
        golden=tuple(
            Golden(label=label, seed=11, index=index, truncation=1.0) for label in labels for index in range(2)
        ),
    )


def write_tiny_bundle(
    path: Path,
    *,
    class_names: tuple[str, ...] = ("cat", "dog", "été 10"),
    shape: tuple[int, int, int] = (8, 8, 1),
    seed: int = 0,
    name: str | None = None,
) -> Path:
    """Write a bundle that opens, and return its path."""
    import io

    import onnxruntime
    from PIL import Image as PillowImage

    description = tiny_description(name or path.name, class_names, shape)
    model = tiny_model(class_names, shape, seed=seed)
    entry = model.metadata_props.add()
    entry.key, entry.value = "augmint", json.dumps(essentials(description))
    model_bytes = model.SerializeToString(deterministic=True)

    session = onnxruntime.InferenceSession(model_bytes, providers=["CPUExecutionProvider"])
    rows = description.golden
    feeds = {"latent": latents([r.seed for r in rows], [r.index for r in rows], LATENT_DIM)}
    if class_names:
        feeds["label"] = np.array([class_names.index(r.label) for r in rows], dtype=np.int64)
    (images,) = session.run(None, feeds)
    golden, sheet = io.BytesIO(), io.BytesIO()
    np.save(golden, images)
    PillowImage.fromarray(images[0].squeeze()).save(sheet, "PNG")
    write_bundle(
        path,
        description,
        {
            "generator.onnx": model_bytes,
            "golden.npy": golden.getvalue(),
            "samples.png": sheet.getvalue(),
            "README.md": b"# a tiny, untrained bundle\n",
        },
    )
    return path
