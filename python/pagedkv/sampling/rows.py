"""Sampling parameters of the running sequences, as arrays indexed by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagedkv.sampling_params import SamplingParams


class SamplingRows:
    """One entry per row (a stable slot of a running sequence), written when a row is filled.

    Attributes:
        temperature: [B] float32; 0 for greedy rows.
        top_k: [B] int32; 0 keeps all.
        top_p: [B] float32.
        min_p: [B] float32.
        presence_penalty: [B] float32.
        frequency_penalty: [B] float32.
        repetition_penalty: [B] float32.
        has_penalties: [B] bool.
        min_tokens: [B] int32; 0 where nothing would be masked.
        num_logprobs: [B] int32; -1 where none are asked for.
        seeds: [B] uint64.
        index: [B] int32, which of its request's sequences sits in the row.
        ending_ids: [B, W] int32, the ids that ``min_tokens`` masks, each row's padded with its first.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int) -> None:
        """Reserves the arrays for ``max_num_seqs`` rows."""
        self._vocab_size = vocab_size
        self.temperature = np.zeros(max_num_seqs, dtype=np.float32)
        self.top_k = np.zeros(max_num_seqs, dtype=np.int32)
        self.top_p = np.ones(max_num_seqs, dtype=np.float32)
        self.min_p = np.zeros(max_num_seqs, dtype=np.float32)
        self.presence_penalty = np.zeros(max_num_seqs, dtype=np.float32)
        self.frequency_penalty = np.zeros(max_num_seqs, dtype=np.float32)
        self.repetition_penalty = np.ones(max_num_seqs, dtype=np.float32)
        self.has_penalties = np.zeros(max_num_seqs, dtype=np.bool_)
        self.min_tokens = np.zeros(max_num_seqs, dtype=np.int32)
        self.num_logprobs = np.full(max_num_seqs, -1, dtype=np.int32)
        self.seeds = np.zeros(max_num_seqs, dtype=np.uint64)
        self.index = np.zeros(max_num_seqs, dtype=np.int32)
        self.ending_ids = np.zeros((max_num_seqs, 1), dtype=np.int32)

    def fill(
        self,
        row: int,
        params: SamplingParams,
        *,
        index: int,
        seed: int,
        ending_ids: Sequence[int],
    ) -> None:
        """Writes the parameters of the sequence that got ``row``.

        Args:
            row: Row to write.
            params: Parameters of its request.
            index: Index of the sequence within the request.
            seed: 64-bit seed of the request, signed or unsigned.
            ending_ids: Ids that end it, all of them inside the vocabulary.
        """
        self.temperature[row] = 0.0 if params.is_greedy else params.temperature
        is_top_k_on = 0 < params.top_k < self._vocab_size
        self.top_k[row] = params.top_k if is_top_k_on else 0
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.presence_penalty[row] = params.presence_penalty
        self.frequency_penalty[row] = params.frequency_penalty
        self.repetition_penalty[row] = params.repetition_penalty
        self.has_penalties[row] = params.has_penalties
        self.min_tokens[row] = params.min_tokens if ending_ids else 0
        self.num_logprobs[row] = -1 if params.logprobs is None else params.logprobs
        self.seeds[row] = seed % 2**64
        self.index[row] = index
        if self.min_tokens[row]:
            self._set_ending_ids(row, ending_ids)

    def _set_ending_ids(self, row: int, ending_ids: Sequence[int]) -> None:
        missing = len(ending_ids) - self.ending_ids.shape[1]
        if missing > 0:
            self.ending_ids = np.pad(self.ending_ids, ((0, 0), (0, missing)), mode="edge")
        self.ending_ids[row] = ending_ids[0]
        self.ending_ids[row, : len(ending_ids)] = ending_ids
