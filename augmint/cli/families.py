"""`augmint families`: what there is to train."""

from __future__ import annotations

import textwrap
from typing import Any

from augmint.cli.options import Json
from augmint.cli.rooms import require

__all__ = ["families"]

_WIDTH = 100


def families(json: Json = False) -> None:
    """List the families of GANs to train, and when to choose which.

    docs/families.md compares them on the same data, with their figures and samples.
    """
    from augmint.cli.output import print_json

    require("training", "families")
    from training import FAMILIES
    from training.config import PAPER

    found: list[dict[str, Any]] = [
        {
            "name": family.name,
            "summary": family.summary,
            "paper": family.paper,
            "labels": "by class" if family.conditional else "learns them" if family.supervised else "ignores them",
            "conditional": family.conditional,
            "presets": [PAPER, *family.presets],
            "when": family.when,
            "default": family is FAMILIES[0],
        }
        for family in FAMILIES
    ]
    if json:
        print_json(found)
        return
    for entry in found:
        print(f"{entry['name']}{' (the default)' if entry['default'] else ''}")
        summary = entry["summary"]
        lines = [f"{summary[0].upper()}{summary[1:]}.", *([f"When: {entry['when']}."] if entry["when"] else [])]
        lines += [f"Labels: {entry['labels']}. Presets: {', '.join(entry['presets'])}. Paper: {entry['paper']}."]
        for line in lines:
            print(textwrap.fill(line, _WIDTH, initial_indent="  ", subsequent_indent="  "))
        print()
    print("More of one, with its layers: augmint describe NAME")
