"""The service's settings, from environment variables named AUGMINT_*.

Environment variables because that is what every way of starting the service has in common: `augmint serve`, plain
`bentoml serve`, a built Bento, a container. This module reads no file and opens no bundle, so importing the service
(as `bentoml build` does) needs no bundles.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, TypeVar

from augmint.errors import UsageError

__all__ = ["PREFIX", "Settings", "find_bundles", "scan"]

PREFIX: Final = "AUGMINT_"
_MANIFEST: Final = "manifest.json"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve. Each field is read from the variable of its name, in capitals, after ``AUGMINT_``.

    Attributes:
        bundles: bundle directories, or directories of bundles; separated as in PATH.
        poll_s: seconds between two looks at these directories, for bundles that come, go or change; 0: never.
        device: "auto", "cpu", "cuda" or "cuda:N". With several workers, "cuda" gives each its own GPU in turn.
        workers: processes that answer requests. One is right on a CPU; on several GPUs, one each.
        threads: session calls at once in each worker; 0 chooses: the usable cores on a CPU, 1 on a GPU.
        max_images: most images of one request (413 beyond).
        queue_images: most images waiting or being made in a worker (503 beyond).
        queue_s: seconds of work that may be before a request that is admitted, or half as many as it takes itself, if
            those are more (503 beyond).
        streams: most streams under way in a worker (503 beyond).
        jobs: the folder where jobs and their results are kept, shared by all workers; None: no jobs.
        jobs_bytes: most bytes of results kept there.
        jobs_hours: how long a result is kept.
        max_body: most bytes of a request's body (413 beyond).
        rate_images: images per second that one client address may ask for, averaged over a minute (429 beyond);
            0 is no limit.
        timeout_s: seconds after which an answer is given up (504).
        drain_s: seconds between becoming "not ready" on SIGTERM and closing the door, so that a load balancer notices.
        batch: most images of one session call; 0 chooses: measured at start on a CPU, 256 on a GPU.
        batching: off runs every request alone, to measure what batching gains.
        access_log: one line a request on stderr.
        log: "text", or "json" for one JSON object a line.
        tracing: OpenTelemetry spans: "auto" where OTEL_* configures an exporter, "on" or "off".
        tokens: the file of tokens that requests must carry (`augmint token` makes them); None: none are asked for, and
            only this machine is answered.
        trust: a file of public keys, one of which must have signed each bundle; None: bundles need not be signed.
        auth: off answers everybody where there is no file of tokens: for a proxy or a network that guards the service.
        hosts: names that a request's Host may be; empty: any, or loopback's where only this machine is answered.
        origins: web pages of these origins may ask from a browser (CORS); empty: none but the service's own.
    """

    bundles: tuple[Path, ...] = (Path("bundles"),)
    poll_s: float = 1.0
    device: str = "auto"
    workers: int = 1
    threads: int = 0
    max_images: int = 10_000
    queue_images: int = 40_000
    queue_s: float = 2.0
    streams: int = 16
    jobs: Path | None = None
    jobs_bytes: int = 10 << 30
    jobs_hours: float = 24.0
    max_body: int = 1 << 20
    rate_images: float = 0.0
    timeout_s: float = 60.0
    drain_s: float = 0.5
    batch: int = 0
    batching: bool = True
    access_log: bool = True
    log: str = "text"
    tracing: str = "auto"
    tokens: Path | None = None
    trust: Path | None = None
    auth: bool = True
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read AUGMINT_*; variables that are unset or empty keep their defaults.

        Raises:
            UsageError: a value that makes no sense; the message names the variable.
        """
        env = os.environ if environment is None else environment
        read, default = _Reader(env), cls()
        settings = cls(
            bundles=read("bundles", _paths, "one or more directories", default.bundles),
            poll_s=read("poll_s", _number(0, 3600), "a number of seconds from 0 to 3600", default.poll_s),
            device=read("device", _device, "auto, cpu, cuda or cuda:N", default.device),
            workers=read("workers", _whole(1, 256), "a whole number from 1 to 256", default.workers),
            threads=read("threads", _whole(0, 1024), "a whole number from 0 to 1024", default.threads),
            max_images=read("max_images", _whole(1, 10**8), "a whole number from 1 to 10^8", default.max_images),
            queue_images=read("queue_images", _whole(1, 10**9), "a whole number from 1 to 10^9", default.queue_images),
            queue_s=read("queue_s", _number(0, 86400), "a number of seconds from 0 to 86400", default.queue_s),
            jobs=read("jobs", Path, "a folder", default.jobs),
            jobs_bytes=read("jobs_bytes", _whole(1, 2**60), "a number of bytes from 1 to 2^60", default.jobs_bytes),
            jobs_hours=read("jobs_hours", _number(0.001, 87600), "a number of hours to 87600", default.jobs_hours),
            streams=read("streams", _whole(1, 10_000), "a whole number from 1 to 10000", default.streams),
            max_body=read("max_body", _whole(64, 1 << 30), "a number of bytes from 64 to 2^30", default.max_body),
            rate_images=read("rate_images", _number(0, 1e9), "a number from 0 to 10^9", default.rate_images),
            timeout_s=read("timeout_s", _number(0.001, 86400), "a number of seconds up to 86400", default.timeout_s),
            drain_s=read("drain_s", _number(0, 3600), "a number of seconds from 0 to 3600", default.drain_s),
            batch=read("batch", _whole(0, 65536), "a whole number from 0 to 65536", default.batch),
            batching=read("batching", _switch, "on or off", default.batching),
            access_log=read("access_log", _switch, "on or off", default.access_log),
            log=read("log", _one_of("text", "json"), "text or json", default.log),
            tracing=read("tracing", _one_of("auto", "on", "off"), "auto, on or off", default.tracing),
            tokens=read("tokens", Path, "a file", default.tokens),
            trust=read("trust", Path, "a file", default.trust),
            auth=read("auth", _switch, "on or off", default.auth),
            hosts=read("hosts", _names, "names of hosts, separated by commas", default.hosts),
            origins=read("origins", _origins, "origins such as https://example.org, or *", default.origins),
        )
        if settings.queue_images < settings.max_images:
            raise UsageError(
                f"{PREFIX}QUEUE_IMAGES ({settings.queue_images}) must be at least {PREFIX}MAX_IMAGES "
                f"({settings.max_images}), or the largest request could never be admitted."
            )
        return settings

    def absolute(self) -> Settings:
        """With paths that do not depend on the working directory."""
        return replace(
            self,
            bundles=tuple(path.absolute() for path in self.bundles),
            tokens=None if self.tokens is None else self.tokens.absolute(),
            jobs=None if self.jobs is None else self.jobs.absolute(),
            trust=None if self.trust is None else self.trust.absolute(),
        )

    def to_environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads these settings from."""
        values: dict[str, str] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                text = ""
            elif isinstance(value, tuple):
                text = (os.pathsep if field.name == "bundles" else ",").join(map(str, value))
            elif isinstance(value, bool):
                text = "on" if value else "off"
            else:
                text = str(value)
            values[PREFIX + field.name.upper()] = text
        return values


def find_bundles(places: tuple[Path, ...]) -> tuple[Path, ...]:
    """Bundle directories among `places`: each is one itself, or holds some.

    Raises:
        UsageError: a place does not exist, or there is no bundle in it.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise UsageError(
                f"{place} is not a directory: give a bundle that `augmint export` wrote, or a directory of bundles "
                f"(the variable {PREFIX}BUNDLES, or the arguments of `augmint serve`)."
            )
        bundles = scan(place)
        if not bundles:
            raise UsageError(
                f"{place} holds no bundle (no {_MANIFEST} in it or one level below): export a run into it first, "
                f"with `augmint export RUN --out {place}/NAME`."
            )
        found += bundles
    return tuple(dict.fromkeys(found))


def scan(place: Path) -> list[Path]:
    """Bundle directories at a place: itself, or those one level below; none where there is no such directory.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        inside = sorted(os.scandir(place), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    if any(entry.name == _MANIFEST for entry in inside):
        return [place.resolve()]
    # Hidden ones are half-written: an export writes to a temporary name first.
    paths = [place / entry.name for entry in inside if entry.is_dir() and not entry.name.startswith(".")]
    return [path.resolve() for path in paths if (path / _MANIFEST).exists()]


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def __call__(self, name: str, parse: Callable[[str], T], expected: str, default: T) -> T:
        variable = PREFIX + name.upper()
        text = self._environment.get(variable, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError:
            raise UsageError(f"{variable} must be {expected}, not {text[:60]!r}.") from None


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # also catches NaN
            raise ValueError
        return value

    return parse


def _switch(text: str) -> bool:
    word = text.lower()
    if word in ("on", "1", "true", "yes"):
        return True
    if word in ("off", "0", "false", "no"):
        return False
    raise ValueError


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return parse


def _device(text: str) -> str:
    kind, colon, number = text.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not number.isdecimal())):
        raise ValueError
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if not all(re.fullmatch(r"[a-z0-9_.:-]{1,253}", name) for name in names):
        raise ValueError
    return names


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(part.strip() for part in text.split(",") if part.strip())
    if not all(origin == "*" or re.fullmatch(r"https?://[^/\s]+", origin) for origin in origins):
        raise ValueError
    return origins


def _paths(text: str) -> tuple[Path, ...]:
    paths = tuple(Path(part) for part in text.split(os.pathsep) if part)
    if not paths:
        raise ValueError
    return paths
