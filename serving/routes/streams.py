"""POST /v1/stream: images of any number through one connection, at the pace of its reader."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Final

from augmint.errors import UnavailableError
from serving import openapi
from serving.context import Context
from serving.exchange import FRESH, Answer, Exchange, Headers, Route
from serving.maker import Maker
from serving.replies import about
from serving.schema import parse_stream
from serving.streams import MEDIA_TYPES, StreamWriter
from serving.wish import Wish, read_wish

__all__ = ["Streams"]


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
        headers: Headers = [*about(wish.served, wish.request), FRESH]
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
        parts = wish.parts(maker.most_at_once(exchange.caller))
        made = maker.pieces(wish.served, parts, exchange)
        self._under_way += 1
        try:
            async for part, images in made:
                begun = time.monotonic()
                piece = await maker.aside(lambda: wish.encoded(part, images, writer))  # noqa: B023
                exchange.encoded(begun, wish.form, len(piece))
                yield piece
                answer.images = writer.written
        finally:
            self._under_way -= 1
            await made.aclose()


_STREAM: Final = openapi.operation(
    "images",
    "stream",
    "Images of any number through one connection.",
    description=(
        "The rows are those of /v1/generate, in the same order, made as the reader takes them. The last bytes are an "
        "end mark: how many images there were, and the sha256 of all bytes before it; a stream without it was cut. A "
        "reader that takes nothing for the service's time limit is cut off. To go on after a cut, ask for the same "
        "seed with `start`: the answer is a whole file of the rows from there. X-Request-Timeout-Ms holds for each "
        "part that is made, as the service's limit does."
    ),
    body=openapi.body("StreamBody"),
    found="The images; the end mark says whether all of them.",
    headers=openapi.ABOUT,
    content={media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()},
    errors=(*openapi.BODY, *openapi.ASKED, *openapi.LATE),
)
