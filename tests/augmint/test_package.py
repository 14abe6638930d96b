"""The package from outside: what it names, what it weighs, what it drags in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import augmint

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "bentoml", "onnx", "onnxruntime", "sklearn", "scipy", "imblearn", "matplotlib", "serving", "training")


def fresh(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_public_names() -> None:
    assert augmint.__all__ == [
        "AsyncClient",
        "AugmintError",
        "Balanced",
        "Balancer",
        "BundleError",
        "BundleInfo",
        "Client",
        "Critic",
        "DataError",
        "DataSet",
        "Generator",
        "Quality",
        "RequestError",
        "Samples",
        "ServiceError",
        "ShortfallError",
        "Source",
        "UnknownLabelError",
        "UsageError",
        "__version__",
        "balance",
        "load_data",
    ]
    assert set(augmint.__all__) <= set(dir(augmint))
    assert all(getattr(augmint, name).__module__.startswith("augmint.") for name in augmint.__all__ if name[0] != "_")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        augmint.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_a_star_import_gives_them_all() -> None:
    assert fresh("from augmint import *; print(Client.__name__, Balancer.__name__, load_data.__name__)")


def test_neither_the_package_nor_the_client_brings_a_heavy_library_along() -> None:
    code = f"""
import sys, httpx2, augmint
service = httpx2.MockTransport(lambda request: httpx2.Response(200, json={{"bundles": []}}))
with augmint.Client("http://host:1", transport=service) as client:
    assert client.bundles() == []
augmint.AsyncClient, augmint.balance, augmint.Balancer, augmint.load_data
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert fresh(code) == "[]"


def test_importing_it_is_quick() -> None:
    code = "import sys, augmint; print([m for m in ('numpy', 'pydantic', 'httpx2', 'PIL') if m in sys.modules])"
    assert fresh(code) == "[]"
    seconds = []
    for _ in range(3):
        before = os.times()
        fresh("import augmint")
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.35
