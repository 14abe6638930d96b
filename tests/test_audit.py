"""`make audit`: the pins are whole, and what could not be looked up is not called clean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
AUDIT = ROOT / "deploy" / "audit.py"


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(AUDIT), *arguments], capture_output=True, text=True, timeout=60)


def test_all_that_is_installed_here_and_in_the_bento_is_pinned() -> None:
    done = audit()
    assert (done.returncode, done.stdout) == (0, "")


VULNERABLE = [{"name": "jinja2", "version": "2.10", "vulns": [{"id": "PYSEC-2019-217"}]}]
# What pip-audit 2.10 writes, with exit code 0, where its database does not answer.
SKIPPED = [{"name": "jinja2", "skip_reason": "Dependency not found on PyPI and could not be audited: jinja2 (2.10)"}]
CLEAN = [{"name": "numpy", "version": "2.4.6", "vulns": []}]


@pytest.mark.parametrize(
    ("of_the_canary", "of_the_pins", "code", "says"),
    [
        (SKIPPED, CLEAN, 3, "could not be looked up"),
        (None, CLEAN, 3, "could not be looked up"),
        (VULNERABLE, CLEAN, 0, ""),
        (VULNERABLE, CLEAN + SKIPPED, 3, "not looked up: Dependency not found"),
        (VULNERABLE, CLEAN + VULNERABLE, 1, "jinja2 2.10: PYSEC-2019-217"),
    ],
)
def test_what_could_not_be_looked_up_is_said_and_has_a_code_of_its_own(
    tmp_path: Path, of_the_canary: list[Any] | None, of_the_pins: list[Any], code: int, says: str
) -> None:
    tool = tmp_path / "pip-audit"
    tool.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "pins = open(sys.argv[sys.argv.index('--requirement') + 1]).read().split()\n"
        f"canary, others = {[of_the_canary, of_the_pins]!r}\n"
        "found = canary if pins == ['jinja2==2.10'] else others\n"
        "assert pins == ['jinja2==2.10'] or len(pins) > 100\n"
        "if found is None:\n"
        "    sys.exit('no network')\n"
        "print(json.dumps({'dependencies': found, 'fixes': []}))\n"
    )
    tool.chmod(0o755)
    done = audit(str(tool))
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr
