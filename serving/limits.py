"""Limits on how many images one client may ask for: token buckets, counted in images.

Workers of one service share them through a file, as they share their metrics. Knows nothing of HTTP or of images.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final, Protocol

from augmint.errors import UnavailableError

__all__ = ["Quota", "RateLimit", "shared_file"]

_DAY_S: Final = 86_400.0
# A client may save up a minute's worth; clients are forgotten, least recent first, beyond so many.
_WINDOW_S: Final = 60.0
_MOST_CLIENTS: Final = 10_000


def shared_file(workers: int) -> Path | None:
    """Where the workers of this service keep their limits together; None where there is one worker, or no such place.

    The place is BentoML's for their metrics, which it empties at each start.
    """
    place = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(place) / "augmint-limits.sqlite" if workers > 1 and place else None


class _Buckets(Protocol):
    """What each client has left, by its name."""

    def take(self, name: str, images: int, full: float, per_s: float, now: float) -> float:
        """Take them out of the bucket, which holds `full` and gets `per_s` each second; 0, or what is left in it if
        that is fewer than `images`, which then stay there, less `images`: below 0."""

    def charge(self, name: str, images: int) -> None:
        """Take them out of a bucket that there is, whatever is in it."""

    def close(self) -> None: ...


def _after(left: float, since: float, images: int, full: float, per_s: float, now: float) -> tuple[float, float]:
    """What is left after taking these out, and what is missing of them, below 0; then none are taken."""
    left = min(full, left + max(now - since, 0.0) * per_s)
    return (left - images, 0.0) if left >= images else (left, left - images)


class _Memory:
    """For one event loop."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # images left, as of when

    def take(self, name: str, images: int, full: float, per_s: float, now: float) -> float:
        left, since = self._clients.pop(name, (full, now))
        left, missing = _after(left, since, images, full, per_s, now)
        self._clients[name] = left, now
        while len(self._clients) > _MOST_CLIENTS:
            self._clients.popitem(last=False)
        return missing

    def charge(self, name: str, images: int) -> None:
        if name in self._clients:
            left, since = self._clients[name]
            self._clients[name] = (left - images, since)

    def close(self) -> None: ...


class _File:
    """For several processes of one machine, whose `time.monotonic()` is one. About 80 µs a request."""

    def __init__(self, path: Path, table: str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        # It lives as long as the service: what a crash of the machine would do to it does not matter.
        self._database.execute("PRAGMA journal_mode = WAL").close()
        self._database.execute("PRAGMA synchronous = OFF").close()
        self._database.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (name TEXT PRIMARY KEY, left REAL, since REAL) WITHOUT ROWID"
        )
        self._table = table
        self._taken = 0

    def take(self, name: str, images: int, full: float, per_s: float, now: float) -> float:
        run, table = self._database.execute, self._table
        run("BEGIN IMMEDIATE")
        try:
            row = run(f"SELECT left, since FROM {table} WHERE name = ?", (name,)).fetchone()
            left, since = row or (full, now)
            left, missing = _after(left, since, images, full, per_s, now)
            run(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", (name, left, now))
            self._taken += 1
            if self._taken % 1000 == 0:
                kept = f"SELECT name FROM {table} ORDER BY since DESC LIMIT {_MOST_CLIENTS}"
                run(f"DELETE FROM {table} WHERE name NOT IN ({kept})")
        finally:
            run("COMMIT")
        return missing

    def charge(self, name: str, images: int) -> None:
        self._database.execute(f"UPDATE {self._table} SET left = left - ? WHERE name = ?", (images, name))

    def close(self) -> None:
        self._database.close()


class RateLimit:
    """Images a second. Not thread-safe: for one event loop.

    Args:
        images_per_s: on average; 0 means no limit.
        largest: images of the largest request, which must be possible once the bucket is full.
        file: shared with other processes, whose images count as well; None: this one's alone.
    """

    def __init__(self, images_per_s: float, largest: int, file: Path | None = None) -> None:
        self._rate = images_per_s
        self._full = max(images_per_s * _WINDOW_S, float(largest))
        self._buckets: _Buckets = _File(file, "rate") if file and images_per_s else _Memory()

    def take(self, client: str, images: int, now: float | None = None) -> None:
        """Count a request.

        Raises:
            UnavailableError: too many; code "service.rate", with the seconds until they would be allowed.
        """
        if not self._rate:
            return
        now = time.monotonic() if now is None else now
        missing = self._buckets.take(client, images, self._full, self._rate, now)
        if missing:
            raise UnavailableError(
                f"this client may ask for {self._rate:g} images a second on average: wait, or ask for fewer.",
                code="service.rate",
                retry_after=-missing / self._rate,
            )

    def charge(self, client: str, images: int) -> None:
        """Count images that a request needed besides those it asked for, below 0 those that it did not get after all;
        what is owed is paid before the next one."""
        if self._rate:
            self._buckets.charge(client, images)

    def close(self) -> None:
        self._buckets.close()


class Quota:
    """Images a day for each token: a bucket that holds a day's worth and fills up over a day. A restart fills it again.
    For one event loop.

    Args:
        workers: that share it. Without a file each has its part of a quota.
        file: as for `RateLimit`.
    """

    def __init__(self, workers: int, file: Path | None = None) -> None:
        self._parts = 1 if file else workers
        self._buckets: _Buckets = _File(file, "quota") if file else _Memory()
        self._limited: set[str] = set()

    def take(self, caller: str, per_day: int | None, images: int, now: float | None = None) -> None:
        """Count a request.

        Raises:
            UnavailableError: it would exceed what is left; code "service.quota", with the seconds until it would not.
        """
        if per_day is None:
            return
        now = time.monotonic() if now is None else now
        full = per_day / self._parts
        self._limited.add(caller)
        missing = self._buckets.take(caller, images, full, full / _DAY_S, now)
        if missing:
            raise UnavailableError(
                f"this token may have {per_day} images a day, and fewer than {images} are left of them: wait, or ask "
                "for fewer.",
                code="service.quota",
                retry_after=-missing * _DAY_S / full if images <= full else None,  # never
            )

    def most(self, per_day: int) -> int:
        """Images that can ever be had at once, at least 1."""
        return max(per_day // self._parts, 1)

    def charge(self, caller: str, images: int) -> None:
        """As `RateLimit.charge`."""
        if caller in self._limited:
            self._buckets.charge(caller, images)

    def close(self) -> None:
        self._buckets.close()
