"""Keyed random numbers."""

import numpy as np
import pytest

from pagedkv import _core
from pagedkv.sampling.philox import derive_seed, gumbel_noise, philox4x32

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (ONES, ONES, ONES, ONES),
            (ONES, ONES),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    assert tuple(int(word[0]) for word in philox4x32(counter, key)) == expected


def noise(*, seed=7, sample_index=0, position=0, token_ids=range(1000)):
    return gumbel_noise(
        seeds=np.array([seed], dtype=np.uint64),
        sample_index=np.array([sample_index], dtype=np.int32),
        positions=np.array([position], dtype=np.int32),
        token_ids=np.asarray(token_ids, dtype=np.int32),
    )


def test_noise_depends_on_every_part_of_its_address_and_on_nothing_else():
    base = noise()
    assert np.array_equal(base, noise())
    assert np.array_equal(base[500:], noise(token_ids=range(500, 1000)))
    for other in ({"seed": 8}, {"seed": 7 + 2**32}, {"sample_index": 1}, {"position": 1}):
        assert not np.isin(noise(**other), base).all(), other


def test_noise_follows_the_gumbel_distribution():
    values = noise(token_ids=range(200_000)).astype(np.float64)
    assert values.mean() == pytest.approx(0.5772, abs=0.01)
    assert values.var() == pytest.approx(np.pi**2 / 6, rel=0.02)


def test_the_kernel_agrees_with_the_twin_but_for_last_bits():
    generator = np.random.default_rng(0)
    seeds = generator.integers(2**64, size=6, dtype=np.uint64)
    sample_index = np.arange(6, dtype=np.int32)
    positions = np.array([0, 1, 2, 3, 1000, 2**20], dtype=np.int32)
    output = np.zeros((6, 5000), dtype=np.float32)
    _core.gumbel_noise(output, seeds=seeds, sample_index=sample_index, positions=positions)
    twin = gumbel_noise(
        seeds=seeds[:, None],
        sample_index=sample_index[:, None],
        positions=positions[:, None],
        token_ids=np.arange(5000, dtype=np.int32)[None],
    )
    assert np.allclose(output, twin, rtol=2e-7, atol=0)
    assert (output != twin).mean() < 1e-3


def test_derived_seeds_differ_between_requests_and_between_engines():
    seeds = {derive_seed(engine, ordinal) for engine in range(20) for ordinal in range(200)}
    assert len(seeds) == 20 * 200
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert derive_seed(-1, 3) == derive_seed(2**64 - 1, 3)
