"""The service under fire, in short: `make chaos` is the long form."""

from __future__ import annotations

import subprocess
import sys

from tests.serving.conftest import ROOT, Service


def test_every_address_does_what_its_document_says(service: Service) -> None:
    """In a process of its own: schemathesis keeps to no rule of ours about warnings."""
    result = subprocess.run(
        [sys.executable, "benchmarks/fuzz_api.py", f"http://127.0.0.1:{service.port}", "--cases", "200"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in service.log.read_text()
