"""What a client decides, without any input or output: the requests, what an answer means, and whether to ask again.

`Protocol`'s methods are generators. They yield what is to be done (`Call`, `Pause`), are sent what came of it (`Reply`
or the exception), and return or yield what the caller wants: so the synchronous and the asynchronous client, which
only do as they are told, cannot differ.

Every request is idempotent, because its seed is fixed before it is sent. So a lost, damaged or refused answer may be
asked for again; large amounts go in several requests, and what has arrived is never asked for twice. Nothing of an
answer is believed: digests, shapes, types, sizes and addresses are compared with what was asked for.

This module knows neither sockets nor clocks (one is handed in) nor what the images are for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import json
import math
import random
import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final, Literal, NoReturn, TypeVar

import httpx2
import numpy as np
from pydantic import TypeAdapter, ValidationError

from augmint.archive import Arrays, npy_header, unpack
from augmint.endmark import check_bytes, tail, tail_length
from augmint.errors import (
    AugmintError,
    DeadlineError,
    RequestError,
    ServiceError,
    ShortfallError,
    TooLargeError,
    TransportError,
    UnavailableError,
    UnknownBundleError,
    UnknownLabelError,
    UsageError,
)
from augmint.quality import Quality
from augmint.samples import BundleInfo, Counts, Reproducibility, Request, Samples
from augmint.selection import Walk
from augmint.versions import means

__all__ = [
    "LOWER_ERRORS",
    "Call",
    "Collector",
    "Download",
    "DownloadForm",
    "Outcome",
    "Pause",
    "Protocol",
    "Reply",
    "Steps",
    "Stream",
    "map_exception",
    "one_line",
]

# A seed is a uint64, but JSON numbers above 2^53 lose digits in many readers: those go as decimal strings.
_JSON_SAFE: Final = 2**53
_MOST_BYTES: Final = 64 << 20  # of images in one answer
_SEGMENT_BYTES: Final = 16 << 20  # of a download, in one answer
_TAR_ROW_BYTES: Final = 6144  # of a tar for each image, besides its pixels
_MOST_CATALOGUE_BYTES: Final = 64 << 20
_MOST_ERROR_BYTES: Final = 4 << 20
_BACKOFF: Final = 0.25  # seconds before the first retry; doubles each time
_LONGEST_BACKOFF: Final = 15.0

_T = TypeVar("_T")


# ------------------------------------------------------------------------------------------------- what is exchanged


@dataclass(frozen=True)
class Call:
    """To be sent. `expires` is on the protocol's clock; an answer longer than `most_bytes` is to be cut off."""

    method: str
    path: str
    body: bytes | None
    most_bytes: int
    expires: float


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Reply:
    status: int
    headers: httpx2.Headers
    body: bytes


class OverrunError(Exception):
    """An answer was longer than it may be, came encoded, or did not end in time: a clause for the user."""


Outcome = Reply | Exception
Steps = Generator[Call | Pause, Outcome | None, _T]
Stream = Generator[Call | Pause | Samples, Outcome | None, None]
Download = Generator[Call | Pause | bytes, Outcome | None, None]
DownloadForm = Literal["tar", "npy"]


@dataclass(frozen=True)
class _Limits:
    images: int | None = None


@dataclass(frozen=True)
class _Catalogue:
    """GET /v1/bundles; fields this version does not know are ignored."""

    bundles: tuple[BundleInfo, ...]
    limits: _Limits = field(default_factory=_Limits)


@dataclass(frozen=True)
class _Prepared:
    request: Request
    info: BundleInfo
    limits: _Limits


@dataclass(frozen=True)
class _Refusal:
    """An outcome that is no answer: the error that it means, and whether asking again can help."""

    error: AugmintError
    again: bool


# ------------------------------------------------------------------------------------------------- the protocol


class Protocol:
    """All that a client decides. Immutable but for the catalogue it remembers; does no input or output."""

    def __init__(
        self,
        url: str,
        *,
        bundle: str | None,
        deadline: float,
        retries: int,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.url = url
        self.shown_url = re.sub(r"//[^/@]*@", "//", url)  # without a password
        self.bundle = bundle
        self.deadline = deadline
        self.retries = retries
        self.clock = clock
        self.jitter = jitter
        self._remembered: _Catalogue | None = None

    # -------------------------------------------------------------------------------------- the verbs

    def catalogue(self) -> Steps[_Catalogue]:
        call = Call("GET", "/v1/bundles", None, _MOST_CATALOGUE_BYTES, self.clock() + self.deadline)
        self._remembered = found = yield from self._ask(call, self._read_catalogue)
        return found

    def info(self) -> Steps[BundleInfo]:
        return self._choose((yield from self.catalogue()))

    def prepare(
        self,
        counts: Counts,
        seed: int | None,
        offset: int,
        truncation: float,
        quality: str | Quality,
        edit: Mapping[str, float] | None,
    ) -> Steps[_Prepared]:
        """Check a request as the local generator does, and fix its seed."""
        fresh = self._remembered is None
        catalogue = self._remembered or (yield from self.catalogue())
        while True:
            try:
                info = self._choose(catalogue)
                request = Request.make(
                    counts,
                    info.class_names,
                    seed=seed,
                    offset=offset,
                    truncation=truncation,
                    quality=quality,
                    offered=info.quality,
                    edit=edit,
                    editable=info.edits,
                )
                return _Prepared(request, info, catalogue.limits)
            except RequestError:
                # What is remembered may be out of date: refuse on fresh knowledge only.
                if fresh:
                    raise
                catalogue, fresh = (yield from self.catalogue()), True

    def stream(self, prepared: _Prepared, chunk: int) -> Stream:
        """Ask piece by piece, each only for what has not been asked for yet."""
        request, info = prepared.request, prepared.info
        most = max(min(chunk, prepared.limits.images or chunk, _MOST_BYTES // math.prod(info.image_shape)), 1)
        walk = Walk(request)
        delivered = 0
        begun, renewals = False, 0
        # First whatever the address means now; then that very bundle, also when there is a newer one of its name.
        address = self.bundle or info.name
        while (piece := walk.piece(most)) is not None:
            call = self._generate_call(piece, info, address)
            try:
                samples = yield from self._ask(call, partial(self._read_samples, piece=piece, info=info))
            except TooLargeError:
                if piece.total == 1:
                    raise
                most = max(piece.total // 2, 1)  # the limit is lower than we were told
                continue
            except (UnknownBundleError, _BundleChangedError) as change:
                self._remembered = None
                if begun or renewals > self.retries:
                    raise TransportError(
                        f"The bundle {info.name!r} was replaced or removed while {request.total:,} images were on "
                        f"their way ({delivered:,} had arrived, from {info.digest[:12]}…): ask for all of them again.",
                        code="service.bundle-changed",
                    ) from None
                if isinstance(change, UnknownBundleError):
                    raise
                # Nothing has been handed out yet: only what we remembered was out of date.
                request, info = yield from self._renew(request, change.found)
                walk, renewals = Walk(request), renewals + 1
                continue
            begun, address = True, info.digest
            delivered += len(samples)
            samples = walk.advance(piece, samples)
            if len(samples) or request.quality:
                yield samples
        # Under a quality fewer are an answer like another, which accounts for them.
        if delivered < request.total and not request.quality:
            raise ShortfallError(
                f"The service delivered {delivered:,} of {request.total:,} images (seed {request.seed}): use what "
                "arrived, or ask for more with a higher offset.",
                requested=request.total,
                delivered=delivered,
            )

    def prepare_download(
        self,
        counts: Counts,
        form: DownloadForm,
        seed: int | None,
        offset: int,
        truncation: float,
        edit: Mapping[str, float] | None,
    ) -> Steps[tuple[Request, Download]]:
        """The checked request of a download, and its steps."""
        if form not in ("tar", "npy"):
            raise RequestError(f"format must be tar or npy, not {form!r}.")
        prepared = yield from self.prepare(counts, seed, offset, truncation, "none", edit)
        return prepared.request, self._download(prepared, form)

    def _download(self, prepared: _Prepared, form: DownloadForm) -> Download:
        """The bytes of one whole stream (see `augmint.endmark`), asked for in segments: each is checked before it is
        handed over, so that after a cut nothing but the segment is asked for again."""
        request, info = prepared.request, prepared.info
        total, pixels = request.total, math.prod(info.image_shape)
        rows = max(_SEGMENT_BYTES // (pixels + (_TAR_ROW_BYTES if form == "tar" else 0)), 1)
        hashed = hashlib.sha256()
        if form == "npy":
            header = npy_header((total, *info.image_shape))
            hashed.update(header)
            yield header
        for start in range(0, total, rows):
            stop = min(start + rows, total)
            call = self._stream_call(request, info, form, start, stop)
            try:
                segment = yield from self._ask(call, partial(self._read_segment, form=form, n=stop - start, info=info))
            except UnknownBundleError:
                self._remembered = None
                raise
            hashed.update(segment)
            yield segment
        yield tail(form, total, hashed.hexdigest())

    def _stream_call(self, request: Request, info: BundleInfo, form: DownloadForm, start: int, stop: int) -> Call:
        document = {
            **self._wish(request),
            "bundle": info.digest,  # all segments are of this one, whatever the name may mean meanwhile
            "start": _number(start),
            "stop": _number(stop),
            "format": form,
        }
        # A PNG of noise is larger than its pixels, and a tar has three members an image.
        most_bytes = (stop - start) * (2 * math.prod(info.image_shape) + 2 * _TAR_ROW_BYTES) + 65_536
        return Call("POST", "/v1/stream", _json(document), most_bytes, self.clock() + self.deadline)

    def _read_segment(self, reply: Reply, form: DownloadForm, n: int, info: BundleInfo) -> bytes:
        """The rows of a stream, without what is before and after them."""
        images = check_bytes(reply.body, form)
        header = npy_header((n, *info.image_shape)) if form == "npy" else b""
        if images != n or reply.headers.get("Augmint-Bundle") != info.digest or not reply.body.startswith(header):
            self._not_augmint("its stream holds other images than were asked for")
        return reply.body[len(header) : -tail_length(form)]

    def _renew(self, request: Request, digest: str) -> Steps[tuple[Request, BundleInfo]]:
        """The same request for the bundle that just answered, which the service must list."""
        differ = TransportError(
            f"{self.shown_url} answers from a bundle that it does not list: its replicas differ, or it is being "
            "updated; try again later.",
            code="service.bundle-changed",
        )
        for attempt in itertools.count():
            catalogue = yield from self.catalogue()
            listed = [info for info in catalogue.bundles if info.digest == digest]
            if listed:
                break
            if attempt >= self.retries:
                raise differ
            yield Pause(self._wait(differ, attempt))  # workers and replicas take up a new bundle one by one
        info = listed[0]
        counts: Counts = dict(request.counts) if request.class_names else request.total
        again = Request.make(
            counts,
            info.class_names,
            seed=request.seed,
            offset=request.offset,
            truncation=request.truncation,
            quality=request.quality,
            offered=info.quality,
            edit=dict(request.edit),
            editable=info.edits,
        )
        return again, info

    # -------------------------------------------------------------------------------------- one request

    def _generate_call(self, piece: Request, info: BundleInfo, address: str) -> Call:
        total = piece.total
        document = {**self._wish(piece), "bundle": address, "format": "npz"}
        if piece.quality:
            document["quality"] = str(piece.quality)
        if piece.candidates is not None:
            document["candidates"] = piece.candidates
        # Labels, seeds and indices are 8 bytes each; names 4 a character, and all as long as the longest.
        names = 4 * len(info.class_names) * max(map(len, info.class_names), default=0)
        most_bytes = total * (math.prod(info.image_shape) + 24) + 48 * len(piece.counts) + names + 65_536
        return Call("POST", "/v1/generate", _json(document), most_bytes, self.clock() + self.deadline)

    def _wish(self, request: Request) -> dict[str, Any]:
        """What says which images, whichever way they are asked for."""
        return {
            "counts": dict(request.counts) if request.class_names else request.total,
            "seed": _number(request.seed),
            "offset": _number(request.offset),
            "truncation": request.truncation,
            **({"edit": dict(request.edit)} if request.edit else {}),
        }

    def _ask(self, call: Call, read: Callable[[Reply], _T]) -> Steps[_T]:
        """Send until it succeeds, cannot succeed, or the retries or the time are used up."""
        attempt = 0
        while True:
            judged = self._judge((yield call), read)
            if not isinstance(judged, _Refusal):
                return judged
            if not judged.again or attempt >= self.retries:
                raise _tried(judged.error, attempt)
            wait = self._wait(judged.error, attempt)
            if self.clock() + wait >= call.expires:
                why = f"the next try would come after the deadline of {self.deadline:g} s"
                raise _tried(judged.error, attempt, why)
            yield Pause(wait)
            attempt += 1

    def _judge(self, outcome: Outcome | None, read: Callable[[Reply], _T]) -> _T | _Refusal:
        assert outcome is not None, "only a Pause has no outcome"
        if isinstance(outcome, Exception):
            return _Refusal(*map_exception(outcome, self.shown_url))
        if outcome.status == 200:
            try:
                return read(outcome)
            except TransportError as damage:
                return _Refusal(damage, again=damage.code == "service.damaged")
        return _Refusal(self._read_problem(outcome), again=outcome.status in (429, 502, 503, 504))

    def _wait(self, error: AugmintError, attempt: int) -> float:
        """Seconds: what the service asked for, else doubling, with jitter so that clients do not return as one."""
        if isinstance(error, UnavailableError) and error.retry_after is not None:
            return error.retry_after + 0.1 * self.jitter()
        return min(_BACKOFF * 2.0**attempt, _LONGEST_BACKOFF) * (0.5 + 0.5 * self.jitter())

    # -------------------------------------------------------------------------------------- reading answers

    def _read_catalogue(self, reply: Reply) -> _Catalogue:
        try:
            catalogue = _CATALOGUE.validate_json(reply.body)
            for info in catalogue.bundles:
                if not (
                    re.fullmatch(r"[0-9a-f]{64}", info.digest)
                    and all(1 <= side <= 4096 for side in info.image_shape)
                    and len(set(info.class_names)) == len(info.class_names)
                ):
                    raise ValueError(f"the bundle {one_line(info.name, 64)!r} is described wrongly")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            self._not_augmint(f"its /v1/bundles: {where + ': ' if where else ''}{first['msg']}")
        except ValueError as error:
            self._not_augmint(str(error))
        return catalogue

    def _not_augmint(self, problem: str) -> NoReturn:
        raise TransportError(
            f"{self.shown_url} does not answer like an augmint service ({one_line(problem, 200)}): check the URL.",
            code="service.bad-answer",
        )

    def _choose(self, catalogue: _Catalogue) -> BundleInfo:
        names = list(dict.fromkeys(info.name for info in catalogue.bundles))
        shown = ", ".join(names[:20]) or "none"
        if self.bundle is None and len(names) != 1:
            raise UnknownBundleError(
                f"{self.shown_url} has {len(names)} bundles ({shown}): say which, with bundle=… or --bundle.",
                bundles=names,
            )
        address = self.bundle or names[0]
        for info in catalogue.bundles:
            if means(address, info.name, info.digest, latest=info.latest):
                return info
        raise UnknownBundleError(f"{self.shown_url} has no bundle {self.bundle!r}: it has {shown}.", bundles=names)

    def _read_samples(self, reply: Reply, piece: Request, info: BundleInfo) -> Samples:
        """The answer to a piece: all of its images, or a part of them."""
        _check_digest(reply)
        headers = reply.headers
        digest = headers.get("Augmint-Bundle", "")
        if digest != info.digest:
            raise _BundleChangedError(digest)
        reproducibility = headers.get("Augmint-Reproducibility", "")
        if reproducibility not in ("exact", "tolerance"):
            self._not_augmint("no Augmint-Reproducibility in its answer")
        accounts = len(piece.counts) if piece.quality else 0
        arrays = unpack(reply.body, most=piece.total, image_shape=info.image_shape, accounts=accounts)
        counted = (headers.get("Augmint-Requested"), headers.get("Augmint-Delivered"))
        if counted != (str(piece.total), str(len(arrays["images"]))):
            self._not_augmint("its answer counts other images than it holds or was asked for")
        follows = _is_selection if piece.quality else _follows
        if (
            arrays["class_names"] != info.class_names
            or not follows(piece, arrays)
            or not (arrays["seeds"] == np.uint64(piece.seed)).all()
        ):
            self._not_augmint("its images have other addresses than were asked for")
        account = arrays["account"]
        return Samples(
            images=arrays["images"],
            labels=arrays["labels"],
            seeds=arrays["seeds"],
            indices=arrays["indices"],
            class_names=info.class_names,
            bundle=digest,
            reproducibility=_REPRODUCIBILITY[reproducibility],
            truncation=piece.truncation,
            requested=dict(piece.counts),
            rejected={}
            if account is None
            else {label: tuple(row) for (label, _), row in zip(piece.counts, account[:, 3:].tolist(), strict=True)},
            edit=dict(piece.edit),
        )

    def _read_problem(self, reply: Reply) -> AugmintError:
        """An answer that is not 200 as an error of the tree; RFC 9457 problem details where it has them."""
        status = reply.status
        problem: dict[str, Any] = {}
        if reply.headers.get("Content-Type", "").partition(";")[0].strip().endswith("json"):
            try:
                document = json.loads(reply.body)
            except (ValueError, RecursionError):
                document = None
            problem = document if isinstance(document, dict) else {}
        code = str(problem.get("code", "")).rpartition(".")[2]
        detail = one_line(problem.get("detail") or problem.get("title") or "", 500)
        request_id = one_line(problem.get("request_id") or reply.headers.get("X-Request-ID") or "", 64)
        suffix = f" (request {request_id})" if request_id and status >= 500 else ""
        sentence = detail or f"{self.shown_url} answered {status} and gave no reason."
        sentence += suffix

        if code == "unknown-label":
            return UnknownLabelError(sentence, labels=_strings(problem.get("labels")))
        if code == "unknown-bundle":
            return UnknownBundleError(sentence, bundles=_strings(problem.get("bundles")))
        if status in (401, 403):
            return ServiceError(
                f"{self.shown_url} refuses access ({status}): give a valid token (token=…, AUGMINT_TOKEN).",
                code="service.access",
                status=status,
            )
        if status == 404 or 300 <= status < 400:
            target = one_line(reply.headers.get("Location", ""), 200)
            why = f"redirects to {target}: give that URL" if target else "has no augmint service: check the URL"
            return ServiceError(f"{self.shown_url} {why}.", code="service.not-found", status=status)
        if status == 413:
            return TooLargeError(sentence)
        if status == 504:
            return DeadlineError(sentence, status=status)
        if status in (429, 502, 503):
            return UnavailableError(
                detail + suffix
                if detail
                else f"{self.shown_url} cannot answer now ({status}): try again later{suffix}.",
                code=f"service.{code}" if code else None,
                status=status,
                retry_after=_retry_after(reply.headers),
            )
        if 400 <= status < 500:
            return RequestError(sentence, code=f"request.{code}" if code else None)
        return ServiceError(sentence, code="service.failed", status=status)


_CATALOGUE: Final = TypeAdapter(_Catalogue)
_REPRODUCIBILITY: Final[dict[str, Reproducibility]] = {"exact": "exact", "tolerance": "tolerance"}


class _BundleChangedError(Exception):
    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found


def _follows(piece: Request, arrays: Arrays) -> bool:
    """Whether the addresses are those of the piece, in order; some may be missing."""
    labels, indices = piece.addresses()
    if len(labels) == len(arrays["labels"]):
        return bool((arrays["labels"] == labels).all() and (arrays["indices"] == indices).all())
    expected = iter(zip(labels.tolist(), indices.tolist(), strict=True))
    # `in` on an iterator moves it on, so this asks for a subsequence.
    found = zip(arrays["labels"].tolist(), arrays["indices"].tolist(), strict=True)
    return all(address in expected for address in found)


def _is_selection(piece: Request, arrays: Arrays) -> bool:
    """Whether the images may be what a quality left of the piece, and the account is one of exactly these images."""
    account, start = arrays["account"], 0
    assert account is not None, "unpack has seen to it"
    for (_, n), label_id, first, row in zip(piece.counts, piece.label_ids, piece.firsts, account.tolist(), strict=True):
        number, requested, generated, *rejected = row
        delivered = generated - sum(rejected)
        if (number, requested) != (label_id, n) or min(row) < 0 or not 0 <= delivered <= n:
            return False
        # It goes on until there are enough, or to the bound and no further.
        if generated > piece.bound(n) or (delivered < n and generated < piece.bound(n)):
            return False
        here = slice(start, start + delivered)
        labels, indices = arrays["labels"][here], [int(i) - first for i in arrays["indices"][here]]
        if len(labels) != delivered or not (labels == label_id).all():
            return False
        rises = all(a < b for a, b in itertools.pairwise(indices))
        if indices and not (rises and indices[0] >= 0 and indices[-1] < generated):
            return False
        if delivered == n and indices[-1] != generated - 1:
            return False
        start += delivered
    return start == len(arrays["labels"])


def _check_digest(reply: Reply) -> None:
    """Repr-Digest (RFC 9530): the sha-256 of the very bytes that arrived."""
    found = re.search(r"(?:^|,)\s*sha-256\s*=\s*:([A-Za-z0-9+/=]*):", reply.headers.get("Repr-Digest", ""))
    try:
        stated = base64.b64decode(found.group(1), validate=True) if found else None
    except binascii.Error:
        stated = None
    if stated is None:
        raise TransportError(
            "The answer has no Repr-Digest, so it cannot be checked: is it an augmint service, and does a proxy on the "
            "way remove headers?",
            code="service.bad-answer",
        )
    if hashlib.sha256(reply.body).digest() != stated:
        raise TransportError(
            "The answer arrived damaged (its sha-256 is not the one the service sent): try again.",
            code="service.damaged",
        )


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Seconds to wait, from either form of Retry-After (RFC 9110 §10.2.3); None if there is none or it is nonsense."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    then, now = _http_date(value), _http_date(headers.get("Date", "")) or datetime.now(UTC)
    # By the service's own clock where it tells it: ours may be wrong.
    return max((then - now).total_seconds(), 0.0) if then else None


def _http_date(value: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def one_line(value: object, most: int) -> str:
    """Text of others, safe to print: no control characters, not endless."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _number(value: int) -> int | str:
    return value if value < _JSON_SAFE else str(value)


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()


def _strings(value: object) -> tuple[str, ...]:
    return tuple(one_line(item, 256) for item in value) if isinstance(value, list) else ()


def _tried(error: AugmintError, attempt: int, why: str = "") -> AugmintError:
    """The same error, and how often it was tried."""
    remarks = [f"tried {attempt + 1} times"] if attempt else []
    remarks += [why] if why else []
    if not remarks:
        return error
    (message,) = error.args
    error.args = (f"{message} ({'; '.join(remarks)})",)
    return error


def map_exception(error: Exception, url: str) -> tuple[AugmintError, bool]:
    """What httpx2 raised as an error of the tree, and whether asking again can help."""
    reason = one_line(error, 200) or type(error).__name__
    match error:
        case OverrunError():
            return TransportError(
                f"The answer of {url} {reason}: check that it is an augmint service.", code="service.bad-answer"
            ), False
        case httpx2.UnsupportedProtocol() | httpx2.InvalidURL():
            return UsageError(
                f"{url} is not a URL that can be asked ({reason}): give http://HOST:PORT.", code="usage.url"
            ), False
        case httpx2.ProxyError():
            return TransportError(
                f"The proxy on the way to {url} refuses ({reason}): check proxy=… or HTTP_PROXY.", code="service.proxy"
            ), False
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            return TransportError(
                f"{url} cannot be reached ({reason}): is `augmint serve` running there?", code="service.unreachable"
            ), True
        case httpx2.TimeoutException():
            return TransportError(
                f"{url} did not answer in time ({reason}): raise timeout=…, or ask for less.", code="service.timeout"
            ), True
        case httpx2.NetworkError() | httpx2.RemoteProtocolError() | OSError():
            return TransportError(
                f"The connection to {url} broke off ({reason}): try again.", code="service.interrupted"
            ), True
        case _:
            return TransportError(
                f"Talking to {url} failed ({reason}): check that it is an augmint service.", code="service.protocol"
            ), False


class Collector:
    """The body of an answer as it arrives, cut off where it is too long or too late."""

    def __init__(self, call: Call, response: httpx2.Response, clock: Callable[[], float]) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            # The digest is of the encoded bytes, and a small body could unpack to any size.
            raise OverrunError("came compressed, which was not asked for")
        self._clock = clock
        self._expires = call.expires
        self._most = call.most_bytes if response.status_code == 200 else _MOST_ERROR_BYTES
        self._body = bytearray()

    def add(self, piece: bytes) -> None:
        self._body += piece
        if len(self._body) > self._most:
            raise OverrunError(f"is longer than the {self._most:,} bytes that it can need")
        if self._clock() > self._expires:
            raise httpx2.ReadTimeout("the deadline passed while the answer was arriving")

    def reply(self, response: httpx2.Response) -> Reply:
        return Reply(response.status_code, response.headers, bytes(self._body))


# Everything that httpx2 raises, whichever base it has.
LOWER_ERRORS: Final = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    httpx2.CookieConflict,
    httpx2.StreamError,
    OSError,
    OverrunError,
)
