"""`augmint features`: what a run's critic sees in images, as an npz."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from augmint.cli.options import Json
from augmint.cli.rooms import require
from augmint.errors import UsageError

__all__ = ["features"]


def features(
    run: Annotated[Path, typer.Argument(help="A run directory that `augmint train` made.", metavar="RUN")],
    data: Annotated[
        str, typer.Argument(help="A folder per class, a CSV, an npz, or digits or mnist5k.", metavar="DATA")
    ],
    out: Annotated[Path, typer.Option(help="The npz to write.", metavar="FILE.npz")] = Path("features.npz"),
    split: Annotated[
        Literal["train", "validation", "test"] | None,
        typer.Option(help="Of these images alone; by default of all, and the npz says which is where."),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="A layer of the critic, as often as needed; all by default (a wrong name lists them).", metavar="NAME"
        ),
    ] = None,
    which: Annotated[
        Literal["best", "last"], typer.Option(help="The best checkpoint by validation score, or the last.")
    ] = "best",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")] = False,
    json: Json = False,
) -> None:
    """Write the critic's features of images, for other models to learn from.

    Every convolution's maps are max-pooled to 4×4, flattened and joined, as in DCGAN (Radford et al. 2015, section 5);
    dense hidden layers are taken whole. The npz holds features float32 [N, D], labels, class_names, splits and names of
    the images, and layers with their widths.
    """
    from augmint.cli.output import print_json, print_table, progress_bar
    from augmint.sampling import check_out

    if out.suffix.lower() != ".npz":
        raise UsageError(f"--out {out} does not end in .npz: name it so.", code="usage.out")
    check_out(str(out), "npz")
    require("training", "features")
    from training.features import run_features

    with progress_bar("images") as progress:
        found = run_features(run, data, split=split, which=which, layers=layer, skip_bad=skip_bad, progress=progress)
    found.write(out)
    if json:
        counts = {name: found.splits.count(name) for name in dict.fromkeys(found.splits)}
        print_json(
            {
                "out": str(out),
                "images": len(found.features),
                "features": found.features.shape[1],
                "layers": [asdict(layer) for layer in found.layers],
                "splits": counts,
                "class_names": found.class_names,
                "which": which,
                "step": found.step,
            }
        )
        return
    rows = [(layer.name, "×".join(map(str, layer.shape)), layer.width) for layer in found.layers]
    print_table(("layer", "output", "features"), rows)
    print(f"\nout       {out}")
    print(f"images    {len(found.features):,}")
    print(f"features  {found.features.shape[1]:,}, of the critic at step {found.step:,} ({which})")
