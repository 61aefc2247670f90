"""How many threads torch uses in a forward pass.

Where every product is a kernel's, torch is left with sums and copies of a few thousand numbers. To wake a thread for one
of them takes longer than the operation, and OpenMP's threads, which wait for more by spinning, keep a processor from the
kernels' own.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from pagedkv.models.packed_weight import Packed
from pagedkv.models.surgery import multiplies_in_kernels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

# Numbers of a tensor on which two threads gain less than it takes to wake them.
_MAX_NUMEL = 1 << 18


def max_rows_alone(model: PreTrainedModel) -> int:
    """The most rows of a forward pass in which one thread of torch does as well as several; 0 if it has products."""
    if not multiplies_in_kernels(model):
        return 0
    # What comes out of the head goes to the sampler as it is.
    head = getattr(model.get_output_embeddings(), "weight", None)
    packed = [weight for weight in model.parameters() if isinstance(weight, Packed)]
    widths = [max(weight.shape[-2:]) for weight in packed if weight is not head]
    return _MAX_NUMEL // max(widths, default=_MAX_NUMEL)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch's operations run in the calling thread during the ``with`` statement."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
