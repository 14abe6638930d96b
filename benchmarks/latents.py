"""What latents cost beside the generator they feed: their share of its inference, image by image.

    python benchmarks/latents.py demo-out/bundles/plain demo-out/bundles/digits

One thread each, in one interleaved run; prints µs an image and the ratio at several batch sizes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from augmint.generator import Generator
from augmint.latents import latents


def microseconds(call: Callable[[], object], seconds: float) -> float:
    """The fastest of many calls, which is what other work on the machine disturbs least."""
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def main(paths: list[str]) -> None:
    print(f"{'bundle':<28}{'batch':>6}{'latents µs':>12}{'inference µs':>14}{'ratio':>8}")
    for path in paths:
        generator = Generator(path, device="cpu", threads=1)
        dim = generator.manifest.sampling.latent_dim
        for batch in (1, 8, 64):
            indices, labels = np.arange(batch, dtype=np.uint64), np.zeros(batch, dtype=np.int64)
            latent = latents(7, indices, dim)
            ours = microseconds(lambda n=indices, d=dim: latents(7, n, d), 0.7) / batch
            theirs = microseconds(lambda g=generator, z=latent, y=labels: g.run(z, y), 0.7) / batch
            print(f"{path[-27:]:<28}{batch:>6}{ours:>12.2f}{theirs:>14.2f}{ours / theirs:>8.3f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python benchmarks/latents.py BUNDLE…")
    main(sys.argv[1:])
