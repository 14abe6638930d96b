"""`export_run` on a real run: what comes out is a bundle that opens, says the truth and can be made again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from PIL import Image

import augmint
from augmint.bundle import MANIFEST, essentials, read_bundle
from augmint.bundle_report import inspect_bundle
from augmint.errors import ExportError, GateError, RequestError, TrainingError, UsageError
from augmint.latents import latents
from augmint.runtime import open_session
from augmint.signing import make_key
from export import api, gates, networks
from export.again import SecondExport
from export.api import ExportRequest, ExportResult, export_run
from export.graph import critic_graph, generator_graph, serialise, signature
from tests.training.test_families import small
from training.families import FAMILIES
from training.families.base import Family
from training.run import load_critic, load_generator


def test_the_bundle_opens_and_reproduces_its_golden_samples(exported: ExportResult) -> None:
    generator = augmint.Generator(exported.path, device="cpu")
    info = generator.info()
    assert (info.name, info.digest, info.reproducibility) == ("digits", exported.digest, "exact")
    assert info.class_names == tuple("0123456789")
    assert info.image_shape == (8, 8, 1)
    assert sorted(path.name for path in exported.path.iterdir()) == sorted(
        [
            MANIFEST,
            "README.md",
            "classifier.onnx",
            "critic.onnx",
            "generator.onnx",
            "golden.npy",
            "realism.npy",
            "samples.png",
            "train.npy",
        ]
    )
    assert [path.name for path in exported.path.parent.iterdir()] == ["digits"], "nothing temporary is left"


def test_images_are_those_of_the_trained_network(exported: ExportResult, run: Path) -> None:
    samples = augmint.Generator(exported.path, device="cpu").generate({"7": 5, "2": 3}, seed=4, offset=9)
    network, config = load_generator(run)
    latent = torch.from_numpy(latents(samples.seeds, samples.indices, config.options.latent_dim))
    with torch.no_grad():
        image = network(latent, torch.from_numpy(samples.labels))
    expected = ((image.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(samples.images - expected).max() <= 1


def test_the_manifest_says_what_was_trained_and_measured(exported: ExportResult, run: Path) -> None:
    manifest = read_bundle(exported.path).manifest
    config = json.loads((run / "config.json").read_text())
    assert manifest.identity.run == "digits run"
    assert manifest.identity.licence == "cc-by-4.0"
    assert manifest.architecture.family == config["family"]
    assert manifest.architecture.checkpoint_step == 6
    assert manifest.data.fingerprint == config["data_fingerprint"]
    assert manifest.data.class_counts == dict(zip(config["class_names"], config["class_counts"], strict=True))
    assert set(manifest.data.split) == {"train", "validation", "test"}
    assert sum(manifest.data.split.values()) == 1797
    assert (manifest.generator.opset, manifest.generator.precision, manifest.generator.optimisation) == (
        20,
        "fp32",
        "all",
    )
    evidence = manifest.evidence
    assert evidence.parity is not None
    assert evidence.parity.batches == (1, 7, 64)
    assert evidence.batch_invariance is not None
    overall = {metric.name: metric for metric in evidence.metrics if metric.label is None}
    assert {"precision", "recall", "coverage", "kernel_distance", "label_fidelity"} <= set(overall)
    assert all(metric.n > 0 and metric.method for metric in overall.values())
    assert {metric.label for metric in evidence.metrics} == {None, *"0123456789"}
    assert "test split" in overall["coverage"].method
    golden = manifest.golden
    assert {row.label for row in golden} == set("0123456789")
    assert {row.truncation for row in golden} == {1.0, 0.5}


def test_the_onnx_file_alone_says_what_it_is(exported: ExportResult) -> None:
    manifest = read_bundle(exported.path).manifest
    model = onnx.load(str(exported.path / "generator.onnx"))
    (entry,) = model.metadata_props
    assert entry.key == "augmint"
    assert json.loads(entry.value) == essentials(manifest)
    (entry,) = onnx.load(str(exported.path / "critic.onnx")).metadata_props
    assert json.loads(entry.value)["part"] == "critic"


def test_the_critic_judges_as_in_training(exported: ExportResult, run: Path) -> None:
    critic, _ = load_critic(run)
    images = augmint.Generator(exported.path, device="cpu").generate({"3": 6}, seed=0).images
    label = np.full(6, 3)
    session = open_session((exported.path / "critic.onnx").read_bytes(), device="cpu", threads=1).session
    (realism,) = session.run(["realism"], {"image": images, "label": label})
    with torch.no_grad():
        expected = critic(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, torch.from_numpy(label))
    assert np.allclose(realism, expected.numpy(), atol=1e-3)


def test_nothing_of_this_machine_is_in_the_bundle(exported: ExportResult, run: Path) -> None:
    for file in exported.path.iterdir():
        data = file.read_bytes()
        for trace in (str(run.parent), str(Path(__file__).resolve().parents[2]), str(Path.home()) + "/"):
            assert trace.encode() not in data, (file.name, trace)


@pytest.mark.usefixtures("quick")
def test_a_second_export_is_the_same_bundle_byte_for_byte(exported: ExportResult, run: Path, tmp_path: Path) -> None:
    """The graphs' part of it is a gate; here it is everything else: figures, golden samples, sheet, card.

    From a copy of the run whose files are of another time.
    """
    copy = Path(shutil.copytree(run, tmp_path / "copy" / run.name))
    for file in (copy / "checkpoints").iterdir():
        os.utime(file, (1e9, 1e9))
    again = export_run(ExportRequest(run=copy, out=tmp_path / "digits", licence="cc-by-4.0"))
    assert again.digest == exported.digest
    assert again == replace(exported, path=again.path)
    assert set(again.seconds) >= {"trace", "gates", "evaluate"}
    json.dumps(again.as_dict(), allow_nan=False)


def test_the_sheet_shows_what_the_card_says(exported: ExportResult) -> None:
    with Image.open(exported.path / "samples.png") as sheet:
        assert sheet.mode == "RGB"
        assert sheet.height > 10 * 48
    card = (exported.path / "README.md").read_text(encoding="utf-8")
    assert "samples.png" in card
    assert "seed=0" in card


def test_the_card_has_a_header_that_hubs_read_and_claims_nothing(exported: ExportResult) -> None:
    card = (exported.path / "README.md").read_text(encoding="utf-8")
    _, header, body = card.split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["license"] == "cc-by-4.0"
    assert {"gan", "synthetic-data", "class-conditional"} <= set(fields["tags"])
    assert "was not measured" in body
    assert body.count("| 3 |") == 1, "one row a class"


def test_inspect_shows_it(exported: ExportResult) -> None:
    report = inspect_bundle(exported.path)
    text = report.text()
    assert exported.digest in text
    assert "byte for byte" in text
    assert str(exported.path / "samples.png") in text
    assert report.as_dict()["critic"]["file"] == "critic.onnx"
    assert "labels, realism, copies" in text


# -------------------------------------------------------------------------------------------------- other requests


class FakeSecond:
    """Where a test is not about the second export: the digests of the first."""

    def __init__(self, run: Path, which: str, precision: str) -> None:
        self._precision = precision

    def digest(self, part: str) -> str:
        return hashlib.sha256(_traced[self._precision][part]).hexdigest()

    def __enter__(self) -> FakeSecond:
        return self

    def __exit__(self, *_: object) -> None:
        pass


_traced: dict[str, dict[str, bytes]] = {}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    """No second process, and the one run of these tests is traced once for each precision."""

    def trace(of: networks.Networks, precision: networks.Precision) -> dict[str, bytes]:
        # Half precision is compared with a single precision that is traced without the critic.
        if precision not in _traced or (of.critic is not None and "critic" not in _traced[precision]):
            _traced[precision] = networks.trace(of, precision)
        return _traced[precision]

    monkeypatch.setattr(api, "SecondExport", FakeSecond)
    monkeypatch.setattr(api, "trace", trace)


@pytest.mark.usefixtures("quick")
def test_half_precision_states_what_it_does_not_promise(run: Path, exported: ExportResult, tmp_path: Path) -> None:
    lines: list[str] = []
    request = ExportRequest(run=run, out=tmp_path / "half", precision="fp16", evaluate="none", copies=False)
    result = export_run(request, say=lines.append)
    manifest = read_bundle(result.path).manifest
    assert manifest.generator.precision == "fp16"
    assert manifest.sampling.tolerance > read_bundle(exported.path).manifest.sampling.tolerance
    assert manifest.evidence.batch_invariance is None
    assert any("Half precision" in warning for warning in result.warnings)
    assert not result.metrics
    assert "left the features of the training images out" in manifest.offers["copies"]
    assert not (result.path / "train.npy").exists()
    assert (result.path / "generator.onnx").stat().st_size < 0.6 * (exported.path / "generator.onnx").stat().st_size
    assert augmint.Generator(result.path, device="cpu").info().reproducibility == "tolerance"
    assert "No quality was measured" in (result.path / "README.md").read_text(encoding="utf-8")
    assert len(lines) > 2


@pytest.mark.usefixtures("quick")
def test_force_replaces_a_bundle_and_nothing_else(run: Path, exported: ExportResult, tmp_path: Path) -> None:
    out = Path(shutil.copytree(exported.path, tmp_path / "digits"))
    request = ExportRequest(run=run, out=out, name="other", evaluate="none")
    with pytest.raises(ExportError) as caught:
        export_run(request)
    assert caught.value.code == "export.exists"
    assert read_bundle(out).digest == exported.digest

    _, secret, public = make_key("alice", tmp_path.with_name("keys"))
    result = export_run(replace(request, force=True, sign=secret))
    assert augmint.Generator(out, device="cpu", trust=public).digest == result.digest != exported.digest
    assert read_bundle(out).manifest.identity.name == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


@pytest.mark.parametrize("there", ["pictures", "file", "link"])
def test_a_destination_that_is_no_bundle_is_never_replaced(there: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    match there:
        case "pictures":
            out.mkdir()
            (out / "holiday.jpg").write_bytes(b"x")
        case "file":
            out.write_bytes(b"x")
        case "link":
            out.symlink_to(tmp_path)
    with pytest.raises(ExportError) as caught:
        export_run(ExportRequest(run=run, out=out, force=True))
    assert caught.value.code == "export.exists"
    assert out.is_symlink() or out.is_file() or (out / "holiday.jpg").read_bytes() == b"x"


def test_what_is_wrong_with_a_request_is_said_before_any_work(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--name"):
        export_run(ExportRequest(run=run, out=tmp_path / "x", name="my/bundle"))
    with pytest.raises(UsageError, match="--precision"):
        export_run(ExportRequest(run=run, out=tmp_path / "x", precision="int8"))  # type: ignore[arg-type]
    with pytest.raises(TrainingError):
        export_run(ExportRequest(run=tmp_path, out=tmp_path / "x"))
    with pytest.raises(UsageError, match="cannot be read"):
        export_run(ExportRequest(run=run, out=tmp_path / "x", sign=tmp_path / "none.key"))
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="cannot be written"):
        api._write_verified(tmp_path / "file" / "x", None, {}, force=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("out", "name"), [("digits v2", "digits-v2"), ("été", "t"), ("___", "bundle"), ("a" * 80, "a" * 64), ("7", "7")]
)
def test_a_name_is_made_of_the_destination(out: str, name: str, tmp_path: Path) -> None:
    assert api._name(ExportRequest(run="r", out=out), tmp_path / out) == name


@pytest.mark.usefixtures("quick")
def test_a_failing_gate_leaves_nothing_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "PARITY_FP32", gates.Limits(levels=-1, share=0))
    with pytest.raises(GateError) as caught:
        export_run(ExportRequest(run=run, out=tmp_path / "deep" / "out", evaluate="none"))
    assert caught.value.code == "export.parity"
    assert not (tmp_path / "deep").exists()


@pytest.mark.usefixtures("quick")
def test_a_second_export_that_differs_stops_the_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSecond, "digest", lambda self, part: "0" * 64)
    with pytest.raises(GateError) as caught:
        export_run(ExportRequest(run=run, out=tmp_path / "out", evaluate="none"))
    assert caught.value.code == "export.not-reproducible"
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_a_run_that_changes_meanwhile_is_not_exported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter([(1, 1), (2, 2)])
    monkeypatch.setattr(api, "_state", lambda request: next(states))
    with pytest.raises(ExportError) as caught:
        export_run(ExportRequest(run=run, out=tmp_path / "out", evaluate="none"))
    assert caught.value.code == "export.run-changed"
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_data_that_are_gone_leave_a_bundle_without_figures(run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "run"))
    config = json.loads((moved / "config.json").read_text())
    config["data"] = str(tmp_path / "gone")
    (moved / "config.json").write_text(json.dumps(config))
    lines: list[str] = []
    result = export_run(ExportRequest(run=moved, out=tmp_path / "bundle"), say=lines.append)
    assert not result.metrics
    assert any(str(tmp_path / "gone") in line for line in lines), "the user is told which"
    assert any("nothing was measured" in warning for warning in result.warnings)
    offers = read_bundle(result.path).manifest.offers
    assert offers["realism"] == ""
    assert offers["labels"] == offers["copies"] == "the training data could not be read again at export"
    with pytest.raises(RequestError, match=r"could not be read again.*this bundle offers realism\."):
        augmint.Generator(result.path, device="cpu").generate({"3": 1}, quality="labels,copies")
    assert str(tmp_path) not in (result.path / MANIFEST).read_text(), "no path of this machine"


@pytest.mark.usefixtures("quick")
def test_what_was_there_is_put_back_when_the_new_bundle_cannot_take_its_place(
    run: Path, exported: ExportResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(exported.path, tmp_path / "digits"))
    before = os.replace

    def replace_(source: Path, target: Path) -> None:
        if Path(source).name == "bundle" and Path(target) == out:
            raise OSError(28, "No space left on device")
        before(source, target)

    monkeypatch.setattr(os, "replace", replace_)
    with pytest.raises(ExportError, match="No space left") as caught:
        export_run(ExportRequest(run=run, out=out, name="other", evaluate="none", force=True))
    assert caught.value.code == "export.unwritable"
    assert read_bundle(out).digest == exported.digest
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


@pytest.mark.usefixtures("quick")
def test_a_label_too_long_for_a_manifest_is_one_sentence(run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "run"))
    config = json.loads((moved / "config.json").read_text())
    config["class_names"][3] = "x" * 300
    (moved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError) as caught:
        export_run(ExportRequest(run=moved, out=tmp_path / "bundle"))
    assert caught.value.code == "export.description"
    assert "class_names" in str(caught.value)


def test_a_second_export_that_fails_is_one_sentence_wherever_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another project's directory, whose own `export` must not be taken for ours."""
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    with SecondExport(tmp_path / "nothing", "best", "fp32") as second, pytest.raises(GateError) as caught:
        second.digest("generator")
    assert caught.value.code == "export.not-reproducible"
    assert "\n" not in str(caught.value)
    assert "does not exist" in str(caught.value)


# ------------------------------------------------------------------------------------------------------ families


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_passes_the_gates_on_its_graph(family: type[Family[Any]]) -> None:
    """Random weights, 32×32 colour: a new family inherits this test by being listed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = small(family, (3, 32, 32), 4)
        generator = made.generator().eval().requires_grad_(False)
        # As they begin, many families' images are one grey that lies on a tie of rounding: no trained network's do.
        for weight in generator.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    classes = made.num_classes
    dim = made.options.latent_dim
    graph = generator_graph(generator, latent_dim=dim, image_shape=(32, 32, 3), num_classes=classes)
    subject = gates.Subject(serialise(graph), generator, dim, (32, 32, 3), classes)
    gates.plain(subject.model)
    gates.folded(subject.model)
    gates.parity(subject, gates.PARITY_FP32)
    gates.batch_invariance(subject, batches=(1, 7, 64), threads=(1,))

    critic = made.critic().eval().requires_grad_(False)
    traced = critic_graph(critic, image_shape=(32, 32, 3), num_classes=made.critic_classes, conditional=classes > 0)
    assert all(tensor.shape[0] == "N" for side in signature(traced) for tensor in side)
    latent, label = subject.addresses(9)
    images = subject.run(subject.session(), latent, label)
    gates.critic_parity(serialise(traced), critic, images, label if classes else None)
