"""A whole evaluation of tiny things, the page it makes, what may be asked and what is refused."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from augmint import Generator
from augmint.errors import DataError, UsageError
from augmint.images import decode_image, read_marks
from evaluation import api
from evaluation.api import VERDICT, EvaluateRequest, Evaluation, evaluate, summary
from evaluation.report import check_report, report_files, write_report
from evaluation.utility import UtilityConfig
from tests.tinybundle import write_tiny_bundle

HOSTILE = "<script>alert('1')</script>&\"x"
NAMES = ("cat", "dog", HOSTILE)
SMALL = UtilityConfig(
    methods=("real only", "oversampling + affine", "real + synthetic", "real + synthetic + augmentation"),
    amounts=(1.0,),
    shares=(0.5,),
    seeds=(0, 1),
    steps=6,
    processes=1,
)


def patterned(rng: np.random.Generator, label: int, count: int) -> NDArray[np.uint8]:
    """Noise with one bright corner for each class, 8×8 grey."""
    images = rng.integers(0, 90, (count, 8, 8, 1), dtype=np.uint8)
    images[:, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 150
    return images


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, the third small and with a hostile name; the split is given."""
    rng = np.random.default_rng(0)
    images, labels, split = [], [], []
    for label, counts in enumerate(((30, 8, 24), (30, 8, 24), (8, 4, 24))):
        for side, count in enumerate(counts):
            images.append(patterned(rng, label, count))
            labels += [label] * count
            split += [side] * count
    path = tmp_path_factory.mktemp("data") / "set.npz"
    np.savez(path, images=np.concatenate(images), labels=labels, split=split, class_names=np.array(NAMES))
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "hostile", class_names=NAMES)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UtilityConfig, "quick", classmethod(lambda cls: SMALL))
    monkeypatch.setattr(api, "_FIDELITY", {False: 30, True: 30})


@pytest.fixture(scope="module")
def found(bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UtilityConfig, "quick", classmethod(lambda cls: SMALL))
        patch.setattr(api, "_FIDELITY", {False: 30, True: 30})
        patch.setenv("AUGMINT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return evaluate(EvaluateRequest(source=bundle, data=data, quick=True))


# --- what is measured -------------------------------------------------------------------------------------------------


def test_everything_is_measured(found: Evaluation) -> None:
    assert found.utility is not None
    assert found.utility.verdict in ("helps", "makes no difference", "do not use it")
    assert found.utility.minority == (HOSTILE,)
    assert found.copying is not None
    assert [report.extractor for report in found.fidelity] != []
    assert found.cas is not None
    assert not found.reasons
    assert found.generated[HOSTILE] >= 22  # up to the largest class
    assert found.seed == 0
    assert set(found.seconds) >= {"reading", "generating", "copying", VERDICT}
    assert found.sentence == found.utility.conclusion
    text = found.text()
    assert found.sentence in text
    assert "real + synthetic" in text


def test_the_manifests_summary(found: Evaluation) -> None:
    short = summary(found)
    assert short is not None
    assert found.utility is not None
    assert (short.verdict, short.sentence) == (found.utility.verdict, found.utility.conclusion)
    assert short.n == 72
    assert short.seeds == 2
    assert short.classes == (HOSTILE,)


def test_json_is_stable_and_plain(found: Evaluation) -> None:
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert list(document) == [
        "kind", "schema_version", "verdict", "sentence", "advice", "command", "source", "data", "generated", "quick",
        "utility", "fidelity", "copying", "cas", "reasons", "caveats", "notes", "ran", "seconds",
    ]  # fmt: skip
    assert document["kind"] == "augmint-evaluation"
    assert document["source"]["trained_on"] == "another"
    assert document["data"]["classes"]["cat"] == {"train": 30, "validation": 8, "test": 24}


def test_without_timings_the_same_bytes(bundle: Path, data: Path, found: Evaluation) -> None:
    again = evaluate(EvaluateRequest(source=bundle, data=data, quick=True, cache=False))
    assert report_files(again, timings=False) == report_files(found, timings=False)
    assert "seconds" not in report_files(found, timings=False)["report.json"].decode()
    assert "seconds" in report_files(found)["report.json"].decode()


def test_the_recommended_command_makes_the_recommended_set(found: Evaluation) -> None:
    assert found.utility is not None
    helps = replace(found, utility=replace(found.utility, verdict="helps"), data_words="my data")
    made = helps.utility.chosen.images if helps.utility else {}
    assert made == {"cat": 0, "dog": 0, HOSTILE: 22}
    assert helps.command == f"augmint balance 'my data' {found.source.words} --seed 0 --out balanced"
    half = replace(helps.utility.chosen, images={"cat": 0, "dog": 0, HOSTILE: 11})  # type: ignore[union-attr]
    helps = replace(helps, utility=replace(helps.utility, chosen=half))  # type: ignore[type-var]
    assert "--strategy" in helps.command
    assert "=19" in helps.command
    assert "<script>" in helps.command
    assert len(helps.command_lines) > 1
    pasted = subprocess.run(["sh", "-c", "augmint() { printf '%s\\n' \"$@\"; }\n" + "\n".join(helps.command_lines)],
                            capture_output=True, text=True, check=True)  # fmt: skip
    assert pasted.stdout.splitlines() == shlex.split(helps.command)[1:]
    no = replace(found, utility=replace(found.utility, verdict="makes no difference"))
    assert no.command == ""
    assert found.utility.baseline in no.advice


# --- the page ---------------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "line", "circle", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(found: Evaluation) -> _Page:
    return _Page(report_files(found)["report.html"].decode())


def test_the_page_is_whole_and_needs_nothing(page: _Page) -> None:
    assert page.open == []
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
        assert not [name for name in attributes if name.startswith("on")]
        assert "style" not in attributes
    assert not page.all("script")
    assert not page.all("iframe")
    style = "".join(page.texts)
    assert "@import" not in style
    assert "url(" not in style
    policy = next(m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none'")


def test_the_page_is_fit_to_be_read(page: _Page, found: Evaluation) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert [tag for tag, _ in page.tags].count("h1") == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert all(image.get("alt") for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(cell.get("scope") for cell in page.all("th"))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    for attributes in (a for _, a in page.tags if "aria-labelledby" in a):
        assert attributes["aria-labelledby"] in ids
    texts = " ".join(page.texts)
    assert found.sentence in texts
    # Parsed back, the hostile name is text.
    assert HOSTILE in texts
    assert "nan" not in texts.lower().split()
    assert "None" not in texts.split()


def test_generated_pictures_are_marked(page: _Page) -> None:
    import base64

    sources = [str(image["src"]).partition(",")[2] for image in page.all("img")]
    alts = [str(image["alt"]) for image in page.all("img")]
    for source, alt in zip(sources, alts, strict=True):
        content = base64.b64decode(source)
        assert decode_image(content).pixels.size
        assert (b"trainedAlgorithmicMedia" in content) == ("generated" in alt)
        assert read_marks(content) is None  # no single address


def test_written_files(found: Evaluation, tmp_path: Path) -> None:
    path = write_report(found, tmp_path / "deep" / "report")
    assert path.name == "report.html"
    assert json.loads((path.parent / "report.json").read_text())["verdict"]
    write_report(found, path.parent)
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "report.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        check_report(tmp_path / "file")


# --- sources ----------------------------------------------------------------------------------------------------------


def save(folder: Path, images: NDArray[np.uint8]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image[:, :, 0]).save(folder / f"{i}.png")


def test_a_folder_per_class(data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    save(tmp_path / "made" / "cat", patterned(rng, 0, 25))
    save(tmp_path / "made" / "dog", patterned(rng, 1, 25))
    before = sorted(tmp_path.rglob("*"))
    result = evaluate(EvaluateRequest(source=tmp_path / "made", data=data, quick=True, minority=("dog",)))
    assert result.source.kind == "images"
    assert result.source.classes == ("cat", "dog")
    assert result.generated == {"cat": 25, "dog": 25, HOSTILE: 0}
    assert result.seed is None
    assert result.command == ""
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left in somebody's folder"
    # No images of the one class that is short: nothing to compare, and the page says so.
    assert "short of images" in result.no_verdict
    assert "No verdict" in report_files(result)["report.html"].decode()


def test_images_without_classes_get_no_verdict(data: Path, tmp_path: Path) -> None:
    save(tmp_path / "flat", patterned(np.random.default_rng(2), 0, 30))
    result = evaluate(EvaluateRequest(source=tmp_path / "flat", data=data, quick=True))
    assert result.utility is None
    assert "no classes" in result.no_verdict
    assert "no classes" in result.sentence
    assert result.copying is not None
    assert result.fidelity
    assert summary(result) is None
    files = report_files(result)
    assert "No verdict" in files["report.html"].decode()
    assert json.loads(files["report.json"])["verdict"] is None


def test_an_unconditional_bundle(data: Path, tmp_path: Path) -> None:
    plain = write_tiny_bundle(tmp_path / "plain", class_names=())
    result = evaluate(EvaluateRequest(source=Generator(plain), data=data, quick=True, words="mine"))
    assert result.source.words == "mine"
    assert not result.source.labelled
    assert list(result.generated) == [""]
    assert _Page(report_files(result)["report.html"].decode()).open == []


def test_real_images_of_a_balanced_folder_do_not_count(bundle: Path, tmp_path: Path) -> None:
    import augmint

    rng = np.random.default_rng(3)
    for label, name in enumerate(("cat", "dog")):
        save(tmp_path / "set" / name, patterned(rng, label, 40 - 20 * label))
    augmint.balance(tmp_path / "set", Generator(bundle), seed=1).write(tmp_path / "balanced")
    result = evaluate(EvaluateRequest(source=tmp_path / "balanced", data=tmp_path / "set", quick=True))
    assert result.generated["cat"] == 0
    assert 0 < result.generated["dog"] <= 20
    assert any("were left out" in note for note in result.notes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"minority": ("cow",)}, "no class 'cow'"),
        ({"extractors": ("inception",)}, "no extractor 'inception'"),
        ({"extractors": ("there-is-none.onnx",)}, "cannot be read"),
        ({"source": "there-is-none"}, "no file or folder there-is-none"),
        ({"data": "there-is-none"}, "no file or folder there-is-none"),
        ({"bundle": "x"}, "leave 'x' away"),
    ],
)
def test_what_is_refused(bundle: Path, data: Path, change: dict[str, Any], sentence: str) -> None:
    request = replace(EvaluateRequest(source=bundle, data=data, quick=True), **change)
    with pytest.raises((DataError, UsageError), match=sentence):
        evaluate(request)


def test_other_classes_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the data's classes"):
        evaluate(EvaluateRequest(source=write_tiny_bundle(tmp_path / "b", class_names=("x", "y")), data=data))
    for name in ("x", "y"):
        save(tmp_path / "made" / name, patterned(np.random.default_rng(0), 0, 3))
    with pytest.raises(DataError, match="images of 'x', 'y', which the data do not have"):
        evaluate(EvaluateRequest(source=tmp_path / "made", data=data))


# --- interruption -----------------------------------------------------------------------------------------------------


def test_an_interrupted_evaluation_goes_on_where_it_was(
    bundle: Path, data: Path, found: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUGMINT_CACHE", str(tmp_path / "cache"))
    request = EvaluateRequest(source=bundle, data=data, quick=True)

    def stop_in(part: str, at: int) -> Callable[[str, int, int, str], None]:
        def progress(now: str, done: int, total: int, what: str) -> None:
            if now == part and done == at:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        evaluate(request, stop_in(VERDICT, 5))
    again = evaluate(request)
    assert again.utility is not None
    assert again.utility.fits_cached == 5
    assert report_files(again, timings=False) == report_files(found, timings=False)
