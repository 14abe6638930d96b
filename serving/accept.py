"""Which format an Accept header asks for (RFC 9110 §12.5.1), q-values and wildcards included."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from augmint.errors import RequestError
from serving.codecs import FORMATS, ONE_IMAGE, Format

__all__ = ["choose"]

_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def choose(accept: str, images: int) -> Format:
    """The best format for an answer of so many images.

    Raises:
        RequestError: none can be made; code "request.not-acceptable".
    """
    for form in _ranked(accept):
        if images == 1 or form not in ONE_IMAGE:
            return form
    offered = ", ".join(media.name for media in FORMATS.values())
    raise RequestError(
        f"Accept allows none of the formats there are: {offered} (image/png and image/webp for exactly one image); "
        "`format` in the body goes before Accept.",
        code="request.not-acceptable",
    )


@lru_cache(maxsize=256)
def _ranked(accept: str) -> tuple[Format, ...]:
    """Acceptable formats, the most wanted first; among equals in the order of `FORMATS`."""
    ranges = [parsed for part in accept.split(",") if (parsed := _parse(part))]
    if not accept.strip():
        return tuple(FORMATS)

    def quality(form: Format) -> float:
        kind, _, subtype = FORMATS[form].name.partition("/")
        # The most specific range that matches decides, even if a vaguer one wants it more.
        for wanted in ((kind, subtype), (kind, "*"), ("*", "*")):
            found = [q for name, q in ranges if name == wanted]
            if found:
                return max(found)
        return 0.0

    acceptable = [form for form in FORMATS if quality(form) > 0]
    return tuple(sorted(acceptable, key=quality, reverse=True))


def _parse(part: str) -> tuple[tuple[str, str], float] | None:
    name, *parameters = (piece.strip() for piece in part.lower().split(";"))
    kind, slash, subtype = name.partition("/")
    if not (kind and slash and subtype):
        return None
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            value = value.strip()
            return ((kind, subtype), float(value)) if _QUALITY.fullmatch(value) else None
    return (kind, subtype), 1.0
