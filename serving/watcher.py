"""The directories of bundles, followed while the service runs: what is added, replaced or removed there.

They are looked at again and again rather than listened to: that works on every file system, network ones too, and every
worker follows by itself. What changed is acted on once two looks in a row found the same, so that a copy that is still
growing is left alone; then it is verified and warmed as at the start. A bundle that is refused is named in the log
once, and until it changes; what its directory held before goes on being served until that is gone.

Knows files and bundles, nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from augmint.bundle import MAX_FILES
from augmint.errors import AugmintError, BundleError, UsageError
from augmint.signing import read_trust
from serving.bundles import Served, check_bundle
from serving.library import Library
from serving.metrics import Metrics
from serving.settings import Settings, scan

__all__ = ["Watcher", "follow"]

log = logging.getLogger("augmint")

# (name, bytes, modified, changed, inode) of the file of keys, if any, and of every file of a bundle.
File = tuple[str, int, int, int, int]
Fingerprint = tuple[File | None, ...]


class Watcher:
    """For one thread at a time.

    Args:
        settings: where the bundles are, and whose signatures are trusted.
        open_bundle: verifies, opens and warms the bundle at a path; whatever it raises refuses that bundle alone.

    Attributes:
        served: path -> bundle. To be filled in once those that are there have been opened, which must be after this
            was made: so that nothing goes unseen that changes meanwhile.
        refused: paths of the bundles that are there and are not served.
    """

    def __init__(self, settings: Settings, open_bundle: Callable[[Path], Served]) -> None:
        self.served: dict[Path, Served] = {}
        self.refused: set[Path] = set()
        self._settings = settings
        self._open = open_bundle
        self._seen = self._see()
        self._settled = dict(self._seen)

    @property
    def bundles(self) -> list[Served]:
        """Those that are served, in the order of their places and names: the same in every worker."""
        return [self.served[path] for path in {**self._seen, **self._settled} if path in self.served]

    def look(self) -> bool:
        """Look once, and open what is new: takes as long as that takes. Returns whether `bundles` are others now.

        Raises:
            OSError: a place cannot be looked at; nothing has changed.
        """
        before, self._seen = self._seen, self._see()
        changed = False
        for path in sorted({*self._seen, *self._settled}):
            found = self._seen.get(path)
            if found == self._settled.get(path) or found != before.get(path):
                continue  # known, or still changing
            if found is None:
                del self._settled[path]
                self.refused.discard(path)
                changed |= self.served.pop(path, None) is not None
            else:
                self._settled[path] = found
                changed |= self._take(path)
        return changed

    def _see(self) -> dict[Path, Fingerprint]:
        # With the keys that are trusted: when these change, all bundles are looked at anew.
        keys = _file(self._settings.trust)
        return {path: (keys, *_files(path)) for place in self._settings.bundles for path in scan(place)}

    def _take(self, path: Path) -> bool:
        """Serve what is at a path now, if it can be."""
        try:
            digest = check_bundle(path, self._settings).digest
            served = next((bundle for bundle in self.served.values() if bundle.info.digest == digest), None)
            served = served or self._open(path)
        except AugmintError as error:
            return self._refuse(path, f"{error} ({error.code})")
        except Exception as error:  # no memory for its session, say: the others are served on
            return self._refuse(path, f"{path} could not be opened ({type(error).__name__}: {error}).")
        self.refused.discard(path)
        before = self.served.get(path)
        self.served[path] = served
        return served is not before

    def _refuse(self, path: Path, why: str) -> bool:
        """Go on with what was served from there, unless it is no longer trusted itself."""
        self.refused.add(path)
        kept = self.served.get(path)
        distrusted = kept is not None and not self._trusts(kept)
        if distrusted:
            del self.served[path]
        log.error("refused: %s%s", why, f" {kept.info.digest[:12]} is served on." if kept and not distrusted else "")
        return distrusted

    def _trusts(self, served: Served) -> bool:
        if self._settings.trust is None:
            return True
        try:
            read_trust(self._settings.trust).check(served.files)
        except BundleError:
            return False
        except UsageError:  # the keys cannot be read: nobody said that this one is no longer trusted
            return True
        return True


async def follow(watcher: Watcher, library: Library, metrics: Metrics, *, every_s: float) -> None:
    """Look every so many seconds, and let the library serve what is there; until cancelled."""
    loop = asyncio.get_running_loop()
    complaint = ""
    while True:
        # On the whole second: all workers look, and take up what is new, at about the same time.
        rest = every_s - time.time() % every_s
        await asyncio.sleep(rest if rest > every_s / 2 else rest + every_s)
        try:
            changed = await loop.run_in_executor(None, watcher.look)
        except Exception as error:  # whatever it was, the next look may do better
            if str(error) != complaint:
                complaint = str(error)
                log.error("the bundles cannot be looked at, and go on being served: %s", complaint)
            continue
        complaint = ""
        metrics.refuses(len(watcher.refused))
        if changed:
            _take_over(library, watcher.bundles, metrics)


def _take_over(library: Library, bundles: Sequence[Served], metrics: Metrics) -> None:
    before = {bundle.info.digest: bundle for bundle in library}
    library.replace(bundles)
    after = {bundle.info.digest: bundle for bundle in library}
    for digest, bundle in before.items():
        if digest not in after:
            metrics.serves(bundle.info, served=False)
            log.info("no longer serving %s (%s)", bundle.info.name, digest[:12])
    for digest, bundle in after.items():
        if digest not in before:
            metrics.serves(bundle.info)
            log.info("serving %s", bundle)


def _files(path: Path) -> list[File]:
    """Of a bundle's directory, in order; none where it goes meanwhile."""
    try:
        with os.scandir(path) as entries:
            few = itertools.islice(entries, MAX_FILES + 3)
            return sorted(_state(entry.name, entry.stat(follow_symlinks=False)) for entry in few)
    except FileNotFoundError:
        return []


def _file(path: Path | None) -> File | None:
    """None where there is no such file."""
    try:
        return None if path is None else _state(path.name, path.stat())
    except FileNotFoundError:
        return None


def _state(name: str, status: os.stat_result) -> File:
    return name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
