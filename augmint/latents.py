"""The rule from (seed, index) to a latent vector: integer arithmetic and a table look-up, the same bits everywhere.

A latent of `dim` numbers is made from `ceil(dim / 8)` blocks of Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel
Random Numbers: As Easy as 1, 2, 3", SC 2011, sections 3.3 and 4) with

    key     = (seed low 32 bits, seed high 32 bits)
    counter = (block, 0, index low 32 bits, index high 32 bits)

Each block gives four 32-bit words; each word gives two 16-bit lanes, low half first; each lane indexes a table of
65,536 float32 values, the standard normal's inverse distribution function at (lane + 1/2) / 65536.

Why so: no Box–Muller (log and cos differ in the last bit by processor and library), no stateful generator (image 7 of
a request for 10 must be image 7 of a request for 10,000), nothing that another language could not repeat in 20 lines.
Truncation by t in (0, 1] maps the lane linearly onto the central share t of the table, in integers: a truncated normal,
still exact.

This module deliberately knows nothing of labels, bundles or batches: the latent depends on (seed, index) alone.
"""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from importlib import resources
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ALGORITHM", "MAX_DIM", "TABLE_SHA256", "latents", "normal_table", "philox4x32"]

ALGORITHM: Final = "philox4x32-10/normal-table-65536"
LANES_PER_BLOCK: Final = 8
MAX_DIM: Final = 65_536
TABLE_SHA256: Final = "6621a18f629e82396c088501c1095eae46f6d8033b42db7b4158e0f4cf34a0ce"

_MULTIPLIERS: Final = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_MASK32: Final = np.uint64(0xFFFFFFFF)
_SHIFT32: Final = np.uint64(32)
_ROUNDS: Final = 10
# Where the halves of a 64-bit product lie in memory.
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)
# What is added to the key before each round, [rounds, 2, 1]: r times the golden ratio's and sqrt(3) - 1's 32 bits.
_WEYL_STEPS: Final = np.arange(_ROUNDS, dtype=np.uint64)[:, None, None] * np.array(
    [[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64
)


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Ten rounds of Philox4x32 on many counters at once.

    Args:
        counter: uint32 [4, N].
        key: uint32 [2, N] (or broadcastable to it).

    Returns:
        uint32 [4, N], the random words.

    >>> zero = np.zeros((4, 1), np.uint32)
    >>> [hex(word) for word in philox4x32(zero, zero[:2])[:, 0]]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    # Words 0 and 2 are multiplied, words 1 and 3 are mixed in: each pair is two rows of one array, and the halves of a
    # product are views of it. That leaves four numpy calls a round, which is what a small batch pays for.
    n = counter.shape[1]
    round_keys = (key + _WEYL_STEPS).astype(np.uint32)
    product = np.empty((2, n), dtype=np.uint64)
    halves = product.view(np.uint32).reshape(2, n, 2)
    high, low = halves[::-1, :, _HIGH], halves[::-1, :, _LOW]
    multiplied, mixed = counter[0::2], counter[1::2]
    for keys in round_keys:
        # (c0, c1, c2, c3) -> (hi(m1 c2) ^ c1 ^ k0, lo(m1 c2), hi(m0 c0) ^ c3 ^ k1, lo(m0 c0))
        np.multiply(multiplied, _MULTIPLIERS, out=product)
        multiplied = high ^ mixed
        multiplied ^= keys
        mixed = low.copy()
    words = np.empty((4, n), dtype=np.uint32)
    words[0::2] = multiplied
    words[1::2] = mixed
    return words


@cache
def normal_table() -> NDArray[np.float32]:
    """The inverse-normal table, float32 [65536], strictly increasing and odd about its middle; read-only.

    Half of it is shipped as a file rather than computed: `log` differs between C libraries in the last bit.
    """
    half_bytes = resources.files("augmint").joinpath("normal_table.f32").read_bytes()
    digest = hashlib.sha256(half_bytes).hexdigest()
    if digest != TABLE_SHA256:
        raise RuntimeError(f"augmint/normal_table.f32 is damaged (sha256 {digest}): reinstall augmint.")
    half = np.frombuffer(half_bytes, dtype="<f4").astype(np.float32)
    table = np.concatenate([-half[::-1], half])
    table.setflags(write=False)
    return table


def latents(seeds: ArrayLike, indices: ArrayLike, dim: int, truncation: ArrayLike = 1.0) -> NDArray[np.float32]:
    """Latent vectors for N addresses.

    Args:
        seeds: uint64 [N] or a scalar.
        indices: uint64 [N] or a scalar; broadcast against `seeds`.
        dim: length of each vector, 1 … 65,536.
        truncation: share of the normal's central mass to draw from, in (0, 1]; scalar or [N]. It is honoured in steps
            of 1/65536.

    Returns:
        float32 [N, dim], C-contiguous, each value within ±4.33.

    >>> latents(seeds=0, indices=[0, 1], dim=2).shape
    (2, 2)
    >>> bool((latents(7, [5], 3) == latents(7, [4, 5], 3)[1:]).all())
    True
    """
    if not 1 <= dim <= MAX_DIM:
        raise ValueError(f"dim must be in 1 … {MAX_DIM}, not {dim}")
    seed, index = _uint64(seeds, "seeds"), _uint64(indices, "indices")
    n = max(len(seed), len(index)) if len(seed) and len(index) else 0
    blocks = -(-dim // LANES_PER_BLOCK)
    counter = np.zeros((4, n, blocks), dtype=np.uint32)
    counter[0] = np.arange(blocks, dtype=np.uint32)
    counter[2] = (index & _MASK32)[:, None]
    counter[3] = (index >> _SHIFT32)[:, None]
    key = np.empty((2, n, blocks), dtype=np.uint32)
    key[0] = (seed & _MASK32)[:, None]
    key[1] = (seed >> _SHIFT32)[:, None]
    words = philox4x32(counter.reshape(4, -1), key.reshape(2, -1))

    # [4, N * blocks] -> [N, blocks * 4] -> 16-bit lanes [N, blocks * 8], low half first on any byte order.
    words = np.ascontiguousarray(words.reshape(4, n, blocks).transpose(1, 2, 0)).astype("<u4", copy=False)
    lanes = words.view("<u2").reshape(n, blocks * LANES_PER_BLOCK)[:, :dim]

    share = np.asarray(truncation, dtype=np.float64)
    if not ((share > 0.0) & (share <= 1.0)).all():  # also catches NaN
        raise ValueError("truncation must be in (0, 1]")
    if not (share == 1.0).all():
        steps = np.maximum(np.rint(share * 65536.0).astype(np.int64), 1)
        # Twice the lane's distance from the middle, scaled, and back: 0 … 65535 onto the central share, in integers.
        steps = np.broadcast_to(steps.reshape(-1, 1), (n, 1))
        lanes = ((2 * lanes.astype(np.int64) - 65535) * steps + (1 << 32)) >> 17
    drawn: NDArray[np.float32] = normal_table()[lanes]
    return drawn


def _uint64(values: ArrayLike, what: str) -> NDArray[np.uint64]:
    # An array of Python ints that straddles 2^63 is silently float64, and has then lost its low bits.
    if isinstance(values, np.ndarray) and values.dtype.kind not in "iu":
        raise ValueError(f"{what} must be integers, not {values.dtype}")
    return np.atleast_1d(np.asarray(values, dtype=np.uint64))
