"""`augmint train`: labelled images in, run directory out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from augmint.cli.options import Json
from augmint.cli.rooms import require
from augmint.cli.values import parse_settings
from augmint.errors import UsageError

__all__ = ["train"]


def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="A folder per class, a CSV, an npz, or digits or mnist5k. With --resume only where the data moved.",
            metavar="DATA",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory to make; by default runs/DATA-FAMILY-N.", metavar="RUN")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="augment (by class, the default); dcgan or gan (without classes).",
            metavar="NAME",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A family's named set of options, such as small; the paper's by default (see augmint families).",
            metavar="NAME",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Budget of wall time, which steps and width are fitted to; 10 by default.", metavar="M"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Generator steps, instead of minutes: the same on any machine.", metavar="N")
    ] = None,
    resolution: Annotated[
        str | None, typer.Option(help="Pixels, 32 or HxW; by default the data's own size.", metavar="SIZE")
    ] = None,
    resize: Annotated[
        Literal["fit", "crop", "stretch"] | None,
        typer.Option(help="How images of another shape are brought there; fit by default."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random; 0 by default.", metavar="N")] = None,
    device: Annotated[
        str | None, typer.Option(envvar="AUGMINT_DEVICE", help="auto (the default), cpu or cuda.", metavar="DEVICE")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step; by default the family's.", metavar="N")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of the family, as often as needed.", metavar="KEY=VALUE"),
    ] = None,
    ignore_labels: Annotated[
        bool, typer.Option("--ignore-labels", help="Train without classes though the data have them.")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")] = False,
    precision: Annotated[
        str | None, typer.Option(help="32-true or bf16-mixed; measured by default.", metavar="P")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; measured by default.", metavar="N")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; by default about 15 seconds.", metavar="N")
    ] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(help="Steps between evaluations; fitted by default.", metavar="N")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard/--no-tensorboard", help="Write TensorBoard files.")
    ] = True,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with a run that was stopped, bit for bit on a CPU.", metavar="RUN")
    ] = None,
    json: Json = False,
) -> None:
    """Train a generator on labelled images.

    A time budget is fitted to this machine first. Ctrl-C, SIGTERM and even kill -9 lose at most one checkpoint
    interval. The best checkpoint by a validation score, not the last, is what `augmint export` takes.
    """
    from augmint.cli.output import print_json

    request: dict[str, Any] = {
        "out": out,
        "family": family,
        "preset": preset,
        "minutes": minutes,
        "steps": steps,
        "resolution": resolution,
        "resize": resize,
        "seed": seed,
        "device": device,
        "batch": batch,
        "precision": precision,
        "threads": threads,
        "checkpoint_every": checkpoint_every,
        "evaluate_every": evaluate_every,
        "settings": parse_settings(set_ or []) or None,
        "ignore_labels": ignore_labels or None,
        "skip_bad": skip_bad or None,
        "tensorboard": None if tensorboard else False,
    }
    given = {name: value for name, value in request.items() if value is not None}
    if resume is None and data is None:
        raise UsageError(
            "say what to train on, augmint train DATA, or what to go on with, --resume RUN.", code="usage.data"
        )
    if resume is not None:
        typed = [name for name in ("set_", *request) if _on_the_command_line(context, name)]
        if typed:
            option = typed[0].strip("_").replace("_", "-")
            raise UsageError(
                f"--{option} cannot be changed by --resume: a run goes on as it began.", code="usage.resume"
            )
    require("training", "train")
    from training import TrainRequest
    from training import resume as go_on
    from training import train as begin

    if resume is not None:
        run = go_on(resume, data=data)
    else:
        assert data is not None
        run = begin(TrainRequest(data=data, **given))
    status = run.status()
    if json:
        print_json({"run": str(run.path), **asdict(status)})
    else:
        print(run.path)


def _on_the_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
