"""`augmint key` and `augmint sign`: who vouches for a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from augmint.cli.options import Json

__all__ = ["key", "sign"]


def key(
    name: Annotated[str, typer.Argument(help="Whose it is: stands in every signature.", metavar="NAME")],
    out: Annotated[Path, typer.Option(help="The directory for NAME.key and NAME.pub.", metavar="DIR")] = Path("."),
    json: Json = False,
) -> None:
    """Make a key pair to sign bundles with.

    NAME.key is yours alone. NAME.pub is one line for a file of trusted keys, with which bundles are opened: augmint
    serve --trust FILE, augmint inspect --trust FILE. To trust a key no longer, remove its line.
    """
    from augmint.cli.output import print_json
    from augmint.signing import make_key

    made, secret, public = make_key(name, out)
    if json:
        print_json({"name": made.name, "key": made.id, "private": str(secret), "public": str(public)})
    else:
        print(f"{made.name}, key {made.id}: keep {secret} to yourself; give {public} to those who open your bundles")


def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle that `augmint export` wrote.", metavar="BUNDLE")],
    private: Annotated[
        Path, typer.Option("--key", help="The private key that `augmint key` made.", metavar="NAME.key")
    ],
    json: Json = False,
) -> None:
    """Sign a bundle, so that those who trust your key know that it is yours and unaltered.

    The signature is a file in the bundle; the bundle's digest stays the same.
    """
    from augmint.cli.output import print_json
    from augmint.signing import read_key
    from augmint.signing import sign as sign_bundle

    made = sign_bundle(bundle, read_key(private))
    if json:
        print_json({"bundle": made.digest, "signer": made.signer, "key": made.key_id, "signed": made.signed})
    else:
        print(f"{bundle}: signed by {made.signer}, key {made.key_id}; bundle {made.digest}")
