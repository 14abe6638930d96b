"""`augmint export`: run directory in, verified bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from augmint.cli.options import Json
from augmint.cli.rooms import require
from augmint.errors import UsageError

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="A run directory that `augmint train` made.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="The bundle directory to make.", metavar="BUNDLE")],
    name: Annotated[
        str | None, typer.Option(help="Of the bundle, in URLs and answers; by default that of --out.", metavar="NAME")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16"], typer.Option(help="fp16 is for GPUs: half the bytes, a weaker promise.")
    ] = "fp32",
    which: Annotated[
        Literal["best", "last"], typer.Option(help="The best checkpoint by validation score, or the last.")
    ] = "best",
    licence: Annotated[
        str, typer.Option(help="Of the bundle, for its model card, such as cc-by-4.0.", metavar="TEXT")
    ] = "unstated",
    evaluate: Annotated[
        bool | None,
        typer.Option(
            "--evaluate/--no-evaluate",
            help="Also find out whether the images help a classifier, as `augmint evaluate` does (up to 15 minutes), "
            "and put the report into the bundle; or measure nothing. By default fidelity and diversity against the "
            "test split are measured.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="With --evaluate: fewer classifiers, in about 3 minutes.")
    ] = False,
    copies: Annotated[
        bool,
        typer.Option(
            "--copies/--no-copies",
            help="Put features of the training images into the bundle, so that near copies of them can be left out "
            "(augmint sample --quality copies); they also tell whether an image was among them.",
        ),
    ] = True,
    sign: Annotated[
        Path | None,
        typer.Option(help="Sign the bundle with this private key (see augmint key).", metavar="NAME.key"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there already.")] = False,
    json: Json = False,
) -> None:
    """Export a run to an ONNX bundle; a gate that fails stops it.

    The graph is compared with PyTorch, must give the same bytes at every batch size and the same file on a second
    export, and holds no random operator and no external data. The bundle then says what it is: manifest, golden
    images, sample sheet, model card.
    """
    if quick and not evaluate:
        raise UsageError("--quick shortens the evaluation: give --evaluate with it.", code="usage.quick")
    require("export", "export")
    from augmint.cli.output import parts_progress, print_json, talk
    from export.api import ExportRequest, export_run

    request = ExportRequest(
        run=run,
        out=out,
        name=name,
        precision=precision,
        licence=licence,
        evaluate="basic" if evaluate is None else "none" if not evaluate else "quick" if quick else "full",
        copies=copies,
        sign=sign,
        force=force,
        which=which,
    )
    with parts_progress() as progress:
        result = export_run(request, say=talk, progress=progress)
    for warning in result.warnings:
        talk(f"warning: {warning}")
    if json:
        print_json(result.as_dict())
        return
    parity = result.parity
    print(f"{result.path}: {result.bytes:,} bytes, {result.precision}, bundle {result.digest}")
    print(
        f"parity with PyTorch: at most {parity.max_levels} grey level(s), {parity.share_differing:.2%} of values differ"
    )
    for metric in result.metrics:
        if metric.label is None:
            value = "not measured" if metric.value is None else f"{metric.value:.3f}"
            print(f"{metric.name}: {value} (n = {metric.n:,})")
    if result.utility is not None:
        print(f"{result.utility.sentence} ({result.path / 'report.html'})")
