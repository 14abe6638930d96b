"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

# Before numpy, torch and onnxruntime are imported: tests of 2 cores must not fight over them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.tinybundle import write_tiny_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conditional, 8×8 grey, classes "cat", "dog" and "été 10"."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_bundle_unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unconditional, 8×10 colour."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "plain", class_names=(), shape=(8, 10, 3), seed=1)


@pytest.fixture(scope="session")
def judged_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_bundle`, with a critic and a classifier, whose random weights reject much."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "judged", judged=True)


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own caches."""
    monkeypatch.setenv("AUGMINT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
