"""The JSON that comes in and goes out, as pydantic models: validation and OpenAPI from one place.

Only shapes and types are checked here; whether a label exists is `augmint.samples.Request.make`'s business.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from augmint.bundle import Edit, Utility
from augmint.endmark import StreamForm
from augmint.errors import RequestError
from augmint.samples import BundleInfo, Request
from serving.codecs import Format

__all__ = [
    "MODELS_IN",
    "MODELS_OUT",
    "BundleDetail",
    "BundleList",
    "BundleModel",
    "GenerateBody",
    "InferAnswer",
    "InferBody",
    "InferInput",
    "JobList",
    "JobModel",
    "Limits",
    "ModelMetadata",
    "PlanBody",
    "PlanModel",
    "ProblemModel",
    "ServerMetadata",
    "StreamBody",
    "parse_body",
    "parse_infer",
    "parse_plan",
    "parse_stream",
]

# A JSON number above 2^53 loses digits in most readers, so 64-bit integers may come as decimal strings.
Decimal64 = Annotated[str, Field(pattern=r"^[0-9]{1,20}$")]
Count = Annotated[int, Field(ge=0)]


_Body = TypeVar("_Body", bound="_Strict")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _ImagesBody(_Strict):
    bundle: Annotated[str, Field(max_length=256)] | None = Field(
        None,
        description="a bundle's name (its newest version, as name@latest), name@DIGEST (8 hex digits or more), or "
        "digest; may be left out where the service has bundles of one name",
        examples=["digits", "digits@3f0c2a71"],
    )
    counts: dict[str, Count] | Count = Field(
        description="images of each label; for an unconditional bundle their number",
        examples=[{"3": 200, "7": 50}, 16],
    )
    seed: Annotated[int, Field(ge=0, lt=2**64)] | Decimal64 | None = Field(
        None,
        description="0 … 2^64 - 1, above 2^53 better as a decimal string; left out, one is chosen and returned as "
        "Augmint-Seed",
    )
    offset: Annotated[int, Field(ge=0, lt=2**64)] | Decimal64 = Field(
        0, description="index of the first image of each label: for 200 more of the same seed, 200"
    )
    truncation: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the latent's central mass to draw from: less is more typical and less varied"
    )
    edit: Annotated[dict[str, float], Field(max_length=64)] = Field(
        default_factory=dict,
        description="a step in latent space that changes an attribute of every image and keeps its class: attribute "
        "and amount, in standard deviations of that attribute; a bundle's `edits` has those there are, and their "
        "largest amounts",
        examples=[{"slant": 1.5}],
    )

    def request(self, info: BundleInfo, *, quality: str = "none", candidates: int | None = None) -> Request:
        """What is asked of this bundle; raises as `Request.make` does."""
        return Request.make(
            self.counts,
            info.class_names,
            seed=None if self.seed is None else int(self.seed),
            offset=int(self.offset),
            truncation=self.truncation,
            quality=quality,
            offered=info.quality,
            candidates=candidates,
            edit=self.edit,
            editable=info.edits,
        )


class GenerateBody(_ImagesBody):
    """How many images of what, from which seed."""

    quality: Annotated[str, Field(max_length=256)] = Field(
        "none",
        description="which images to keep: none (all of them), or labels (the bundle's classifier agrees), labels:P "
        "(with at least that probability), copies (no near copies of training images) and realism:SHARE (without that "
        "share of each label, the least realistic), joined by commas; a bundle's `quality` says which it can judge. "
        "Up to 20 times as many images and 64 are made of each label to find enough; then there are fewer",
        examples=["labels,realism:0.2"],
    )
    candidates: Annotated[int, Field(ge=1, lt=2**53)] | None = Field(
        None,
        description="under a quality, most images to make of each label, if fewer than that: for a piece of a larger "
        "request, of which some were made already",
    )
    format: Format | None = Field(None, description="goes before Accept; npz if neither says")


class StreamBody(_ImagesBody):
    """Images of any number, and which of their rows."""

    start: Annotated[int, Field(ge=0, lt=2**64)] | Decimal64 = Field(
        0, description="row of the whole to begin at: to go on where a stream was cut, or to share one among several"
    )
    stop: Annotated[int, Field(ge=0, lt=2**64)] | Decimal64 | None = Field(
        None, description="row of the whole to end before; left out, the stream goes on to the last one"
    )
    format: StreamForm = Field(
        "tar",
        description="tar: for each image key.png, key.cls (the number of its label) and key.json (its address), as the "
        "webdataset library reads them; npy: uint8 [N, H, W, C]; zip: a folder of PNGs per class and metadata.csv, at "
        "most 65000 images",
    )


class BundleModel(BaseModel):
    """What a bundle can make."""

    name: str
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of its manifest")]
    latest: bool = Field(description="whether the name alone means this one, the newest of its name")
    family: str
    class_names: list[str] = Field(description="labels, in order; empty when unconditional")
    image_shape: Annotated[list[int], Field(min_length=3, max_length=3, description="height, width, channels")]
    latent_dim: int
    reproducibility: Literal["exact", "tolerance"] = Field(
        description="exact: the golden samples came out byte for byte on this machine"
    )
    tolerance: int = Field(description="largest difference in grey levels to be expected elsewhere")
    device: str
    quality: dict[str, str] = Field(description="part of a quality: empty where it can be judged, else why not")
    edits: dict[str, float] = Field(description="attribute that can be edited: the largest amount, either way")

    @classmethod
    def of(cls, info: BundleInfo, latest: bool) -> dict[str, Any]:
        return {
            "name": info.name,
            "digest": info.digest,
            "latest": latest,
            "family": info.family,
            "class_names": list(info.class_names),
            "image_shape": list(info.image_shape),
            "latent_dim": info.latent_dim,
            "reproducibility": info.reproducibility,
            "tolerance": info.tolerance,
            "device": info.device,
            "quality": dict(info.quality),
            "edits": dict(info.edits),
        }


class Limits(BaseModel):
    images: int = Field(description="most images of one request")
    queue_images: int = Field(description="most images waiting or being made")
    body_bytes: int = Field(description="most bytes of a request's body")
    seconds: float = Field(description="after which an answer is given up")


class BundleList(BaseModel):
    bundles: list[BundleModel]
    limits: Limits


class BundleDetail(BundleModel):
    """A bundle with where it comes from and what was measured of it."""

    parameters: int
    trained: str
    licence: str
    augmint_version: str
    train_counts: dict[str, int] = Field(description="images it was trained on, by label")
    metrics: list[dict[str, Any]] = Field(description="measured figures, each with its method and n")
    directions: list[Edit] = Field(description="of what can be edited, what was measured")
    utility: Utility | None = Field(description="whether the images help a classifier; null where not measured")
    report: bool = Field(description="whether the evaluation's page is there")
    warnings: list[str]


class ProblemModel(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str = Field(description="one sentence: what was wrong and how to mend it")
    code: str = Field(description="for programs; stable")
    request_id: str
    labels: list[str] | None = Field(None, description="with unknown-label: the labels of the bundle")
    bundles: list[str] | None = Field(None, description="with unknown-bundle: the bundles of the service")
    error: str | None = Field(None, description="under /v2: the detail, where the protocol's clients look for it")


class PlanBody(_Strict):
    """Real images of each label, and how they should be balanced."""

    bundle: Annotated[str, Field(max_length=256)] | None = Field(None, description="see /v1/generate")
    counts: Annotated[dict[str, Count], Field(min_length=1)] = Field(
        description="real images of each label", examples=[{"good": 2000, "scratch": 60}]
    )
    strategy: Literal["auto", "minority", "not minority", "not majority", "all"] | dict[str, Count] | float = Field(
        "auto",
        description="as imbalanced-learn's sampling_strategy: a word, totals by label, or, for two labels, the "
        "share of the larger one",
    )


class PlanModel(BaseModel):
    bundle: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    counts: dict[str, int] = Field(description="images to generate of each label: counts for /v1/generate")
    images: int
    bytes: int = Field(description="of the pixels")
    requests: int = Field(description="how many requests that takes, at this service's limit")
    seconds: float | None = Field(description="of work, as far as the service knows its pace; null before its first")
    waiting: int = Field(description="images that others wait for now")


class JobModel(BaseModel):
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    state: Literal["waiting", "running", "done", "failed"]
    done: int = Field(description="images that are made")
    total: int = Field(description="images that were asked for")
    bytes: int = Field(description="of the result so far")
    error: str = Field(description="one sentence, where it failed; else empty")
    created: str = Field(description="RFC 3339")
    expires: str | None = Field(description="when the result is removed, where there is one; RFC 3339")
    sha256: str | None = Field(description="of the result, in hex, where there is one")
    bundle: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    seed: str = Field(description="also where the service chose it")
    format: StreamForm


class JobList(BaseModel):
    jobs: list[JobModel]


class InferInput(_Strict):
    """A tensor of an inference request; see `serving.oip`."""

    name: str = Field(description="seed, index, label or truncation")
    shape: Annotated[list[Count], Field(min_length=1)] = Field(description="[N] or [N, 1]")
    datatype: str = Field(description="of seed and index UINT64, of label BYTES or INT64, of truncation FP64 or FP32")
    data: list[Any] | None = Field(None, description="the values, where they do not follow the JSON")
    parameters: dict[str, Any] = Field({}, description="binary_data_size: how many bytes of it follow the JSON")


class InferWanted(_Strict):
    """An output that is asked for."""

    name: str = Field(description="image")
    parameters: dict[str, Any] = Field({}, description="binary_data: whether it follows the JSON")


class InferBody(_Strict):
    """An inference request of the Open Inference Protocol v2: a row of the inputs is the address of an image."""

    id: str | None = Field(None, description="returned with the answer")
    parameters: dict[str, Any] = Field(
        {},
        description="binary_data_output: whether outputs follow the JSON, where they do not say so themselves; "
        "timeout: microseconds after which the client no longer waits",
    )
    inputs: Annotated[list[InferInput], Field(min_length=1)] = Field(
        examples=[
            [
                {"name": "seed", "shape": [1], "datatype": "UINT64", "data": [7]},
                {"name": "index", "shape": [1], "datatype": "UINT64", "data": [0]},
                {"name": "label", "shape": [1], "datatype": "BYTES", "data": ["3"]},
            ]
        ]
    )
    outputs: list[InferWanted] | None = None


class InferOutput(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[int] | None = Field(None, description="row by row, where it does not follow the JSON")
    parameters: dict[str, int] | None = Field(None, description="binary_data_size")


class InferAnswer(BaseModel):
    """An inference's answer; a row of its output is the image of that row's address."""

    model_name: str
    model_version: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="the bundle's digest")]
    id: str | None = None
    outputs: list[InferOutput]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 is any number of rows")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str] = Field(description="digests")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


# Those that the OpenAPI document describes.
MODELS_IN: Final[tuple[type[BaseModel], ...]] = (GenerateBody, StreamBody, PlanBody, InferBody)
MODELS_OUT: Final[tuple[type[BaseModel], ...]] = (
    BundleList,
    BundleDetail,
    PlanModel,
    JobModel,
    JobList,
    ProblemModel,
    InferAnswer,
    ServerMetadata,
    ModelMetadata,
)


def parse_plan(data: bytes) -> PlanBody:
    """As `parse_body`, for /v1/plan."""
    return _parse(PlanBody, data, '{"counts": {"good": 2000, "scratch": 60}}')


def parse_infer(data: bytes) -> InferBody:
    """As `_parse`, for the JSON of an inference request."""
    return _parse(InferBody, data, '{"inputs": [{"name": "seed", "shape": [1], "datatype": "UINT64", "data": [7]}, …]}')


def parse_body(data: bytes) -> GenerateBody:
    """As `_parse`, for /v1/generate."""
    return _parse(GenerateBody, data, '{"counts": {"3": 10}}, or {"counts": 10}')


def parse_stream(data: bytes) -> StreamBody:
    """As `_parse`, for /v1/stream."""
    return _parse(StreamBody, data, '{"counts": {"3": 10}}, or {"counts": 10}')


def _parse(model: type[_Body], data: bytes, least: str) -> _Body:
    """Strict JSON (UTF-8, no name twice, no NaN) of the right shape; `least` is the shortest that would do.

    Raises:
        RequestError: "request.malformed" where it is not JSON, "request.invalid" where it is not this JSON.
    """
    try:
        document = _STRICT.decode(data.decode("utf-8"))
    except _Malformed as problem:
        raise RequestError(f"the body is not valid JSON: {problem}.", code="request.malformed") from None
    except UnicodeDecodeError:
        raise RequestError("the body is not valid JSON: it is not UTF-8.", code="request.malformed") from None
    except json.JSONDecodeError as error:
        raise RequestError(
            f"the body is not valid JSON: {error.msg.lower()} at line {error.lineno}, column {error.colno}.",
            code="request.malformed",
        ) from None
    except (ValueError, RecursionError):  # an integer of thousands of digits; thousands of brackets
        raise RequestError(
            "the body is not JSON that can be read: it is nested too deeply or holds too long a number.",
            code="request.malformed",
        ) from None
    if not isinstance(document, dict):
        raise RequestError(f"the body must be a JSON object, such as {least}.")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise RequestError(_sentence(error, model, least)) from None


class _Malformed(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _Malformed("a name stands twice in one object")
    return result


def _constant(name: str) -> None:
    raise _Malformed(f"{name} is not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


def _sentence(error: ValidationError, model: type[BaseModel], least: str) -> str:
    """The first thing that is wrong, by field: pydantic's own account of a union is for programmers."""
    first = error.errors(include_url=False, include_input=False)[0]
    name = str(first["loc"][0])[:60] if first["loc"] else "the body"
    top = len(first["loc"]) == 1
    if top and first["type"] == "missing":
        return f"{name} is missing: the least that is needed is {least}."
    if top and first["type"] == "extra_forbidden":
        return f"{name!r} is not known here: there are {', '.join(model.model_fields)}."
    if name == "format" and model is StreamBody:
        return "format must be tar, npy or zip."
    return f"{name} must be {_EXPECTED.get(name, 'something else')}."


_EXPECTED = {
    "bundle": "a bundle's name",
    "counts": "whole numbers, 0 or more, by label; for an unconditional bundle one such number",
    "seed": "a whole number from 0 to 2^64 - 1, or such a number as a decimal string",
    "offset": "a whole number, 0 or more, below 2^64",
    "truncation": "a number above 0, at most 1",
    "quality": 'text, such as "labels,realism:0.2"',
    "candidates": "a whole number, 1 or more",
    "edit": 'numbers by attribute, such as {"slant": 1.5}',
    "format": "npz, npy, zip, png or webp",
    "start": "a row, a whole number from 0",
    "stop": "a row, a whole number above start",
    "id": "text",
    "parameters": "values by name",
    "inputs": "tensors, each with name, shape, datatype, and data or the parameter binary_data_size",
    "outputs": 'outputs by name, such as [{"name": "image", "parameters": {"binary_data": true}}]',
    "strategy": "auto, minority, not minority, not majority, all, totals by label, or a share from 0 to 1",
}
