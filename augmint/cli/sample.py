"""`augmint sample`: images by label, from a bundle or a service."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from augmint.cli.options import BundleName, Device, Edit, Json, Offset, Quality, Seed, Token, Truncation
from augmint.errors import UsageError

__all__ = ["sample"]


def sample(
    source: Annotated[str, typer.Argument(help="A bundle's directory, or a service's http(s) URL.", metavar="SOURCE")],
    count: Annotated[
        list[str],
        typer.Option(help="LABEL=N, once for each label; N alone for an unconditional bundle.", metavar="LABEL=N"),
    ],
    out: Annotated[
        str,
        typer.Option(
            help="A folder of PNGs with metadata.csv; FILE.npz; FILE.png, a sheet; or - for an npz on stdout.",
            metavar="PATH",
        ),
    ] = "samples",
    seed: Seed = None,
    offset: Offset = 0,
    truncation: Truncation = 1.0,
    quality: Quality = "none",
    edit: Edit = None,
    bundle: BundleName = None,
    device: Device = "auto",
    token: Token = None,
    json: Json = False,
) -> None:
    """Generate images of the labels you name, and write them.

    The same bundle, label, seed and index give the same image every time; what was left out (the seed) is printed.
    """
    from augmint.cli.output import print_json, print_table, progress_bar, talk
    from augmint.cli.values import parse_counts, parse_edits
    from augmint.latent_space import edit_text
    from augmint.sampling import form_of, write_samples
    from augmint.sources import open_source

    counts, edits = parse_counts(count), parse_edits(edit or [])
    if json and form_of(out) == "stdout":
        raise UsageError("--json and --out - both write to stdout: choose a file.", code="usage.stdout")
    with progress_bar("images") as progress:
        written = write_samples(
            open_source(source, bundle=bundle, device=device, token=token),
            counts,
            out,
            seed=seed,
            offset=offset,
            truncation=truncation,
            quality=quality,
            edit=edits,
            progress=progress,
        )
    if json:
        print_json(asdict(written) | {"generated": written.generated})
    elif form_of(out) == "stdout":
        talk(f"seed {written.seed}, bundle {written.bundle}")
    else:
        rows = [(label or "(all)", n, written.delivered[label]) for label, n in written.requested.items()]
        if not written.rejected:
            print_table(("label", "requested", "delivered"), rows)
        else:
            made = [(written.generated[label], *reasons.values()) for label, reasons in written.rejected.items()]
            header = ("label", "requested", "generated", "wrong label", "unrealistic", "copies", "delivered")
            print_table(header, [(*row[:2], *counts, row[2]) for row, counts in zip(rows, made, strict=True)])
        print(f"\nout              {written.out}")
        print(f"seed             {written.seed}")
        print(f"bundle           {written.bundle} ({written.bundle_name})")
        print(f"reproducibility  {written.reproducibility}")
        if written.edit:
            print(f"edit             {edit_text(written.edit.items())}")
    written.raise_for_shortfall()
