"""docs/serving.md from what benchmarks/serving.py measured: shares first, then each promise, then all figures.

Knows only docs/serving.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.contenders import CONTENDERS, OURS, PACKAGES
from evaluation.tables import fixed_width

__all__ = ["page", "promises", "table"]

Found = Mapping[str, Any]
TITLES: Final = {name: contender.title for name, contender in CONTENDERS.items()}
CPU_SHARES: Final = {"tiny": (0.42, 0.85, 0.95), "64x64": (0.90, 0.93, 0.97)}
WALL_SHARES: Final = {"tiny": (0.35, 0.78, 0.84), "64x64": (0.90, 0.95, 0.97)}
"""Of the limit, as npy: small, medium, bulk."""
PNG_SHARES: Final = {"tiny": 0.70, "64x64": 0.90}
FAIR: Final = 5.0
START: Final = 3.0
_LOADS: Final = {
    "small": "32 × 1",
    "medium": "8 × 16",
    "bulk": "1 × 1,024",
    "bulk2": "2 × 1,024",
    "mixture": "mixture",
}


@dataclass(frozen=True)
class Promise:
    """`kept` is None where this run did not measure it."""

    what: str
    figure: str
    kept: bool | None

    @property
    def verdict(self) -> str:
        return "not measured" if self.kept is None else "kept" if self.kept else "NOT KEPT"


def promises(found: Found) -> list[Promise]:
    """What issue 5 asks of speed, each with this run's figure."""
    made = []
    for model in found["models"]:
        name = model["name"]
        for key, title, asked in (
            ("share_cpu", "by CPU time an image", CPU_SHARES),
            ("share_wall", "by images a second", WALL_SHARES),
        ):
            for least, loads in zip(asked[name], (("small",), ("medium",), ("bulk", "bulk2")), strict=True):
                shares = [ours[key] for load in loads if (ours := _ours(model, load, "npy"))]
                words = " and ".join(_LOADS[load] for load in loads)
                made.append(
                    Promise(
                        f"{name}, {words} as npy: at least {least:.2f} of the limit {title}",
                        " and ".join(f"{share:.2f}" for share in shares),
                        all(share >= least for share in shares) if len(shares) == len(loads) else None,
                    )
                )
        least = PNG_SHARES[name]
        npy, png = (_ours(model, "medium", form) for form in ("npy", "png"))
        share = png["images"] / npy["images"] if npy and png else 0.0
        made.append(
            Promise(
                f"{name}, 8 × 16: PNG at least {least:.2f} of npy's images a second",
                f"{share:.2f}" if share else "",
                share >= least if share else None,
            )
        )
        made += [
            Promise(
                f"{name}: p99 of one-image requests beside bulk at most {FAIR:.0f} × the idle one, "
                f"{one['callers']} at a time",
                f"{one['ratio']:.1f} × ({one['idle_p99']:.1f} -> {one['busy_p99']:.1f} ms)",
                one["ratio"] <= FAIR,
            )
            for one in model["fairness"]
        ]
    made += [_ahead(found, "images", "images a second"), _ahead(found, "cpu", "CPU time an image")]
    if start := found["start"]:
        made += [
            Promise(
                f"{name} is ready in under {START:.0f} × the time of an empty BentoML service",
                f"{start[key] / start['empty']:.2f} × ({start['empty']:.1f} -> {start[key]:.1f} s)",
                start[key] < START * start["empty"],
            )
            for key, name in (("service", "`bentoml serve`"), ("front", "`augmint serve`"))
        ]
    if workers := found["workers"]:
        made.append(
            Promise(
                "two workers' metrics add up",
                f"{workers['counted']:,} images counted of {workers['asked']:,} asked for",
                workers["counted"] == workers["asked"],
            )
        )
    return made


def _ours(model: Found, load: str, form: str) -> Found | None:
    for cell in model["cells"]:
        if (cell["load"], cell["form"]) == (load, form):
            ours: Found = cell["services"][OURS]
            return ours
    return None


def _ahead(found: Found, key: str, words: str) -> Promise:
    """How far ahead of its best peer we are in the worst cell, and in which cells behind."""
    ratios: list[tuple[float, str]] = []
    for model in found["models"]:
        for cell in model["cells"]:
            ours = cell["services"][OURS][key]
            for name, row in cell["services"].items():
                if name != OURS and "failed" not in row:
                    ratio = ours / row[key] if key == "images" else row[key] / ours
                    ratios.append((ratio, f"{model['name']}/{cell['load']}/{cell['form']} {TITLES[name]}"))
    behind = sorted(pair for pair in ratios if pair[0] <= 1)
    text = ", ".join(f"{ratio:.2f} × {where}" for ratio, where in behind or sorted(ratios)[:1])
    return Promise(
        f"ahead of every peer in every cell, by {words}",
        f"behind in {len(behind)} of {len(ratios)}: {text}" if behind else f"the closest: {text}" if text else "",
        not behind if ratios else None,
    )


# ------------------------------------------------------------------------------------------------- tables


def table(found: Found) -> str:
    """All of it for a terminal."""
    lines = []
    for model in found["models"]:
        lines += ["", f"{model['name']} ({_shape(model)}): {_limit(model)}", ""]
        lines += fixed_width([_TITLES, *_rows(model)], right=True)
    lines.append("")
    lines += [f"{promise.verdict:12}  {promise.what}: {promise.figure}" for promise in promises(found)]
    lines += [f"left out: {title}: {why}" for title, why in found["left_out"].items()]
    return "\n".join([*lines, _workers(found)])


_TITLES: Final = [
    *("requests", "form", "service", "of the limit by CPU", "by images/s", "images/s"),
    *("CPU µs/image", "p50 ms", "p99 ms", "peak MB"),
]


def _rows(model: Found) -> Iterator[list[str]]:
    for cell in model["cells"]:
        for name, row in cell["services"].items():
            head = [_LOADS[cell["load"]], cell["form"], TITLES[name]]
            if "failed" in row:
                yield [*head, "failed", *[""] * 6]
                continue
            shares = [f"{row['share_cpu']:.2f}", f"{row['share_wall']:.2f}"]
            figures = [f"{row['images']:,.0f}", f"{row['cpu']:,.1f}", f"{row['p50']:,.1f}", f"{row['p99']:,.1f}"]
            yield [*head, *shares, *figures, f"{row['memory']:,.0f}"]


def _shape(model: Found) -> str:
    return "×".join(map(str, model["shape"]))


def _limit(model: Found) -> str:
    images = [cell["limit"]["images"] for cell in model["cells"]]
    cpu = [cell["limit"]["cpu"] for cell in model["cells"]]
    return (
        f"the limit is {min(images):,.0f} to {max(images):,.0f} images/s at {min(cpu):,.1f} to {max(cpu):,.1f} µs of "
        f"CPU an image, in batches of {model['batch']}"
    )


def _workers(found: Found) -> str:
    if not found["workers"]:
        return ""
    several = ", ".join(
        f"{_LOADS[load]}: {rates['2'] / rates['1']:.2f} ({rates['1']:,.0f} -> {rates['2']:,.0f} images/s)"
        for load, rates in found["workers"]["images"].items()
    )
    return f"Two workers against one, images a second, {found['models'][0]['name']} as npy: {several}."


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    rule = ["---" if i < left else "---:" for i in range(len(titles))]
    return ["| " + " | ".join(cells) + " |" for cells in (titles, rule, *rows)]


def page(found: Found) -> str:
    """docs/serving.md."""
    made = found["made"]
    machine, versions = made["machine"], ", ".join(f"{name} {value}" for name, value in made["versions"].items())
    lines = [
        "# The service beside raw ONNX Runtime and its peers",
        "",
        "Written by `python benchmarks/serving.py --docs` (`make bench-serving`); do not edit.",
        "",
        f"{made['date']}, {machine['cpu']}, {machine['cores']} cores, of which the load takes its part; load average "
        f"at the end {found['load_average']:.1f}. {versions}.",
        f"Each figure is the median of {found['rounds']} rounds of about {found['seconds']:g} s, in which the limit "
        "and each service take turns, while the others are stopped.",
        "",
        "The limit is raw ONNX Runtime: as many free-running loops of `session.run`, of one thread each, as there are "
        "cores, at the best batch of a sweep; no latents, no HTTP, no encoding. CPU time is user and system time of "
        "all processes of a service, and the steadier figure on a machine that others use. Ours runs as it comes, with "
        "its access log, metrics and trace ids, but for a queue as long as the load (`AUGMINT_QUEUE_S=60`).",
        "",
        "## Share of the limit",
        "",
        "By CPU time an image / by images a second.",
        "",
    ]
    for model in found["models"]:
        lines += [f"**{model['name']}** ({_shape(model)}): {_limit(model)}.", "", *_shares(model), ""]
    lines += ["## What was promised", ""]
    rows = [[promise.what, promise.figure, promise.verdict] for promise in promises(found)]
    lines += _markdown(["promise", "measured", ""], rows, 3)
    if workers := _workers(found):
        lines += ["", workers, "", "Several devices were not measured: there is no GPU here."]
    lines += ["", "## All figures", ""]
    for model in found["models"]:
        lines += [f"**{model['name']}**", "", *_markdown(_TITLES, list(_rows(model)), 3), ""]
    lines += [*_notes(found), ""]
    return "\n".join(lines)


def _shares(model: Found) -> list[str]:
    names = list(dict.fromkeys(name for cell in model["cells"] for name in cell["services"]))
    rows = []
    for cell in model["cells"]:
        cells = [_LOADS[cell["load"]], cell["form"]]
        for name in names:
            row = cell["services"][name]
            cells.append("failed" if "failed" in row else f"{row['share_cpu']:.2f} / {row['share_wall']:.2f}")
        rows.append(cells)
    return _markdown(["requests", "form", *(TITLES[name] for name in names)], rows, 2)


def _notes(found: Found) -> list[str]:
    notes = [
        "## How it was measured",
        "",
        "- Generators have random weights: a small DCGAN of 28×28 grey and a larger one of 64×64 colour. Requests of "
        "1 and 16 images come from `wrk`; those of 1,024 and the mixture (as many images in requests of 1 as of 16 and "
        "of 1,024, 24 at a time) are a fixed list that is waited for. Latencies are of the smallest kind of request.",
        "- PNG is one file for one image; several come as a zip of PNGs, from Triton one after another. Ours carry "
        "their address and the mark of synthetic origin, and the zip a table; peers write bare PNGs with Pillow at its "
        "fastest level.",
        "- Peers: `benchmarks/peers/`, each with ONNX Runtime sessions of one thread in calls of at most 64 images. "
        "BentoML has a worker a core and answers bytes; LitServe a worker a core, its fast queue and batches of 32 "
        "requests; FastAPI a plain function in its pool of threads; Triton an instance a core behind its dynamic "
        "batcher, under numpy 1 as its package needs. Versions: "
        f"{', '.join(PACKAGES)}. Peak memory is the sum of the processes' largest resident sizes, "
        "so shared pages count several times.",
        "- Every service writes its access log, as it comes, to a file.",
    ]
    notes += [f"- Left out: {title}: {why}." for title, why in found["left_out"].items()]
    for model in found["models"]:
        for cell in model["cells"]:
            notes += [
                f"- Failed: {TITLES[name]} in {model['name']}/{cell['load']}/{cell['form']}: {row['failed']}"
                for name, row in cell["services"].items()
                if "failed" in row
            ]
    return notes
