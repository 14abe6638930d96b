"""`augmint demo`: the whole way on real digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from augmint.cli.rooms import require

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="A new or empty directory for what is made.", metavar="PATH")] = Path(
        "demo-out"
    ),
    minutes: Annotated[
        float | None, typer.Option(help="Of training for the conditional generator.", metavar="M")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Classifiers for each row of the table.", metavar="N")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps of everything: the figures mean nothing.")
    ] = False,
) -> None:
    """Do the main job on 5,000 real digits: inspect, train, export, serve, balance, compare.

    Five classes are cut to 20 images. Nothing is downloaded. It takes about 6 minutes on 2 cores.
    """
    require("examples", "demo")
    from examples.demo import Demo, run

    given = {"minutes": minutes, "seeds": seeds}
    run(Demo(out=out, quick=quick, **{name: value for name, value in given.items() if value is not None}))  # type: ignore[arg-type]
