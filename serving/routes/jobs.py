"""/v1/jobs: what is too large to wait for. A stream that a worker makes into a file, kept until it is fetched."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from augmint.errors import RequestError
from serving import openapi
from serving.context import Context
from serving.exchange import FRESH, JSON, Answer, Exchange, Headers, Route, digest_value, matches, to_json
from serving.jobrunner import JobRunner
from serving.jobs import Job, JobStore, Progress, RemovedError, no_such_job
from serving.schema import JobModel, parse_stream
from serving.streams import MEDIA_TYPES
from serving.wish import read_wish

__all__ = ["Jobs"]

_READ_BYTES: Final = 1 << 20
_RANGE: Final = re.compile(rb"bytes=([0-9]{0,19})-([0-9]{0,19})")


class Jobs:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.routes = [
            Route("POST", "/v1/jobs", self._add, _ADD),
            Route("GET", "/v1/jobs", self._list, _LIST),
            Route("GET", "/v1/jobs/{id}", self._show, _SHOW),
            Route("DELETE", "/v1/jobs/{id}", self._remove, _REMOVE),
            Route("GET", "/v1/jobs/{id}/result", self._result, _RESULT),
        ]

    async def _add(self, exchange: Exchange) -> Answer:
        store, runner = self._require()
        settings, library = self._context.settings, self._context.library
        body = parse_stream(await exchange.body(settings.max_body))
        wish = read_wish(body, library, settings)
        # Now, because another worker, or this one after a restart, must mean the same by it.
        fixed = {"bundle": wish.served.info.digest, "seed": str(wish.request.seed)}
        caller, length = exchange.caller, wish.writer().length or 0
        document = {**body.model_dump(mode="json"), **fixed}
        job = await asyncio.to_thread(store.add, caller.name, caller.images_per_day, document, wish.images, length)
        runner.wake()
        place = f"/v1/jobs/{job.id}".encode()
        return Answer(202, JSON, to_json(self._model(job, Progress())), [(b"location", place), FRESH])

    async def _list(self, exchange: Exchange) -> Answer:
        store, _ = self._require()

        def shown() -> list[dict[str, object]]:
            found = []
            for job in store.of(exchange.caller.name):
                with contextlib.suppress(RemovedError):
                    found.append(self._model(job, job.progress()))
            return found

        return Answer(200, JSON, to_json({"jobs": await asyncio.to_thread(shown)}), [FRESH])

    async def _show(self, exchange: Exchange) -> Answer:
        job, progress = await self._find(exchange)
        return Answer(200, JSON, to_json(self._model(job, progress)), [FRESH])

    async def _remove(self, exchange: Exchange) -> Answer:
        job, _ = await self._find(exchange)
        await asyncio.to_thread(self._require()[0].remove, job)
        return Answer(204, JSON, b"", [FRESH])

    async def _result(self, exchange: Exchange) -> Answer:
        job, progress = await self._find(exchange)
        if progress.state != "done":
            why = (
                f"it failed: {progress.error}" if progress.error else f"{progress.done} of {job.total} images are made."
            )
            raise RequestError(f"this job has no result, {why}", code="request.not-finished")
        tag = b'"' + progress.sha256.encode() + b'"'
        headers: Headers = [
            (b"etag", tag),
            (b"accept-ranges", b"bytes"),
            (b"repr-digest", digest_value(bytes.fromhex(progress.sha256))),
            (b"cache-control", b"private, no-cache"),
        ]
        if matches(exchange.headers.get(b"if-none-match"), tag):
            return Answer(304, b"", b"", headers)
        start, stop = _span(exchange, tag, progress.bytes)
        whole = (start, stop) == (0, progress.bytes)
        headers.append((b"content-length", str(stop - start).encode()))
        if not whole:
            headers.append((b"content-range", f"bytes {start}-{stop - 1}/{progress.bytes}".encode()))
        kind = MEDIA_TYPES[job.wish["format"]].encode()
        answer = Answer(200 if whole else 206, kind, b"", headers, images=job.total)
        pieces = _pieces(job.result, start, stop)
        if exchange.method != "HEAD":
            # The first one now: the job may have been removed in this moment.
            answer.body = await anext(pieces)
        answer.stream = pieces
        return answer

    def _require(self) -> tuple[JobStore, JobRunner]:
        self._context.require()
        if self._context.jobs is None:
            raise RequestError(
                "this service keeps no jobs: ask /v1/stream, or have AUGMINT_JOBS set where the service is run.",
                code="request.no-jobs",
            )
        return self._context.jobs

    async def _find(self, exchange: Exchange) -> tuple[Job, Progress]:
        store, _ = self._require()

        def find() -> tuple[Job, Progress]:
            job = store.get(exchange.params["id"], exchange.caller.name)
            try:
                return job, job.progress()
            except RemovedError:
                raise no_such_job() from None

        return await asyncio.to_thread(find)

    def _model(self, job: Job, found: Progress) -> dict[str, object]:
        expires = found.ended + self._context.settings.jobs_hours * 3600
        return JobModel(
            id=job.id,
            state=found.state,
            done=found.done,
            total=job.total,
            bytes=found.bytes,
            error=found.error,
            created=_time(job.created),
            expires=_time(expires) if found.ended else None,
            sha256=found.sha256 or None,
            bundle=job.wish["bundle"],
            seed=job.wish["seed"],
            format=job.wish["format"],
        ).model_dump()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _span(exchange: Exchange, tag: bytes, size: int) -> tuple[int, int]:
    """First byte, and the one after the last, of one range (RFC 9110 §14); anything else is the whole.

    Raises:
        RequestError: the range begins after the end.
    """
    found = _RANGE.fullmatch(exchange.headers.get(b"range", b"").replace(b" ", b""))
    if not found or found[0] == b"bytes=-" or exchange.headers.get(b"if-range", tag) != tag:
        return 0, size
    first, last = found.groups()
    if not first:
        start, stop = max(size - int(last), 0), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return 0, size
    if start >= stop:
        raise RequestError(f"the result has {size} bytes: ask for a range within.", code="request.range")
    return start, stop


async def _pieces(path: Path, start: int, stop: int) -> AsyncGenerator[bytes, None]:
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except FileNotFoundError:
        raise no_such_job() from None
    with file:
        file.seek(start)
        while start < stop:
            piece = await asyncio.to_thread(file.read, min(stop - start, _READ_BYTES))
            assert piece, "a result does not change"
            start += len(piece)
            yield piece


_ID: Final = openapi.part("id", "the job's")
_ERRORS: Final = ("no-jobs", "no-job")
_ADD: Final = openapi.operation(
    "jobs",
    "addJob",
    "Have a stream made into a file.",
    description=(
        "The file has the bytes of /v1/stream. It is made beside whatever is asked for at once, by whichever worker "
        "has time; if that one dies, another goes on. Each part is counted against the rate and the quota of whoever "
        "asked, and waits for them."
    ),
    body=openapi.body("StreamBody"),
    status=202,
    found="Taken on.",
    headers=("Location",),
    content=openapi.json_of("JobModel"),
    errors=(*openapi.BODY, *openapi.ASKED, "no-jobs", "storage", "deadline"),
)
_LIST: Final = openapi.operation(
    "jobs", "listJobs", "One's own jobs, oldest first.", content=openapi.json_of("JobList"), errors=("no-jobs",)
)
_SHOW: Final = openapi.operation(
    "jobs",
    "getJob",
    "How far a job is.",
    parameters=[_ID],
    content=openapi.json_of("JobModel"),
    errors=_ERRORS,
)
_REMOVE: Final = openapi.operation(
    "jobs",
    "removeJob",
    "Cancel a job, or forget its result.",
    parameters=[_ID],
    status=204,
    found="It is gone.",
    content={},
    errors=_ERRORS,
)
_RESULT: Final = openapi.operation(
    "jobs",
    "getResult",
    "A job's file: whole, or one range of its bytes (206).",
    parameters=[_ID, openapi.header("Range", "one range of bytes, to go on where a download was cut")],
    headers=("Repr-Digest", "Content-Range"),
    content={media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()},
    cached=True,
    errors=(*_ERRORS, "not-finished", "range"),
)
_RESULT["responses"]["206"] = {**_RESULT["responses"]["200"], "description": "The range."}
