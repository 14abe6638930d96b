"""The families side by side: docs/families.md, with each one's promise.

    python benchmarks/families.py [--only dcgan,acgan] [--processes 2]
    python benchmarks/families.py --only-print

Each family is trained as the RECIPE of its `benchmarks/promises/<name>.py` says, in steps, so that it is the same
anywhere; exported; and asked for images through its bundle, as anybody would. They are measured against real test
images with the measures of `evaluation/`: label fidelity by a judge that was trained on held-out images, precision,
recall, density and coverage in a classifier's features, and, where images can be asked for by class, the classification
accuracy score (a classifier of generated images alone). Then the family's promise is put to the test.

Finished families lie in --out (bench-families-out/cells) and are not measured again, unless --again asks for it, or the
family's file, its promise or its recipe changed; trainings that were finished of an interrupted one are used, too.
docs/families.md, docs/families.json and docs/families/ are written anew from all that lies there, after each.
"""

from __future__ import annotations

import os

# One thread a process: networks this small gain nothing by two. Before numpy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import functools
import hashlib
import importlib
import io
import json
import multiprocessing
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from augmint.data import load_data  # noqa: E402
from augmint.errors import AugmintError, UsageError  # noqa: E402
from augmint.images import synthetic_sheet_png  # noqa: E402
from augmint.sheets import contact_sheet  # noqa: E402
from benchmarks.promises import Promise, Recipe, trained  # noqa: E402
from benchmarks.record import made, save  # noqa: E402
from evaluation.arrays import Labelled  # noqa: E402
from training import FAMILIES, Run, family  # noqa: E402

OUT: Final = ROOT / "bench-families-out"
PER_CLASS: Final = 350
"""Generated images of a class; as many as mnist5k has for training."""
UNCONDITIONAL: Final = 2000
"""Generated images where no class can be asked for."""
LARGEST: Final = 150_000
"""Bytes of a picture in docs/."""
_SEED: Final = 0xFA  # of the images; not that of sample sheets or scores
_CAS_SEEDS: Final = (0, 1, 2)
_CAS_STEPS: Final = 700
_JUDGE_STEPS: Final = 1200
_QUICK_STEPS: Final = 40

# ------------------------------------------------------------------------------------------------- one family


def promised() -> dict[str, Any]:
    """Family → the module of its promise, in the order of FAMILIES, for those that have one."""
    found = {}
    for kind in FAMILIES:
        if (Path(__file__).parent / "promises" / f"{kind.name}.py").is_file():
            found[kind.name] = importlib.import_module(f"benchmarks.promises.{kind.name}")
    return found


def measure(name: str, out: Path, *, quick: bool = False) -> dict[str, Any]:
    """Train, export, generate, measure: a family's figures, which are saved too, with its pictures. Says on stderr
    where it is."""
    from augmint.generator import Generator
    from export.api import ExportRequest, export_run

    module = promised()[name]
    recipe: Recipe = replace(module.RECIPE, steps=_QUICK_STEPS) if quick else module.RECIPE
    work = out / "work" / name
    _forget_what_changed(name, recipe, work)
    say(name, f"training {recipe.steps:,} steps")
    with _cpu_seconds(work / "training.json") as spent:
        run = trained(work / "run", name, recipe)
    data = load_data(recipe.data)
    status = run.status()

    say(name, "exporting and generating")
    shutil.rmtree(work / "bundle", ignore_errors=True)
    export_run(ExportRequest(run=run.path, out=work / "bundle", evaluate="none"))
    bundle = Generator(work / "bundle", device="cpu", threads=1)
    conditional = bool(bundle.class_names)
    samples = bundle.generate(
        dict.fromkeys(bundle.class_names, PER_CLASS) if conditional else UNCONDITIONAL, seed=_SEED
    )
    fakes = samples.images, samples.labels

    say(name, "measuring")
    steps = _QUICK_STEPS if quick else _JUDGE_STEPS
    figures = _measured(recipe.data, fakes, bundle.class_names, steps, out, quick=quick)
    sheet = contact_sheet(*fakes, bundle.class_names, per_class=16 if conditional else 160, columns=16, scale=2)
    pictures = out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    _save_bytes(pictures / f"{name}.png", sheet_png(sheet))
    _draw(run, pictures / f"{name}.svg")

    promise: dict[str, Any] | None = None
    if not quick:
        say(name, "its promise")
        kept: Promise = module.promise(run, work / "promise")
        _save_bytes(pictures / f"{name}-promise.png", figure_png(kept.picture))
        promise = {
            "sentence": kept.sentence,
            "kept": bool(kept.kept),
            "figures": {what: _plain(value) for what, value in kept.figures.items()},
        }

    options = run.config.options
    result = {
        "family": name,
        "key": key(name, recipe),
        "quick": quick,
        "recipe": asdict(recipe) | {"settings": dict(recipe.settings)},
        "conditional": conditional,
        "fingerprint": data.fingerprint,
        "images": len(samples.images),
        "training": {
            "steps": status.step,
            "batch": options.batch,
            "cpu_seconds": round(spent["seconds"], 1),
            "images_per_second": round(status.step * options.batch / max(spent["seconds"], 1e-9), 1),
            "best_step": status.best.step if status.best else status.step,
            "alarms": [alarm.message for alarm in status.alarms],
        },
        "parameters": _parameters(run),
        "figures": figures,
        "promise": promise,
        "made": made("torch"),
    }
    save(out / "cells" / f"{name}.json", json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    say(name, "done")
    return result


def _plain(value: Any) -> float | int | str:
    """Of numpy's numbers Python's, which JSON has."""
    found: float | int | str = value.item() if isinstance(value, np.generic) else value
    return found


def key(name: str, recipe: Recipe) -> str:
    """What decides a family's figures: its code, its promise, its recipe."""
    found = hashlib.sha256(json.dumps(asdict(recipe) | {"settings": dict(recipe.settings)}, sort_keys=True).encode())
    found.update(_code(name))
    found.update((ROOT / "benchmarks" / "promises" / f"{name}.py").read_bytes())
    return found.hexdigest()[:16]


def _code(name: str) -> bytes:
    """Of the family: its own file, and what families share."""
    families = ROOT / "training" / "families"
    return b"".join((families / f"{part}.py").read_bytes() for part in (name, "parts"))


def finished(name: str, out: Path) -> bool:
    """Whether it lies there, by this code and recipe."""
    try:
        found = json.loads((out / "cells" / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found["key"] == key(name, promised()[name].RECIPE) and not found["quick"])


def _forget_what_changed(name: str, recipe: Recipe, work: Path) -> None:
    """`trained` knows requests and not code: what another version of the family trained must not be taken for this
    one's."""
    code = hashlib.sha256(_code(name)).hexdigest()
    wanted = json.dumps([code, asdict(recipe) | {"settings": dict(recipe.settings)}], sort_keys=True)
    note = work / "code.json"
    if not note.is_file() or note.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(work, ignore_errors=True)
        save(note, wanted)


@contextmanager
def _cpu_seconds(file: Path) -> Any:
    """Adds the CPU time of the block to what `file` says an interrupted training took before; nothing where there was
    nothing left to train."""
    spent = {"seconds": 0.0}
    if file.is_file():
        spent = json.loads(file.read_text(encoding="utf-8"))
    began, before = time.process_time(), spent["seconds"]
    done = bool(spent.get("done"))
    try:
        yield spent
        spent["done"] = True
    finally:
        if not done:
            spent["seconds"] = before + time.process_time() - began
            save(file, json.dumps(spent))


def _parameters(run: Run) -> dict[str, int]:
    networks = run.config.make_family().build()
    parts = {"generator": networks.generator, "critic": networks.critic}
    return {part: sum(weight.numel() for weight in network.parameters()) for part, network in parts.items()}


def _draw(run: Run, out: Path) -> None:
    from training.describe import describe
    from training.drawing import write_picture

    config = run.config
    changed = {name: value for name, value in asdict(config.options).items()}
    classes = len(config.class_names) if len(config.class_names) > 1 else 0
    write_picture(describe(config.family, settings=changed, image_shape=config.channels_first, classes=classes), out)


# ---------------------------------------------------------------------------------------------------- figures


def _measured(
    data: str, fakes: Labelled, class_names: Sequence[str], steps: int, out: Path, *, quick: bool
) -> dict[str, Any]:
    from evaluation.cache import Cache
    from evaluation.cas import cas
    from evaluation.fidelity import measure as fidelity

    train, test, names = _reals(data)
    features, judge = _classifiers(data, steps)
    by_class = bool(class_names)
    # A bundle may know fewer classes than the data, in another order.
    order = np.array([names.index(name) for name in class_names], np.int64)
    labels = order[fakes[1]] if by_class else None
    report = fidelity(
        fakes[0],
        labels,
        test[0],
        test[1] if by_class else None,
        names,
        features=features,
        judge=judge if by_class else None,
    )
    found: dict[str, Any] = {
        "overall": _row(report.overall),
        "mean": report.mean() if by_class else None,
        "classes": [_row(row) for row in report.rows] if by_class else None,
        "judge": judge.name if judge is not None and by_class else None,
        "judge_accuracy": judge.accuracy if judge is not None and by_class else None,
        "features": report.extractor,
        "cas": None,
    }
    if by_class and labels is not None and len(class_names) > 1:
        scored = cas(
            (fakes[0], labels),
            train,
            test,
            names,
            seeds=_CAS_SEEDS[:1] if quick else _CAS_SEEDS,
            steps=_QUICK_STEPS if quick else _CAS_STEPS,
            cache=Cache(out / "cache"),
        )
        found["cas"] = {row.name: [row.accuracy, row.accuracy_sd] for row in scored.rows}
    return found


@functools.cache
def _reals(data: str) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    loaded = load_data(data)
    shape = loaded.native_shape()
    return loaded.images("train", shape=shape), loaded.images("test", shape=shape), loaded.class_names


@functools.cache
def _classifiers(data: str, steps: int) -> tuple[Any, Any]:
    """A classifier of the train split, for its features, and a judge of labels who has not seen that."""
    from evaluation.classifier import train_classifier
    from evaluation.label_fidelity import open_judge

    loaded = load_data(data)
    train, test, names = _reals(data)
    validation = loaded.images("validation", shape=loaded.native_shape())
    held_out = np.concatenate([validation[0], test[0]]), np.concatenate([validation[1], test[1]])
    features = train_classifier(*train, len(names), seed=101, steps=steps, augment="affine", sampler="balanced")
    return features, open_judge(train, held_out, len(names), steps=steps)


def _row(row: Any) -> dict[str, Any]:
    shown = ("name", "n", "precision", "recall", "density", "coverage", "kernel_distance", "label_fidelity")
    return {measure: getattr(row, measure) for measure in shown}


# --------------------------------------------------------------------------------------------------- pictures


def sheet_png(sheet: Image.Image) -> bytes:
    """Marked as synthetic; in grey of 16 levels where it is grey, and of no more than LARGEST bytes."""
    pixels: NDArray[np.uint8] = np.asarray(sheet.convert("RGB"))
    grey = bool((pixels.max(2).astype(int) - pixels.min(2) < 8).all())
    small = Image.fromarray(np.asarray(sheet.convert("L")) // 17 * 17) if grey else sheet.quantize(64).convert("RGB")
    while len(content := synthetic_sheet_png(small)) > LARGEST and small.height > 64:
        small = small.crop((0, 0, small.width, small.height * 3 // 4))
    return content


def figure_png(figure: Figure) -> bytes:
    """In 64 colours, and of no more than LARGEST bytes: as sharp as that allows."""
    for dpi in (110, 90, 72, 60, 48, 36):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi, facecolor="white")
        small = io.BytesIO()
        with Image.open(drawn) as picture:
            picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        if len(small.getvalue()) <= LARGEST:
            break
    return small.getvalue()


def _save_bytes(file: Path, content: bytes) -> None:
    from training.run import write_atomically

    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, content)


# --------------------------------------------------------------------------------------------------- the page


def page(results: Sequence[Mapping[str, Any]], features: Mapping[str, Any] | None = None) -> str:
    """docs/families.md, of the cells that there are and, where it was run, of benchmarks/features.py."""
    kinds = {kind.name: kind for kind in FAMILIES}
    results = sorted(results, key=lambda result: list(kinds).index(result["family"]))
    lines = [
        "# The families",
        "",
        "Written by `python benchmarks/families.py` (`make bench-families`); do not edit.",
        "",
        *(
            ["**This was --quick: its figures mean nothing.**", ""]
            if any(result["quick"] for result in results)
            else []
        ),
        "A family is a GAN of the literature, in one file of `training/families/`: its networks, losses and numbers,",
        "each with its source. All are trained, exported and asked by the same commands:",
        "`augmint train DATA --family NAME`. Their defaults are the paper's; `--preset` takes others, made for small",
        "images or a CPU. `augmint families` lists them, `augmint describe NAME` shows the networks layer by layer.",
        "",
        "| family | what it is | when to choose it | labels | paper |",
        "|---|---|---|---|---|",
    ]
    for kind in FAMILIES:
        default = " (the default)" if kind is FAMILIES[0] else ""
        labels = "by class" if kind.conditional else "learns them" if kind.supervised else "ignores them"
        where = f"[{kind.name}](#{kind.name})" if any(r["family"] == kind.name for r in results) else kind.name
        lines.append(f"| {where}{default} | {kind.summary} | {kind.when or '–'} | {labels} | {kind.paper} |")
    lines += [
        "",
        "## Side by side",
        "",
        "On mnist5k (5,000 real digits; 3,500 to train on). Each family by the recipe of its benchmark, on one thread,",
        "so times are CPU seconds and differ: read a figure together with its time. Every image was made by the",
        "exported bundle. Images a second are steps × batch over CPU time, checks and checkpoints included.",
        "",
        "- *Labels*: the share of images that a judge, trained on held-out real images, takes for the class asked for.",
        "- *Precision*, *recall*, *density*, *coverage*: against the test images, all classes at once, in the features",
        "  of a small classifier of the training images. What lacks a class loses recall and coverage.",
        "- *CAS*: accuracy on real test images of a classifier that has seen generated images alone, without and with",
        "  affine augmentation; the last line is the same classifier on real images.",
        "",
        "| family | preset | steps | CPU seconds | images/s | labels | precision | recall | density | coverage | CAS "
        "| CAS, affine | promise |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [_line(result) for result in results]
    real = next((result["figures"]["cas"] for result in results if result["figures"]["cas"]), None)
    if real is not None:
        cells = ["real images", *["–"] * 9, *(_pair(real[name]) for name in ("real", "real + affine")), "–"]
        lines.append(f"| {' | '.join(cells)} |")
    for result in results:
        lines += ["", *_section(result)]
    if features is not None:
        lines += ["", *_features(features)]
    lines += ["", "## How it was measured", ""]
    for machine in sorted({json.dumps(result["made"]["machine"], ensure_ascii=False) for result in results}):
        found = json.loads(machine)
        lines.append(f"- Machine: {found['cpu']}, {found['cores']} cores, {found['system']}; one thread a family.")
    for versions in sorted({_versions(result["made"]) for result in results}):
        lines.append(f"- Versions: {versions}.")
    days = sorted({result["made"]["date"] for result in results})
    lines += [
        f"- Date: {days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'}.",
        f"- {PER_CLASS} images of each class, or {UNCONDITIONAL:,} where no class can be asked for; one training each,",
        "  so another seed may do better or worse.",
        f"- CAS: classifiers of {_CAS_STEPS} steps, mean ± standard deviation over {len(_CAS_SEEDS)} seeds.",
        "- One family anew: `python benchmarks/families.py --again --only dcgan`.",
    ]
    return "\n".join(lines) + "\n"


def _line(result: Mapping[str, Any]) -> str:
    training, figures, promise = result["training"], result["figures"], result["promise"]
    overall, mean, scored = figures["overall"], figures["mean"], figures["cas"]
    cells = [
        f"[{result['family']}](#{result['family']})",
        result["recipe"]["preset"] or "paper",
        f"{training['steps']:,}",
        f"{training['cpu_seconds']:,.0f}",
        f"{training['images_per_second']:,.0f}",
        _share(mean["label_fidelity"] if mean else None),
        *(_share(overall[name]) for name in ("precision", "recall", "density", "coverage")),
        *(_pair(scored[name]) if scored else "–" for name in ("generated", "generated + affine")),
        "–" if promise is None else "kept" if promise["kept"] else "**not kept**",
    ]
    return f"| {' | '.join(cells)} |"


def _section(result: Mapping[str, Any]) -> list[str]:
    name = result["family"]
    kind, training, recipe = family(name), result["training"], result["recipe"]
    changed = "".join(f" --set {key}={value}" for key, value in recipe["settings"].items())
    preset = f" --preset {recipe['preset']}" if recipe["preset"] else ""
    parameters = result["parameters"]
    lines = [
        f"## {name}",
        "",
        f"{kind.summary[0].upper()}{kind.summary[1:]}. {kind.paper}.",
        "",
        *([f"*When to choose it*: {kind.when}.", ""] if kind.when else []),
    ]
    if result["promise"] is not None:
        verdict = "Kept" if result["promise"]["kept"] else "Not kept"
        lines += [
            f"**Promise: {verdict.lower()}.** {result['promise']['sentence']}",
            "",
            f"![What {name} promises](families/{name}-promise.png)",
            "",
        ]
    lines += [
        f"Generated images, not chosen ({'by class' if result['conditional'] else 'no class can be asked for'}):",
        "",
        f"![Images generated by {name}: synthetic](families/{name}.png)",
        "",
        f"`augmint train {recipe['data']} --family {name}{preset} --steps {recipe['steps']} --seed {recipe['seed']}"
        f"{changed}`: {training['cpu_seconds']:,.0f} CPU seconds; the checkpoint of step {training['best_step']:,} of "
        f"{training['steps']:,} was taken. Generator {parameters['generator']:,} parameters, critic "
        f"{parameters['critic']:,}: [the networks](families/{name}.svg).",
    ]
    if training["alarms"]:
        lines += ["", "Its health report says:", "", *(f"- {message}" for message in training["alarms"])]
    return lines


def _features(found: Mapping[str, Any]) -> list[str]:
    shots = found["shots"]
    header = " | ".join(f"{many} a class" for many in shots)
    lines = [
        "## Are a critic's features worth having?",
        "",
        *found["words"],
        "",
        f"| features | number | {header} |",
        f"|---|---:|{'---:|' * len(shots)}",
    ]
    for row in found["rows"]:
        cells = [f"{row['accuracy'][str(n)]:.3f} ± {row['deviation'][str(n)]:.3f}" for n in shots]
        lines.append(f"| {row['name']} | {row['width']:,} | {' | '.join(cells)} |")
    return [*lines, "", found["conclusion"], "", f"`python benchmarks/features.py`, {found['made']['date']}."]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _pair(found: Sequence[float]) -> str:
    return f"{found[0]:.3f} ± {found[1]:.3f}"


def _versions(made_: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in made_["versions"].items())


def write_page(out: Path, docs: Path) -> int:
    """The page, its JSON and its pictures from all saved cells; how many those were."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((out / "cells").glob("*.json"))]
    names = {kind.name for kind in FAMILIES}
    results = [result for result in results if result["family"] in names]
    if not results:
        return 0
    extra = out / "features.json"
    features = json.loads(extra.read_text(encoding="utf-8")) if extra.is_file() else None
    for result in results:
        for ending in (".png", ".svg", "-promise.png"):
            picture = out / "pictures" / f"{result['family']}{ending}"
            if picture.is_file():
                _save_bytes(docs / "families" / picture.name, picture.read_bytes())
    save(docs / "families.md", page(results, features))
    whole = {"families": results, "features": features}
    save(docs / "families.json", json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return len(results)


# -------------------------------------------------------------------------------------------------------- all


def say(name: str, what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {name}: {what}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--only", help="families, as dcgan,acgan; all that have a promise by default")
    parser.add_argument("--processes", type=int, default=2, help="families at once, each on one thread")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page is written")
    parser.add_argument("--again", action="store_true", help="train and measure finished families anew")
    parser.add_argument("--quick", action="store_true", help="seconds of everything, no promises: it means nothing")
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
    out, docs = arguments.out, arguments.docs
    if arguments.quick and (out, docs) == (OUT, ROOT / "docs"):
        # Its figures mean nothing, so they must not get into the real page.
        out = docs = OUT / "quick"
    failed: list[str] = []
    if not arguments.only_print:
        there = promised()
        wanted = list(dict.fromkeys(arguments.only.split(","))) if arguments.only else list(there)
        for name in wanted:
            if name not in there:
                raise UsageError(f"--only {name}: there is no such promise; name some of {', '.join(there)}.")
        left = [name for name in wanted if arguments.again or not finished(name, out)]
        if arguments.again:
            for name in left:
                shutil.rmtree(out / "work" / name, ignore_errors=True)
        print(f"{len(wanted)} families, {len(wanted) - len(left)} of them finished already.", file=sys.stderr)
        failed = _measure_all(left, out, docs, arguments)
    if not write_page(out, docs):
        raise UsageError(f"There are no finished families in {out / 'cells'}: run some first.")
    print((docs / "families.md").read_text(encoding="utf-8"), end="")
    for what in failed:
        print(f"error: {what}", file=sys.stderr)
    return 1 if failed else 0


def _measure_all(names: Sequence[str], out: Path, docs: Path, arguments: argparse.Namespace) -> list[str]:
    """Measures them, writing the page after each; what could not be measured, in words."""
    failed: list[str] = []
    if not names:
        return failed
    # Spawned, because torch's threads do not survive a fork.
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(measure, name, out, quick=arguments.quick): name for name in names}
        try:
            for future in as_completed(futures):
                try:
                    future.result()
                except Exception as error:  # hours of other families are not to be lost by one's mistake
                    failed.append(f"{futures[future]}: {type(error).__name__}: {error}")
                    traceback.print_exception(error)
                write_page(out, docs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
