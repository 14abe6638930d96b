"""One line a request on stderr, written in blocks.

`logging` takes as long for a line as the rest of the service for a small answer, most of it for features that a line of
this kind does not use. Lines are gathered and written together, at the latest half a second after they were made.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final, TextIO

__all__ = ["AccessLog"]

_EVERY_S: Final = 0.5
_AT_MOST: Final = 256


class AccessLog:
    """For one event loop; `flush` at its end.

    A line is: time, "access", client (a token's name, or an address), method, path, status, images, bytes,
    milliseconds, request id, traceparent.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._second = 0
        self._stamp = ""

    def write(
        self,
        client: str,
        method: str,
        raw_path: bytes,
        status: int,
        images: int,
        size: int,
        seconds: float,
        request_id: str,
        traceparent: str,
    ) -> None:
        """Add a line. `raw_path` is ASCII with all else percent-encoded: nobody can forge a line with it."""
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        path = raw_path[:200].decode("ascii", "replace")
        self._lines.append(
            f"{self._stamp}.{int(now % 1 * 1000):03}Z access {client} {method} {path} {status} images={images} "
            f"bytes={size} ms={seconds * 1000:.1f} id={request_id} trace={traceparent}\n"
        )
        if len(self._lines) >= _AT_MOST:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_EVERY_S, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            stream = self._stream or sys.stderr
            stream.write("".join(self._lines))
            stream.flush()
            self._lines.clear()
