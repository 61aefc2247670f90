"""Samplers whose rows hold given requests."""

import numpy as np
import torch

from pagedkv import SamplingParams
from pagedkv.sampling.sampler import Sampler
from pagedkv.sampling.targets import SampleTargets


def make_sampler(vocab_size, rows, *, max_num_seqs=None, **settings):
    """A sampler whose row i holds the i-th of ``rows`` (params, and what `fill` takes)."""
    sampler = Sampler(
        max_num_seqs=max_num_seqs or len(rows),
        vocab_size=vocab_size,
        device=torch.device("cpu"),
        **settings,
    )
    for row, (params, state) in enumerate(rows):
        fill(sampler, row, params, **state)
    return sampler


def fill(sampler, row, params, *, seed=0, index=0, ending_ids=(), prompt=(), output=()):
    """Gives a row to a request."""
    sampler.fill_row(
        row,
        params,
        index=index,
        seed=seed,
        ending_ids=list(ending_ids),
        prompt_token_ids=np.array(prompt, dtype=np.int32),
        output_token_ids=np.array(output, dtype=np.int32),
    )


def targets(rows, *, index=None, positions=None):
    """Samples of the rows."""
    count = len(rows)
    return SampleTargets(
        rows=np.array(rows, dtype=np.int32),
        sample_index=np.array(index or [0] * count, dtype=np.int32),
        positions=np.array(positions or [0] * count, dtype=np.int32),
    )


def with_attributes(params, **attributes):
    """The parameters with what the constructor may not take yet."""
    for name, value in attributes.items():
        setattr(params, name, value)
    return params


def greedy(**attributes):
    """Parameters of a greedy row."""
    return with_attributes(SamplingParams(temperature=0.0), **attributes)
