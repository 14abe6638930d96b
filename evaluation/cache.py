"""What was computed once and need not be again: named arrays on disk, found by the content they were made from.

A key is plain JSON that holds everything the result depends on (digests of images, a seed, a version of the code), so
that nothing ever has to be declared stale. Files are npz without pickles, written to a temporary name and renamed: an
interrupted evaluation finds all that was finished. A file that cannot be read is computed again. Knows nothing of what
the arrays mean.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias, Union

import numpy as np
import platformdirs
from numpy.typing import NDArray

__all__ = ["Arrays", "Cache", "Json", "code_version", "digest"]

Json: TypeAlias = Union[bool, int, float, str, Sequence["Json"], Mapping[str, "Json"], None]  # noqa: UP007
Arrays: TypeAlias = dict[str, NDArray[Any]]

VERSION: Final = 1
"""Of the format of keys and files."""

_LIMIT: Final = 2 * 2**30
_log = logging.getLogger("augmint")


def digest(*arrays: NDArray[Any]) -> str:
    """sha256 hex over each array's dtype, shape and values in C order.

    >>> digest(np.zeros(2, np.uint8)) == digest(np.zeros((2, 1), np.uint8))
    False
    """
    found = hashlib.sha256()
    for array in arrays:
        if array.dtype.hasobject:
            raise ValueError("Arrays of Python objects have no digest.")
        found.update(f"{array.dtype.newbyteorder('<').str}{array.shape};".encode())
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        found.update(little.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


@functools.cache
def code_version(*modules: ModuleType) -> str:
    """For keys of what these modules computed with torch: changed code computes something else."""
    files = [Path(module.__file__ or "").read_bytes() for module in modules]
    return f"{hashlib.sha256(b''.join(files)).hexdigest()[:16]} torch {metadata.version('torch')}"


class Cache:
    """Arrays in `directory` by what they were made from; a `directory` of None remembers nothing.

    When the files exceed `limit` bytes the ones that were not used for longest go. A directory that cannot be written
    costs a warning in the log and nothing else. Several processes may share one.
    """

    def __init__(self, directory: Path | None, *, limit: int = _LIMIT) -> None:
        self.directory = directory
        self._limit = limit
        self._size: int | None = None  # Bytes there, known from the first write on.
        self._warned = False

    @classmethod
    def default(cls) -> Cache:
        """In the folder "evaluation" of $AUGMINT_CACHE, or of augmint's folder among the user's caches."""
        root = os.environ.get("AUGMINT_CACHE")
        return cls((Path(root) if root else platformdirs.user_cache_path("augmint", appauthor=False)) / "evaluation")

    def arrays(self, kind: str, key: Mapping[str, Json], compute: Callable[[], Arrays]) -> Arrays:
        """What is remembered under `kind` and `key`, or else what `compute()` returns, remembered from now on.

        `kind` is a short word (a folder's name). Raises ValueError where `key` is no JSON or holds NaN.
        """
        found = self.find(kind, key)
        if found is None:
            found = compute()
            self.keep(kind, key, found)
        return found

    def find(self, kind: str, key: Mapping[str, Json]) -> Arrays | None:
        """What is remembered, or None; also where its file is damaged."""
        path = self._path(kind, key)
        if path is None:
            return None
        try:
            # Opened here, because np.load leaves a damaged file open.
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # Used now, so among the last to go.
        return found

    def keep(self, kind: str, key: Mapping[str, Json], arrays: Arrays) -> None:
        """Remember `arrays` (no Python objects among them)."""
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise ValueError(f"{name} holds Python objects, which would have to be pickled.")
        path = self._path(kind, key)
        if path is None:
            return
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # the stubs take allow_pickle for one of the arrays
            size = temporary.stat().st_size
            temporary.replace(path)
            self._shrink(size)
        except OSError as error:
            if not self._warned:
                self._warned = True
                _log.warning("Results cannot be kept in %s (%s): they will be computed again.", self.directory, error)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def clear(self) -> int:
        """Forget everything; returns the number of files removed."""
        removed = 0
        for _, _, path in self._files():
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
        self._size = None
        return removed

    def _path(self, kind: str, key: Mapping[str, Json]) -> Path | None:
        if not kind.replace("-", "").isalnum():
            raise ValueError(f"A kind is a word of letters, digits and hyphens, not {kind!r}.")
        try:
            words = json.dumps([VERSION, kind, key], sort_keys=True, separators=(",", ":"), allow_nan=False)
        except TypeError as error:
            raise ValueError(f"The key is not plain JSON: {error}.") from None
        if self.directory is None:
            return None
        return self.directory / kind / f"{hashlib.sha256(words.encode()).hexdigest()}.npz"

    def _files(self) -> list[tuple[float, int, Path]]:
        """When last used, bytes and path of each of our files."""
        found: list[tuple[float, int, Path]] = []
        if self.directory is None:
            return found
        for path in self.directory.glob("*/*.npz*"):  # Also what a killed process left half-written.
            with contextlib.suppress(OSError):
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return found

    def _shrink(self, added: int) -> None:
        """Keep the sum of sizes below the limit, oldest first out."""
        if self._size is not None and self._size + added <= self._limit:
            self._size += added
            return
        files = sorted(self._files())
        self._size = sum(size for _, size, _ in files)
        # A tenth below the limit, so that not every write has to look again.
        while self._size > self._limit * 0.9 and len(files) > 1:
            _, size, path = files.pop(0)
            with contextlib.suppress(OSError):
                path.unlink()
                self._size -= size
