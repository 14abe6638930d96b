"""LitServe with its batching and its fast queue, a worker of one thread a core.

python -m benchmarks.peers.litserve_batched PORT
"""

from __future__ import annotations

import sys

import litserve
import numpy as np
from fastapi import Response

from benchmarks.peers.common import CORES, Generator, encode


class Images(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.generator = Generator()

    def decode_request(self, request: dict) -> tuple[int, str]:
        return request["n"], request["form"]

    def batch(self, inputs: list[tuple[int, str]]) -> list[tuple[int, str]]:
        return inputs

    def predict(self, wishes: list[tuple[int, str]]) -> list[tuple[np.ndarray, str]]:
        images = self.generator.images(sum(n for n, _ in wishes))
        ends = np.cumsum([n for n, _ in wishes])
        return [(images[end - n : end], form) for end, (n, form) in zip(ends, wishes, strict=True)]

    def unbatch(self, output: list[tuple[np.ndarray, str]]) -> list[tuple[np.ndarray, str]]:
        return output

    def encode_response(self, output: tuple[np.ndarray, str]) -> Response:
        return Response(encode(*output), media_type="application/octet-stream")


if __name__ == "__main__":
    api = Images(max_batch_size=32, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=CORES, fast_queue=True, timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
