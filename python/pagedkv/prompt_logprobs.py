"""Log-probabilities of the tokens of prompts, position by position as prompts are computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from pagedkv.sampling.logprobs import top_logprobs
from pagedkv.sampling.named_tokens import NamedToken, read_named

if TYPE_CHECKING:
    import numpy.typing as npt

    from pagedkv.attention.base import StepInputs
    from pagedkv.sampling.sampled import TopLogprobs
    from pagedkv.sampling_params import SamplingParams

# Logits are worked on in runs of rows of at most this many numbers, which bounds the memory beside the step's own.
_MAX_CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScore:
    """What is reported of one token of a prompt.

    Attributes:
        row: row in which it was computed.
        position: place of the token in the prompt, from 1.
        token_id: the token.
        logprob: its log-probability after the tokens before it.
        top: its rank and the most likely tokens in its place.
        named: what is reported of the tokens that the request names.
    """

    row: int
    position: int
    token_id: int
    logprob: float
    top: TopLogprobs
    named: list[NamedToken]


@dataclass(slots=True, kw_only=True)
class PromptReader:
    """Reads the logits of the prompt positions of one step, chunk after chunk.

    Attributes:
        indices: [K] int64 on the CPU, ascending: the positions in the batch that predict a token of a prompt.
        chunk_rows: how many logits rows to hand to `take` at once, at most.
        scores: what came of those that were read.
        failures: what went wrong, by row.
    """

    indices: torch.Tensor
    chunk_rows: int
    rows: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int64]
    num_logprobs: npt.NDArray[np.int32]
    names: dict[int, torch.Tensor]
    reports_logits: bool
    scores: list[PromptScore] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    _num_read: int = 0

    def take(self, logits: torch.Tensor) -> None:
        """Reads the logits [C, V] float32 of the next C positions."""
        first, self._num_read = self._num_read, self._num_read + logits.shape[0]
        part = slice(first, self._num_read)
        chosen = torch.from_numpy(self.token_ids[part]).to(logits.device)
        values = logits if self.reports_logits else logits.log_softmax(dim=1)
        own = values.gather(1, chosen.unsqueeze(1)).squeeze(1).tolist()
        for report in top_logprobs(
            values, values, chosen=chosen, num_logprobs=self.num_logprobs[part]
        ):
            place, value = first + report.sample, own[report.sample]
            row = int(self.rows[place])
            if value != value:  # noqa: PLR0124 - a NaN alone differs from itself
                self.failures[row] = "the model's logits of the prompt are not a number (NaN)"
                continue
            self.scores.append(
                PromptScore(
                    row=row,
                    position=int(self.positions[place]),
                    token_id=int(self.token_ids[place]),
                    logprob=value,
                    top=report,
                    named=self._named(logits[report.sample], row),
                )
            )

    def _named(self, logits: torch.Tensor, row: int) -> list[NamedToken]:
        if row not in self.names:
            return []
        return read_named(logits, self.names[row], reports_logits=self.reports_logits)


class PromptScorer:
    """Knows which rows compute prompts whose tokens are to be reported."""

    def __init__(self, *, max_num_seqs: int, vocab_size: int, logprobs_mode: str) -> None:
        """No row is to be reported.

        Args:
            max_num_seqs: rows there can be.
            vocab_size: columns of the logits.
            logprobs_mode: see `EngineConfig`. Nothing is done to the logits of a prompt, so that processed ones are raw.
        """
        self._chunk_rows = max(1, _MAX_CHUNK_ELEMENTS // vocab_size)
        self._reports_logits = logprobs_mode.endswith("logits")
        self._num_logprobs = np.full(max_num_seqs, -1, dtype=np.int32)
        self._first = np.ones(max_num_seqs, dtype=np.int64)
        self._prompts: dict[int, npt.NDArray[np.int64]] = {}
        self._names: dict[int, torch.Tensor] = {}

    def fill_row(
        self, row: int, prompt_token_ids: list[int] | None, params: SamplingParams
    ) -> None:
        """Says what the sequence in ``row`` is to report of its prompt: None for nothing."""
        self._prompts.pop(row, None)
        self._names.pop(row, None)
        self._num_logprobs[row] = -1
        if prompt_token_ids is None or params.prompt_logprobs is None:
            return
        self._num_logprobs[row] = params.prompt_logprobs
        self._first[row] = params.first_reported
        self._prompts[row] = np.asarray(prompt_token_ids, dtype=np.int64)
        if params.prompt_logprob_token_ids:
            self._names[row] = torch.tensor(params.prompt_logprob_token_ids, dtype=torch.long)

    def reader(self, step: StepInputs) -> PromptReader | None:
        """What is to be read of a step, on the CPU; None of most steps."""
        if not self._prompts:
            return None
        row_ids = step.row_ids.numpy()
        starts, positions = step.query_start_loc.numpy(), step.positions.numpy()
        found = []
        for place in np.flatnonzero(self._num_logprobs[row_ids] >= 0).tolist():
            prompt = self._prompts[int(row_ids[place])]
            indices = np.arange(starts[place], starts[place + 1], dtype=np.int64)
            # The last token of a prompt predicts what is sampled.
            targets = positions[indices].astype(np.int64) + 1
            is_read = (targets >= self._first[row_ids[place]]) & (targets < prompt.size)
            indices, targets = indices[is_read], targets[is_read]
            rows = np.full(indices.size, row_ids[place], dtype=np.int64)
            found.append((indices, rows, targets, prompt[targets]))
        if not sum(indices.size for indices, *_ in found):
            return None
        all_indices, rows, targets, token_ids = map(np.concatenate, zip(*found, strict=True))
        return PromptReader(
            indices=torch.from_numpy(all_indices),
            chunk_rows=self._chunk_rows,
            rows=rows,
            positions=targets,
            token_ids=token_ids,
            num_logprobs=self._num_logprobs[rows],
            names=self._names,
            reports_logits=self._reports_logits,
        )
