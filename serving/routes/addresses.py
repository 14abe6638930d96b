"""Images and shards by address: functions of the path, so whoever caches an answer need never ask again."""

from __future__ import annotations

import re
import time
from typing import Final

from augmint.errors import RequestError, TooLargeError
from augmint.samples import Request
from serving import openapi
from serving.bundles import Served
from serving.codecs import Format
from serving.context import Context
from serving.exchange import Answer, Exchange, Headers, Route, repr_digest
from serving.replies import about, etag, known, made, samples_of
from serving.shards import MOST_SHARDS, Cycle, shard_request, tar

__all__ = ["Addresses"]

_FORM_OF_IMAGE: Final[dict[str, Format]] = {"png": "png", "npy": "npy", "webp": "webp"}


class Addresses:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.routes = [
            Route("GET", "/v1/bundles/{bundle}/images/{label}/{seed}/{index}.{format}", self._image, _IMAGE),
            Route("GET", "/v1/bundles/{bundle}/images/{seed}/{index}.{format}", self._image, _UNLABELLED),
            Route("GET", "/v1/bundles/{bundle}/shards/{shard}.tar", self._shard, _SHARD),
        ]

    async def _image(self, exchange: Exchange) -> Answer:
        library, maker = self._context.require()
        served = library.find(exchange.params["bundle"])
        form = _FORM_OF_IMAGE.get(exchange.params["format"])
        if form is None:
            raise RequestError("an image has the ending .png, .npy or .webp.", code="request.not-found")
        label = exchange.params.get("label")
        truncation, edit = exchange.query("truncation", "edit")
        request = Request.make(
            1 if label is None else {label: 1},
            served.info.class_names,
            seed=_number(exchange.params["seed"], "seed"),
            offset=_number(exchange.params["index"], "index"),
            truncation=_share(truncation),
            edit=_edit(edit),
            editable=served.info.edits,
        )
        tag = etag(served, request, form)
        headers = self._lasting(exchange, served, tag)
        if (already := known(exchange, served, request, tag, headers)) is not None:
            return already
        return await made(maker, served, request, form, exchange, headers)

    async def _shard(self, exchange: Exchange) -> Answer:
        """A piece of an endless data set: `webdataset` reads shards/{000000..000099}.tar."""
        library, maker = self._context.require()
        most = self._context.settings.max_images
        served = library.find(exchange.params["bundle"])
        k = _number(exchange.params["shard"], "the shard")
        per_shard, seed, labels, truncation = exchange.query("per_shard", "seed", "labels", "truncation")
        rows = _number(per_shard or "1000", "per_shard")
        if not rows >= 1 or k >= MOST_SHARDS:
            raise RequestError(f"per_shard must be 1 or more, and the shard below {MOST_SHARDS}.")
        if rows > most:
            raise TooLargeError(f"{rows} images are more than the {most} that a shard may have.")
        names = served.info.class_names
        cycle = Cycle.parse(labels or "balanced", names)
        request, order = shard_request(
            cycle, k, rows, names, seed=_number(seed or "0", "seed"), truncation=_share(truncation)
        )
        tag = etag(served, request, "png", k, rows, cycle.turns, request.firsts)
        headers = self._lasting(exchange, served, tag)
        if (already := known(exchange, served, request, tag, headers)) is not None:
            return already
        maker.take(exchange, request.total)
        images = await maker.images(served, request, exchange)
        begun = time.monotonic()
        begun = time.monotonic()
        body = await maker.aside(lambda: tar(samples_of(served, request, images), order, k))
        exchange.encoded(begun, "tar", len(body))
        if exchange.trace is not None:
            exchange.trace.add("encode", begun, time.monotonic(), {"augmint.format": "tar", "augmint.bytes": len(body)})
        headers += [*about(served, request), (b"augmint-delivered", str(rows).encode())]
        return Answer(200, b"application/x-tar", body, [*headers, (b"repr-digest", repr_digest(body))], images=rows)

    def _lasting(self, exchange: Exchange, served: Served, tag: bytes) -> Headers:
        """ETag and Cache-Control of what an address gives: for ever, if it names the bundle by its digest."""
        whose = b"private" if self._context.door.asks_for_tokens else b"public"
        by_digest = exchange.params["bundle"].endswith(served.info.digest)
        return [
            (b"etag", tag),
            (b"cache-control", whose + (b", max-age=31536000, immutable" if by_digest else b", no-cache")),
        ]


def _number(text: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise RequestError(f"{what} must be a whole number, 0 or more, not {text[:40]!r}.")
    return int(text)


def _share(text: str | None) -> float:
    if text is None:
        return 1.0
    if not re.fullmatch(r"[0-9]{0,3}(\.[0-9]{1,17})?", text) or not text:
        raise RequestError(f"truncation must be a number above 0, at most 1, not {text[:40]!r}.")
    return float(text)


def _edit(text: str | None) -> dict[str, float]:
    """ "slant:1.5,size:-1" -> amounts by attribute."""
    amounts: dict[str, float] = {}
    for part in text.split(",") if text else []:
        name, colon, amount = part.partition(":")
        if not colon or name in amounts or not re.fullmatch(r"[+-]?[0-9]{1,3}(\.[0-9]{1,17})?", amount):
            raise RequestError(f"edit must be amounts by attribute, such as slant:1.5,size:-1, not {text!r:.80}.")
        amounts[name] = float(amount)
    return amounts


_DIGITS: Final = "^[0-9]{1,20}$"
_TRUNCATION: Final = openapi.option("truncation", "above 0, at most 1; 1 by default", r"^[0-9]{0,3}(\.[0-9]{1,17})?$")
_PARTS: Final = [
    openapi.part("seed", "0 … 2^64 - 1", _DIGITS),
    openapi.part("index", "0 … 2^64 - 2", _DIGITS),
    openapi.part("format", "png, npy or webp (lossless)", "^(png|npy|webp)$"),
    _TRUNCATION,
    openapi.option("edit", "amounts by attribute, such as slant:1.5,size:-1"),
]
_ERRORS: Final = (*openapi.ASKED, *openapi.LATE, "not-found")


def _image_operation(name: str, *parts: dict[str, object]) -> dict[str, object]:
    return openapi.operation(
        "images",
        name,
        "One image by its address; a bundle named by its digest makes the answer cacheable for ever.",
        parameters=[openapi.BUNDLE, *parts, *_PARTS],
        content={"image/png": {}, "application/x-npy": {}, "image/webp": {}},
        headers=openapi.MADE,
        cached=True,
        errors=_ERRORS,
    )


_IMAGE: Final = _image_operation("getImage", openapi.part("label", "a label of the bundle"))
_UNLABELLED: Final = _image_operation("getUnlabelledImage")
_SHARD: Final = openapi.operation(
    "images",
    "getShard",
    "A piece of an endless data set, as the webdataset library reads it: key.png and key.cls, in turn by label.",
    parameters=[
        openapi.BUNDLE,
        openapi.part("shard", "its number, from 0, with or without leading zeros", _DIGITS),
        openapi.option("per_shard", "images of a shard; 1000 by default", _DIGITS),
        openapi.option("seed", "0 by default", _DIGITS),
        openapi.option("labels", "balanced (the default), or weights such as a:2,b:1"),
        _TRUNCATION,
    ],
    content={"application/x-tar": {}},
    headers=openapi.MADE,
    cached=True,
    errors=_ERRORS,
)
