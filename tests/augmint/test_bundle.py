"""The bundle's contract: what is written is read back; what is broken is refused by name, fast, without harm."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import augmint
from augmint.bundle import (
    MANIFEST,
    Description,
    Golden,
    Manifest,
    Metric,
    check_graph,
    essentials,
    parse_manifest,
    read_bundle,
    write_bundle,
)
from augmint.errors import BundleError, ExportError
from tests.augmint.broken_bundles import BROKEN, Broken
from tests.tinybundle import tiny_description, tiny_model

CLASSES = ("cat", "dog", "été 10")
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))


# ---------------------------------------------------------------------------------------------------- the corpus


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_each_broken_bundle_is_refused_by_its_own_check(case: Broken, copy: Path) -> None:
    case.make(copy)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BundleError) as caught:
        augmint.Generator(copy, device="cpu", threads=1)
    assert caught.value.code == f"bundle.{case.code}"
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024, "it allocated wildly"  # KiB


def test_a_refusal_is_one_sentence_that_names_a_file_and_holds_no_trace(copy: Path) -> None:
    for case in BROKEN:
        path = Path(shutil.copytree(copy, copy.parent / "again"))
        case.make(path)
        with pytest.raises(BundleError) as caught:
            augmint.Generator(path, device="cpu", threads=1)
        message = str(caught.value)
        assert "\n" not in message, case.name
        assert len(message) < 600 + len(str(path)), case.name
        assert message.endswith("."), case.name
        message.encode("ascii", "backslashreplace")
        for left in (path, path.with_name("elsewhere")):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)


def test_the_corpus_is_large_and_covers_every_code() -> None:
    assert len({case.name for case in BROKEN}) == len(BROKEN) >= 30
    source = (Path(augmint.__file__).parent / "bundle.py").read_text(encoding="utf-8")
    source += (Path(augmint.__file__).parent / "generator.py").read_text(encoding="utf-8")
    met = Counter(case.code for case in BROKEN)
    hard_to_provoke = {"unreadable", "no-onnx", "changed"}
    codes = set(re.findall(r'_refuse\(\s*"([a-z-]+)"', source)) | set(re.findall(r'code="bundle\.([a-z-]+)"', source))
    assert codes - set(met) <= hard_to_provoke


# --------------------------------------------------------------------------------------------------------- fuzz


@pytest.fixture(scope="module")
def victim(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    path = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("fuzz") / "tiny"))
    return path, {file.name: file.read_bytes() for file in path.iterdir()}


@given(data=st.data())
@settings(FUZZ, max_examples=150)
def test_any_damage_to_any_file_is_refused(victim: tuple[Path, dict[str, bytes]], data: st.DataObject) -> None:
    path, files = victim
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    position = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "insert", "overwrite"])):
        case "flip":
            content[position] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[position:]
        case "insert":
            content[position:position] = data.draw(st.binary(min_size=1, max_size=20))
        case "overwrite":
            noise = data.draw(st.binary(min_size=1, max_size=20))
            content[position : position + len(noise)] = noise
    (path / name).write_bytes(content)
    try:
        with suppress(BundleError):  # and no other
            generator = augmint.Generator(path, device="cpu", threads=1)
            # Only the manifest is not covered by a digest: what it still says must be a manifest for the same files.
            assert content == files[name] or name == MANIFEST
            assert generator.info().reproducibility in ("exact", "tolerance")
    finally:
        (path / name).write_bytes(files[name])


def _places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.data())
@settings(FUZZ, max_examples=300)
def test_any_value_anywhere_in_the_manifest_is_read_or_refused(
    victim: tuple[Path, dict[str, bytes]], data: st.DataObject
) -> None:
    _, files = victim
    document = json.loads(files[MANIFEST])
    places = sorted(_places(document), key=repr)
    where = data.draw(st.sampled_from(places))
    value = data.draw(JSON)
    if where:
        place = document
        for key in where[:-1]:
            place = place[key]
        if data.draw(st.booleans()):
            place[where[-1]] = value
        else:
            del place[where[-1]]
    else:
        document = value
    with suppress(BundleError):  # and no other
        manifest = parse_manifest(json.dumps(document).encode(), Path(MANIFEST))
        assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


@given(noise=st.binary(max_size=300))
@settings(FUZZ, max_examples=200)
def test_bytes_that_are_no_graph_are_refused(noise: bytes) -> None:
    with pytest.raises(BundleError):
        check_graph(noise, Path("generator.onnx"), expect={"name": "x"})


@given(data=st.data())
@settings(FUZZ, max_examples=150)
def test_a_graph_with_damaged_bytes_is_looked_at_without_harm(data: st.DataObject) -> None:
    content = bytearray(_MODEL)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BundleError):  # and no other
        check_graph(bytes(content), Path("generator.onnx"), expect=None)


_MODEL = tiny_model(CLASSES).SerializeToString()


# --------------------------------------------------------------------------------------------------- round trip

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
labels = st.lists(text.filter(bool), unique=True, max_size=6)
figures = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def descriptions(draw: st.DrawFn) -> Description:
    class_names = tuple(draw(labels))
    shape = (draw(st.integers(1, 64)), draw(st.integers(1, 64)), draw(st.sampled_from([1, 3])))
    base = tiny_description(draw(names), class_names, shape, latent_dim=draw(st.integers(1, 512)))
    metrics = draw(st.lists(st.builds(Metric, name=names, value=figures, n=st.integers(0, 9), method=text), max_size=3))
    golden = draw(
        st.lists(
            st.builds(
                Golden,
                label=st.sampled_from(class_names or ("",)),
                seed=st.integers(0, 2**53 - 1),
                index=st.integers(0, 2**53 - 1),
                truncation=st.floats(0, 1, exclude_min=True),
            ),
            min_size=1,
            max_size=4,
        )
    )
    return base.model_copy(
        update={
            "evidence": base.evidence.model_copy(update={"metrics": tuple(metrics)}),
            "golden": tuple(golden),
            "data": base.data.model_copy(update={"name": draw(text)}),
        }
    )


@given(description=descriptions())
@settings(FUZZ, max_examples=60)
def test_a_manifest_says_after_reading_what_it_said_when_written(description: Description) -> None:
    files = {"generator.onnx": {"sha256": "0" * 64, "bytes": 1}, "golden.npy": {"sha256": "1" * 64, "bytes": 2}}
    document = json.dumps({**json.loads(description.model_dump_json()), "files": files}, ensure_ascii=False)
    manifest = parse_manifest(document.encode(), Path(MANIFEST))
    assert {name: getattr(manifest, name) for name in Description.model_fields} == {
        name: getattr(description, name) for name in Description.model_fields
    }
    again = parse_manifest(manifest.model_dump_json(indent=1).encode(), Path(MANIFEST))
    assert again == manifest
    assert json.loads(json.dumps(essentials(manifest))) == essentials(manifest)


# ------------------------------------------------------------------------------------------------------ writing


def test_a_bundle_read_has_the_bytes_and_the_digest_that_were_written(tiny_bundle: Path, tmp_path: Path) -> None:
    read = read_bundle(tiny_bundle)
    description = Description(**{name: getattr(read.manifest, name) for name in Description.model_fields})
    digest = write_bundle(tmp_path / "deep" / "copy", description, read.content)
    again = read_bundle(tmp_path / "deep" / "copy")
    assert digest == again.digest == read.digest
    assert again.content == read.content
    assert np.array_equal(again.golden_images(), read.golden_images())
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["copy"], "nothing temporary is left"


def test_writing_does_not_touch_what_is_there(tiny_bundle: Path, tmp_path: Path) -> None:
    read = read_bundle(tiny_bundle)
    description = Description(**{name: getattr(read.manifest, name) for name in Description.model_fields})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for taken in ("mine", "file", "link"):
        with pytest.raises(ExportError) as caught:
            write_bundle(tmp_path / taken, description, read.content)
        assert caught.value.code == "export.exists"
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", description, read.content)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_a_bundle_is_as_public_as_the_umask_says_and_the_umask_is_left_alone(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_bundle(tiny_bundle)
    description = Description(**{name: getattr(read.manifest, name) for name in Description.model_fields})
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.delattr(os, "umask")  # it belongs to the whole process: other threads would write files open to all
            write_bundle(tmp_path / "made", description, read.content)
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o750


def test_a_destination_below_a_file_is_one_sentence(tiny_bundle: Path, tmp_path: Path) -> None:
    read = read_bundle(tiny_bundle)
    description = Description(**{name: getattr(read.manifest, name) for name in Description.model_fields})
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match="cannot be written"):
        write_bundle(tmp_path / "file" / "bundle", description, read.content)


def test_a_bundle_may_be_reached_by_a_symbolic_link(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(tiny_bundle)
    assert read_bundle(tmp_path / "latest").digest == read_bundle(tiny_bundle).digest


def test_half_precision_never_promises_the_same_bytes(copy: Path) -> None:
    document = json.loads((copy / MANIFEST).read_bytes())
    document["generator"]["precision"] = "fp16"
    (copy / MANIFEST).write_text(json.dumps(document), encoding="utf-8")
    assert augmint.Generator(copy, device="cpu").info().reproducibility == "tolerance"
