"""Samples over HTTP: `Client` and `AsyncClient`, with the methods, arguments and bytes of `augmint.Generator`.

All that they decide is in `augmint.protocol`; these are its two shells around httpx2, one that blocks and one that
awaits. This module knows neither ONNX nor what goes into a request, and imports nothing heavier than httpx2 and numpy.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypeVar

import httpx2

from augmint.errors import RequestError, UsageError
from augmint.protocol import LOWER_ERRORS, Call, Collector, DownloadForm, Outcome, Pause, Protocol, Steps, one_line
from augmint.quality import Quality
from augmint.samples import BundleInfo, Counts, Samples

__all__ = ["AsyncClient", "Client", "Downloaded"]

_MOST_A_REQUEST: Final = 1024  # images, unless the service allows fewer

_T = TypeVar("_T")
_Piece = TypeVar("_Piece", Samples, bytes)


@dataclass(frozen=True)
class Downloaded:
    """A file of `images` images and `bytes` bytes, made from `seed`."""

    out: Path
    images: int
    bytes: int
    seed: int


@dataclass(frozen=True)
class _Settings:
    """What a client is made of; with it, another process makes the same."""

    url: str
    bundle: str | None
    token: str | None = field(repr=False)
    timeout: float
    deadline: float
    proxy: str | None = field(repr=False)
    retries: int
    transport: Any

    def __post_init__(self) -> None:
        parts = re.fullmatch(r"(?i)https?://[^/\s]+(/[^\s?#]*)?", self.url)
        if not parts:
            raise UsageError(
                f"{one_line(self.url, 100)!r} is not a service's URL: give http://HOST:PORT.", code="usage.url"
            )
        for name in ("timeout", "deadline"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise UsageError(f"{name} must be a number of seconds above 0, not {value!r}.", code=f"usage.{name}")
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise UsageError(f"retries must be 0 or more, not {self.retries!r}.", code="usage.retries")
        if self.token is not None and not re.fullmatch(r"[\x21-\x7e]+", self.token):
            raise UsageError(
                "token must be printable ASCII without spaces: check how it was copied.", code="usage.token"
            )

    def protocol(self) -> Protocol:
        return Protocol(self.url.rstrip("/"), bundle=self.bundle, deadline=self.deadline, retries=self.retries)

    def http_arguments(self) -> dict[str, Any]:
        headers = {
            "Accept-Encoding": "identity",
            "Accept": "application/x-npz, application/json, application/problem+json",
            "User-Agent": f"augmint/{_version()}",
        }
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        return {"headers": headers, "proxy": self.proxy, "transport": self.transport, "timeout": self.timeout}

    def http_request(self, call: Call, protocol: Protocol) -> dict[str, Any]:
        left = max(min(self.timeout, call.expires - protocol.clock()), 0.001)
        return {
            "method": call.method,
            "url": protocol.url + call.path,
            "content": call.body,
            "headers": {"Content-Type": "application/json"} if call.body is not None else {},
            "timeout": left,
        }


def _version() -> str:
    try:
        return version("augmint")
    except PackageNotFoundError:
        return "0"


def _new_file(out: str | os.PathLike[str]) -> AbstractContextManager[BinaryIO]:
    # Imported here: it brings Pillow along, which nothing else of a client needs.
    from augmint.sampling import check_out, new_file

    check_out(os.fspath(out), "npz")  # a file, whatever its ending
    return new_file(Path(out))


def _check_chunk(chunk: int) -> None:
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise RequestError("chunk must be at least 1.")


class _Shell:
    """What both clients share: their settings, and that they can be shown, compared to nothing, and sent elsewhere."""

    def __init__(
        self,
        url: str,
        *,
        bundle: str | None = None,
        token: str | None = None,
        timeout: float = 60.0,
        deadline: float = 300.0,
        proxy: str | None = None,
        retries: int = 5,
        transport: Any = None,
    ) -> None:
        """
        Args:
            url: of the service, such as "http://localhost:3000".
            bundle: which of the service's bundles: by name (its newest version), `name@DIGEST` (8 hex digits or more)
                or digest; may be left out if it has one name.
            token: sent as `Authorization: Bearer …`.
            timeout: longest silence, in seconds, while connecting, sending or waiting for the next bytes.
            deadline: longest time, in seconds, that one request may take with all its retries and waits. A large
                amount goes in several requests, and each has this time.
            proxy: URL of a proxy; by default HTTP_PROXY, HTTPS_PROXY and NO_PROXY are honoured.
            retries: how often a request is sent again when the service is full or starting (429, 502, 503, 504, as
                its Retry-After says), cannot be reached, or its answer arrived damaged.
            transport: an httpx2 transport in place of the network, for tests and special certificates.

        Raises:
            UsageError: an argument is wrong. Nothing is sent yet.
        """
        self._settings = _Settings(url, bundle, token, timeout, deadline, proxy, retries, transport)
        self._protocol = self._settings.protocol()
        self._http: Any = None
        self._owner: object = None
        self._closed = False
        self._lock = threading.Lock()

    def _open(self, make: Any, owner: object) -> Any:
        """The connections of this process (and event loop): sockets must be shared with neither."""
        with self._lock:
            if self._closed:
                raise UsageError("This client is closed: make another.", code="usage.closed")
            if self._http is None or self._owner != owner:
                try:
                    self._http = make(**self._settings.http_arguments())
                # How httpx2 refuses a proxy's URL, the environment's too; ImportError: SOCKS without its package.
                except (ValueError, ImportError, httpx2.InvalidURL) as error:
                    raise UsageError(
                        f"The connection cannot be set up ({one_line(error, 200)}): check proxy=… and the variables "
                        "HTTP_PROXY, HTTPS_PROXY and ALL_PROXY.",
                        code="usage.proxy",
                    ) from None
                self._owner = owner
            return self._http

    def __repr__(self) -> str:
        bundle = f", bundle={self._settings.bundle!r}" if self._settings.bundle else ""
        return f"{type(self).__name__}({self._protocol.shown_url!r}{bundle})"

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        settings = state["settings"]
        self.__init__(**{name: getattr(settings, name) for name in settings.__dataclass_fields__})  # type: ignore[misc]


class Client(_Shell):
    """Ask a running service for samples: the methods, arguments and bytes of `augmint.Generator`, over HTTP.

    May be shared by threads and sent to other processes (it reconnects there). A context manager; see `__init__` for
    the arguments.

    Example::

        with augmint.Client("http://localhost:3000") as client:
            samples = client.generate({"3": 200, "7": 50}, seed=1)
        samples.images.shape  # (250, 28, 28, 1), uint8

    Its methods raise RequestError (the request is wrong), ServiceError (the service could not answer, however often it
    was asked) and ShortfallError (it delivered fewer images).
    """

    def bundles(self) -> list[BundleInfo]:
        """What the service can make."""
        return list(self._run(self._protocol.catalogue()).bundles)

    def info(self) -> BundleInfo:
        """What this client's bundle can make, as the service says now."""
        return self._run(self._protocol.info())

    def generate(
        self,
        counts: Counts,
        *,
        seed: int | None = None,
        offset: int = 0,
        truncation: float = 1.0,
        quality: str | Quality = "none",
        edit: Mapping[str, float] | None = None,
    ) -> Samples:
        """All images of a request at once.

        Args:
            counts: {"label": n} for a conditional bundle, n for an unconditional one.
            seed: 0 … 2^64 - 1; None picks one, which is in the answer.
            offset: index of the first image of each class.
            truncation: in (0, 1].
            quality: which images to keep, see `augmint.quality`; fewer than asked for are then in `Samples.missing`.
            edit: attribute → amount, see `Generator.generate`; `info().edits` says which.

        Raises:
            ShortfallError: the service gave up early; `stream` hands over what was delivered before it raises.
        """
        stream = self.stream(
            counts,
            seed=seed,
            offset=offset,
            truncation=truncation,
            quality=quality,
            edit=edit,
            chunk=_MOST_A_REQUEST,
        )
        return Samples.concatenate(list(stream))

    def stream(
        self,
        counts: Counts,
        *,
        seed: int | None = None,
        offset: int = 0,
        truncation: float = 1.0,
        quality: str | Quality = "none",
        edit: Mapping[str, float] | None = None,
        chunk: int = 256,
    ) -> Iterator[Samples]:
        """The same images in the same order, at most `chunk` at a time: memory stays flat, and no request is long."""
        _check_chunk(chunk)
        prepared = self._run(self._protocol.prepare(counts, seed, offset, truncation, quality, edit))
        return self._iterate(self._protocol.stream(prepared, chunk))

    def download(
        self,
        counts: Counts,
        out: str | os.PathLike[str],
        *,
        format: DownloadForm = "tar",
        seed: int | None = None,
        offset: int = 0,
        truncation: float = 1.0,
        edit: Mapping[str, float] | None = None,
    ) -> Downloaded:
        """Images of any number into a new file: a tar as the webdataset library reads it, or npy.

        The file is one stream of the service (see `augmint.endmark`), byte for byte, and has its name only when it is
        whole. It is asked for in segments, each of which is checked and, after a cut, asked for again; memory stays
        flat.

        Args:
            counts, seed, offset, truncation, edit: see `generate`.
            out: of the file; there must be none.
            format: "tar" or "npy".

        Raises:
            DataError: `out` is there already, or cannot be written.
        """
        request, steps = self._run(self._protocol.prepare_download(counts, format, seed, offset, truncation, edit))
        with _new_file(out) as file:
            for piece in self._iterate(steps):
                file.write(piece)
            return Downloaded(Path(out), request.total, file.tell(), request.seed)

    def close(self) -> None:
        """Close the connections. A closed client cannot be used again."""
        with self._lock:
            self._closed = True
            if self._http is not None and self._owner == os.getpid():
                self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps[_T]) -> _T:
        try:
            step = next(steps)
            while True:
                step = steps.send(self._perform(step))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # typeshed's StopIteration carries Any

    def _iterate(self, steps: Generator[Call | Pause | _Piece, Outcome | None, None]) -> Iterator[_Piece]:
        outcome: Outcome | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration:
                return
            if isinstance(step, Call | Pause):
                outcome = self._perform(step)
            else:
                outcome = None
                yield step

    def _perform(self, step: Call | Pause) -> Outcome | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        http = self._open(httpx2.Client, os.getpid())
        try:
            with http.stream(**self._settings.http_request(step, self._protocol)) as response:
                collector = Collector(step, response, self._protocol.clock)
                for piece in response.iter_bytes():
                    collector.add(piece)
                return collector.reply(response)
        except LOWER_ERRORS as error:
            return error


class AsyncClient(_Shell):
    """`Client` for asyncio: `await client.generate(…)`, `async for samples in client.stream(…)`.

    The arguments, answers and errors are those of `Client`. Tasks may share one.
    """

    async def bundles(self) -> list[BundleInfo]:
        """What the service can make."""
        return list((await self._run(self._protocol.catalogue())).bundles)

    async def info(self) -> BundleInfo:
        """What this client's bundle can make, as the service says now."""
        return await self._run(self._protocol.info())

    async def generate(
        self,
        counts: Counts,
        *,
        seed: int | None = None,
        offset: int = 0,
        truncation: float = 1.0,
        quality: str | Quality = "none",
        edit: Mapping[str, float] | None = None,
    ) -> Samples:
        """All images of a request at once. See `Client.generate`."""
        stream = self.stream(
            counts,
            seed=seed,
            offset=offset,
            truncation=truncation,
            quality=quality,
            edit=edit,
            chunk=_MOST_A_REQUEST,
        )
        return Samples.concatenate([samples async for samples in stream])

    async def stream(
        self,
        counts: Counts,
        *,
        seed: int | None = None,
        offset: int = 0,
        truncation: float = 1.0,
        quality: str | Quality = "none",
        edit: Mapping[str, float] | None = None,
        chunk: int = 256,
    ) -> AsyncIterator[Samples]:
        """The same images in the same order, at most `chunk` at a time. See `Client.stream`."""
        _check_chunk(chunk)
        prepared = await self._run(self._protocol.prepare(counts, seed, offset, truncation, quality, edit))
        async for samples in self._iterate(self._protocol.stream(prepared, chunk)):
            yield samples

    async def download(
        self,
        counts: Counts,
        out: str | os.PathLike[str],
        *,
        format: DownloadForm = "tar",
        seed: int | None = None,
        offset: int = 0,
        truncation: float = 1.0,
        edit: Mapping[str, float] | None = None,
    ) -> Downloaded:
        """Images of any number into a new file. See `Client.download`."""
        prepared = self._protocol.prepare_download(counts, format, seed, offset, truncation, edit)
        request, steps = await self._run(prepared)
        with _new_file(out) as file:
            async for piece in self._iterate(steps):
                await asyncio.to_thread(file.write, piece)
            return Downloaded(Path(out), request.total, file.tell(), request.seed)

    async def aclose(self) -> None:
        """Close the connections. A closed client cannot be used again."""
        self._closed = True
        if self._http is not None and self._owner == (os.getpid(), asyncio.get_running_loop()):
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, steps: Steps[_T]) -> _T:
        try:
            step = next(steps)
            while True:
                step = steps.send(await self._perform(step))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # as above

    async def _iterate(self, steps: Generator[Call | Pause | _Piece, Outcome | None, None]) -> AsyncIterator[_Piece]:
        outcome: Outcome | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration:
                return
            if isinstance(step, Call | Pause):
                outcome = await self._perform(step)
            else:
                outcome = None
                yield step

    async def _perform(self, step: Call | Pause) -> Outcome | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        http = self._open(httpx2.AsyncClient, (os.getpid(), asyncio.get_running_loop()))
        try:
            async with http.stream(**self._settings.http_request(step, self._protocol)) as response:
                collector = Collector(step, response, self._protocol.clock)
                async for piece in response.aiter_bytes():
                    collector.add(piece)
                return collector.reply(response)
        except LOWER_ERRORS as error:
            return error
