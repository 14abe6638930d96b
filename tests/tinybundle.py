"""Tiny, untrained bundles written straight with onnx.helper: torch-free and instant, shared by every room's tests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from augmint.bundle import (
    Architecture,
    Copies,
    Data,
    Description,
    Edit,
    Edits,
    EditStep,
    Evidence,
    Golden,
    Graph,
    Identity,
    Image,
    Judges,
    Realism,
    Sampling,
    Tensor,
    essentials,
    write_bundle,
)
from augmint.latents import latents

LATENT_DIM = 6
EDITS = {"slant": 2.0, "brightness": 3.0}
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)


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


def tiny_judge(outputs: dict[str, int], classes: int, images: Any, *, labelled: bool, seed: int) -> tuple[bytes, Graph]:
    """image (and label) -> a random linear function of the pixels for each output; width 0 is one number an image.

    Over `images` each comes to 0 on average, so that no class is preferred.
    """
    rng = np.random.default_rng(seed)
    shape = images.shape[1:]
    size = int(np.prod(shape))
    name = "critic" if "realism" in outputs else "classifier"
    constants = {
        "shape": np.array([-1, size], dtype=np.int64),
        "mean": images.reshape(-1, size).mean(0).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "shape"], ["raw"]),
        helper.make_node("Sub", ["raw", "mean"], ["rows"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *shape])]
    tensors = [Tensor(name="image", dtype="uint8", shape=("N", *shape))]
    if labelled:
        inputs.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]))
        tensors.append(Tensor(name="label", dtype="int64", shape=("N",)))
        constants["bias"] = rng.normal(size=classes).astype(np.float32)
        nodes.append(helper.make_node("Gather", ["bias", "label"], ["own"]))
    for output, width in outputs.items():
        constants[f"{output}_weight"] = (rng.normal(size=(size, width or 1)) / size).astype(np.float32)
        made = output if width else f"{output}_column"
        nodes.append(helper.make_node("MatMul", ["rows", f"{output}_weight"], [made]))
        if not width:
            constants["flat"] = np.array([-1], dtype=np.int64)
            nodes.append(helper.make_node("Reshape", [made, "flat"], [f"{output}_flat" if labelled else output]))
            nodes += [helper.make_node("Add", [f"{output}_flat", "own"], [output])] if labelled else []
    shapes = {output: ["N", width] if width else ["N"] for output, width in outputs.items()}
    graph = helper.make_graph(
        nodes,
        name,
        inputs,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, dims) for output, dims in shapes.items()],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    described = Graph(
        file=f"{name}.onnx",
        inputs=tuple(tensors),
        outputs=tuple(Tensor(name=key, dtype="float32", shape=tuple(dims)) for key, dims in shapes.items()),
        opset=20,
        precision="fp32",
        optimisation="all",
        versions={"onnx": onnx.__version__},
    )
    return model.SerializeToString(deterministic=True), described


def tiny_judges(session: Any, class_names: tuple[str, ...], copies: bool) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest's `critic` and `quality`, and their files; labels agree for about one image in three."""
    import onnxruntime

    n, classes = 60, len(class_names)
    labels = np.repeat(np.arange(max(classes, 1)), n)
    indices = np.tile(np.arange(n, dtype=np.uint64), max(classes, 1))
    feeds: dict[str, Any] = {"latent": latents(99, indices, LATENT_DIM)}
    (images,) = session.run(None, feeds | ({"label": labels} if classes else {}))

    def scores(model: bytes, **feeds: Any) -> Any:
        return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)

    critic, critic_graph = tiny_judge({"realism": 0}, classes, images, labelled=classes > 0, seed=5)
    (realism,) = scores(critic, image=images, **({"label": labels} if classes else {}))
    table = np.quantile(realism.reshape(max(classes, 1), n), SHARES, axis=1).T
    files = {"critic.onnx": critic, "realism.npy": npy(table.astype("<f4"))}
    section: dict[str, Any] = {"realism": Realism(file="realism.npy", shares=SHARES, n=n), "missing": {}}
    if classes < 2:
        section["missing"] = {"labels": "it is unconditional", "copies": "it is unconditional"}
    else:
        files["classifier.onnx"], section["classifier"] = tiny_judge(
            {"class_logits": classes, "features": 3}, classes, images, labelled=False, seed=6
        )
        known = scores(files["classifier.onnx"], image=images)[1][::9].astype("<f2")
        files["train.npy"] = npy(known)
        section["copies"] = Copies(file="train.npy", n=len(known), width=3, threshold=7.0, quantile=0.01, held_out=100)
        if not copies:
            del files["train.npy"], section["copies"]
            section["missing"] = {"copies": "its exporter left the features of the training images out"}
    return {"critic": critic_graph, "quality": Judges(**section)}, files


def tiny_edits(latent_dim: int = LATENT_DIM) -> tuple[Edits, bytes]:
    """Directions of random length and meaning, with figures to go with them, and the file of the directions."""
    table = np.random.default_rng(7).normal(size=(len(EDITS), latent_dim)).astype("<f4")
    attributes = tuple(
        Edit(
            name=name,
            what="something",
            unit="pixels",
            deviation=0.5,
            r2=0.6,
            holds=(),
            limit=limit,
            steps=tuple(EditStep(amount=a, change=a * 0.9, kept=0.95) for a in (-limit, -1.0, 1.0, limit)),
        )
        for name, limit in EDITS.items()
    )
    dropped = {"size": "a linear model of the latent explains 1% of its variance within a class"}
    return Edits(file="directions.npy", attributes=attributes, dropped=dropped, n=100, held_out=50), npy(table)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array))
    return buffer.getvalue()


def write_tiny_bundle(
    path: Path,
    *,
    class_names: tuple[str, ...] = ("cat", "dog", "été 10"),
    shape: tuple[int, int, int] = (8, 8, 1),
    seed: int = 0,
    name: str | None = None,
    judged: bool = False,
    copies: bool = True,
    edited: bool = True,
) -> Path:
    """Write a bundle that opens, and return its path; `judged` ones have a critic and, if conditional, a classifier.

    `edited` ones offer edits, whose directions mean nothing.
    """
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
    sheet = io.BytesIO()
    PillowImage.fromarray(images[0].squeeze()).save(sheet, "PNG")
    files: dict[str, bytes] = {}
    if edited:
        edits, files["directions.npy"] = tiny_edits()
        description = description.model_copy(update={"edits": edits})
    if judged:
        parts, judges = tiny_judges(session, class_names, copies)
        description = description.model_copy(update=parts)
        files |= judges
    write_bundle(
        path,
        description,
        {
            **files,
            "generator.onnx": model_bytes,
            "golden.npy": npy(images),
            "samples.png": sheet.getvalue(),
            "README.md": b"# a tiny, untrained bundle\n",
        },
    )
    return path
