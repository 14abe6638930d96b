"""`augmint latent`: pictures of a bundle's latent space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from augmint.cli.options import Device, Json, Seed
from augmint.errors import UsageError

__all__ = ["latent"]


def latent(
    bundle: Annotated[Path, typer.Argument(help="A bundle's directory.", metavar="BUNDLE")],
    out: Annotated[Path, typer.Option(help="A new picture.", metavar="FILE.png")] = Path("latent.png"),
    label: Annotated[
        list[str] | None, typer.Option(help="As often as needed; the first ten by default.", metavar="LABEL")
    ] = None,
    between: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Indices of two images: draw what lies between them instead of edits.", metavar="A B"),
    ] = None,
    seed: Seed = 0,
    index: Annotated[int, typer.Option(help="Of the image that is edited.", min=0, metavar="N")] = 0,
    columns: Annotated[int, typer.Option(help="Images in a row; odd, for edits.", min=2, max=101, metavar="N")] = 9,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Draw what each edit does to an image, or the way from one image to another.

    Edits: a block of rows for each attribute that the bundle can edit, a row for each label, from the largest amount
    downwards to the largest upwards; the table says what each was measured to do at export. With --between, a row for
    each label: spherical interpolation of the two images' latents.
    """
    from augmint.cli.output import print_json, print_table
    from augmint.generator import Generator
    from augmint.images import synthetic_sheet_png
    from augmint.sampling import check_out, form_of, new_file
    from augmint.traversals import edit_sheet, interpolation_sheet

    if form_of(str(out)) != "png":
        raise UsageError(f"--out {out} is no picture: name a new .png.", code="usage.out")
    check_out(str(out), "png")
    generator = Generator(bundle, device=device)
    labels, chosen = label or [], 0 if seed is None else seed
    if between is None:
        sheet = edit_sheet(generator, labels, seed=chosen, index=index, columns=columns)
    else:
        sheet = interpolation_sheet(generator, labels, seed=chosen, a=between[0], b=between[1], steps=columns)
    with new_file(out) as file:
        file.write(synthetic_sheet_png(sheet))
    edits = generator.manifest.edits
    attributes = edits.attributes if edits is not None and between is None else ()
    if json:
        measured = [edit.model_dump(mode="json") for edit in attributes]
        print_json({"out": str(out), "bundle": generator.digest, "seed": chosen, "edits": measured})
        return
    if attributes:
        rows = []
        for edit in attributes:
            low, high = edit.steps[0], edit.steps[-1]
            kept = "–" if low.kept is None or high.kept is None else f"{min(low.kept, high.kept):.0%}"
            one = f"{edit.deviation:.3g} {edit.unit}"
            rows.append(
                (edit.name, one, f"{edit.r2:.2f}", f"±{edit.limit:g}", f"{low.change:+.2f} … {high.change:+.2f}", kept)
            )
        print_table(("attribute", "a step", "R²", "limit", "measured there, in steps", "class kept"), rows)
        print()
    print(f"out   {out}")
    print(f"seed  {chosen}")
