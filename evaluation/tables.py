"""Tables in fixed width, for terminals and logs. Knows nothing of what stands in them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["fixed_width"]


def fixed_width(lines: Sequence[Sequence[str]], *, right: bool) -> list[str]:
    """The lines, titles included, with cells in columns: to the left, or from the second on to the `right`.

    >>> fixed_width([["class", "n"], ["a", "1,000"]], right=True)
    ['class      n', 'a      1,000']
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    found = []
    for line in lines:
        cells = [
            cell.rjust(width) if right and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        found.append("  ".join(cells).rstrip())
    return found
