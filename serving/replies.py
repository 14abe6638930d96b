"""Images as answers: the headers that say what they are, ETags that are known before they are made, the body."""

from __future__ import annotations

import hashlib
import time
from typing import Final

import isal
import numpy as np
from numpy.typing import NDArray
from PIL import features

from augmint import __version__
from augmint.errors import RequestError
from augmint.quality import REASONS
from augmint.samples import Request, Samples
from serving.bundles import Served
from serving.codecs import CODEC_VERSION, FORMATS, ONE_IMAGE, Format, encode, encode_npy
from serving.exchange import Answer, Exchange, Headers, matches, repr_digest
from serving.maker import Maker

__all__ = ["INLINE_BYTES", "about", "etag", "known", "made", "samples_of"]

# Images up to this size are encoded where they stand: handing them to a thread would cost more.
INLINE_BYTES: Final = 32_768
_INLINE_BYTES_ENCODED: Final = 16_384
_VERSIONS: Final = (__version__, np.__version__, isal.__version__, features.version("webp"))


def about(served: Served, request: Request) -> Headers:
    """What the images are, whichever way they are asked for."""
    return [
        (b"augmint-requested", str(request.total).encode()),
        (b"augmint-bundle", served.info.digest.encode()),
        (b"augmint-seed", str(request.seed).encode()),
        (b"augmint-reproducibility", served.info.reproducibility.encode()),
    ]


def etag(served: Served, request: Request, form: str, *more: object) -> bytes:
    """A strong ETag: two answers with the same tag are the same bytes, on whichever machine they were made."""
    parts = (
        served.info.digest,
        served.arithmetic,
        request.counts,
        request.seed,
        request.offset,
        request.truncation,
        (str(request.quality), request.candidates, served.judging) if request.quality else "",
        request.edit,
        form,
        CODEC_VERSION,
        _VERSIONS,
        *more,
    )
    # BLAKE2 because it is there at once; hashlib looks up OpenSSL's SHA-256 anew each time.
    hashed = hashlib.blake2b(repr(parts).encode("utf-8", "backslashreplace"), digest_size=20)
    return b'"' + hashed.hexdigest().encode() + b'"'


def known(exchange: Exchange, served: Served, request: Request, tag: bytes, headers: Headers) -> Answer | None:
    """304 where the client has it already, so that nothing is made."""
    if not matches(exchange.headers.get(b"if-none-match"), tag):
        return None
    return Answer(304, b"", b"", [*about(served, request), *headers])


async def made(
    maker: Maker, served: Served, request: Request, form: Format, exchange: Exchange, headers: Headers
) -> Answer:
    """Have the images made and encoded.

    Raises:
        UnavailableError, DeadlineError, ServiceError, ClientGoneError: see `Maker`.
        RequestError: one image was asked for under a quality, and there is none.
    """
    maker.take(exchange, request.total)
    headers = [*about(served, request), *headers]
    images: NDArray[np.uint8] | Samples
    if request.quality:
        images = await maker.select(served, request, exchange)
        headers += _account(maker, served, request, images)
        if form in ONE_IMAGE and not len(images):
            raise RequestError(
                f"none of the {sum(images.generated.values())} images that were made was {request.quality}: "
                "ask for a lower quality, or with a higher offset.",
                code="request.quality",
            )
        size = images.images.nbytes
    else:
        images = await maker.images(served, request, exchange)
        size = images.nbytes
    begun = time.monotonic()
    if size <= (INLINE_BYTES if form in ("npy", "npz") else _INLINE_BYTES_ENCODED):
        body, digest = _encode(served, request, images, form)
    else:
        body, digest = await maker.aside(lambda: _encode(served, request, images, form))
    exchange.encoded(begun, form, len(body))
    headers += [(b"augmint-delivered", str(len(images)).encode()), (b"repr-digest", digest)]
    return Answer(200, FORMATS[form].name.encode(), body, headers, images=len(images))


def samples_of(served: Served, request: Request, images: NDArray[np.uint8]) -> Samples:
    """The images with their addresses."""
    labels, indices = request.addresses()
    return Samples(
        images=images,
        labels=labels,
        seeds=np.full(request.total, request.seed, dtype=np.uint64),
        indices=indices,
        class_names=served.info.class_names,
        bundle=served.info.digest,
        reproducibility=served.info.reproducibility,
        truncation=request.truncation,
        requested=dict(request.counts),
        edit=dict(request.edit),
    )


def _encode(served: Served, request: Request, images: NDArray[np.uint8] | Samples, form: Format) -> tuple[bytes, bytes]:
    """The body and its Repr-Digest."""
    if isinstance(images, Samples):
        body = encode(images, form)
    elif form == "npy":  # needs no addresses, and is what the fastest clients ask for
        body = encode_npy(images)
    else:
        body = encode(samples_of(served, request, images), form)
    return body, repr_digest(body)


def _account(maker: Maker, served: Served, request: Request, samples: Samples) -> Headers:
    totals = dict.fromkeys(REASONS, 0)
    for counts in samples.rejected.values():
        for reason, n in zip(REASONS, counts, strict=True):
            totals[reason] += n
    for reason, n in totals.items():
        maker.metrics.unfit(served.info.name, reason, n)
    return [
        (b"augmint-quality", str(request.quality).encode()),
        (b"augmint-generated", str(sum(samples.generated.values())).encode()),
        (b"augmint-rejected", ", ".join(f"{reason}={n}" for reason, n in totals.items()).encode()),
    ]
