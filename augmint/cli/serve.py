"""`augmint serve`: bundles in, HTTP out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from augmint.cli.rooms import require

__all__ = ["serve"]


def serve(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Bundle directories, or directories of bundles; AUGMINT_BUNDLES, or else bundles/, if none are given.",
            metavar="BUNDLE",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(envvar="AUGMINT_HOST", help="Address to listen on; 0.0.0.0 for all.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="AUGMINT_PORT", help="TCP port.", metavar="N")] = 3000,
    device: Annotated[
        str | None,
        typer.Option(envvar="AUGMINT_DEVICE", help="auto (the default), cpu, cuda or cuda:N.", metavar="DEVICE"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(envvar="AUGMINT_WORKERS", help="Processes; one on a CPU, one for each GPU.", metavar="N"),
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            envvar="AUGMINT_TRUST",
            help="A file of public keys (see augmint key): only bundles that one of them signed are served; it may "
            "change while serving.",
            metavar="FILE",
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            envvar="AUGMINT_TOKENS",
            help="A file of tokens (see augmint token) that requests must carry; it may change while serving.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Serve bundles over HTTP until stopped.

    Without tokens only this machine is answered. Directories of bundles are followed: one that is added, replaced or
    taken away there is so in the service, and no request is dropped.

    The same service as `bentoml serve serving.service:AugmintService` with AUGMINT_BUNDLES set. Limits and batching are
    set by further AUGMINT_* variables; the page at / and /openapi.json say what can be asked.
    """
    require("serving", "serve")
    from serving.run import ServeRequest
    from serving.run import serve as run

    code = run(
        ServeRequest(
            bundles=tuple(bundles or ()),
            host=host,
            port=port,
            device=device,
            workers=workers,
            tokens=tokens,
            trust=trust,
        )
    )
    raise typer.Exit(code)
