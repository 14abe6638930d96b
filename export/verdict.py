"""Whether a bundle's images help a classifier, measured before the bundle is written: summary, page and figures.

The bundle is written once without them, opened as a user would open it, and evaluated as `augmint evaluate` does; there
is no second way. What comes out holds no clock and no path, so that the same run gives the same bundle again. This
module knows nothing of what is measured (`evaluation/`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from augmint.bundle import Description, Utility, write_bundle
from augmint.data import DataSet
from augmint.generator import Generator
from augmint.images import Resize
from evaluation.api import EvaluateRequest, Progress, evaluate, summary
from evaluation.report import report_files

__all__ = ["judged"]


def judged(
    description: Description,
    content: Mapping[str, bytes],
    data: DataSet,
    *,
    level: Literal["quick", "full"],
    progress: Progress | None = None,
) -> tuple[Utility | None, dict[str, bytes], tuple[str, ...]]:
    """Evaluate what is about to become a bundle.

    Args:
        description, content: as for `write_bundle`.
        data: the run's own.
        level: "quick" (about 3 minutes) or "full" (up to 15).
        progress: see `evaluation.api.evaluate`.

    Returns:
        The manifest's summary, or None where there can be no verdict; report.html and report.json; and warnings for
        the model card.
    """
    resize: Resize = description.data.resize  # type: ignore[assignment]  # checked when the run was made
    with tempfile.TemporaryDirectory(prefix="augmint-") as scratch:
        write_bundle(Path(scratch) / "bundle", description, content)
        source = Generator(Path(scratch) / "bundle", device="cpu")
        request = EvaluateRequest(
            source=source, data=data, quick=level == "quick", resize=resize, words=description.identity.name
        )
        found = evaluate(request, progress)
    # The digest is that of a bundle without this report, which nobody will ever have.
    found = replace(found, source=replace(found.source, digest=""))
    warnings = () if found.utility is not None else (f"There is no verdict: {found.no_verdict}.",)
    return summary(found), report_files(found, timings=False), warnings
