"""Tensors in, tensors out: the Open Inference Protocol v2 (KServe's "V2", which Triton speaks), JSON and binary.

Every bundle is a model. A row of its inputs is an address, and that row of its output is the image that has it:

    seed        UINT64 [N] or [N, 1]
    index       UINT64, below 2^64 - 1
    label       BYTES (its name, UTF-8) or INT64 (its number); only where the bundle has labels
    truncation  FP64 or FP32, in (0, 1]; 1 where it is left out
        -> image  UINT8 [N, height, width, channels]

Of the protocol's extensions there is binary_tensor_data: the numbers of a tensor follow the JSON, little-endian and row
by row, a text as its length (uint32) and its UTF-8. This module knows nothing of HTTP or of how images are made.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from augmint import __version__
from augmint.errors import RequestError, TooLargeError
from augmint.samples import BundleInfo, Request, label_numbers
from serving.schema import InferInput, parse_infer

__all__ = ["Inference", "answer", "config_of", "metadata_of", "most_tensor_bytes", "parse", "server"]

OUTPUT: Final = "image"
# Of all numbers of an answer in JSON: a megabyte of pixels becomes four of text, and a second of a core.
_MOST_JSON: Final = 1 << 20
_PLATFORM: Final = "onnxruntime_onnx"
_NUMBERS: Final[Mapping[str, np.dtype[Any]]] = {
    "UINT64": np.dtype("<u8"),
    "INT64": np.dtype("<i8"),
    "FP64": np.dtype("<f8"),
    "FP32": np.dtype("<f4"),
}
_WRITTEN: Final = {"UINT64": (int,), "INT64": (int,), "FP64": (int, float), "FP32": (int, float), "BYTES": (str,)}
_CONFIG_TYPES: Final = {"BYTES": "TYPE_STRING"}

Json = dict[str, Any]
Column = NDArray[Any] | list[str]


@dataclass(frozen=True, slots=True)
class _Input:
    """An input of a model; the first of its datatypes is the one that its metadata names."""

    name: str
    datatypes: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Inference:
    """A checked request.

    Attributes:
        request: the addresses, in order.
        id: the client's, for its answer; None where there is none.
        binary: whether the image goes behind the JSON, not into it.
        timeout_s: after which the client no longer waits; None: as long as it takes.
    """

    request: Request
    id: str | None
    binary: bool
    timeout_s: float | None


# ---------------------------------------------------------------------------------------------- what there is


def server() -> Json:
    """The server's metadata."""
    return {"name": "augmint", "version": __version__, "extensions": ["binary_tensor_data", "model_configuration"]}


def metadata_of(info: BundleInfo, versions: Sequence[str]) -> Json:
    """A model's metadata; its version is its digest."""
    return {
        "name": info.name,
        "versions": list(versions),
        "platform": _PLATFORM,
        "inputs": [{"name": i.name, "datatype": i.datatypes[0], "shape": [-1, 1]} for i in _inputs(info)],
        "outputs": [{"name": OUTPUT, "datatype": "UINT8", "shape": [-1, *info.image_shape]}],
    }


def config_of(info: BundleInfo, most: int) -> Json:
    """A model's configuration as Triton words it, as far as it has a meaning here; `most` images of one request."""
    return {
        "name": info.name,
        "platform": _PLATFORM,
        "max_batch_size": most,
        "input": [
            {"name": i.name, "data_type": _config_type(i.datatypes[0]), "dims": [1], "optional": i.optional}
            for i in _inputs(info)
        ],
        "output": [{"name": OUTPUT, "data_type": _config_type("UINT8"), "dims": list(info.image_shape)}],
    }


def most_tensor_bytes(info: BundleInfo, most: int) -> int:
    """How many bytes the inputs of `most` rows are at most, behind the JSON."""
    longest = max((len(name.encode()) for name in info.class_names), default=0)
    return most * (8 + 8 + max(4 + longest, 8) + 8)


def _inputs(info: BundleInfo) -> tuple[_Input, ...]:
    label = (_Input("label", ("BYTES", "INT64")),) if info.conditional else ()
    return (
        _Input("seed", ("UINT64",)),
        _Input("index", ("UINT64",)),
        *label,
        _Input("truncation", ("FP64", "FP32"), True),
    )


def _config_type(datatype: str) -> str:
    return _CONFIG_TYPES.get(datatype, f"TYPE_{datatype}")


# ---------------------------------------------------------------------------------------------- what is asked


def parse(data: bytes, header: int | None, info: BundleInfo, most: int) -> Inference:
    """Check a request against a bundle.

    Args:
        data: the JSON, and the binary tensors behind it.
        header: Inference-Header-Content-Length: how many bytes of it are JSON; None: all.
        info: the bundle.
        most: rows.

    Raises:
        RequestError, TooLargeError: one sentence about what is wrong.
    """
    if header is not None and header > len(data):
        raise RequestError(
            f"Inference-Header-Content-Length is {header}, but the body has {len(data)} bytes.",
            code="request.malformed",
        )
    body = parse_infer(data if header is None else data[:header])
    tail = memoryview(data)[len(data) if header is None else header :]
    columns = _columns(body.inputs, tail, info, most)
    rows = len(columns["seed"])
    binary = _flag(body.parameters, "binary_data_output", False)
    for wanted in body.outputs or ():
        if wanted.name != OUTPUT or len(body.outputs or ()) > 1:
            raise RequestError(f"the one output is {OUTPUT}: ask for it once, or leave outputs out.")
        _only(wanted.parameters, ("binary_data",), "an output")
        binary = _flag(wanted.parameters, "binary_data", binary)
    values = rows * int(np.prod(info.image_shape))
    if not binary and values > _MOST_JSON:
        raise TooLargeError(
            f"{values} numbers are more than the {_MOST_JSON} that JSON may have: ask for binary data "
            "(binary_data_output), or for fewer images."
        )
    _only(body.parameters, ("binary_data_output", "timeout"), "a request")
    timeout = body.parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        raise RequestError("the parameter timeout must be a whole number of microseconds.")
    label = columns.get("label", np.zeros(rows))
    request = Request.of_addresses(
        label_numbers(label, info.class_names) if isinstance(label, list) else label.astype(np.int64),
        np.asarray(columns["seed"], dtype=np.uint64),
        np.asarray(columns["index"], dtype=np.uint64),
        np.asarray(columns.get("truncation", np.ones(rows)), dtype=np.float64),
        info.class_names,
    )
    return Inference(request, body.id, binary, timeout / 1e6 if timeout else None)


def _columns(inputs: Sequence[InferInput], tail: memoryview, info: BundleInfo, most: int) -> dict[str, Column]:
    """The inputs by name, each with as many rows as the others; texts as they are, numbers as arrays [N]."""
    known = {one.name: one for one in _inputs(info)}
    found: dict[str, Column] = {}
    for tensor in inputs:
        name = tensor.name
        if name not in known or name in found:
            unconditional = " (this bundle has no labels)" if name == "label" and not info.conditional else ""
            raise RequestError(f"the inputs are {', '.join(known)}, each once, not {name[:40]!r}{unconditional}.")
        if tensor.datatype not in known[name].datatypes:
            raise RequestError(f"{name} must be {' or '.join(known[name].datatypes)}, not {tensor.datatype[:20]!r}.")
        rows = _rows(tensor, most)
        size = _binary_size(tensor)
        if size is None:
            found[name] = _from_json(tensor, rows)
        else:
            if size > len(tail):
                raise RequestError(
                    f"{name} should have {size} bytes behind the JSON, and there are {len(tail)}: its length is the "
                    "header Inference-Header-Content-Length."
                )
            found[name] = _from_bytes(tensor, rows, tail[:size])
            tail = tail[size:]
    if len(tail):
        raise RequestError(f"{len(tail)} bytes behind the JSON belong to no input.")
    if missing := [one.name for one in known.values() if not one.optional and one.name not in found]:
        raise RequestError(f"{', '.join(missing)} is missing: a row is an address, so it needs every part of one.")
    if len({len(column) for column in found.values()}) > 1:
        raise RequestError("the inputs must have as many rows as each other.")
    return found


def _rows(tensor: InferInput, most: int) -> int:
    rows, *rest = tensor.shape
    if rest not in ([], [1]) or rows < 1:
        raise RequestError(f"{tensor.name} must have the shape [N] or [N, 1], N at least 1, not {tensor.shape!s:.60}.")
    if rows > most:
        raise TooLargeError(f"{rows} images are more than the {most} that one request may have: ask in several.")
    return rows


def _binary_size(tensor: InferInput) -> int | None:
    """How many bytes of it stand behind the JSON; None: it stands in there."""
    _only(tensor.parameters, ("binary_data_size",), "an input")
    size = tensor.parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise RequestError(f"the parameter binary_data_size of {tensor.name} must be a number of bytes.")
    if (size is None) == (tensor.data is None):
        raise RequestError(f"{tensor.name} needs either data or the parameter binary_data_size.")
    return size


def _from_json(tensor: InferInput, rows: int) -> Column:
    values: list[Any] = []
    for item in tensor.data or ():  # flat, or a list for each row
        values += item if isinstance(item, list) else [item]
    if len(values) != rows:
        raise RequestError(f"{tensor.name} has {len(values)} values, not {rows}.")
    # The very type: True is an int to Python.
    if all(type(value) in _WRITTEN[tensor.datatype] for value in values):
        if tensor.datatype == "BYTES":
            return values
        # What is too large for FP32 becomes infinity, which is no truncation.
        with contextlib.suppress(OverflowError), np.errstate(over="ignore"):
            return np.array(values, dtype=_NUMBERS[tensor.datatype])
    raise RequestError(f"{tensor.name} has a value that is no {tensor.datatype}.")


def _from_bytes(tensor: InferInput, rows: int, raw: memoryview) -> Column:
    if tensor.datatype == "BYTES":
        return _texts(tensor, rows, raw)
    dtype = _NUMBERS[tensor.datatype]
    if len(raw) != rows * dtype.itemsize:
        raise RequestError(f"{tensor.name} has {len(raw)} bytes behind the JSON, not {rows} × {dtype.itemsize}.")
    return np.frombuffer(raw, dtype=dtype)


def _texts(tensor: InferInput, rows: int, raw: memoryview) -> list[str]:
    texts: list[str] = []
    place = 0
    while len(texts) < rows and place + 4 <= len(raw):
        (length,) = struct.unpack_from("<I", raw, place)
        # What is no UTF-8 is no label either, and is named as such.
        texts.append(bytes(raw[place + 4 : place + 4 + length]).decode("utf-8", "replace"))
        place += 4 + length
    if len(texts) != rows or place != len(raw):
        raise RequestError(
            f"{tensor.name} must be {rows} texts, each its length as 4 little-endian bytes and then its UTF-8."
        )
    return texts


def _only(given: Mapping[str, Any], known: Sequence[str], whose: str) -> None:
    for name in given:
        if name not in known:
            raise RequestError(f"the parameters of {whose} are {', '.join(known)} here, not {name[:40]!r}.")


def _flag(given: Mapping[str, Any], name: str, default: bool) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"the parameter {name} must be true or false.")
    return value


# ---------------------------------------------------------------------------------------------- what is answered


def answer(inference: Inference, info: BundleInfo, images: NDArray[np.uint8]) -> tuple[bytes, int | None]:
    """The body, and how many bytes of it are JSON where images follow it; None: it is JSON alone.

    Args:
        images: uint8 [N, H, W, C].
    """
    output: Json = {"name": OUTPUT, "datatype": "UINT8", "shape": list(images.shape)}
    if inference.binary:
        output["parameters"] = {"binary_data_size": images.nbytes}
    else:
        output["data"] = images.ravel().tolist()
    document: Json = {"model_name": info.name, "model_version": info.digest, "outputs": [output]}
    if inference.id is not None:
        document["id"] = inference.id
    header = json.dumps(document, separators=(",", ":")).encode("ascii")
    if not inference.binary:
        return header, None
    return b"".join((header, np.ascontiguousarray(images).data)), len(header)
