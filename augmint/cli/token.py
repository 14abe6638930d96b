"""`augmint token`: who may ask a service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from augmint.cli.options import Json
from augmint.cli.rooms import require
from augmint.errors import UsageError

__all__ = ["token"]


def token(
    name: Annotated[str, typer.Argument(help="Whose it is, for the log and for --revoke.", metavar="NAME")],
    file: Annotated[Path, typer.Option(help="The file of tokens; made where there is none.", metavar="FILE")] = Path(
        "tokens.json"
    ),
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it allows, as often as needed: generate (the default), admin (/metrics).", metavar="S"),
    ] = None,
    images_per_day: Annotated[
        int | None, typer.Option(help="Most images a day; as many as are asked for by default.", metavar="N")
    ] = None,
    days: Annotated[int | None, typer.Option(help="Days that it holds; for ever by default.", metavar="N")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the token of this name back instead.")] = False,
    json: Json = False,
) -> None:
    """Make a token for a service, or take one back.

    The token is printed once; the file keeps only its hash. A service that was started with the file (augmint serve
    --tokens FILE) notices within a second. Clients send it with --token or AUGMINT_TOKEN.
    """
    require("serving", "token")
    from augmint.cli.output import print_json
    from serving.access import add_token, remove_token

    if revoke:
        if scope or images_per_day is not None or days is not None:
            raise UsageError("--revoke takes a token back: give nothing else with it.", code="usage.revoke")
        remove_token(file, name)
        if json:
            print_json({"revoked": name})
        return
    if days is not None and not 1 <= days <= 36_500:
        raise UsageError(f"--days {days}: give 1 to 36,500.", code="usage.days")
    expires = None if days is None else (datetime.now(UTC) + timedelta(days=days)).date()
    made = add_token(
        file,
        name,
        scopes=tuple(dict.fromkeys(scope or ["generate"])),
        images_per_day=images_per_day,
        expires=expires,
    )
    if json:
        print_json({"name": name, "token": made, "expires": expires and expires.isoformat()})
    else:
        print(made)
