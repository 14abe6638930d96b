"""A limit on how many images a second one client may ask for: a token bucket per client, counted in images."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

from augmint.errors import UnavailableError

__all__ = ["RateLimit"]

# A client may save up a minute's worth; clients are forgotten, least recent first, beyond so many.
_WINDOW_S: Final = 60.0
_MOST_CLIENTS: Final = 10_000


class RateLimit:
    """Not thread-safe: for one event loop.

    Args:
        images_per_s: on average; 0 means no limit.
        largest: images of the largest request, which must be possible once the bucket is full.
    """

    def __init__(self, images_per_s: float, largest: int) -> None:
        self._rate = images_per_s
        self._full = max(images_per_s * _WINDOW_S, float(largest))
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # images left, as of when

    def take(self, client: str, images: int, now: float | None = None) -> None:
        """Count a request.

        Raises:
            UnavailableError: too many; code "service.rate", with the seconds until they would be allowed.
        """
        if not self._rate:
            return
        now = time.monotonic() if now is None else now
        left, since = self._clients.pop(client, (self._full, now))
        left = min(self._full, left + (now - since) * self._rate)
        allowed = left >= images
        self._clients[client] = (left - images if allowed else left, now)
        while len(self._clients) > _MOST_CLIENTS:
            self._clients.popitem(last=False)
        if not allowed:
            raise UnavailableError(
                f"this client may ask for {self._rate:g} images a second on average: wait, or ask for fewer.",
                code="service.rate",
                retry_after=(images - left) / self._rate,
            )

    def charge(self, client: str, images: int) -> None:
        """Count images that a request needed besides those it asked for; what is owed is paid before the next one."""
        if self._rate and client in self._clients:
            left, since = self._clients[client]
            self._clients[client] = (left - images, since)
