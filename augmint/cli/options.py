"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["BundleName", "Device", "Edit", "Json", "Offset", "Quality", "Seed", "Token", "Truncation"]

Seed = Annotated[
    int | None,
    typer.Option(help="0 to 2^64 - 1; one is picked and printed if left out.", min=0, max=2**64 - 1, metavar="N"),
]
Offset = Annotated[
    int, typer.Option(help="Index of the first image of each label: 200 for 200 more.", min=0, metavar="N")
]
Truncation = Annotated[float, typer.Option(help="In (0, 1]: less is more typical and less varied.", metavar="SHARE")]
Quality = Annotated[
    str,
    typer.Option(
        help="Which images to keep: none (all of them), or labels (a classifier agrees), labels:P (with at least that "
        "probability), copies (no near copies of training images) and realism:SHARE (without that share of each "
        "label, the least realistic), joined by commas. Up to 20 times as many and 64 are made to find enough.",
        metavar="QUALITY",
    ),
]
Edit = Annotated[
    list[str] | None,
    typer.Option(
        help="As often as needed: change an attribute of every image by X standard deviations, and keep its class. "
        "`augmint inspect` lists what a bundle can edit, and how far.",
        metavar="NAME=±X",
    ),
]
BundleName = Annotated[str | None, typer.Option(help="Which bundle, where the service has several.", metavar="NAME")]
Device = Annotated[str, typer.Option(envvar="AUGMINT_DEVICE", help="auto, cpu, cuda or cuda:N.", metavar="DEVICE")]
Token = Annotated[
    str | None,
    typer.Option(envvar="AUGMINT_TOKEN", help="Sent to the service as a bearer token.", metavar="TOKEN"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
