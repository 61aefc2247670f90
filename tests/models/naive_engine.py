"""A scheduler in thirty lines of Python, to test models and backends without the core.

It fills the step arrays as the core does: several sequences per step, prompts cut into chunks, blocks handed out in
shuffled order, one table per KV group. Window groups give back blocks that left their window, and the pool is poisoned
with NaN, again whenever a block is given back, so that a read of a foreign slot shows.
"""

from __future__ import annotations

import random

import torch

from pagedkv.attention import StepInputs, create_backend
from pagedkv.kv_cache import KvCache
from pagedkv.model_runner import ModelRunner
from pagedkv.models import LoadedModel, padded_rows


class NaiveEngine:
    """Greedy generation of a few prompts at once."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        backend: str,
        block_size: int = 8,
        num_blocks: int = 512,
        max_num_batched_tokens: int = 24,
        max_num_seqs: int = 8,
    ) -> None:
        self.block_size = block_size
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self.groups = loaded.geometry.groups
        self.cache = KvCache(
            loaded.geometry,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=loaded.dtype,
            device=loaded.device,
        )
        for storage in [*self.cache.keys, *self.cache.values]:
            storage.fill_(torch.nan)
        layers = {layer.layer_idx: layer for layer in loaded.geometry.layers}
        self.runner = ModelRunner(
            loaded.model,
            layers=layers,
            backend=create_backend(
                backend, layers=layers, caches=self.cache.layers, device=loaded.device
            ),
            device=loaded.device,
            max_num_batched_tokens=max_num_batched_tokens,
            vocab_size=loaded.vocab_size,
            row_multiple=loaded.row_multiple,
        )
        self.row_multiple = loaded.row_multiple
        self.free = list(range(1, num_blocks))
        random.Random(0).shuffle(self.free)
        self.tables = torch.zeros(len(self.groups), max_num_seqs, num_blocks, dtype=torch.int32)
        self.num_chunked_prompts = 0
        self.num_freed_window_blocks = 0

    def generate(
        self, prompts: list[list[int]], *, max_tokens: int
    ) -> tuple[list[list[int]], list[list[torch.Tensor]]]:
        """Greedy ids and logits of every prompt."""
        assert len(prompts) <= self.max_num_seqs
        tokens = [list(prompt) for prompt in prompts]
        computed = [0] * len(prompts)
        logits: list[list[torch.Tensor]] = [[] for _ in prompts]

        def unfinished(row: int) -> bool:
            return len(tokens[row]) < len(prompts[row]) + max_tokens

        while rows := [row for row in range(len(prompts)) if unfinished(row)]:
            scheduled = self._schedule(rows, tokens, computed)
            step, sampled_rows = self._build_step(scheduled, tokens, computed)
            result = self.runner.forward(step)
            assert result.shape[0] == len(sampled_rows)
            for row, row_logits in zip(sampled_rows, result, strict=True):
                logits[row].append(row_logits.clone())
                tokens[row].append(int(row_logits.argmax()))
            for row, query_len in scheduled:
                computed[row] += query_len
                self._give_back(row, computed[row], finished=not unfinished(row))
        return [t[len(p) :] for t, p in zip(tokens, prompts, strict=True)], logits

    def _schedule(
        self, rows: list[int], tokens: list[list[int]], computed: list[int]
    ) -> list[tuple[int, int]]:
        budget = self.max_num_batched_tokens
        scheduled = []
        for row in rows:
            missing = len(tokens[row]) - computed[row]
            query_len = min(missing, budget)
            if query_len:
                scheduled.append((row, query_len))
                self.num_chunked_prompts += query_len < missing
                budget -= query_len
        return scheduled

    def _build_step(
        self, scheduled: list[tuple[int, int]], tokens: list[list[int]], computed: list[int]
    ) -> tuple[StepInputs, list[int]]:
        ids: list[int] = []
        positions: list[int] = []
        starts, seq_lens, logits_indices, sampled_rows = [0], [], [], []
        slots: list[list[int]] = [[] for _ in self.groups]
        for row, query_len in scheduled:
            start, stop = computed[row], computed[row] + query_len
            ids += tokens[row][start:stop]
            positions += range(start, stop)
            for group in range(len(self.groups)):
                slots[group] += [
                    self._slot(group, row, position) for position in range(start, stop)
                ]
            starts.append(len(ids))
            seq_lens.append(stop)
            if stop == len(tokens[row]):
                logits_indices.append(len(ids) - 1)
                sampled_rows.append(row)

        def int32(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32)

        step = StepInputs(
            row_ids=int32([row for row, _ in scheduled]),
            query_start_loc=int32(starts),
            seq_lens=int32(seq_lens),
            input_ids=int32(ids),
            positions=int32(positions),
            slot_mapping=torch.tensor(slots, dtype=torch.int64),
            block_tables=self.tables,
            logits_indices=int32(logits_indices),
            block_copies=torch.empty(0, 3, dtype=torch.int32),
            num_tokens_padded=padded_rows(len(ids), self.row_multiple),
        )
        return step, sampled_rows

    def _slot(self, group: int, row: int, position: int) -> int:
        column, offset = divmod(position, self.block_size)
        if self.tables[group, row, column] == 0:
            self.tables[group, row, column] = self.free.pop()
        return int(self.tables[group, row, column]) * self.block_size + offset

    def _give_back(self, row: int, num_computed: int, *, finished: bool) -> None:
        """Returns what the next query cannot see: whole blocks before its window or chunk, or everything."""
        for group, spec in enumerate(self.groups):
            first_visible = 0
            if finished:
                first_visible = num_computed + self.block_size
            elif spec.kind == "sliding":
                first_visible = num_computed - spec.window + 1
            elif spec.kind == "chunked":
                first_visible = num_computed // spec.window * spec.window
            for column in range(max(0, first_visible) // self.block_size):
                block = int(self.tables[group, row, column])
                if block:
                    self.num_freed_window_blocks += not finished
                    self.tables[group, row, column] = 0
                    self.free.append(block)
                    for storage in [*self.cache.keys, *self.cache.values]:
                        storage[block] = torch.nan
