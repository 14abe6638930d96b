"""How a bundle among several is named: by its name, by name and version, or by its digest.

    digits              the newest of that name
    digits@latest       the same
    digits@3f0c2a71     that one: the first 8 or more hex digits of its digest
    3f0c…               its whole digest, 64 hex digits

A name holds no "@". Which one is the newest is not decided here.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["means"]

_BEGINNING: Final = re.compile(r"[0-9a-f]{8,64}")


def means(address: str, name: str, digest: str, *, latest: bool) -> bool:
    """Whether an address means the bundle of this name and digest, which is the newest of its name or not."""
    if address == digest:
        return True
    asked, at, version = address.partition("@")
    if asked != name:
        return False
    if not at or version == "latest":
        return latest
    return _BEGINNING.fullmatch(version) is not None and digest.startswith(version)
