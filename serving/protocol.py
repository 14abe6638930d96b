"""uvicorn's HTTP protocol with limits on what the API does not see: a request's head, and whether an answer is read.

httptools takes heads of any length and waits for them for ever; the API sees a request only once its head is whole.
This cuts off a connection that sends more than `MOST_HEAD` bytes which are not a body, or that owes the rest of a head
(or of a body, after its answer) for longer than `HEAD_SECONDS`. An answer is handed to the transport, which holds it
for as long as its client takes none of it: that is `READ_SECONDS` at most. Bodies are the API's: `max_body`, and the
deadline.
Knows nothing of addresses or images.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any, Final

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if sys.platform == "linux":
    import fcntl
    import termios

__all__ = ["HEAD_SECONDS", "MOST_HEAD", "READ_SECONDS", "ConnectionLimits", "limit_connections"]

# Above what the API itself takes of an address and headers, so that it can say what was too long.
MOST_HEAD: Final = 65_536
HEAD_SECONDS = 30.0
READ_SECONDS = 60.0
# A body's framing may be so many times its length: a chunk of one byte takes six.
_FRAMING: Final = 8
_TOO_LONG: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class ConnectionLimits(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True  # from a request's end (or the connection's begin) to the next head's end
        self._not_body = 0  # bytes since then that are no body
        self._patience: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_watching()
        self._watch(self._untaken())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def data_received(self, data: bytes) -> None:
        self._not_body += len(data)
        super().data_received(data)
        if not self._not_body or self.transport.is_closing():
            return
        if self._not_body > MOST_HEAD:
            if not self._answering():
                self.transport.write(_TOO_LONG)
            self.transport.close()
        elif self._in_head:
            self._wait()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers would go on adding to a request that is answered already
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._not_body = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._not_body = max(0, self._not_body - _FRAMING * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._not_body = 0
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head:
            self._wait()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_SECONDS, self._lose_patience)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._patience = None
        if self._answering():  # what is owed is the next request's
            self._wait()
        else:
            self.transport.close()

    def _watch(self, unread: int) -> None:
        self._unread = self.loop.call_later(READ_SECONDS, self._look_again, unread)

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _look_again(self, unread: int) -> None:
        left = self._untaken()
        if left < unread:
            self._watch(left)
        else:
            self.transport.abort()  # `close` would wait until all of it was read

    def _untaken(self) -> int:
        """Bytes that the client has not taken: the transport's, and the kernel's, which may be megabytes."""
        held: int = self.transport.get_write_buffer_size()
        if sys.platform == "linux":
            found = bytearray(4)
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, found)
            held += int.from_bytes(found, sys.byteorder)
        return held


def limit_connections(read_seconds: float) -> None:
    """Have uvicorn, which BentoML starts, use it: to be called before uvicorn's configuration is loaded.

    Args:
        read_seconds: `READ_SECONDS`.
    """
    global READ_SECONDS
    READ_SECONDS = read_seconds
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{ConnectionLimits.__name__}"
