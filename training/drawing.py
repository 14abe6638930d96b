"""The picture of a family: its networks as blocks, and what flows between them while it trains.

A block is a layer: its height the height of the maps, its depth their width, its thickness the number of channels, each
on a logarithmic scale; a flat bar is a dense layer. From the latent and the label above through the generator to the
fake image, then from fakes and reals through the critic to its answers, and from there to the losses. Drawn with
matplotlib, as SVG (text stays text) or PNG. This module knows only descriptions (`training/describe.py`).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

from augmint.errors import UsageError
from training.describe import Description, LayerRow, NetworkTable
from training.run import write_atomically

__all__ = ["FORMATS", "draw", "write_picture"]

FORMATS: Final = (".svg", ".png")

_INK: Final = "#22272e"
_PALE: Final = "#6b7480"
_COLOURS: Final = {"generator": "#3b78c2", "critic": "#c2543b", "encoder": "#3f9465"}
_LABEL: Final = "#c98a12"
_IMAGE: Final = "#7c8794"
_STEP: Final = 1.5  # between the middles of two blocks, in units that are also inches at scale 1
_ROW: Final = 3.5  # between the floors of two networks
_LEFT: Final = 3.0  # where a network's first block stands
_SCALE: Final = 0.72  # inches a unit
_MIDDLE: Final = 0.75  # of a row, above its floor
_TOTAL: Final = "{:,} parameters"

Point = tuple[float, float]


def write_picture(description: Description, out: Path) -> None:
    """Writes `draw(description)` to a .svg or .png, whole or not at all. The same description, the same bytes.

    Raises UsageError for another ending.
    """
    check_format(out)
    form = out.suffix.lower()[1:]
    metadata: dict[str, Any] = {"Date": None} if form == "svg" else {"Software": None}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "augmint", "font.family": "DejaVu Sans"}):
        figure = draw(description)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, lambda file: figure.savefig(file, format=form, dpi=110, metadata=metadata))


def check_format(out: Path) -> None:
    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {out}: name a picture that ends in {' or '.join(FORMATS)}.", code="usage.out")


def draw(description: Description) -> Figure:
    """The picture; its size follows from the longest network."""
    tables = [table for part in ("generator", "critic", "encoder") if (table := description.network(part))]
    beside = {"generator": 2.3, "critic": 6.5 if description.losses else 3.0, "encoder": 5.0}
    width = max(_LEFT + _STEP * (len(_path(table)) - 1) + beside[table.part] for table in tables)
    height = _ROW * len(tables) + 1.2 + 0.32 * len(_notes(description, width))
    figure = Figure(figsize=(width * _SCALE, height * _SCALE), facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.axis("off")
    _Picture(axes, description, height).everything(width)
    return figure


class _Picture:
    def __init__(self, axes: Axes, description: Description, height: float) -> None:
        self.axes, self.description, self.height = axes, description, height

    def everything(self, width: float) -> None:
        description = self.description
        channels, height, image_width = description.image_shape
        self.text((0.35, self.height - 0.42), description.family, size=17, weight="bold", align="left")
        about = f"{description.paper}   ·   preset {description.preset}   ·   images {channels}×{height}×{image_width}"
        self.text((0.35, self.height - 0.86), about, size=8.5, colour=_PALE, align="left")

        tables = {table.part: table for table in description.networks}
        floors = {part: self.height - 1.2 - _ROW * (i + 1) + 1.35 for i, part in enumerate(tables)}
        ends = {part: self.network(table, floors[part]) for part, table in tables.items()}

        # The generator: latent and label in, fake image out.
        floor = floors["generator"]
        middle = floor + _MIDDLE
        conditional = description.classes > 0
        latent = self.pill((1.15, middle + (0.32 if conditional else 0)), f"latent z\n{description.latent_dim}", _INK)
        self.arrow(latent, (_LEFT - 0.55, middle + (0.12 if conditional else 0)))
        if conditional:
            label = self.pill((1.15, middle - 0.45), f"label y\n{description.classes} classes", _LABEL)
            self.arrow(label, (_LEFT - 0.55, middle - 0.12), _LABEL)
        fake = (ends["generator"] + 1.55, floor)
        self.image(fake, "fake image")
        self.arrow((ends["generator"] + 0.55, middle), (fake[0] - 0.5, middle))

        # The critic: reals and fakes in, answers out, losses.
        floor = floors["critic"]
        middle = floor + _MIDDLE
        real = (1.15, floor)
        self.image(real, "real image")
        self.arrow((real[0] + 0.75, middle - 0.1), (_LEFT - 0.55, middle - 0.1))
        gap = floors["generator"] - 0.98
        corner = [
            (fake[0], floors["generator"] - 0.52),
            (fake[0], gap),
            (_LEFT - 1.0, gap),
            (_LEFT - 1.0, middle + 0.15),
        ]
        self.elbow([*corner, (_LEFT - 0.55, middle + 0.15)], _COLOURS["generator"])
        self.text((_LEFT - 0.9, gap + 0.13), "fakes", size=7.5, colour=_COLOURS["generator"], align="left")
        if any(row.reads != "input" for row in tables["critic"].layers):
            label = self.pill((1.15, floor - 0.8), "label y", _LABEL)
            self.arrow(label, (_LEFT - 0.5, middle - 0.4), _LABEL)
        answers = ["realism"]
        if "class logits" in tables["critic"].gives:
            answers.append(f"class, {description.critic_classes} logits")
        x = ends["critic"] + 1.75
        for i, answer in enumerate(answers):
            place = (x, middle + 0.3 * (len(answers) - 1) - 0.6 * i)
            self.pill(place, answer, _COLOURS["critic"])
            self.arrow((ends["critic"] + 0.55, middle), (x - 0.78, place[1]), _COLOURS["critic"])
        self.losses((x + 1.15, middle), width)

        if "encoder" in tables:
            floor = floors["encoder"]
            middle = floor + _MIDDLE
            self.image((1.15, floor), "real image")
            self.arrow((1.9, middle - 0.1), (_LEFT - 0.55, middle - 0.1))
            place = (ends["encoder"] + 1.75, middle)
            self.pill(place, "mean, spread\nof z", _COLOURS["encoder"])
            self.arrow((ends["encoder"] + 0.55, middle), (place[0] - 0.78, middle), _COLOURS["encoder"])
            self.text(
                (place[0] + 0.9, middle),
                "drawn, through the generator,\nit must rebuild the real image;\nin training alone",
                size=7.5,
                colour=_PALE,
                align="left",
            )

        for i, line in enumerate(_notes(description, width)):
            self.text((0.35, 0.32 * (len(_notes(description, width)) - i) - 0.08), line, size=8, align="left")

    # -- parts ---------------------------------------------------------------------------------------------------

    def network(self, table: NetworkTable, floor: float) -> float:
        """Draws the blocks from left to right; where the last stands."""
        colour = _COLOURS[table.part]
        path = _path(table)
        others = {row.name for row in path}
        for i, row in enumerate(path):
            x = _LEFT + _STEP * i
            self.block((x, floor), row, _LABEL if row.reads == "label" else colour)
            # Beside each other, and not one after the other, stand heads of one trunk and what the label goes through.
            if i and row.reads != "label" and row.follows not in others - {path[i - 1].name}:
                self.arrow((x - _STEP + 0.46, floor + _MIDDLE), (x - 0.46, floor + _MIDDLE), _PALE, size=7)
        rest = [row for row in table.layers if row not in path]
        title = f"{table.part}   {_TOTAL.format(table.parameters)}"
        if rest:
            names = ", ".join(dict.fromkeys(row.what for row in rest))
            title += f"   ({len(rest)} more: {names}; {_short(sum(row.parameters for row in rest))})"
        self.text((_LEFT - 0.45, floor + 2.0), title, size=9, weight="bold", colour=colour, align="left")
        return _LEFT + _STEP * (len(path) - 1)

    def block(self, foot: Point, row: LayerRow, colour: str) -> None:
        self.cuboid(foot, row.shape, colour)
        x, floor = foot
        lines = [("×".join(map(str, row.shape)), 7.5, _INK), (_two_lines(row.what), 7, _INK)]
        lines += [(textwrap.fill(", ".join(row.then), 16), 6, _PALE), (_short(row.parameters), 6.5, _PALE)]
        y = floor - 0.13
        for words, size, ink in lines:
            if words:
                self.text((x, y), words, size=size, colour=ink, vertical="top")
                y -= (words.count("\n") + 1) * size * 0.0225

    def cuboid(self, foot: Point, shape: Sequence[int], colour: str) -> None:
        """Above `foot`, in the middle of what a row has room for."""
        x, y = foot
        if len(shape) == 3:
            channels, height, width = shape
            thick, high, deep = (
                0.07 + 0.055 * math.log2(channels),
                0.22 * math.log2(height + 1),
                0.13 * math.log2(width),
            )
        else:
            thick, high, deep = 0.1, min(1.6, 0.16 * math.log2(max(shape, default=1) + 1) + 0.08), 0.06
        lean = 0.55 * deep
        left, front = x - (thick + deep) / 2, y + _MIDDLE - (high + lean) / 2
        corners = [(left, front), (left + thick, front), (left + thick, front + high), (left, front + high)]
        back = [(cx + deep, cy + lean) for cx, cy in corners]
        faces = (
            ((corners[1], back[1], back[2], corners[2]), 0.62),
            ((corners[3], corners[2], back[2], back[3]), 0.30),
            (corners, 0.85),
        )
        for points, alpha in faces:
            self.axes.add_patch(Polygon(points, facecolor="white", edgecolor="none"))
            self.axes.add_patch(Polygon(points, facecolor=colour, edgecolor="white", linewidth=0.5, alpha=alpha))

    def image(self, foot: Point, name: str) -> None:
        self.cuboid(foot, self.description.image_shape, _IMAGE)
        self.text((foot[0], foot[1] - 0.13), name, size=8, vertical="top")
        shape = "×".join(map(str, self.description.image_shape))
        self.text((foot[0], foot[1] - 0.34), shape, size=7, colour=_PALE, vertical="top")

    def losses(self, place: Point, width: float) -> None:
        x, y = place
        lines = []
        for part, words in self.description.losses.items():
            lines += [
                (f"{part}'s loss", _COLOURS[part], True),
                *((line, _INK, False) for line in textwrap.wrap(words, 42)),
            ]
        if not lines:
            return
        top = y + 0.1 * len(lines)
        self.axes.add_patch(
            FancyBboxPatch(
                (x - 0.1, top - 0.2 * len(lines) - 0.08),
                3.4,
                0.2 * len(lines) + 0.16,
                boxstyle="round,pad=0.04,rounding_size=0.08",
                facecolor="#f6f7f9",
                edgecolor="#d5d9de",
                linewidth=0.8,
            )
        )
        for i, (words, colour, bold) in enumerate(lines):
            weight = "bold" if bold else "normal"
            self.text((x, top - 0.2 * i - 0.1), words, size=7, colour=colour, weight=weight, align="left")

    def pill(self, place: Point, words: str, colour: str) -> Point:
        """A rounded box with words in it; the middle of its right side."""
        x, y = place
        high = 0.17 * (words.count("\n") + 1) + 0.1
        self.axes.add_patch(
            FancyBboxPatch(
                (x - 0.68, y - high / 2),
                1.36,
                high,
                boxstyle="round,pad=0.03,rounding_size=0.12",
                facecolor="white",
                edgecolor=colour,
                linewidth=1.1,
            )
        )
        self.text((x, y), words, size=7.5, colour=colour)
        return x + 0.74, y

    def arrow(self, start: Point, end: Point, colour: str = _PALE, size: float = 9) -> None:
        self.axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=size, color=colour, linewidth=1.0, shrinkA=0, shrinkB=0
            )
        )

    def elbow(self, points: Sequence[Point], colour: str) -> None:
        xs, ys = zip(*points[:-1], strict=True)
        self.axes.plot(xs, ys, color=colour, linewidth=1.0, solid_joinstyle="round")
        self.arrow(points[-2], points[-1], colour)

    def text(
        self,
        place: Point,
        words: str,
        *,
        size: float,
        colour: str = _INK,
        weight: str = "normal",
        align: str = "center",
        vertical: str = "center",
    ) -> None:
        self.axes.text(
            *place, words, fontsize=size, color=colour, weight=weight, ha=align, va=vertical, linespacing=1.15
        )


def _path(table: NetworkTable) -> list[LayerRow]:
    """The layers that get a block: not embeddings, what is used in training alone, nor dense layers between maps, which
    only scale and shift them."""
    rows = [row for row in table.layers if row.shape and row.what != "embedding"]
    maps = [i for i, row in enumerate(rows) if len(row.shape) == 3]
    if not maps:
        return rows
    return [row for i, row in enumerate(rows) if len(row.shape) == 3 or not maps[0] < i < maps[-1]]


def _notes(description: Description, width: float) -> list[str]:
    optimisers = "   ·   ".join(f"{part}: {words}" for part, words in description.optimisers.items())
    changed = [
        f"{option.name} {option.value} (paper: {option.default})" for option in description.options if option.changed
    ]
    notes = [
        "   ".join(f"{i}. {step}" for i, step in enumerate(description.flow, start=1)),
        f"Optimisers: {optimisers}",
    ]
    notes += [f"Not the paper's: {', '.join(changed)}"] if changed else []
    return [line for note in notes for line in textwrap.wrap(note, int(width * 10.5))]


def _two_lines(words: str) -> str:
    return words.replace("transposed conv", "transposed\nconv")


def _short(number: int) -> str:
    """12,416 -> "12.4k"."""
    if number < 1000:
        return f"{number}"
    return f"{number / 1e3:.1f}k" if number < 1e6 else f"{number / 1e6:.2f}M"
