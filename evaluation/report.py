"""An `Evaluation` as one page that needs nothing else (report.html), and as plain values for programs (report.json).

The page holds no script, asks for nothing over the network, and says so in a policy of its own; whatever comes from a
data set's names is escaped. This module arranges and words what was found; it measures nothing.
"""

from __future__ import annotations

import base64
import json
import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

from augmint.errors import DataError
from evaluation.api import Evaluation
from evaluation.fidelity import MEASURES, FidelityReport, FidelityRow, missing
from evaluation.pictures import pair, tiles
from evaluation.utility_report import Difference, UtilityReport, shown

__all__ = ["check_report", "report_files", "write_report"]

PAGE: Final = "report.html"
FIGURES: Final = "report.json"

_TEMPLATES: Final = Path(__file__).with_name("templates")
_SHEETS: Final = 24  # classes with pictures
_PER_SHEET: Final = 12
_COLUMNS: Final = 4
_ROWS: Final = 100  # classes in a table

_HEADLINES: Final = {
    "helps": ("It helps", "helps"),
    "makes no difference": ("It makes no difference", "same"),
    "do not use it": ("Do not use it", "hurts"),
}


def check_report(directory: Path) -> None:
    """Refuse a place that no report can be written to, before any work; makes nothing.

    Raises:
        DataError: it is a file, or cannot be made or written to.
    """
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory} is a file: give --report a folder.", code="data.unwritable")
    there = directory.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise DataError(
            f"{directory} cannot be written: {there} is no folder that you may write to.", code="data.unwritable"
        )


def write_report(evaluation: Evaluation, directory: Path) -> Path:
    """Write report.html and report.json into a folder, over those of an earlier evaluation; returns the page's path.

    Raises:
        DataError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in report_files(evaluation).items():
            temporary = directory / f".{name}.{secrets.token_hex(6)}"
            temporary.write_bytes(content)
            os.replace(temporary, directory / name)
    except OSError as error:
        raise _unwritable(directory, error) from None
    return directory / PAGE


def _unwritable(directory: Path, error: OSError) -> DataError:
    return DataError(
        f"{directory} cannot be written ({error.strerror or error}): choose another folder for --report.",
        code="data.unwritable",
    )


def report_files(evaluation: Evaluation, *, timings: bool = True) -> dict[str, bytes]:
    """The two files by name. Without `timings` they hold no clock: the same evaluation gives the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("report.html.j2").render(_view(evaluation, timings))
    figures = json.dumps(evaluation.to_json(timings=timings), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    # A file name with undecodable bytes has become a lone surrogate, which UTF-8 does not have.
    return {PAGE: page.encode("utf-8", "replace"), FIGURES: figures.encode("utf-8", "replace")}


def _view(evaluation: Evaluation, timings: bool) -> dict[str, Any]:
    e = evaluation
    headline, tone = _HEADLINES.get(e.utility.verdict, ("", "")) if e.utility else ("No verdict", "none")
    return {
        "name": e.source.name or e.source.words,
        "data": e.data_words,
        "headline": headline,
        "tone": tone,
        "sentence": e.sentence,
        "advice": e.advice,
        "command": "\n".join(e.command_lines),
        "methods": _methods(e),
        "classes": _classes(e),
        "caveats": e.caveats,
        "sheets": _sheets(e),
        "fidelity": _fidelity(e),
        "copying": _copying(e),
        "cas": _cas(e),
        "run": _run(e),
        "seconds": [(part, f"{value:,.1f}") for part, value in e.seconds.items()] if timings else [],
    }


# ------------------------------------------------------------------------------------------------- the verdict


def _methods(e: Evaluation) -> dict[str, Any] | None:
    """Every method, its recall, and its difference to the baseline as words and as a dot with whiskers."""
    report = e.utility
    if report is None:
        return None
    intervals = [row.against_baseline.interval for row in report.rows if row.against_baseline is not None]
    axis = _axis([interval for interval in intervals if interval is not None])
    rows = []
    for row in report.rows:
        amount = "" if row.amount is None else f"{row.amount:g}×: {row.synthetic:,} generated"
        if row.share is not None:
            amount += f", up to {row.share:.0%} of draws"
        baseline = row.method == report.baseline
        chosen = report.is_chosen(row)
        words, interval = _difference(row.against_baseline)
        rows.append(
            {
                "method": row.method,
                "amount": amount or row.note,
                "remark": _use(report) if chosen else "the baseline" if baseline else "",
                "chosen": chosen or baseline,
                "recall": _share(row.minority_recall),
                "spread": _between(row.minority_recall_interval, 1),
                "accuracy": _share(row.accuracy),
                "difference": "the baseline" if baseline else words,
                "interval": interval,
                "words": f"{row.method}: {words} points {interval}",
                **_place(row.against_baseline, axis),
            }
        )
    few = ", ".join(report.minority[:8]) + (f" and {len(report.minority) - 8} more" if len(report.minority) > 8 else "")
    return {
        "about": (
            f"The baseline, what generated images must beat, is {report.baseline}. {report.baseline_why} The "
            f"{_use(report)} is {report.chosen.method} at {report.chosen.amount:g}×. {report.chosen.why}"
        ),
        "caption": (
            f"Classifiers trained with each training set, {len(report.seeds)} seeds of {report.steps:,} steps, on "
            f"{sum(report.n_test.values()):,} real test images that nothing was trained or chosen on. Recall is in "
            f"percent, the mean over the small classes ({few}); differences are paired; intervals are at 95 %, over "
            "seeds and test images. 1× fills every class up to the largest; draws are those of a class that has "
            "generated images."
        ),
        "of": "small classes, %",
        "against": f"over {report.baseline}",
        "axis": axis,
        "rows": rows,
    }


def _use(report: UtilityReport) -> str:
    """What to call the chosen use of the generated images; none is recommended that does not help."""
    return "recommended use" if report.verdict == "helps" else "best use of them"


def _classes(e: Evaluation) -> dict[str, Any] | None:
    report = e.utility
    if report is None:
        return None
    names = _some_classes(e, _ROWS)
    effects = {name: report.per_class[name] for name in names}
    axis = _axis([d.interval for effect in effects.values() if (d := effect.difference) is not None and d.interval])
    rows = []
    for name, effect in effects.items():
        words, interval = _difference(effect.difference)
        said = effect.effect or effect.reason
        rows.append(
            {
                "name": name,
                "minority": name in report.minority,
                "train": f"{report.n_train[name]:,}",
                "test": f"{report.n_test[name]:,}",
                "difference": words,
                "interval": interval,
                "effect": said,
                "words": f"{name}: {words} points {interval}, {said}",
                **_place(effect.difference, axis),
            }
        )
    left = len(report.per_class) - len(rows)
    return {
        "caption": (
            f"Recall with {report.chosen.method} at {report.chosen.amount:g}× less recall with {report.baseline}, in "
            "points. The intervals hold for all classes together at 95 %, so they are wider than those above."
            + (f" {left} more classes are in report.json." if left else "")
        ),
        "axis": axis,
        "rows": rows,
    }


def _axis(intervals: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """From the lowest to the highest end, zero included, with ticks at round numbers of points."""
    low = 100 * min([0.0, *(low for low, _ in intervals)])
    high = 100 * max([0.0, *(high for _, high in intervals)])
    room = max(high - low, 1.0) * 0.06
    low, high = low - room, high + room
    step = next(
        step for power in range(-2, 4) for step in (10**power, 2 * 10**power, 5 * 10**power) if (high - low) / step <= 5
    )
    ticks = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def at(points: float) -> float:
        return round(100 * (points - low) / (high - low), 2)

    return {
        "low": low,
        "high": high,
        "zero": at(0.0),
        "ticks": [
            {
                "at": at(tick),
                "label": _signed(tick, 0 if step >= 1 else 1) if tick else "0",
                "anchor": "start" if at(tick) < 5 else "end" if at(tick) > 95 else "middle",
            }
            for tick in ticks
        ],
    }


def _place(difference: Difference | None, axis: dict[str, Any]) -> dict[str, Any]:
    """Where on the axis, in percent of its length, and in which tone."""
    if difference is None or difference.interval is None:
        return {"low": None, "high": None, "mid": None, "tone": "none"}
    low, mid, high = (
        round(100 * (100 * value - axis["low"]) / (axis["high"] - axis["low"]), 2)
        for value in (difference.interval[0], difference.value, difference.interval[1])
    )
    return {"low": low, "mid": mid, "high": high, "tone": {1: "helps", 0: "same", -1: "hurts"}[difference.sign]}


def _difference(difference: Difference | None) -> tuple[str, str]:
    """In points, and its interval in brackets."""
    if difference is None:
        return "–", ""
    if difference.interval is None:
        return _signed(100 * difference.value), ""
    low, high = (_signed(100 * end) for end in difference.interval)
    return _signed(100 * difference.value), f"({low} to {high})"


# ------------------------------------------------------------------------------------------------- pictures


def _sheets(e: Evaluation) -> dict[str, Any] | None:
    p = e.pictures
    note = "Real images of the train split beside the first generated ones: none were selected."
    if p.fake_labels is None:
        if not len(p.fake):
            return None
        row = {
            "name": "all",
            "counts": "",
            "real": _uri(tiles(p.real[: 4 * _PER_SHEET], columns=2 * _COLUMNS, synthetic=False)),
            "real_alt": f"{min(len(p.real), 4 * _PER_SHEET)} real images",
            "fake": _uri(tiles(p.fake, columns=2 * _COLUMNS, synthetic=True)),
            "fake_alt": f"{len(p.fake)} generated images",
        }
        return {"about": note, "rows": [row]}
    names = _some_classes(e, _SHEETS)
    train = e.data.counts("train")
    rows = []
    for name in names:
        c = e.data.class_names.index(name)
        real, fake = p.real[p.real_labels == c], p.fake[p.fake_labels == c]
        rows.append(
            {
                "name": name,
                "counts": f"{train[name]:,} real train images, {e.generated.get(name, 0):,} generated",
                "real": _uri(tiles(real, columns=_COLUMNS, synthetic=False)) if len(real) else "",
                "real_alt": f"{len(real)} real images of {name}",
                "fake": _uri(tiles(fake, columns=_COLUMNS, synthetic=True)) if len(fake) else "",
                "fake_alt": f"{len(fake)} generated images of {name}",
            }
        )
    left = len(e.data.class_names) - len(rows)
    return {"about": note + (f" {left} more classes are not shown." if left else ""), "rows": rows}


def _some_classes(e: Evaluation, most: int) -> list[str]:
    """All classes in order; of too many the small ones first."""
    names = list(e.data.class_names)
    if len(names) <= most:
        return names
    small = set(e.utility.minority) if e.utility else set()
    kept = sorted(names, key=lambda name: name not in small)[:most]
    return [name for name in names if name in set(kept)]


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


# ------------------------------------------------------------------------------------------------- the other measures


_TITLES: Final = {
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "kernel_distance": "Kernel distance",
    "frechet_distance": "Fréchet distance",
    "label_fidelity": "Label fidelity",
}


def _fidelity(e: Evaluation) -> dict[str, Any]:
    tables = []
    for report in e.fidelity:
        overall = report.overall
        rows = [_fidelity_row("all together", overall, whole=True)] if len(report.rows) > 1 else []
        if len(report.rows) > 1:
            mean = report.mean()
            cells = [
                {"value": _figure(mean[name]), "note": _between(report.mean_intervals.get(name))} for name in MEASURES
            ]
            rows.append({"name": "mean of classes", "whole": True, "cells": [{"value": "", "note": ""}, *cells]})
        of_classes = [_fidelity_row(row.name, row, whole=False) for row in report.rows[:_ROWS]]
        if not rows:
            rows, of_classes = of_classes, []
        notes = [f"Labels are judged by {report.judge}."] if report.judge else []
        if overall.frechet_bias is not None:
            notes.append(
                "With this many images, real ones in the place of the generated would be at a Fréchet distance of "
                f"about {_figure(overall.frechet_bias)}."
            )
        notes += _reasons(report)
        tables.append(
            {
                "title": f"In the features of {report.extractor}",
                "caption": (
                    f"{overall.n_fake:,} generated images against {overall.n_real:,} real test images, 95 % intervals "
                    "over images below each figure. Figures in other features cannot be compared with these."
                ),
                "columns": ["Class", "Images", *_TITLES.values()],
                "rows": rows,
                "classes": of_classes,
                "notes": notes,
            }
        )
    return {
        "about": (
            "How like real images the generated ones are, and how much of their variety they cover. Precision: share "
            "that lie among real ones. Recall and coverage: share of the real ones that lie among them. Distances: "
            "less is better. Whether the images help is another question, which the verdict answers."
        ),
        "tables": tables,
    }


def _fidelity_row(name: str, row: FidelityRow, *, whole: bool) -> dict[str, Any]:
    cells = [{"value": _figure(getattr(row, m)), "note": _between(row.intervals.get(m))} for m in MEASURES]
    return {"name": name, "whole": whole, "cells": [{"value": f"{row.n:,}", "note": ""}, *cells]}


def _reasons(report: FidelityReport) -> list[str]:
    """Why figures are missing, each reason once."""
    return [
        f"{_TITLES.get(what, what)} is missing for {shown(names)}: {why}."
        for (what, why), names in missing(report.rows).items()
    ]


def _copying(e: Evaluation) -> dict[str, Any] | None:
    report = e.copying
    if report is None:
        return None
    rows = [
        {
            "name": row.name,
            "n": f"{row.n_fakes:,}",
            "share": "–" if row.share is None else f"{row.share:.1%}",
            "spread": "" if row.interval is None else f"{_between(row.interval, 1)} %",
            "near": f"{row.near:,}",
            "exact": f"{row.exact:,}",
            "note": row.reason or "",
        }
        for row in report.rows[:_ROWS]
    ]
    pairs = []
    for found in e.pictures.pairs:
        kind = {"exact": "an exact copy", "near": "a near copy", "": ""}[found.copy]
        if not kind and found.relative is not None:
            kind = f"{found.relative:.2f} of the limit"
        name = found.label or "image"
        pairs.append(
            {
                "src": _uri(pair(found.fake, found.real)),
                "alt": f"A generated image of {name} and the train image nearest to it",
                "caption": f"{found.label}: {kind}" if found.label else kind,
            }
        )
    return {
        "about": report.conclusion,
        "caption": (
            f"Distances in the features of {report.extractor}. Nearer: share of the generated images that lie nearer "
            "to a train image than nearly all real images do that nobody trained on. Near copies look the same to the "
            "eye, exact ones have the same pixels."
        ),
        "rows": rows if len(rows) > 1 else [],
        "pairs": pairs,
    }


def _cas(e: Evaluation) -> dict[str, Any] | None:
    report = e.cas
    if report is None:
        return None
    rows = []
    for row in report.rows:
        gap = ""
        if row.difference is not None:
            gap = _signed(100 * row.difference)
            if row.difference_interval is not None:
                low, high = (_signed(100 * end) for end in row.difference_interval)
                gap += f" ({low} to {high})"
        rows.append(
            {
                "name": row.name,
                "n": f"{sum(row.n_train.values()):,}",
                "value": _share(row.accuracy),
                "spread": _between(row.interval, 1),
                "gap": gap or "–",
            }
        )
    return {
        "about": report.conclusion,
        "caption": (
            f"Accuracy in percent on {report.n_test:,} real test images, {len(report.seeds)} seeds of {report.steps:,} "
            "steps, all classes drawn alike often; 95 % intervals. Wrong labels and lost variety show here; nobody has "
            "to train so."
        ),
        "rows": rows,
    }


def _run(e: Evaluation) -> list[tuple[str, str]]:
    source = {"bundle": "bundle", "service": "service", "run": "run", "images": "images"}[e.source.kind]
    height, width, channels = e.shape
    counts = {split: sum(e.data.counts(split).values()) for split in ("train", "validation", "test")}
    made = sum(e.generated.values())
    rows = [
        ("Generated by", f"{source} {e.source.words}" + (f", family {e.source.family}" if e.source.family else "")),
        ("Digest", e.source.digest),
        ("Data", f"{e.data_words}: " + ", ".join(f"{n:,} {split}" for split, n in counts.items())),
        ("Fingerprint", e.data.fingerprint),
        ("Compared at", f"{height}×{width} pixels, {'colour' if channels == 3 else 'grey'}"),
        ("Generated", f"{made:,} images" + (f" of seed {e.seed}" if e.seed is not None else ", as they were")),
        ("Quality", e.quality if e.quality != "none" else ""),
    ]
    if e.utility is not None:
        rows.append(
            (
                "Classifiers",
                f"{e.utility.fits:,}: seeds {', '.join(map(str, e.utility.seeds))}, {e.utility.steps:,} steps each, "
                "small convolutional networks",
            )
        )
        rows += [("Left out", f"{method}: {reason}") for method, reason in e.utility.skipped.items()]
    rows += [(f"No {part}", reason) for part, reason in e.reasons.items()]
    ran = e.ran
    rows += [
        ("Extractors", ", ".join(ran["extractors"]) or "none"),
        ("Machine", f"{ran['cores']} core{'' if ran['cores'] == 1 else 's'}, {ran['device'].upper()}"),
        ("Versions", ", ".join(f"{name} {ran[name]}" for name in ("augmint", "python", "torch", "numpy"))),
    ]
    return [(key, value) for key, value in rows if value]


# ------------------------------------------------------------------------------------------------- figures in words


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _signed(value: float, digits: int = 1) -> str:
    text = f"{round(value, digits) + 0.0:+.{digits}f}"
    return text.replace("-", "−")


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _between(interval: tuple[float, float] | None, points: int | None = None) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f"{100 * low:.{points}f}–{100 * high:.{points}f}" if points else f"{_figure(low)}–{_figure(high)}"
