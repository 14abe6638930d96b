"""Does it help? Data sets × shots × methods, with intervals: the table of docs/utility.md.

    python benchmarks/utility.py [--cells mnist5k/20,fashion] [--training 3000] [--processes 2]
    python benchmarks/utility.py --only-print

A cell is a data set (see `image_sets.py`) and a number of shots: the small classes, about half of all, are cut to
that many training images, the others keep at most 350. In each cell the default family is trained for `--training`
steps, once for every generator seed, exported, and asked for as many images as fill the small classes up. Then small
classifiers are trained on every method's images (`evaluation.utility`: the same network and steps for all) and judged
on real test images that nothing else has seen. Nothing is chosen by the test images: amount and mixture are given.

Beside the methods stands the ceiling: the same classifiers trained on what was cut away, too.

Finished cells lie in --out (bench-utility-out/cells) and are not measured again, unless --again asks for it, or other
settings, or other code in training/ or evaluation/; what had been finished of an interrupted cell is used, too.
docs/utility.md and docs/utility.json are written anew from all cells that lie there, after each.
"""

from __future__ import annotations

import os

# One thread a process: networks this small gain nothing by two. Before numpy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import datetime
import functools
import hashlib
import json
import math
import multiprocessing
import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from augmint.data import DataSet  # noqa: E402
from augmint.errors import AugmintError, UsageError  # noqa: E402
from benchmarks.image_sets import SOURCES, load  # noqa: E402
from benchmarks.record import made, save  # noqa: E402
from evaluation.cache import Arrays, Cache, Json, digest  # noqa: E402

OUT: Final = ROOT / "bench-utility-out"
SHOTS: Final = (10, 20, 50)
USUAL: Final = {"mnist5k": SHOTS, "fashion": SHOTS, "solar": (20,), "emoji": SHOTS, "letters": (10, 20)}
"""What is run when nothing is asked for: as much as fits into 50 minutes on 2 cores."""
MOST: Final = 350
"""Training images that a class which is not small keeps."""
STRONG: Final = "oversampling + affine"
WITH: Final = "real + synthetic + affine"
WITHOUT: Final = "real + synthetic"
METHODS: Final = ("real only", "oversampling", STRONG, WITHOUT, WITH)
CEILING: Final = "all the real images"
CEILING_AFFINE: Final = "all the real images + affine"
_DRAWS: Final = 2000
_STEP_SECONDS: Final = 0.09  # Of the generator, on one core, roughly: for the estimate.

Outcomes = dict[str, NDArray[np.bool_]]
"""Method → whether it was right, [generator seeds (1 without generated images), classifier seeds, test images]."""


@dataclass(frozen=True)
class Settings:
    """What decides a cell's figures, beside the code. `training` is one generator's steps, at one thread."""

    training: int
    generators: tuple[int, ...]
    classifiers: tuple[int, ...]
    steps: int
    amount: float = 1.0


@dataclass(frozen=True)
class Cell:
    source: str
    shots: int
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.source}/{self.shots}"

    def file(self, out: Path) -> Path:
        return out / "cells" / f"{self.source}-{self.shots}.json"

    def fits(self) -> int:
        """Classifiers to train, without the ceiling's, which all cells of a source share."""
        return len(self.settings.classifiers) * (3 + 2 * len(self.settings.generators))


# -------------------------------------------------------------------------------------------------- one cell


def cut(data: DataSet, small: Sequence[str], shots: int) -> DataSet:
    """The small classes at `shots` training images, the others at MOST, if they have as many."""
    have = data.counts("train")
    return data.cut({name: min(shots if name in small else MOST, count) for name, count in have.items()})


def measure(cell: Cell, out: Path) -> dict[str, Any]:
    """Train, generate, compare: a cell's figures, which are saved too. Says on stderr where it is."""
    from evaluation.utility import UtilityConfig, images_needed, utility

    began = time.perf_counter()
    settings, source = cell.settings, SOURCES[cell.source]
    whole = load(cell.source)
    small = source.small
    data = cut(whole, small, cell.shots)
    shape = whole.native_shape()
    names = whole.class_names
    train, validation, test = (data.images(split, shape=shape) for split in ("train", "validation", "test"))
    config = UtilityConfig(
        methods=(*METHODS[:-1], "real + synthetic + augmentation"),
        amounts=(settings.amount,),
        shares=(0.5,),
        strengths=(),
        seeds=settings.classifiers,
        steps=settings.steps,
        processes=1,
    )
    wanted = images_needed(data.counts("train"), config)
    # Of a class that lacks a handful, half the draws would be that handful.
    needed = {name: wanted[name] if name in small else 0 for name in names}
    fits = _Fits(out / "cache")

    outcomes: dict[str, list[NDArray[np.bool_]]] = {}
    trained: list[dict[str, float]] = []
    for seed in settings.generators:
        say(cell, f"generator {settings.generators.index(seed) + 1} of {len(settings.generators)}")
        fakes, training = generated(cell, data, needed, seed, out)
        trained.append(training)
        utility(
            train,
            validation,
            test,
            fakes,
            names,
            minority=small,
            config=config,
            cache=fits,
            progress=lambda done, total, what: say(cell, f"classifier {done} of {total}: {what}"),
        )
        for name, right in fits.outcomes(test[1], settings.classifiers).items():
            outcomes.setdefault(name, []).append(right)
    found: Outcomes = {
        # Without generated images nothing differs between the generators: the same fits, from the cache.
        name: np.stack(outcomes[name] if "synthetic" in name else outcomes[name][:1])
        for name in METHODS
    }
    found |= ceiling(cell, cut(whole, (), 0), test, fits)

    result = {
        "cell": cell.name,
        "source": cell.source,
        "words": source.words,
        "shots": cell.shots,
        "settings": asdict(settings),
        "code": code("training", "evaluation"),
        "fingerprint": data.fingerprint,
        "small": list(small),
        "image_shape": list(shape),
        "n_train": data.counts("train"),
        "n_ceiling": cut(whole, (), 0).counts("train"),
        "n_test": data.counts("test"),
        "n_synthetic": needed,
        "rows": rows(found, test[1], names, small),
        "training": trained,
        "seconds": round(time.perf_counter() - began, 1),
        "made": made("torch"),
    }
    save(cell.file(out), json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    say(cell, f"done in {(time.perf_counter() - began) / 60:.1f} minutes")
    return result


class _Fits(Cache):
    """The cache of a comparison, which looks at what goes through: the report has no single predictions, and to pool
    generators it takes those."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._seen: dict[tuple[str, int], NDArray[np.int64]] = {}

    def find(self, kind: str, key: Mapping[str, Json]) -> Arrays | None:
        found = super().find(kind, key)
        if found is not None:
            self._look(kind, key, found)
        return found

    def keep(self, kind: str, key: Mapping[str, Json], arrays: Arrays) -> None:
        super().keep(kind, key, arrays)
        self._look(kind, key, arrays)

    def outcomes(self, truth: NDArray[np.int64], seeds: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
        """Method → whether it was right, [seeds, test images], for what was seen since the last time."""
        names = list(dict.fromkeys(name for name, _ in self._seen))
        found = {name: np.stack([self._seen[name, s][-len(truth) :] == truth for s in seeds]) for name in names}
        self._seen.clear()
        return found

    def _look(self, kind: str, key: Mapping[str, Json], arrays: Arrays) -> None:
        if kind != "utility":
            return
        start = "oversampling" if key["balanced"] else "real only"
        if key["synthetic"] is not None:
            start = WITHOUT
        name = f"{start} + {key['augment']}" if key["augment"] else start
        # Of validation and test images, in this order.
        self._seen[name, int(str(key["seed"]))] = arrays["predicted"]


def generated(
    cell: Cell, data: DataSet, needed: Mapping[str, int], seed: int, out: Path
) -> tuple[tuple[NDArray[np.uint8], NDArray[np.int64]], dict[str, float]]:
    """Images of a generator trained for this (or kept from an interrupted time), and its training's seconds and steps:
    those that the bundle's weights have seen, which are the best and not always the last."""
    from augmint.generator import Generator
    from export.api import ExportRequest, export_run
    from training.api import train
    from training.config import TrainRequest

    place = out / "work" / f"{cell.source}-{cell.shots}-{seed}"
    kept = place / "images.npz"
    key = json.dumps([cell.settings.training, data.fingerprint, dict(needed), code("training")], sort_keys=True)
    if kept.is_file():
        with np.load(kept, allow_pickle=False) as arrays:
            if str(arrays["key"]) == key:
                training = {"seconds": float(arrays["seconds"]), "steps": int(arrays["steps"])}
                return (arrays["images"], arrays["labels"]), training
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    data.write(place / "data")  # A cut set is not its origin, and export reads it again.
    began = time.perf_counter()
    request = TrainRequest(
        data=place / "data", out=place / "run", steps=cell.settings.training, seed=seed, threads=1, tensorboard=False
    )
    train(request, progress=False)
    seconds = round(time.perf_counter() - began, 1)
    export_run(ExportRequest(run=place / "run", out=place / "bundle", evaluate="none"))
    wanted = {name: count for name, count in needed.items() if count}
    generator = Generator(place / "bundle", device="cpu", threads=1)
    made_ = generator.generate(wanted, seed=seed)
    steps = generator.manifest.architecture.checkpoint_step
    order = [data.class_names.index(name) for name in made_.class_names]
    labels = np.array(order, np.int64)[made_.labels]
    temporary = place / f".{secrets.token_hex(4)}.npz"
    np.savez_compressed(temporary, images=made_.images, labels=labels, seconds=seconds, steps=steps, key=key)
    os.replace(temporary, kept)
    return (made_.images, labels), {"seconds": seconds, "steps": steps}


def ceiling(cell: Cell, whole: DataSet, test: tuple[NDArray[np.uint8], NDArray[np.int64]], cache: Cache) -> Outcomes:
    """The same classifiers on the set before its cut, every class drawn alike often, without and with affine."""
    from evaluation.classifier import train_classifier

    images, labels = whole.images("train", shape=test[0].shape[1:])
    found: Outcomes = {}
    for name, augment in ((CEILING, None), (CEILING_AFFINE, "affine")):
        right = []
        for seed in cell.settings.classifiers:

            def fit(seed: int = seed, augment: Any = augment) -> dict[str, NDArray[Any]]:
                classes = len(whole.class_names)
                fitted = train_classifier(
                    images, labels, classes, seed=seed, steps=cell.settings.steps, sampler="balanced", augment=augment
                )
                return {"predicted": fitted.predict(test[0])}

            key: dict[str, Json] = {
                "code": code("evaluation"),
                "train": digest(images, labels),
                "test": digest(test[0]),
                "seed": seed,
                "steps": cell.settings.steps,
                "augment": augment,
            }
            right.append(cache.arrays("ceiling", key, fit)["predicted"] == test[1])
            say(cell, f"{name}, seed {seed}")
        found[name] = np.stack(right)[None]
    return found


def say(cell: Cell, what: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {cell.name}: {what}", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------------------------- figures


def rows(
    outcomes: Outcomes, truth: NDArray[np.int64], names: Sequence[str], small: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a method: shares with 95 % intervals, differences against the strong baseline and real images only."""
    of_small = [list(names).index(name) for name in small]

    def against(name: str, other: str) -> list[float] | None:
        if name == other:
            return None
        value, low, high = interval(outcomes[name].astype(float) - outcomes[other], truth, of_small)
        return [value, low, high]

    found = []
    for name, right in outcomes.items():
        value, low, high = interval(right.astype(float), truth, of_small)
        of_generators = [float(np.mean([block[:, truth == c].mean() for c in of_small])) for block in right]
        found.append(
            {
                "method": name,
                "minority_recall": [value, max(0.0, low), min(1.0, high)],
                "accuracy": float(right.mean()),
                "against_strong": against(name, STRONG),
                "against_real": against(name, "real only"),
                "by_generator": of_generators if len(right) > 1 else None,
                "per_class": {
                    name: float(right[:, :, truth == c].mean()) for c, name in enumerate(names) if (truth == c).any()
                },
            }
        )
    return found


def interval(values: NDArray[np.float64], truth: NDArray[np.int64], small: Sequence[int]) -> tuple[float, float, float]:
    """The mean of `values` [G, S, N] over classes in `small`, and its 95 % interval.

    Value ± t × the standard error of a bootstrap over generator seeds, classifier seeds and the test images of a class
    at once; of each n, n - 1 are drawn (McCarthy & Snowden 1985). t has the degrees of freedom of Satterthwaite 1946:
    with 3 generators it must be wide. Where there is one generator its seed's part is missing: that the interval
    cannot know.
    """
    generators, seeds, _ = values.shape
    of_generators, of_seeds = _weights(0, generators), _weights(1, seeds)
    blocks = [values[:, :, truth == c] for c in small]
    value = float(np.mean([block.mean() for block in blocks]))
    draws = np.zeros(_DRAWS)
    for number, block in enumerate(blocks):
        weights = _weights(2 + number, block.shape[2])
        of_each = np.einsum("gsn,dn->gsd", block, weights, optimize=True)
        draws += np.einsum("gsd,dg,ds->d", of_each, of_generators, of_seeds, optimize=True) / len(blocks)
    variance = float(draws.var())
    if variance < 1e-18:
        return value, value, value
    table = np.mean([block.mean(2) for block in blocks], axis=0)  # [G, S]
    parts = [(_variance(table.mean(1)), generators - 1), (_variance(table.mean(0)), seeds - 1)]
    images = sum(len(block[0, 0]) - 1 for block in blocks)
    parts.append((max(0.0, variance - sum(part for part, _ in parts)), max(1, images)))
    scale = variance / max(sum(part for part, _ in parts), 1e-18)
    freedom = variance**2 / max(1e-30, sum((part * scale) ** 2 / max(1, n) for part, n in parts))
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return value, value - half, value + half


def _variance(of: NDArray[np.float64]) -> float:
    """Of the mean of these."""
    return float(of.var(ddof=1)) / len(of) if len(of) > 1 else 0.0


@functools.cache  # Drawing is what takes the time, and all methods are to be drawn alike.
def _weights(stream: int, n: int) -> NDArray[np.float64]:
    """[draws, n], each row's sum 1."""
    rng = np.random.Generator(np.random.Philox(stream))
    drawn = max(1, n - 1)
    return rng.multinomial(drawn, np.full(n, 1 / n), size=_DRAWS) / drawn


def verdict(result: Mapping[str, Any]) -> str:
    """One sentence a cell: generated images with augmentation against the strong baseline."""
    ours = next(row for row in result["rows"] if row["method"] == WITH)
    value, low, high = ours["against_strong"]
    within = f"{_points(value)} points over {STRONG} ({_points(low)} to {_points(high)})"
    if low > 0:
        return f"It helps: {within}."
    if high < 0:
        return f"Do not use it: {within}."
    return f"It makes no difference that this test could see: {within}."


def _points(share: float) -> str:
    return f"{share * 100 + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}")


# -------------------------------------------------------------------------------------------------- the page


def page(results: Sequence[Mapping[str, Any]], command: str) -> str:
    """docs/utility.md."""
    order = list(SOURCES)
    results = sorted(results, key=lambda result: (order.index(result["source"]), result["shots"]))
    seconds = sum(result["seconds"] for result in results)
    lines = [
        "# Does it help?",
        "",
        f"Written by `{command}` (`make bench-utility`) from {_many(len(results), 'cell')}; do not edit.",
        "",
        *(["**This was --quick: its figures mean nothing.**", ""] if any(map(_quick, results)) else []),
        "A cell is a data set with some classes cut to a few training images (*shots*). The default family is trained",
        "on that, its images fill the small classes up to the largest, and small classifiers, all alike, are trained",
        "on each method's images and judged on real test images. What costs nothing is the mark to beat: oversampling",
        'with affine augmentation ("the strong baseline"). *All the real images* is the ceiling: what was cut away is',
        "put back. Nothing is chosen by the test images.",
        "",
        "Minority recall is the mean recall of the small classes. Intervals are 95 %, by a bootstrap over classifier",
        "seeds and test images, and over generator seeds where there are several; where there is one, another seed's",
        "generator may do better or worse than the interval says. Differences are paired, in points.",
        "",
        "## Verdicts",
        "",
        "| data set | shots | strong baseline | with generated images | ceiling | verdict |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for result in results:
        by_name = {row["method"]: row for row in result["rows"]}
        cells = [f"{by_name[name]['minority_recall'][0]:.3f}" for name in (STRONG, WITH, CEILING_AFFINE)]
        lines.append(f"| {result['source']} | {result['shots']} | {' | '.join(cells)} | {verdict(result)} |")
    for result in results:
        lines += ["", *_section(result)]
    machines = sorted({json.dumps(result["made"]["machine"], ensure_ascii=False) for result in results})
    lines += ["", "## How it was measured", ""]
    for machine in map(json.loads, machines):
        lines.append(f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['system']}.")
    for versions in sorted({_versions(result["made"]) for result in results}):
        lines.append(f"- Versions: {versions}.")
    days = sorted({result["made"]["date"] for result in results})
    lines.append(f"- Date: {days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'}.")
    lines += [
        f"- {seconds / 60:.0f} minutes in all, summed over cells on one thread each, of which several may run at once.",
        "- One cell anew: `python benchmarks/utility.py --again --cells mnist5k/20 --training 3000 --generators 3`.",
        "- The data sets, their sources and licences: `benchmarks/image_sets.py`. No labelled set of colour",
        "  photographs was found in any package, so colour is judged by drawings and by rendered letters.",
    ]
    return "\n".join(lines) + "\n"


def _section(result: Mapping[str, Any]) -> list[str]:
    settings, small = result["settings"], result["small"]
    kept = sorted({count for name, count in result["n_train"].items() if name not in small})
    many = f"{kept[0]}" if len(kept) == 1 else f"{kept[0]} to {kept[-1]}"
    few = sorted({result["n_train"][name] for name in small})
    tested = sum(result["n_test"][name] for name in small)
    generators = len(settings["generators"])
    steps = " and ".join(f"{training['steps']:,}" for training in result["training"])
    seconds = " and ".join(f"{training['seconds']:.0f}" for training in result["training"])
    lines = [
        f"## {result['cell']}",
        "",
        f"{result['words'][0].upper()}{result['words'][1:]}. Small: {', '.join(small)}, with "
        f"{' or '.join(map(str, few))} training images each; the others have {many}. {tested:,} test images of the "
        f"small classes. {_many(generators, 'generator')} of {settings['training']:,} steps "
        f"(best at {steps}; {seconds} s), "
        f"{_many(len(settings['classifiers']), 'classifier seed')} of {settings['steps']} steps; "
        f"{result['seconds']:.0f} s in all.",
        "",
        f"**{verdict(result)}**",
        "",
        "| training set | minority recall | accuracy | points over the strong baseline | points over real only |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        value, low, high = row["minority_recall"]
        cells = [row["method"], f"{value:.3f} ({low:.3f} to {high:.3f})", f"{row['accuracy']:.3f}"]
        for difference in (row["against_strong"], row["against_real"]):
            cells.append("–" if difference is None else "{} ({} to {})".format(*map(_points, difference)))
        lines.append(f"| {' | '.join(cells)} |")
    each = [row for row in result["rows"] if row["by_generator"]]
    if each:
        lines += ["", "A generator each: " + "; ".join(_each(row) for row in each) + "."]
    return lines


def _many(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _quick(result: Mapping[str, Any]) -> bool:
    return bool(result["settings"]["training"] < 500)


def _each(row: Mapping[str, Any]) -> str:
    return f"{row['method']} {', '.join(f'{value:.3f}' for value in row['by_generator'])}"


def _versions(made_: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in made_["versions"].items())


@functools.cache
def code(*rooms: str) -> str:
    """sha256 hex, 16 digits, of the Python files in these rooms."""
    found = hashlib.sha256()
    for file in sorted(file for room in rooms for file in (ROOT / room).rglob("*.py")):
        found.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def write_page(out: Path, docs: Path) -> int:
    """Both files from all saved cells; how many those were."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((out / "cells").glob("*.json"))]
    results = [result for result in results if result["source"] in SOURCES]
    if results:
        save(docs / "utility.md", page(results, "python benchmarks/utility.py"))
        save(docs / "utility.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return len(results)


# ------------------------------------------------------------------------------------------------------- all


def plan(arguments: argparse.Namespace) -> list[Cell]:
    """The cells asked for, those that take longest first."""
    wanted: list[tuple[str, int]] = []
    if not arguments.cells:
        wanted = [(name, shots) for name, several in USUAL.items() for shots in several]
    for text in arguments.cells.split(",") if arguments.cells else ():
        name, _, shots = text.partition("/")
        if name not in SOURCES or (shots and (not shots.isdigit() or int(shots) < 1)):
            raise UsageError(f"--cells {text}: name {', '.join(SOURCES)}, or one with shots, as mnist5k/20.")
        wanted += [(name, int(shots))] if shots else [(name, shots) for shots in SHOTS]
    training, special = arguments.training, {}
    default, *others = training.split(",")
    try:
        special = {name: int(value) for name, value in (other.split("=") for other in others)}
        usual = int(default)
        if not all(0 < value < 1e7 for value in (usual, *special.values())):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"--training {training}: give a number of steps, and others by cell, as 3000,mnist5k/20=9000."
        ) from None
    cells = []
    for name, shots in dict.fromkeys(wanted):
        generators = arguments.generators or (3 if (name, shots) == ("mnist5k", 20) and not arguments.quick else 1)
        settings = Settings(
            training=60 if arguments.quick else special.get(f"{name}/{shots}", special.get(name, usual)),
            generators=tuple(range(generators)),
            classifiers=tuple(range(2 if arguments.quick else arguments.classifiers)),
            steps=60 if arguments.quick else arguments.steps,
            amount=arguments.amount,
        )
        cells.append(Cell(name, shots, settings))
    # Neighbours in this order run at once; two of one source would both fit its ceiling.
    return sorted(cells, key=lambda cell: (-cell.settings.training * len(cell.settings.generators), cell.shots))


def finished(cell: Cell, out: Path) -> bool:
    """Whether it lies there, with these settings and by this code."""
    try:
        found = json.loads(cell.file(out).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same = found["settings"] == json.loads(json.dumps(asdict(cell.settings)))
    return bool(same and found["code"] == code("training", "evaluation"))


def seconds_a_fit(cell: Cell) -> float:
    """Of a classifier, by a few steps of one."""
    from evaluation.classifier import train_classifier

    data = load(cell.source)
    images, labels = data.images("train", shape=data.native_shape())
    train_classifier(images, labels, len(data.class_names), seed=0, steps=4, augment="affine")
    began = time.perf_counter()
    train_classifier(images, labels, len(data.class_names), seed=0, steps=32, augment="affine")
    return (time.perf_counter() - began) / 32 * cell.settings.steps


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--cells", help=f"of {', '.join(SOURCES)}, or with shots, as mnist5k/20; most by default")
    parser.add_argument("--training", default="3000", help="steps of a generator; others by cell: 3000,mnist5k/20=9000")
    parser.add_argument("--generators", type=int, help="seeds; by default 3 for mnist5k/20 and 1 elsewhere")
    parser.add_argument("--classifiers", type=int, default=5, help="seeds")
    parser.add_argument("--steps", type=int, default=2000, help="of a classifier")
    parser.add_argument("--amount", type=float, default=1.0, help="of generated images: 1 fills the small classes up")
    parser.add_argument("--processes", type=int, default=2, help="cells at once, each on one thread")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page is written")
    parser.add_argument("--again", action="store_true", help="measure finished cells anew")
    parser.add_argument("--quick", action="store_true", help="seconds of everything: its figures mean nothing")
    parser.add_argument("--only-print", action="store_true", help="write the page from the saved cells")
    arguments = parser.parse_args()
    try:
        return run(arguments)
    except AugmintError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept.", file=sys.stderr)
        return 130


def run(arguments: argparse.Namespace) -> int:
    out = arguments.out
    if arguments.quick and (out, arguments.docs) == (OUT, ROOT / "docs"):
        # Its figures mean nothing, so they must not get into the real page.
        out, arguments.docs = OUT / "quick", OUT / "quick"
    if not arguments.only_print:
        cells = plan(arguments)
        left = [cell for cell in cells if arguments.again or not finished(cell, out)]
        if arguments.again:
            for cell in cells:
                for place in (out / "work").glob(f"{cell.source}-{cell.shots}-*"):
                    shutil.rmtree(place)
        print(f"{len(cells)} cells, {len(cells) - len(left)} of them finished already.", file=sys.stderr)
        if left:
            _estimate(left, arguments.processes)
            failed = _measure_all(left, out, arguments)
            if failed:
                print(f"error: {'; '.join(failed)}", file=sys.stderr)
                return 1
    if not write_page(out, arguments.docs):
        raise UsageError(f"There are no finished cells in {out / 'cells'}: run some first.")
    print((arguments.docs / "utility.md").read_text(encoding="utf-8"), end="")
    return 0


def _measure_all(cells: Sequence[Cell], out: Path, arguments: argparse.Namespace) -> list[str]:
    """Measures them all, writing the page after each; what could not be measured, in words."""
    failed = []
    # Spawned, because torch's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(measure, cell, out): cell for cell in cells}
        try:
            for future in as_completed(futures):
                try:
                    future.result()
                except AugmintError as error:
                    failed.append(f"{futures[future].name}: {error}")
                    print(f"error: {failed[-1]}", file=sys.stderr, flush=True)
                write_page(out, arguments.docs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _estimate(cells: Sequence[Cell], processes: int) -> None:
    fits: dict[str, float] = {}
    total = longest = 0.0
    for cell in cells:
        if cell.source not in fits:
            fits[cell.source] = seconds_a_fit(cell)
            total += 2 * len(cell.settings.classifiers) * fits[cell.source]
        generators = len(cell.settings.generators)
        own = generators * (cell.settings.training * _STEP_SECONDS + 20) + cell.fits() * fits[cell.source]
        total, longest = total + own, max(longest, own)
    wall = max(longest, total / max(1, processes))
    print(f"About {wall / 60:.0f} minutes, with {processes} at once on a core each.", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
