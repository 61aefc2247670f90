"""``logprob_token_ids``: what the model says of tokens that a request names, whatever it samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pagedkv.sampling.targets import SampleTargets


class NamedToken(NamedTuple):
    """A token that a request names, at one position."""

    token_id: int
    logprob: float
    rank: int


class NamedTokens:
    """The named ids by row."""

    def __init__(self, *, max_num_seqs: int, reports_logits: bool) -> None:
        """No row names any.

        Args:
            max_num_seqs: Rows there can be.
            reports_logits: Logits in place of log-probabilities.
        """
        self._reports_logits = reports_logits
        self._has_names = np.zeros(max_num_seqs, dtype=np.bool_)
        self._names: dict[int, torch.Tensor] = {}

    def fill_row(self, row: int, token_ids: Sequence[int] | None) -> None:
        """Says which ids the sequence in ``row`` names; None for none."""
        self._has_names[row] = token_ids is not None
        self._names.pop(row, None)
        if token_ids is not None:
            self._names[row] = torch.tensor(token_ids, dtype=torch.long)

    @torch.inference_mode()
    def report(self, logits: torch.Tensor, targets: SampleTargets) -> dict[int, list[NamedToken]]:
        """What is reported, by sample; empty for most batches.

        Args:
            logits: [S, V] float32 of the model.
            targets: [S], for whom.
        """
        return {
            sample: read_named(
                logits[sample],
                self._names[int(targets.rows[sample])],
                reports_logits=self._reports_logits,
            )
            for sample in np.flatnonzero(self._has_names[targets.rows]).tolist()
        }


def read_named(
    logits: torch.Tensor, token_ids: torch.Tensor, *, reports_logits: bool
) -> list[NamedToken]:
    """What the logits [V] float32 of one position say of the ids [K] int64."""
    own = logits[token_ids.to(logits.device)]
    ranks = (logits > own.unsqueeze(1)).sum(dim=1) + 1
    values = own if reports_logits else own - logits.logsumexp(dim=0)
    return list(map(NamedToken, token_ids.tolist(), values.tolist(), ranks.tolist()))
