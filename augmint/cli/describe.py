"""`augmint describe`: a family's networks and the flow of its training, in words and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from augmint.cli.options import Json
from augmint.cli.rooms import require
from augmint.cli.values import parse_settings

__all__ = ["describe"]


def describe(
    family: Annotated[str, typer.Argument(help="Of those that `augmint families` lists.", metavar="FAMILY")],
    preset: Annotated[
        str | None, typer.Option(help="A named set of its options; the paper's by default.", metavar="NAME")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of the family, as often as needed.", metavar="KEY=VALUE"),
    ] = None,
    resolution: Annotated[str, typer.Option(help="Of the images: pixels, 32 or HxW.", metavar="SIZE")] = "28",
    channels: Annotated[int, typer.Option(help="Of the images: 1 (grey) or 3 (colour).", metavar="C")] = 1,
    classes: Annotated[int, typer.Option(help="Of the data; 0 is without labels.", metavar="K")] = 10,
    out: Annotated[Path | None, typer.Option(help="Draw a picture there as well.", metavar="FILE.svg|FILE.png")] = None,
    json: Json = False,
) -> None:
    """Show a family's networks layer by layer, and how it is trained.

    Layers, shapes and parameters are read off a real forward pass of the networks that `augmint train` would make.
    """
    from augmint.cli.output import print_json, talk
    from augmint.errors import UsageError

    require("training", "describe")
    from training.config import parse_resolution
    from training.describe import describe as run
    from training.drawing import check_format, write_picture

    if channels not in (1, 3):
        raise UsageError(f"--channels {channels}: give 1 (grey) or 3 (colour).", code="usage.channels")
    if out is not None:
        check_format(out)
    size = parse_resolution(resolution)
    assert size is not None, "a resolution was given"
    height, width = (size, size) if isinstance(size, int) else size
    found = run(
        family,
        preset=preset,
        settings=parse_settings(set_ or []),
        image_shape=(channels, height, width),
        classes=classes,
    )
    if out is not None:
        write_picture(found, out)
        talk(f"drawn in {out}")
    if json:
        print_json(found.to_json() | {"picture": out and str(out)})
    else:
        print(found.text())
