"""What each family's paper promises, shown on data that are here: one module a family, run by `benchmarks/families.py`.

A module has `RECIPE` and `promise(run, work)`:

    RECIPE = Recipe(preset="small", steps=3000)

    def promise(run: Run, work: Path) -> Promise: ...

`run` is finished and was trained by RECIPE. Whatever else is trained goes through `trained(work / "name", …)`, which
keeps finished runs, so that an interrupted benchmark goes on where it was. Figures are measured here and now, on real
images that the networks have not seen where real images are the measure, and are never typed in.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from training import Run, TrainRequest, resume, train

__all__ = ["Promise", "Recipe", "trained"]


@dataclass(frozen=True)
class Recipe:
    """How a family is trained, in steps, so that it is the same on any machine."""

    steps: int
    preset: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    data: str = "mnist5k"
    seed: int = 0


@dataclass(frozen=True)
class Promise:
    """`sentence` says what was promised and what came out, with the figures; `kept` whether that is what was promised;
    `picture` shows it."""

    sentence: str
    kept: bool
    figures: Mapping[str, float | int | str]
    picture: Figure


def trained(out: Path, family: str, recipe: Recipe) -> Run:
    """The run in `out` if it is this one, gone on with if it was stopped; else a new one."""
    key = out.with_name(out.name + ".json")
    wanted = json.dumps([family, asdict(recipe)], sort_keys=True)
    if key.is_file() and key.read_text(encoding="utf-8") == wanted and (out / "config.json").is_file():
        return resume(out, progress=False)
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    key.write_text(wanted, encoding="utf-8")
    request = TrainRequest(
        data=recipe.data,
        family=family,
        out=out,
        preset=recipe.preset,
        steps=recipe.steps,
        seed=recipe.seed,
        settings=recipe.settings,
        threads=1,
        tensorboard=False,
    )
    return train(request, progress=False)
