"""The house itself: what may be imported where, and that the metadata tells the truth."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import augmint

ROOT = Path(__file__).resolve().parents[1]


def fresh(code: str) -> str:
    """Run `code` in a process that has imported nothing yet."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return result.stdout


def test_importing_augmint_brings_no_heavy_library_along() -> None:
    heavy = ("torch", "bentoml", "onnx", "onnxruntime", "sklearn", "scipy", "matplotlib", "lightning_fabric")
    code = f"import sys, augmint; print([m for m in {heavy!r} if m in sys.modules])"
    assert fresh(code).strip() == "[]"


def test_every_public_name_is_there_and_listed_in_order() -> None:
    assert sorted(augmint.__all__) == augmint.__all__
    for name in augmint.__all__:
        assert getattr(augmint, name) is not None


def test_version_and_changelog_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[?([^\]\s]+)\]?", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert version in headings[:2], "the changelog's newest entries must name pyproject's version"
    assert augmint.__version__ == version


def test_everything_pinned_once_and_every_dependency_pinned() -> None:
    pins = [
        line.split("==")[0].strip().lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    assert len(set(pins)) == len(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    for requirement in wanted:
        name = re.split(r"[\[<>=; ]", requirement)[0].lower()
        # Plain onnxruntime is for the platforms that have no GPU wheel, which we do not test on.
        if name not in ("augmint", "onnxruntime"):
            assert name in pins, f"{name} is not pinned in constraints.txt"


def test_the_readmes_file_tree_names_what_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = readme.split("<!-- tree -->")[1]
    named = set(re.findall(r"^([\w.-]+)/?\s", tree, flags=re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in tracked.splitlines()} - {".gitignore", ".ci", ".pre-commit-config.yaml"}
    assert named == top


def test_the_threat_model_names_tests_that_are_there() -> None:
    named = set(re.findall(r"`(?:[\w/.]+::)?(test_\w+)`", (ROOT / "docs" / "security.md").read_text(encoding="utf-8")))
    assert len(named) > 15
    there = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in named if f"def {name}(" not in there]
