"""The command line: one small file a verb, each of which turns its flags into one request and calls one function.

What the verbs need is imported when they run, so `augmint --help` is quick and works with the core dependencies alone.
Results go to stdout, talk and progress to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 delivered fewer than
asked, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from augmint.cli.balance import balance
from augmint.cli.demo import demo
from augmint.cli.describe import describe
from augmint.cli.evaluate import evaluate
from augmint.cli.export import export
from augmint.cli.families import families
from augmint.cli.features import features
from augmint.cli.inspect import inspect
from augmint.cli.latent import latent
from augmint.cli.rooms import explain_missing
from augmint.cli.sample import sample
from augmint.cli.serve import serve
from augmint.cli.sign import key, sign
from augmint.cli.token import token
from augmint.cli.train import train
from augmint.errors import AugmintError

__all__ = ["app", "command", "main"]


class _Verbs(TyperGroup):
    """Where every error of every verb becomes one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # so that a closed pipe is noticed here
        except KeyboardInterrupt as stop:
            # Training says itself how far it came.
            say(f"{str(stop).rstrip('.')}." if str(stop) else "interrupted.")
            raise typer.Exit(getattr(stop, "exit_code", 130)) from None
        except BrokenPipeError:
            # Whoever read our output has seen enough; nothing more may be written at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except AugmintError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            say(str(error))
            raise typer.Exit(error.exit_code) from None
        except ModuleNotFoundError as error:
            explained = explain_missing(error, ctx.invoked_subcommand or "")
            if explained is None or ctx.params.get("debug"):
                self._unexpected(ctx, error)
            say(str(explained))
            raise typer.Exit(1) from None
        except OSError as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            where = f"{error.filename}: " if error.filename else ""
            say(f"{where}{error.strerror or error}.")
            raise typer.Exit(1) from None
        except Exception as error:
            # typer's own (usage errors, exits) say themselves what they are; anything else is a mistake of ours.
            if type(error).__module__.partition(".")[0] in ("typer", "click"):
                raise
            self._unexpected(ctx, error)
        return result

    def _unexpected(self, ctx: Any, error: Exception) -> None:
        if ctx.params.get("debug"):
            traceback.print_exc()
        verb = ctx.invoked_subcommand or "…"
        detail = " ".join(str(error).split())[:300]
        where = f"a mistake in augmint; `augmint --debug {verb} …` shows where"
        say(f"unexpected {type(error).__name__}: {detail} ({where}).")
        raise typer.Exit(1) from None


def say(line: str) -> None:
    """One line to the person at the terminal."""
    print(f"augmint: {line}", file=sys.stderr)


app = typer.Typer(
    name="augmint",
    cls=_Verbs,
    help="Augmented image samples by class label: train a GAN generator on your labelled images, export it to ONNX, "
    "serve it with BentoML, and fill up the classes that are too small.",
    epilog="\b\nThe whole way:\n"
    "  augmint inspect my-images\n"
    "  augmint train my-images --out runs/parts --minutes 10\n"
    "  augmint export runs/parts --out bundles/parts\n"
    "  augmint evaluate bundles/parts my-images --report report\n"
    "  augmint serve bundles/parts --port 3000\n"
    "  augmint balance my-images http://127.0.0.1:3000 --out balanced\n"
    "\n"
    "Every option may stand in the environment instead, as AUGMINT_VERB_OPTION (AUGMINT_TRAIN_MINUTES=5); "
    "AUGMINT_DEVICE and AUGMINT_TOKEN hold for all verbs. Flags go before the environment, and both before defaults."
    "\n\n"
    "Results are written to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, "
    "3 delivered fewer images than asked for, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={
        "auto_envvar_prefix": "AUGMINT",
        "max_content_width": 100,
        "help_option_names": ["-h", "--help"],
    },
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from augmint import __version__

        print(f"augmint {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            allow_from_autoenv=False,
            help="Show the version and exit.",
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="AUGMINT_DEBUG", help="Show tracebacks of errors.")] = False,
) -> None:
    pass


for verb, lines in (
    (inspect, ("augmint inspect my-images --sheet sheet.png", "augmint inspect bundles/parts --json",
               "augmint inspect http://127.0.0.1:3000")),
    (train, ("augmint train my-images --out runs/parts --minutes 10",
             "augmint train my-images --family dcgan --steps 2000 --seed 1",
             "augmint train --resume runs/parts")),
    (export, ("augmint export runs/parts --out bundles/parts",
              "augmint export runs/parts --out bundles/parts-gpu --precision fp16")),
    (serve, ("augmint serve bundles/parts --port 3000", "augmint serve bundles --device cuda",
             "augmint serve bundles --host 0.0.0.0 --tokens tokens.json",
             "augmint serve bundles --trust keys/alice.pub")),
    (token, ("augmint token trainer --file tokens.json --images-per-day 100000",
             "augmint token prometheus --file tokens.json --scope admin",
             "augmint token trainer --file tokens.json --revoke")),
    (key, ("augmint key alice --out keys",)),
    (sign, ("augmint sign bundles/parts --key keys/alice.key",)),
    (sample, ("augmint sample bundles/parts --count scratch=200 --count good=50 --seed 7 --out samples",
              "augmint sample http://127.0.0.1:3000 --count scratch=16 --out sheet.png",
              "augmint sample bundles/parts --count scratch=16 --edit size=+1.5 --out larger.png",
              "augmint sample bundles/plain --count 1000 --out - > samples.npz")),
    (latent, ("augmint latent bundles/parts --out edits.png",
              "augmint latent bundles/parts --label scratch --between 3 8 --out between.png")),
    (balance, ("augmint balance my-images http://127.0.0.1:3000 --out balanced",
               "augmint balance my-images bundles/parts --strategy scratch=500 --strategy dent=500 --out balanced",
               "augmint balance my-images bundles/parts --dry-run")),
    (evaluate, ("augmint evaluate bundles/parts my-images --report report",
                "augmint evaluate http://127.0.0.1:3000 my-images --bundle parts --quick",
                "augmint evaluate generated-images my-images --minority scratch --minority dent --json")),
    (families, ("augmint families --json",)),
    (describe, ("augmint describe dcgan", "augmint describe augment --resolution 64 --channels 3",
                "augmint describe acgan --preset small --classes 5 --out acgan.svg")),
    (features, ("augmint features runs/parts my-images --out features.npz",
                "augmint features runs/parts my-images --split train --layer layers.0 --layer layers.2")),
    (demo, ("augmint demo --out demo-out",)),
):  # fmt: skip
    app.command(epilog="\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines))(verb)


def command() -> Any:
    """The command tree; its help names only the variables that are not called after their verb and option."""
    tree = typer.main.get_command(app)
    verbs = getattr(tree, "commands", {})
    for parameter in (parameter for verb in (tree, *verbs.values()) for parameter in verb.params):
        parameter.show_envvar = bool(parameter.envvar)
    return tree


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with its code."""
    command()(args=None if arguments is None else list(arguments), prog_name="augmint")
