"""Keyed random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A number is a function of its key and counter, so a request's tokens do not depend on what else runs. Sampling uses

    key     = the request's 64-bit seed, low word first
    counter = (sample index, output position, token id, purpose)
    u       = ((first word >> 8) + 0.5) * 2**-24        in (0, 1)
    noise   = -ln(-ln(u))                               Gumbel, computed in f64 and rounded to f32

and the sampled token is the argmax of logit / temperature + noise. The sampler takes its noise from the kernel in
`pagedkv._core`; this is the readable twin that it is compared with.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_ROUNDS = 10
_LOW_WORD = np.uint64(0xFFFFFFFF)


class Purpose(IntEnum):
    """The last word of the counter: what a number is for."""

    TOKEN = 0
    SEED = 1


def philox4x32(
    counter: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike],
    key: tuple[npt.ArrayLike, npt.ArrayLike],
) -> tuple[
    npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint32]
]:
    """Four words per counter and key.

    Args:
        counter: Four uint32 arrays that broadcast against each other and against the key.
        key: Two uint32 arrays.

    Returns:
        Four uint32 arrays of the broadcast shape.
    """
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint32) for word in counter)
    k0, k1 = (np.atleast_1d(np.asarray(word, dtype=np.uint32)) for word in key)
    for i in range(_ROUNDS):
        product0 = c0.astype(np.uint64) * _MULTIPLIERS[0]
        product1 = c2.astype(np.uint64) * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            _high(product1) ^ c1 ^ k0,
            _low(product1),
            _high(product0) ^ c3 ^ k1,
            _low(product0),
        )
        if i < _ROUNDS - 1:
            # Array arithmetic wraps around, which is what the key schedule asks for.
            k0, k1 = k0 + _KEY_STEPS[0], k1 + _KEY_STEPS[1]
    return c0, c1, c2, c3


def gumbel_noise(
    *,
    seeds: npt.NDArray[np.uint64],
    sample_index: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
    token_ids: npt.NDArray[np.int32],
) -> npt.NDArray[np.float32]:
    """Noise of the given tokens; the arguments broadcast against each other.

    Args:
        seeds: Seed of each token's request.
        sample_index: Index of its sequence within the request.
        positions: Output position, 0 for the first generated token.
        token_ids: Token ids.

    Returns:
        float32 of the broadcast shape.
    """
    first, _, _, _ = philox4x32(
        (sample_index, positions, token_ids, np.uint32(Purpose.TOKEN)),
        (_low(seeds), _high(seeds)),
    )
    uniform = ((first >> np.uint32(8)).astype(np.float64) + 0.5) * 2.0**-24
    return (-np.log(-np.log(uniform))).astype(np.float32)


def derive_seed(engine_seed: int, ordinal: int) -> int:
    """The 64-bit seed of the ``ordinal``-th request that came without one."""
    mask = 0xFFFFFFFF
    low, high, _, _ = philox4x32(
        (
            np.uint32(ordinal & mask),
            np.uint32(ordinal >> 32 & mask),
            np.uint32(0),
            np.uint32(Purpose.SEED),
        ),
        (np.uint32(engine_seed & mask), np.uint32(engine_seed >> 32 & mask)),
    )
    return int(high[0]) << 32 | int(low[0])


def _low(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    return (words & _LOW_WORD).astype(np.uint32)


def _high(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    return (words >> np.uint64(32)).astype(np.uint32)
