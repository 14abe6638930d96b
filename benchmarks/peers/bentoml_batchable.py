"""BentoML with `batchable=True`: its dispatcher gathers the rows of several requests, `images` makes them in one go.

bentoml serve benchmarks.peers.bentoml_batchable:Images

A body is a list with an entry for each image. The answers are bytes, not BentoML's JSON of an array, which would take a
hundred times as long.
"""

from __future__ import annotations

from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import ContentType
from pydantic import PlainSerializer

from benchmarks.peers.common import CORES, Generator, encode

Npy = Annotated[Any, PlainSerializer(lambda images: encode(images, "npy")), ContentType("application/octet-stream")]
Png = Annotated[Any, PlainSerializer(lambda images: encode(images, "png")), ContentType("application/octet-stream")]


# One worker a core, each with a session of one thread. The dispatcher drops what it believes to be late, hence a limit
# that it never reaches.
@bentoml.service(workers=CORES)
class Images:
    def __init__(self) -> None:
        self.generator = Generator()

    @bentoml.api(batchable=True, max_batch_size=2048, max_latency_ms=60_000)
    def npy(self, wishes: list[int]) -> Npy:
        return self.images(wishes)

    @bentoml.api(batchable=True, max_batch_size=2048, max_latency_ms=60_000)
    def png(self, wishes: list[int]) -> Png:
        return self.images(wishes)

    def images(self, wishes: list[int]) -> np.ndarray:
        return self.generator.images(len(wishes))
