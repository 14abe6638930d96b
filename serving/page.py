"""The page at /: one self-contained HTML file, and a policy that lets nothing else in.

Only `page.html`'s own style and script may run, named by their hashes, and only this service may be asked. A bundle's
report is somebody else's page: it may have pictures and a style of its own, and nothing may run in it at all.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

__all__ = ["HTML", "POLICY", "REPORT_POLICY"]

HTML: Final = Path(__file__).with_name("page.html").read_bytes()


def _hash_of(tag: str) -> str:
    found = re.search(rb"<%s>(.*?)</%s>" % (tag.encode(), tag.encode()), HTML, re.DOTALL)
    assert found is not None
    return "'sha256-" + base64.b64encode(hashlib.sha256(found.group(1)).digest()).decode() + "'"


POLICY: Final = (
    f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
).encode()

REPORT_POLICY: Final = (
    b"default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'; sandbox"
)
