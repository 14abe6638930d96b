"""A source of samples from a few words: the path of a bundle, or the URL of a service.

This module knows what both look like, and nothing of how either generates.
"""

from __future__ import annotations

from pathlib import Path

from augmint.errors import UsageError
from augmint.samples import Source

__all__ = ["is_url", "open_source"]


def is_url(spec: str | Path | Source) -> bool:
    return isinstance(spec, str) and spec.lower().startswith(("http://", "https://"))


def open_source(
    spec: str | Path | Source, *, bundle: str | None = None, device: str = "auto", token: str | None = None
) -> Source:
    """Open a bundle here, or connect to a service.

    Args:
        spec: a bundle's directory, a service's http(s) URL, or a source, which is returned as it is.
        bundle: which bundle of the service; not for a directory.
        device: for a directory: "auto", "cpu", "cuda" or "cuda:N".
        token: for a service: sent as `Authorization: Bearer …`.

    Raises:
        BundleError, DeviceError, UsageError: it cannot be opened.
    """
    if not isinstance(spec, str | Path):
        return spec
    # Each loads what the other does not need: httpx2 here, onnxruntime there.
    if is_url(spec):
        from augmint.client import Client

        return Client(str(spec), bundle=bundle, token=token)
    if bundle is not None:
        raise UsageError(
            f"{spec} is one bundle, so there is none to choose: leave {bundle!r} away, or give a service's URL.",
            code="usage.bundle",
        )
    from augmint.generator import Generator

    return Generator(spec, device=device)
