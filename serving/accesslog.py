"""One line a request on stderr, written in blocks.

`logging` takes as long for a line as the rest of the service for a small answer, most of it for features that a line of
this kind does not use. Lines are gathered and written together, at the latest half a second after they were made.
"""

from __future__ import annotations

import asyncio
import sys
import time
from json.encoder import encode_basestring_ascii as quoted
from typing import Final, TextIO

__all__ = ["AccessLog"]

_EVERY_S: Final = 0.5
_AT_MOST: Final = 256


class AccessLog:
    """For one event loop; `flush` at its end.

    A line is: time, "access", client (a token's name, or an address), method, path, status, images, bytes,
    milliseconds, request id, traceparent; or the same and the route as a JSON object.

    Args:
        json: one JSON object a line.
        stream: instead of stderr.
    """

    def __init__(self, *, json: bool = False, stream: TextIO | None = None) -> None:
        self._json = json
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
        route: str,
        status: int,
        images: int,
        size: int,
        seconds: float,
        request_id: str,
        traceparent: str,
    ) -> None:
        """Add a line. Nobody can forge one: `raw_path` is ASCII with all else percent-encoded, and of everything else
        that a client chooses only what needs no escaping comes this far."""
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        stamp = f"{self._stamp}.{int(now % 1 * 1000):03}Z"
        path = raw_path[:200].decode("ascii", "replace")
        if self._json:
            trace = "" if traceparent == "-" else f', "traceparent": "{traceparent}", "trace_id": "{traceparent[3:35]}"'
            line = (
                f'{{"time": "{stamp}", "level": "INFO", "logger": "augmint.access", "message": "access", '
                f'"client": "{client}", "method": "{method}", "path": {quoted(path)}, "route": "{route}", '
                f'"status": {status}, "images": {images}, "bytes": {size}, "ms": {seconds * 1000:.1f}, '
                f'"request_id": "{request_id}"{trace}}}\n'
            )
        else:
            line = (
                f"{stamp} access {client} {method} {path} {status} images={images} bytes={size} "
                f"ms={seconds * 1000:.1f} id={request_id} trace={traceparent}\n"
            )
        self._lines.append(line)
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
