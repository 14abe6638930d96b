"""The command line: what goes to stdout and stderr, the exit codes, and that nobody meets a traceback."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from augmint import protocol, sources
from augmint.cli import main
from augmint.cli.reference import FILE, render
from augmint.cli.rooms import explain_missing
from augmint.cli.values import parse_counts, parse_strategy
from augmint.client import Client
from augmint.data import load_data, write_folder
from augmint.errors import TransportError, UsageError
from augmint.generator import Generator
from augmint.images import SYNTHETIC, read_marks
from tests.augmint.fakeservice import FakeService, problem

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("cat", "dog", "été 10")
VERBS = (
    "inspect", "train", "export", "serve", "token", "key", "sign", "sample", "latent", "balance", "evaluate",
    "families", "describe", "features", "demo",
)  # fmt: skip
ROOMS = ("demo", "serve", "train", "export", "evaluate", "families", "describe", "features")
"""Verbs that import torch or start a server."""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`augmint …` in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AUGMINT_") and name != "AUGMINT_CACHE"]:
        monkeypatch.delenv(name)

    def go(*words: object) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Ran(int(end.value.code or 0), out, err)

    return go


def refused(ran: Ran, code: int, *words: str) -> None:
    """One line on stderr, nothing on stdout."""
    assert ran.code == code, ran
    assert ran.out == ""
    assert ran.err.startswith("augmint: ")
    assert ran.err.count("\n") == 1
    for word in words:
        assert word in ran.err


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (89, 8, 8, 1), dtype=np.uint8)
    out = tmp_path_factory.mktemp("data") / "pets"
    return write_folder(images, np.repeat([1, 0, 2], [60, 20, 9]), NAMES, out)


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator(tiny_bundle, device="cpu")


# ------------------------------------------------------------------------------------------------- help


def test_help_teaches_by_example(run: Run) -> None:
    ran = run("--help")
    assert (ran.code, ran.err) == (0, "")
    assert all(f"  {verb} " in ran.out for verb in VERBS)
    for verb in VERBS:
        ran = run(verb, "-h")
        assert ran.code == 0
        assert f"  Examples:\n    augmint {verb} " in ran.out


def test_the_reference_is_the_help() -> None:
    assert FILE.read_text(encoding="utf-8") == render(), "run `python -m augmint.cli.reference`"
    assert "\x1b" not in render()
    assert max(map(len, render().splitlines())) <= 102


def test_every_example_in_the_help_parses(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each names things that are not there, so each is refused for that reason and for no other; tokens and keys can be
    made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(protocol, "_BACKOFF", 0.001)
    examples = [line.split(">")[0].split() for line in render().splitlines() if line.startswith("    augmint ")]
    assert len(examples) > 12
    for words in examples:
        if words[1] in ROOMS:
            continue
        ran = run(*(word.replace(":3000", ":9") for word in words[1:]))
        made = words[1] in ("token", "key")
        assert ran.code == (0 if made else 1)
        assert ran.err == "" if made else ran.err.startswith("augmint: ")


@pytest.mark.parametrize(
    "words", [["--nonsense"], ["nonsense"], ["sample", "--nonsense"], ["train", "a", "b"], ["sample"]]
)
def test_unknown_flags_and_words_are_wrong_usage(run: Run, words: list[str]) -> None:
    ran = run(*words)
    assert ran.code == 2
    assert "Usage:" in ran.err
    assert "Traceback" not in ran.err


def test_nothing_at_all_shows_the_help(run: Run) -> None:
    ran = run()
    assert ran.code in (0, 2)
    assert "Commands:" in ran.out + ran.err


def test_help_needs_the_core_alone_and_little_time() -> None:
    code = """
import sys
for name in ("torch", "bentoml", "onnx", "onnxruntime", "sklearn", "mlxtend", "lightning_fabric", "rich.progress"):
    sys.modules[name] = None
from augmint.cli import main
for words in (["--help"], ["--version"], *([verb, "--help"] for verb in sys.argv[1:])):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, words
print([name for name in ("numpy", "pydantic", "httpx2", "PIL") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code, *VERBS], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0, result.stderr
    # typer itself loads pydantic; what is ours stays unloaded.
    assert set(eval(result.stdout.splitlines()[-1])) <= {"pydantic"}
    seconds = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "augmint", "--help"], capture_output=True, cwd=ROOT, check=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.5


def test_version(run: Run) -> None:
    from augmint import __version__

    assert run("--version").out == f"augmint {__version__}\n"


# ------------------------------------------------------------------------------------------------- sample


def test_a_folder_of_marked_pngs(run: Run, tiny_bundle: Path, generator: Generator) -> None:
    ran = run(
        "sample", tiny_bundle, "--count", "cat=3", "--count", "été 10=2", "--seed", 7, "--offset", 4, "--out", "s"
    )
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[:3] == [
        "label   requested  delivered",
        "cat             3          3",
        "été 10          2          2",
    ]
    assert "seed             7\n" in ran.out
    assert generator.digest in ran.out
    expected = generator.generate({"cat": 3, "été 10": 2}, seed=7, offset=4)
    with open("s/metadata.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == expected.label_names
    for row, image, index in zip(rows, expected.images, expected.indices.tolist(), strict=True):
        path = Path("s") / row["file_name"]
        with Image.open(path) as picture:
            np.testing.assert_array_equal(np.asarray(picture), image[:, :, 0])
        marks = read_marks(path.read_bytes())
        assert marks is not None
        assert (marks["label"], marks["seed"], marks["index"], marks["bundle"]) == (
            row["label"],
            7,
            index,
            generator.digest,
        )
    assert len(load_data("s")) == 5


def test_an_npz_a_sheet_one_image_and_stdout(run: Run, tiny_bundle_unconditional: Path) -> None:
    bundle = tiny_bundle_unconditional
    expected = Generator(bundle, device="cpu").generate(40, seed=1)
    document = json.loads(run("sample", bundle, "--count", 40, "--seed", 1, "--out", "a/x.npz", "--json").out)
    assert document["delivered"] == {"": 40}
    assert (document["seed"], document["bundle"], document["form"]) == (1, expected.bundle, "npz")
    assert run("sample", bundle, "--count", 40, "--seed", 1, "--out", "x.png").code == 0
    assert run("sample", bundle, "--count", 1, "--seed", 1, "--out", "one.png").code == 0
    ran = subprocess.run(
        [sys.executable, "-m", "augmint", "sample", bundle, "--count", "40", "--seed", "1", "--out", "-"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert b"seed 1" in ran.stderr
    for file in ("a/x.npz", io.BytesIO(ran.stdout)):
        with np.load(file, allow_pickle=False) as arrays:
            np.testing.assert_array_equal(arrays["images"], expected.images)
            assert arrays["class_names"].shape == (0,)
    with Image.open("one.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), expected.images[0])
    with Image.open("x.png") as picture:
        assert picture.width > 16 * 10
        assert SYNTHETIC in picture.info["XML:com.adobe.xmp"]


def test_the_seed_that_was_picked_is_told_and_gives_the_same_again(run: Run, tiny_bundle: Path) -> None:
    first = json.loads(run("sample", tiny_bundle, "--count", "cat=3", "--out", "a.npz", "--json").out)
    again = run("sample", tiny_bundle, "--count", "cat=3", "--seed", first["seed"], "--out", "b.npz")
    assert again.code == 0
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()


def test_sampling_refuses_in_one_line(run: Run, tiny_bundle: Path, tiny_bundle_unconditional: Path) -> None:
    refused(run("sample", tiny_bundle, "--count", "bird=2"), 2, "bird", "cat, dog, été 10")
    refused(run("sample", tiny_bundle, "--count", "cat=x"), 2, "'x'", "whole number")
    refused(run("sample", tiny_bundle, "--count", "cat"), 2)
    refused(run("sample", tiny_bundle, "--count", "cat=2", "--count", "cat=3"), 2, "twice")
    refused(run("sample", tiny_bundle, "--count", "cat=0"), 2, "nothing was asked for")
    refused(run("sample", tiny_bundle, "--count", 3), 2, "by label")
    refused(run("sample", tiny_bundle_unconditional, "--count", "cat=3"), 2, "unconditional")
    refused(run("sample", tiny_bundle, "--count", "cat=1", "--truncation", "0"), 2, "truncation")
    refused(run("sample", tiny_bundle, "--count", "cat=1", "--truncation", "nan"), 2, "truncation")
    refused(run("sample", tiny_bundle, "--count", "cat=1", "--offset", 2**64 - 1), 2, "offset")
    refused(run("sample", tiny_bundle, "--count", "cat=1", "--bundle", "x"), 2, "one bundle")
    refused(run("sample", tiny_bundle, "--count", "cat=1", "--device", "tpu"), 1, "tpu")
    refused(run("sample", tiny_bundle, "--count", "cat=1", "--out", "-", "--json"), 2, "stdout")
    refused(run("sample", "nowhere", "--count", "cat=1"), 1, "nowhere")
    refused(run("sample", "http://", "--count", "cat=1"), 2, "http://HOST:PORT")
    assert list(Path().iterdir()) == []
    Path("taken").mkdir()
    Path("taken/file").touch()
    Path("taken.npz").touch()
    refused(run("sample", tiny_bundle, "--count", "cat=1", "--out", "taken"), 1, "taken")
    refused(run("sample", tiny_bundle, "--count", "cat=1", "--out", "taken.npz"), 1, "taken")
    refused(run("sample", tiny_bundle, "--count", "cat=1", "--out", "taken.npz/x.png"), 1)
    assert run("sample", tiny_bundle, "--count", "cat=1", "--seed", 2**64).code == 2


@pytest.fixture
def service(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> FakeService:
    """http://service.test, behind the command line's own client."""
    fake = FakeService(generator, limit=4)

    def connect(spec: str, **settings: Any) -> Client:
        return Client(spec, retries=0, transport=fake.transport, bundle=settings["bundle"], token=settings["token"])

    monkeypatch.setattr(sources, "open_source", connect)
    return fake


@pytest.mark.parametrize("fault", [problem(503, "queue-full", "The queue is full."), "fewer"])
@pytest.mark.parametrize("out", ["s", "s.npz"])
def test_fewer_than_asked_is_code_3_and_what_came_is_kept(run: Run, service: FakeService, fault: Any, out: str) -> None:
    fewer = lambda _: service.generate(service.asked[-1], slice(2))  # noqa: E731
    service.faults = [None, fewer if fault == "fewer" else fault]
    ran = run("sample", "http://service.test", "--count", "cat=7", "--out", out, "--json")
    assert ran.code == 3
    delivered = 6 if fault == "fewer" else 4
    assert json.loads(ran.out)["delivered"] == {"cat": delivered}
    assert ran.err.startswith(f"augmint: {delivered} of 7 images were delivered")
    assert ran.err.count("\n") == 1
    kept = len(load_data("s")) if out == "s" else len(np.load("s.npz")["images"])
    assert kept == delivered


@pytest.mark.parametrize("far", [False, True])
def test_quality_is_accounted_for_and_too_high_a_one_is_code_3(
    run: Run, judged_bundle: Path, monkeypatch: pytest.MonkeyPatch, far: bool
) -> None:
    local = Generator(judged_bundle, device="cpu")
    if far:
        fake = FakeService(local, limit=4)
        monkeypatch.setattr(sources, "open_source", lambda spec, **_: Client("http://x.test", transport=fake.transport))
    words = ("sample", judged_bundle, "--count", "cat=7", "--count", "été 10=2", "--seed", 1)
    ran = run(*words, "--out", "s.npz", "--quality", "labels,realism:0.25", "--json")
    assert ran.code == 0
    expected = local.generate({"cat": 7, "été 10": 2}, seed=1, quality="labels,realism:0.25")
    document = json.loads(ran.out)
    assert document["delivered"] == {"cat": 7, "été 10": 2}
    assert document["generated"] == expected.generated
    assert {label: tuple(counts.values()) for label, counts in document["rejected"].items()} == expected.rejected
    assert document["quality"] == "labels,realism:0.25"
    with np.load("s.npz") as npz:
        np.testing.assert_array_equal(npz["indices"], expected.indices)

    ran = run(*words, "--out", "t", "--quality", "labels:0.999999999999")
    assert ran.code == 3
    assert ran.out.splitlines()[0].split() == ["label", "requested", "generated", "wrong", "label", "unrealistic", "copies", "delivered"]  # fmt: skip  # noqa: E501
    assert "made, the others were not labels:0.999999999999" in ran.err
    assert "seed 1" in ran.err
    refused(run(*words, "--out", "u", "--quality", "sharp"), 2, "offers labels, realism, copies")
    assert not Path("u").exists()


def test_balancing_by_quality(run: Run, judged_bundle: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    np.savez("data.npz", images=images, labels=np.array(["dog"] * 20 + ["cat"] * 10), split=np.zeros(30, np.uint8))
    words = ("balance", "data.npz", judged_bundle, "--seed", 1)
    ran = run(*words, "--out", "b.npz", "--quality", "labels", "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    wanted = Generator(judged_bundle, device="cpu").generate({"cat": 10}, seed=1, quality="labels")
    assert document["rejected"] == {"cat": {"label": wanted.rejected["cat"][0], "realism": 0, "copy": 0}}
    assert run(*words, "--out", "c.npz", "--quality", "copies").out.splitlines()[0].endswith("rejected")
    ran = run(*words, "--out", "d.npz", "--quality", "labels:0.9999999999999")
    assert ran.code == 3
    assert "ask for a lower quality" in ran.err


def test_a_service_that_gives_nothing_leaves_nothing(run: Run, service: FakeService) -> None:
    service.faults = [problem(503, "queue-full", "The queue is full.")]
    refused(run("sample", "http://service.test", "--count", "cat=7", "--out", "s"), 1, "queue is full")
    assert list(Path().iterdir()) == []


def test_the_environment_goes_before_defaults_and_flags_before_it(
    run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUGMINT_TOKEN", "secret")
    monkeypatch.setenv("AUGMINT_SAMPLE_SEED", "11")
    monkeypatch.setenv("AUGMINT_SAMPLE_OUT", "x.npz")
    words = ("sample", "http://service.test", "--count", "cat=1", "--json")
    document = json.loads(run(*words).out)
    assert (document["seed"], document["out"]) == (11, "x.npz")
    assert service.requests[-1].headers["Authorization"] == "Bearer secret"
    assert json.loads(run(*words, "--seed", 12, "--out", "y.npz").out)["seed"] == 12
    monkeypatch.setenv("AUGMINT_VERSION", "3")
    assert run("inspect", "nowhere").code == 1


# ------------------------------------------------------------------------------------------------- balance


def test_a_dry_run_prints_the_plan_and_makes_nothing(run: Run, pets: Path, tiny_bundle: Path) -> None:
    ran = run("balance", pets, tiny_bundle, "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0] == "label   real  generate  target"
    counts = load_data(pets).counts("train")
    rows = json.loads(run("balance", pets, tiny_bundle, "--dry-run", "--json", "--strategy", "cat=50").out)["plan"]
    assert rows[0] == {"label": "cat", "real": counts["cat"], "generate": 50 - counts["cat"], "target": 50}
    assert [row["generate"] for row in rows[1:]] == [0, 0]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("out", ["b", "b.npz"])
def test_balance_writes_real_and_synthetic(run: Run, pets: Path, tiny_bundle: Path, out: str) -> None:
    ran = run("balance", pets, tiny_bundle, "--out", out, "--seed", 3, "--strategy", "not-majority", "--json")
    assert (ran.code, ran.err) == (0, "")
    document = json.loads(ran.out)
    largest = load_data(pets).counts("train")["dog"]
    assert load_data(out).counts() == dict.fromkeys(NAMES, largest)
    assert document["real"] + document["synthetic"] == 3 * largest
    assert (document["seed"], document["format"]) == (3, "folder" if out == "b" else "npz")


def test_what_is_left_out_of_the_data_is_said(run: Run, pets: Path, tiny_bundle: Path) -> None:
    shutil.copytree(pets, "pets")
    Path("pets/cat/broken.png").write_bytes(b"")
    Path("pets/metadata.csv").unlink()
    refused(run("balance", "pets", tiny_bundle, "--dry-run"), 1, "broken.png", "--skip-bad")
    ran = run("balance", "pets", tiny_bundle, "--dry-run", "--skip-bad")
    assert ran.code == 0
    assert "left out: cat/broken.png" in ran.err


def test_balancing_refuses_in_one_line(
    run: Run, pets: Path, tiny_bundle: Path, tiny_bundle_unconditional: Path
) -> None:
    refused(run("balance", pets, tiny_bundle), 2, "--out", "--dry-run")
    refused(run("balance", pets, tiny_bundle, "--out", "b", "--strategy", "majority"), 2, "not majority")
    refused(run("balance", pets, tiny_bundle, "--out", "b", "--strategy", "0.5"), 2, "two classes")
    refused(run("balance", pets, tiny_bundle, "--out", "b", "--strategy", "cat=1"), 2, "cat")
    refused(run("balance", pets, tiny_bundle, "--out", "b", "--strategy", "bird=1"), 2, "bird")
    refused(run("balance", pets, tiny_bundle, "--out", "b", "--strategy", "cat=99", "--strategy", "auto"), 2)
    refused(run("balance", pets, tiny_bundle_unconditional, "--out", "b"), 2, "unconditional")
    refused(run("balance", "nowhere", tiny_bundle, "--out", "b"), 1, "nowhere")
    refused(run("balance", pets, "nowhere", "--out", "b"), 1, "nowhere")
    refused(run("balance", pets, tiny_bundle, "--out", "b", "--format", "npz"), 2, ".npz")
    assert list(Path().iterdir()) == []
    Path("taken").touch()
    refused(run("balance", pets, tiny_bundle, "--out", "taken"), 1, "taken")
    assert run("balance", pets, tiny_bundle, "--out", "b", "--format", "tar").code == 2


def test_a_short_balance_is_code_3_and_kept(run: Run, pets: Path, service: FakeService) -> None:
    service.faults = [None, None, problem(503, "draining", "It stops.")]
    ran = run("balance", pets, "http://service.test", "--out", "b", "--json")
    assert ran.code == 3
    assert json.loads(ran.out)["synthetic"] == 8
    assert "8 of" in ran.err
    assert "It stops" in ran.err
    assert len(load_data("b")) == json.loads(ran.out)["real"] + 8


# ------------------------------------------------------------------------------------------------- inspect


def test_inspect_tells_data_sets_and_services_apart(
    run: Run, pets: Path, generator: Generator, monkeypatch: Any
) -> None:
    ran = run("inspect", pets, "--sheet", "sheet.png")
    assert ran.code == 0
    assert "89 images, 3 classes" in ran.out
    assert Path("sheet.png").is_file()
    document = json.loads(run("inspect", pets, "--json").out)
    assert (document["kind"], document["images"]) == ("data set", 89)
    fake = FakeService(generator)
    monkeypatch.setattr("augmint.client.Client", lambda url, token: Client(url, transport=fake.transport, token=token))
    assert "cat, dog, été 10" in run("inspect", "http://service.test").out
    document = json.loads(run("inspect", "http://service.test", "--json").out)
    assert document["bundles"][0]["digest"] == generator.digest
    refused(run("inspect", "http://service.test", "--sheet", "x.png"), 2, "--sheet")
    refused(run("inspect", "nowhere"), 1, "nowhere")


def test_inspect_verifies_a_bundle(run: Run, tiny_bundle: Path, generator: Generator) -> None:
    assert "golden samples reproduced byte for byte" in run("inspect", tiny_bundle).out
    document = json.loads(run("inspect", tiny_bundle, "--json").out)
    assert (document["verified"], document["digest"]) == (True, generator.digest)
    shutil.copytree(tiny_bundle, "broken")
    Path("broken/extra").touch()
    refused(run("inspect", "broken"), 1, "extra")
    shutil.copytree(tiny_bundle, "bundles/tiny")
    refused(run("inspect", "bundles"), 2, "bundles/tiny")  # and is not a data set of sample sheets
    assert [path.name for path in Path("bundles").iterdir()] == ["tiny"]


def test_a_bundle_is_signed_and_whoever_trusts_the_key_knows(run: Run, tiny_bundle: Path, generator: Generator) -> None:
    shutil.copytree(tiny_bundle, "mine")
    made = json.loads(run("key", "alice", "--out", "keys", "--json").out)
    refused(run("key", "alice", "--out", "keys"), 2, "exists already")
    other = run("key", "mallory", "--out", "keys")
    assert other.out.startswith("mallory, key ")
    assert (made["private"], made["public"]) == ("keys/alice.key", "keys/alice.pub")
    refused(run("inspect", "mine", "--trust", made["public"]), 1, "is not signed")
    refused(run("sign", "mine", "--key", made["public"]), 2, "holds no private key")
    signed = run("sign", "mine", "--key", made["private"])
    assert signed.out == f"mine: signed by alice, key {made['key']}; bundle {generator.digest}\n"
    found = json.loads(run("inspect", "mine", "--trust", made["public"], "--json").out)["signature"]
    assert (found["signer"], found["key"], found["trusted"]) == ("alice", made["key"], True)
    assert "which is worth what you know of it" in run("inspect", "mine").out
    again = json.loads(run("sign", "mine", "--key", "keys/mallory.key", "--json").out)
    assert (again["signer"], again["bundle"]) == ("mallory", generator.digest)
    refused(run("inspect", "mine", "--trust", made["public"]), 1, "does not hold")
    refused(run("inspect", "http://service.test", "--trust", made["public"]), 2, "--trust")


def test_inspect_tells_how_a_run_stands(run: Run) -> None:
    config = pytest.importorskip("training.config")
    runs = pytest.importorskip("training.run")
    made = config.TrainConfig(
        made_with="x", data="pets", data_name="pets", data_fingerprint="0", skip_bad=False, class_names=NAMES,
        class_counts=(3, 2, 1), image_shape=(8, 8, 1), resize="fit", family="gan",
        options=config.options_from("gan", {}), conditional=False, seed=4, steps=9, minutes=None, device="cpu",
        precision="32-true", threads=1, channels_last=False, log_every=1, evaluate_every=1, score_images=9,
        checkpoint_every=1, tensorboard=False, ignore_labels=False,
    )  # fmt: skip
    training = runs.Run.create("r", made)
    assert "r: killed, step 0 of 9" in run("inspect", "r").out  # it says "running", but nobody holds its lock
    training.write_status(
        runs.Status("stopped", 5, 9, 2.0, runs.Best(4, float("nan")), (runs.Alarm("saturated", 3, "D has won."),))
    )
    ran = run("inspect", "r")
    assert "augmint train --resume r" in ran.out
    assert "step 3: D has won." in ran.out
    document = json.loads(run("inspect", "r", "--json").out)
    assert (document["state"], document["best"]["score"], document["class_names"]) == ("stopped", None, list(NAMES))


# ------------------------------------------------------------------------------------------------- the other rooms


def test_training_flags_become_its_request(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    training = pytest.importorskip("training")
    seen: list[Any] = []

    class Done:
        path = Path("runs/x")

        def status(self) -> Any:
            return training.Status("finished", 3, 3)

    monkeypatch.setattr(training, "train", lambda request: seen.append(request) or Done())
    monkeypatch.setattr(training, "resume", lambda run, data: seen.append((run, data)) or Done())
    assert run("train", "data").out == "runs/x\n"
    assert seen.pop() == training.TrainRequest(data="data")
    words = (
        "--out o --family gan --steps 3 --resolution 32x16 --resize crop --seed 4 --device cpu --batch 8 --set lr=1 "
    )
    words += "--set a=b=c --ignore-labels --skip-bad --precision 32-true --threads 1 --checkpoint-every 5 "
    words += "--evaluate-every 6 --no-tensorboard --json"
    assert json.loads(run("train", "data", *words.split()).out)["state"] == "finished"
    assert seen.pop() == training.TrainRequest(
        data="data",
        out=Path("o"),
        family="gan",
        steps=3,
        resolution="32x16",
        resize="crop",
        seed=4,
        device="cpu",
        batch=8,
        settings={"lr": "1", "a": "b=c"},
        ignore_labels=True,
        skip_bad=True,
        precision="32-true",
        threads=1,
        checkpoint_every=5,
        evaluate_every=6,
        tensorboard=False,
    )
    assert run("train", "--resume", "runs/x").code == 0
    assert run("train", "moved", "--resume", "runs/x").code == 0
    assert seen == [(Path("runs/x"), None), (Path("runs/x"), "moved")]


def test_training_refuses_in_one_line(run: Run, pets: Path) -> None:
    refused(run("train"), 2, "DATA", "--resume")
    refused(run("train", "--resume", "r", "--seed", 3), 2, "--seed")
    refused(run("train", "--resume", "r", "--set", "a=1"), 2, "--set")
    refused(run("train", "--resume", "r"), 1, "r does not exist")
    refused(run("train", pets, "--set", "nonsense"), 2, "KEY=VALUE")
    refused(run("train", pets, "--family", "nonsense"), 2, "nonsense")
    refused(run("train", "nowhere", "--steps", 1), 1, "nowhere")


def test_exporting_and_serving_refuse_in_one_line(run: Run) -> None:
    refused(run("export", "nowhere", "--out", "b"), 1, "nowhere")
    refused(run("export", "nowhere", "--out", "b", "--quick"), 2, "--evaluate")
    assert run("export", "nowhere").code == 2
    refused(run("serve", "nowhere"), 2, "nowhere")
    refused(run("serve", "--port", 0), 2)


def test_evaluating_prints_the_verdict_and_writes_the_report(
    run: Run, pets: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluation import api
    from evaluation.utility import UtilityConfig

    methods = ("real only", "oversampling + affine", "real + synthetic")
    small = UtilityConfig(methods=methods, amounts=(1.0,), seeds=(0, 1), steps=3, processes=1)
    monkeypatch.setattr(UtilityConfig, "quick", classmethod(lambda cls: small))
    monkeypatch.setattr(api, "_FIDELITY", {False: 20, True: 20})
    ran = run("evaluate", tiny_bundle, pets, "--quick", "--report", "report")
    assert ran.code == 0, ran
    document = json.loads(Path("report/report.json").read_text(encoding="utf-8"))
    assert ran.out.startswith(document["sentence"])
    assert "real + synthetic" in ran.out
    assert ran.out.endswith("report  report/report.html\n")
    assert [line.partition(" ")[0] for line in ran.err.splitlines()][:2] == ["reading", "reading:"]
    again = json.loads(run("evaluate", tiny_bundle, pets, "--quick", "--json").out)
    assert again["verdict"] == document["verdict"]
    assert again["utility"]["fits_cached"] == again["utility"]["fits"]
    assert again["report"] is None


def test_evaluating_refuses(run: Run, pets: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    refused(run("evaluate", tiny_bundle, pets, "--report", "file"), 1, "file is a file")
    refused(run("evaluate", tiny_bundle, pets, "--report", "file/deep"), 1, "no folder")
    refused(run("evaluate", tiny_bundle, pets, "--minority", "cat", "--minority", "cat"), 2, "twice")
    for words, said in (
        (["nowhere", pets], "nowhere"),
        ([tiny_bundle, "nowhere"], "nowhere"),
        ([tiny_bundle, pets, "--minority", "cow"], "no class 'cow'"),
        ([tiny_bundle, pets, "--extractor", "fid"], "no extractor 'fid'"),
    ):
        ran = run("evaluate", *words, "--report", "report")
        assert ran.code in (1, 2)
        assert said in ran.err.splitlines()[-1]
        assert "Traceback" not in ran.err
    assert not Path("report").exists()

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluation.api.utility", interrupt)
    monkeypatch.setattr("evaluation.api.cas", interrupt)
    ran = run("evaluate", tiny_bundle, pets, "--quick")
    assert ran.code == 130
    assert "the same command goes on from there" in ran.err.splitlines()[-1]


def test_an_interruption_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "open_source", interrupt)
    refused(run("sample", "x", "--count", 1), 130, "interrupted")


def test_a_mistake_of_ours_is_a_line_too_and_a_traceback_on_request(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the\nsky fell")

    monkeypatch.setattr(sources, "open_source", fail)
    refused(run("sample", "x", "--count", 1), 1, "unexpected RuntimeError: the sky fell", "augmint --debug sample")
    assert "Traceback" in run("--debug", "sample", "x", "--count", 1).err
    monkeypatch.setattr(sources, "open_source", lambda *_, **__: (_ for _ in ()).throw(TransportError("Gone.")))
    refused(run("sample", "x", "--count", 1), 1, "Gone.")
    assert "Traceback" in run("--debug", "sample", "x", "--count", 1).err


def test_a_full_disk_is_a_line(run: Run, tiny_bundle: Path) -> None:
    refused(run("sample", tiny_bundle, "--count", "cat=1", "--out", "/dev/full/x.npz"), 1, "/dev/full")


def test_a_closed_pipe_is_quiet(tiny_bundle: Path, pets: Path) -> None:
    for words in (["inspect", str(pets)], ["sample", str(tiny_bundle), "--count", "cat=9999", "--out", "-"]):
        process = subprocess.Popen(
            [sys.executable, "-m", "augmint", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(timeout=60) == 1


def test_without_the_rooms_it_says_where_they_are(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "augmint", tmp_path / "site" / "augmint", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from augmint.cli import main
main(sys.argv[2:])
"""
    # Run in the checkout: its rooms can be found, but they are not those of this copy.
    for words in (["train", "x"], ["export", "x", "--out", "y"], ["serve", "x"], ["evaluate", "x", "y"], ["demo"]):
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "site"), *words], capture_output=True, text=True, cwd=ROOT
        )
        assert (result.returncode, result.stdout) == (2, "")
        assert "runs from a checkout" in result.stderr
        assert result.stderr.count("\n") == 1


def test_without_an_extra_it_says_which(tiny_bundle: Path) -> None:
    code = """
import sys
sys.modules[sys.argv[1]] = None
from augmint.cli import main
main(sys.argv[2:])
"""
    for module, extra, words in (
        ("onnxruntime", "augmint[local]", ["sample", str(tiny_bundle), "--count", "cat=1"]),
        ("onnx", "augmint[local]", ["sample", str(tiny_bundle), "--count", "cat=1"]),
        ("torch", "augmint[train]", ["train", "x"]),
        ("bentoml", "augmint[serve]", ["serve", str(tiny_bundle)]),
    ):
        result = subprocess.run([sys.executable, "-c", code, module, *words], capture_output=True, text=True, cwd=ROOT)
        assert result.returncode in (1, 2)
        assert module in result.stderr
        assert f'pip install "{extra}"' in result.stderr
        assert result.stderr.count("\n") == 1
    assert explain_missing(ModuleNotFoundError(name="os_of_ours"), "train") is None


# ------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("words", "found"),
    [(["7"], 7), (["3=200", "7=50"], {"3": 200, "7": 50}), (["a=b=1"], {"a=b": 1}), (["été 10=0"], {"été 10": 0})],
)
def test_counts(words: list[str], found: Any) -> None:
    assert parse_counts(words) == found


@pytest.mark.parametrize(
    "words", [["=1"], ["a="], ["a=-1"], ["a=1.5"], ["1", "2"], ["a=1", "2"], ["a=٣"], ["a=" + "9" * 20]]
)
def test_wrong_counts(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_counts(words)


@pytest.mark.parametrize(
    ("words", "found"),
    [(["not-minority"], "not minority"), (["1"], 1.0), (["a=5", "b=6"], {"a": 5, "b": 6}), (["all"], "all")],
)
def test_strategies(words: list[str], found: Any) -> None:
    assert parse_strategy(words) == found
