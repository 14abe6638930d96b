"""POST /v1/stream: images of any number through one connection, at the pace of its reader."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from augmint.endmark import StreamForm
from augmint.errors import RequestError, TooLargeError, UnavailableError
from augmint.samples import Request
from serving import openapi
from serving.bundles import Served
from serving.context import Context
from serving.exchange import Answer, Exchange, Headers, Route
from serving.library import Library
from serving.maker import Maker
from serving.replies import about, samples_of
from serving.schema import StreamBody, parse_stream
from serving.settings import Settings
from serving.streams import MEDIA_TYPES, MOST_IN_ZIP, StreamWriter, writer_of

__all__ = ["Streams", "Wish", "read_wish"]

# Of one part: as many rows as session calls like, and few enough that a stream's memory is small.
_PART_BYTES: Final = 1 << 20
_PART_ROWS: Final = 512


@dataclass(frozen=True, slots=True)
class Wish:
    """A stream that was asked for, checked.

    Attributes:
        served: the bundle.
        request: for the whole.
        start, stop: rows of the whole that the stream has.
        form: of its bytes.
        part_rows: how many rows are made at once.
    """

    served: Served
    request: Request
    start: int
    stop: int
    form: StreamForm
    part_rows: int

    @property
    def images(self) -> int:
        return self.stop - self.start

    def writer(self) -> StreamWriter:
        return writer_of(self.form, images=self.images, first=self.start, image_shape=self.served.info.image_shape)


def read_wish(body: StreamBody, library: Library, settings: Settings) -> Wish:
    """Check what was asked for.

    Raises:
        RequestError: see `Request.make`; or rows that are not there, or more than a zip may have.
    """
    served = library.find(body.bundle)
    request = Request.make(
        body.counts,
        served.info.class_names,
        seed=body.seed_number,
        offset=int(body.offset),
        truncation=body.truncation,
        edit=body.edit,
        editable=served.info.edits,
    )
    start, stop = int(body.start), request.total if body.stop is None else int(body.stop)
    if not start < stop <= request.total:
        raise RequestError(
            f"start and stop must be rows of the {request.total} that are asked for, start below stop, not {start} and "
            f"{stop}."
        )
    if body.format == "zip" and stop - start > MOST_IN_ZIP:
        raise TooLargeError(
            f"a zip holds at most {MOST_IN_ZIP} images, not {stop - start}: ask for the format tar or npy, or for "
            "fewer rows with start and stop."
        )
    rows = max(served.lane.batch, min(_PART_BYTES // math.prod(served.info.image_shape), _PART_ROWS))
    return Wish(served, request, start, stop, body.format, min(rows, settings.max_images))


class Streams:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._under_way = 0
        self.routes = [Route("POST", "/v1/stream", self._stream, _STREAM)]

    async def _stream(self, exchange: Exchange) -> Answer:
        library, maker = self._context.require()
        settings = self._context.settings
        wish = read_wish(parse_stream(await exchange.body(settings.max_body)), library, settings)
        if self._under_way >= settings.streams:
            raise UnavailableError(
                f"{self._under_way} streams are under way already, the most there may be: try again shortly.",
                code="service.queue-full",
                retry_after=5.0,
            )
        writer = wish.writer()
        headers: Headers = [*about(wish.served, wish.request), (b"cache-control", b"no-store")]
        if writer.length is not None:
            headers.append((b"content-length", str(writer.length).encode()))
        answer = Answer(200, MEDIA_TYPES[wish.form].encode(), b"", headers)
        pieces = self._pieces(wish, writer, maker, exchange, answer)
        # The first one now: what refuses it is a problem of its own, and not a stream that was cut.
        answer.body = await anext(pieces)
        answer.stream = pieces
        return answer

    async def _pieces(
        self, wish: Wish, writer: StreamWriter, maker: Maker, exchange: Exchange, answer: Answer
    ) -> AsyncGenerator[bytes, None]:
        parts = wish.request.parts(wish.part_rows, wish.start, wish.stop)
        made = maker.pieces(wish.served, parts, exchange)
        self._under_way += 1
        try:
            async for part, images in made:
                yield await maker.aside(lambda: _encoded(wish.served, part, images, writer))  # noqa: B023
                answer.images = writer.written
        finally:
            self._under_way -= 1
            await made.aclose()


def _encoded(served: Served, part: Request, images: NDArray[np.uint8], writer: StreamWriter) -> bytes:
    return writer.write(samples_of(served, part, images))


_STREAM: Final = openapi.operation(
    "images",
    "stream",
    "Images of any number through one connection.",
    description=(
        "The rows are those of /v1/generate, in the same order, made as the reader takes them. The last bytes are an "
        "end mark: how many images there were, and the sha256 of all bytes before it; a stream without it was cut. A "
        "reader that takes nothing for the service's time limit is cut off. To go on after a cut, ask for the same "
        "seed with `start`: the answer is a whole file of the rows from there."
    ),
    body=openapi.body("StreamBody"),
    found="The images; the end mark says whether all of them.",
    headers=openapi.ABOUT,
    content={media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()},
    errors=(*openapi.BODY, *openapi.ASKED, *openapi.LATE),
)
