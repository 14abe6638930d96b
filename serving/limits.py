"""Limits on how many images one client may ask for: token buckets, counted in images."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

from augmint.errors import UnavailableError

__all__ = ["Quota", "RateLimit"]

_DAY_S: Final = 86_400.0
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
        """Count images that a request needed besides those it asked for, below 0 those that it did not get after all;
        what is owed is paid before the next one."""
        if self._rate and client in self._clients:
            left, since = self._clients[client]
            self._clients[client] = (left - images, since)


class Quota:
    """Images a day for each token: a bucket that holds a day's worth and fills up over a day. It is kept in memory, in
    each worker its share, so a restart fills it again. For one event loop.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._callers: dict[str, tuple[float, float]] = {}  # images left, as of when

    def take(self, caller: str, per_day: int | None, images: int, now: float | None = None) -> None:
        """Count a request.

        Raises:
            UnavailableError: it would exceed what is left; code "service.quota", with the seconds until it would not.
        """
        if per_day is None:
            return
        now = time.monotonic() if now is None else now
        full = per_day / self._workers
        left, since = self._callers.get(caller, (full, now))
        left = min(full, left + (now - since) * full / _DAY_S)
        allowed = left >= images
        self._callers[caller] = (left - images if allowed else left, now)
        if not allowed:
            raise UnavailableError(
                f"this token may have {per_day} images a day, and fewer than {images} are left of them: wait, or ask "
                "for fewer.",
                code="service.quota",
                retry_after=(images - left) * _DAY_S / full,
            )

    def charge(self, caller: str, images: int) -> None:
        """As `RateLimit.charge`."""
        if caller in self._callers:
            left, since = self._callers[caller]
            self._callers[caller] = (left - images, since)
