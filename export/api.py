"""The door of this room: `export_run` makes a verified bundle of a run, or says which gate stopped it.

Trace, gate, measure, draw, write beside the destination, open what was written as a user would, and only then rename:
a bundle that exists has passed everything. Nothing here decides what a bundle is (`augmint/bundle.py`) or what a
gate asks (`export/gates.py`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import ValidationError

import augmint
from augmint.bundle import (
    MANIFEST,
    METADATA_KEY,
    Architecture,
    BatchInvariance,
    Codes,
    Data,
    Description,
    Evidence,
    Golden,
    Identity,
    Image,
    Metric,
    Parity,
    Sampling,
    Tensor,
    Utility,
    essentials,
    npy_bytes,
    write_bundle,
)
from augmint.data import DataSet
from augmint.errors import ExportError, GateError, UsageError
from augmint.generator import Generator
from augmint.images import synthetic_sheet_png
from augmint.latents import latents
from augmint.sheets import contact_sheet
from augmint.signing import Key, read_key, sign
from evaluation.api import Progress
from export import gates
from export.again import SecondExport
from export.card import FEW, SHEET_SEED, model_card
from export.directions import make_directions
from export.evidence import measured, training_data
from export.gates import Subject
from export.graph import described, serialise
from export.judges import CLASSIFIER, make_judges
from export.networks import Networks, Precision, Which, load, trace
from export.verdict import judged

__all__ = ["ExportRequest", "ExportResult", "export_run"]

GENERATOR: Final = "generator.onnx"
CRITIC: Final = "critic.onnx"
GOLDEN_SEED: Final = 20

_TOLERANCE: Final[dict[Precision, int]] = {"fp32": 2, "fp16": 8}
_GOLDEN_ROWS: Final = 128
_SHEET_CLASSES: Final = 64
_SHEET_PER_CLASS: Final = 12
_SHEET_UNCONDITIONAL: Final = 64
_BATCH: Final = 64

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export, as a user says it.

    Attributes:
        run: the run directory.
        out: the bundle directory to make.
        name: of the bundle, in URLs and answers; None takes that of `out`.
        precision: "fp32", or "fp16" for GPUs: half the bytes, no promise of the same bytes at every batch size.
        licence: of the bundle, for the model card, such as "cc-by-4.0".
        evaluate: what to measure for the model card: "basic" is fidelity and diversity against the test split (about
            10 s); "quick" and "full" also find out whether the images help a classifier (about 3 and up to 15 minutes),
            and put the report into the bundle; "none" is nothing.
        copies: put features of the training images into the bundle, so that near copies of them can be told and left
            out; with them one can also find out whether an image was among them.
        sign: a private key's file (`augmint key` makes one) to sign the bundle with; None: it is not signed.
        force: replace a bundle that is there already.
        which: "best" by validation score, or "last".
    """

    run: str | Path
    out: str | Path
    name: str | None = None
    precision: Precision = "fp32"
    licence: str = "unstated"
    evaluate: Literal["none", "basic", "quick", "full"] = "basic"
    copies: bool = True
    sign: str | Path | None = None
    force: bool = False
    which: Which = "best"


@dataclass(frozen=True)
class ExportResult:
    """A bundle that is there and opens.

    `seconds` says what took how long, by step. `warnings` are those of the model card.
    """

    path: Path
    name: str
    digest: str
    bytes: int
    precision: Precision
    parity: Parity
    batch_invariance: BatchInvariance | None
    metrics: tuple[Metric, ...]
    utility: Utility | None
    warnings: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": str(self.path),
            "name": self.name,
            "digest": self.digest,
            "bytes": self.bytes,
            "precision": self.precision,
            "parity": self.parity.model_dump(mode="json"),
            "batch_invariance": self.batch_invariance and self.batch_invariance.model_dump(mode="json"),
            "metrics": [metric.model_dump(mode="json") for metric in self.metrics],
            "utility": self.utility and self.utility.model_dump(mode="json"),
            "warnings": list(self.warnings),
            "seconds": {step: round(value, 2) for step, value in self.seconds.items()},
        }


def export_run(request: ExportRequest, *, say: Say | None = None, progress: Progress | None = None) -> ExportResult:
    """Export a run as a bundle.

    Args:
        request: see there.
        say: called with one line of progress at a time.
        progress: called during a quick or full evaluation, see `evaluation.api.evaluate`.

    Raises:
        UsageError: a name, option or key that cannot be.
        TrainingError: there is no such run, or it has no whole checkpoint.
        GateError: the graph is not good enough to be served; `code` names the gate.
        ExportError: anything else that stops an export, such as a destination that is taken.
    """
    say = say or (lambda line: None)
    out = Path(request.out)
    name = _name(request, out)
    if request.precision not in get_args(Precision):
        raise UsageError(f"--precision must be fp32 or fp16, not {request.precision!r}.")
    _check_destination(out, request.force)
    key = None if request.sign is None else read_key(request.sign)
    clock = _Clock()

    before = _state(request)
    networks = load(Path(request.run), request.which)
    say(f"{networks.run.name}: {networks.config.family}, step {networks.step:,}; tracing …")
    with SecondExport(Path(request.run), request.which, request.precision) as again:
        clock("load")
        graphs = trace(networks, request.precision)
        clock("trace")
        try:
            description = _description(networks, request, name, graphs)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "manifest"
            raise ExportError(
                f"This run does not fit into a bundle ({where}: {first['msg']}).", code="export.description"
            ) from error

        say("checking the graph against PyTorch …")
        metadata = essentials(description)
        model = _with_metadata(graphs["generator"], {METADATA_KEY: _compact(metadata)})
        subject = _subject(networks, model)
        gates.plain(model, metadata)
        description = _with_evidence(description, _gate_generator(subject, networks, request.precision, description))
        clock("gates")

        content = {GENERATOR: model}
        if "critic" in graphs:
            say("checking the critic …")
            about = {**metadata, "part": "critic", "critic_classes": list(description.critic_classes)}
            critic = _with_metadata(graphs["critic"], {METADATA_KEY: _compact(about)})
            gates.plain(critic)
            _gate_critic(critic, networks, subject)
            content[CRITIC] = critic
            clock("critic")

        data, problem = training_data(networks.config, say)
        description = _with_data(description, data)
        say("training what will judge the images …")
        judges = make_judges(
            networks.config,
            data,
            problem,
            critic=content.get(CRITIC),
            render=_renderer(subject),
            metadata={METADATA_KEY: _compact({**metadata, "part": "classifier"})},
            copies=request.copies,
        )
        description = description.model_copy(update={"quality": judges.section})
        content.update(judges.files)
        clock("judges")
        say("looking for directions to edit along …")
        edits, found_files = make_directions(subject, content.get(CLASSIFIER))
        description = description.model_copy(update={"edits": edits})
        content.update(found_files)
        clock("directions")
        warnings = list(description.evidence.warnings)
        metrics: tuple[Metric, ...] = ()
        clock("data")
        if request.evaluate == "none":
            pass
        elif data is None:
            warnings.append(f"{problem}, so nothing was measured.")
        else:
            say("measuring against the test split …")
            metrics, found = measured(networks.config, data, _renderer(subject), classifier=judges.trained)
            warnings += found
            clock("evaluate")
        evidence = description.evidence.model_copy(update={"metrics": metrics, "warnings": tuple(warnings)})
        description = _with_evidence(description, evidence)

        content["golden.npy"] = _golden(description, subject)
        sheet, shown = _sheet(description, subject)
        content["samples.png"] = sheet
        clock("samples")
        if request.evaluate in ("quick", "full") and data is not None:
            say("evaluating: does it help a classifier? …")
            utility, pages, found = judged(description, content, data, level=request.evaluate, progress=progress)
            evidence = description.evidence
            update: dict[str, Any] = {"utility": utility, "warnings": (*evidence.warnings, *found)}
            description = _with_evidence(description, evidence.model_copy(update=update))
            content.update(pages)
            clock("verdict")
        content["README.md"] = model_card(description, sheet=shown).encode()

        say("waiting for the second export …")
        for part, graph in graphs.items():
            gates.reproducible(graph, lambda part=part: again.digest(part))  # type: ignore[misc]
        if _state(request) != before:
            raise ExportError(
                f"{request.run} wrote another checkpoint while it was exported: export again, or stop training first.",
                code="export.run-changed",
            )
        clock("second export")

    digest = _write_verified(out, description, content, key=key, force=request.force)
    clock("write and verify")
    return ExportResult(
        path=out,
        name=name,
        digest=digest,
        bytes=sum(map(len, content.values())),
        precision=request.precision,
        parity=_present(description.evidence.parity),
        batch_invariance=description.evidence.batch_invariance,
        metrics=metrics,
        utility=description.evidence.utility,
        warnings=description.evidence.warnings,
        seconds=clock.seconds,
    )


# ------------------------------------------------------------------------------------------------- before the work


def _name(request: ExportRequest, out: Path) -> str:
    name = request.name
    if name is None:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", out.resolve().name).strip("-._")[:64] or "bundle"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise UsageError(
            f"--name {name[:80]!r} cannot be a bundle's name: use up to 64 letters, digits, '-', '_' and '.'."
        )
    return name


def _check_destination(out: Path, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or not out.is_dir():
        raise ExportError(f"{out} is there and is no directory: choose another --out.", code="export.exists")
    if not any(out.iterdir()):
        return
    if not force:
        raise ExportError(
            f"{out} exists already: choose another --out, or replace it with --force.", code="export.exists"
        )
    # --force replaces bundles; it is no licence to delete somebody's pictures.
    if not (out / MANIFEST).is_file():
        raise ExportError(
            f"{out} is no bundle, so --force will not replace it: choose another --out.", code="export.exists"
        )


def _state(request: ExportRequest) -> tuple[int, int] | None:
    """Of the checkpoint file: changes when training replaces it."""
    try:
        status = (Path(request.run) / "checkpoints" / f"{request.which}.pt").stat()
    except OSError:
        return None  # `load` has the better sentence
    return status.st_mtime_ns, status.st_size


# --------------------------------------------------------------------------------------------------------- gates


def _subject(networks: Networks, model: bytes) -> Subject:
    config = networks.config
    return Subject(model, networks.generator, config.options.latent_dim, config.image_shape, config.num_classes)


def _gate_generator(subject: Subject, networks: Networks, precision: Precision, description: Description) -> Evidence:
    """Run the gates on the generator; what they measured is evidence."""
    gates.folded(subject.model)
    if precision == "fp16":
        gates.half_range(_subject(networks, trace(replace(networks, critic=None), "fp32")["generator"]))
    gates.alive(subject)
    gates.labels(subject)
    parity = gates.parity(subject, gates.PARITY_FP32 if precision == "fp32" else gates.PARITY_FP16)
    invariance = gates.batch_invariance(subject) if precision == "fp32" else None
    return description.evidence.model_copy(update={"parity": parity, "batch_invariance": invariance})


def _gate_critic(model: bytes, networks: Networks, subject: Subject) -> None:
    """On the generator's own images: what a critic is asked about."""
    assert networks.critic is not None
    latent, label = subject.addresses(32)
    images = subject.run(subject.session(), latent, label)
    gates.critic_parity(model, networks.critic, images, label if networks.conditional else None)


# --------------------------------------------------------------------------------------------------- description


def _description(networks: Networks, request: ExportRequest, name: str, graphs: dict[str, bytes]) -> Description:
    """All but the evidence."""
    config, class_names = networks.config, networks.class_names
    height, width, channels = config.image_shape
    latent = Tensor(name="latent", dtype="float32", shape=("N", config.options.latent_dim))
    label = (Tensor(name="label", dtype="int64", shape=("N",)),) if class_names else ()
    image = Tensor(name="image", dtype="uint8", shape=("N", height, width, channels))
    generator = described(GENERATOR, (latent, *label), (image,), request.precision)
    gates.same_signature(graphs["generator"], generator.inputs, generator.outputs)
    critic = None
    if "critic" in graphs:
        outputs = [Tensor(name="realism", dtype="float32", shape=("N",))]
        if gates.number_of_outputs(graphs["critic"]) > 1:
            outputs.append(Tensor(name="class_logits", dtype="float32", shape=("N", len(config.critic_classes))))
        critic = described(CRITIC, (image, *label), tuple(outputs), "fp32")
        gates.same_signature(graphs["critic"], critic.inputs, critic.outputs, what="critic")
    return Description(
        identity=Identity(
            name=name,
            augmint_version=augmint.__version__,
            run=networks.run.name,
            trained=networks.written,
            licence=request.licence.strip() or "unstated",
        ),
        architecture=Architecture(
            family=config.family,
            options=_plain_values(asdict(config.options)),
            parameters=sum(parameter.numel() for parameter in networks.generator.parameters()),
            checkpoint_step=networks.step,
            images_seen=networks.step * config.options.batch,
        ),
        data=Data(
            name=config.data_name,
            fingerprint=config.data_fingerprint,
            class_counts=dict(zip(config.class_names, config.class_counts, strict=True)),
            split={"train": sum(config.class_counts)},
            resize=config.resize,
        ),
        class_names=class_names,
        image=Image(height=height, width=width, channels=channels),  # type: ignore[arg-type]
        sampling=Sampling(latent_dim=config.options.latent_dim, tolerance=_TOLERANCE[request.precision]),
        generator=generator,
        critic=critic,
        critic_classes=config.critic_classes if critic is not None and len(critic.outputs) > 1 else (),
        codes=_codes(networks),
        evidence=Evidence(warnings=_warnings(networks, request)),
        golden=_golden_addresses(class_names),
    )


def _codes(networks: Networks) -> Codes | None:
    codes, names = networks.codes, networks.class_names
    if codes is None:
        return None
    return Codes(
        categories=codes.categories,
        clusters=dict(zip(names, codes.clusters, strict=True)),
        purity=codes.purity,
        purities=dict(zip(names, codes.purities, strict=True)),
        n=codes.n,
    )


def _warnings(networks: Networks, request: ExportRequest) -> tuple[str, ...]:
    config = networks.config
    warnings = []
    if networks.refused:
        warnings.append(f"It cannot be asked by label, although it found categories of its own: {networks.refused}.")
    few = [f"{n} ({c})" for n, c in zip(config.class_names, config.class_counts, strict=True) if c < FEW]
    if few and networks.conditional:
        shown = ", ".join(few[:10]) + (", …" if len(few) > 10 else "")
        warnings.append(f"Few training images: {shown}. Expect near copies and little variety there.")
    if request.precision == "fp16":
        warnings.append(
            "Half precision: the images of an address may differ by batch size and device, within the tolerance."
        )
    if request.which == "last":
        warnings.append("The last checkpoint was exported, not the one with the best validation score.")
    status = networks.run.status()
    if status.state != "finished":
        warnings.append(f"Training had not finished (state: {status.state}, step {status.step:,} of {status.steps:,}).")
    warnings += [
        f"During training, at step {alarm.step:,}: {alarm.message}"
        for alarm in status.alarms
        if alarm.kind != "few-images"  # said above, without advice for somebody who trains
    ]
    return tuple(warning[:1000] for warning in warnings)


def _with_data(description: Description, data: DataSet | None) -> Description:
    if data is None:
        return description
    split: Any = {name: sum(data.counts(name).values()) for name in ("train", "validation", "test")}
    return description.model_copy(update={"data": description.data.model_copy(update={"split": split})})


def _with_evidence(description: Description, evidence: Evidence) -> Description:
    """The same, with other evidence."""
    return description.model_copy(update={"evidence": evidence})


# ----------------------------------------------------------------------------------------------- images and files


def _renderer(subject: Subject) -> Callable[..., NDArray[np.uint8]]:
    """labels, seeds, indices (, truncation) -> images, as `augmint.Generator.render` will make them."""
    session = subject.session()

    def render(
        labels: NDArray[np.int64], seeds: NDArray[np.uint64], indices: NDArray[np.uint64], truncation: Any = 1.0
    ) -> NDArray[np.uint8]:
        share = np.broadcast_to(np.asarray(truncation, dtype=np.float64), (len(labels),))
        parts = [
            subject.run(
                session,
                latents(seeds[rows], indices[rows], subject.latent_dim, share[rows]),
                np.ascontiguousarray(labels[rows]),
            )
            for rows in (slice(start, start + _BATCH) for start in range(0, len(labels), _BATCH))
        ]
        return np.concatenate(parts)

    return render


def _golden_addresses(class_names: tuple[str, ...]) -> tuple[Golden, ...]:
    """Two of each class (one where there are many), and one truncated."""
    labels = class_names or ("",)
    each = 8 if not class_names else 2 if len(labels) <= 32 else 1
    chosen = labels[: _GOLDEN_ROWS // each - 1] if len(labels) * each > _GOLDEN_ROWS else labels
    rows = [Golden(label=label, seed=GOLDEN_SEED, index=i, truncation=1.0) for label in chosen for i in range(each)]
    return (*rows, Golden(label=labels[0], seed=GOLDEN_SEED, index=each, truncation=0.5))


def _golden(description: Description, subject: Subject) -> bytes:
    rows, names = description.golden, description.class_names or ("",)
    images = _renderer(subject)(
        np.array([names.index(row.label) for row in rows], dtype=np.int64),
        np.array([row.seed for row in rows], dtype=np.uint64),
        np.array([row.index for row in rows], dtype=np.uint64),
        [row.truncation for row in rows],
    )
    return npy_bytes(images)


def _sheet(description: Description, subject: Subject) -> tuple[bytes, dict[str, int] | int]:
    """The first images of seed SHEET_SEED, unselected, and the request that gives them."""
    names = description.class_names[:_SHEET_CLASSES]
    each = _SHEET_PER_CLASS if names else _SHEET_UNCONDITIONAL
    labels = np.repeat(np.arange(max(len(names), 1)), each)
    indices = np.tile(np.arange(each, dtype=np.uint64), max(len(names), 1))
    images = _renderer(subject)(labels, np.full(len(labels), SHEET_SEED, dtype=np.uint64), indices)
    counts = [description.data.class_counts.get(name, 0) for name in names]
    picture = contact_sheet(images, labels, names, per_class=each, counts=counts or None)
    return synthetic_sheet_png(picture), dict.fromkeys(names, each) if names else each


def _with_metadata(model: bytes, metadata: dict[str, str]) -> bytes:
    return serialise(onnx.ModelProto.FromString(model), metadata)


def _write_verified(
    out: Path, description: Description, content: dict[str, bytes], *, force: bool, key: Key | None = None
) -> str:
    """Write beside `out`, open it as a user would, and put it in place only then."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error.strerror}.", code="export.unwritable") from error
    try:
        fresh = scratch / "bundle"
        digest = write_bundle(fresh, description, content)
        info = Generator(fresh, device="cpu").info()
        if description.generator.precision == "fp32" and info.reproducibility != "exact":
            raise GateError(
                "The written bundle does not give its own golden samples byte for byte.", code="export.golden"
            )
        if key is not None:
            sign(fresh, key)
        _check_destination(out, force)
        if out.exists():
            os.replace(out, scratch / "old")
        try:
            os.replace(fresh, out)
        except OSError:
            if (scratch / "old").exists():
                os.replace(scratch / "old", out)
            raise
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error.strerror}.", code="export.unwritable") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return digest


# ---------------------------------------------------------------------------------------------------------- small


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._last
        self._last = now


def _compact(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _plain_values(options: dict[str, Any]) -> dict[str, Any]:
    """JSON's own types: tuples become lists."""
    return json.loads(json.dumps(options))


def _present(parity: Parity | None) -> Parity:
    assert parity is not None
    return parity
