"""The rule from (seed, index) to a latent: published vectors, and its independence of everything else."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augmint.latents import latents, normal_table, philox4x32

# Random123's kat_vectors for philox4x32, 10 rounds: counter, key, expected words.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
U64 = st.integers(0, 2**64 - 1)


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)[:, None]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_gives_the_published_vectors(counter: str, key: str, expected: str) -> None:
    np.testing.assert_array_equal(philox4x32(words(counter), words(key)), words(expected))


def test_philox_on_many_counters_is_philox_on_each() -> None:
    counters = np.concatenate([words(counter) for counter, _, _ in VECTORS], axis=1)
    keys = np.concatenate([words(key) for _, key, _ in VECTORS], axis=1)
    expected = np.concatenate([words(expected) for _, _, expected in VECTORS], axis=1)
    np.testing.assert_array_equal(philox4x32(counters, keys), expected)


def test_the_table_is_the_inverse_normal_to_the_last_bit() -> None:
    table = normal_table()
    assert table.dtype == np.float32
    assert table.shape == (65536,)
    assert (np.diff(table) > 0).all()
    np.testing.assert_array_equal(table, -table[::-1])
    with mpmath.workdps(30):
        for lane in (32768, 40000, 52428, 60001, 65000, 65535):
            p = (mpmath.mpf(lane) + 0.5) / 65536
            exact = mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1)
            assert table[lane] == np.float32(float(exact))


def plain_latent(seed: int, index: int, dim: int, steps: int = 65536) -> list[float]:
    """The rule once more, in plain Python, as another language would write it."""
    values: list[float] = []
    for block in range(-(-dim // 8)):
        c = [block, 0, index & 0xFFFFFFFF, index >> 32]
        k = [seed & 0xFFFFFFFF, seed >> 32]
        for _ in range(10):
            a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        for word in c:
            for lane in (word & 0xFFFF, word >> 16):
                values.append(float(normal_table()[((2 * lane - 65535) * steps + 2**32) >> 17]))
    return values[:dim]


@given(seed=U64, index=U64, dim=st.integers(1, 40), steps=st.integers(1, 65536))
def test_the_vectorised_rule_is_the_plain_rule(seed: int, index: int, dim: int, steps: int) -> None:
    assert latents(seed, [index], dim, steps / 65536)[0].tolist() == plain_latent(seed, index, dim, steps)


@given(rows=st.lists(st.tuples(U64, U64, st.floats(1e-6, 1.0)), min_size=1, max_size=12), dim=st.integers(1, 20))
def test_a_row_depends_on_its_own_address_alone(rows: list[tuple[int, int, float]], dim: int) -> None:
    seeds, indices, shares = (list(column) for column in zip(*rows, strict=True))
    together = latents(seeds, indices, dim, shares)
    for row, (seed, index, share) in enumerate(rows):
        np.testing.assert_array_equal(together[row], latents(seed, index, dim, share)[0])


@given(seed=U64, index=U64, share=st.floats(1e-4, 1.0))
def test_truncation_keeps_to_the_central_share_and_the_order(seed: int, index: int, share: float) -> None:
    full, cut = latents(seed, index, 64)[0], latents(seed, index, 64, share)[0]
    half = max(round(share * 65536), 1) / 2
    limit = normal_table()[min(32768 + int(half) + 1, 65535)]
    assert (np.abs(cut) <= limit).all()
    order = np.argsort(full, kind="stable")
    assert (np.diff(cut[order]) >= 0).all()


def test_latents_are_standard_normal() -> None:
    sample = latents(5, np.arange(4000), 50).astype(np.float64)
    assert abs(sample.mean()) < 0.01
    assert abs(sample.std() - 1) < 0.01
    assert abs(np.corrcoef(sample[:, 0], sample[:, 1])[0, 1]) < 0.06
    neighbours = np.corrcoef(sample[:-1].ravel(), sample[1:].ravel())[0, 1]
    assert abs(neighbours) < 0.01


@pytest.mark.parametrize("share", [0.0, -1.0, 1.0001, float("nan")])
def test_a_truncation_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="truncation"):
        latents(0, 0, 4, share)


def test_a_dimension_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="dim"):
        latents(0, 0, 0)


def test_floats_for_addresses_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds must be integers"):
        latents(np.array([0.0, 2.0**63]), 0, 4)
