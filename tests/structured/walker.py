"""Random sequences under a grammar: a scheduler and masks, without a model."""

import random

import numpy as np

from core.fake_model import Arena
from pagedkv._core import Scheduler, TextDecoder, fill_masks
from pagedkv.grammars import GrammarCache
from pagedkv.structured_outputs import StructuredOutputsParams


def compile_grammar(tokenizer, vocab_size, **constraint):
    """The grammar of a constraint over the tokens of a `pagedkv.tokenizer.Tokenizer`."""
    cache = GrammarCache(tokenizer, vocab_size=vocab_size)
    return cache.grammar(StructuredOutputsParams(**constraint).constraint())


class Walker:
    """Requests whose tokens are drawn evenly from what their masks allow.

    Attributes:
        allowed: the set of allowed ids of every constrained sample so far.
        failures: what `fill_masks` returned so far.
    """

    def __init__(self, tokenizer, *, vocab_size, seed=0, **settings):
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.scheduler = Scheduler(
            **{
                "num_blocks": 200,
                "block_size": 4,
                "kv_groups": [("full", 0)],
                "max_num_seqs": 8,
                "max_num_batched_tokens": 32,
                "max_model_len": 128,
                **settings,
            }
        )
        self.arena = Arena(self.scheduler, num_padded=0)
        self.draw = random.Random(seed)
        self.allowed, self.failures, self.results = [], [], {}

    def add(self, request_id, grammar, *, prompt=(5, 6), **parameters):
        text = self.tokenizer.make_text_decoder(list(prompt))
        if grammar is not None:
            text = TextDecoder.constrained(grammar, text)
        self.scheduler.add_request(
            request_id, list(prompt), text=text, **{"max_tokens": 60, **parameters}
        )

    def step(self):
        batch = self.scheduler.schedule(self.arena.buffers)
        if batch is None:
            return False
        words = np.zeros((batch.num_samples, -(-self.vocab_size // 32)), np.uint32)
        is_constrained = np.zeros(batch.num_samples, np.bool_)
        self.failures += fill_masks(
            self.scheduler, batch, words=words, is_constrained=is_constrained
        )
        assert batch.num_constrained >= is_constrained.sum()
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
        token_ids = []
        for mask, counts in zip(bits, is_constrained, strict=True):
            ids = np.flatnonzero(mask).tolist() if counts else list(range(self.vocab_size))
            if counts:
                self.allowed.append(set(ids))
            token_ids.append(self.draw.choice(ids))
        output = self.scheduler.update(
            batch, np.array(token_ids, np.int32), np.zeros(len(token_ids), np.float32)
        )
        self.scheduler.check_invariants()
        for request_id in output.finished:
            self.results[request_id] = self.scheduler.take_output(request_id).sequences
        return True

    def run(self):
        while self.step():
            pass
        return self.results
