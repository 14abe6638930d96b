"""The corpus: bundles broken in every way we could think of, each with the code that must refuse it.

`BROKEN` holds recipes; `Broken.make` turns a fresh copy of the tiny conditional bundle (8×8 grey, classes "cat", "dog"
and "été 10") into the broken one. Those that tamper with a file "seal" it again, with size and digest fixed up in the
manifest, unless the digest is the point: so each is stopped by the check that is meant to stop it and no earlier one.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from augmint.bundle import essentials, parse_manifest
from tests.tinybundle import write_tiny_bundle

MANIFEST, MODEL, GOLDEN = "manifest.json", "generator.onnx", "golden.npy"


@dataclass(frozen=True)
class Broken:
    """`code` is that of the BundleError, without "bundle."; `make` breaks the bundle at the path it is given."""

    name: str
    code: str
    make: Callable[[Path], object]


BROKEN: list[Broken] = []


def broken(name: str, code: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def add(make: Callable[[Path], object]) -> Callable[[Path], object]:
        BROKEN.append(Broken(name, code, make))
        return make

    return add


# ------------------------------------------------------------------------------------------------------- tools


def read_manifest(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
    return document


def write_manifest(path: Path, document: object) -> None:
    (path / MANIFEST).write_text(json.dumps(document), encoding="utf-8")


def seal(path: Path, name: str, data: bytes) -> None:
    """Replace a file and fix up its size and digest in the manifest."""
    (path / name).write_bytes(data)
    document = read_manifest(path)
    document["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write_manifest(path, document)


def edit_model(path: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(str(path / MODEL))
    edit(model)
    seal(path, MODEL, model.SerializeToString())


def manifest_case(name: str, code: str, *keys: str | int, value: object) -> None:
    """A manifest in which the value at `keys` is another."""

    def make(path: Path) -> None:
        document = read_manifest(path)
        place: Any = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        write_manifest(path, document)

    BROKEN.append(Broken(name, code, make))


def model_case(name: str, code: str) -> Callable[[Callable[[onnx.ModelProto], object]], object]:
    """A resealed model, changed by the decorated function."""

    def add(edit: Callable[[onnx.ModelProto], object]) -> object:
        BROKEN.append(Broken(name, code, lambda path: edit_model(path, edit)))
        return edit

    return add


def node_of(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def splice(model: onnx.ModelProto, node: onnx.NodeProto, value: str = "linear") -> None:
    """Insert a node that reads `value`; whoever read it now reads the node's output."""
    for other in model.graph.node:
        for i, name in enumerate(other.input):
            if name == value:
                other.input[i] = node.output[0]
    position = next(i for i, other in enumerate(model.graph.node) if value in other.output)
    model.graph.node.insert(position + 1, node)


def npy(array: np.ndarray[Any, Any], *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npy_claiming(header: str, body: bytes = b"\0" * 384, version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    length = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + text + body


# --------------------------------------------------------------------------------------------------- directories


@broken("there is nothing", "missing")
def _(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


@broken("a file instead of a directory", "not-a-directory")
def _(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.write_bytes(b"PK\x03\x04")


@broken("an empty directory", "no-manifest")
def _(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


@broken("a run directory instead", "no-manifest")
def _(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    (path / "config.json").write_text("{}")
    (path / "checkpoints").mkdir()
    (path / ".lock").touch()


@broken("an export that was cut off before the manifest", "no-manifest")
def _(path: Path) -> None:
    (path / MANIFEST).unlink()


@broken("the model is missing", "missing-file")
def _(path: Path) -> None:
    (path / MODEL).unlink()


@broken("an extra file", "extra-file")
def _(path: Path) -> None:
    (path / "setup.py").write_text("import os")


@broken("an extra hidden file", "bad-name")
def _(path: Path) -> None:
    (path / ".DS_Store").touch()


@broken("a file name with a line break", "bad-name")
def _(path: Path) -> None:
    (path / "a\nb").touch()


@broken("a file name that is not UTF-8", "bad-name")
def _(path: Path) -> None:
    Path(os.fsdecode(os.fsencode(path) + b"/\xff\xfe")).touch()


@broken("a directory inside", "not-regular")
def _(path: Path) -> None:
    (path / "weights").mkdir()


@broken("the model is a directory", "not-regular")
def _(path: Path) -> None:
    (path / MODEL).unlink()
    (path / MODEL).mkdir()


@broken("thousands of files", "too-many-files")
def _(path: Path) -> None:
    for i in range(2000):
        (path / f"part-{i}").touch()


@broken("the model is a symbolic link", "symlink")
def _(path: Path) -> None:
    (path / MODEL).rename(path.parent / "model")
    (path / MODEL).symlink_to(path.parent / "model")


@broken("the manifest is a symbolic link", "symlink")
def _(path: Path) -> None:
    (path / MANIFEST).rename(path.parent / "manifest")
    (path / MANIFEST).symlink_to(path.parent / "manifest")


@broken("a symbolic link to nowhere", "symlink")
def _(path: Path) -> None:
    (path / "samples.png").unlink()
    (path / "samples.png").symlink_to("/nowhere/at/all")


@broken("a pipe, which would be read for ever", "not-regular")
def _(path: Path) -> None:
    (path / MODEL).unlink()
    os.mkfifo(path / MODEL)


@broken("a socket", "not-regular")
def _(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path)  # the name of a socket is limited to about 100 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
    finally:
        os.chdir(here)


# --------------------------------------------------------------------------------------------- files and digests


@broken("the model is cut short", "size-mismatch")
def _(path: Path) -> None:
    data = (path / MODEL).read_bytes()
    (path / MODEL).write_bytes(data[: len(data) // 2])


@broken("one bit of the weights is flipped", "digest-mismatch")
def _(path: Path) -> None:
    data = bytearray((path / MODEL).read_bytes())
    data[len(data) // 2] ^= 1
    (path / MODEL).write_bytes(data)


@broken("one bit of the golden samples is flipped", "digest-mismatch")
def _(path: Path) -> None:
    data = bytearray((path / GOLDEN).read_bytes())
    data[-1] ^= 128
    (path / GOLDEN).write_bytes(data)


@broken("a changed model card", "digest-mismatch")
def _(path: Path) -> None:
    text = (path / "README.md").read_bytes()
    (path / "README.md").write_bytes(text.replace(b"tiny", b"TINY"))


manifest_case("a wrong digest", "digest-mismatch", "files", MODEL, "sha256", value="0" * 64)
manifest_case("a digest in capitals", "schema", "files", MODEL, "sha256", value="A" * 64)
manifest_case("a claim of a gigabyte", "size-mismatch", "files", MODEL, "bytes", value=1 << 30)
manifest_case("a claim of an exabyte", "schema", "files", MODEL, "bytes", value=1 << 60)
manifest_case("a negative size", "schema", "files", MODEL, "bytes", value=-1)


@broken("a card of 200 MB, sparse", "too-large")
def _(path: Path) -> None:
    with open(path / "README.md", "r+b") as file:
        file.truncate(200 << 20)
    document = read_manifest(path)
    document["files"]["README.md"]["bytes"] = 200 << 20
    write_manifest(path, document)


# -------------------------------------------------------------------------------------------------- the manifest


def manifest_bytes(name: str, code: str, change: Callable[[bytes], bytes]) -> None:
    def make(path: Path) -> None:
        (path / MANIFEST).write_bytes(change((path / MANIFEST).read_bytes()))

    BROKEN.append(Broken(name, code, make))


manifest_bytes("an empty manifest", "manifest-not-json", lambda data: b"")
manifest_bytes("a manifest cut short", "manifest-not-json", lambda data: data[:-20])
manifest_bytes("a manifest with a comma too many", "manifest-not-json", lambda data: data.rstrip()[:-1] + b",}")
manifest_bytes("a manifest in Latin-1", "manifest-not-json", lambda data: data.decode().encode("latin1"))
manifest_bytes("a manifest in UTF-16", "manifest-not-json", lambda data: data.decode().encode("utf-16"))
manifest_bytes("a manifest with a byte order mark", "manifest-not-json", lambda data: b"\xef\xbb\xbf" + data)
manifest_bytes("a manifest with a NUL after it", "manifest-not-json", lambda data: data + b"\0")
manifest_bytes("a manifest of five megabytes", "too-large", lambda data: data + b" " * (5 << 20))
manifest_bytes(
    "a manifest that is a pickle", "manifest-not-json", lambda data: pickle.dumps({"kind": "augmint-bundle"})
)
manifest_bytes("a manifest that is an array", "not-a-bundle", lambda data: b"[" + data + b"]")
manifest_bytes("a manifest that is a string", "not-a-bundle", lambda data: b'"augmint-bundle"')
manifest_bytes("a manifest that is null", "not-a-bundle", lambda data: b"null")
manifest_bytes("another program's manifest.json", "not-a-bundle", lambda data: b'{"name": "app", "icons": []}')
manifest_bytes("a key twice", "manifest-duplicate-key", lambda data: data.replace(b'"kind"', b'"kind": "x", "kind"', 1))
manifest_bytes(
    "a key twice, far inside",
    "manifest-duplicate-key",
    lambda data: data.replace(b'"sha256"', b'"sha256": "", "sha256"', 1),
)
manifest_bytes(
    "a key twice, once escaped",
    "manifest-duplicate-key",
    lambda data: data.replace(b'"kind"', b'"\\u006bind": "x", "kind"', 1),
)
for constant in ("NaN", "Infinity", "-Infinity", "1e999"):
    manifest_bytes(
        f"{constant} as a number",
        "manifest-not-finite",
        lambda data, constant=constant: data.replace(b'"options": {}', f'"options": {{"x": {constant}}}'.encode()),  # type: ignore[misc]
    )
manifest_bytes(
    "a number of 5,000 digits",
    "manifest-not-json",
    lambda data: data.replace(b'"parameters": 0', b'"parameters": ' + b"9" * 5000),
)
manifest_bytes(
    "JSON nested 100,000 deep",
    "manifest-not-json",
    lambda data: data.replace(b'"options": {}', b'"options": {"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
)
manifest_bytes("half of a surrogate pair as a label", "schema", lambda data: data.replace(b'"cat"', b'"\\ud800"'))

manifest_case("a future schema", "schema-version", "schema_version", value=2)
manifest_case("schema 0", "schema-version", "schema_version", value=0)
manifest_case("schema true", "schema-version", "schema_version", value=True)
manifest_case("schema as text", "schema-version", "schema_version", value="1")
manifest_case("another kind", "not-a-bundle", "kind", value="augmint-run")
manifest_case("an unknown key", "schema", "pickle", value="model.pkl")
manifest_case("an unknown key, far inside", "schema", "generator", "custom_ops", value="ops.so")
manifest_case("a number as a label", "schema", "class_names", 0, value=3)
manifest_case("an empty label", "schema", "class_names", 0, value="")
manifest_case("a label twice", "schema", "class_names", value=["cat", "cat", "été 10"])
manifest_case("another set of labels", "schema", "class_names", value=["cat", "dog"])
manifest_case(
    "labels in another order than the model's", "metadata-mismatch", "class_names", value=["dog", "cat", "été 10"]
)
manifest_case("another name than the model's", "metadata-mismatch", "identity", "name", value="other")
manifest_case("a name with a slash", "schema", "identity", "name", value="../etc")
manifest_case("golden samples of an unknown label", "schema", "golden", 0, "label", value="bird")
manifest_case("a golden seed beyond 2^53", "schema", "golden", 0, "seed", value=2**53)
manifest_case("a golden truncation of 0", "schema", "golden", 0, "truncation", value=0)
manifest_case("no golden samples", "schema", "golden", value=[])
manifest_case("a thousand golden samples", "schema", "golden", value=[{}] * 1000)
manifest_case(
    "one golden sample too few",
    "npy-file",
    "golden",
    value=[{"label": "cat", "seed": 11, "index": 0, "truncation": 1.0}],
)
manifest_case("another latent table", "schema", "sampling", "table_sha256", value="0" * 64)
manifest_case("another latent algorithm", "schema", "sampling", "algorithm", value="mt19937/box-muller")
manifest_case("another latent length than the graph's", "schema", "sampling", "latent_dim", value=7)
manifest_case("true as a number", "schema", "image", "height", value=True)
manifest_case("a fraction as a number", "schema", "image", "height", value=8.5)
manifest_case("text as a number", "schema", "image", "height", value="8")
manifest_case("a negative height", "schema", "image", "height", value=-8)
manifest_case("a height of a billion", "schema", "image", "height", value=10**9)
manifest_case("two channels", "schema", "image", "channels", value=2)
manifest_case("files as a list", "schema", "files", value=[MODEL, GOLDEN])
manifest_case("no files", "schema", "files", value={})
manifest_case("a graph outside the directory", "schema", "generator", "file", value="../generator.onnx")
manifest_case("an absolute path", "schema", "generator", "file", value="/etc/passwd")
manifest_case("a Windows path", "schema", "generator", "file", value="..\\generator.onnx")
manifest_case("a file that leads out", "schema", "files", "../outside", value={"sha256": "0" * 64, "bytes": 0})
manifest_case("the manifest lists itself", "schema", "files", MANIFEST, value={"sha256": "0" * 64, "bytes": 0})
manifest_case("a critic that is not there", "schema", "critic", value={
    "file": "critic.onnx",
    "inputs": [{"name": "image", "dtype": "uint8", "shape": ["N", 8, 8, 1]}],
    "outputs": [{"name": "realism", "dtype": "float32", "shape": ["N"]}],
    "opset": 20, "precision": "fp32", "optimisation": "all", "versions": {},
})  # fmt: skip
manifest_case("directions that are not there", "schema", "edits", "file", value="elsewhere.npy")
manifest_case("edits without directions", "schema", "edits", "file", value=None)
manifest_case("an attribute twice", "schema", "edits", "attributes", 1, "name", value="slant")
manifest_case("an attribute with a name of no option", "schema", "edits", "attributes", 0, "name", value="a=b")
manifest_case(
    "an attribute that changes the wrong way", "schema", "edits", "attributes", 0, "steps", 0, "change", value=1.0
)
manifest_case("a limit beyond what was measured", "schema", "edits", "attributes", 0, "limit", value=9.0)
manifest_case("a limit of a hundred", "schema", "edits", "attributes", 0, "limit", value=100.0)
manifest_case("more images kept than there are", "schema", "edits", "attributes", 0, "steps", 0, "kept", value=1.5)
manifest_case("another input name", "schema", "generator", "inputs", 0, "name", value="z")
manifest_case("another input type", "schema", "generator", "inputs", 0, "dtype", value="float64")
manifest_case("another optimisation level", "schema", "generator", "optimisation", value="none")


@broken("a missing key", "schema")
def _(path: Path) -> None:
    document = read_manifest(path)
    del document["sampling"]
    write_manifest(path, document)


@broken("a manifest for another image size, consistent in itself", "metadata-mismatch")
def _(path: Path) -> None:
    document = read_manifest(path)
    document["image"]["height"] = 16
    document["generator"]["outputs"][0]["shape"] = ["N", 16, 8, 1]
    write_manifest(path, document)
    seal(path, GOLDEN, npy(np.zeros((6, 16, 8, 1), np.uint8)))


@broken("an attribute less than directions", "npy-file")
def _(path: Path) -> None:
    document = read_manifest(path)
    del document["edits"]["attributes"][1]
    write_manifest(path, document)


@broken("directions of another length than latents", "npy-file")
def _(path: Path) -> None:
    seal(path, "directions.npy", npy(np.zeros((2, 5), np.float32)))


@broken("directions in double precision", "npy-file")
def _(path: Path) -> None:
    seal(path, "directions.npy", npy(np.zeros((2, 6))))


@broken("directions that are pickled", "npy-file")
def _(path: Path) -> None:
    seal(path, "directions.npy", npy(np.array([{}, {}]), allow_pickle=True))


@broken("a direction that is infinite", "not-finite")
def _(path: Path) -> None:
    seal(path, "directions.npy", npy(np.full((2, 6), np.inf, np.float32)))


@broken("one bit of the directions is flipped", "digest-mismatch")
def _(path: Path) -> None:
    data = bytearray((path / "directions.npy").read_bytes())
    data[-1] ^= 1
    (path / "directions.npy").write_bytes(data)


# ----------------------------------------------------------------------------------------------------- the graph


@broken("a pickle called .onnx", "not-onnx")
def _(path: Path) -> None:
    seal(path, MODEL, pickle.dumps({"weights": list(range(100))}))


@broken("an empty model", "not-onnx")
def _(path: Path) -> None:
    seal(path, MODEL, b"")


@broken("a picture called .onnx", "not-onnx")
def _(path: Path) -> None:
    seal(path, MODEL, (path / "samples.png").read_bytes())


@broken("a model cut short, with a fixed-up digest", "not-onnx")
def _(path: Path) -> None:
    seal(path, MODEL, (path / MODEL).read_bytes()[:-40])


@broken("a message nested 10,000 deep", "not-onnx")
def _(path: Path) -> None:
    data = b""
    for _ in range(3000):  # GraphProto.node (1) -> NodeProto.attribute (5) -> AttributeProto.g (6)
        for tag in (0x32, 0x2A, 0x0A):
            length, encoded = len(data), b""
            while length > 127:
                encoded += bytes([length & 127 | 128])
                length >>= 7
            data = bytes([tag]) + encoded + bytes([length]) + data
        if len(data) > 200_000:
            break
    seal(path, MODEL, (path / MODEL).read_bytes() + b"\x3a" + _varint(len(data)) + data)


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


@model_case("weights in another file", "external-data")
def _(model: onnx.ModelProto) -> None:
    tensor = weight(model, "weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


@model_case("weights in /etc/passwd", "external-data")
def _(model: onnx.ModelProto) -> None:
    tensor = weight(model, "bias")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


@model_case("weights in another file, hidden in a Constant", "external-data")
def _(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], value=tensor))


for op in ("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Dropout"):

    def _random(model: onnx.ModelProto, op: str = op) -> None:
        splice(model, helper.make_node(op, ["linear"], ["noisy"]))

    model_case(f"a random operator, {op}", "random-op")(_random)


@model_case("a random operator in a branch", "random-op")
def _(model: onnx.ModelProto) -> None:
    shape = {"shape": [1], "dtype": TensorProto.FLOAT}
    branches = {
        name: helper.make_graph(
            [helper.make_node("RandomNormal", [], [name], **shape)],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])],
        )
        for name in ("then_branch", "else_branch")
    }
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.insert(0, helper.make_node("If", ["yes"], ["unused"], **branches))


@model_case("a loop without end", "control-flow")
def _(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still_on"]),
            helper.make_node("Add", ["x", "x"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, None),
        ],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    splice(model, helper.make_node("Loop", ["", "yes", "linear"], ["looped"], body=body))


@model_case("a tensor of four terabytes", "allocation")
def _(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "huge"))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge"], ["zeros"]))
    model.graph.node.insert(1, helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0))
    splice(model, helper.make_node("Add", ["linear", "sum"], ["linear_plus"]))


@model_case("an image blown up a hundred thousand times", "allocation")
def _(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1 << 23], np.int64), "often"))
    splice(model, helper.make_node("Tile", ["linear", "often"], ["tiled"]))


@model_case("a contributed operator", "op-domain")
def _(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    splice(model, helper.make_node("Gelu", ["linear"], ["gelu"], domain="com.microsoft"))


@model_case("an operator of an undeclared domain", "op-domain")
def _(model: onnx.ModelProto) -> None:
    splice(model, helper.make_node("Evil", ["linear"], ["evil"], domain="evil"))


@model_case("a function of its own", "local-function")
def _(model: onnx.ModelProto) -> None:
    body = [helper.make_node("RandomNormalLike", ["x"], ["y"])]
    model.functions.append(helper.make_function("", "Tidy", ["x"], ["y"], body, [helper.make_opsetid("", 20)]))
    splice(model, helper.make_node("Tidy", ["linear"], ["tidied"]))


@model_case("training graphs", "training-info")
def _(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.name = "sgd"


@model_case("no metadata", "metadata-mismatch")
def _(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


@model_case("metadata that is no JSON", "metadata-mismatch")
def _(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = "{"


@model_case("metadata nested 100,000 deep", "metadata-mismatch")
def _(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = "[" * 100_000


@model_case("metadata of another generator", "metadata-mismatch")
def _(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = model.metadata_props[0].value.replace("cat", "cow")


@model_case("another opset than there is", "session")
def _(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9999


@model_case("an operator that does not exist", "session")
def _(model: onnx.ModelProto) -> None:
    node_of(model, "Tanh").op_type = "Tanj"


@model_case("weights that are missing", "session")
def _(model: onnx.ModelProto) -> None:
    model.graph.initializer.remove(weight(model, "weight"))


@model_case("fewer weights than the shape says", "session")
def _(model: onnx.ModelProto) -> None:
    tensor = weight(model, "weight")
    tensor.raw_data = tensor.raw_data[:-4]


@model_case("weights with a negative shape", "session")
def _(model: onnx.ModelProto) -> None:
    weight(model, "weight").dims[0] = -6


@model_case("weights of half a billion, claimed", "session")
def _(model: onnx.ModelProto) -> None:
    weight(model, "bias").dims[0] = 1 << 29


@model_case("a circle", "session")
def _(model: onnx.ModelProto) -> None:
    node_of(model, "Tanh").input[0] = "rounded"


@model_case("types that do not fit", "session")
def _(model: onnx.ModelProto) -> None:
    node_of(model, "Gather").input[1] = "latent"


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


@model_case("an input of another name", "signature")
def _(model: onnx.ModelProto) -> None:
    _rename(model, "latent", "z")


@model_case("an output of another name", "signature")
def _(model: onnx.ModelProto) -> None:
    _rename(model, "image", "picture")


@model_case("an input more", "signature")
def _(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["N"]))


@model_case("an output more", "signature")
def _(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("tanh", TensorProto.FLOAT, None))


@model_case("a fixed batch", "signature")
def _(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 6


@model_case("images as floats", "signature")
def _(model: onnx.ModelProto) -> None:
    node_of(model, "Cast").attribute[0].i = TensorProto.FLOAT
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT


@model_case("images of another shape", "signature")
def _(model: onnx.ModelProto) -> None:
    weight(model, "shape").CopyFrom(numpy_helper.from_array(np.array([-1, 1, 8, 8], np.int64), "shape"))
    for dim, length in zip(model.graph.output[0].type.tensor_type.shape.dim[1:], (1, 8, 8), strict=True):
        dim.dim_value = length


@model_case("fewer classes than labels", "run")
def _(model: onnx.ModelProto) -> None:
    table = numpy_helper.to_array(weight(model, "embedding"))[:2]
    weight(model, "embedding").CopyFrom(numpy_helper.from_array(table.copy(), "embedding"))


@model_case("a shape that only fits some batches", "run")
def _(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([5, -1], np.int64), "fives"))
    splice(model, helper.make_node("Reshape", ["linear", "fives"], ["in_fives"]))


@model_case("other weights, with a fixed-up digest", "golden-mismatch")
def _(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(weight(model, "weight")) * np.float32(1.5)
    weight(model, "weight").CopyFrom(numpy_helper.from_array(values, "weight"))


@model_case("two classes exchanged, with a fixed-up digest", "golden-mismatch")
def _(model: onnx.ModelProto) -> None:
    table = numpy_helper.to_array(weight(model, "embedding"))[[1, 0, 2]]
    weight(model, "embedding").CopyFrom(numpy_helper.from_array(table.copy(), "embedding"))


@model_case("weights that are NaN, with a fixed-up digest", "golden-mismatch")
def _(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(weight(model, "bias")) * np.float32("nan")
    weight(model, "bias").CopyFrom(numpy_helper.from_array(values, "bias"))


# ------------------------------------------------------------------------------------------- golden and critic


def golden_case(name: str, data: Callable[[np.ndarray[Any, Any]], bytes], code: str = "npy-file") -> None:
    def make(path: Path) -> None:
        seal(path, GOLDEN, data(np.load(path / GOLDEN)))

    BROKEN.append(Broken(name, code, make))


HEADER = "{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"

golden_case("empty golden samples", lambda images: b"")
golden_case("golden samples cut short", lambda images: npy(images)[:-10])
golden_case("golden samples with bytes after them", lambda images: npy(images) + b"\0")
golden_case("golden samples of another type", lambda images: npy(images.astype(np.float32)))
golden_case("golden samples of another shape", lambda images: npy(images.reshape(6, 64)))
golden_case("golden samples in Fortran's order", lambda images: npy(np.asfortranarray(images)))
golden_case("golden samples that are a pickle", lambda images: npy(np.array([{}, []], object), allow_pickle=True))
golden_case("golden samples that are an npz", lambda images: b"PK\x03\x04" + npy(images))
golden_case(
    "golden samples of a claimed petabyte",
    lambda images: npy_claiming(HEADER.format(shape="(6, 99999999, 99999999, 1)")),
)
golden_case(
    "golden samples with a header that is code",
    lambda images: npy_claiming("__import__('os').system('true')"),
)
golden_case(
    "golden samples with a header nested 20,000 deep",
    lambda images: npy_claiming("(" * 20_000 + ")" * 20_000),
)
golden_case(
    "golden samples with a header of a claimed gigabyte",
    lambda images: b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little") + b" " * 100,
)
golden_case(
    "golden samples with a number of 9,000 digits",
    lambda images: npy_claiming(HEADER.format(shape="(" + "9" * 9000 + ",)")),
)
golden_case("golden samples of another generator", lambda images: npy(255 - images), "golden-mismatch")


def with_critic(path: Path, data: bytes) -> None:
    """A critic that the manifest names, whatever it is."""
    document = read_manifest(path)
    document["critic"] = {
        "file": "critic.onnx",
        "inputs": [
            {"name": "image", "dtype": "uint8", "shape": ["N", 8, 8, 1]},
            {"name": "label", "dtype": "int64", "shape": ["N"]},
        ],
        "outputs": [{"name": "realism", "dtype": "float32", "shape": ["N"]}],
        "opset": 20,
        "precision": "fp32",
        "optimisation": "all",
        "versions": {},
    }
    write_manifest(path, document)
    seal(path, "critic.onnx", data)


@broken("a critic that is a pickle", "not-onnx")
def _(path: Path) -> None:
    with_critic(path, pickle.dumps([1, 2, 3]))


@broken("a critic with a random operator", "random-op")
def _(path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("RandomNormal", [], ["realism"], shape=[1])],
        "critic",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 1])],
        [helper.make_tensor_value_info("realism", TensorProto.FLOAT, ["N"])],
    )
    with_critic(path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString())


@broken("a critic of another bundle's image size", "schema")
def _(path: Path) -> None:
    with_critic(path, b"")
    document = read_manifest(path)
    document["critic"]["inputs"][0]["shape"] = ["N", 28, 28, 1]
    write_manifest(path, document)


def reseal_metadata(path: Path) -> None:
    """Make the model's metadata agree with the manifest again."""
    manifest = parse_manifest((path / MANIFEST).read_bytes(), path)

    def edit(model: onnx.ModelProto) -> None:
        model.metadata_props[0].value = json.dumps(essentials(manifest))

    edit_model(path, edit)


@broken("labels renamed everywhere but in the golden samples", "schema")
def _(path: Path) -> None:
    document = read_manifest(path)
    document["class_names"] = ["cow", "dog", "été 10"]
    write_manifest(path, document)


@broken("labels exchanged in manifest and metadata", "golden-mismatch")
def _(path: Path) -> None:
    document = read_manifest(path)
    document["class_names"] = ["dog", "cat", "été 10"]
    write_manifest(path, document)
    reseal_metadata(path)


# ------------------------------------------------------------------------------------------------------ the judges


@cache
def judged_bundle() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="augmint-judged-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_tiny_bundle(folder / "tiny", judged=True)


def judged_case(name: str, code: str, change: Callable[[Path], object]) -> None:
    """A bundle with a critic and a classifier, changed."""

    def make(path: Path) -> None:
        shutil.rmtree(path)
        shutil.copytree(judged_bundle(), path)
        change(path)

    BROKEN.append(Broken(name, code, make))


def judges_case(name: str, *keys: str | int, value: object) -> None:
    """… of which the manifest's `quality` has another value at `keys`; None takes it away."""

    def change(path: Path) -> None:
        document = read_manifest(path)
        place: Any = document["quality"]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        write_manifest(path, document)

    judged_case(name, "schema", change)


def edit_classifier(edit: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        model = onnx.load(str(path / "classifier.onnx"))
        edit(model)
        seal(path, "classifier.onnx", model.SerializeToString())

    return change


judged_case("no classifier", "missing-file", lambda path: (path / "classifier.onnx").unlink())
judged_case("a classifier that is a pickle", "not-onnx", lambda path: seal(path, "classifier.onnx", pickle.dumps([])))
judged_case(
    "a classifier with dice",
    "random-op",
    edit_classifier(lambda model: splice(model, helper.make_node("Bernoulli", ["rows"], ["dice"]), "rows")),
)
judged_case(
    "a classifier with operators of its own",
    "op-domain",
    edit_classifier(lambda model: splice(model, helper.make_node("Run", ["rows"], ["x"], domain="evil"), "rows")),
)
for file in ("realism.npy", "train.npy"):

    def npy_case(what: str, code: str, change: Callable[[Any], bytes], file: str = file) -> None:
        judged_case(
            f"{file} {what}", code, lambda path: seal(path, file, change(np.load(path / file, allow_pickle=False)))
        )

    npy_case("cut short", "npy-file", lambda table: npy(table)[:-2])
    npy_case("of another type", "npy-file", lambda table: npy(table.astype("<f8")))
    npy_case("of another shape", "npy-file", lambda table: npy(table[1:]))
    npy_case("in the other byte order", "npy-file", lambda table: npy(table.astype(table.dtype.newbyteorder(">"))))
    npy_case("that is a pickle", "npy-file", lambda table: npy(np.array([{}], object), allow_pickle=True))
    npy_case("with a NaN in it", "not-finite", lambda table: npy(np.where(table == table.max(), np.nan, table).astype(table.dtype)))  # fmt: skip  # noqa: E501

judges_case("a part of quality that nobody knows", "beauty", value={})
judges_case("shares of realism that fall", "realism", "shares", value=[0.0, 0.9, 0.5])
judges_case("shares of realism that end early", "realism", "shares", value=[0.0, 0.25, 0.5, 0.75, 0.8])
judges_case("copies that are no distance away", "copies", "threshold", value=0.0)
judges_case("copies without a classifier", "classifier", value=None)
judges_case("features of another width", "copies", "width", value=4)
judges_case("a classifier of fewer classes", "classifier", "outputs", 0, "shape", value=["N", 2])
judges_case("a classifier that wants labels", "classifier", "inputs", 0, "name", value="label")
judges_case("a part that cannot be missing", "missing", value={"beauty": "it is in the eye"})
judged_case(
    "realism without a critic",
    "schema",
    lambda path: write_manifest(path, {**read_manifest(path), "critic": None}),
)
judged_case(
    "a table of realism that the manifest does not list",
    "schema",
    lambda path: write_manifest(
        path,
        {
            **(document := read_manifest(path)),
            "files": {k: v for k, v in document["files"].items() if k != "realism.npy"},
        },
    ),
)
