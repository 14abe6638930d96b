"""The bundle: the one contract between export and everything that generates from it.

A bundle is a directory:

    manifest.json     what this is and the sha256 of every other file; written last, so its existence means complete
    generator.onnx    latent float32 [N, Z] (and label int64 [N]) -> image uint8 [N, H, W, C]
    golden.npy        images that the generator must reproduce before it may serve
    critic.onnx       image uint8 [N, H, W, C] (and label) -> realism float32 [N] (and class_logits); optional
    classifier.onnx   image uint8 [N, H, W, C] -> class_logits float32 [N, K], features float32 [N, D]; optional
    realism.npy       float32 [K, Q]: quantiles of the critic's realism over generated images of each class; optional
    train.npy         float16 [M, D]: the classifier's features of the training images, to tell copies by; optional
    directions.npy    float32 [A, Z]: a step in latent space for each attribute that can be edited; optional
    samples.png       a sheet to look at
    README.md         the model card
    report.html       the evaluation's page, and report.json its figures, where it was evaluated; optional
    signature.json    who vouches for it (`augmint.signing`); optional, and the one file that the manifest does not list

`read_bundle` trusts nothing that it has not checked, in this order, and refuses with a `BundleError` whose `code` names
the check: regular files and strict names -> strict JSON and schema -> sha256 of the very bytes that will be used ->
graph (op domains, external data, random ops, mirrored metadata). `augmint.generator` goes on: session -> inputs and
outputs -> golden samples. Nothing is ever unpickled, and nothing is read twice: the bytes that were hashed are the
bytes that are run.

This module knows neither torch nor onnxruntime, and imports onnx only to look at a graph.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from augmint.errors import BundleError, ExportError
from augmint.latents import ALGORITHM, MAX_DIM, TABLE_SHA256
from augmint.quality import LARGEST_SHARE, PARTS

__all__ = [
    "MANIFEST",
    "REPORT_PAGE",
    "SCHEMA_VERSION",
    "SIGNATURE",
    "Architecture",
    "BatchInvariance",
    "BundleFiles",
    "Codes",
    "Copies",
    "Data",
    "Description",
    "Edit",
    "EditStep",
    "Edits",
    "Evidence",
    "FileEntry",
    "Golden",
    "Graph",
    "Identity",
    "Image",
    "Judges",
    "Manifest",
    "Metric",
    "Parity",
    "Realism",
    "Sampling",
    "Tensor",
    "Utility",
    "essentials",
    "npy_bytes",
    "read_bundle",
    "write_bundle",
]

SCHEMA_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "signature.json"
METADATA_KEY: Final = "augmint"
REPORT_PAGE: Final = "report.html"

MAX_MANIFEST_BYTES: Final = 4 << 20
MAX_FILE_BYTES: Final = 2 << 30  # protobuf's own limit for one message
MAX_SIDE_BYTES: Final = 64 << 20  # of a file that is no graph: the sheet, the card, the golden samples
MAX_FILES: Final = 32
MAX_SIGNATURE_BYTES: Final = 4096
# Of one tensor at batch 1: 4096 x 4096 with 16 channels. More can only be meant to exhaust somebody's memory.
MAX_ELEMENTS: Final = 1 << 28

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# A generator is plain arithmetic. Other domains mean custom or contributed operators, whose code we have not seen.
_ALLOWED_DOMAINS: Final = frozenset({"", "ai.onnx"})
_RANDOM_OPS: Final = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    }
)
# Loops may never end, and no generator here has a branch.
_CONTROL_FLOW: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})


# ------------------------------------------------------------------------------------------------- the manifest


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


Name = Annotated[str, Field(pattern=rf"^{_NAME.pattern}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=4096)]
Label = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class Identity(_Strict):
    """Who made it: no clock of the export's, so that exporting twice gives the same bytes."""

    name: Name
    augmint_version: Text
    run: Text
    trained: Text = Field(description="ISO 8601 time at which the run's best checkpoint was written")
    licence: Text = "unstated"


class Architecture(_Strict):
    family: Name
    options: dict[str, JsonValue]
    parameters: Count
    checkpoint_step: Count
    images_seen: Count


class Data(_Strict):
    name: Text
    fingerprint: Sha256
    class_counts: dict[str, Count] = Field(description="images of the train split, by label")
    split: dict[Literal["train", "validation", "test"], Count]
    resize: Text


class Image(_Strict):
    height: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=1, le=4096)]
    channels: Literal[1, 3]
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NHWC"] = "NHWC"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


class Sampling(_Strict):
    algorithm: Literal["philox4x32-10/normal-table-65536"] = ALGORITHM
    table_sha256: Sha256 = TABLE_SHA256
    latent_dim: Annotated[int, Field(ge=1, le=MAX_DIM)]
    tolerance: Annotated[int, Field(ge=0, le=64)] = Field(
        description="largest difference, in grey levels, on other processors and ONNX Runtime versions"
    )


class Tensor(_Strict):
    """`shape` begins with "N", the batch; the rest are fixed lengths."""

    name: Name
    dtype: Literal["float32", "int64", "uint8"]
    shape: Annotated[tuple[str | int, ...], Field(min_length=1, max_length=8)]


class Graph(_Strict):
    file: Name
    inputs: Annotated[tuple[Tensor, ...], Field(min_length=1, max_length=4)]
    outputs: Annotated[tuple[Tensor, ...], Field(min_length=1, max_length=4)]
    opset: Annotated[int, Field(ge=13, le=64)]
    precision: Literal["fp32", "fp16"]
    optimisation: Literal["extended", "all"]
    versions: dict[str, Text]


class Metric(_Strict):
    """One measured figure; `value` is None where it could not be measured, and then `note` says why."""

    name: Name
    value: float | None
    n: Count
    method: Text
    label: Text | None = None
    note: Text | None = None


class Parity(_Strict):
    """The exported graph against PyTorch, in grey levels."""

    batches: tuple[int, ...]
    max_levels: Count
    share_differing: float
    provider: Text


class BatchInvariance(_Strict):
    """The batch sizes at which the images came out byte for byte the same."""

    batches: tuple[int, ...]
    provider: Text


class Utility(_Strict):
    """Whether the images help a classifier: what `augmint evaluate` found against held-out real images.

    `method` and `amount`, chosen on validation images alone, are what is recommended, or the best that there was.
    `difference` is its mean recall of `classes` on the test images less that of the strongest method without generated
    images, with its 95 % interval; None where it could not be measured.
    """

    verdict: Literal["helps", "makes no difference", "do not use it"]
    sentence: Text
    method: Text
    amount: Text
    classes: Annotated[tuple[Label, ...], Field(max_length=10_000)]
    difference: float | None
    interval: tuple[float, float] | None
    seeds: Annotated[int, Field(ge=1)] = Field(description="classifiers of each method")
    n: Count = Field(description="test images")


class Evidence(_Strict):
    metrics: tuple[Metric, ...] = ()
    utility: Utility | None = None
    parity: Parity | None = None
    batch_invariance: BatchInvariance | None = None
    warnings: tuple[Text, ...] = ()


class Codes(_Strict):
    """Which categories each label is, for a generator that found its categories without labels.

    Labels came in after training, by the training images that its critic puts into each category: `purity` is the share
    of the `n` images that lie in a category of their own label; `purities` are, for each label, the share of the images
    in its categories that are of it.
    """

    kind: Literal["categories"] = "categories"
    categories: Annotated[int, Field(ge=1, le=10_000)]
    clusters: dict[Label, Annotated[tuple[Count, ...], Field(min_length=1)]]
    purity: Annotated[float, Field(ge=0, le=1)]
    purities: dict[Label, Annotated[float, Field(ge=0, le=1)]]
    n: Annotated[int, Field(ge=1, le=2**53)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        numbers = [number for group in self.clusters.values() for number in group]
        if len(set(numbers)) != len(numbers) or max(numbers, default=0) >= self.categories:
            raise ValueError("clusters must hold each category once at most, numbered below categories")
        if list(self.purities) != list(self.clusters):
            raise ValueError("purities must name the labels of clusters")
        return self


class Golden(_Strict):
    """The address of one row of golden.npy."""

    label: Text
    seed: Annotated[int, Field(ge=0, lt=2**53)]
    index: Annotated[int, Field(ge=0, lt=2**53)]
    truncation: Annotated[float, Field(gt=0, le=1)]


class Realism(_Strict):
    """Where the critic's scores of generated images lie: `file` is float32 [max(K, 1), len(shares)], a row a class."""

    file: Name
    shares: Annotated[tuple[float, ...], Field(min_length=2, max_length=200)] = Field(
        description="share of a class's images below each column; ascending, from 0"
    )
    n: Count = Field(description="generated images of each class that they were measured on")


class Copies(_Strict):
    """What a near copy of a training image is: `file` is float16 [n, width], the classifier's features of those images.

    The features are no pictures, but tell somebody who has an image whether it was among them.
    """

    file: Name
    n: Annotated[int, Field(ge=1, le=2**31)]
    width: Annotated[int, Field(ge=1, le=65_536)]
    threshold: Annotated[float, Field(gt=0)] = Field(description="distance to the nearest, below which it is a copy")
    quantile: float = Field(description="share of held-out real images that are nearer than the threshold")
    held_out: Count = Field(description="held-out real images that it was measured on")


class Judges(_Strict):
    """What tells good images from others (`augmint.judge`); with each part that is `missing`, why."""

    classifier: Graph | None = None
    realism: Realism | None = None
    copies: Copies | None = None
    missing: dict[Literal["labels", "realism", "copies"], Text] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.copies is not None and self.classifier is None:
            raise ValueError("copies are told by a classifier, and there is none")
        if self.realism is not None:
            shares = self.realism.shares
            if shares[0] != 0 or shares[-1] < LARGEST_SHARE or list(shares) != sorted(set(shares)) or shares[-1] > 1:
                raise ValueError("realism.shares must rise from 0 to 0.9 or more")
        return self


class EditStep(_Strict):
    """What an edit by `amount` was measured to do.

    `change` is the attribute's mean change in its standard deviations; `kept`, of the images that a classifier took for
    the class asked for, the share that it still does (None: there is no classifier).
    """

    amount: float
    change: float
    kept: Annotated[float, Field(ge=0, le=1)] | None


class Edit(_Strict):
    """An attribute that can be edited: its row of the directions takes it up by one standard deviation.

    That is what the linear model predicts; `steps`, on images that the model was not fitted to, say what comes of it.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    what: Text
    unit: Text
    deviation: Annotated[float, Field(gt=0)] = Field(
        description="in `unit`: the attribute's standard deviation among generated images of one class"
    )
    r2: Annotated[float, Field(le=1)] = Field(description="of the linear model, on images that it was not fitted to")
    holds: tuple[Text, ...] = Field(description="attributes to which the direction was made orthogonal")
    limit: Annotated[float, Field(gt=0, le=10)] = Field(description="largest amount, either way")
    steps: Annotated[tuple[EditStep, ...], Field(min_length=2, max_length=100)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        amounts, changes = [step.amount for step in self.steps], [step.change for step in self.steps]
        if amounts != sorted(set(amounts)) or (amounts[0], amounts[-1]) != (-self.limit, self.limit):
            raise ValueError("steps must rise from -limit to limit")
        if any(after <= before for before, after in itertools.pairwise(changes)):
            raise ValueError(f"steps of {self.name} must change it more, the larger they are")
        return self


class Edits(_Strict):
    """Attributes that can be edited by a step in latent space (`augmint.latent_space`); of the others, why not.

    `file` is float32 [A, Z], a row for each of `attributes`; None where there are none.
    """

    file: Name | None
    attributes: Annotated[tuple[Edit, ...], Field(max_length=64)]
    dropped: dict[Name, Text] = {}
    n: Count = Field(description="generated images that the directions were fitted to")
    held_out: Count = Field(description="generated images that each step was measured on")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.file is None) != (not self.attributes):
            raise ValueError("a file of directions is there if and only if there are attributes")
        if len({attribute.name for attribute in self.attributes}) != len(self.attributes):
            raise ValueError("attributes holds a name twice")
        return self


class FileEntry(_Strict):
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]


class Description(_Strict):
    """Everything a manifest says but for the list of files, which is known only once they are written."""

    schema_version: Literal[1] = 1
    kind: Literal["augmint-bundle"] = "augmint-bundle"
    identity: Identity
    architecture: Architecture
    data: Data
    class_names: Annotated[tuple[Label, ...], Field(max_length=10_000)]
    image: Image
    sampling: Sampling
    generator: Graph
    critic: Graph | None = None
    critic_classes: Annotated[tuple[Label, ...], Field(max_length=10_000)] = Field(
        default=(),
        description="classes that the critic's class_logits are of, in their order; the generator may know none",
    )
    codes: Codes | None = None
    quality: Judges | None = None
    edits: Edits | None = None
    evidence: Evidence
    golden: Annotated[tuple[Golden, ...], Field(min_length=1, max_length=256)]

    @property
    def num_classes(self) -> int:
        """0 for an unconditional generator."""
        return len(self.class_names)

    @property
    def offers(self) -> dict[str, str]:
        """Part of a `Quality` -> "" where this bundle can judge it, else why not."""
        if self.quality is None:
            return dict.fromkeys(PARTS, "it was exported without what judges images")
        have = {
            "labels": self.quality.classifier is not None,
            "realism": self.quality.realism is not None,
            "copies": self.quality.copies is not None,
        }
        missing = {str(part): why for part, why in self.quality.missing.items()}
        return {part: "" if have[part] else missing.get(part, "it was exported without") for part in PARTS}

    @property
    def editable(self) -> dict[str, float]:
        """Attribute that can be edited -> the largest amount, in the directions' order."""
        return {} if self.edits is None else {edit.name: edit.limit for edit in self.edits.attributes}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = self.class_names
        if self.sampling.table_sha256 != TABLE_SHA256:
            raise ValueError("sampling.table_sha256 is not the table of this augmint: its latents would be others")
        if len(set(names)) != len(names):
            raise ValueError("class_names holds a name twice")
        if any(label not in names for label in self.data.class_counts) and names:
            raise ValueError("data.class_counts names a class that class_names does not hold")
        expected = [Tensor(name="latent", dtype="float32", shape=("N", self.sampling.latent_dim))]
        if names:
            expected.append(Tensor(name="label", dtype="int64", shape=("N",)))
        if list(self.generator.inputs) != expected:
            raise ValueError(
                "generator.inputs must be latent float32 [N, latent_dim], then label int64 [N] if conditional"
            )
        image = Tensor(name="image", dtype="uint8", shape=("N", *self.image.shape))
        if self.generator.outputs != (image,):
            raise ValueError("generator.outputs must be image uint8 [N, height, width, channels]")
        if self.critic is not None and self.critic.inputs[0] != image:
            raise ValueError("critic.inputs must begin with image uint8 [N, height, width, channels]")
        logits = Tensor(name="class_logits", dtype="float32", shape=("N", len(self.critic_classes)))
        if self.critic_classes and (self.critic is None or logits not in self.critic.outputs):
            raise ValueError("critic_classes need a critic with as many class_logits")
        if len(set(self.critic_classes)) != len(self.critic_classes):
            raise ValueError("critic_classes holds a name twice")
        if self.codes is not None and tuple(self.codes.clusters) != names:
            raise ValueError("codes.clusters must name the labels of class_names, in their order")
        self._check_judges(image)
        for row in self.golden:
            if (row.label not in names) if names else row.label != "":
                raise ValueError(f"golden names the label {row.label[:40]!r}, which class_names does not hold")
        return self

    def _check_judges(self, image: Tensor) -> None:
        judges, names = self.quality, self.class_names
        if judges is None:
            return
        if judges.realism is not None:
            asked = (image, Tensor(name="label", dtype="int64", shape=("N",)))[: 2 if names else 1]
            realism = Tensor(name="realism", dtype="float32", shape=("N",))
            if self.critic is None or self.critic.inputs != asked or self.critic.outputs[0] != realism:
                raise ValueError("quality.realism needs a critic of image (, label) with realism float32 [N]")
        if judges.classifier is not None:
            found = judges.classifier.outputs
            logits = Tensor(name="class_logits", dtype="float32", shape=("N", len(names)))
            if judges.classifier.inputs != (image,) or len(names) < 2 or found[0] != logits or len(found) != 2:
                raise ValueError("quality.classifier must map image to class_logits float32 [N, K] and features")
            width = judges.copies.width if judges.copies is not None else found[1].shape[-1]
            if found[1] != Tensor(name="features", dtype="float32", shape=("N", width)):
                raise ValueError("quality.classifier's features must be float32 [N, D], as wide as those of copies")


class Manifest(Description):
    files: Annotated[dict[Name, FileEntry], Field(min_length=2, max_length=MAX_FILES)]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {*self.graphs, "golden.npy"}
        if self.quality is not None:
            needed |= {part.file for part in (self.quality.realism, self.quality.copies) if part is not None}
        if self.edits is not None and self.edits.file is not None:
            needed.add(self.edits.file)
        if missing := sorted(needed - set(self.files)):
            raise ValueError(f"files does not list {missing[0]}")
        if not {MANIFEST, SIGNATURE}.isdisjoint(self.files):
            raise ValueError("files must list neither the manifest itself nor a signature of it")
        return self

    @property
    def graphs(self) -> tuple[str, ...]:
        """The ONNX files, the generator's first."""
        classifier = self.quality.classifier if self.quality is not None else None
        return tuple(graph.file for graph in (self.generator, self.critic, classifier) if graph is not None)


def essentials(manifest: Description) -> dict[str, JsonValue]:
    """What is mirrored in the ONNX file's metadata, so that the file alone still says what it is."""
    return {
        "schema_version": manifest.schema_version,
        "name": manifest.identity.name,
        "family": manifest.architecture.family,
        "class_names": list(manifest.class_names),
        "image": [*manifest.image.shape],
        "latent_dim": manifest.sampling.latent_dim,
        "algorithm": manifest.sampling.algorithm,
        "synthetic": True,
    }


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class BundleFiles:
    """A bundle whose files have been checked: the manifest and the very bytes that were hashed.

    Attributes:
        path: the directory.
        manifest: validated.
        digest: sha256 of manifest.json, 64 hex digits. Since the manifest holds the sha256 of every file, it is the
            identity of the whole bundle.
        content: file name -> bytes.
        signature: the bytes of signature.json, unchecked (see `augmint.signing`), or None.
    """

    path: Path
    manifest: Manifest
    digest: str
    content: Mapping[str, bytes]
    signature: bytes | None = None

    def golden_images(self) -> NDArray[np.uint8]:
        """uint8 [G, H, W, C], one row for each of `manifest.golden`."""
        expected = (len(self.manifest.golden), *self.manifest.image.shape)
        return _read_npy(self.content["golden.npy"], expected, self.path / "golden.npy", np.dtype(np.uint8))

    def realism_table(self) -> NDArray[np.float32]:
        """float32 [max(K, 1), Q]; only where `manifest.quality.realism` is there."""
        part = self._judges.realism
        assert part is not None
        expected = (max(self.manifest.num_classes, 1), len(part.shares))
        return self._finite(part.file, expected, np.dtype("<f4"))

    def train_features(self) -> NDArray[np.float16]:
        """float16 [M, D]; only where `manifest.quality.copies` is there."""
        part = self._judges.copies
        assert part is not None
        return self._finite(part.file, (part.n, part.width), np.dtype("<f2"))

    def directions(self) -> dict[str, NDArray[np.float32]]:
        """Attribute that can be edited -> float32 [Z]: a step by one; empty where nothing can be."""
        edits = self.manifest.edits
        if edits is None or edits.file is None:
            return {}
        expected = (len(edits.attributes), self.manifest.sampling.latent_dim)
        table = self._finite(edits.file, expected, np.dtype("<f4"))
        return {edit.name: row for edit, row in zip(edits.attributes, table, strict=True)}

    @property
    def _judges(self) -> Judges:
        assert self.manifest.quality is not None
        return self.manifest.quality

    def _finite(self, name: str, expected: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        values = _read_npy(self.content[name], expected, self.path / name, dtype)
        if not np.isfinite(values).all():
            _refuse("not-finite", self.path / name, "holds NaN or infinity: export the bundle again")
        return values


def read_bundle(path: str | os.PathLike[str]) -> BundleFiles:
    """Read and check a bundle, up to what needs a session.

    Args:
        path: the bundle's directory.

    Raises:
        BundleError: refused; `code` names the check, the message names the file and the mend.
    """
    root = Path(path)
    names = _list_files(root)
    manifest_bytes = _read_regular(root / MANIFEST, limit=MAX_MANIFEST_BYTES)
    manifest = parse_manifest(manifest_bytes, root / MANIFEST)

    listed = {MANIFEST, *manifest.files}
    if extra := sorted(names - listed - {SIGNATURE}):
        _refuse(
            "extra-file",
            root / extra[0],
            "is not listed in the manifest: remove it, or export the bundle again",
        )
    if missing := sorted(listed - names):
        _refuse(
            "missing-file",
            root / missing[0],
            "is listed in the manifest but not there: copy the bundle again, whole",
        )

    content: dict[str, bytes] = {}
    for name, entry in manifest.files.items():
        limit = MAX_FILE_BYTES if name in manifest.graphs else MAX_SIDE_BYTES
        data = _read_regular(root / name, limit=limit, expected=entry.bytes)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            _refuse(
                "digest-mismatch",
                root / name,
                "does not have the manifest's sha256: copy the bundle again, whole",
            )
        content[name] = data

    check_graph(content[manifest.generator.file], root / manifest.generator.file, expect=essentials(manifest))
    for name in manifest.graphs[1:]:
        check_graph(content[name], root / name, expect=None)
    signed = SIGNATURE in names
    signature = _read_regular(root / SIGNATURE, limit=MAX_SIGNATURE_BYTES) if signed else None
    files = BundleFiles(root, manifest, hashlib.sha256(manifest_bytes).hexdigest(), content, signature)
    files.golden_images()
    if manifest.quality is not None and manifest.quality.realism is not None:
        files.realism_table()
    if manifest.quality is not None and manifest.quality.copies is not None:
        files.train_features()
    files.directions()
    return files


def _refuse(code: str, path: Path, problem: str) -> NoReturn:
    raise BundleError(f"{path} {problem}.", code=f"bundle.{code}")


def _list_files(root: Path) -> set[str]:
    most = MAX_FILES + 2  # the manifest and its signature
    try:
        with os.scandir(root) as found:
            entries = list(itertools.islice(found, most + 1))
    except FileNotFoundError:
        _refuse("missing", root, "does not exist: give the directory that `augmint export` wrote")
    except NotADirectoryError:
        _refuse("not-a-directory", root, "is a file: give the directory that `augmint export` wrote")
    except OSError as error:
        _refuse("unreadable", root, f"cannot be read ({error.strerror}): check its permissions")
    names = {entry.name for entry in entries}
    if MANIFEST not in names and len(entries) <= most:
        _refuse(
            "no-manifest",
            root,
            "has no manifest.json, so it is not a complete bundle: export it again (or name a bundle, not a run)",
        )
    for entry in entries:
        if not _NAME.fullmatch(entry.name):
            _refuse("bad-name", root / repr(entry.name), "has a name that no bundle file has: remove it")
        if entry.is_symlink():
            _refuse("symlink", root / entry.name, "is a symbolic link: put the file itself there")
        if not entry.is_file(follow_symlinks=False):
            _refuse("not-regular", root / entry.name, "is not a regular file: remove it")
    if len(entries) > most:
        _refuse("too-many-files", root, f"holds more than {most} files, which no bundle does")
    return names


def _read_regular(path: Path, *, limit: int, expected: int | None = None) -> bytes:
    """The bytes of a regular file, opened once without following links, its size checked before it is read."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        _refuse("unreadable", path, f"cannot be opened ({error.strerror}): check its permissions")
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            _refuse("not-regular", path, "is not a regular file: remove it")
        if status.st_size > limit:
            _refuse("too-large", path, f"is larger than {limit} bytes, the most a bundle may hold there")
        if expected is not None and status.st_size != expected:
            _refuse(
                "size-mismatch",
                path,
                f"has {status.st_size} bytes and not the manifest's {expected}: copy the bundle again, whole",
            )
        return file.read(limit + 1)


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Strict JSON (no duplicate keys, no NaN, UTF-8) and the schema; `path` is for the error's sentence."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            _refuse("manifest-duplicate-key", path, f"holds the key {twice[:60]!r} twice: export the bundle again")
        return result

    def constant(name: str) -> NoReturn:
        _refuse("manifest-not-finite", path, f"holds {name}, which is not JSON: export the bundle again")

    def number(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else constant(text[:40])

    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant, parse_float=number
        )
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        _refuse("manifest-not-json", path, f"is not valid JSON{where}: export the bundle again")
    if not isinstance(document, dict) or document.get("kind") != "augmint-bundle":
        _refuse(
            "not-a-bundle",
            path,
            "is not an augmint bundle's manifest: name a directory that `augmint export` wrote",
        )
    version = document.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        mend = "update augmint" if isinstance(version, int) and version > SCHEMA_VERSION else "export the bundle again"
        _refuse(
            "schema-version",
            path,
            f"has schema version {str(version)[:20]}, this augmint reads {SCHEMA_VERSION}: {mend}",
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"]) or "manifest"
        _refuse(
            "schema",
            path,
            f"does not follow the schema ({where}: {first['msg'][:200]}): export the bundle again",
        )


def check_graph(data: bytes, path: Path, *, expect: dict[str, JsonValue] | None) -> None:
    """Refuse a graph that is not plain, self-contained, deterministic arithmetic.

    Args:
        data: the ONNX file's bytes.
        path: for the error's sentence.
        expect: what the file's own metadata must say (None: not checked).
    """
    try:
        import onnx
    except ModuleNotFoundError:
        raise BundleError(
            'Opening a bundle needs onnx and onnxruntime: pip install "augmint[local]".',
            code="bundle.no-onnx",
        ) from None
    try:
        model = onnx.ModelProto.FromString(data)
        if not model.graph.node or not model.opset_import:
            raise ValueError("no graph")
    except Exception:  # protobuf's own DecodeError differs between its implementations
        _refuse("not-onnx", path, "is not an ONNX model: export the bundle again")

    for opset in model.opset_import:
        if opset.domain not in _ALLOWED_DOMAINS:
            _refuse(
                "op-domain",
                path,
                f"uses operators of the domain {opset.domain[:60]!r}: export the bundle again",
            )
    if model.functions:
        _refuse("local-function", path, "defines functions of its own: export the bundle again")
    if model.training_info:
        _refuse("training-info", path, "carries training graphs: export the bundle again")
    flow = ""
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.domain not in _ALLOWED_DOMAINS:
                _refuse(
                    "op-domain",
                    path,
                    f"uses {node.domain[:60]}.{node.op_type[:60]}, not a standard ONNX operator",
                )
            if node.op_type in _RANDOM_OPS:
                _refuse(
                    "random-op",
                    path,
                    f"draws random numbers ({node.op_type}): samples would not be reproducible",
                )
            if node.op_type in _CONTROL_FLOW:
                flow = flow or node.op_type
        for tensor in _tensors(graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                _refuse("external-data", path, "keeps weights in another file: export the bundle again")
    if flow:
        _refuse("control-flow", path, f"has branches or loops ({flow}), which a generator does without")
    _check_sizes(model, path)
    if expect is not None:
        mirrored = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY, "null")
        try:
            same = json.loads(mirrored) == expect
        except (ValueError, RecursionError):
            same = False
        if not same:
            _refuse(
                "metadata-mismatch",
                path,
                "and the manifest describe different generators: export the bundle again",
            )


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            ):
                yield sparse.values
                yield sparse.indices


def _check_sizes(model: Any, path: Path) -> None:
    """Refuse a graph with a tensor that is known beforehand to be enormous: ConstantOfShape is a bomb of 20 bytes."""
    import onnx

    small = onnx.ModelProto()
    small.CopyFrom(model)
    for tensor in small.graph.initializer:
        if math.prod(tensor.dims) > 1024:  # only shapes matter here, and those are short
            for kind in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(kind)
    try:
        inferred = onnx.shape_inference.infer_shapes(small, data_prop=True)
    except Exception:  # InferenceError and others without a common base: a graph that the session will refuse
        inferred = small
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        elements = math.prod(max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim)
        if elements > MAX_ELEMENTS:
            _refuse(
                "allocation", path, f"computes a tensor of {elements:,} elements ({value.name[:60]!r}) for one image"
            )


_NPY_HEADER = re.compile(
    rb"\{'descr': '([|<][a-z][0-9])', 'fortran_order': False, 'shape': \(([0-9]{1,10}(?:, [0-9]{1,10})*),?\), \} *\n"
)


def _read_npy(data: bytes, expected: tuple[int, ...], path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Parse an npy file of known shape and type, version 1.0, as `numpy.save` writes it.

    By hand, because numpy's reader evaluates the header as a Python literal and allocates what it claims.
    """
    body = b""
    if data[:8] == b"\x93NUMPY\x01\x00" and len(data) >= 10:
        start = 10 + int.from_bytes(data[8:10], "little")
        header = _NPY_HEADER.fullmatch(data[10:start])
        if header and header[1].decode() == dtype.str and tuple(int(n) for n in header[2].split(b",")) == expected:
            body = data[start:]
    if len(body) != math.prod(expected) * dtype.itemsize:
        _refuse("npy-file", path, f"is not an npy file of {dtype.name} {list(expected)}: export the bundle again")
    return np.frombuffer(body, dtype=dtype).reshape(expected)


# ------------------------------------------------------------------------------------------------- writing


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An npy file of an array, as the files of a bundle are written; the same array gives the same bytes."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def write_bundle(path: str | os.PathLike[str], description: Description, content: Mapping[str, bytes]) -> str:
    """Write a bundle, whole or not at all, and return its digest.

    Args:
        path: directory to make; it must not exist yet, or be empty.
        description: the manifest but for `files`, which is filled in here from `content`.
        content: file name -> bytes, without the manifest. The generator's ONNX file must carry `essentials` in its
            metadata already.

    Raises:
        ExportError: the directory holds something already, or cannot be written.
    """
    target = Path(path)
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise ExportError(f"{target} exists already: choose another --out, or remove it.", code="export.exists")
    entries = {
        name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        for name, data in sorted(content.items())
    }
    manifest = Manifest(files=entries, **{name: getattr(description, name) for name in Description.model_fields})
    document = (manifest.model_dump_json(indent=1) + "\n").encode()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not mkdtemp, whose 0700 would hide the bundle from others: it is as public as the process's umask says.
        scratch = target.parent / f".{target.name}-{secrets.token_hex(6)}"
        scratch.mkdir()
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror}.", code="export.unwritable") from error
    try:
        for name, data in (*sorted(content.items()), (MANIFEST, document)):
            with open(scratch / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if target.exists():
            target.rmdir()
        os.replace(scratch, target)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror}.", code="export.unwritable") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return hashlib.sha256(document).hexdigest()
