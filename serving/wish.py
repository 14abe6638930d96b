"""A stream that is asked for, as /v1/stream answers it at once and /v1/jobs in a file: checked, and cut into parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from augmint.endmark import StreamForm
from augmint.errors import RequestError, TooLargeError
from augmint.samples import Request
from serving.bundles import Served
from serving.library import Library
from serving.replies import samples_of
from serving.schema import StreamBody
from serving.settings import Settings
from serving.streams import MOST_IN_ZIP, StreamWriter, writer_of

__all__ = ["Wish", "read_wish"]

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

    def parts(self, most: int | None, done: int = 0) -> Iterator[Request]:
        """What is to be made at once, after the first `done` rows, where nobody may have more than `most` at once."""
        rows = self.part_rows if most is None else min(self.part_rows, most)
        return self.request.parts(rows, self.start + done, self.stop)

    def encoded(self, part: Request, images: NDArray[np.uint8], writer: StreamWriter) -> bytes:
        """The next part's images as the writer's next bytes."""
        return writer.write(samples_of(self.served, part, images))


def read_wish(body: StreamBody, library: Library, settings: Settings) -> Wish:
    """Check what was asked for.

    Raises:
        RequestError: see `Request.make`; or rows that are not there, or more than a zip may have.
    """
    served = library.find(body.bundle)
    request = body.request(served.info)
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
