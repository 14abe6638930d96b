"""The bundles that are served, by name and by digest. Knows nothing of HTTP or of how images are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from augmint.errors import UnknownBundleError
from serving.bundles import Served

__all__ = ["Library"]


class Library:
    """Bundles by name, in the order given."""

    def __init__(self, bundles: Mapping[str, Served]) -> None:
        self._bundles = dict(bundles)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._bundles.values())

    def __len__(self) -> int:
        return len(self._bundles)

    def __getitem__(self, name: str) -> Served:
        return self._bundles[name]

    def find(self, name: str | None) -> Served:
        """A bundle by its name or digest; None: the only one there is.

        Raises:
            UnknownBundleError: there is none of this name, or None is not enough to tell.
        """
        names = tuple(self._bundles)
        if name is None:
            if len(names) == 1:
                return self._bundles[names[0]]
            raise UnknownBundleError(
                f"this service has {len(names)} bundles: name one of {', '.join(names)}.",
                bundles=names,
                code="request.invalid",
            )
        served = self._bundles.get(name) or next((b for b in self if b.info.digest == name), None)
        if served is None:
            raise UnknownBundleError(
                f"there is no bundle {name[:80]!r} here: there is {', '.join(names)}.", bundles=names
            )
        return served
