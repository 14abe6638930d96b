"""The Bento: built without a container engine, started from its own folder, and its Containerfile."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from augmint import Generator
from tests.serving.conftest import ROOT, bentoml_serve, environment

REQUIREMENTS = ROOT / "deploy" / "requirements.txt"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bento-home")


@pytest.fixture(scope="module")
def bento(home: Path, tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """Built in a copy of what bentofile.yaml includes, with the tiny bundle under bundles/."""
    context = tmp_path_factory.mktemp("context")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("augmint", "serving", "deploy"):
        shutil.copytree(ROOT / name, context / name, ignore=ignore)
    shutil.copy(ROOT / "bentofile.yaml", context)
    shutil.copytree(tiny_bundle, context / "bundles" / "tiny")
    # So that one sees whose files are served: augmint's checkout is on the tests' path as well.
    page = context / "serving" / "page.html"
    page.write_text(page.read_text().replace("<title>", "<title>from the Bento: "))
    result = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--output", "tag"],
        cwd=context,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    tag = result.stdout.strip().splitlines()[-1].removeprefix("__tag__:")
    return home / "bentos" / tag.replace(":", "/")


def test_it_answers_from_its_own_folder(bento: Path, home: Path, tiny_bundle: Path) -> None:
    with bentoml_serve(home, cwd=bento, target=".") as service:
        service.wait_until_ready()
        assert "<title>from the Bento: " in service.ask("GET", "/").body.decode()
        reply = service.generate({"counts": {"cat": 3}, "seed": 1, "format": "npy"})
        assert reply.status == 200
        images = Generator(tiny_bundle, device="cpu", threads=1).generate({"cat": 3}, seed=1).images
        assert reply.body.endswith(np.ascontiguousarray(images).tobytes())


def test_it_holds_what_it_needs_and_no_more(bento: Path) -> None:
    source = bento / "src"
    assert {path.name for path in source.iterdir()} == {"augmint", "bentofile.yaml", "bundles", "deploy", "serving"}
    assert (source / "augmint" / "normal_table.f32").is_file()
    assert (source / "bundles" / "tiny" / "generator.onnx").is_file()
    assert not list(source.rglob("__pycache__"))
    document = yaml.safe_load((bento / "bento.yaml").read_text())
    assert document["service"] == "serving.service:AugmintService"
    assert document["models"] == []  # bundles are plain files in it: a plain `docker build` finds them


def test_the_containerfile(bento: Path, home: Path, tmp_path: Path) -> None:
    target = tmp_path / "Containerfile"
    code = (
        f"import bentoml; bentoml.container.get_containerfile({str(bento.parent.name)!r}, output_path={str(target)!r})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(home), capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    text = target.read_text()
    assert "FROM python:3.11-slim" in text
    assert "COPY --chown=bentoml:bentoml . ./" in text
    assert "requirements.txt" in text
    assert "USER bentoml" in text  # not root
    assert "BENTOML_DO_NOT_TRACK=True" in text.replace("'", "").replace('"', "")
    installed = (bento / "env" / "python" / "requirements.txt").read_text()
    assert "onnxruntime-gpu[cuda,cudnn]==" in installed
    assert "torch" not in installed


def test_the_bento_installs_what_is_tested() -> None:
    """The pins are those of constraints.txt, and every package that the two rooms import is among them."""
    pins = dict(
        line.split(";")[0].strip().replace("[cuda,cudnn]", "").split("==")
        for line in REQUIREMENTS.read_text().splitlines()
        if "==" in line
    )
    tested = dict(
        line.split(";")[0].strip().split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert {name: tested.get(name) for name in pins if name != "onnxruntime"} == {
        name: pin for name, pin in pins.items() if name != "onnxruntime"
    }
    assert pins["onnxruntime"] == pins["onnxruntime-gpu"]
