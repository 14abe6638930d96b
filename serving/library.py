"""The bundles that are served: their versions side by side, found by name, version or digest.

The bundles of one name are versions of each other; the newest, and what the name alone means, is the one whose
checkpoint was written last (of two from one checkpoint that with the larger digest), so that every worker and every
replica means the same: see docs/decisions/0010-versions.md. Knows nothing of HTTP or of how images are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from augmint.errors import UnknownBundleError
from augmint.versions import means
from serving.bundles import Served

__all__ = ["Library"]


class Library:
    """Bundles in the order given, the versions of a name together, the newest first. For one thread; whoever found a
    bundle keeps it, also after it was replaced."""

    def __init__(self, bundles: Iterable[Served]) -> None:
        self.replace(bundles)

    def replace(self, bundles: Iterable[Served]) -> None:
        """Serve these from now on; several of one digest are one."""
        by_digest = {bundle.info.digest: bundle for bundle in bundles}
        names = list(dict.fromkeys(bundle.info.name for bundle in by_digest.values()))
        newest_first = sorted(by_digest.values(), key=_age, reverse=True)
        self._bundles = sorted(newest_first, key=lambda bundle: names.index(bundle.info.name))
        self._latest: dict[str, Served] = {}
        for bundle in self._bundles:
            self._latest.setdefault(bundle.info.name, bundle)
        # What is asked for again and again.
        self._known = self._latest | {bundle.info.digest: bundle for bundle in self._bundles}

    def __iter__(self) -> Iterator[Served]:
        return iter(self._bundles)

    def __len__(self) -> int:
        return len(self._bundles)

    def __getitem__(self, name: str) -> Served:
        return self._latest[name]

    def is_latest(self, served: Served) -> bool:
        """Whether its name alone means this one."""
        return self._latest.get(served.info.name) is served

    def find(self, address: str | None) -> Served:
        """A bundle by name, `name@latest`, `name@DIGEST` (8 hex digits or more) or digest; None: the only name's.

        Raises:
            UnknownBundleError: there is none, or the address is not enough to tell.
        """
        names = tuple(self._latest)
        if address is None:
            if len(names) == 1:
                return self._latest[names[0]]
            if not names:
                raise UnknownBundleError("this service has no bundle now: its directories are empty.")
            raise UnknownBundleError(
                f"this service has {len(names)} bundles: name one of {', '.join(names)}.",
                bundles=names,
                code="request.invalid",
            )
        if (known := self._known.get(address)) is not None:
            return known
        found = [b for b in self if means(address, b.info.name, b.info.digest, latest=self.is_latest(b))]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownBundleError(
                f"{address[:80]!r} is the beginning of {len(found)} digests: give more of it.", bundles=names
            )
        raise UnknownBundleError(
            f"there is no bundle {address[:80]!r} here: there is {', '.join(names) or 'none'}.", bundles=names
        )


def _age(served: Served) -> tuple[datetime, str]:
    try:
        trained = datetime.fromisoformat(served.files.manifest.identity.trained)
    except ValueError:  # of an exporter other than ours: older than any
        trained = datetime.min
    return (trained if trained.tzinfo else trained.replace(tzinfo=UTC)), served.info.digest
