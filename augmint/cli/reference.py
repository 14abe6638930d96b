"""docs/cli.md from the real `--help`: `python -m augmint.cli.reference` writes it, a test compares it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from augmint.cli import command

__all__ = ["FILE", "render"]

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
_WIDTH: Final = 100
_INTRODUCTION: Final = """\
# The command line

<!-- Written by `python -m augmint.cli.reference` from the commands' own help: do not edit. -->
"""


def render() -> str:
    """The page, the same on every machine and terminal."""
    tree = command()
    context = tree.make_context("augmint", [], resilient_parsing=True, terminal_width=_WIDTH)
    parts = [_INTRODUCTION, _block(tree, context)]
    for name, verb in tree.commands.items():
        inner = verb.make_context(name, [], parent=context, resilient_parsing=True, terminal_width=_WIDTH)
        parts += [f"## augmint {name}\n", _block(verb, inner)]
    return "\n".join(parts)


def _block(verb: Any, context: Any) -> str:
    lines = [line.rstrip() for line in verb.get_help(context).splitlines()]
    return "\n".join(["```text", *lines, "```", ""])


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
