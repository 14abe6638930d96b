"""`augmint inspect`: look at a data set, a run, a bundle or a service."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from augmint.cli.options import Device, Json, Token
from augmint.cli.rooms import is_run
from augmint.errors import UsageError

__all__ = ["inspect"]


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            help="A data set (a folder per class, a CSV, an npz, or digits or mnist5k), a bundle, a run, or a "
            "service's URL.",
            metavar="WHAT",
        ),
    ],
    sheet: Annotated[
        Path | None, typer.Option(help="Of a data set: write a contact sheet there.", metavar="FILE.png")
    ] = None,
    device: Device = "cpu",
    trust: Annotated[
        Path | None,
        typer.Option(
            help="Of a bundle: a file of public keys (see augmint key), one of which must have signed it.",
            metavar="FILE",
        ),
    ] = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Look at a data set, a bundle, a run or a service, and say what it is.

    Of a data set: classes, counts, imbalance, sizes, duplicates, and every file that cannot be read. A bundle is
    verified whole, golden images included, before it is shown; with --trust also who signed it.
    """
    from augmint.cli.output import print_json
    from augmint.sources import is_url

    path = Path(what)
    kind = "service" if is_url(what) else "bundle" if (path / "manifest.json").exists() else "data set"
    if kind == "data set" and is_run(path):
        kind = "run"
    if kind == "data set" and (golden := sorted(path.glob("*/golden.npy"))):
        # Every bundle has one, and no data set; its sample sheets would else be counted as images.
        raise UsageError(
            f"{what} is a folder of bundles: inspect one of them, such as {golden[0].parent}.", code="usage.bundles"
        )
    if sheet is not None and kind != "data set":
        raise UsageError(f"--sheet is for data sets, and {what} is a {kind}: leave it away.", code="usage.sheet")
    if trust is not None and kind != "bundle":
        raise UsageError(f"--trust is for bundles, and {what} is a {kind}: leave it away.", code="usage.trust")
    match kind:
        case "service":
            document, text = _service(what, token)
        case "bundle":
            document, text = _bundle(path, device, trust)
        case "run":
            document, text = _run(path)
        case _:
            document, text = _data(what, sheet)
    if json:
        print_json(document)
    else:
        print(text)


def _data(spec: str, sheet: Path | None) -> tuple[Any, str]:
    from augmint.data.report import inspect_data

    report = inspect_data(spec, sheet=sheet)
    return {"kind": "data set", **report.as_dict()}, report.text()


def _bundle(path: Path, device: str, trust: Path | None) -> tuple[Any, str]:
    from augmint.bundle_report import inspect_bundle

    report = inspect_bundle(path, device=device, trust=trust)
    return report.as_dict(), report.text()


def _run(path: Path) -> tuple[Any, str]:
    from augmint.cli.rooms import require

    require("training", "inspect")
    from training.run import Run

    run = Run.open(path)
    config, status = run.config, run.status()
    # A run that was killed could not say so: its file still says "running", but nobody holds its lock.
    state = "killed" if status.state == "running" and not run.is_locked() else status.state
    height, width, channels = config.image_shape
    lines = [
        f"{run.name}: {state}, step {status.step:,} of {status.steps:,}, {status.seconds:,.0f} s",
        "",
        f"data     {config.data_name} ({config.data}), {sum(config.class_counts):,} images, "
        f"{len(config.class_names)} classes",
        f"family   {config.family}, {'conditional' if config.conditional else 'unconditional'}, "
        f"{height}×{width}, {'colour' if channels == 3 else 'grey'}",
        f"seed     {config.seed}",
        f"best     step {status.best.step:,}, score {status.best.score:.3f}" if status.best else "best     none yet",
    ]
    if status.note:
        lines += ["", status.note]
    if status.alarms:
        lines += ["", "alarms", *(f"  - step {alarm.step:,}: {alarm.message}" for alarm in status.alarms)]
    if state in ("killed", "stopped"):
        lines += ["", f"go on with: augmint train --resume {path}"]
    document = {"kind": "run", "path": str(path), **asdict(status), "state": state, "family": config.family}
    document |= {"data": config.data, "class_names": list(config.class_names), "image_shape": list(config.image_shape)}
    return document, "\n".join(lines)


def _service(url: str, token: str | None) -> tuple[Any, str]:
    from augmint.client import Client

    with Client(url, token=token) as client:
        bundles = client.bundles()
    lines = [f"{url}: {len(bundles)} bundle{'' if len(bundles) == 1 else 's'}"]
    for info in bundles:
        lines += [
            "",
            f"{info.name}" if info.latest else f"{info.name}@{info.digest[:12]}",
            f"  digest           {info.digest}",
            f"  family           {info.family}",
            f"  labels           {', '.join(info.class_names) or 'none: unconditional'}",
            f"  images           {'×'.join(map(str, info.image_shape))}",
            f"  device           {info.device}",
            f"  reproducibility  {info.reproducibility}",
        ]
    return {"kind": "service", "url": url, "bundles": [asdict(info) for info in bundles]}, "\n".join(lines)
