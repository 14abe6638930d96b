"""Triton through nvidia-pytriton: dynamic batching, a session of one thread for each core, binary tensors over HTTP.

python -m benchmarks.peers.triton_batched PORT

Each row of the input is one image; rows of PNGs come as byte strings, as Triton has them.
"""

from __future__ import annotations

import sys

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.common import CORES, Generator, png


@batch
def npy(wish: np.ndarray) -> dict[str, np.ndarray]:
    return {"image": generator.images(len(wish))}


@batch
def pngs(wish: np.ndarray) -> dict[str, np.ndarray]:
    files = [[png(image)] for image in generator.images(len(wish))]
    return {"image": np.array(files, dtype=object)}


if __name__ == "__main__":
    generator = Generator()
    config = ModelConfig(max_batch_size=1024, batcher=DynamicBatcher(max_queue_delay_microseconds=0))
    addresses = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(sys.argv[1]),
        allow_grpc=False,
        allow_metrics=False,
        exit_timeout_secs=5,
    )
    shape = generator.images(1).shape[1:]
    with Triton(config=addresses) as triton:
        wish = [Tensor(name="wish", dtype=np.uint8, shape=(1,))]
        image = Tensor(name="image", dtype=np.uint8, shape=shape)
        triton.bind("npy", [npy] * CORES, inputs=wish, outputs=[image], config=config)
        file = Tensor(name="image", dtype=np.bytes_, shape=(1,))
        triton.bind("png", [pngs] * CORES, inputs=wish, outputs=[file], config=config)
        triton.serve()
