"""POST /v1/generate: images by label. POST /v1/plan: how many images would balance these counts."""

from __future__ import annotations

import math

from augmint.balancing import plan
from augmint.errors import RequestError, TooLargeError, UsageError
from augmint.samples import Request
from serving import accept, openapi
from serving.codecs import FORMATS, ONE_IMAGE
from serving.context import Context
from serving.exchange import FRESH, JSON, Answer, Exchange, Headers, Route, to_json
from serving.replies import etag, known, made
from serving.schema import parse_body, parse_plan

__all__ = ["Generate"]


class Generate:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.routes = [
            Route("POST", "/v1/generate", self._generate, _GENERATE),
            Route("POST", "/v1/plan", self._plan, _PLAN),
        ]

    async def _generate(self, exchange: Exchange) -> Answer:
        library, maker = self._context.require()
        settings = self._context.settings
        wish = parse_body(await exchange.body(settings.max_body))
        served = library.find(wish.bundle)
        request = wish.request(served.info, quality=wish.quality, candidates=wish.candidates)
        if request.total > settings.max_images:
            raise TooLargeError(
                f"{request.total} images are more than the {settings.max_images} that one request may have: ask in "
                "several requests, with offset."
            )
        form = wish.format or accept.choose(exchange.headers.get(b"accept", b"").decode("latin-1"), request.total)
        if form in ONE_IMAGE and request.total != 1:
            raise RequestError(f"{form} holds one image, not {request.total}: ask for one, or for the format zip.")
        headers: Headers = [(b"vary", b"accept")]
        if wish.seed is None:
            headers.append(FRESH)
        else:
            # The answer is a function of the request alone, so its tag is known before it is made.
            tag = etag(served, request, form)
            headers.append((b"etag", tag))
            if (already := known(exchange, served, request, tag, headers)) is not None:
                return already
        return await made(maker, served, request, form, exchange, headers)

    async def _plan(self, exchange: Exchange) -> Answer:
        """What would balance a data set with these counts, and what it would cost here."""
        library, maker = self._context.require()
        settings = self._context.settings
        wish = parse_plan(await exchange.body(settings.max_body))
        served = library.find(wish.bundle)
        names = served.info.class_names
        try:
            counts = plan(wish.counts, wish.strategy)
        except UsageError as error:
            raise RequestError(str(error)) from None
        asked = {label: n for label, n in counts.items() if n}
        if asked:
            Request.make(asked, names)  # for its sentence about labels that are not there
        total = sum(asked.values())
        seconds = total * served.lane.seconds_per_image / maker.threads
        document = {
            "bundle": served.info.digest,
            "counts": counts,
            "images": total,
            "bytes": total * math.prod(served.info.image_shape),
            "requests": -(-total // settings.max_images),
            "seconds": round(seconds, 3) if served.lane.seconds_per_image else None,
            "waiting": maker.pending,
        }
        return Answer(200, JSON, to_json(document), [FRESH])


_GENERATE = openapi.operation(
    "images",
    "generate",
    "Images by label.",
    description=(
        "Safe and idempotent: with a seed the answer is a function of the request. That is why a POST honours "
        "If-None-Match as a GET does, with 304."
    ),
    parameters=[openapi.ACCEPT],
    body=openapi.body("GenerateBody"),
    found="The images, in the order of the labels asked for, indices rising within each.",
    headers=(*openapi.MADE, *openapi.JUDGED),
    content={
        media.name: {"schema": {"type": "string", "format": "binary", "description": media.description}}
        for media in FORMATS.values()
    },
    cached=True,
    errors=(*openapi.BODY, *openapi.ASKED, *openapi.LATE, "not-acceptable", "quality"),
)
_PLAN = openapi.operation(
    "images",
    "plan",
    "How many images would balance these counts, and what they would cost.",
    body=openapi.body("PlanBody"),
    content=openapi.json_of("PlanModel"),
    errors=(*openapi.BODY, "unknown-bundle", "unknown-label", "invalid", "deadline"),
)
