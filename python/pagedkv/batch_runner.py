"""One batch from its arrays to its tokens, whatever one of its sequences does to the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from pagedkv.models.padding import padded_rows
from pagedkv.sampling.candidates import sample_candidates
from pagedkv.sampling.targets import SampleTargets

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pagedkv._core import Batch
    from pagedkv.attention.base import StepInputs
    from pagedkv.prompt_logprobs import PromptReader, PromptScore, PromptScorer
    from pagedkv.sampling.masks import MaskSource, TokenMasks
    from pagedkv.sampling.named_tokens import NamedToken, NamedTokens
    from pagedkv.sampling.sampled import SampledTokens, TopLogprobs
    from pagedkv.sampling.sampler import Sampler
    from pagedkv.step_buffers import StepArena
    from pagedkv.swap_space import SwapSpace

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class BatchOutcome:
    """What a batch led to.

    Attributes:
        token_ids: [S] int32, or [S, C] where beams want C candidates; 0 for samples of failed rows.
        logprobs: float32 of the same shape; 0 for samples of failed rows.
        top: reports of the samples that asked for log-probabilities.
        named: reports of the tokens that requests name, by sample.
        prompt_scores: reports of tokens of prompts.
        failures: what went wrong, by row id.
    """

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    top: list[TopLogprobs] = field(default_factory=list)
    named: dict[int, list[NamedToken]] = field(default_factory=dict)
    prompt_scores: list[PromptScore] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many tokens each sample of a batch asks for.

    Attributes:
        num_candidates: [S] int32, 1 or, for beams, more.
        width: the most of them in the whole batch.
    """

    num_candidates: npt.NDArray[np.int32]
    width: int

    @classmethod
    def of(cls, batch: Batch, arena: StepArena) -> Wanted:
        """Those of a scheduled batch."""
        counts = arena.arrays["num_candidates"][: batch.num_samples]
        return cls(counts, max(batch.num_candidates, 1))

    def take(self, samples: npt.NDArray[np.int64]) -> Wanted:
        """Those of some samples."""
        return Wanted(self.num_candidates[samples], self.width)


class Runner(Protocol):
    """What runs a step through the model: `ModelRunner`, or `SequenceRunner` on the slow path."""

    def forward(self, step: StepInputs) -> torch.Tensor:
        """Logits [S, vocabulary] float32 of the sampled positions."""

    def forward_read(self, step: StepInputs, reader: PromptReader) -> torch.Tensor:
        """The same, after the reader has got the logits of its positions in chunks."""


class BatchRunner:
    """Runs batches through the model and the sampler.

    When a forward pass fails, the batch is run again in halves, down to single rows. A step writes the same keys and values
    to the same slots however often it runs, so that what succeeds stays and the rows that fail alone are named.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        sampler: Sampler,
        scorer: PromptScorer,
        names: NamedTokens,
        arena: StepArena,
        device: torch.device,
        masks: MaskSource,
        swap: SwapSpace,
        row_multiple: int,
    ) -> None:
        """Keeps the parts; allocates nothing. The runner wants a multiple of ``row_multiple`` rows."""
        self._row_multiple = row_multiple
        self._runner = runner
        self._scorer = scorer
        self._names = names
        self._device = device
        self._sampler = sampler
        self._arena = arena
        self._masks = masks
        self._swap = swap

    def run(self, batch: Batch) -> BatchOutcome:
        """Runs a scheduled batch.

        Raises:
            BaseException: what is no ``Exception``, such as KeyboardInterrupt; the batch is then to be requeued.
        """
        num_tokens_padded = padded_rows(batch.num_tokens, self._row_multiple)
        step = self._arena.inputs(batch, num_tokens_padded=num_tokens_padded)
        # Once, whatever becomes of the forward pass: what is moved is not overwritten by moving it.
        self._swap.move(*self._arena.swaps(batch))
        masks, failures = self._masks.fill(batch)
        targets = self._targets(batch, masks)
        reader = self._scorer.reader(step)
        wanted = Wanted.of(batch, self._arena)
        try:
            logits = self._forward(step, reader)
            named = self._names.report(logits, targets)
            sampled = self._sample(logits, targets, wanted)
        except Exception as error:  # noqa: BLE001 - whatever a model raises ends its request, not the engine
            logger.warning(
                "a step of %d rows failed (%s); looking for the row", step.num_rows, error
            )
            outcome = self._run_in_parts(step, targets, wanted, error)
        else:
            outcome = BatchOutcome(
                token_ids=sampled.token_ids,
                logprobs=sampled.logprobs,
                top=sampled.top,
                named=named,
            )
            outcome.failures.update(_by_row(sampled, targets))
            _take_scores(outcome, reader)
        _note_nan(outcome, targets)
        for sample, message in failures.items():
            outcome.failures[int(targets.rows[sample])] = message
        _clear_failed(outcome, targets)
        self._count(targets, wanted, outcome)
        return outcome

    def _sample(
        self, logits: torch.Tensor, targets: SampleTargets, wanted: Wanted
    ) -> SampledTokens:
        return sample_candidates(
            self._sampler, logits, targets, wanted.num_candidates, width=wanted.width
        )

    def _count(self, targets: SampleTargets, wanted: Wanted, outcome: BatchOutcome) -> None:
        """Notes the tokens of samples that have just one; which of a beam go on, the core decides."""
        token_ids = outcome.token_ids
        if wanted.width > 1:
            drawn = np.flatnonzero(wanted.num_candidates == 1)
            targets, token_ids = targets.take(drawn), token_ids[drawn, 0]
        self._sampler.count(targets, token_ids)

    def _forward(self, step: StepInputs, reader: PromptReader | None) -> torch.Tensor:
        if self._device.type != "cpu":
            # What attention indexes with tensors of the device; the rest is read on the host or copied by the runner.
            step = replace(
                step,
                block_tables=step.block_tables.to(self._device),
                slot_mapping=step.slot_mapping.to(self._device),
            )
        if reader is None:
            return self._runner.forward(step)
        return self._runner.forward_read(step, reader)

    def _targets(self, batch: Batch, masks: TokenMasks | None) -> SampleTargets:
        arrays, count = self._arena.arrays, batch.num_samples
        return SampleTargets(
            rows=arrays["sample_rows"][:count],
            sample_index=arrays["sample_index"][:count],
            positions=arrays["sample_positions"][:count],
            masks=masks,
        )

    def _run_in_parts(
        self, step: StepInputs, targets: SampleTargets, wanted: Wanted, error: Exception
    ) -> BatchOutcome:
        shape = (targets.rows.size, wanted.width)[: 1 if wanted.width == 1 else 2]
        outcome = BatchOutcome(
            token_ids=np.zeros(shape, dtype=np.int32), logprobs=np.zeros(shape, dtype=np.float32)
        )
        # Copies are repeated until a part has succeeded: before that nothing of the step is kept, after that a copy
        # would overwrite what the part wrote.
        copies = step.block_copies
        pending = _halves(range(step.num_rows)) if step.num_rows > 1 else []
        if not pending:
            outcome.failures[int(step.row_ids[0])] = _describe(error)
        while pending:
            rows = pending.pop()
            part, samples = select_rows(step, rows, row_multiple=self._row_multiple)
            part = replace(part, block_copies=copies)
            part_targets = targets.take(samples)
            reader = self._scorer.reader(part)
            try:
                logits = self._forward(part, reader)
                named = self._names.report(logits, part_targets)
                sampled = self._sample(logits, part_targets, wanted.take(samples))
            except Exception as part_error:  # noqa: BLE001 - see `run`
                if len(rows) > 1:
                    pending += _halves(rows)
                    continue
                outcome.failures[int(step.row_ids[rows[0]])] = _describe(part_error)
            else:
                copies = copies[:0]
                outcome.failures.update(_by_row(sampled, part_targets))
                _merge(outcome, sampled, samples)
                outcome.named |= {int(samples[sample]): each for sample, each in named.items()}
                _take_scores(outcome, reader)
        return outcome


def select_rows(
    step: StepInputs, rows: Sequence[int], *, row_multiple: int
) -> tuple[StepInputs, npt.NDArray[np.int64]]:
    """A step with some of the rows, and without block copies.

    Args:
        step: the whole step, on a CPU.
        rows: places among its rows, ascending.
        row_multiple: of how many rows the smaller step is to be a multiple.

    Returns:
        The smaller step, and the indices of its samples among the samples of the whole.
    """
    starts = step.query_start_loc.numpy()
    ranges = [np.arange(starts[row], starts[row + 1]) for row in rows]
    tokens = np.concatenate(ranges)
    logits_indices = step.logits_indices.numpy()
    owners = np.searchsorted(starts, logits_indices, side="right") - 1
    samples = np.flatnonzero(np.isin(owners, np.asarray(rows)))
    lengths = [part.size for part in ranges]
    places = np.searchsorted(tokens, logits_indices[samples]).astype(np.int32)
    chosen = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    at = torch.from_numpy(tokens.astype(np.int64))
    selected = replace(
        step,
        row_ids=step.row_ids[chosen],
        query_start_loc=torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)),
        seq_lens=step.seq_lens[chosen],
        input_ids=step.input_ids[at],
        positions=step.positions[at],
        slot_mapping=step.slot_mapping[:, at].contiguous(),
        logits_indices=torch.from_numpy(places),
        block_copies=step.block_copies[:0],
        num_tokens_padded=padded_rows(tokens.size, row_multiple),
    )
    return selected, samples


def _halves(rows: Sequence[int]) -> list[Sequence[int]]:
    """Both halves, the first one last: a stack hands it out first."""
    middle = len(rows) // 2
    return [rows[middle:], rows[:middle]]


def _merge(outcome: BatchOutcome, part: SampledTokens, samples: npt.NDArray[np.int64]) -> None:
    outcome.token_ids[samples] = part.token_ids
    outcome.logprobs[samples] = part.logprobs
    outcome.top += [replace(report, sample=int(samples[report.sample])) for report in part.top]


def _by_row(sampled: SampledTokens, targets: SampleTargets) -> dict[int, str]:
    """What went wrong in the sampler, by row id."""
    return {int(targets.rows[sample]): error for sample, error in sampled.failures.items()}


def _take_scores(outcome: BatchOutcome, reader: PromptReader | None) -> None:
    if reader is not None:
        outcome.prompt_scores += reader.scores
        outcome.failures |= reader.failures


def _note_nan(outcome: BatchOutcome, targets: SampleTargets) -> None:
    """Rows whose logits held a NaN have failed: no token of theirs means anything."""
    is_nan = np.isnan(outcome.logprobs)
    if is_nan.any():
        rows = targets.rows[is_nan if is_nan.ndim == 1 else is_nan.any(axis=1)]
        for row in rows.tolist():
            outcome.failures[row] = "the model's logits are not a number (NaN)"


def _clear_failed(outcome: BatchOutcome, targets: SampleTargets) -> None:
    if outcome.failures:
        is_failed = np.isin(targets.rows, list(outcome.failures))
        outcome.token_ids[is_failed] = 0
        outcome.logprobs[is_failed] = 0.0


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
