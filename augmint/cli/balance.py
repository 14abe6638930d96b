"""`augmint balance`: real images and enough synthetic ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from augmint.cli.options import BundleName, Device, Json, Offset, Quality, Seed, Token, Truncation
from augmint.errors import UsageError

__all__ = ["balance"]


def balance(
    data: Annotated[
        str, typer.Argument(help="A folder per class, a CSV, an npz, or digits or mnist5k.", metavar="DATA")
    ],
    source: Annotated[str, typer.Argument(help="A bundle's directory, or a service's http(s) URL.", metavar="SOURCE")],
    out: Annotated[Path | None, typer.Option(help="A new folder, or a new FILE.npz.", metavar="PATH")] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="auto, minority, not-minority, not-majority or all; for two classes a share in (0, 1]; or "
            "LABEL=TOTAL, as often as needed: real images included, other labels left alone. "
            "auto fills every class up to the largest.",
            metavar="STRATEGY",
        ),
    ] = None,
    seed: Seed = None,
    offset: Offset = 0,
    truncation: Truncation = 1.0,
    quality: Quality = "none",
    format: Annotated[
        Literal["folder", "npz"] | None,
        typer.Option(help="A folder per class with metadata.csv, or one npz; by default as --out ends."),
    ] = None,
    resize: Annotated[
        Literal["fit", "crop", "stretch"],
        typer.Option(help="How real images of another shape are brought to the bundle's."),
    ] = "fit",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    bundle: BundleName = None,
    device: Device = "auto",
    token: Token = None,
    json: Json = False,
) -> None:
    """Fill up the small classes of a data set with generated images.

    Only the train split is used: no image set aside for validation or testing is counted or written. Real images come
    first; metadata.csv (or the mask "synthetic") says which ones are generated, and every generated PNG is marked.
    """
    from augmint.balancing import PlanRow, check_labels, describe_plan, plan
    from augmint.balancing import balance as run
    from augmint.cli.output import print_json, print_table, progress_bar, talk
    from augmint.cli.values import parse_strategy
    from augmint.data import load_data
    from augmint.sampling import check_out
    from augmint.sources import open_source

    if out is None and not dry_run:
        raise UsageError("say where to write, with --out, or only plan, with --dry-run.", code="usage.out")
    if out is not None:
        form = format or ("npz" if out.suffix.lower() == ".npz" else "folder")
        if form == "npz" and out.suffix.lower() != ".npz":
            raise UsageError(f"--out {out} does not end in .npz: name it so.", code="usage.out")
        check_out(str(out), form)
    wanted = parse_strategy(strategy or ["auto"])
    loaded = load_data(data, skip_bad=skip_bad)
    for note in (*loaded.notes, *(f"left out: {bad}" for bad in loaded.bad)):
        talk(note)
    opened = open_source(source, bundle=bundle, device=device, token=token)
    counts = loaded.counts("train")
    rows = tuple(PlanRow(label, counts[label], n) for label, n in plan(counts, wanted).items())

    if dry_run or out is None:
        check_labels({row.label: row.generate for row in rows if row.generate}, opened.info())
        if json:
            print_json({"plan": describe_plan(rows)})
        else:
            print_table(
                ("label", "real", "generate", "target"), [(r.label, r.real, r.generate, r.target) for r in rows]
            )
        return

    with progress_bar("images") as progress:
        result = run(
            loaded,
            opened,
            wanted,
            seed=seed,
            offset=offset,
            truncation=truncation,
            quality=quality,
            resize=resize,
            allow_shortfall=True,
            progress=progress,
        )
    result.write(out, format=form)
    for note in result.notes:
        talk(note)
    delivered = result.delivered
    if json:
        report = [row | {"delivered": delivered[row["label"]]} for row in describe_plan(result.plan)]
        print_json(
            {
                "out": str(out),
                "format": form,
                "plan": report,
                "real": int((~result.synthetic).sum()),
                "synthetic": int(result.synthetic.sum()),
                "seed": result.seed,
                "offset": offset,
                "truncation": truncation,
                "quality": result.quality,
                "rejected": {label: dict(counts) for label, counts in result.rejected.items()},
                "bundle": result.bundle or None,
                "notes": list(result.notes),
            }
        )
    else:
        header: tuple[str, ...] = ("label", "real", "generate", "delivered", "target")
        table: list[tuple[object, ...]] = [
            (row.label, row.real, row.generate, delivered[row.label], row.target) for row in result.plan
        ]
        if result.quality != "none":
            header = (*header, "rejected")
            rejected = [sum(result.rejected.get(row.label, {}).values()) for row in result.plan]
            table = [(*row, n) for row, n in zip(table, rejected, strict=True)]
        print_table(header, table)
        print(f"\nout     {out}")
        if result.seed is not None:
            print(f"seed    {result.seed}")
            print(f"bundle  {result.bundle} ({opened.info().name})")
    result.raise_for_shortfall()
