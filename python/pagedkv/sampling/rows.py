"""Sampling parameters of the running sequences, as arrays indexed by row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pagedkv.sampling_params import SamplingParams


class SamplingRows:
    """One entry per row (a stable slot of a running sequence), written when a row is filled.

    Attributes:
        temperature: [B] float32; 0 for greedy rows.
        top_k: [B] int32; 0 keeps all.
        top_p: [B] float32.
        log_min_p: [B] float32, logarithm of min_p; -inf keeps all.
        num_logprobs: [B] int32; -1 where none are asked for.
        seeds: [B] uint64.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int) -> None:
        """Reserves the arrays for ``max_num_seqs`` rows."""
        self._vocab_size = vocab_size
        self.temperature = np.zeros(max_num_seqs, dtype=np.float32)
        self.top_k = np.zeros(max_num_seqs, dtype=np.int32)
        self.top_p = np.ones(max_num_seqs, dtype=np.float32)
        self.log_min_p = np.full(max_num_seqs, -np.inf, dtype=np.float32)
        self.num_logprobs = np.full(max_num_seqs, -1, dtype=np.int32)
        self.seeds = np.zeros(max_num_seqs, dtype=np.uint64)

    def fill(self, row: int, params: SamplingParams, *, seed: int) -> None:
        """Writes the parameters of the sequence that got ``row``.

        Args:
            row: Row to write.
            params: Parameters of its request.
            seed: 64-bit seed of the request, signed or unsigned.
        """
        self.temperature[row] = 0.0 if params.is_greedy else params.temperature
        is_top_k_on = 0 < params.top_k < self._vocab_size
        self.top_k[row] = params.top_k if is_top_k_on else 0
        self.top_p[row] = params.top_p
        self.log_min_p[row] = math.log(params.min_p) if params.min_p > 0 else -math.inf
        self.num_logprobs[row] = -1 if params.logprobs is None else params.logprobs
        self.seeds[row] = seed % 2**64
