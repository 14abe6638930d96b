"""Every block of the README is run, in its order, in one directory: with fewer training steps and a free port."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from augmint.data import load_data

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
RUN = [(language, text) for language, text in BLOCKS if language in ("bash", "python")]
PLAIN = [text for language, text in BLOCKS if language == ""]


@pytest.fixture
def my_images(tmp_path: Path) -> Path:
    """60 good parts and 14 with a scratch, 16×16 in colour."""
    rng = np.random.default_rng(0)
    for label, count in (("good", 60), ("scratch", 14)):
        folder = tmp_path / "my-images" / label
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = rng.normal(150, 12, size=(16, 16, 3)) + rng.normal(0, 20, size=3)
            if label == "scratch":
                row = rng.integers(3, 13)
                pixels[row : row + 2, rng.integers(0, 6) : rng.integers(10, 16)] = 20
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.png")
    return tmp_path


def test_the_blocks_are_what_this_test_knows_how_to_run() -> None:
    assert {language for language, _ in BLOCKS} <= {"", "bash", "python"}
    assert len([language for language, _ in RUN if language == "bash"]) >= 2
    assert "python" in [language for language, _ in RUN]


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_the_blocks_run(my_images: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = ["set -euo pipefail"]
    for number, (language, text) in enumerate(RUN):
        text = text.replace("3000", port)
        if language == "python":
            (my_images / f"block{number}.py").write_text(text)
            text = f"{sys.executable} block{number}.py"
        script.append(text)
    whole = "\n".join(script)
    # In a test everything is shorter.
    for long, short in (
        ("--minutes 10", "--steps 30"),
        ("--report report", "--report report --quick --seeds 2 --extractor pixels"),
    ):
        assert whole.count(long) == 1
        whole = whole.replace(long, short)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    with open(my_images / "log.txt", "w+") as log:
        process = subprocess.Popen(
            ["bash", "-c", whole],
            cwd=my_images,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=400)
        finally:
            # The service that the README starts in the background is in the same session.
            os.killpg(process.pid, signal.SIGTERM)
        log.seek(0)
        assert code == 0, log.read()[-4000:]

    counts = load_data(my_images / "my-images").counts("train")
    balanced = (my_images / "balanced" / "metadata.csv").read_text().splitlines()
    assert len(balanced) - 1 == 2 * counts["good"]
    assert sum(",true," in line for line in balanced) == counts["good"] - counts["scratch"]
    with np.load(my_images / "samples.npz", allow_pickle=False) as archive:
        assert archive["images"].shape == (250, 16, 16, 3)
    assert (my_images / "sheet.png").stat().st_size > 0
    assert "<html" in (my_images / "report" / "report.html").read_text(encoding="utf-8")
    assert (my_images / "scratch.zip").read_bytes()[:2] == b"PK"


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_front_doors_are_what_ci_runs(command: str) -> None:
    assert any(command in block for block in PLAIN)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()
    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()


def test_commands_that_need_a_container_engine_are_at_least_real() -> None:
    (block,) = [block for block in PLAIN if "docker run" in block]
    for line in block.splitlines():
        if line.startswith("bentoml"):
            bentoml = [sys.executable, "-m", "bentoml", line.split()[1], "--help"]
            assert subprocess.run(bentoml, capture_output=True, cwd=ROOT, check=False).returncode == 0
