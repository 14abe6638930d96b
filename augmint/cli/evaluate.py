"""`augmint evaluate`: do the generated images help?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from augmint.cli.options import BundleName, Device, Json, Quality, Token
from augmint.cli.rooms import is_run, require
from augmint.errors import UsageError

__all__ = ["evaluate"]


def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            help="A bundle's directory, a service's http(s) URL, a run, or images that were generated already: a "
            "folder per class, a folder without classes, a CSV or an npz.",
            metavar="SOURCE",
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            help="The real images: a folder per class, a CSV, an npz, or digits or mnist5k.", metavar="DATA"
        ),
    ],
    report: Annotated[
        Path | None,
        typer.Option(help="A folder to write report.html and report.json into.", metavar="DIR"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer classifiers and images, in about 3 minutes: a first impression.")
    ] = False,
    minority: Annotated[
        list[str] | None,
        typer.Option(
            help="A class that the verdict is about, as often as needed; by default those with few train images.",
            metavar="LABEL",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Classifiers of each method; 5 by default, 3 with --quick.", min=2, metavar="N")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the images that are generated.", min=0, max=2**64 - 1, metavar="N")] = 0,
    quality: Quality = "none",
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            help="What fidelity is measured in, as often as needed: efficientnet-lite0, classifier, pixels, or the "
            "path of an ONNX file or of Inception's TorchScript. By default the first two.",
            metavar="SPEC",
        ),
    ] = None,
    resize: Annotated[
        Literal["fit", "crop", "stretch"] | None,
        typer.Option(help="How real images of another shape are brought to the bundle's; by default as in training."),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")] = False,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Remember what was computed, under AUGMINT_CACHE or your caches.")
    ] = True,
    bundle: BundleName = None,
    device: Device = "auto",
    token: Token = None,
    json: Json = False,
) -> None:
    """Say whether generated images help a classifier, and why.

    Classifiers are trained on the train split with and without the images, against plain augmentation, class weights,
    oversampling and SMOTE, and judged on the real test images alone. The recommended amount is chosen on the validation
    split. Fidelity, diversity and copies of training images are measured beside it.

    It takes up to 15 minutes for 5,000 small images on 2 cores. Ctrl-C loses nothing: the same command goes on where it
    stopped. The exit code is 0 whatever the verdict is.
    """
    from augmint.cli.output import parts_progress, print_json, talk

    require("evaluation", "evaluate")
    from evaluation.api import EvaluateRequest
    from evaluation.api import evaluate as run
    from evaluation.report import check_report, write_report

    if report is not None:
        check_report(report)
    if minority and len(set(minority)) < len(minority):
        raise UsageError("--minority names a class twice: give it once.", code="usage.minority")
    with _as_bundle(source, talk) as opened, parts_progress() as progress:
        request = EvaluateRequest(
            source=opened,
            data=data,
            bundle=bundle,
            token=token,
            device=device,
            quick=quick,
            seed=seed,
            quality=quality,
            seeds=seeds,
            extractors=tuple(extractor) if extractor else None,
            minority=tuple(minority) if minority else None,
            resize=resize,
            skip_bad=skip_bad,
            cache=cache,
            words=source,
        )
        try:
            result = run(request, progress)
        except KeyboardInterrupt:
            kept = "what was finished is kept, and the same command goes on from there" if cache else "nothing is kept"
            raise KeyboardInterrupt(f"interrupted; {kept}") from None
    for note in result.notes:
        talk(note)
    pages = write_report(result, report) if report is not None else None
    if json:
        print_json(result.to_json() | {"report": pages and str(pages)})
    else:
        print(result.text())
        if pages is not None:
            print(f"\nreport  {pages}")


@contextmanager
def _as_bundle(source: str, talk: Callable[[str], None]) -> Iterator[str]:
    """The source; of a run a bundle, which is there for as long as it is looked at."""
    path = Path(source)
    if not is_run(path):
        yield source
        return
    require("export", "evaluate")
    from export.api import ExportRequest, export_run

    with tempfile.TemporaryDirectory(prefix="augmint-") as scratch:
        out = Path(scratch) / path.resolve().name  # which the bundle takes its own name from
        export_run(ExportRequest(run=path, out=out, evaluate="none"), say=talk)
        yield str(out)
